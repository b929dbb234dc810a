//! The built-in network, between a stock Debian guest on the software CPU and programs of the host.
//!
//! Each test has a network of its own where it can: a namespace with addresses that are nobody's (RFC 5737, RFC 3849) on its loopback, and a
//! `/etc/resolv.conf` that names a dnsmasq with made-up records. That takes root; without it, those tests say that they are skipped.
//! `MINIVMM_NET_BYTES` sets the size of the transfers (16 MiB): `MINIVMM_NET_BYTES=1073741824 cargo test --release --test net_user checksum` is
//! the long run.
#![expect(clippy::unwrap_used, reason = "a test may")]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::MutexGuard;
use std::thread::JoinHandle;

use support::{guest_program, minivmm, run, session};
use tempfile::TempDir;

mod support;

/// A guest that takes longer hangs; the long transfers need longer.
const TIMEOUT: &str = "1800";
/// The host's addresses in a network of a test's own.
const HOST_V4: &str = "203.0.113.1";
const HOST_V6: &str = "2001:db8::1";

/// What a test's network has.
struct Network {
    directory: TempDir,
}

impl Network {
    /// Runs `test` on a thread in a network of its own.
    fn own(test: impl FnOnce(&Self) + Send) {
        if !rustix::process::geteuid().is_root() {
            assert!(std::env::var_os("CI").is_none(), "this test makes a network namespace: run it as root");
            eprintln!("skipped: only root makes network namespaces");
            return;
        }
        let run = || {
            let directory = tempfile::tempdir().unwrap();
            let resolvers = directory.path().join("resolv.conf");
            fs::write(&resolvers, "").unwrap();
            unshare();
            for script in [
                "mount --make-rprivate /".to_owned(),
                // The host's may be a link to where a bind mount cannot be seen from outside.
                format!("mount --bind {} $(readlink -f /etc/resolv.conf)", resolvers.display()),
                "ip link set lo up".to_owned(),
                format!("ip addr add {HOST_V4}/32 dev lo"),
                format!("ip addr add {HOST_V6}/128 dev lo nodad"),
            ] {
                let status = Command::new("sh").args(["-c", &script]).status().unwrap();
                assert!(status.success(), "{script}");
            }
            test(&Self { directory });
        };
        std::thread::scope(|scope| scope.spawn(run).join().unwrap());
    }

    /// The host's resolvers are these from now on.
    fn set_resolvers(&self, text: &str) {
        fs::write(self.directory.path().join("resolv.conf"), text).unwrap();
    }

    /// dnsmasq at `address`, which knows `names` only; `None`, with a line, where there is none.
    fn dnsmasq(&self, address: &str, names: &[(&str, &str)]) -> Option<Killed> {
        let mut command = Command::new("dnsmasq");
        command.args(["--no-daemon", "--no-resolv", "--no-hosts", "--conf-file=/dev/null", "--bind-interfaces"]);
        command.args(["--user=root", "--log-facility=-", "--pid-file="]).arg(format!("--listen-address={address}"));
        command.args(names.iter().map(|(name, value)| format!("--host-record={name},{value}")));
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let Ok(child) = child else {
            assert!(std::env::var_os("CI").is_none(), "dnsmasq is missing: apt-get install dnsmasq-base");
            eprintln!("skipped: dnsmasq is missing (apt-get install dnsmasq-base)");
            return None;
        };
        while TcpStream::connect((address, 53)).is_err() {
            std::thread::yield_now();
        }
        Some(Killed(child))
    }
}

/// For this thread and the processes that it starts.
#[expect(unsafe_code, reason = "so is `unshare`")]
fn unshare() {
    use rustix::thread::{UnshareFlags, unshare_unsafe};
    // SAFETY: asks for no file table of its own (`FILES`), which is what would take descriptors from other threads' hands.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET | UnshareFlags::NEWNS) }.unwrap();
}

/// A process that ends with its test.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// A guest whose shell takes commands, with the test program as `/tmp/n` and an address.
struct Guest {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: BufReader<ChildStdout>,
    errors: BufReader<std::process::ChildStderr>,
    directory: TempDir,
    _alone: MutexGuard<'static, ()>,
}

impl Guest {
    /// Boots with `options`, in which `@` is a directory; `None` where there is no compiler.
    fn boot(options: &[&str]) -> Option<Self> {
        let program = guest_program("net")?;
        let alone = session::alone();
        let directory = tempfile::tempdir().unwrap();
        let mut command = minivmm(&["boot", "--quiet", "--hypervisor", "soft", "--cpus", "2", "--timeout", TIMEOUT]);
        command.arg("--disk").arg(format!("{},ro", program.display()));
        command.args(options.iter().map(|option| option.replace('@', directory.path().to_str().unwrap())));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let (lines, errors) = (BufReader::new(stdout), BufReader::new(stderr));
        let mut guest = Self { child, stdin, lines, errors, directory, _alone: alone };
        guest.run(
            "cat /dev/vda >/tmp/n; chmod +x /tmp/n; until ip route | grep -q default; do sleep 0.1; done; echo up",
        );
        guest.expect("up");
        Some(guest)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn run(&mut self, script: &str) {
        writeln!(self.stdin.as_mut().unwrap(), "{script}").unwrap();
    }

    /// The next line that the guest prints.
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    fn expect(&mut self, line: &str) {
        assert_eq!(self.line(), line);
    }

    /// All lines that `script` prints.
    fn output(&mut self, script: &str) -> Vec<String> {
        self.run(&format!("({script}) 2>&1; echo THE-END"));
        std::iter::from_fn(|| Some(self.line()).filter(|line| line != "THE-END")).collect()
    }

    /// A line of minivmm's own.
    fn error_line(&mut self) -> String {
        let mut line = String::new();
        self.errors.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// Where a port that the host chose is, of the guest's `port`.
    fn published(&mut self) -> SocketAddr {
        let line = self.error_line();
        let rule = line.strip_prefix("minivmm: published ").unwrap();
        rule.rsplit_once(':').unwrap().0.parse().unwrap()
    }

    /// Ends the guest.
    fn end(mut self) {
        self.stdin = None;
        let mut rest = String::new();
        self.lines.read_to_string(&mut rest).unwrap();
        let mut errors = String::new();
        self.errors.read_to_string(&mut errors).unwrap();
        assert!(self.child.wait().unwrap().success(), "{errors}");
        assert_eq!((rest.as_str(), errors.as_str()), ("", ""), "there was more to say");
    }
}

fn bytes() -> u64 {
    std::env::var("MINIVMM_NET_BYTES").map_or(16 << 20, |bytes| bytes.parse().unwrap())
}

/// The first word that the host's `md5sum` says of what `feed` writes to it.
fn md5sum(feed: impl FnOnce(&mut dyn Write)) -> String {
    let mut child = Command::new("md5sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    feed(child.stdin.as_mut().unwrap());
    let output = child.wait_with_output().unwrap();
    String::from_utf8(output.stdout).unwrap().split_whitespace().next().unwrap().to_owned()
}

/// Sends everything back to everybody who connects, each on a thread.
fn echo(listener: TcpListener) {
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map(Result::unwrap) {
            std::thread::spawn(move || {
                let mut copy = stream.try_clone().unwrap();
                std::io::copy(&mut copy, &mut stream).unwrap();
                drop(stream.shutdown(Shutdown::Write));
            });
        }
    });
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
        let Some(mut guest) = Guest::boot(&["--net", "user,ipv6=on"]) else { return };
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
        guest.run("exit");
    });
}

#[test]
fn guest_speaks_with_hosts_by_every_protocol() {
    Network::own(|_| {
        let Some(mut guest) = Guest::boot(&["--net", "user,ipv6=on"]) else { return };
        for host in [HOST_V4, HOST_V6] {
            let listener = TcpListener::bind((host, 0)).unwrap();
            let port = listener.local_addr().unwrap().port();
            echo(listener);
            let wait = "until ip -6 addr show dev eth0 | grep 'scope global' | grep -qv tentative; do sleep 0.1; done";
            guest.run(&format!("{wait}; echo there and back | /tmp/n cat {host} {port}"));
            guest.expect("there and back");
            let socket = UdpSocket::bind((host, 0)).unwrap();
            let port = socket.local_addr().unwrap().port();
            echo_datagrams(socket);
            for len in [1, 1400, 1473, 9000, 65000] {
                guest.run(&format!("/tmp/n udp {host} {port} {len}"));
                guest.expect(&format!("{len} bytes, the same"));
            }
            let free = TcpListener::bind((host, 0)).unwrap().local_addr().unwrap().port();
            guest.run(&format!("/tmp/n cat {host} {free}; /tmp/n udp {host} {free} 10"));
            guest.expect("connect: Connection refused");
            guest.expect("recv: Connection refused");
        }
        // Nobody has a way there.
        guest.run("/tmp/n cat 198.51.100.1 80");
        guest.expect("connect: Network is unreachable");
        guest.run("exit");
    });
}

#[test]
fn guest_without_ipv6_has_none_and_works() {
    Network::own(|_| {
        let Some(mut guest) = Guest::boot(&["--net", "user,ipv6=off"]) else { return };
        let listener = TcpListener::bind((HOST_V4, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        echo(listener);
        guest.run(&format!("echo four | /tmp/n cat {HOST_V4} {port}; ip -6 addr show dev eth0 | grep -c global"));
        guest.expect("four");
        guest.expect("0");
        guest.end();
    });
}

#[test]
fn loopback_of_the_host_is_closed_unless_opened() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    listener.set_nonblocking(true).unwrap();
    let Some(mut guest) = Guest::boot(&[]) else { return };
    guest.run(&format!("/tmp/n cat 192.168.74.1 {port}"));
    guest.expect("connect: Connection refused");
    // A guest's kernel sends none of these to a router, unless it is told to.
    guest.run("ip addr del 127.0.0.1/8 dev lo; ip route del local 127.0.0.0/8 table local 2>/dev/null");
    guest.run(&format!(
        "ip route add 127.0.0.0/8 via 192.168.74.1; /tmp/n cat 127.0.0.1 {port} >/dev/null && echo through"
    ));
    guest.run("echo over");
    guest.expect("over");
    assert!(listener.accept().is_err(), "the guest came through");
    guest.end();

    listener.set_nonblocking(false).unwrap();
    echo(listener);
    let Some(mut guest) = Guest::boot(&["--net", "user,host-loopback"]) else { return };
    guest.run(&format!(
        "echo hello | /tmp/n cat $(nslookup host.minivmm.internal | sed -n 's/^Address: //p' | head -1) {port}"
    ));
    guest.expect("hello");
    guest.end();
}

#[test]
fn checksum_of_what_the_guest_sends_is_equal() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let Some(mut guest) = Guest::boot(&["--net", "user,host-loopback"]) else { return };
    let blocks = bytes() >> 20;
    guest.run(&format!(
        "dd if=/dev/urandom of=/tmp/block bs=1M count=1 2>/dev/null; \
         data() {{ i=0; while [ $i -lt {blocks} ]; do cat /tmp/block; i=$((i + 1)); done; }}; \
         data | md5sum; data | /tmp/n cat 192.168.74.1 {port}"
    ));
    let expected = guest.line().split_whitespace().next().unwrap().to_owned();
    let (mut stream, _) = listener.accept().unwrap();
    let mut len = 0;
    let sum = md5sum(|sink| len = std::io::copy(&mut stream, sink).unwrap());
    assert_eq!((len, sum), (blocks << 20, expected));
    drop(stream);
    guest.end();
}

#[test]
fn checksum_of_what_the_host_sends_is_equal() {
    let Some(mut guest) = Guest::boot(&["--publish", "0:5000"]) else { return };
    let address = guest.published();
    let mut block = vec![0; 1 << 20];
    fs::File::open("/dev/urandom").unwrap().read_exact(&mut block).unwrap();
    let send = |to: &mut dyn Write| (0..bytes() >> 20).for_each(|_| to.write_all(&block).unwrap());
    let expected = md5sum(send);
    // Its first line says that it listens.
    guest.run(
        "/tmp/n take 5000 >/tmp/data & until grep -q listening /tmp/data; do sleep 0.1; done; echo listening; wait; tail -c +11 /tmp/data | md5sum",
    );
    guest.expect("listening");
    let mut stream = TcpStream::connect(address).unwrap();
    send(&mut stream);
    drop(stream);
    assert_eq!(guest.line(), format!("{expected}  -"));
    guest.end();
}

#[test]
fn five_hundred_requests_at_a_time_are_all_answered() {
    let Some(mut guest) = Guest::boot(&["--publish", "0:80"]) else { return };
    let address = guest.published();
    guest.run("/tmp/n http 80 &");
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
    guest.end();
}

#[test]
fn either_direction_ends_by_itself() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let Some(mut guest) = Guest::boot(&["--net", "user,host-loopback"]) else { return };
    // The guest ends first: the host answers to all that it read.
    guest.run(&format!("seq 1000 | /tmp/n cat 192.168.74.1 {port}"));
    let (mut stream, _) = listener.accept().unwrap();
    let mut all = String::new();
    stream.read_to_string(&mut all).unwrap();
    writeln!(stream, "{} bytes", all.len()).unwrap();
    drop(stream);
    guest.expect("3893 bytes");
    // The host ends first: the guest still sends.
    guest.run(&format!("(sleep 1; echo late) | /tmp/n cat 192.168.74.1 {port}"));
    let (mut stream, _) = listener.accept().unwrap();
    stream.write_all(b"early\n").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    guest.expect("early");
    all.clear();
    stream.read_to_string(&mut all).unwrap();
    assert_eq!(all, "late\n");
    drop(stream);
    guest.end();
}

/// What `minivmm control` says: status, standard output and error.
fn control(path: &Path, words: &[&str]) -> (i32, String, String) {
    let mut arguments = vec!["control", path.to_str().unwrap(), "publish"];
    arguments.extend(words);
    run(&arguments)
}

#[test]
fn ports_are_published_and_removed_while_the_guest_runs() {
    let Some(mut guest) = Guest::boot(&["--control", "@/control"]) else { return };
    guest.run("/tmp/n http 80 & /tmp/n udpecho 7 &");
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
    guest.end();
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
