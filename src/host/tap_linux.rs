//! A network interface of the host (`--net tap=NAME`): Linux's TAP, with the offloads that its header for virtual machines carries.
//!
//! The interface may exist already, made for our user (`ip tuntap add NAME mode tap user …`); else it is made, which needs CAP_NET_ADMIN,
//! and goes with us. Addresses, bridges and routes are the administrator's.
// UNSAFETY: ioctls of /dev/net/tun.
#![expect(unsafe_code, reason = "the ioctls of /dev/net/tun take pointers and numbers")]

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use minivmm_devices::poll::{Readiness, Token};
use minivmm_devices::virtio::net::{
    Abilities, Checksum, Flow, Frame, FrameIo, Offload, Offloads, Pending, Received, Sent, build_header, parse_header,
};
use minivmm_devices::virtio::spec::net::{ETHERNET_BYTES, HDR_DATA_VALID, HEADER_BYTES, Header, MAX_FRAME_BYTES};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::ioctl::{IntegerSetter, Opcode, Setter, Updater, ioctl, opcode};
use vm_memory::VolatileSlice;
use zerocopy::{FromBytes, IntoBytes};

use super::net::peer::copy as copy_frame;
use crate::event::Edges;
use crate::host::vectors;

const DEVICE: &str = "/dev/net/tun";
/// Bytes of an interface's name, with a zero at its end: IFNAMSIZ of <net/if.h>.
const NAME_BYTES: usize = 16;
/// <linux/if_tun.h>: flags of TUNSETIFF, and offloads.
const IFF_TAP: u16 = 0x0002;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;
const TUN_F_CSUM: usize = 0x01;
const TUN_F_TSO4: usize = 0x02;
const TUN_F_TSO6: usize = 0x04;
const TUN_F_USO4: usize = 0x20;
const TUN_F_USO6: usize = 0x40;
/// <linux/if_tun.h>: the ioctls. The sizes in them are those of `int`, whatever they take.
const TUNSETIFF: Opcode = opcode::write::<i32>(b'T', 202);
const TUNSETOFFLOAD: Opcode = opcode::write::<u32>(b'T', 208);
const TUNSETVNETHDRSZ: Opcode = opcode::write::<i32>(b'T', 216);
const TUNSETVNETLE: Opcode = opcode::write::<i32>(b'T', 220);
/// The descriptor's token; there is only one.
const TAP: Token = Token(0);

/// `struct ifreq` as TUNSETIFF reads and writes it.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; NAME_BYTES],
    flags: u16,
    rest: [u8; 22],
}

const _: () = assert!(size_of::<InterfaceRequest>() == 40);

/// A TAP interface.
#[derive(Debug)]
pub struct Tap {
    name: String,
    device: OwnedFd,
    mtu: Option<u16>,
    /// The kernel knows USO (since Linux 6.2).
    has_uso: bool,
    /// Until the interface is deleted.
    is_up: bool,
    is_readable: bool,
    is_writable: bool,
    /// The next frame for the guest is the first so many bytes of this, behind a header.
    frame: Vec<u8>,
    len: usize,
}

impl Tap {
    /// Opens the interface `name`, or makes it. `mtu` is told to the guest.
    ///
    /// # Errors
    /// The host's: no such interface and no privilege to make it, or not ours to use.
    pub fn open(name: &str, mtu: Option<u16>, edges: &Arc<Edges>) -> io::Result<Self> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let device = rustix::fs::open(DEVICE, flags, Mode::empty())?;
        let mut request =
            InterfaceRequest { name: [0; NAME_BYTES], flags: IFF_TAP | IFF_NO_PI | IFF_VNET_HDR, rest: [0; 22] };
        if name.is_empty() || name.len() >= NAME_BYTES {
            return Err(io::Error::new(ErrorKind::InvalidInput, "an interface's name has 1 to 15 bytes"));
        }
        for (to, from) in request.name.iter_mut().zip(name.bytes()) {
            *to = from;
        }
        // SAFETY: TUNSETIFF reads and writes a `struct ifreq`, which `InterfaceRequest` is.
        let set_interface = unsafe { Updater::<TUNSETIFF, InterfaceRequest>::new(&mut request) };
        // SAFETY: as `Updater` was made; `device` is /dev/net/tun.
        unsafe { ioctl(&device, set_interface) }?;
        set_int::<TUNSETVNETHDRSZ>(&device, i32::try_from(HEADER_BYTES).unwrap_or(0))?;
        set_int::<TUNSETVNETLE>(&device, 1)?;
        let has_uso = set_offloads(&device, Offloads::ALL).is_ok();
        set_offloads(&device, Offloads::NONE)?;
        edges.watch(device.as_fd(), TAP)?;
        let frame = vec![0; HEADER_BYTES + MAX_FRAME_BYTES + 1];
        let name = name.to_owned();
        Ok(Self { name, device, mtu, has_uso, is_up: true, is_readable: false, is_writable: true, frame, len: 0 })
    }

    fn lost(&mut self, error: &io::Error) {
        if std::mem::take(&mut self.is_up) {
            tracing::warn!("the network interface {} is gone: {error}", self.name);
        }
    }

    fn fetch(&mut self) {
        // Ends: the interface's queue does, and nothing that is no frame is in it.
        while self.len == 0 && self.is_readable && self.is_up {
            match rustix::io::read(&self.device, &mut self.frame) {
                Ok(len) if (HEADER_BYTES + ETHERNET_BYTES..self.frame.len()).contains(&len) => self.len = len,
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.is_readable = false,
                Err(error) => self.lost(&error.into()),
            }
        }
    }

    /// The next frame, and its header.
    fn next(&self) -> Option<(Header, &[u8])> {
        let bytes = self.frame.get(..self.len)?;
        Header::read_from_prefix(bytes).ok()
    }

    fn offloads(&self) -> Offloads {
        Offloads { udp_v4: self.has_uso, udp_v6: self.has_uso, ..Offloads::ALL }
    }
}

fn set_int<const OPCODE: Opcode>(device: &OwnedFd, value: i32) -> io::Result<()> {
    // SAFETY: the ioctls that this is called with read an `int`.
    let set = unsafe { Setter::<OPCODE, i32>::new(value) };
    // SAFETY: as `Setter` was made; `device` is /dev/net/tun.
    Ok(unsafe { ioctl(device, set) }?)
}

/// Tells the kernel which unfinished frames we take.
fn set_offloads(device: &OwnedFd, offloads: Offloads) -> io::Result<()> {
    let bits = [
        (offloads.checksum, TUN_F_CSUM),
        (offloads.tcp_v4, TUN_F_TSO4),
        (offloads.tcp_v6, TUN_F_TSO6),
        (offloads.udp_v4, TUN_F_USO4),
        (offloads.udp_v6, TUN_F_USO6),
    ];
    let bits = bits.iter().filter(|(is_taken, _)| *is_taken).fold(0, |all, (_, bit)| all | bit);
    // SAFETY: TUNSETOFFLOAD takes its bits as a number.
    let set = unsafe { IntegerSetter::<TUNSETOFFLOAD>::new_usize(bits) };
    // SAFETY: as `IntegerSetter` was made; `device` is /dev/net/tun.
    Ok(unsafe { ioctl(device, set) }?)
}

impl FrameIo for Tap {
    fn abilities(&self) -> Abilities {
        Abilities { takes: self.offloads(), gives: self.offloads(), mtu: self.mtu }
    }

    fn is_link_up(&self) -> bool {
        self.is_up
    }

    fn accept(&mut self, offloads: Offloads) {
        if let Err(error) = set_offloads(&self.device, offloads) {
            self.lost(&error);
        }
    }

    fn reset(&mut self) {
        self.len = 0;
        self.accept(Offloads::NONE);
    }

    fn send(&mut self, frame: &Frame<'_>, _: Instant) -> Sent {
        if !self.is_writable {
            return Sent::Full;
        }
        let mut header = build_header(&frame.offload, 0, true);
        let mut slices = Vec::with_capacity(frame.slices.len() + 1);
        slices.push(VolatileSlice::from(header.as_mut_bytes()));
        slices.extend(frame.from(0));
        match vectors::write(self.device.as_fd(), &slices) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                self.is_writable = false;
                return Sent::Full;
            }
            // An interface that is down takes none; one that is gone shows when it is read.
            Err(error) => tracing::debug!("a frame of {} bytes is lost: {error}", frame.len),
            Ok(_) => {}
        }
        Sent::Taken
    }

    fn flush(&mut self, _: Instant) {}

    fn pending(&mut self, _: Instant) -> Option<Pending> {
        self.fetch();
        let (_, frame) = self.next()?;
        Some(Pending { max_bytes: frame.len(), flow: Flow::of(frame) })
    }

    fn receive(&mut self, into: &[VolatileSlice<'_>], _: Instant) -> Option<Received> {
        let (header, frame) = self.next()?;
        let len = frame.len();
        let is_copied = copy_frame(frame, into);
        self.len = 0;
        // What the kernel says of its own frames is right. It does not send what was not accepted, but for frames that it had queued before.
        let offload = parse_header(&header, into, len, self.offloads()).ok()?;
        let is_valid = header.flags & HDR_DATA_VALID != 0 && offload.checksum == Checksum::InFrame;
        let checksum = if is_valid { Checksum::Valid } else { offload.checksum };
        is_copied.then_some(Received { len, offload: Offload { checksum, ..offload } })
    }

    fn ready(&mut self, _: Token, readiness: Readiness, _: Instant) {
        self.is_readable |= readiness.readable;
        self.is_writable |= readiness.writable;
    }

    fn deadline(&self) -> Option<Instant> {
        None
    }

    fn expire(&mut self, _: Instant) {}
}
