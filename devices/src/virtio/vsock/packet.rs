//! A header as a value that needs no more checks (§5.10.6).

use crate::poll::Token;
use crate::virtio::spec::vsock::{
    CID_HOST, Header, PORT_ANY, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TYPE_STREAM, op as number,
};

/// The two ports that name a connection. There is one guest and one host, so their CIDs need not be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ports {
    /// On the host.
    pub host: u32,
    /// In the guest.
    pub guest: u32,
}

impl Ports {
    /// The connection's name for [`super::VsockPort::ready`]. Tokens whose upper half is [`PORT_ANY`] are nobody's.
    #[must_use]
    pub fn token(self) -> Token {
        Token(u64::from(self.host) << 32 | u64::from(self.guest))
    }

    /// The reverse of [`Self::token`].
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "two halves")]
    pub fn of(token: Token) -> Self {
        Self { host: (token.0 >> 32) as u32, guest: token.0 as u32 }
    }
}

/// What a packet asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Connect.
    Request,
    /// Accept.
    Response,
    /// Forget the connection.
    Rst,
    /// No more data in these directions.
    Shutdown(Ends),
    /// So many bytes of data.
    Rw(u32),
    /// Only the credit is news.
    CreditUpdate,
    /// Tell me my credit.
    CreditRequest,
}

impl Op {
    /// `op` and `flags` of the header.
    fn numbers(self) -> (u16, u32) {
        match self {
            Self::Request => (number::REQUEST, 0),
            Self::Response => (number::RESPONSE, 0),
            Self::Rst => (number::RST, 0),
            Self::Shutdown(ends) => (number::SHUTDOWN, ends.flags()),
            Self::Rw(_) => (number::RW, 0),
            Self::CreditUpdate => (number::CREDIT_UPDATE, 0),
            Self::CreditRequest => (number::CREDIT_REQUEST, 0),
        }
    }
}

/// Which of its two directions one end has closed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ends {
    /// It receives no more.
    pub receives: bool,
    /// It sends no more.
    pub sends: bool,
}

impl Ends {
    /// Both.
    #[must_use]
    pub fn both(self) -> bool {
        self.receives && self.sends
    }

    /// What either says.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self { receives: self.receives || other.receives, sends: self.sends || other.sends }
    }

    fn flags(self) -> u32 {
        let receives = if self.receives { SHUTDOWN_RECEIVE } else { 0 };
        receives | if self.sends { SHUTDOWN_SEND } else { 0 }
    }
}

/// What a packet tells about the buffer of its sender (§5.10.6.3), both modulo 2^32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Credit {
    /// `buf_alloc`: size of the buffer.
    pub alloc: u32,
    /// `fwd_cnt`: bytes that have left it.
    pub forwarded: u32,
}

/// A packet from the guest, without its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Which connection.
    pub ports: Ports,
    /// What for.
    pub op: Op,
    /// The guest's buffer.
    pub credit: Credit,
}

/// Why a header is not a [`Packet`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It claims to be from somebody else, or is an RST for nobody: no answer.
    Ignore,
    /// It is for a place where there are no connections: it gets an RST.
    Unreachable,
    /// It is for a connection of ours, which both sides forget after an RST.
    UnknownOp,
}

impl Packet {
    /// Reads `header`, of the guest with CID `guest_cid`.
    ///
    /// # Errors
    /// A [`Refusal`].
    pub fn parse(header: &Header, guest_cid: u64) -> Result<Self, Refusal> {
        // "The driver MUST use guest_cid as the source CID" (§5.10.6.4.1).
        if header.src_cid != guest_cid {
            return Err(Refusal::Ignore);
        }
        // "A VIRTIO_VSOCK_OP_RST reply MUST be sent if a packet is received with an unknown type value" (§5.10.6.4.2), but never
        // to an RST.
        let refusal = if header.op == number::RST { Refusal::Ignore } else { Refusal::Unreachable };
        let ports = Ports { host: header.dst_port.get(), guest: header.src_port.get() };
        let has_ports = ports.host != PORT_ANY && ports.guest != PORT_ANY;
        if header.dst_cid != CID_HOST || header.kind != TYPE_STREAM || !has_ports {
            return Err(refusal);
        }
        let flags = header.flags.get();
        let op = match header.op.get() {
            number::REQUEST => Op::Request,
            number::RESPONSE => Op::Response,
            number::RST => Op::Rst,
            number::SHUTDOWN => {
                Op::Shutdown(Ends { receives: flags & SHUTDOWN_RECEIVE != 0, sends: flags & SHUTDOWN_SEND != 0 })
            }
            number::RW => Op::Rw(header.len.get()),
            number::CREDIT_UPDATE => Op::CreditUpdate,
            number::CREDIT_REQUEST => Op::CreditRequest,
            _ => return Err(Refusal::UnknownOp),
        };
        let credit = Credit { alloc: header.buf_alloc.get(), forwarded: header.fwd_cnt.get() };
        Ok(Self { ports, op, credit })
    }
}

/// The header of a packet to the guest.
#[must_use]
pub fn header(guest_cid: u64, ports: Ports, op: Op, credit: Credit) -> Header {
    let (number, flags) = op.numbers();
    Header {
        src_cid: CID_HOST.into(),
        dst_cid: guest_cid.into(),
        src_port: ports.host.into(),
        dst_port: ports.guest.into(),
        len: if let Op::Rw(len) = op { len.into() } else { 0.into() },
        kind: TYPE_STREAM.into(),
        op: number.into(),
        flags: flags.into(),
        buf_alloc: credit.alloc.into(),
        fwd_cnt: credit.forwarded.into(),
    }
}

/// The RST that answers `header`, wherever it was going: the driver finds its socket by the addresses.
#[must_use]
pub fn reset_reply(header: &Header) -> Header {
    Header {
        src_cid: header.dst_cid,
        dst_cid: header.src_cid,
        src_port: header.dst_port,
        dst_port: header.src_port,
        kind: header.kind,
        op: number::RST.into(),
        ..Header::default()
    }
}
