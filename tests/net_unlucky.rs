//! The built-in network when something goes wrong: the host's network goes and comes back, a peer stands still, a driver changes its mind.
#![expect(clippy::unwrap_used, reason = "a test may")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};

use rustix::process::Signal;
use support::guest::{DATA, Guest};
use support::network::{BEYOND, Network, Program, echo};
use support::session;

mod support;

/// A guest with an address; `None` where there is no compiler for its program.
fn boot(options: &[&str]) -> Option<Guest> {
    let mut guest = Guest::boot("net", options)?;
    guest.run(DATA);
    guest.until("ip route | grep -q default");
    Some(guest)
}

fn listener() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

fn line(stream: &TcpStream) -> String {
    let mut line = String::new();
    BufReader::with_capacity(1, stream).read_line(&mut line).unwrap();
    line
}

#[test]
fn network_of_the_host_that_goes_and_comes_back_takes_no_connection_with_it() {
    Network::own(|network| {
        let (listener, dnsmasq) = network.beyond(|| {
            let listener = TcpListener::bind((BEYOND, 0)).unwrap();
            (listener, network.dnsmasq(BEYOND, &[("made-up.example", "203.0.113.7")]))
        });
        let Some(_dnsmasq) = dnsmasq else { return };
        network.set_resolvers(&format!("nameserver {BEYOND}\n"));
        let Some(mut guest) = boot(&[]) else { return };
        let port = listener.local_addr().unwrap().port();
        let connect = format!("/tmp/net cat {BEYOND} {port}");
        let ask = "nslookup -type=a made-up.example | sed -n 's/^Address: //p; s/.*\\(SERVFAIL\\|REFUSED\\).*/\\1/p' | sort -u";
        guest.run(&format!("mkfifo /tmp/in; {connect} </tmp/in & exec 3>/tmp/in; echo before >&3"));
        let (mut stream, _) = listener.accept().unwrap();
        assert_eq!(line(&stream), "before\n");
        assert_eq!(guest.output(ask), ["203.0.113.7"]);

        network.set_up("ip link set beyond down");
        guest.run(&format!("echo meanwhile >&3; {connect}"));
        guest.expect("connect: Network is unreachable");
        assert_eq!(guest.output(ask), ["SERVFAIL"]);

        network.set_up("ip link set beyond up");
        assert_eq!(line(&stream), "meanwhile\n");
        stream.write_all(b"after\n").unwrap();
        guest.expect("after");
        assert_eq!(guest.output(ask), ["203.0.113.7"]);
        guest.run(&format!("echo anew | {connect}"));
        let (anew, _) = listener.accept().unwrap();
        assert_eq!(line(&anew), "anew\n");
        drop((anew, stream));
        guest.run("exec 3>&-; wait");
        let errors = guest.end().errors;
        assert!(errors.contains(&format!("no DNS resolver of this host answers the guest ({BEYOND})")), "{errors}");
    });
}

#[test]
fn reader_that_is_stopped_and_goes_on_is_only_slow_and_holds_up_nobody() {
    let Some(mut guest) = boot(&["--net", "user,host-loopback"]) else { return };
    let (sink, sink_port) = listener();
    let (other, other_port) = listener();
    echo(other);
    let expected = guest.word("data 64 | md5sum");
    guest.run(&format!("(data 64 | /tmp/net cat 192.168.74.1 {sink_port}; echo sent) &"));
    let mut command = Command::new("md5sum");
    command.stdin(OwnedFd::from(sink.accept().unwrap().0)).stdout(Stdio::piped());
    let mut reader = Program(command.spawn().unwrap());
    // Its standard input is the only one there is: otherwise the guest would wait for an end.
    drop(command);
    reader.signal(Signal::STOP);
    // More than buffers hold, so the first stands still when this is through.
    let sums = guest.output(&format!("data 32 | /tmp/net cat 192.168.74.1 {other_port} | md5sum; data 32 | md5sum"));
    assert_eq!(sums[0], sums[1]);
    reader.signal(Signal::CONT);
    guest.expect("sent");
    let mut sum = String::new();
    reader.0.stdout.take().unwrap().read_to_string(&mut sum).unwrap();
    assert_eq!(sum, format!("{expected}  -\n"));
    guest.run("wait");
    guest.end_silently();
}

#[test]
fn driver_that_gives_up_its_offloads_keeps_its_connections() {
    let Some(mut guest) = boot(&["--net", "user,host-loopback"]) else { return };
    let (listener, port) = listener();
    echo(listener);
    let stats = guest.path("stats.json");
    let report = session::stats(&mut guest.child, &stats, 0);
    let before = report["devices"]["virtio net"]["commands"].as_u64().unwrap();
    let expected = guest.word("data 48 | md5sum");
    guest.run("off() { /tmp/net offload off >&2; }; on() { /tmp/net offload on >&2; }");
    assert_eq!(guest.output("off && on && echo yes"), ["yes"], "the kernel lets its driver be told");
    // Back and forth, while data goes both ways.
    guest.run(&format!(
        "(data 12; off; data 12; on; data 12; off; data 12) | /tmp/net cat 192.168.74.1 {port} 2>/tmp/error | md5sum; cat /tmp/error; echo done"
    ));
    let said: Vec<String> = std::iter::from_fn(|| Some(guest.line()).filter(|line| line != "done")).collect();
    assert_eq!(said, [format!("{expected}  -")]);
    let commands = guest.end_silently().device("virtio net")["commands"].as_u64().unwrap();
    assert!(commands >= before + 5, "the driver has sent {} commands", commands - before);
}
