//! Bad input gets one line that names the path and the cause, and exit status 1 or 2.
#![expect(clippy::unwrap_used, reason = "a test may")]

use std::path::Path;

use support::{SYSTEM_OFF, file_of_len, psci, run, write_image};
use tempfile::TempDir;

mod support;

/// Runs `minivmm boot` with `arguments` and returns its exit status and the only line it printed.
fn boot(arguments: &[&str]) -> (i32, String) {
    let (status, stdout, stderr) = run(&[&["boot"], arguments].concat());
    assert_eq!(stdout, "", "nothing of ours on standard output");
    assert_eq!(stderr.lines().count(), 1, "one line: {stderr}");
    (status, stderr.trim_end().to_owned())
}

fn directory() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// A guest that powers off at once.
fn good_kernel(directory: &TempDir) -> String {
    text(&write_image(&directory.path().join("Image"), &psci(SYSTEM_OFF)))
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

fn in_directory(directory: &TempDir, name: &str) -> String {
    text(&directory.path().join(name))
}

#[test]
fn missing_kernel() {
    let (status, line) = boot(&["--kernel", "/nonexistent/Image"]);
    assert_eq!(status, 1);
    assert!(line.contains("/nonexistent/Image") && line.contains("No such file"), "{line}");
}

#[test]
fn empty_kernel() {
    let directory = directory();
    let kernel = text(&file_of_len(&directory.path().join("empty"), 0));
    let (status, line) = boot(&["--kernel", &kernel]);
    assert_eq!(status, 1);
    assert!(line.contains(&kernel) && line.contains("empty"), "{line}");
}

#[test]
fn truncated_kernel() {
    let directory = directory();
    let kernel = good_kernel(&directory);
    let whole = std::fs::read(&kernel).unwrap();
    std::fs::write(&kernel, &whole[..40]).unwrap();
    let (status, line) = boot(&["--kernel", &kernel]);
    assert_eq!(status, 1);
    assert!(line.contains(&kernel), "{line}");
}

#[test]
fn x86_kernel() {
    let directory = directory();
    let kernel = directory.path().join("bzImage");
    let mut image = vec![0_u8; 4096];
    image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    image[0x202..0x206].copy_from_slice(b"HdrS");
    std::fs::write(&kernel, image).unwrap();
    let (status, line) = boot(&["--kernel", &text(&kernel)]);
    assert_eq!(status, 1);
    assert!(line.contains(&text(&kernel)) && line.contains("x86"), "{line}");
}

#[test]
fn missing_initrd() {
    let directory = directory();
    let kernel = good_kernel(&directory);
    let (status, line) = boot(&["--kernel", &kernel, "--initrd", "/nonexistent/initrd"]);
    assert_eq!(status, 1);
    assert!(line.contains("/nonexistent/initrd") && line.contains("No such file"), "{line}");
}

#[test]
fn initrd_larger_than_memory() {
    let directory = directory();
    let kernel = good_kernel(&directory);
    let initrd = text(&file_of_len(&directory.path().join("initrd"), 80 << 20));
    let (status, line) = boot(&["--kernel", &kernel, "--initrd", &initrd, "--memory", "64M"]);
    assert_eq!(status, 1);
    assert!(line.contains("initrd") && line.contains("64 MiB"), "{line}");
}

#[test]
fn memory_of_zero() {
    let (status, line) = boot(&["--kernel", "Image", "--memory", "0"]);
    assert_eq!(status, 2);
    assert!(line.contains("too little"), "{line}");
}

#[test]
fn memory_too_small() {
    let (status, line) = boot(&["--kernel", "Image", "--memory", "1M"]);
    assert_eq!(status, 2);
    assert!(line.contains("1 MiB of memory are too little"), "{line}");
}

#[test]
fn absurd_memory() {
    let (status, line) = boot(&["--kernel", "Image", "--memory", "5000T"]);
    assert_eq!(status, 2);
    assert!(line.contains("too much"), "{line}");
}

#[test]
fn memory_that_is_no_size() {
    let (status, line) = boot(&["--kernel", "Image", "--memory", "lots"]);
    assert_eq!(status, 2);
    assert!(line.contains("--memory") && line.contains("`lots` is not a size"), "{line}");
}

#[test]
fn no_vcpu() {
    let (status, line) = boot(&["--kernel", "Image", "--cpus", "0"]);
    assert_eq!(status, 2);
    assert!(line.contains("0 vCPUs"), "{line}");
}

#[test]
fn missing_disk() {
    let (status, line) = boot(&["--kernel", "Image", "--disk", "/nonexistent/root.img"]);
    assert_eq!(status, 1);
    assert!(line.contains("/nonexistent/root.img") && line.contains("No such file"), "{line}");
}

#[test]
fn disk_that_is_not_whole_sectors() {
    let directory = directory();
    let disk = text(&file_of_len(&directory.path().join("odd.img"), 1000));
    let (status, line) = boot(&["--kernel", "Image", "--disk", &disk]);
    assert_eq!(status, 1);
    assert!(line.contains(&disk) && line.contains("512"), "{line}");
}

#[test]
fn disk_that_is_a_directory() {
    let directory = directory();
    let path = text(directory.path());
    let (status, line) = boot(&["--kernel", "Image", "--disk", &path]);
    assert_eq!(status, 1);
    assert!(line.contains(&path) && line.contains("directory"), "{line}");
}

/// A directory that is mounted read-only, in a name space of its own. Hosts that give users no such name space skip it.
#[test]
#[cfg(target_os = "linux")]
fn disk_on_a_read_only_medium() {
    let directory = directory();
    let (kernel, disk) = (good_kernel(&directory), text(&file_of_len(&directory.path().join("disk.img"), 4096)));
    let script = "mount --bind \"$0\" \"$0\" && mount -o remount,ro,bind \"$0\" || exit 77; exec \"$@\"";
    let inside = |disk: &str| {
        let mut command = std::process::Command::new("unshare");
        command.args(["--map-root-user", "--mount", "sh", "-c", script]).arg(directory.path());
        command.args([env!("CARGO_BIN_EXE_minivmm"), "boot", "--kernel", &kernel, "--disk", disk]);
        support::parts(command.stdin(std::process::Stdio::null()).output().unwrap())
    };
    let (status, _, line) = inside(&disk);
    if status == 77 || line.starts_with("unshare") {
        eprintln!("skipped: no mount name space for users on this host: {line}");
        return;
    }
    assert_eq!(status, 1);
    assert!(line.lines().count() == 1 && line.contains(&disk) && line.contains("Read-only file system"), "{line}");
    assert_eq!(inside(&format!("{disk},ro")), (0, String::new(), String::new()));
}

#[test]
fn disk_in_use() {
    let directory = directory();
    let path = file_of_len(&directory.path().join("root.img"), 4096);
    let file = std::fs::File::options().read(true).write(true).open(&path).unwrap();
    file.try_lock().unwrap();
    let (status, line) = boot(&["--kernel", "Image", "--disk", &text(&path)]);
    assert_eq!(status, 1);
    assert!(line.contains(&text(&path)) && line.contains("in use"), "{line}");
}

#[test]
fn same_disk_twice() {
    let directory = directory();
    let path = text(&file_of_len(&directory.path().join("root.img"), 4096));
    let (status, line) = boot(&["--kernel", "Image", "--disk", &path, "--disk", &path]);
    assert_eq!(status, 1);
    assert!(line.contains(&path) && line.contains("in use"), "{line}");
}

#[test]
fn disk_option_that_does_not_exist() {
    let (status, line) = boot(&["--kernel", "Image", "--disk", "root.img,rw"]);
    assert_eq!(status, 2);
    assert!(line.contains("root.img,rw"), "{line}");
}

#[test]
fn share_of_no_directory() {
    let directory = directory();
    let file = text(&file_of_len(&directory.path().join("file"), 10));
    let (status, line) = boot(&["--kernel", "Image", "--share", &format!("{file}:tag")]);
    assert_eq!(status, 1);
    assert!(line.contains(&file) && line.contains("not a directory"), "{line}");
    let (status, line) = boot(&["--kernel", "Image", "--share", "/nonexistent/source:tag"]);
    assert_eq!(status, 1);
    assert!(line.contains("/nonexistent/source") && line.contains("no such file"), "{line}");
}

#[test]
fn share_option_that_does_not_exist() {
    let (status, line) = boot(&["--kernel", "Image", "--share", "/tmp:tag,rw"]);
    assert_eq!(status, 2);
    assert!(line.contains("/tmp:tag,rw") && line.contains("DIR:TAG"), "{line}");
}

#[test]
fn share_without_a_tag_that_fits() {
    let long = format!("/tmp:{}", "x".repeat(37));
    let (status, line) = boot(&["--kernel", "Image", "--share", &long]);
    assert_eq!(status, 2);
    assert!(line.contains(&long) && line.contains("37 bytes long, more than 36"), "{line}");
}

#[test]
fn two_shares_of_one_tag() {
    let (status, line) = boot(&["--kernel", "Image", "--share", "/tmp:a", "--share", "/usr:a"]);
    assert_eq!((status, line.as_str()), (2, "minivmm: two shares have the tag `a`"));
}

#[test]
fn unknown_configuration_key() {
    let directory = directory();
    let path = in_directory(&directory, "machine.toml");
    std::fs::write(&path, "cpus = 1\nmemroy = \"1G\"\n").unwrap();
    let (status, line) = boot(&["--config", &path]);
    assert_eq!(status, 2);
    assert!(line.contains(&path) && line.contains("line 2") && line.contains("memroy"), "{line}");
}

#[test]
fn missing_configuration() {
    let (status, line) = boot(&["--config", "/nonexistent/machine.toml"]);
    assert_eq!(status, 1);
    assert!(line.contains("/nonexistent/machine.toml") && line.contains("No such file"), "{line}");
}

#[test]
fn hypervisor_that_this_host_lacks() {
    // What `cargo test` builds has a simulator of hvf everywhere.
    if cfg!(all(target_os = "linux", target_arch = "aarch64")) {
        return;
    }
    let lacking = "kvm";
    let (status, line) = boot(&["--kernel", "Image", "--hypervisor", lacking]);
    assert_eq!(status, 1);
    assert!(line.contains(lacking) && line.contains("need"), "{line}");
}

#[test]
fn vsock_route_that_is_none() {
    let (status, line) = boot(&["--kernel", "Image", "--vsock", "ssh=/run/s"]);
    assert_eq!(status, 2);
    assert!(line.contains("ssh=/run/s") && line.contains("PORT=PATH"), "{line}");
}

#[test]
fn vsock_cid_of_the_host() {
    let (status, line) = boot(&["--kernel", "Image", "--vsock-cid", "2"]);
    assert_eq!((status, line.as_str()), (2, "minivmm: cannot have vsock CID 2: a guest has 3 to 4294967294"));
}

#[test]
fn vsock_port_with_two_sockets() {
    let (status, line) = boot(&["--kernel", "Image", "--vsock", "7=a", "--vsock", "7=b"]);
    assert_eq!((status, line.as_str()), (2, "minivmm: vsock port 7 cannot lead to two sockets"));
}

#[test]
fn vsock_socket_that_cannot_be_made() {
    let directory = directory();
    let kernel = good_kernel(&directory);
    let (status, line) = boot(&["--kernel", &kernel, "--vsock-listen", "22=/nonexistent/s"]);
    assert_eq!(status, 1);
    assert!(line.contains("/nonexistent/s") && line.contains("No such file"), "{line}");
    let long = format!("22=/tmp/{}", "x".repeat(200));
    let (status, line) = boot(&["--kernel", &kernel, "--vsock-listen", &long]);
    assert!(status == 1 && line.contains("xxx"), "{line}");
}

#[test]
fn vsock_socket_in_the_place_of_something_else() {
    let directory = directory();
    let kernel = good_kernel(&directory);
    let (status, line) = boot(&["--kernel", &kernel, "--vsock-socket", &kernel]);
    assert_eq!(status, 1);
    assert!(line.contains(&kernel) && line.contains("no socket"), "{line}");
    let path = directory.path().join("live");
    let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let (status, line) = boot(&["--kernel", &kernel, "--vsock-listen", &format!("22={}", path.display())]);
    assert_eq!((status, line), (1, format!("minivmm: socket {} is in use", path.display())));
}

#[test]
fn unknown_option() {
    let (status, line) = boot(&["--floppy", "a.img"]);
    assert_eq!(status, 2);
    assert!(line.contains("--floppy"), "{line}");
}

#[test]
fn console_file_that_cannot_be_made() {
    let (status, line) = boot(&["--kernel", "Image", "--console", "file=/nonexistent/log"]);
    assert_eq!(status, 1);
    assert!(line.contains("/nonexistent/log") && line.contains("No such file"), "{line}");
}

#[test]
fn statistics_that_cannot_be_written() {
    let directory = directory();
    let kernel = good_kernel(&directory);
    let (status, line) = boot(&["--kernel", &kernel, "--stats", "/nonexistent/stats.json"]);
    assert_eq!(status, 1);
    assert!(line.contains("/nonexistent/stats.json") && line.contains("No such file"), "{line}");
}

#[test]
fn device_tree_that_cannot_be_written() {
    let directory = directory();
    let kernel = good_kernel(&directory);
    let (status, line) = boot(&["--kernel", &kernel, "--dump-dtb", "/nonexistent/m.dtb"]);
    assert_eq!(status, 1);
    assert!(line.contains("/nonexistent/m.dtb") && line.contains("No such file"), "{line}");
}
