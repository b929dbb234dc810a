//! The device driven by a guest that speaks packets: what goes in at which time, and what comes out.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use super::*;
use crate::poll::Readiness;
use crate::testing::sockets::{GuestSockets, Switchboard, Wire};
use crate::virtio::spec::F_EVENT_IDX;
use crate::virtio::spec::vsock::{CID_HOST, Header, TYPE_STREAM, op};

const CID: u32 = 3;
/// The ports of the guest's connections.
const HOST: u32 = 1024;
const GUEST: u32 = 50_000;
/// Credit of a guest that has not filled anything.
const PLENTY: u32 = 1 << 18;

struct Bench {
    guest: GuestSockets,
    port: VsockPort,
    board: Switchboard,
    now: Instant,
}

impl Bench {
    fn with(features: u64, receive_bytes: u32) -> Self {
        let board = Switchboard::default();
        let (device, port) = Vsock::new(CID, Box::new(board.clone()), Box::new(|| ()));
        let guest = GuestSockets::new(device, features, receive_bytes);
        Self { guest, port, board, now: Instant::now() }
    }

    fn new() -> Self {
        Self::with(0, 4096)
    }

    /// With a connection that the guest opened, which the guest knows of.
    fn connected() -> (Self, Wire) {
        let mut bench = Self::new();
        assert_eq!(bench.guest(op::REQUEST, 0, b""), ["RESPONSE"]);
        let wire = bench.board.last();
        (bench, wire)
    }

    fn header(number: u16, flags: u32, len: usize) -> Header {
        Header {
            src_cid: u64::from(CID).into(),
            dst_cid: CID_HOST.into(),
            src_port: GUEST.into(),
            dst_port: HOST.into(),
            len: u32::try_from(len).unwrap().into(),
            kind: TYPE_STREAM.into(),
            op: number.into(),
            flags: flags.into(),
            buf_alloc: PLENTY.into(),
            fwd_cnt: 0.into(),
        }
    }

    /// Works until there is nothing to do, and returns what the guest reads, with the answer to each packet of data left out.
    fn turn(&mut self) -> Vec<String> {
        let mut said = Vec::new();
        loop {
            let more = self.port.turn(self.now);
            let before = said.len();
            while let Some((header, payload)) = self.guest.receive() {
                said.push(line(&header, &payload));
            }
            if !more && said.len() == before {
                return said;
            }
        }
    }

    /// The guest sends one packet of its connection.
    fn guest(&mut self, number: u16, flags: u32, payload: &[u8]) -> Vec<String> {
        self.packet(&Self::header(number, flags, payload.len()), payload)
    }

    fn packet(&mut self, header: &Header, payload: &[u8]) -> Vec<String> {
        assert!(self.guest.send(header, payload));
        self.turn()
    }

    /// Time passes.
    fn after(&mut self, time: Duration) -> Vec<String> {
        self.now += time;
        self.port.expire(self.now);
        self.turn()
    }

    /// The host sends, or takes what it did not take before.
    fn host(&mut self, wire: &Wire, bytes: &[u8]) -> Vec<String> {
        let token = {
            let mut state = wire.state();
            state.inbound.extend(bytes);
            state.token.unwrap()
        };
        self.port.ready(token, Readiness { readable: true, writable: true }, self.now);
        self.turn()
    }

    fn open(&self) -> u64 {
        self.port.counters().open.load(Ordering::Relaxed)
    }
}

/// A packet, with its data if there is any.
fn line(header: &Header, payload: &[u8]) -> String {
    assert_eq!((header.src_cid.get(), header.dst_cid.get()), (CID_HOST, u64::from(CID)));
    let name = match header.op.get() {
        op::REQUEST => "REQUEST",
        op::RESPONSE => "RESPONSE",
        op::RST => "RST",
        op::SHUTDOWN => return format!("SHUTDOWN {}", header.flags),
        op::RW if payload.len() > 30 => return format!("RW of {}", payload.len()),
        op::RW => return format!("RW {}", String::from_utf8_lossy(payload)),
        op::CREDIT_UPDATE => return format!("CREDIT_UPDATE {}", header.fwd_cnt),
        op::CREDIT_REQUEST => "CREDIT_REQUEST",
        other => panic!("an op that does not exist: {other}"),
    };
    name.to_owned()
}

const RECEIVE: u32 = 1;
const SEND: u32 = 2;
const NOTHING: [&str; 0] = [];
const BUFFER: u32 = 256 << 10;

#[test]
fn guest_opens_a_connection_and_both_talk() {
    let (mut bench, wire) = Bench::connected();
    assert_eq!(bench.board.calls().made[0].0, HOST);
    assert_eq!(bench.guest(op::RW, 0, b"ping"), NOTHING);
    assert_eq!(wire.state().outbound, b"ping");
    assert_eq!(bench.host(&wire, b"pong"), ["RW pong"]);
}

#[test]
fn host_opens_a_connection_and_both_talk() {
    let mut bench = Bench::new();
    let wire = Wire::new();
    wire.state().inbound.extend(b"early");
    bench.port.open(22, wire.stream(), bench.now).unwrap();
    assert_eq!(bench.turn(), ["REQUEST"]);
    let mut response = Bench::header(op::RESPONSE, 0, 0);
    (response.src_port, response.dst_port) = (22.into(), (1 << 30).into());
    assert_eq!(bench.packet(&response, b""), NOTHING);
    assert_eq!(wire.state().accepted, Some(1 << 30));
    assert_eq!(bench.host(&wire, b""), ["RW early"]);
    response.op = op::RW.into();
    response.len = 2.into();
    assert_eq!(bench.packet(&response, b"ok"), NOTHING);
    assert_eq!(wire.state().outbound, b"ok");
    assert_eq!(bench.port.counters().connections_from_host.load(Ordering::Relaxed), 1);
}

#[test]
fn configuration_space_has_the_cid_and_no_more() {
    let mut bench = Bench::new();
    assert_eq!(bench.guest.driver.read_config(0), [3, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(bench.guest.driver.read_config(8), [0; 4]);
    bench.guest.driver.write_config(0, &[9; 8]);
    assert_eq!(bench.guest.driver.read_config(0), [3, 0, 0, 0]);
}

#[test]
fn port_that_nobody_listens_on_is_refused() {
    let mut bench = Bench::new();
    bench.board.calls().answers.push_back(ConnectError::Refused);
    assert_eq!(bench.guest(op::REQUEST, 0, b""), ["RST"]);
    assert_eq!((bench.open(), bench.port.counters().refused.load(Ordering::Relaxed)), (0, 1));
}

#[test]
fn busy_listener_is_tried_again_until_it_has_room() {
    let mut bench = Bench::new();
    bench.board.calls().answers.extend([ConnectError::Busy; 3]);
    assert_eq!(bench.guest(op::REQUEST, 0, b""), NOTHING);
    assert_eq!(bench.port.deadline(), Some(bench.now + Duration::from_millis(1)));
    assert_eq!(bench.after(Duration::from_millis(1)), NOTHING);
    assert_eq!(bench.after(Duration::from_millis(2)), NOTHING);
    assert_eq!(bench.after(Duration::from_millis(4)), ["RESPONSE"]);
    assert_eq!((bench.port.deadline(), bench.board.calls().made.len()), (None, 4));
}

#[test]
fn busy_listener_is_given_up_after_two_seconds() {
    let mut bench = Bench::new();
    bench.board.calls().answers.extend([ConnectError::Busy; 100]);
    assert_eq!(bench.guest(op::REQUEST, 0, b""), NOTHING);
    let end = bench.now + Duration::from_secs(2);
    let mut said = Vec::new();
    while let Some(at) = bench.port.deadline() {
        assert!(said.is_empty() && at <= end + Duration::from_millis(50));
        said = bench.after(at - bench.now);
    }
    assert_eq!(said, ["RST"]);
    assert_eq!(bench.open(), 0);
}

#[test]
fn guest_that_refuses_closes_the_hosts_stream() {
    let mut bench = Bench::new();
    let wire = Wire::new();
    bench.port.open(22, wire.stream(), bench.now).unwrap();
    assert_eq!(bench.turn(), ["REQUEST"]);
    let mut reply = Bench::header(op::RST, 0, 0);
    (reply.src_port, reply.dst_port) = (22.into(), (1 << 30).into());
    assert_eq!(bench.packet(&reply, b""), NOTHING);
    assert!(wire.state().is_closed && wire.state().accepted.is_none());
    assert_eq!(bench.port.deadline(), None);
}

#[test]
fn guest_that_does_not_answer_loses_the_connection() {
    let mut bench = Bench::new();
    let wire = Wire::new();
    bench.port.open(22, wire.stream(), bench.now).unwrap();
    assert_eq!(bench.turn(), ["REQUEST"]);
    assert_eq!(bench.after(Duration::from_millis(4999)), NOTHING);
    assert_eq!(bench.after(Duration::from_millis(1)), ["RST"]);
    assert!(wire.state().is_closed);
}

#[test]
fn host_cannot_connect_to_a_guest_without_a_driver() {
    let (_device, port) = Vsock::new(CID, Box::new(Switchboard::default()), Box::new(|| ()));
    let wire = Wire::new();
    assert_eq!(port.open(22, wire.stream(), Instant::now()), Err(OpenError::NoDriver));
    assert!(wire.state().is_closed);
}

#[test]
fn hosts_end_of_file_closes_one_direction_only() {
    let (mut bench, wire) = Bench::connected();
    wire.state().has_ended = true;
    assert_eq!(bench.host(&wire, b"last"), ["RW last", "SHUTDOWN 2"]);
    assert_eq!(bench.guest(op::RW, 0, b"still"), NOTHING);
    assert_eq!(wire.state().outbound, b"still");
    assert_eq!(bench.guest(op::SHUTDOWN, SEND | RECEIVE, b""), ["RST"]);
    assert!(wire.state().is_closed);
    assert_eq!(bench.open(), 0);
}

#[test]
fn guests_end_of_file_closes_one_direction_only() {
    let (mut bench, wire) = Bench::connected();
    assert_eq!(bench.guest(op::RW, 0, b"all"), NOTHING);
    assert_eq!(bench.guest(op::SHUTDOWN, SEND, b""), NOTHING);
    assert!(wire.state().is_write_shut && !wire.state().is_read_shut);
    assert_eq!(bench.host(&wire, b"answer"), ["RW answer"]);
    assert_eq!(bench.guest(op::SHUTDOWN, RECEIVE, b""), ["RST"]);
    assert!(wire.state().is_closed);
}

#[test]
fn guest_that_reads_no_more_gets_no_more() {
    let (mut bench, wire) = Bench::connected();
    assert_eq!(bench.guest(op::SHUTDOWN, RECEIVE, b""), NOTHING);
    assert!(wire.state().is_read_shut);
    assert_eq!(bench.host(&wire, b"ignored"), NOTHING);
    assert_eq!(bench.guest(op::RW, 0, b"but writes"), NOTHING);
    assert_eq!(wire.state().outbound, b"but writes");
}

#[test]
fn guests_end_of_file_comes_behind_what_the_host_was_slow_to_take() {
    let (mut bench, wire) = Bench::connected();
    wire.state().room = 2;
    assert_eq!(bench.guest(op::RW, 0, b"slowly"), NOTHING);
    assert_eq!(bench.guest(op::SHUTDOWN, SEND, b""), NOTHING);
    assert!(!wire.state().is_write_shut);
    wire.state().room = 100;
    assert_eq!(bench.host(&wire, b""), NOTHING);
    assert_eq!((wire.outbound(), wire.state().is_write_shut), (b"slowly".to_vec(), true));
}

#[test]
fn what_a_guest_sent_before_it_closed_reaches_a_slow_host() {
    let (mut bench, wire) = Bench::connected();
    wire.state().room = 0;
    assert_eq!(bench.guest(op::RW, 0, b"the whole message"), NOTHING);
    assert_eq!(bench.guest(op::SHUTDOWN, SEND | RECEIVE, b""), ["RST"]);
    assert_eq!(bench.open(), 0);
    // The guest uses the port again meanwhile.
    assert_eq!(bench.guest(op::REQUEST, 0, b""), ["RESPONSE"]);
    wire.state().room = 3;
    assert_eq!(bench.host(&wire, b""), NOTHING);
    assert!(!wire.state().is_closed);
    wire.state().room = 100;
    assert_eq!(bench.host(&wire, b""), NOTHING);
    assert_eq!((wire.outbound(), wire.state().is_closed), (b"the whole message".to_vec(), true));
    assert_eq!(bench.port.deadline(), None);
    assert!(!bench.board.last().state().is_closed, "the new connection lives");
}

#[test]
fn host_that_takes_nothing_for_half_a_minute_loses_the_rest() {
    let (mut bench, wire) = Bench::connected();
    wire.state().room = 0;
    assert_eq!(bench.guest(op::RW, 0, b"abcd"), NOTHING);
    assert_eq!(bench.guest(op::SHUTDOWN, SEND | RECEIVE, b""), ["RST"]);
    bench.after(Duration::from_secs(29));
    wire.state().room = 1;
    bench.host(&wire, b"");
    bench.after(Duration::from_secs(29));
    assert!(!wire.state().is_closed, "it took a byte meanwhile");
    bench.after(Duration::from_secs(1));
    assert!(wire.state().is_closed);
    assert_eq!(bench.port.deadline(), None);
}

#[test]
fn host_that_takes_the_rest_later_leaves_nothing_to_wait_for() {
    let (mut bench, wire) = Bench::connected();
    wire.state().room = 0;
    assert_eq!(bench.guest(op::RW, 0, b"abcd"), NOTHING);
    assert_eq!(bench.guest(op::SHUTDOWN, SEND | RECEIVE, b""), ["RST"]);
    bench.after(Duration::from_secs(5));
    wire.state().room = 100;
    bench.host(&wire, b"");
    assert!(wire.state().is_closed);
    assert_eq!(bench.port.deadline(), None, "or the I/O thread expires it for ever");
}

#[test]
fn host_that_takes_no_more_may_still_talk() {
    let (mut bench, wire) = Bench::connected();
    wire.state().write_error = Some(ErrorKind::BrokenPipe);
    assert_eq!(bench.guest(op::RW, 0, b"lost"), ["SHUTDOWN 1"]);
    assert_eq!(bench.guest(op::RW, 0, b"lost too"), NOTHING);
    assert_eq!(bench.host(&wire, b"good bye"), ["RW good bye"]);
    wire.state().has_ended = true;
    assert_eq!(bench.host(&wire, b""), ["SHUTDOWN 3"]);
    assert!(wire.state().is_closed);
    assert_eq!(bench.guest(op::RST, 0, b""), NOTHING);
    assert_eq!((bench.open(), bench.port.deadline()), (0, None));
}

#[test]
fn guest_that_does_not_answer_a_shutdown_is_reset_after_two_seconds() {
    let (mut bench, wire) = Bench::connected();
    wire.state().write_error = Some(ErrorKind::BrokenPipe);
    wire.state().has_ended = true;
    bench.guest(op::RW, 0, b"lost");
    assert_eq!(bench.host(&wire, b""), ["SHUTDOWN 3"]);
    assert_eq!(bench.after(Duration::from_millis(1999)), NOTHING);
    assert_eq!(bench.after(Duration::from_millis(1)), ["RST"]);
    assert_eq!((bench.open(), bench.port.deadline()), (0, None));
}

#[test]
fn peer_that_dies_resets_the_connection_behind_its_last_words() {
    let (mut bench, wire) = Bench::connected();
    wire.state().read_error = Some(ErrorKind::ConnectionReset);
    assert_eq!(bench.host(&wire, b"help"), ["RW help", "RST"]);
    assert!(wire.state().is_closed);
    assert_eq!(bench.port.counters().resets.load(Ordering::Relaxed), 1);
}

#[test]
fn guests_reset_closes_the_stream() {
    let (mut bench, wire) = Bench::connected();
    assert_eq!(bench.guest(op::RST, 0, b""), NOTHING);
    assert!(wire.state().is_closed);
    assert_eq!(bench.guest(op::RW, 0, b"x"), ["RST"]);
}

/// The guest's data goes nowhere until the host takes it, and then the guest is told.
#[test]
fn slow_host_stops_the_guest_by_credit() {
    let (mut bench, wire) = Bench::connected();
    wire.state().room = 1000;
    let data = vec![7; 64 << 10];
    for _ in 0..4 {
        assert_eq!(bench.guest(op::RW, 0, &data), NOTHING);
    }
    assert_eq!(bench.guest(op::CREDIT_REQUEST, 0, b""), ["CREDIT_UPDATE 1000"]);
    wire.state().room = 100_000;
    assert_eq!(bench.host(&wire, b""), NOTHING, "less than half of the buffer is free");
    wire.state().room = 100_000;
    assert_eq!(bench.host(&wire, b""), ["CREDIT_UPDATE 201000"]);
    wire.state().room = usize::MAX;
    // A quarter is left, which is no news worth a packet.
    assert_eq!(bench.host(&wire, b""), NOTHING);
    assert_eq!(wire.state().outbound.len(), 256 << 10);
}

#[test]
fn guest_that_sends_more_than_its_credit_is_reset() {
    let (mut bench, wire) = Bench::connected();
    wire.state().room = 0;
    let data = vec![7; 64 << 10];
    for _ in 0..4 {
        assert_eq!(bench.guest(op::RW, 0, &data), NOTHING);
    }
    assert_eq!(bench.guest(op::RW, 0, b"x"), ["RST"]);
    assert!(wire.state().is_closed);
}

#[test]
fn device_never_sends_more_than_the_guests_credit() {
    let (mut bench, wire) = Bench::connected();
    let mut header = Bench::header(op::CREDIT_UPDATE, 0, 0);
    header.buf_alloc = 100.into();
    assert_eq!(bench.packet(&header, b""), NOTHING);
    assert_eq!(bench.host(&wire, &[0x61; 250]), ["RW of 100", "CREDIT_REQUEST"]);
    // An answer without news does not make it ask again.
    assert_eq!(bench.packet(&header, b""), NOTHING);
    header.fwd_cnt = 60.into();
    assert_eq!(bench.packet(&header, b""), ["RW of 60", "CREDIT_REQUEST"]);
    header.fwd_cnt = 160.into();
    assert_eq!(bench.packet(&header, b""), ["RW of 90"]);
}

#[test]
fn credit_of_a_guest_that_counts_past_what_it_was_sent_is_nothing() {
    let (mut bench, wire) = Bench::connected();
    let mut header = Bench::header(op::CREDIT_UPDATE, 0, 0);
    header.fwd_cnt = 1.into();
    assert_eq!(bench.packet(&header, b""), NOTHING);
    assert_eq!(bench.host(&wire, b"data"), ["CREDIT_REQUEST"]);
}

#[test]
fn data_fills_many_small_buffers_at_once() {
    let mut bench = Bench::with(0, 100);
    assert_eq!(bench.guest(op::REQUEST, 0, b""), ["RESPONSE"]);
    let wire = bench.board.last();
    let said = bench.host(&wire, &[1; 2000]);
    assert_eq!((said.len(), said[0].as_str(), said[35].as_str()), (36, "RW of 56", "RW of 40"));
}

#[test]
fn data_waits_for_buffers_and_for_the_notification() {
    let (mut bench, wire) = Bench::connected();
    wire.state().inbound.extend([5; 200_000]);
    let token = wire.state().token.unwrap();
    bench.port.ready(token, Readiness { readable: true, writable: false }, bench.now);
    let rung = || bench.port.0.rung.load(Ordering::SeqCst);
    while bench.port.turn(bench.now) {}
    assert!(!rung());
    let mut read = 0;
    while let Some((_, payload)) = bench.guest.keep() {
        read += payload.len();
    }
    assert!(read < 200_000, "the guest has less buffers than that");
    assert!(!bench.port.turn(bench.now), "nothing can be done");
    let used_flags = |bench: &Bench| crate::testing::Layout::of(0).used_flags(&bench.guest.driver.memory);
    assert_eq!(used_flags(&bench), 0, "it wants to hear of buffers");
    let (mut bench, wire) = Bench::connected();
    assert_eq!(bench.host(&wire, b"x"), ["RW x"]);
    assert_eq!(used_flags(&bench), 1, "it does not while nobody waits for one");
}

#[test]
fn buffer_for_a_header_only_gets_a_packet_without_payload() {
    let mut bench = Bench::with(0, 44);
    assert_eq!(bench.guest(op::REQUEST, 0, b""), ["RESPONSE"]);
    let wire = bench.board.last();
    wire.state().inbound.extend(b"x");
    bench.port.ready(wire.state().token.unwrap(), Readiness { readable: true, writable: false }, bench.now);
    let _more = bench.port.turn(bench.now);
    let (header, _) = bench.guest.receive().unwrap();
    assert_eq!(line(&header, b""), "CREDIT_UPDATE 0");
    assert!(!bench.guest.driver.needs_reset());
}

#[test]
fn buffer_too_small_for_a_header_fails_the_queue() {
    let mut bench = Bench::with(0, 43);
    assert_eq!(bench.guest(op::REQUEST, 0, b""), NOTHING);
    assert!(bench.guest.driver.needs_reset());
}

#[test]
fn chain_too_short_for_a_header_fails_the_queue() {
    let mut bench = Bench::new();
    bench.guest.driver.send(1, &[crate::testing::Buffer::Read(crate::testing::Driver::BUFFERS, 43)]);
    assert_eq!(bench.turn(), NOTHING);
    assert!(bench.guest.driver.needs_reset());
}

#[test]
fn length_that_lies_is_a_reset() {
    let (mut bench, wire) = Bench::connected();
    assert_eq!(bench.packet(&Bench::header(op::RW, 0, 100), b"short"), ["RST"]);
    assert!(wire.state().outbound.is_empty());
}

#[test]
fn data_after_the_end_is_a_reset() {
    let (mut bench, wire) = Bench::connected();
    assert_eq!(bench.guest(op::SHUTDOWN, SEND, b""), NOTHING);
    assert_eq!(bench.guest(op::RW, 0, b"more"), ["RST"]);
    assert!(wire.state().outbound.is_empty());
}

#[test]
fn packets_for_nobody_are_answered_with_a_reset_and_resets_are_not() {
    let mut bench = Bench::new();
    for number in [op::RESPONSE, op::RW, op::SHUTDOWN, op::CREDIT_UPDATE, op::CREDIT_REQUEST, 0, 8, 0xffff] {
        assert_eq!(bench.guest(number, 0, b""), ["RST"], "op {number}");
    }
    assert_eq!(bench.guest(op::RST, 0, b""), NOTHING);
}

#[test]
fn unknown_op_ends_its_connection() {
    let (mut bench, wire) = Bench::connected();
    assert_eq!(bench.guest(9, 0, b""), ["RST"]);
    assert!(wire.state().is_closed);
}

#[test]
fn second_request_ends_the_connection() {
    let (mut bench, wire) = Bench::connected();
    assert_eq!(bench.guest(op::REQUEST, 0, b""), ["RST"]);
    assert!(wire.state().is_closed);
}

#[test]
fn unknown_type_and_port_are_reset_without_harm_to_others() {
    let (mut bench, wire) = Bench::connected();
    let mut header = Bench::header(op::RW, 0, 0);
    header.kind = 2.into();
    assert!(bench.guest.send(&header, b""));
    let _more = bench.port.turn(bench.now);
    let (reply, _) = bench.guest.receive().unwrap();
    assert_eq!((reply.op.get(), reply.kind.get()), (op::RST, 2));
    let mut header = Bench::header(op::REQUEST, 0, 0);
    header.dst_port = u32::MAX.into();
    assert_eq!(bench.packet(&header, b""), ["RST"]);
    assert!(!wire.state().is_closed);
}

#[test]
fn packet_for_another_cid_is_answered_from_there_and_one_from_another_is_ignored() {
    let mut bench = Bench::new();
    let mut header = Bench::header(op::REQUEST, 0, 0);
    header.dst_cid = 7.into();
    assert!(bench.guest.send(&header, b""));
    let _more = bench.port.turn(bench.now);
    let (reply, _) = bench.guest.receive().unwrap();
    assert_eq!((reply.src_cid.get(), reply.dst_cid.get(), reply.op.get()), (7, 3, op::RST));
    let mut header = Bench::header(op::REQUEST, 0, 0);
    header.src_cid = 4.into();
    assert_eq!(bench.packet(&header, b""), NOTHING);
    assert!(bench.board.calls().made.is_empty());
}

#[test]
fn there_are_no_more_connections_than_the_bound_and_all_of_them_talk() {
    let mut bench = Bench::new();
    let mut request = Bench::header(op::REQUEST, 0, 0);
    for port in 0..u32::try_from(MAX_CONNECTIONS).unwrap() {
        request.src_port = port.into();
        assert_eq!(bench.packet(&request, b""), ["RESPONSE"]);
    }
    request.src_port = 1_000_000.into();
    assert_eq!(bench.packet(&request, b""), ["RST"]);
    let wire = Wire::new();
    assert_eq!(bench.port.open(22, wire.stream(), bench.now), Err(OpenError::TooMany));
    let wires: Vec<Wire> = bench.board.calls().made.iter().filter_map(|(_, wire)| wire.clone()).collect();
    for wire in &wires {
        assert_eq!(bench.host(wire, b"hello"), ["RW hello"]);
    }
    let mut data = Bench::header(op::RW, 0, 5);
    data.src_port = 4095.into();
    assert_eq!(bench.packet(&data, b"world"), NOTHING);
    assert_eq!(wires[4095].state().outbound, b"world");
}

#[test]
fn answers_do_not_pile_up_while_the_guest_offers_no_buffers() {
    let mut bench = Bench::new();
    // All sixteen buffers are used and not offered again.
    for port in 0..16 {
        let mut header = Bench::header(op::RW, 0, 0);
        header.src_port = port.into();
        assert!(bench.guest.send(&header, b""));
        while bench.port.turn(bench.now) {}
    }
    let mut taken = 0;
    for port in 0..1000 {
        let mut header = Bench::header(op::RW, 0, 0);
        header.src_port = port.into();
        taken += u32::from(bench.guest.send(&header, b""));
        while bench.port.turn(bench.now) {}
    }
    assert_eq!(taken, 256 + 4, "the transmit queue waits, with its four packets in it");
    // When there are buffers again, everything goes on.
    let said = bench.turn();
    assert_eq!(said.len(), 16 + 256 + 4);
    assert_eq!(bench.guest(op::REQUEST, 0, b""), ["RESPONSE"]);
}

/// Bytes of a busy connection that the guest gets before those of another, whose turn begins after or before it.
fn bytes_before_the_other(busy_first: bool) -> usize {
    let mut bench = Bench::new();
    let mut wires = Vec::new();
    for port in [1, 2] {
        let mut request = Bench::header(op::REQUEST, 0, 0);
        (request.src_port, request.buf_alloc) = (port.into(), u32::MAX.into());
        assert_eq!(bench.packet(&request, b""), ["RESPONSE"]);
        wires.push(bench.board.last());
    }
    wires[0].state().inbound.extend(vec![1; 10 << 20]);
    wires[1].state().inbound.extend(b"me too");
    if !busy_first {
        wires.reverse();
    }
    for wire in &wires {
        let token = wire.state().token.unwrap();
        bench.port.ready(token, Readiness { readable: true, writable: false }, bench.now);
    }
    let mut before = 0;
    loop {
        let _more = bench.port.turn(bench.now);
        let Some((header, payload)) = bench.guest.receive() else { continue };
        if header.dst_port == 2 {
            return before;
        }
        before += payload.len();
    }
}

#[test]
fn busy_connection_does_not_starve_another() {
    assert!(bytes_before_the_other(true) <= 64 << 10);
    assert_eq!(bytes_before_the_other(false), 0);
}

#[test]
fn reset_of_the_device_closes_everything() {
    let (mut bench, wire) = Bench::connected();
    bench.guest.driver.reset();
    assert!(wire.state().is_closed);
    assert_eq!((bench.open(), bench.port.deadline()), (0, None));
    assert!(!bench.port.turn(bench.now));
}

#[test]
fn transport_reset_is_told_when_there_is_a_buffer_for_it() {
    let (mut bench, wire) = Bench::connected();
    bench.port.reset_transport();
    assert!(wire.state().is_closed);
    assert_eq!(bench.turn(), NOTHING);
    assert_eq!(bench.guest.event(), None);
    bench.guest.offer_event();
    assert!(bench.port.0.rung.load(Ordering::SeqCst), "it asked for the notification");
    assert_eq!(bench.turn(), NOTHING);
    assert_eq!(bench.guest.event(), Some(0));
    assert_eq!(bench.guest(op::REQUEST, 0, b""), ["RESPONSE"]);
}

#[test]
fn driver_that_uses_event_idx_is_served_alike() {
    let mut bench = Bench::with(F_EVENT_IDX, 4096);
    assert_eq!(bench.guest(op::REQUEST, 0, b""), ["RESPONSE"]);
    let wire = bench.board.last();
    for round in 0..100 {
        assert_eq!(bench.guest(op::RW, 0, b"ping"), NOTHING);
        assert_eq!(bench.host(&wire, b"pong"), ["RW pong"], "round {round}");
    }
    assert_eq!(wire.state().outbound.len(), 400);
}

#[test]
fn vcpu_rings_once_for_what_one_turn_takes() {
    static WOKEN: AtomicU64 = AtomicU64::new(0);
    use std::sync::atomic::AtomicU64;
    let wake = || {
        WOKEN.fetch_add(1, Ordering::SeqCst);
    };
    let (device, port) = Vsock::new(CID, Box::new(Switchboard::default()), Box::new(wake));
    let mut guest = GuestSockets::new(device, 0, 4096);
    assert_eq!(WOKEN.load(Ordering::SeqCst), 1, "activation");
    while port.turn(Instant::now()) {}
    for _ in 0..4 {
        assert!(guest.send(&Bench::header(op::RST, 0, 0), b""));
    }
    assert_eq!(WOKEN.load(Ordering::SeqCst), 2);
    while port.turn(Instant::now()) {}
    assert!(guest.send(&Bench::header(op::RST, 0, 0), b""));
    assert_eq!(WOKEN.load(Ordering::SeqCst), 3);
}

#[test]
fn buffer_size_is_told_in_every_packet() {
    let mut bench = Bench::new();
    assert!(bench.guest.send(&Bench::header(op::REQUEST, 0, 0), b""));
    let _more = bench.port.turn(bench.now);
    let (header, _) = bench.guest.receive().unwrap();
    assert_eq!((header.buf_alloc.get(), header.fwd_cnt.get()), (BUFFER, 0));
}

#[test]
fn bytes_stay_in_order_while_host_and_guest_take_turns() {
    let (mut bench, wire) = Bench::connected();
    wire.state().room = 0;
    let data: Vec<u8> = (0..=250).cycle().take(500_000).collect();
    for (round, chunk) in data.chunks(1000).enumerate() {
        bench.guest(op::RW, 0, chunk);
        wire.state().room = if round < 20 { 300 } else { 1100 };
        bench.host(&wire, b"");
    }
    wire.state().room = usize::MAX;
    bench.host(&wire, b"");
    assert!(wire.outbound() == data);
}
