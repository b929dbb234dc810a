//! vsock between a stock Debian guest on the software CPU and Unix sockets of the host, both ways.
//!
//! The guest runs `tests/guests/vsock/vsock.c`, built here for arm64 and handed over as a disk. `MINIVMM_VSOCK_BYTES` sets the size of the
//! transfers (16 MiB): `MINIVMM_VSOCK_BYTES=1073741824 cargo test --release --test vsock checksum` is the long run. The same gigabyte goes
//! through the device without a guest in `host::vsock`.
#![expect(clippy::unwrap_used, reason = "a test may")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use support::guest::{DATA, Guest, md5sum, random_block};
use support::network::echo_unix;
use support::session;

mod support;

/// What this file's test binary is called as to be [`reader_of_a_test`].
const READER_SOCKET: &str = "MINIVMM_TEST_READER_SOCKET";

/// A guest with the program as `/tmp/vsock`; `None` where there is no compiler.
fn boot(options: &[&str]) -> Option<Guest> {
    let mut guest = Guest::boot("vsock", options)?;
    guest.until("true");
    Some(guest)
}

/// Ends the guest; what its device counted.
fn end(guest: Guest) -> serde_json::Value {
    guest.end_silently().device("virtio vsock")
}

/// How often the machine was started, as its statistics say.
fn boots(guest: &Guest) -> u64 {
    kill_process(Pid::from_child(&guest.child), Signal::USR1).unwrap();
    session::report(&guest.path("stats.json")).and_then(|report| report["boots"].as_u64()).unwrap_or(0)
}

fn bytes() -> u64 {
    std::env::var("MINIVMM_VSOCK_BYTES").map_or(16 << 20, |bytes| bytes.parse().unwrap())
}

/// Reads to the end on a thread.
fn reader(mut stream: UnixStream) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        all
    })
}

#[test]
fn guest_connects_to_the_host_and_hears_its_echo() {
    let Some(mut guest) = boot(&["--vsock", "1024=@/echo"]) else { return };
    echo_unix(UnixListener::bind(guest.path("echo")).unwrap());
    guest.run("echo there and back | /tmp/vsock cat 1024");
    guest.expect("there and back");
    let counters = end(guest);
    assert_eq!(counters["connections_from_guest"], 1);
    assert_eq!((counters["bytes_in"].as_u64(), counters["bytes_out"].as_u64()), (Some(15), Some(15)));
    assert_eq!((counters["connection_resets"].as_u64(), counters["open"].as_u64()), (Some(0), Some(0)));
}

#[test]
fn host_connects_to_the_guest_by_a_port_and_by_name() {
    let options = ["--vsock-listen", "5000=@/five", "--vsock-socket", "@/any", "--vsock-cid", "42"];
    let Some(mut guest) = boot(&options) else { return };
    guest.run("/tmp/vsock echo 5000 &");
    guest.expect("listening");
    let mut direct = UnixStream::connect(guest.path("five")).unwrap();
    direct.write_all(b"directly\n").unwrap();
    let mut line = String::new();
    BufReader::new(&direct).read_line(&mut line).unwrap();
    assert_eq!(line, "directly\n");

    let mut named = UnixStream::connect(guest.path("any")).unwrap();
    named.write_all(b"CONNECT 5000\nby name\n").unwrap();
    let mut lines = BufReader::new(named.try_clone().unwrap()).lines();
    let answer = lines.next().unwrap().unwrap();
    assert!(answer.strip_prefix("OK ").unwrap().parse::<u32>().unwrap() >= 1 << 30, "{answer}");
    assert_eq!(lines.next().unwrap().unwrap(), "by name");

    // Nobody listens there: the guest refuses, and the client is closed.
    let mut refused = UnixStream::connect(guest.path("any")).unwrap();
    refused.write_all(b"CONNECT 5001\n").unwrap();
    assert_eq!(refused.read(&mut [0; 8]).unwrap(), 0);
    drop((direct, named, lines));
    guest.run("kill %1; wait");
    let socket = guest.path("any");
    assert!(socket.exists());
    let counters = end(guest);
    assert_eq!((counters["connections_from_host"].as_u64(), counters["refused"].as_u64()), (Some(2), Some(1)));
    assert!(!socket.exists(), "sockets go with the machine");
}

#[test]
fn guest_reaches_the_socket_that_is_named_after_its_port() {
    let Some(mut guest) = boot(&["--vsock-socket", "@/any"]) else { return };
    echo_unix(UnixListener::bind(guest.path("any_52")).unwrap());
    guest.run("echo fifty-two | /tmp/vsock cat 52");
    guest.expect("fifty-two");
    end(guest);
}

#[test]
fn refusals_reach_the_guest() {
    let Some(mut guest) = boot(&["--vsock", "1=@/nobody", "--vsock", "2=@/dead"]) else { return };
    drop(UnixListener::bind(guest.path("dead")).unwrap());
    for port in [1, 2, 3] {
        guest.run(&format!("/tmp/vsock try {port}"));
        guest.expect("connect: Connection reset by peer");
    }
    let nobody = guest.path("nobody");
    let report = guest.end();
    assert_eq!(report.device("virtio vsock")["refused"], 3);
    let line = format!("vsock port 1: cannot connect to {}: No such file or directory", nobody.display());
    assert!(report.errors.contains(&line), "{}", report.errors);
}

#[test]
fn checksum_of_what_the_guest_sends_is_equal() {
    let Some(mut guest) = boot(&["--vsock", "1024=@/sink"]) else { return };
    let listener = UnixListener::bind(guest.path("sink")).unwrap();
    let (blocks, size) = (bytes() >> 20, bytes() >> 20 << 20);
    guest.run(&format!("{DATA}; data {blocks} | md5sum; data {blocks} | /tmp/vsock cat 1024"));
    let expected = guest.line().split_whitespace().next().unwrap().to_owned();
    let (mut stream, _) = listener.accept().unwrap();
    let mut len = 0;
    let sum = md5sum(|sink| len = std::io::copy(&mut stream, sink).unwrap());
    assert_eq!((len, sum), (size, expected));
    drop(stream);
    assert_eq!(end(guest)["bytes_out"], size);
}

#[test]
fn checksum_of_what_the_host_sends_is_equal() {
    let Some(mut guest) = boot(&["--vsock-listen", "5000=@/five"]) else { return };
    let block = random_block();
    let send = |to: &mut dyn Write| (0..bytes() >> 20).for_each(|_| to.write_all(&block).unwrap());
    let expected = md5sum(send);
    guest.run(
        "mkfifo /tmp/data; (read -r listening; echo $listening; md5sum) </tmp/data & /tmp/vsock take 5000 >/tmp/data; wait",
    );
    guest.expect("listening");
    let mut stream = UnixStream::connect(guest.path("five")).unwrap();
    send(&mut stream);
    drop(stream);
    assert_eq!(guest.line(), format!("{expected}  -"));
    assert_eq!(end(guest)["bytes_in"], bytes() >> 20 << 20);
}

#[test]
fn either_direction_ends_by_itself() {
    let Some(mut guest) = boot(&["--vsock", "1024=@/half", "--vsock-listen", "5000=@/five"]) else { return };
    let listener = UnixListener::bind(guest.path("half")).unwrap();
    // The guest ends first: the host answers to all that it read.
    guest.run("seq 1000 | /tmp/vsock cat 1024");
    let (mut stream, _) = listener.accept().unwrap();
    let mut all = String::new();
    stream.read_to_string(&mut all).unwrap();
    assert_eq!(all.lines().count(), 1000);
    writeln!(stream, "{} bytes", all.len()).unwrap();
    drop(stream);
    guest.expect("3893 bytes");
    // The host ends first: the guest still sends.
    guest.run("(sleep 1; echo late) | /tmp/vsock cat 1024");
    let (mut stream, _) = listener.accept().unwrap();
    stream.write_all(b"early\n").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    guest.expect("early");
    all.clear();
    stream.read_to_string(&mut all).unwrap();
    assert_eq!(all, "late\n");
    drop(stream);
    assert_eq!(end(guest)["connection_resets"], 0);
}

#[test]
fn a_thousand_connections_at_a_time_each_way() {
    let Some(mut guest) = boot(&["--vsock", "1024=@/echo", "--vsock-listen", "5000=@/five"]) else { return };
    echo_unix(UnixListener::bind(guest.path("echo")).unwrap());
    guest.run("/tmp/vsock many 1024 1000");
    guest.expect("1000 answers");
    guest.run("/tmp/vsock echo 5000 &");
    guest.expect("listening");
    let connect = |_| UnixStream::connect(guest.path("five")).unwrap();
    let mut streams: Vec<UnixStream> = (0..1000).map(connect).collect();
    for (stream, number) in streams.iter_mut().zip(0..) {
        writeln!(stream, "number {number}").unwrap();
    }
    for (stream, number) in streams.iter().zip(0..) {
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).unwrap();
        assert_eq!(line, format!("number {number}\n"));
    }
    drop(streams);
    guest.run("kill %1; wait");
    let counters = end(guest);
    assert_eq!(
        (counters["connections_from_guest"].as_u64(), counters["connections_from_host"].as_u64()),
        (Some(1000), Some(1000))
    );
    assert_eq!((counters["refused"].as_u64(), counters["connection_resets"].as_u64()), (Some(0), Some(0)));
}

/// Not a test of its own: other tests run it as a program that can be stopped and killed. Prints how much it read in the end.
#[test]
#[ignore = "a child process of other tests"]
fn reader_of_a_test() {
    let Some(path) = std::env::var_os(READER_SOCKET) else { return };
    let listener = UnixListener::bind(path).unwrap();
    println!("READY");
    let (mut stream, _) = listener.accept().unwrap();
    println!("ACCEPTED");
    let len = std::io::copy(&mut stream, &mut std::io::sink()).unwrap();
    println!("READ {len}");
}

/// Runs [`reader_of_a_test`] on a socket at `path` and waits until it listens.
fn start_reader(path: &Path) -> (Child, BufReader<ChildStdout>) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "reader_of_a_test", "--ignored", "--nocapture"]).env(READER_SOCKET, path);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    wait_for(&mut lines, "READY");
    (child, lines)
}

/// Skips what the test harness prints, up to the line with `word`.
fn wait_for(lines: &mut impl BufRead, word: &str) -> String {
    lines.lines().map(Result::unwrap).find(|line| line.contains(word)).unwrap()
}

#[test]
fn stopped_reader_stops_the_guest_and_nothing_is_lost() {
    let Some(mut guest) = boot(&["--vsock", "1024=@/slow", "--vsock", "1025=@/echo"]) else { return };
    echo_unix(UnixListener::bind(guest.path("echo")).unwrap());
    let (mut child, mut lines) = start_reader(&guest.path("slow"));
    let pid = Pid::from_child(&child);
    kill_process(pid, Signal::STOP).unwrap();
    guest.run("/tmp/vsock fill 1024 8388608 &");
    let line = guest.line();
    let taken: u64 = line.strip_prefix("full after ").unwrap_or_else(|| panic!("{line}")).parse().unwrap();
    // The sender's own buffer is not the guest's, so what it was rid of is what host and device hold: at most a socket's and ours.
    assert!(taken < 2 << 20, "{taken} bytes went nowhere");
    // Others are not in its way.
    guest.run("echo past it | /tmp/vsock cat 1025");
    guest.expect("past it");
    kill_process(pid, Signal::CONT).unwrap();
    assert!(wait_for(&mut lines, "READ").contains("READ 8388608"));
    guest.expect("all taken");
    child.wait().unwrap();
    guest.run("wait");
    end(guest);
}

#[test]
fn killed_reader_ends_the_guests_connection() {
    let Some(mut guest) = boot(&["--vsock", "1024=@/dies"]) else { return };
    let (mut child, mut lines) = start_reader(&guest.path("dies"));
    guest.run("(echo hello; sleep 3; echo into nothing; sleep 1; echo more) | /tmp/vsock cat 1024; echo ended");
    wait_for(&mut lines, "ACCEPTED");
    child.kill().unwrap();
    child.wait().unwrap();
    guest.expect("write: Broken pipe");
    guest.expect("ended");
    assert_eq!(end(guest)["open"], 0);
}

#[test]
fn guest_that_dies_in_the_middle_ends_the_hosts_connection() {
    let Some(mut guest) = boot(&["--vsock", "1024=@/sink"]) else { return };
    let listener = UnixListener::bind(guest.path("sink")).unwrap();
    guest.run("/tmp/vsock fill 1024 1000000000000 >/dev/null & sleep 1; kill -9 $!; wait; echo killed");
    let all = reader(listener.accept().unwrap().0);
    guest.expect("killed");
    assert!(!all.join().unwrap().is_empty());
    guest.run("(sleep 1000 | /tmp/vsock cat 1024) &");
    let all = reader(listener.accept().unwrap().0);
    // The whole machine goes.
    guest.child.kill().unwrap();
    guest.child.wait().unwrap();
    assert_eq!(all.join().unwrap(), b"");
}

#[test]
fn connections_end_with_a_restart_and_new_ones_begin() {
    let Some(mut guest) = boot(&["--vsock", "1024=@/echo"]) else { return };
    let listener = UnixListener::bind(guest.path("echo")).unwrap();
    guest.run("echo 0 >/proc/sys/kernel/printk; (sleep 1000 | /tmp/vsock cat 1024) &");
    let (stream, _) = listener.accept().unwrap();
    guest.run("reboot -f");
    assert_eq!(reader(stream).join().unwrap(), b"");
    echo_unix(listener);
    while boots(&guest) < 2 {
        assert!(guest.child.try_wait().unwrap().is_none(), "the machine stopped");
        std::thread::sleep(Duration::from_millis(100));
    }
    // The first boot's console is gone by now: this goes to the second.
    guest.run("cat /dev/vda >/tmp/vsock; chmod +x /tmp/vsock; echo again | /tmp/vsock cat 1024");
    guest.expect("again");
    end(guest);
}
