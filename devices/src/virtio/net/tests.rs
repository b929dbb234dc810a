//! The device driven by a guest that speaks frames: what goes in, and what comes out.

use super::*;
use crate::testing::frames::{Cable, GuestNet};
use crate::testing::packets::Shape;
use crate::testing::register;
use crate::virtio::spec::F_EVENT_IDX;
use crate::virtio::spec::net::{
    F_GUEST_ECN, GSO_ECN, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, HDR_DATA_VALID, HDR_NEEDS_CSUM, HEADER_BYTES, Header,
    MAX_FRAME_BYTES, control_announce, control_guest_offloads, control_mac, control_mq, control_rx,
};
use crate::virtio::spec::{INTERRUPT_CONFIG, INTERRUPT_USED};

const MAC: MacAddress = [2, 0, 0, 0, 0, 9];
const SHAPES: [Shape; 4] = [Shape::TCP_V4, Shape::TCP_V6, Shape::UDP_V4, Shape::UDP_V6];
const ALL: Abilities = Abilities { takes: Offloads::ALL, gives: Offloads::ALL, mtu: Some(9000) };
const NOTHING: Abilities = Abilities { takes: Offloads::NONE, gives: Offloads::NONE, mtu: None };
/// What a Linux driver accepts of a device that offers everything.
const LINUX: u64 = ALWAYS | F_GUEST_TSO4 | F_GUEST_TSO6 | F_GUEST_USO4 | F_GUEST_USO6 | F_MTU | F_EVENT_IDX;

struct Bench {
    guest: GuestNet,
    port: NetPort,
    cable: Cable,
    now: Instant,
}

impl Bench {
    fn with(abilities: Abilities, features: u64, pairs: u16, receive_bytes: u32) -> Self {
        let cable = Cable::new(abilities);
        let port = NetPort::new(MAC, pairs, cable.backend(), Box::new(|| ()));
        let device = port.device();
        let features = features & (device.features() | F_EVENT_IDX);
        let guest = GuestNet::new(device, features, pairs, receive_bytes);
        let bench = Self { guest, port, cable, now: Instant::now() };
        bench.turn();
        bench
    }

    fn new(abilities: Abilities) -> Self {
        Self::with(abilities, LINUX, 1, 1536)
    }

    /// Works until there is nothing to do.
    fn turn(&self) {
        while self.port.turn(self.now) {}
        assert_eq!(self.cable.state().violations, 0, "against the contract with back ends");
    }

    /// What of a frame reaches the back end.
    fn send(&mut self, header: &Header, frame: &[u8]) -> Vec<(Vec<u8>, Offload)> {
        assert!(self.guest.send(0, header, frame));
        self.turn();
        self.cable.taken()
    }

    /// What reaches the guest of a frame.
    fn give(&mut self, frame: &[u8], offload: Offload) -> Option<(Header, Vec<u8>)> {
        self.cable.state().inbound.push_back((frame.to_vec(), offload));
        self.turn();
        self.guest.receive(0)
    }

    /// Whether a command is obeyed.
    fn command(&mut self, class: u8, command: u8, data: &[u8]) -> bool {
        self.guest.command(class, command, data);
        self.turn();
        self.guest.answer().expect("an answer")
    }

    /// Bytes of the configuration space, one at a time.
    fn config<const N: usize>(&mut self, offset: u64) -> [u8; N] {
        let mut bytes = [0; N];
        for (byte, at) in bytes.iter_mut().zip(offset..) {
            [*byte] = self.guest.driver.read_config::<1>(at);
        }
        bytes
    }

    fn count(&self, counter: impl Fn(&NetCounters) -> &AtomicU64) -> u64 {
        counter(self.port.counters()).load(Ordering::Relaxed)
    }

    /// The device still works: a frame goes each way.
    fn check_that_it_works(&mut self) {
        assert_eq!(self.send(&Header::default(), &frame(60)), [(frame(60), Offload::default())]);
        assert_eq!(self.give(&frame(61), Offload::default()).map(|(_, frame)| frame), Some(frame(61)));
        assert!(!self.guest.driver.needs_reset());
    }
}

/// A frame of `len` bytes for the device's address, of no protocol that anybody knows.
fn frame(len: usize) -> Vec<u8> {
    let mut frame = [&MAC[..], &[2, 0, 0, 0, 0, 1, 0x88, 0xb5]].concat();
    frame.extend((0..=250).cycle().take(len - frame.len()));
    frame
}

fn bytes(len: usize) -> Vec<u8> {
    (0..=250).cycle().take(len).collect()
}

#[test]
fn frame_reaches_the_back_end_as_it_is() {
    let mut bench = Bench::new(NOTHING);
    for len in [14, 60, 1514, MAX_FRAME_BYTES] {
        assert_eq!(bench.send(&Header::default(), &frame(len)), [(frame(len), Offload::default())], "{len} bytes");
    }
    assert_eq!(bench.count(|counters| &counters.frames_out), 4);
    assert_eq!(bench.count(|counters| &counters.bytes_out), 14 + 60 + 1514 + 65550);
}

#[test]
fn arrangement_of_descriptors_does_not_matter() {
    let mut bench = Bench::new(NOTHING);
    for cuts in [&[][..], &[1, 1, 1], &[11, 2, 3], &[12], &[13], &[12, 14, 20, 20], &[5, 7, 1, 1, 1, 1, 1, 1]] {
        assert!(bench.guest.send_cut(0, &Header::default(), &frame(100), cuts));
        bench.turn();
        assert_eq!(bench.cable.taken(), [(frame(100), Offload::default())], "{cuts:?}");
    }
    // A checksum whose place is in two descriptors, too.
    let shape = Shape::TCP_V4;
    let frame = shape.frame(&bytes(100));
    assert!(bench.guest.send_cut(0, &shape.header(0), &frame, &[12, shape.transport() + 17, 1, 30]));
    bench.turn();
    assert_eq!(shape.check(&bench.cable.taken()[0].0), Ok(bytes(100)));
}

#[test]
fn what_the_back_end_can_do_decides_what_the_driver_may_receive() {
    let features =
        |abilities| NetPort::new(MAC, 1, Cable::new(abilities).backend(), Box::new(|| ())).device().features();
    assert_eq!(features(NOTHING), ALWAYS);
    assert_eq!(features(ALL), LINUX & !F_EVENT_IDX);
    let only = |gives| features(Abilities { gives, ..NOTHING }) & !ALWAYS;
    assert_eq!(only(Offloads { checksum: true, ..Offloads::NONE }), 0);
    assert_eq!(only(Offloads { checksum: true, tcp_v4: true, ..Offloads::NONE }), F_GUEST_TSO4);
    assert_eq!(only(Offloads { checksum: true, udp_v6: true, ..Offloads::NONE }), F_GUEST_USO6);
    assert_eq!(only(Offloads { tcp_v6: true, ..Offloads::NONE }), 0, "not without checksums");
    assert_eq!(features(ALL) & F_GUEST_ECN, 0);
    let many = NetPort::new(MAC, 4, Cable::new(NOTHING).backend(), Box::new(|| ())).device();
    assert_eq!((many.features(), many.queue_sizes().len()), (ALWAYS | F_MQ, 9));
}

#[test]
fn configuration_space_tells_address_link_pairs_and_mtu() {
    let mut bench = Bench::with(ALL, LINUX, 1, 1536);
    assert_eq!(bench.config::<12>(0), [2, 0, 0, 0, 0, 9, 1, 0, 1, 0, 0x28, 0x23]);
    bench.guest.driver.write_config(0, &[1; 4]);
    assert_eq!(bench.config::<6>(0), MAC);
}

#[test]
fn offloads_that_the_back_end_takes_are_handed_on() {
    let mut bench = Bench::new(ALL);
    for shape in SHAPES {
        let frame = shape.frame(&bytes(5000));
        let checksum = Checksum::Partial { start: u16::try_from(shape.transport()).unwrap(), offset: shape.checksum() };
        let sent = bench.send(&shape.header(0), &frame);
        assert_eq!(sent, [(frame.clone(), Offload { checksum, segmentation: None })], "{shape:?}");
        let segmentation = Some(Segmentation {
            protocol: shape.protocol(),
            segment_bytes: 1448,
            header_bytes: u16::try_from(shape.payload()).unwrap(),
            ecn: shape.is_tcp,
        });
        let sent = bench.send(&shape.header(1448), &frame);
        assert_eq!(sent, [(frame, Offload { checksum, segmentation })], "{shape:?}");
    }
    assert_eq!((bench.count(|counters| &counters.checksums), bench.count(|counters| &counters.segments)), (0, 0));
}

#[test]
fn checksums_that_the_back_end_does_not_take_are_computed() {
    let mut bench = Bench::new(NOTHING);
    for shape in SHAPES {
        for len in [0, 1, 2, 99, 1460, 60_001] {
            let payload = bytes(len);
            let sent = bench.send(&shape.header(0), &shape.frame(&payload));
            assert_eq!(sent.len(), 1);
            assert_eq!(sent[0].1, Offload::default());
            assert_eq!(shape.check(&sent[0].0), Ok(payload), "{shape:?}, {len} bytes");
        }
    }
    assert_eq!(bench.count(|counters| &counters.checksums), 24);
}

#[test]
fn udp_checksum_that_is_zero_is_sent_as_the_other_zero() {
    let mut bench = Bench::new(NOTHING);
    let shape = Shape::UDP_V4;
    // Two bytes that make it zero: what the checksum is with zeroes in their place.
    let sent = bench.send(&shape.header(0), &shape.frame(&[0, 0]));
    let at = shape.transport() + 6;
    let payload = [sent[0].0[at], sent[0].0[at + 1]];
    let sent = bench.send(&shape.header(0), &shape.frame(&payload));
    assert_eq!(sent[0].0[at..at + 2], [0xff, 0xff]);
    let sent = bench.send(&shape.header(1000), &shape.frame(&payload));
    assert_eq!(sent[0].0[at..at + 2], [0xff, 0xff]);
}

#[test]
fn frames_that_the_back_end_does_not_cut_are_cut() {
    let mut bench = Bench::new(NOTHING);
    let tagged = SHAPES.map(|shape| Shape { is_tagged: true, ..shape });
    for shape in SHAPES.into_iter().chain(tagged) {
        for (len, segment) in [(0, 1000), (1, 1000), (1000, 1000), (1001, 1000), (3333, 1448), (60_000, 1447), (9, 1)] {
            let frame = shape.frame(&bytes(len));
            let sent = bench.send(&shape.header(segment), &frame);
            assert!(sent.iter().all(|(_, offload)| *offload == Offload::default()));
            let frames: Vec<Vec<u8>> = sent.into_iter().map(|(frame, _)| frame).collect();
            shape.check_segments(&frame, segment.into(), &frames);
        }
    }
    assert_eq!(bench.count(|counters| &counters.frames_out), 56);
    assert_eq!(bench.count(|counters| &counters.segments), 8 * (1 + 1 + 1 + 2 + 3 + 42 + 9));
}

#[test]
fn back_end_that_takes_checksums_but_no_large_frames_gets_whole_ones() {
    let takes = Offloads { checksum: true, ..Offloads::NONE };
    let mut bench = Bench::new(Abilities { takes, ..NOTHING });
    let frame = Shape::TCP_V6.frame(&bytes(2500));
    let frames: Vec<Vec<u8>> =
        bench.send(&Shape::TCP_V6.header(1000), &frame).into_iter().map(|(frame, _)| frame).collect();
    Shape::TCP_V6.check_segments(&frame, 1000, &frames);
}

#[test]
fn cutting_goes_on_where_the_back_end_was_full() {
    let mut bench = Bench::new(NOTHING);
    let shape = Shape::TCP_V4;
    let frame = shape.frame(&bytes(10_000));
    bench.cable.state().room = 3;
    assert_eq!(bench.send(&shape.header(1000), &frame).len(), 3);
    assert_eq!((bench.guest.waiting(0), bench.count(|counters| &counters.full)), (1, 1));
    bench.cable.state().sent = Vec::new();
    let mut frames = Vec::new();
    for _ in 0..7 {
        bench.cable.state().room = 1;
        bench.turn();
        frames.extend(bench.cable.taken());
    }
    assert_eq!((frames.len(), bench.guest.waiting(0)), (7, 0));
    for (at, (frame, _)) in frames.iter().enumerate() {
        assert_eq!(shape.check(frame), Ok(bytes(10_000)[(at + 3) * 1000..(at + 4) * 1000].to_vec()));
    }
}

#[test]
fn frame_stays_in_the_queue_while_the_back_end_is_full() {
    let mut bench = Bench::new(NOTHING);
    bench.cable.state().room = 0;
    assert!(bench.send(&Header::default(), &frame(60)).is_empty());
    assert!(bench.send(&Header::default(), &frame(61)).is_empty());
    assert_eq!(bench.guest.waiting(0), 2);
    // The other direction is not in its way.
    assert_eq!(bench.give(&frame(62), Offload::default()).unwrap().1, frame(62));
    bench.cable.state().room = 9;
    bench.turn();
    let sent: Vec<usize> = bench.cable.taken().iter().map(|(frame, _)| frame.len()).collect();
    assert_eq!((sent, bench.guest.waiting(0)), (vec![60, 61], 0));
}

/// A good header of a TCP frame, changed.
fn lie(change: impl FnOnce(&mut Header)) -> Header {
    let mut header = Shape::TCP_V4.header(1000);
    change(&mut header);
    header
}

#[test]
fn headers_that_lie_cost_their_frame_and_nothing_else() {
    let frame = Shape::TCP_V4.frame(&bytes(2000));
    let len = u16::try_from(frame.len()).unwrap();
    let lies = [
        lie(|header| header.csum_start = len.into()),
        lie(|header| header.csum_start = (len - 17).into()),
        lie(|header| header.csum_offset = u16::MAX.into()),
        lie(|header| (header.csum_start, header.csum_offset) = (u16::MAX.into(), u16::MAX.into())),
        lie(|header| header.csum_start = 13.into()),
        lie(|header| header.gso_size = 0.into()),
        lie(|header| header.flags = 0),
        lie(|header| header.gso_type = 3),
        lie(|header| header.gso_type = 0x7f),
        // Headers that end too far behind.
        lie(|header| header.csum_start = 300.into()),
        // Not what it says it is: IPv6, or IP's header where TCP's is.
        lie(|header| header.gso_type = GSO_TCPV6),
        lie(|header| header.csum_start = 20.into()),
    ];
    let mut bench = Bench::new(NOTHING);
    for header in &lies {
        assert!(bench.send(header, &frame).is_empty(), "{header:?}");
    }
    assert_eq!((bench.count(|counters| &counters.malformed), bench.guest.waiting(0)), (12, 0));
    bench.check_that_it_works();
}

#[test]
fn frames_of_impossible_lengths_are_lost() {
    let mut bench = Bench::new(NOTHING);
    assert!(bench.send(&Header::default(), &frame(14)[..13]).is_empty());
    assert!(bench.send(&Header::default(), &[]).is_empty());
    assert!(bench.send(&Header::default(), &frame(MAX_FRAME_BYTES + 1)).is_empty());
    // TCP's header says that it is longer than the frame.
    let mut frame = Shape::TCP_V4.frame(&[]);
    frame[Shape::TCP_V4.transport() + 12] = 0xf0;
    assert!(bench.send(&Shape::TCP_V4.header(1000), &frame).is_empty());
    assert_eq!(bench.count(|counters| &counters.malformed), 4);
    bench.check_that_it_works();
}

#[test]
fn offload_that_was_not_negotiated_costs_its_frame() {
    let tcp = |features| {
        let mut bench = Bench::with(ALL, features, 1, 1536);
        let frame = Shape::TCP_V4.frame(&bytes(2000));
        (bench.send(&Shape::TCP_V4.header(0), &frame).len(), bench.send(&Shape::TCP_V4.header(1000), &frame).len())
    };
    assert_eq!(tcp(LINUX), (1, 1));
    assert_eq!(tcp(LINUX & !F_HOST_TSO4), (1, 0));
    assert_eq!(tcp(LINUX & !F_CSUM), (0, 0));
    let mut bench = Bench::with(ALL, LINUX & !F_HOST_USO, 1, 1536);
    assert!(bench.send(&Shape::UDP_V4.header(1000), &Shape::UDP_V4.frame(&bytes(2000))).is_empty());
}

#[test]
fn chain_without_room_for_a_header_fails_the_queue() {
    let mut bench = Bench::new(NOTHING);
    bench.guest.driver.send(1, &[crate::testing::Buffer::Read(crate::testing::Driver::BUFFERS, 11)]);
    bench.turn();
    assert!(bench.guest.driver.needs_reset());
    let mut bench = Bench::with(NOTHING, LINUX, 1, 11);
    assert!(bench.give(&frame(60), Offload::default()).is_none());
    assert!(bench.guest.driver.needs_reset());
}

#[test]
fn failed_receive_queue_does_not_stop_what_the_guest_sends() {
    let mut bench = Bench::with(NOTHING, LINUX, 1, 11);
    assert!(bench.give(&frame(60), Offload::default()).is_none());
    bench.cable.give(&frame(60));
    assert_eq!(bench.send(&Header::default(), &frame(70)).len(), 1);
    assert_eq!(bench.cable.state().inbound.len(), 0, "dropped, since nobody will ever take it");
}

#[test]
fn frame_reaches_the_guest_in_as_many_buffers_as_it_needs() {
    for buffer in [100, 1536, 4096] {
        let mut bench = Bench::with(ALL, LINUX, 1, buffer);
        for len in [14, 60, 88, 89, 1500, 1524, 1525] {
            bench.guest.refill(0);
            let (header, received) = bench.give(&frame(len), Offload::default()).unwrap();
            assert_eq!(received, frame(len), "{len} bytes in buffers of {buffer}");
            let count = (len + HEADER_BYTES).div_ceil(usize::try_from(buffer).unwrap());
            assert_eq!(usize::from(header.num_buffers.get()), count);
        }
    }
    let mut bench = Bench::with(ALL, LINUX, 1, 8192);
    assert_eq!(bench.give(&frame(MAX_FRAME_BYTES), Offload::default()).unwrap().1, frame(MAX_FRAME_BYTES));
    assert_eq!(bench.count(|counters| &counters.bytes_in), 65550);
}

#[test]
fn without_mergeable_buffers_a_frame_has_one() {
    let mut bench = Bench::with(ALL, LINUX & !F_MRG_RXBUF, 1, 1536);
    let (header, received) = bench.give(&frame(1524), Offload::default()).unwrap();
    assert_eq!((header.num_buffers.get(), received), (1, frame(1524)));
    assert!(bench.give(&frame(1525), Offload::default()).is_none(), "and if it does not fit, it is lost");
    assert_eq!(bench.cable.state().lost, 1);
    bench.check_that_it_works();
}

#[test]
fn frame_that_will_never_fit_is_lost() {
    // All sixteen buffers have less.
    let mut bench = Bench::with(ALL, LINUX, 1, 1024);
    assert!(bench.give(&frame(20_000), Offload::default()).is_none());
    assert_eq!(bench.cable.state().lost, 1);
    bench.check_that_it_works();
}

#[test]
fn room_that_a_frame_did_not_need_is_for_the_next() {
    let mut bench = Bench::with(ALL, LINUX, 1, 1024);
    bench.cable.state().exaggerates = 10_000;
    for len in [60, 3000, 61] {
        assert_eq!(bench.give(&frame(len), Offload::default()).unwrap().1, frame(len));
    }
}

#[test]
fn what_is_still_to_be_done_is_told_to_the_guest() {
    let mut bench = Bench::new(ALL);
    let shape = Shape::TCP_V6;
    let frame = shape.frame(&bytes(1000));
    let checksum = Checksum::Partial { start: 54, offset: 16 };
    let (header, _) = bench.give(&frame, Offload { checksum, segmentation: None }).unwrap();
    let start = (header.csum_start.get(), header.csum_offset.get());
    assert_eq!((header.flags, header.gso_type, start), (HDR_NEEDS_CSUM, 0, (54, 16)));
    for (protocol, kind) in [(Protocol::TcpV4, GSO_TCPV4), (Protocol::TcpV6, GSO_TCPV6), (Protocol::Udp, GSO_UDP_L4)] {
        let segmentation = Some(Segmentation { protocol, segment_bytes: 500, header_bytes: 86, ecn: false });
        let (header, _) = bench.give(&frame, Offload { checksum, segmentation }).unwrap();
        let told = (header.gso_type, header.gso_size.get(), header.hdr_len.get());
        assert_eq!(told, (kind, 500, 86));
    }
    let valid = Offload { checksum: Checksum::Valid, segmentation: None };
    assert_eq!(bench.give(&frame, valid).unwrap().0.flags, HDR_DATA_VALID);
    assert_eq!(bench.give(&frame, Offload::default()).unwrap().0.flags, 0);
    let mut bench = Bench::with(ALL, LINUX & !F_GUEST_CSUM, 1, 1536);
    assert_eq!(bench.give(&frame, valid).unwrap().0.flags, 0, "flags are for a driver that knows checksums");
    assert_eq!(bench.cable.state().accepted, Some(Offloads::NONE), "and no offload is without them");
}

#[test]
fn guest_without_buffers_is_not_asked_for() {
    let mut bench = Bench::with(ALL, LINUX, 1, 4096);
    (0..40).for_each(|_| bench.cable.give(&frame(4000)));
    bench.turn();
    let mut received = 0;
    while bench.guest.keep(0).is_some() {
        received += 1;
    }
    assert_eq!(received + bench.cable.state().inbound.len(), 40);
    assert_eq!(bench.cable.state().lost, 0);
    assert!(received < 40 && bench.count(|counters| &counters.starved) >= 1);
    assert!(!bench.port.turn(bench.now), "nothing can be done");
    // Buffers ring the bell, and everything goes on.
    assert!(!bench.port.0.rung.load(Ordering::SeqCst));
    bench.guest.refill(0);
    assert!(bench.port.0.rung.load(Ordering::SeqCst), "it asked for the notification");
    bench.turn();
    while bench.guest.receive(0).is_some() {
        received += 1;
        bench.turn();
    }
    assert_eq!(received, 40);
}

#[test]
fn buffers_ring_no_bell_while_nothing_waits_for_them() {
    let mut bench = Bench::with(ALL, LINUX & !F_EVENT_IDX, 1, 4096);
    assert_eq!(bench.give(&frame(60), Offload::default()).unwrap().1.len(), 60);
    bench.guest.refill(0);
    assert!(!bench.port.0.rung.load(Ordering::SeqCst));
}

#[test]
fn neither_direction_keeps_the_other_waiting() {
    let mut bench = Bench::with(ALL, LINUX, 1, 8192);
    let shape = Shape::TCP_V4;
    let takes = Abilities { takes: Offloads::NONE, ..ALL };
    let mut cutting = Bench::with(takes, LINUX, 1, 8192);
    // 60,000 frames of one byte each, in one of the guest's.
    assert!(cutting.guest.send(0, &shape.header(1), &shape.frame(&bytes(60_000))));
    cutting.cable.give(&frame(60));
    assert!(cutting.port.turn(cutting.now), "there is more");
    assert!(cutting.guest.receive(0).is_some(), "the other direction had its turn");
    assert!(cutting.cable.taken().len() <= 256);
    // And the other way round.
    (0..1000).for_each(|_| bench.cable.give(&frame(60)));
    assert!(bench.guest.send(0, &Header::default(), &frame(61)));
    let _more = bench.port.turn(bench.now);
    assert_eq!(bench.cable.taken().len(), 1);
}

#[test]
fn frames_for_others_are_filtered() {
    let mut bench = Bench::new(ALL);
    let to = |address: MacAddress| [&address[..], &frame(60)[6..]].concat();
    let (other, group) = ([2, 0, 0, 0, 0, 7], [0x33, 0x33, 0, 0, 0, 1]);
    assert!(bench.give(&to(other), Offload::default()).is_none());
    assert!(bench.give(&to(group), Offload::default()).is_some());
    assert!(bench.give(&to([0xff; 6]), Offload::default()).is_some());
    assert_eq!(bench.count(|counters| &counters.filtered), 1);
    assert!(bench.command(control_rx::CLASS, control_rx::PROMISC, &[1]));
    assert!(bench.give(&to(other), Offload::default()).is_some());
    assert!(bench.command(control_rx::CLASS, control_rx::PROMISC, &[0]));
    let tables = [&[1, 0, 0, 0][..], &other, &[0, 0, 0, 0]].concat();
    assert!(bench.command(control_mac::CLASS, control_mac::TABLE_SET, &tables));
    assert!(bench.give(&to(other), Offload::default()).is_some());
    assert!(bench.give(&to(group), Offload::default()).is_none());
    assert!(bench.command(control_mac::CLASS, control_mac::ADDR_SET, &[2, 0, 0, 0, 0, 8]));
    assert!(bench.give(&to([2, 0, 0, 0, 0, 8]), Offload::default()).is_some());
    assert!(bench.give(&frame(60), Offload::default()).is_none(), "the address of before");
    assert_eq!(bench.config::<6>(0), [2, 0, 0, 0, 0, 8]);
    bench.guest.driver.reset();
    assert_eq!(bench.config::<6>(0), MAC, "a new driver finds it as it was");
}

#[test]
fn commands_that_lie_are_refused() {
    let mut bench = Bench::with(ALL, LINUX | F_MQ, 2, 1536);
    let refused: [(u8, u8, &[u8]); 16] = [
        (control_rx::CLASS, 6, &[1]),
        (control_rx::CLASS, control_rx::PROMISC, &[]),
        (control_mac::CLASS, control_mac::TABLE_SET, &[]),
        (control_mac::CLASS, control_mac::TABLE_SET, &[0xff, 0xff, 0xff, 0xff]),
        (control_mac::CLASS, control_mac::TABLE_SET, &[1, 0, 0, 0, 2, 0, 0, 0, 0, 1]),
        (control_mac::CLASS, control_mac::ADDR_SET, &[1, 2, 3]),
        (control_mac::CLASS, 2, &[0; 16]),
        (2, 0, &[1, 0]),
        (control_announce::CLASS, 1, &[]),
        (control_mq::CLASS, control_mq::VQ_PAIRS_SET, &[0, 0]),
        (control_mq::CLASS, control_mq::VQ_PAIRS_SET, &[3, 0]),
        (control_mq::CLASS, control_mq::VQ_PAIRS_SET, &[1]),
        (control_mq::CLASS, 1, &[0; 64]),
        (control_guest_offloads::CLASS, control_guest_offloads::SET, &[1, 0, 0, 0, 0, 0, 0, 0]),
        (control_guest_offloads::CLASS, control_guest_offloads::SET, &[2, 0, 0, 0]),
        (99, 99, &[]),
    ];
    for (class, command, data) in refused {
        assert!(!bench.command(class, command, data), "{class} {command} {data:?}");
    }
    assert_eq!(bench.count(|counters| &counters.commands), 16);
    bench.check_that_it_works();
}

#[test]
fn table_with_many_entries_is_looked_past() {
    let mut bench = Bench::new(ALL);
    let mut tables = 100u32.to_le_bytes().to_vec();
    tables.extend([2, 0, 0, 0, 0, 7].repeat(100));
    tables.extend([0; 4]);
    assert!(bench.command(control_mac::CLASS, control_mac::TABLE_SET, &tables));
    let anybody = [&[2, 9, 9, 9, 9, 9][..], &frame(60)[6..]].concat();
    assert!(bench.give(&anybody, Offload::default()).is_some(), "more than are kept: all are let through");
}

#[test]
fn command_whose_feature_was_not_negotiated_is_refused() {
    let features = LINUX & !(F_CTRL_RX | F_CTRL_RX_EXTRA | F_CTRL_MAC_ADDR | F_CTRL_GUEST_OFFLOADS | F_GUEST_ANNOUNCE);
    let mut bench = Bench::with(ALL, features, 1, 1536);
    assert!(!bench.command(control_rx::CLASS, control_rx::PROMISC, &[1]));
    assert!(!bench.command(control_rx::CLASS, control_rx::NOBCAST, &[1]));
    assert!(!bench.command(control_mac::CLASS, control_mac::TABLE_SET, &[0; 8]));
    assert!(!bench.command(control_mac::CLASS, control_mac::ADDR_SET, &[2; 6]));
    assert!(!bench.command(control_announce::CLASS, control_announce::ACK, &[]));
    assert!(!bench.command(control_mq::CLASS, control_mq::VQ_PAIRS_SET, &[1, 0]));
    assert!(!bench.command(control_guest_offloads::CLASS, control_guest_offloads::SET, &[2, 0, 0, 0, 0, 0, 0, 0]));
}

#[test]
fn command_without_room_for_the_answer_fails_the_queue() {
    let mut bench = Bench::new(ALL);
    bench.guest.driver.send(2, &[crate::testing::Buffer::Read(crate::testing::Driver::BUFFERS, 3)]);
    bench.turn();
    assert!(bench.guest.driver.needs_reset());
}

#[test]
fn driver_says_which_offloads_it_takes() {
    let mut bench = Bench::new(Abilities { gives: Offloads { udp_v6: false, ..Offloads::ALL }, ..ALL });
    let accepted = |bench: &Bench| bench.cable.state().accepted;
    assert_eq!(accepted(&bench), Some(Offloads { udp_v6: false, ..Offloads::ALL }));
    let mut set = |bits: u64| {
        let done = bench.command(control_guest_offloads::CLASS, control_guest_offloads::SET, &bits.to_le_bytes());
        (done, accepted(&bench))
    };
    assert_eq!(set(0), (true, Some(Offloads::NONE)));
    assert_eq!(set(F_GUEST_CSUM), (true, Some(Offloads { checksum: true, ..Offloads::NONE })));
    assert_eq!(set(F_GUEST_TSO4), (true, Some(Offloads::NONE)), "not without checksums");
    let both = Some(Offloads { checksum: true, tcp_v6: true, ..Offloads::NONE });
    assert_eq!(set(F_GUEST_CSUM | F_GUEST_TSO6), (true, both));
    assert_eq!(set(F_GUEST_USO6), (false, both), "was not offered");
}

/// Frames of some flows, as the guest sends them and as they come back.
fn flow_frames(flows: u8) -> Vec<(Vec<u8>, Vec<u8>)> {
    let frame = |flow: u8| {
        let shape = Shape::TCP_V4;
        let (mut there, mut back) = (shape.frame(&[flow]), shape.frame(&[flow]));
        let (network, transport) = (shape.network(), shape.transport());
        there[transport + 1] = flow;
        back[network + 12..network + 20].copy_from_slice(&[10, 0, 0, 2, 10, 0, 0, 1]);
        back[transport..transport + 4].copy_from_slice(&[7, 0xd0, 3, flow]);
        (there, back)
    };
    (0..flows).map(frame).collect()
}

#[test]
fn flow_is_received_on_the_pair_that_it_was_sent_on() {
    let mut bench = Bench::with(ALL, LINUX | F_MQ, 3, 1536);
    assert_eq!(bench.guest.driver.read_config::<2>(8), [3, 0]);
    assert!(bench.command(control_mq::CLASS, control_mq::VQ_PAIRS_SET, &[3, 0]));
    let frames = flow_frames(12);
    for ((there, _), pair) in frames.iter().zip([0, 1, 2].into_iter().cycle()) {
        assert!(bench.guest.send(pair, &Header::default(), there));
        bench.turn();
    }
    assert_eq!(bench.cable.taken().len(), 12);
    for ((_, back), pair) in frames.iter().zip([0, 1, 2].into_iter().cycle()) {
        bench.cable.give(back);
        bench.turn();
        assert_eq!(bench.guest.receive(pair).map(|(_, frame)| frame).as_ref(), Some(back), "pair {pair}");
    }
    // Fewer pairs: nothing goes to those that are not used.
    assert!(bench.command(control_mq::CLASS, control_mq::VQ_PAIRS_SET, &[1, 0]));
    for (_, back) in &frames {
        bench.cable.give(back);
        bench.turn();
        assert_eq!(bench.guest.receive(0).map(|(_, frame)| frame).as_ref(), Some(back));
    }
}

#[test]
fn driver_that_sets_no_number_of_pairs_has_one() {
    let mut bench = Bench::with(ALL, LINUX | F_MQ, 3, 1536);
    for (_, back) in flow_frames(20) {
        bench.cable.give(&back);
        bench.turn();
        assert!(bench.guest.receive(0).is_some());
    }
}

#[test]
fn driver_without_mq_has_its_control_queue_behind_the_first_pair() {
    let mut bench = Bench::with(ALL, LINUX, 3, 1536);
    assert!(bench.command(control_rx::CLASS, control_rx::ALLMULTI, &[1]));
    bench.check_that_it_works();
}

#[test]
fn pairs_take_turns_while_the_back_end_is_slow() {
    let mut bench = Bench::with(NOTHING, LINUX | F_MQ, 3, 1536);
    bench.cable.state().room = 0;
    for pair in 0..3 {
        assert!(bench.guest.send(pair, &Header::default(), &frame(60 + usize::from(pair))));
    }
    bench.turn();
    let mut order = Vec::new();
    for _ in 0..3 {
        bench.cable.state().room = 1;
        bench.turn();
        order.extend(bench.cable.taken().iter().map(|(frame, _)| frame.len()));
    }
    order.sort_unstable();
    assert_eq!(order, [60, 61, 62]);
}

#[test]
fn link_that_goes_down_and_up_is_told() {
    let mut bench = Bench::new(ALL);
    let status = |bench: &mut Bench| u16::from_le_bytes(bench.guest.driver.read_config::<2>(6));
    assert_eq!(status(&mut bench), 1);
    let generation = bench.guest.driver.read(register::CONFIG_GENERATION);
    bench.guest.driver.write(register::INTERRUPT_ACK, 3);
    bench.cable.state().is_up = false;
    bench.turn();
    assert_eq!((status(&mut bench), bench.guest.driver.read(register::INTERRUPT_STATUS)), (0, INTERRUPT_CONFIG));
    assert_ne!(bench.guest.driver.read(register::CONFIG_GENERATION), generation);
    bench.guest.driver.write(register::INTERRUPT_ACK, INTERRUPT_CONFIG);
    // Back, and the guest shall make itself known to whoever is there now.
    bench.cable.state().is_up = true;
    bench.turn();
    assert_eq!((status(&mut bench), bench.guest.driver.read(register::INTERRUPT_STATUS)), (3, INTERRUPT_CONFIG));
    assert!(bench.command(control_announce::CLASS, control_announce::ACK, &[]));
    assert_eq!((status(&mut bench), bench.count(|counters| &counters.link_changes)), (1, 2));
    let _more = bench.port.turn(bench.now);
    assert_eq!(bench.count(|counters| &counters.link_changes), 2);
}

#[test]
fn driver_that_cannot_announce_itself_is_not_asked_to() {
    let mut bench = Bench::with(ALL, LINUX & !F_GUEST_ANNOUNCE, 1, 1536);
    bench.cable.state().is_up = false;
    bench.turn();
    bench.cable.state().is_up = true;
    bench.turn();
    assert_eq!(bench.guest.driver.read_config::<2>(6), [1, 0]);
}

#[test]
fn link_that_changes_before_there_is_a_driver_is_known_to_it() {
    let cable = Cable::new(ALL);
    cable.state().is_up = false;
    let port = NetPort::new(MAC, 1, cable.backend(), Box::new(|| ()));
    let mut status = [0; 2];
    port.device().read_config(6, &mut status);
    assert_eq!(status, [0, 0]);
    cable.state().is_up = true;
    assert!(!port.turn(Instant::now()));
    port.device().read_config(6, &mut status);
    assert_eq!(status, [1, 0]);
}

#[test]
fn reset_drops_what_waits_and_the_next_driver_starts_afresh() {
    let mut bench = Bench::with(ALL, LINUX, 1, 1536);
    assert!(bench.command(control_rx::CLASS, control_rx::NOBCAST, &[1]));
    bench.cable.state().room = 0;
    assert!(bench.send(&Header::default(), &frame(60)).is_empty());
    bench.cable.give(&frame(60));
    bench.guest.driver.reset();
    bench.turn();
    {
        let state = bench.cable.state();
        assert_eq!((state.resets, state.inbound.len(), state.accepted), (1, 0, None));
    }
    bench.cable.give(&frame(61));
    bench.turn();
    assert_eq!(bench.cable.state().inbound.len(), 1, "without a driver nobody asks for frames");
    bench.cable.state().room = 9;
    assert!(bench.cable.taken().is_empty());
    // A driver that comes back does not see what was before.
    let Bench { port, cable, now, .. } = bench;
    let guest = GuestNet::new(port.device(), LINUX, 1, 1536);
    let mut bench = Bench { guest, port, cable, now };
    let _more = bench.port.turn(now);
    assert_eq!(bench.guest.receive(0).map(|(_, frame)| frame.len()), Some(61));
    assert!(bench.give(&[&[0xff; 6][..], &frame(60)[6..]].concat(), Offload::default()).is_some());
    bench.check_that_it_works();
}

#[test]
fn device_that_was_replaced_does_not_disturb_the_new_one() {
    let mut bench = Bench::new(ALL);
    let mut old = bench.port.device();
    let guest = GuestNet::new(bench.port.device(), LINUX, 1, 1536);
    bench.guest = guest;
    bench.turn();
    old.reset();
    drop(old);
    bench.check_that_it_works();
    assert_eq!(bench.cable.state().resets, 0);
}

#[test]
fn every_combination_of_features_carries_frames_both_ways() {
    for event_idx in [0, F_EVENT_IDX] {
        for mergeable in [0, F_MRG_RXBUF] {
            for csum in [0, F_CSUM, F_GUEST_CSUM, F_CSUM | F_GUEST_CSUM] {
                for large in [0, F_HOST_TSO4 | F_HOST_TSO6 | F_HOST_USO, F_GUEST_TSO4 | F_GUEST_USO4] {
                    for abilities in [ALL, NOTHING] {
                        let features = F_MAC | F_STATUS | F_CTRL_VQ | event_idx | mergeable | csum | large;
                        let mut bench = Bench::with(abilities, features, 1, 1536);
                        (0..40).for_each(|_| bench.check_that_it_works());
                    }
                }
            }
        }
    }
}

#[test]
fn vcpu_rings_once_for_what_one_turn_takes() {
    static WOKEN: AtomicU64 = AtomicU64::new(0);
    let wake = || {
        WOKEN.fetch_add(1, Ordering::SeqCst);
    };
    let port = NetPort::new(MAC, 1, Cable::new(ALL).backend(), Box::new(wake));
    let mut guest = GuestNet::new(port.device(), LINUX, 1, 1536);
    assert_eq!(WOKEN.load(Ordering::SeqCst), 1, "activation");
    while port.turn(Instant::now()) {}
    assert!(guest.send(0, &Header::default(), &frame(60)));
    assert!(guest.send(0, &Header::default(), &frame(60)));
    assert_eq!(WOKEN.load(Ordering::SeqCst), 2);
    while port.turn(Instant::now()) {}
    assert!(guest.send(0, &Header::default(), &frame(60)));
    assert_eq!(WOKEN.load(Ordering::SeqCst), 3);
}

#[test]
fn driver_is_interrupted_once_for_the_frames_of_a_turn() {
    let mut bench = Bench::with(ALL, LINUX & !F_EVENT_IDX, 1, 4096);
    let before = bench.guest.driver.transport.counters().interrupts;
    (0..4).for_each(|_| bench.cable.give(&frame(60)));
    bench.turn();
    assert_eq!(bench.guest.driver.transport.counters().interrupts, before + 1);
    assert_ne!(bench.guest.driver.read(register::INTERRUPT_STATUS) & INTERRUPT_USED, 0);
    assert_eq!(u64::from(bench.cable.state().flushes), bench.count(|counters| &counters.wakeups));
}

#[test]
fn driver_with_event_idx_hears_of_frames_in_many_buffers() {
    // Its event is the first buffer of three, and stays there: it must be heard as one of them all the same.
    let mut bench = Bench::with(ALL, LINUX, 1, 1024);
    let layout = crate::testing::Layout::of(0);
    for _ in 0..50 {
        bench.guest.driver.write(register::INTERRUPT_ACK, 3);
        layout.set_used_event(&bench.guest.driver.memory, layout.used_idx(&bench.guest.driver.memory));
        assert_eq!(bench.give(&frame(2500), Offload::default()).unwrap().0.num_buffers.get(), 3);
        assert_eq!(bench.guest.driver.read(register::INTERRUPT_STATUS), INTERRUPT_USED);
    }
}

#[test]
fn congestion_that_was_noticed_is_handed_on() {
    let mut bench = Bench::new(ALL);
    let mut header = Shape::TCP_V4.header(1000);
    let frame = Shape::TCP_V4.frame(&bytes(2000));
    let ecn = |sent: &[(Vec<u8>, Offload)]| sent[0].1.segmentation.unwrap().ecn;
    assert!(ecn(&bench.send(&header, &frame)));
    header.gso_type &= !GSO_ECN;
    assert!(!ecn(&bench.send(&header, &frame)));
}
