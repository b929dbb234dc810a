//! OpenSSH through the built-in network: a client of the host with a server in the guest, by a published port, and a client in the guest with a
//! server of the host, by its loopback. Ten megabytes go there and back, encrypted and signed by programs that would notice.
//!
//! The guest's programs are Debian's packages. The server of the host is dropbear, which wants its keys in a home: that is in a mount
//! namespace of the test's own, which takes root; without it, the test says that it is skipped.
#![expect(clippy::unwrap_used, reason = "a test may")]

use std::fs;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use support::debian;
use support::guest::{Guest, md5sum, random_block};
use support::network::{Network, Program};

mod support;

/// OpenSSH, and the libraries that it is linked with.
const PACKAGES: &str = "openssh-server openssh-client libaudit1 libc6 libcap-ng0 libcom-err2 libcrypt1 libgcc-s1 libgssapi-krb5-2 \
    libk5crypto3 libkeyutils1 libkrb5-3 libkrb5support0 libpam0g libpcre2-8-0 libselinux1 libsqlite3-0 libssl3t64 libwrap0 libwtmpdb0 \
    libzstd1 zlib1g";
/// Nobody is asked, and hosts are not remembered.
const OPTIONS: &str =
    "-o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR -F none";
/// Says on standard error what came, and sends it back.
const JOB: &str = "tee ~/copy | md5sum >&2; cat ~/copy";

/// A key of a user, and its public half beside it; `None`, with a line, where there is no program for it.
fn make_key(directory: &Path) -> Option<PathBuf> {
    let key = directory.join("key");
    let mut command = Command::new("ssh-keygen");
    command.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key);
    finished(command, "openssh-client")?;
    Some(key)
}

fn finished(command: Command, package: &str) -> Option<()> {
    assert!(Program::start(command, package)?.0.wait().unwrap().success());
    Some(())
}

/// A guest with OpenSSH and a server on port 22 that lets `key` in.
fn boot(disk: &Path, key: &Path) -> Guest {
    let disk = format!("{},ro", disk.display());
    let mut guest = Guest::boot_with_disks(&[&disk], &["--net", "user,host-loopback", "--publish", "0:22"]);
    guest.until("ip route | grep -q default");
    guest.run("(cd /; cpio -idu </dev/vda 2>/dev/null); mkdir -p /root/.ssh /run/sshd; chmod 700 /root /root/.ssh");
    guest.run("echo 'sshd:x:100:65534::/run/sshd:/bin/false' >>/etc/passwd");
    guest.run("ssh-keygen -q -t ed25519 -N '' -f /root/host");
    let public = fs::read_to_string(key.with_extension("pub")).unwrap();
    guest.run(&format!("printf '%s' '{public}' >/root/.ssh/authorized_keys"));
    guest.run("/usr/sbin/sshd -f /dev/null -p 22 -h /root/host -o UsePAM=no -E /tmp/sshd.log; echo $?");
    guest.expect("0");
    guest
}

/// dropbear on a port of the host's loopback, which lets `key` in.
fn dropbear(network: &Network, directory: &Path, key: &Path) -> Option<(Program, u16)> {
    network.set_up("mount -t tmpfs -o mode=700 tmpfs ~root; mkdir -m 700 ~root/.ssh");
    network.set_up(&format!("cp {}.pub ~root/.ssh/authorized_keys", key.display()));
    let host_key = directory.join("host");
    let mut command = Command::new("dropbearkey");
    command.args(["-t", "ed25519", "-f"]).arg(&host_key);
    finished(command, "dropbear-bin")?;
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut command = Command::new("dropbear");
    command.args(["-F", "-E", "-p", &format!("127.0.0.1:{port}"), "-P"]).arg(directory.join("pid"));
    command.arg("-r").arg(host_key);
    let program = Program::start(command, "dropbear-bin")?;
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        std::thread::yield_now();
    }
    Some((program, port))
}

#[test]
fn ten_megabytes_go_there_and_back_whoever_connects() {
    // From a mirror, which the network of the test's own has no way to.
    let packages: Vec<&str> = PACKAGES.split_whitespace().collect();
    let Some(disk) = debian::guest_disk("ssh", &packages) else { return };
    Network::own(|network| {
        let directory = tempfile::tempdir().unwrap();
        let Some(key) = make_key(directory.path()) else { return };
        let mut guest = boot(&disk, &key);
        let data: Vec<u8> = random_block().into_iter().cycle().take(10 << 20).collect();
        let expected = md5sum(|sink| sink.write_all(&data).unwrap());

        let mut ssh = Command::new("ssh");
        ssh.args(OPTIONS.split_whitespace()).args(["-p", &guest.published().port().to_string(), "-i"]).arg(&key);
        ssh.args(["root@127.0.0.1", JOB]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = ssh.spawn().unwrap();
        child.stdin.take().unwrap().write_all(&data).unwrap();
        let output = child.wait_with_output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(errors.starts_with(&expected), "{errors} {:?}", guest.output("cat /tmp/sshd.log"));
        assert!(output.stdout == data, "{} bytes came back", output.stdout.len());

        let Some((_dropbear, port)) = dropbear(network, directory.path(), &key) else { return };
        let secret = fs::read_to_string(&key).unwrap();
        guest.run(&format!("printf '%s' '{secret}' >/root/key; chmod 600 /root/key"));
        // What comes is said by the other end, what comes back here.
        guest.run(&format!(
            "ssh {OPTIONS} -p {port} -i /root/key root@192.168.74.1 '{JOB}' </root/copy 2>&1 >/tmp/back"
        ));
        guest.expect(&format!("{expected}  -"));
        guest.run("md5sum </tmp/back");
        guest.expect(&format!("{expected}  -"));
        guest.run("killall sshd");
        guest.end();
    });
}
