//! What a stock Debian kernel must find on every back end. Each function boots the `shell` bundle with `boot`, which takes arguments of
//! `minivmm boot`, and fails where the kernel finds something else.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;
use std::process::Command;

use rustix::process::Signal;

use super::session::{alone, output_of, signal, stats, up};
use super::{file_of_len, parts};

/// A file of `len` bytes that no compression or zero detection could shorten.
pub fn random_file(path: &Path, len: u64) {
    let mut source = File::open("/dev/urandom").unwrap().take(len);
    std::io::copy(&mut source, &mut File::create(path).unwrap()).unwrap();
}

/// The first word that the host's `program` prints for `path`.
pub fn host_sum(program: &str, path: &Path) -> String {
    let output = Command::new(program).arg(path).output().unwrap();
    String::from_utf8(output.stdout).unwrap().split_whitespace().next().unwrap().to_owned()
}

/// A disk of `len` bytes is read and copied to another one; a disk that is read-only is not written.
pub fn disk_has_the_hosts_bytes(boot: impl Fn(&[&str]) -> Command, len: u64) {
    let directory = tempfile::tempdir().unwrap();
    let (source, copy) = (directory.path().join("source.img"), directory.path().join("copy.img"));
    random_file(&source, len);
    file_of_len(&copy, len);
    let script = "md5sum </dev/vda; dd if=/dev/vda of=/dev/vdb bs=1M 2>/dev/null; sync; \
                  echo 3 >/proc/sys/vm/drop_caches; md5sum </dev/vdb; echo x 2>/dev/null >/dev/vda || echo refused";
    let disks = [&format!("{},ro", source.display()), copy.to_str().unwrap()];
    let _alone = alone();
    let output = output_of(boot(&["--cpus", "2", "--disk", disks[0], "--disk", disks[1]]), script);
    let sum = host_sum("md5sum", &source);
    assert_eq!(output, format!("{sum}  -\n{sum}  -\nrefused\n"));
    assert_eq!(host_sum("md5sum", &copy), sum);
}

/// Devices of `--transport mmio`, of `pci`, and of `pci` in a kernel that does not use messages work, and are where that says.
pub fn devices_are_where_the_transport_says(boot: impl Fn(&[&str]) -> Command) {
    let directory = tempfile::tempdir().unwrap();
    let disk = directory.path().join("disk.img");
    random_file(&disk, 4 << 20);
    let script = "readlink -f /sys/block/vda/device; grep -q 'PCI-MSIX.*virtio' /proc/interrupts && echo messages; \
                  grep -q 'GICv3.*Level.*virtio' /proc/interrupts && echo lines; md5sum </dev/vda";
    let _alone = alone();
    let found = |arguments: &[&str]| {
        let common = ["--cpus", "2", "--disk", disk.to_str().unwrap()];
        output_of(boot(&[&common, arguments].concat()), script)
    };
    let sum = host_sum("md5sum", &disk);
    let (platform, bus) = ("/sys/devices/platform", "10000000.pcie/pci0000:00/0000:00:02.0");
    assert_eq!(found(&["--transport", "mmio"]), format!("{platform}/c002000.virtio_mmio/virtio2\nlines\n{sum}  -\n"));
    assert_eq!(found(&["--transport", "pci"]), format!("{platform}/{bus}/virtio2\nmessages\n{sum}  -\n"));
    let without = ["--transport", "pci", "--cmdline", "pci=nomsi"];
    assert_eq!(found(&without), format!("{platform}/{bus}/virtio2\nlines\n{sum}  -\n"));
}

/// CPU_OFF, AFFINITY_INFO and CPU_ON.
pub fn vcpu_goes_offline_and_comes_back(boot: impl Fn(&[&str]) -> Command) {
    let script =
        "cd /sys/devices/system/cpu/cpu1; for i in 1 2 3; do echo 0 >online; nproc; echo 1 >online; nproc; done";
    let _alone = alone();
    assert_eq!(output_of(boot(&["--cpus", "2"]), script), "1\n2\n".repeat(3));
}

/// SYSTEM_RESET: a disk remembers that there was a first boot, memory does not.
pub fn reboot_restarts_the_machine(boot: impl Fn(&[&str]) -> Command) {
    let directory = tempfile::tempdir().unwrap();
    let disk = file_of_len(&directory.path().join("state.img"), 1 << 20);
    let path = directory.path().join("stats.json");
    let _alone = alone();
    let arguments = ["--cpus", "2", "--disk", disk.to_str().unwrap(), "--stats", path.to_str().unwrap()];
    let (mut child, mut stdin) = up(boot(&arguments));
    let first = "echo 0 >/proc/sys/kernel/printk; touch /tmp/first; printf x | dd of=/dev/vda conv=notrunc 2>/dev/null; sync; reboot -f\n";
    stdin.write_all(first.as_bytes()).unwrap();
    // What is typed before the restart goes to the first boot.
    stats(&mut child, &path, 1);
    stdin.write_all(b"head -c 1 /dev/vda; ls /tmp; nproc; echo second\n").unwrap();
    drop(stdin);
    let (status, output, errors) = parts(child.wait_with_output().unwrap());
    assert_eq!((status, output.as_str()), (0, "x2\nsecond\n"), "{errors}");
}

/// SIGUSR1 pauses all vCPUs, writes the statistics, and lets them go on, `count` times.
pub fn vcpus_pause_in_whatever_they_do(boot: impl Fn(&[&str]) -> Command, count: usize) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("stats.json");
    let _alone = alone();
    let (mut child, mut stdin) = up(boot(&["--cpus", "2", "--stats", path.to_str().unwrap()]));
    // The second vCPU leaves the guest all the time: it reads the clock's registers.
    let script = "(while true; do hwclock -r >/dev/null; done) & for i in $(seq 40); do sleep 0.05; done; echo done\n";
    stdin.write_all(script.as_bytes()).unwrap();
    for _ in 0..count {
        fs::remove_file(&path).ok();
        stats(&mut child, &path, 0);
    }
    drop(stdin);
    let (status, output, _) = parts(child.wait_with_output().unwrap());
    assert_eq!((status, output.as_str()), (0, "done\n"));
}

/// SIGTERM presses the guest's power key.
pub fn power_key_shuts_the_guest_down(boot: impl Fn(&[&str]) -> Command) {
    let _alone = alone();
    let (child, stdin) = up(boot(&["--cpus", "2"]));
    signal(&child, Signal::TERM);
    let (status, _, errors) = parts(child.wait_with_output().unwrap());
    drop(stdin);
    assert_eq!(status, 0, "{errors}");
}
