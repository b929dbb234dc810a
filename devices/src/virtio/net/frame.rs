//! Frames and what is still to be done with them: the vocabulary of device and back ends.
//!
//! A frame begins with its Ethernet header. Its bytes are in guest memory, which the guest may change at any time: read what you
//! decide by once, into a local.

use vm_memory::VolatileSlice;

/// Which kinds of frames one side hands over unfinished and the other takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "five independent abilities, each with a name")]
pub struct Offloads {
    /// [`Checksum::Partial`].
    pub checksum: bool,
    /// [`Protocol::TcpV4`]; only with `checksum`.
    pub tcp_v4: bool,
    /// [`Protocol::TcpV6`]; only with `checksum`.
    pub tcp_v6: bool,
    /// [`Protocol::Udp`] over IPv4; only with `checksum`.
    pub udp_v4: bool,
    /// [`Protocol::Udp`] over IPv6; only with `checksum`.
    pub udp_v6: bool,
}

impl Offloads {
    /// Frames as they go over the wire.
    pub const NONE: Self = Self { checksum: false, tcp_v4: false, tcp_v6: false, udp_v4: false, udp_v6: false };
    /// Everything.
    pub const ALL: Self = Self { checksum: true, tcp_v4: true, tcp_v6: true, udp_v4: true, udp_v6: true };

    /// Whether a frame that is to be cut like this is among them.
    #[must_use]
    pub fn take(&self, segmentation: &Segmentation) -> bool {
        match segmentation.protocol {
            Protocol::TcpV4 => self.tcp_v4,
            Protocol::TcpV6 => self.tcp_v6,
            Protocol::Udp => self.udp_v4 && self.udp_v6,
        }
    }

    /// What both have.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            checksum: self.checksum && other.checksum,
            tcp_v4: self.tcp_v4 && other.tcp_v4,
            tcp_v6: self.tcp_v6 && other.tcp_v6,
            udp_v4: self.udp_v4 && other.udp_v4,
            udp_v6: self.udp_v6 && other.udp_v6,
        }
    }
}

/// The state of a frame's TCP or UDP checksum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Checksum {
    /// In the frame, as it came; nobody has looked at it. Also of frames that have none.
    #[default]
    InFrame,
    /// In the frame or not, the data is known to be intact.
    Valid,
    /// Still to be computed: the Internet checksum of everything from byte `start` of the frame to its end, stored at `start + offset`,
    /// where the sum of the pseudo header is already. On a frame from the device, `start + offset + 2` is within the frame.
    Partial {
        /// Where TCP's or UDP's header is, from the beginning of the frame.
        start: u16,
        /// Where the checksum is, from there: 16 for TCP, 6 for UDP.
        offset: u16,
    },
}

/// What a frame is to be cut into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// TCP over IPv4.
    TcpV4,
    /// TCP over IPv6.
    TcpV6,
    /// UDP over either: datagrams of the same flow, one after the other (USO; never IP fragments).
    Udp,
}

/// A frame that stands for several, with the same headers but for lengths, checksums, IDs and sequence numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segmentation {
    /// Of the payload.
    pub protocol: Protocol,
    /// Bytes of payload in each but the last of them; not 0.
    pub segment_bytes: u16,
    /// Bytes of all headers, from the beginning of the frame; behind them is the payload. On a frame from the device this was
    /// computed from TCP's or UDP's header, not believed, and is within the frame. A back end tells it, too.
    pub header_bytes: u16,
    /// TCP with CWR set: it belongs to the first segment only.
    pub ecn: bool,
}

/// What is still to be done with a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    /// Of TCP or UDP.
    pub checksum: Checksum,
    /// Only with [`Checksum::Partial`].
    pub segmentation: Option<Segmentation>,
}

/// A frame from the guest, on its way to the back end.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// The bytes, in order; none of the slices is empty. They are valid for the call that they are handed to.
    pub slices: &'a [VolatileSlice<'a>],
    /// The sum of their lengths: 14 to 65550.
    pub len: usize,
    /// What the back end said that it takes, and no more.
    pub offload: Offload,
}

impl<'a> Frame<'a> {
    /// Copies bytes from `offset` on into `data`; returns how many there were.
    #[must_use]
    pub fn copy_to(&self, offset: usize, data: &mut [u8]) -> usize {
        let mut copied = 0;
        for slice in self.from(offset) {
            let room = data.get_mut(copied..).unwrap_or_default();
            // As many as fit: a volatile slice of mapped memory has no other way to fail.
            copied += if room.is_empty() { return copied } else { slice.copy_to(room) };
        }
        copied
    }

    /// The bytes from `offset` on, as slices of guest memory: what a `writev` takes.
    pub fn from(&self, offset: usize) -> impl Iterator<Item = VolatileSlice<'a>> + use<'a> {
        cut(self.slices, offset, usize::MAX)
    }
}

/// At most `len` bytes of `slices` from `offset` on.
pub fn cut<'a>(
    slices: &'a [VolatileSlice<'a>],
    offset: usize,
    len: usize,
) -> impl Iterator<Item = VolatileSlice<'a>> + use<'a> {
    let (mut skip, mut left) = (offset, len);
    slices.iter().filter_map(move |slice| {
        let begin = skip.min(slice.len());
        skip -= begin;
        let count = (slice.len() - begin).min(left);
        left -= count;
        // In range by construction.
        if count == 0 { None } else { slice.subslice(begin, count).ok() }
    })
}

/// Which frames belong together: the same for both directions of a TCP or UDP flow. What has no ports is told apart by its
/// addresses, and what is not IP is one flow. The device keeps the order within a flow, and hands it to the vCPU that sends on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Flow(pub u32);

/// A frame for the guest that the back end can give now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pending {
    /// Bytes that it has at most.
    pub max_bytes: usize,
    /// Its flow: [`Flow::of`], or where the back end has no header yet, whatever tells flows apart.
    pub flow: Flow,
}

/// A frame that the back end has put into guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Bytes that it has.
    pub len: usize,
    /// What the guest takes ([`super::FrameIo::accept`]), and no more.
    pub offload: Offload,
}
