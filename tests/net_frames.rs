//! Frames between a stock Debian guest on the software CPU and real programs behind `--net stream` and `--net dgram`: passt and gvproxy, and a
//! relay in between that loses frames.
//!
//! `MINIVMM_NET_BYTES` sets the size of the transfers (64 MiB; those over a line that loses every hundredth frame are an eighth of it):
//! `MINIVMM_NET_BYTES=1073741824 cargo test --release --test net_frames` is the long run. gvproxy is looked for where `tests/run` unpacks it, too.
#![expect(clippy::unwrap_used, reason = "a test may")]

use std::io::{BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use support::guest::{DATA, Guest, md5sum, random_block};
use support::network::{Network, Program};
use support::session;

mod support;

/// How long a program of the host may take to listen, and a frame to come.
const PATIENCE: Duration = Duration::from_secs(120);
/// gvproxy's network, as it documents it: its gateway, and the address that leads to the host's loopback.
const GVPROXY_HOST: &str = "192.168.127.254";

/// Runs `name`, which may be unpacked below `target/`, with `arguments`; `None`, with a line, where there is none.
fn start(name: &str, arguments: &[&str]) -> Option<Program> {
    let unpacked = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/gvproxy/usr/bin").join(name);
    let mut command = Command::new(if unpacked.exists() { unpacked } else { name.into() });
    command.args(arguments);
    Program::start(command, name)
}

/// passt, which listens at `socket` and leases an MTU.
fn passt(socket: &Path, mtu: &str) -> Option<Program> {
    passt_with(socket, mtu, &[])
}

/// The same, with a port of the host's loopback that leads to the guest's 5001.
fn passt_at(socket: &Path, mtu: &str, port: u16) -> Option<Program> {
    passt_with(socket, mtu, &["--tcp-ports", &format!("127.0.0.1/{port}:5001")])
}

fn passt_with(socket: &Path, mtu: &str, more: &[&str]) -> Option<Program> {
    let arguments = ["--foreground", "--quiet", "--mtu", mtu, "--socket", socket.to_str().unwrap()];
    // It gives up root's rights by itself, and then may not read a directory of root's.
    let program = start("passt", &[&arguments[..], &["--runas", "0"], more].concat())?;
    Some(listening(program, socket))
}

/// gvproxy, which listens at `socket`.
fn gvproxy(socket: &Path) -> Option<Program> {
    let address = format!("unix://{}", socket.display());
    Some(listening(start("gvproxy", &["-listen-qemu", &address, "-ssh-port", "-1"])?, socket))
}

/// `program`, when it listens at `socket`.
fn listening(mut program: Program, socket: &Path) -> Program {
    let deadline = Instant::now() + PATIENCE;
    while !socket.exists() {
        assert!(program.0.try_wait().unwrap().is_none(), "the program ended");
        assert!(Instant::now() < deadline, "the program does not listen");
        sleep(Duration::from_millis(20));
    }
    program
}

/// A guest with `net` and an address; `None` where there is no compiler for its program.
fn boot(net: &str) -> Option<Guest> {
    let mut guest = boot_alone(net)?;
    guest.until("ip -4 addr show dev eth0 | grep -q 'inet '");
    Some(guest)
}

/// The same without waiting for an address.
fn boot_alone(net: &str) -> Option<Guest> {
    let mut guest = Guest::boot("net", &["--net", net])?;
    guest.run(DATA);
    guest.run("mkfifo /tmp/never; sleep 1000000 >/tmp/never &");
    guest.until("true");
    Some(guest)
}

/// Ends the guest; what its device counted.
fn end(guest: Guest) -> serde_json::Value {
    guest.end().device("virtio net")
}

/// MiB of a transfer.
fn mebibytes() -> u64 {
    std::env::var("MINIVMM_NET_BYTES").map_or(64, |bytes| bytes.parse::<u64>().unwrap() >> 20)
}

/// TCP both ways between the guest and `host`, which is this host's loopback to the guest: equal checksums.
fn transfer_both_ways(guest: &mut Guest, host: &str, mebibytes: u64) {
    let listener = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    // From the guest.
    let expected = guest.word(&format!("data {mebibytes} | md5sum"));
    guest.run(&format!("data {mebibytes} | /tmp/net cat {host} {port}; echo sent"));
    let (mut stream, _) = listener.accept().unwrap();
    let mut len = 0;
    let sum = md5sum(|sink| len = std::io::copy(&mut stream, sink).unwrap());
    drop(stream);
    assert_eq!((len, sum), (mebibytes << 20, expected), "from the guest");
    guest.expect("sent");
    // To the guest.
    let block = random_block();
    let send = |to: &mut dyn Write| (0..mebibytes).for_each(|_| to.write_all(&block).unwrap());
    let expected = md5sum(send);
    // Its input does not end: gvproxy ends both directions with the first.
    guest.run(&format!("nc {host} {port} </tmp/never | md5sum"));
    let (mut stream, _) = listener.accept().unwrap();
    send(&mut stream);
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(guest.line(), format!("{expected}  -"), "to the guest");
}

/// Lets all but some frames through, by a generator whose seed is printed.
struct Loss {
    state: u64,
    lost: Arc<AtomicU64>,
}

impl Loss {
    /// Every hundredth frame is lost, on average.
    const ONE_IN: u64 = 100;

    fn new(seed: u64, lost: &Arc<AtomicU64>) -> Self {
        println!("frames are lost by the seed {seed:#x}");
        Self { state: seed, lost: lost.clone() }
    }

    fn is_lost(&mut self) -> bool {
        // SplitMix64.
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.state ^ (self.state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let is_lost = (mixed ^ (mixed >> 31)).is_multiple_of(Self::ONE_IN);
        self.lost.fetch_add(u64::from(is_lost), Ordering::Relaxed);
        is_lost
    }
}

/// The next frame, with its length before it; `None` at the end.
fn read_frame(from: &mut impl Read) -> Option<Vec<u8>> {
    let mut length = [0; 4];
    from.read_exact(&mut length).ok()?;
    let mut frame = length.to_vec();
    frame.resize(4 + usize::try_from(u32::from_be_bytes(length)).unwrap(), 0);
    from.read_exact(&mut frame[4..]).ok()?;
    Some(frame)
}

/// Moves frames from one stream to the other until either ends.
fn relay_stream(from: UnixStream, mut to: UnixStream, mut loss: Loss) {
    std::thread::spawn(move || {
        let mut from = BufReader::with_capacity(1 << 18, from);
        while let Some(frame) = read_frame(&mut from) {
            if !loss.is_lost() && to.write_all(&frame).is_err() {
                break;
            }
        }
        drop((to.shutdown(Shutdown::Both), from.get_ref().shutdown(Shutdown::Both)));
    });
}

/// A relay at `at` for one guest, to the program at `to`.
fn lossy_stream(at: &Path, to: &Path) -> Arc<AtomicU64> {
    let (lost, to) = (Arc::new(AtomicU64::new(0)), to.to_owned());
    let (listener, losses) = (UnixListener::bind(at).unwrap(), [Loss::new(1, &lost), Loss::new(2, &lost)]);
    std::thread::spawn(move || {
        let (guest, _) = listener.accept().unwrap();
        let program = UnixStream::connect(to).unwrap();
        let [there, back] = losses;
        relay_stream(guest.try_clone().unwrap(), program.try_clone().unwrap(), there);
        relay_stream(program, guest, back);
    });
    lost
}

/// A relay between a guest's datagrams at `at` and the stream socket of the program at `to`: gvproxy takes datagrams only on a Mac.
/// Without `lossy`, nothing is lost.
fn datagrams(at: &Path, to: &Path, lossy: bool) -> Arc<AtomicU64> {
    let lost = Arc::new(AtomicU64::new(0));
    let (to_guest, to) = (UnixDatagram::bind(at).unwrap(), to.to_owned());
    let [mut there, mut back] = [Loss::new(3, &lost), Loss::new(4, &lost)];
    std::thread::spawn(move || {
        let mut frame = vec![0; 1 << 17];
        let (len, from) = to_guest.recv_from(&mut frame).unwrap();
        assert_eq!(&frame[..len], b"VFKT");
        let mut program = UnixStream::connect(to).unwrap();
        let (answers, guest) = (program.try_clone().unwrap(), to_guest.try_clone().unwrap());
        guest.connect(from.as_pathname().unwrap()).unwrap();
        std::thread::spawn(move || {
            let mut answers = BufReader::with_capacity(1 << 18, answers);
            while let Some(frame) = read_frame(&mut answers) {
                if !(lossy && back.is_lost()) && guest.send(&frame[4..]).is_err() {
                    break;
                }
            }
        });
        while let Ok(len) = to_guest.recv(&mut frame) {
            let framed = [&u32::try_from(len).unwrap().to_be_bytes(), &frame[..len]].concat();
            if !(lossy && there.is_lost()) && program.write_all(&framed).is_err() {
                break;
            }
        }
    });
    lost
}

/// passt and a guest whose frames go through it. passt's own TCP resends only after two seconds, and what it sends beyond the guest's
/// window is lost: so its frames are of the usual size here.
const PASST_MTU: &str = "1500";

#[test]
fn passt_serves_the_guest_both_ways() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("passt");
    let Some(_passt) = passt(&socket, PASST_MTU) else { return };
    let Some(mut guest) = boot(&format!("stream={}", socket.display())) else { return };
    assert_eq!(guest.word("cat /sys/class/net/eth0/mtu"), "1500", "what the lease says");
    let host = guest.gateway();
    transfer_both_ways(&mut guest, &host, mebibytes());
    let counters = end(guest);
    assert_eq!((counters["malformed"].as_u64(), counters["link_changes"].as_u64()), (Some(0), Some(0)));
    assert!(counters["segments"].as_u64() > Some(0), "the guest's large frames were cut");
}

#[test]
fn passt_lets_the_host_in_with_frames_as_large_as_there_are() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("passt");
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let Some(_passt) = passt_at(&socket, "65520", port) else { return };
    let Some(mut guest) = boot(&format!("stream={}", socket.display())) else { return };
    assert_eq!(guest.word("cat /sys/class/net/eth0/mtu"), "65520");
    guest.run("/tmp/net take 5001 | (read -r listening; echo $listening; md5sum)");
    guest.expect("listening");
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let expected = md5sum(|sink| sink.write_all(b"from the host").unwrap());
    stream.write_all(b"from the host").unwrap();
    drop(stream);
    assert_eq!(guest.line(), format!("{expected}  -"));
    end(guest);
}

#[test]
fn gvproxy_serves_the_guest_over_a_stream() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("gvproxy");
    let Some(_gvproxy) = gvproxy(&socket) else { return };
    let Some(mut guest) = boot(&format!("stream={}", socket.display())) else { return };
    transfer_both_ways(&mut guest, GVPROXY_HOST, mebibytes());
    assert_eq!(end(guest)["malformed"], 0);
}

#[test]
fn guest_is_served_over_datagrams() {
    let directory = tempfile::tempdir().unwrap();
    let (socket, relay) = (directory.path().join("gvproxy"), directory.path().join("relay"));
    let Some(_gvproxy) = gvproxy(&socket) else { return };
    datagrams(&relay, &socket, false);
    let Some(mut guest) = boot(&format!("dgram={}", relay.display())) else { return };
    transfer_both_ways(&mut guest, GVPROXY_HOST, mebibytes());
    assert_eq!(end(guest)["malformed"], 0);
}

#[test]
fn stream_that_loses_every_hundredth_frame_carries_everything() {
    let directory = tempfile::tempdir().unwrap();
    let (socket, relay) = (directory.path().join("gvproxy"), directory.path().join("relay"));
    let Some(_gvproxy) = gvproxy(&socket) else { return };
    let lost = lossy_stream(&relay, &socket);
    let Some(mut guest) = boot(&format!("stream={}", relay.display())) else { return };
    transfer_both_ways(&mut guest, GVPROXY_HOST, mebibytes().div_ceil(8));
    assert!(lost.load(Ordering::Relaxed) > 10, "the line has lost nothing");
    end(guest);
}

/// passt takes its socket for a line that loses nothing. When an acknowledgment of its own is lost, the guest sends the segment again and
/// again, and passt, which has it, never acknowledges it again, as it must (RFC 9293 §3.10.7.4). Seen in what the relay saw, of passt 2023-03-09
/// (Debian 12, which resets the connection after ten seconds), with the same loss beside QEMU 10 as well, and of passt 2025-05-03
/// (Debian 13). The old one also resets where only frames of the guest are lost.
#[test]
#[ignore = "passt (2023, 2025) never acknowledges a segment again whose acknowledgment was lost, beside QEMU neither"]
fn passt_carries_everything_over_a_stream_that_loses_every_hundredth_frame() {
    let directory = tempfile::tempdir().unwrap();
    let (socket, relay) = (directory.path().join("passt"), directory.path().join("relay"));
    let Some(_passt) = passt(&socket, PASST_MTU) else { return };
    let lost = lossy_stream(&relay, &socket);
    let Some(mut guest) = boot(&format!("stream={}", relay.display())) else { return };
    let host = guest.gateway();
    transfer_both_ways(&mut guest, &host, mebibytes().div_ceil(8));
    assert!(lost.load(Ordering::Relaxed) > 10, "the line has lost nothing");
    end(guest);
}

#[test]
fn datagrams_of_which_every_hundredth_is_lost_carry_everything() {
    let directory = tempfile::tempdir().unwrap();
    let (socket, relay) = (directory.path().join("gvproxy"), directory.path().join("relay"));
    let Some(_gvproxy) = gvproxy(&socket) else { return };
    let lost = datagrams(&relay, &socket, true);
    let Some(mut guest) = boot(&format!("dgram={}", relay.display())) else { return };
    transfer_both_ways(&mut guest, GVPROXY_HOST, mebibytes().div_ceil(8));
    assert!(lost.load(Ordering::Relaxed) > 10, "the line has lost nothing");
    end(guest);
}

#[test]
fn peer_that_is_stopped_and_goes_on_is_only_slow() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("gvproxy");
    let Some(gvproxy) = gvproxy(&socket) else { return };
    let Some(mut guest) = boot(&format!("stream={}", socket.display())) else { return };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    guest.run(&format!("(data 16 | /tmp/net cat {GVPROXY_HOST} {port}; echo sent) &"));
    let (mut stream, _) = listener.accept().unwrap();
    let mut begun = vec![0; 1 << 20];
    stream.read_exact(&mut begun).unwrap();
    gvproxy.signal(Signal::STOP);
    // The guest is as it was, but for the line, which takes no more.
    guest.run("echo still here");
    guest.expect("still here");
    gvproxy.signal(Signal::CONT);
    assert_eq!(std::io::copy(&mut stream, &mut std::io::sink()).unwrap(), 15 << 20);
    drop(stream);
    guest.expect("sent");
    assert_eq!(end(guest)["link_changes"], 0);
}

#[test]
fn peer_that_is_killed_takes_the_link_down_and_another_takes_it_up() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("gvproxy");
    let Some(program) = gvproxy(&socket) else { return };
    let Some(mut guest) = boot(&format!("stream={}", socket.display())) else { return };
    drop(program);
    guest.run("until [ $(cat /sys/class/net/eth0/carrier) = 0 ]; do sleep 0.1; done; echo down");
    guest.expect("down");
    std::fs::remove_file(&socket).unwrap();
    let Some(_gvproxy) = gvproxy(&socket) else { return };
    guest.run("until [ $(cat /sys/class/net/eth0/carrier) = 1 ]; do sleep 0.1; done; echo up");
    guest.expect("up");
    transfer_both_ways(&mut guest, GVPROXY_HOST, 1);
    assert_eq!(end(guest)["link_changes"], 2);
}

#[test]
fn tap_connects_the_guest_with_the_host_and_large_frames_go_through_whole() {
    if !Path::new("/dev/net/tun").exists() {
        eprintln!("skipped: there is no /dev/net/tun");
        return;
    }
    Network::own(|network| {
        let Some(mut guest) = boot_alone("tap=mini0") else { return };
        network.set_up("ip link set mini0 up; ip addr add 198.51.100.1/24 dev mini0");
        guest.run("ip addr add 198.51.100.2/24 dev eth0; echo up");
        guest.expect("up");
        transfer_both_ways(&mut guest, "198.51.100.1", mebibytes());
        let counters = end(guest);
        let count = |name: &str| counters[name].as_u64().unwrap();
        assert_eq!((count("segments"), count("checksums"), count("malformed")), (0, 0, 0), "the kernel does that");
        let bytes = mebibytes() << 20;
        assert!(count("frames_out") < bytes / 3000, "frames of the guest: {counters}");
        assert!(count("frames_in") < bytes / 3000, "frames for the guest: {counters}");
    });
}

#[test]
fn network_that_nobody_serves_does_not_hold_up_the_guest() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("silent");
    let _listener = UnixListener::bind(&path).unwrap();
    let net = format!("stream={}", path.display());
    let output = session::output_of(session::boot("soft", &["--net", &net]), "ls -1 /sys/class/net\n");
    assert_eq!(output, "eth0\nlo\n");
}

#[test]
fn address_is_the_machines_own_and_the_same_each_time() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("silent");
    let _listener = UnixListener::bind(&path).unwrap();
    let address = |net: &str| {
        session::output_of(
            session::boot("soft", &["--net", net]),
            "cat /sys/class/net/eth0/address /sys/class/net/eth0/mtu\n",
        )
    };
    let net = format!("stream={}", path.display());
    let first = address(&net);
    assert_eq!(first, address(&net));
    assert!(first.ends_with(":\n1500\n") || first.ends_with("\n1500\n"), "{first}");
    assert_eq!(address(&format!("{net},mac=52:54:00:ab:cd:ef,mtu=9000")), "52:54:00:ab:cd:ef\n9000\n");
}
