//! The built-in network, between a stock Debian guest on the software CPU and programs of the host.
//!
//! Each test has a network of its own where it can: a namespace with addresses that are nobody's (RFC 5737, RFC 3849) on its loopback, and a
//! `/etc/resolv.conf` that names a dnsmasq with made-up records. That takes root; without it, those tests say that they are skipped.
//! `MINIVMM_NET_BYTES` sets the size of the transfers (16 MiB): `MINIVMM_NET_BYTES=1073741824 cargo test --release --test net_user checksum` is
//! the long run. What goes wrong with a network is in `net_unlucky`.
#![expect(clippy::unwrap_used, reason = "a test may")]

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::thread::JoinHandle;

use support::guest::{DATA, Guest, md5sum, random_block};
use support::network::{HOST_V4, HOST_V6, Network, echo};
use support::run;

mod support;

/// A guest with an address, and the program as `/tmp/net`; `None` where there is no compiler.
fn boot(options: &[&str]) -> Option<Guest> {
    let mut guest = Guest::boot("net", options)?;
    guest.until("ip route | grep -q default");
    Some(guest)
}

fn bytes() -> u64 {
    std::env::var("MINIVMM_NET_BYTES").map_or(16 << 20, |bytes| bytes.parse().unwrap())
}

fn echo_datagrams(socket: UdpSocket) {
    std::thread::spawn(move || {
        let mut buffer = vec![0; 65536];
        loop {
            let (len, from) = socket.recv_from(&mut buffer).unwrap();
            socket.send_to(&buffer[..len], from).unwrap();
        }
    });
}

#[test]
fn guest_has_addresses_names_and_a_gateway_that_answers() {
    Network::own(|network| {
        let names = [("made-up.example", "203.0.113.7,2001:db8::7"), ("short.sub.example", "203.0.113.8")];
        let Some(_dnsmasq) = network.dnsmasq("127.0.0.53", &names) else { return };
        network.set_resolvers("nameserver 127.0.0.53\nsearch sub.example\n");
        let Some(mut guest) = boot(&["--net", "user,ipv6=on"]) else { return };
        let addresses = guest.output("ip -4 addr show dev eth0; ip route").join("\n");
        assert!(addresses.contains("inet 192.168.74.15/24") && addresses.contains("default via 192.168.74.1"));
        let ping = guest.output("ping -c 1 192.168.74.1").join("\n");
        assert!(ping.contains("1 packets received"), "{ping}");
        let of = |guest: &mut Guest, name: &str| guest.output(&format!("nslookup {name} | sed -n 's/^Address: //p'"));
        assert_eq!(of(&mut guest, "made-up.example"), ["203.0.113.7", "2001:db8::7"]);
        assert_eq!(of(&mut guest, "host.minivmm.internal"), ["192.168.74.1", "fd6d:696e:6976:6d6d::1"]);
        let nobody = guest.output("nslookup nobody.example").join("\n");
        assert!(nobody.contains("NXDOMAIN") || nobody.contains("REFUSED"), "{nobody}");
        let short = guest.output("ping -c 1 -w 1 short | head -1").join("\n");
        assert!(short.contains("203.0.113.8"), "by the search domain: {short}");
        // Another resolver, while the guest runs.
        let Some(_other) = network.dnsmasq("127.0.0.54", &[("made-up.example", "203.0.113.9")]) else { return };
        network.set_resolvers("nameserver 127.0.0.54\n");
        assert_eq!(of(&mut guest, "made-up.example"), ["203.0.113.9"]);
        guest.end();
    });
}

#[test]
fn guest_speaks_with_hosts_by_every_protocol() {
    Network::own(|_| {
        let Some(mut guest) = boot(&["--net", "user,ipv6=on"]) else { return };
        for host in [HOST_V4, HOST_V6] {
            let listener = TcpListener::bind((host, 0)).unwrap();
            let port = listener.local_addr().unwrap().port();
            echo(listener);
            let wait = "until ip -6 addr show dev eth0 | grep 'scope global' | grep -qv tentative; do sleep 0.1; done";
            guest.run(&format!("{wait}; echo there and back | /tmp/net cat {host} {port}"));
            guest.expect("there and back");
            let socket = UdpSocket::bind((host, 0)).unwrap();
            let port = socket.local_addr().unwrap().port();
            echo_datagrams(socket);
            for len in [1, 1400, 1473, 9000, 65000] {
                guest.run(&format!("/tmp/net udp {host} {port} {len}"));
                guest.expect(&format!("{len} bytes, the same"));
            }
            let free = TcpListener::bind((host, 0)).unwrap().local_addr().unwrap().port();
            guest.run(&format!("/tmp/net cat {host} {free}; /tmp/net udp {host} {free} 10"));
            guest.expect("connect: Connection refused");
            guest.expect("recv: Connection refused");
        }
        // Nobody has a way there.
        guest.run("/tmp/net cat 198.51.100.1 80");
        guest.expect("connect: Network is unreachable");
        guest.end();
    });
}

#[test]
fn guest_without_ipv6_has_none_and_works() {
    Network::own(|_| {
        let Some(mut guest) = boot(&["--net", "user,ipv6=off"]) else { return };
        let listener = TcpListener::bind((HOST_V4, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        echo(listener);
        guest.run(&format!("echo four | /tmp/net cat {HOST_V4} {port}; ip -6 addr show dev eth0 | grep -c global"));
        guest.expect("four");
        guest.expect("0");
        guest.end_silently();
    });
}

#[test]
fn loopback_of_the_host_is_closed_unless_opened() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    listener.set_nonblocking(true).unwrap();
    let Some(mut guest) = boot(&[]) else { return };
    guest.run(&format!("/tmp/net cat 192.168.74.1 {port}"));
    guest.expect("connect: Connection refused");
    // A guest's kernel sends none of these to a router, unless it is told to.
    guest.run("ip addr del 127.0.0.1/8 dev lo; ip route del local 127.0.0.0/8 table local 2>/dev/null");
    guest.run(&format!(
        "ip route add 127.0.0.0/8 via 192.168.74.1; /tmp/net cat 127.0.0.1 {port} >/dev/null && echo through"
    ));
    guest.run("echo over");
    guest.expect("over");
    assert!(listener.accept().is_err(), "the guest came through");
    let errors = guest.end().errors;
    let refusal = format!("the guest wants TCP port {port} of this host: `--net user,host-loopback` would allow it");
    assert!(errors.contains(&refusal), "{errors}");

    listener.set_nonblocking(false).unwrap();
    echo(listener);
    let Some(mut guest) = boot(&["--net", "user,host-loopback"]) else { return };
    guest.run(&format!(
        "echo hello | /tmp/net cat $(nslookup host.minivmm.internal | sed -n 's/^Address: //p' | head -1) {port}"
    ));
    guest.expect("hello");
    guest.end_silently();
}

#[test]
fn checksum_of_what_the_guest_sends_is_equal() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let Some(mut guest) = boot(&["--net", "user,host-loopback"]) else { return };
    let blocks = bytes() >> 20;
    guest.run(&format!("{DATA}; data {blocks} | md5sum; data {blocks} | /tmp/net cat 192.168.74.1 {port}"));
    let expected = guest.line().split_whitespace().next().unwrap().to_owned();
    let (mut stream, _) = listener.accept().unwrap();
    let mut len = 0;
    let sum = md5sum(|sink| len = std::io::copy(&mut stream, sink).unwrap());
    assert_eq!((len, sum), (blocks << 20, expected));
    drop(stream);
    guest.end_silently();
}

#[test]
fn checksum_of_what_the_host_sends_is_equal() {
    let Some(mut guest) = boot(&["--publish", "0:5000"]) else { return };
    let address = guest.published();
    let block = random_block();
    let send = |to: &mut dyn Write| (0..bytes() >> 20).for_each(|_| to.write_all(&block).unwrap());
    let expected = md5sum(send);
    // Its first line says that it listens.
    guest.run(
        "mkfifo /tmp/data; (read -r listening; echo $listening; md5sum) </tmp/data & /tmp/net take 5000 >/tmp/data; wait",
    );
    guest.expect("listening");
    let mut stream = TcpStream::connect(address).unwrap();
    send(&mut stream);
    drop(stream);
    assert_eq!(guest.line(), format!("{expected}  -"));
    guest.end_silently();
}

#[test]
fn five_hundred_requests_at_a_time_are_all_answered() {
    let Some(mut guest) = boot(&["--publish", "0:80"]) else { return };
    let address = guest.published();
    guest.run("/tmp/net http 80 &");
    guest.expect("listening");
    let request = move |number: usize| -> JoinHandle<(usize, String)> {
        std::thread::spawn(move || {
            let mut stream = TcpStream::connect(address).unwrap();
            write!(stream, "GET /{number} HTTP/1.0\r\n\r\n").unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            (number, answer)
        })
    };
    let requests: Vec<_> = (0..500).map(request).collect();
    for request in requests {
        let (number, answer) = request.join().unwrap();
        assert!(answer.starts_with("HTTP/1.0 200") && answer.ends_with(&format!("\r\n/{number}\n")), "{answer}");
    }
    guest.run("kill %1; wait");
    guest.end_silently();
}

#[test]
fn either_direction_ends_by_itself() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let Some(mut guest) = boot(&["--net", "user,host-loopback"]) else { return };
    // The guest ends first: the host answers to all that it read.
    guest.run(&format!("seq 1000 | /tmp/net cat 192.168.74.1 {port}"));
    let (mut stream, _) = listener.accept().unwrap();
    let mut all = String::new();
    stream.read_to_string(&mut all).unwrap();
    writeln!(stream, "{} bytes", all.len()).unwrap();
    drop(stream);
    guest.expect("3893 bytes");
    // The host ends first: the guest still sends.
    guest.run(&format!("(sleep 1; echo late) | /tmp/net cat 192.168.74.1 {port}"));
    let (mut stream, _) = listener.accept().unwrap();
    stream.write_all(b"early\n").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    guest.expect("early");
    all.clear();
    stream.read_to_string(&mut all).unwrap();
    assert_eq!(all, "late\n");
    drop(stream);
    guest.end_silently();
}

/// What `minivmm control` says: status, standard output and error.
fn control(path: &Path, words: &[&str]) -> (i32, String, String) {
    let mut arguments = vec!["control", path.to_str().unwrap(), "publish"];
    arguments.extend(words);
    run(&arguments)
}

#[test]
fn ports_are_published_and_removed_while_the_guest_runs() {
    let Some(mut guest) = boot(&["--control", "@/control"]) else { return };
    guest.run("/tmp/net http 80 & /tmp/net udpecho 7 &");
    guest.expect("listening");
    guest.expect("listening");
    let path = guest.path("control");
    let (status, rule, _) = control(&path, &["add", "0:80"]);
    assert_eq!(status, 0);
    let host = rule.trim().strip_suffix(":80").unwrap().to_owned();
    let mut stream = TcpStream::connect(&host).unwrap();
    stream.write_all(b"GET /late HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.ends_with("/late\n"), "{answer}");

    let (_, rule_udp, _) = control(&path, &["add", "0:7/udp"]);
    let host_udp = rule_udp.trim().strip_suffix(":7/udp").unwrap().to_owned();
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.send_to(b"ping", &host_udp).unwrap();
    let mut buffer = [0; 16];
    let (len, from) = client.recv_from(&mut buffer).unwrap();
    assert_eq!((&buffer[..len], from.to_string()), (&b"ping"[..], host_udp));

    assert_eq!(control(&path, &["list"]).1, format!("{rule}{rule_udp}"));
    let (status, _, error) = control(&path, &["add", &format!("{host}:81")]);
    assert_eq!((status, error), (1, format!("minivmm: cannot publish {host}/tcp: the port is in use\n")));
    assert_eq!(control(&path, &["remove", &host]), (0, rule, String::new()));
    assert!(TcpStream::connect(&host).is_err());
    guest.run("kill %1 %2; wait");
    guest.end_silently();
    assert!(!path.exists(), "the socket goes with the machine");
}

#[test]
fn port_that_is_taken_is_one_line_at_the_start() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let host = listener.local_addr().unwrap();
    let (status, output, error) = run(&["boot", "--kernel", "/dev/null", "--publish", &format!("{host}:80")]);
    assert_eq!((status, output.as_str()), (1, ""));
    assert_eq!(error, format!("minivmm: cannot publish {host}/tcp: the port is in use\n"));
}

#[test]
fn names_are_answered_by_tcp_as_by_udp() {
    Network::own(|network| {
        let Some(_dnsmasq) = network.dnsmasq("127.0.0.53", &[("made-up.example", "203.0.113.7")]) else { return };
        network.set_resolvers("nameserver 127.0.0.53\n");
        let Some(mut guest) = boot(&[]) else { return };
        let names = "made-up.example host.minivmm.internal nobody.minivmm.internal gateway.docker.internal";
        // Ours do not wait for the resolver's.
        let mut answers = guest.output(&format!("/tmp/net dns 192.168.74.2 {names}"));
        answers.sort_unstable();
        let expected = [
            "gateway.docker.internal 0 192.168.74.1",
            "host.minivmm.internal 0 192.168.74.1",
            "made-up.example 0 203.0.113.7",
            "nobody.minivmm.internal 3 -",
        ];
        assert_eq!(answers, expected);
        guest.end_silently();
    });
}

#[test]
fn hosts_that_can_be_pinged_answer_the_guest() {
    Network::own(|network| {
        // Of this network's namespace alone.
        if fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647").is_err() {
            eprintln!("skipped: this host lets nobody change who may ping");
            return;
        }
        let Some(mut guest) = boot(&["--net", "user,ipv6=on"]) else { return };
        guest.until("ip -6 addr show dev eth0 | grep 'scope global' | grep -qv tentative");
        for host in [HOST_V4, HOST_V6] {
            let answers = guest.output(&format!("ping -c 3 -i 0.2 -s 1000 {host}")).join("\n");
            assert!(answers.contains("3 packets received"), "{answers}");
        }
        // Nobody has a way there.
        let answers = guest.output("ping -c 1 -w 2 198.51.100.1").join("\n");
        assert!(answers.contains(" 0 packets received"), "{answers}");
        network.set_up("echo 1 0 >/proc/sys/net/ipv4/ping_group_range");
        let answers = guest.output(&format!("ping -c 1 -w 2 {HOST_V4}; true")).join("\n");
        assert!(answers.contains(" 0 packets received"), "{answers}");
        let errors = guest.end().errors;
        assert!(errors.contains(&format!("cannot ping {HOST_V4} for the guest: Permission denied")), "{errors}");
    });
}

#[test]
fn clients_by_ipv6_reach_a_guest_without_it() {
    Network::own(|_| {
        let options = ["--net", "user,ipv6=on", "--cmdline", "ipv6.disable=1"];
        let published = ["--publish", "[::1]:0:80", "--publish", &format!("[{HOST_V6}]:0:80"), "--publish", "0:80"];
        let Some(mut guest) = boot(&[&options[..], &published].concat()) else { return };
        guest.run("ls /proc/net/if_inet6 2>&1 | grep -c 'No such file'");
        guest.expect("1");
        guest.run("busybox httpd -p 80 -h /tmp; echo served >/tmp/page; echo ready");
        guest.expect("ready");
        for _ in 0..3 {
            let address = guest.published();
            let mut stream = TcpStream::connect(address).unwrap();
            stream.write_all(b"GET /page HTTP/1.0\r\n\r\n").unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            assert!(answer.ends_with("\r\n\r\nserved\n"), "{address}: {answer}");
        }
        // It asks for IPv4 addresses, and connects.
        let listener = TcpListener::bind((HOST_V4, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        echo(listener);
        guest.run(&format!(
            "echo four | /tmp/net cat {HOST_V4} {port}; nslookup host.minivmm.internal | grep -c 192.168.74.1"
        ));
        guest.expect("four");
        guest.expect("1");
        guest.end_silently();
    });
}
