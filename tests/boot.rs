//! Stock Debian kernels on the software CPU, from the first instruction to power-off.
//!
//! Each test boots the `shell` bundle, feeds commands to the guest's shell and reads what they print. Bundles that are not in the
//! user's cache are fetched. One guest at a time: two would share the host's cores and prove less about either.
#![expect(clippy::unwrap_used, reason = "a test may")]

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};

use support::session::{self, alone, output_of};
use support::stock_kernel::{self, host_sum, random_file};
use support::{file_of_len, minivmm};

mod support;

/// The command that boots bundle `name`, which it fetches if need be.
fn boot(name: &str, arguments: &[&str]) -> Command {
    session::boot("soft", &[&["--bundle", name], arguments].concat())
}

/// The command that boots the cloud kernel of this year's Debian.
fn machine(arguments: &[&str]) -> Command {
    boot("shell", arguments)
}

/// What `script` prints in the guest, which powers off in the end.
fn shell(arguments: &[&str], script: &str) -> String {
    let _alone = alone();
    output_of(machine(arguments), script)
}

#[test]
fn one_vcpu_boots() {
    assert_eq!(shell(&["--cpus", "1"], "nproc; uname -m"), "1\naarch64\n");
}

#[test]
fn two_vcpus_boot() {
    assert_eq!(shell(&["--cpus", "2"], "nproc"), "2\n");
}

#[test]
fn four_vcpus_boot_on_fewer_cores() {
    assert_eq!(shell(&["--cpus", "4"], "nproc"), "4\n");
}

#[test]
fn interpreting_cpu_boots() {
    assert_eq!(shell(&["--cpus", "2", "--cpu-tier", "interpret"], "nproc"), "2\n");
}

/// MemTotal of a guest with `memory`, in MiB.
fn memory_total(memory: &str) -> u64 {
    let output = shell(&["--memory", memory], "awk '/MemTotal/ { print $2 }' /proc/meminfo");
    output.trim().parse::<u64>().unwrap() / 1024
}

#[test]
fn guest_sees_256_mib() {
    assert!((150..256).contains(&memory_total("256M")));
}

#[test]
fn guest_sees_1_gib() {
    assert!((880..1_024).contains(&memory_total("1G")));
}

#[test]
fn guest_sees_8_gib() {
    assert!((7_700..8_192).contains(&memory_total("8G")));
}

#[test]
fn twenty_boots_in_a_row_end() {
    for round in 0..20 {
        assert_eq!(shell(&["--cpus", "2"], &format!("echo round {round}")), format!("round {round}\n"));
    }
}

#[test]
fn kernel_with_16_kib_pages_boots() {
    let _alone = alone();
    let script = "nproc; awk '/^KernelPageSize/ { print $2; exit }' /proc/self/smaps";
    assert_eq!(output_of(boot("shell-16k", &["--cpus", "2"]), script), "2\n16\n");
}

#[test]
fn full_flavour_boots() {
    let _alone = alone();
    let output = output_of(boot("shell-full", &["--cpus", "2"]), "nproc; uname -r");
    assert!(output.starts_with("2\n") && !output.contains("cloud"), "{output}");
}

#[test]
fn next_debian_boots() {
    let _alone = alone();
    let output = output_of(boot("shell-forky", &["--cpus", "2"]), "nproc; uname -r");
    assert!(output.starts_with("2\n"), "{output}");
}

#[test]
fn guest_reads_and_writes_the_hosts_bytes() {
    stock_kernel::disk_has_the_hosts_bytes(machine, 256 << 20);
}

#[test]
fn file_system_on_a_disk_survives_its_machine() {
    let directory = tempfile::tempdir().unwrap();
    let image = file_of_len(&directory.path().join("disk.img"), 64 << 20);
    let disk = format!("{},serial=first-disk", image.display());
    let script = "cat /sys/block/vda/serial; echo; mke2fs /dev/vda >/dev/null && mount -t ext4 /dev/vda /mnt && \
                  seq 100000 >/mnt/numbers; umount /mnt; echo done";
    assert_eq!(shell(&["--disk", &disk], script), "first-disk\ndone\n");
    let script = "mount -t ext4 /dev/vda /mnt && md5sum </mnt/numbers";
    let numbers: String = (1..=100_000).map(|n| format!("{n}\n")).collect();
    let expected = directory.path().join("numbers");
    fs::write(&expected, numbers).unwrap();
    assert_eq!(shell(&["--disk", &disk], script), format!("{}  -\n", host_sum("md5sum", &expected)));
}

#[test]
fn discarded_blocks_are_given_back_to_the_host() {
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("disk.img");
    random_file(&image, 32 << 20);
    let full = fs::metadata(&image).unwrap().blocks();
    let script = "cat /sys/block/vda/queue/discard_max_bytes; blkdiscard /dev/vda && echo discarded";
    let output = shell(&["--disk", image.to_str().unwrap()], script);
    assert!(output.ends_with("discarded\n"), "{output}");
    assert!(fs::metadata(&image).unwrap().blocks() < full / 8);
}

#[test]
fn reboot_restarts_the_machine() {
    stock_kernel::reboot_restarts_the_machine(machine);
}

#[test]
fn devices_are_where_the_transport_says() {
    stock_kernel::devices_are_where_the_transport_says(machine);
}

#[test]
fn vcpu_goes_offline_and_comes_back() {
    stock_kernel::vcpu_goes_offline_and_comes_back(machine);
}

#[test]
fn kernel_panic_ends_with_3() {
    let _alone = alone();
    let mut child = machine(&[]).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"echo c >/proc/sysrq-trigger\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn power_key_shuts_the_guest_down() {
    stock_kernel::power_key_shuts_the_guest_down(machine);
}

/// The same commands in the guest's busybox and with the host's tools, on the same bytes.
#[test]
fn programs_in_the_guest_compute_what_the_hosts_do() {
    let script = "seq 30000 >/tmp/n; sha512sum </tmp/n; sha256sum </tmp/n; gzip -9 </tmp/n | gzip -dc | md5sum; \
                  awk '{ s += $1 * 1.5; q += s / ($1 + 0.25) } END { printf \"%.6f %.6f\\n\", s, q }' </tmp/n; \
                  echo 'scale=40; 2/3; 2^200' | bc; sort -rn </tmp/n | md5sum\n";
    let host = Command::new("sh").args(["-c", script]).output().unwrap();
    assert!(host.stderr.is_empty(), "the host lacks a tool: {}", String::from_utf8_lossy(&host.stderr));
    let shared = shell(&["--cpus", "2"], script);
    assert_eq!(shared, String::from_utf8(host.stdout).unwrap());
}

/// Messages of level "warning" and worse, without time stamps.
fn warnings(raw: &str) -> Vec<String> {
    let line = |line: &str| {
        let (level, rest) = line.strip_prefix('<')?.split_once('>')?;
        let severe = level.parse::<u32>().ok()? & 7 <= 4;
        let text = rest.split_once("] ").map_or(rest, |(_, text)| text);
        severe.then(|| text.to_owned())
    };
    raw.lines().filter_map(line).collect()
}

#[test]
fn kernel_warns_of_nothing_that_it_does_not_warn_of_on_qemu() {
    let script = "dmesg -r\n";
    let ours = warnings(&shell(&["--cpus", "2", "--memory", "512M"], script));
    let _alone = alone();
    let bundle = minivmm(&["bundle", "path", "shell"]).output().unwrap();
    let bundle = String::from_utf8(bundle.stdout).unwrap();
    let file = |name: &str| format!("{}/{name}", bundle.trim());
    let mut qemu = Command::new("qemu-system-aarch64");
    qemu.args([
        "-M",
        "virt,gic-version=3",
        "-cpu",
        "cortex-a72",
        "-m",
        "512",
        "-smp",
        "2",
        "-nodefaults",
        "-no-reboot",
    ]);
    qemu.args(["-display", "none", "-serial", "stdio", "-kernel", &file("kernel"), "-initrd", &file("initramfs")]);
    qemu.args(["-append", "console=ttyAMA0 quiet minivmm.pipe"]);
    let Ok(mut child) = qemu.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn() else {
        assert!(std::env::var_os("CI").is_none(), "qemu-system-aarch64 is missing: apt-get install qemu-system-arm");
        eprintln!("skipped: qemu-system-aarch64 is missing (apt-get install qemu-system-arm)");
        return;
    };
    let mut console = child.stdout.take().unwrap();
    let mut seen = Vec::new();
    // The guest says when it takes input.
    while !seen.ends_with(b"minivmm:ready\x1b\\") {
        let mut byte = [0; 1];
        console.read_exact(&mut byte).unwrap();
        seen.push(byte[0]);
    }
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(format!("{script}\x04\x04").as_bytes()).unwrap();
    let mut rest = String::new();
    console.read_to_string(&mut rest).unwrap();
    drop(stdin);
    child.wait().unwrap();
    let theirs = warnings(&rest.replace('\r', ""));
    let added: Vec<&String> = ours.iter().filter(|line| !theirs.contains(line)).collect();
    assert!(added.is_empty(), "only on minivmm: {added:#?}\nalso on QEMU: {theirs:#?}");
}
