//! What the device asks of the host: somebody who takes frames and gives frames. It sees no descriptor, no queue and no vCPU.
//!
//! ```text
//!   guest --transmit queue--> device --send, flush-->      back end --> host
//!   guest <--receive queue--- device <--pending, receive-- back end <-- host
//! ```
//!
//! All calls come from one thread, the machine's I/O thread, in its calls of `NetPort`. A back end waits for its host by
//! descriptors whose edges come to `ready`, and by `deadline`, so an idle one costs nothing; after both `ready` and `expire` there is a
//! turn, in which whatever they made possible is asked for. Back-pressure:
//!
//! - a back end that cannot take a frame says [`Sent::Full`]; the frame stays in the guest's queue, and is offered again in the next turn;
//! - a guest without buffers is not asked for: `pending` is called, `receive` is not, until the guest has offered some. A back end
//!   should then stop reading from its host.

use std::time::Instant;

use vm_memory::VolatileSlice;

use super::frame::{Frame, Offloads, Pending, Received};
use crate::poll::{Readiness, Token};

/// What a back end can do. It stays as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Abilities {
    /// Kinds of frames that [`FrameIo::send`] takes. The guest may use all of them in any case: the device finishes what is not in here.
    pub takes: Offloads,
    /// Kinds of frames that [`FrameIo::receive`] may give, if the guest takes them, too.
    pub gives: Offloads,
    /// The MTU of the link, for the guest to use (VIRTIO_NET_F_MTU): 68 to 65535. Without one the guest begins with 1500, and may use more.
    pub mtu: Option<u16>,
}

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Sent {
    /// The back end has done with its memory: sent, copied or dropped.
    Taken,
    /// There is no room for it now. It, and all behind it, come again in the next turn: so a back end answers this only where it
    /// has arranged for an edge or a deadline, and never for the sake of one flow among many.
    Full,
}

/// Takes frames from the guest and gives frames to it. No call blocks.
pub trait FrameIo: Send {
    /// What it can do. Asked before there is a guest.
    fn abilities(&self) -> Abilities;

    /// Whether there is anybody at the other end. Asked after every call; the guest is told of changes.
    fn is_link_up(&self) -> bool;

    /// The guest takes these kinds of frames from now on, always a part of [`Abilities::gives`]. Called when a driver starts and
    /// whenever it changes its mind; before that, it takes [`Offloads::NONE`].
    fn accept(&mut self, offloads: Offloads);

    /// The driver is gone, and with it everything that it knew of its flows: frames that wait for it are to be dropped. No
    /// frame is asked for or sent before the next [`Self::accept`].
    fn reset(&mut self);

    /// Takes one frame of the guest. Its slices end with the call. It may be kept from the host until [`Self::flush`].
    fn send(&mut self, frame: &Frame<'_>, now: Instant) -> Sent;

    /// There is no frame behind the last one for now.
    fn flush(&mut self, now: Instant);

    /// The next frame for the guest, if there is one. It stays the next one until [`Self::receive`], [`Self::accept`] or [`Self::reset`], though
    /// it may grow or go.
    fn pending(&mut self, now: Instant) -> Option<Pending>;

    /// Puts the frame that [`Self::pending`] has just told into `into`, in order: at least [`Pending::max_bytes`], unless the
    /// guest cannot offer so much. What does not fit is dropped whole. `None` if there is no frame after all.
    fn receive(&mut self, into: &[VolatileSlice<'_>], now: Instant) -> Option<Received>;

    /// An edge of one of its descriptors: reading or writing became possible *again*.
    fn ready(&mut self, token: Token, readiness: Readiness, now: Instant);

    /// When [`Self::expire`] has something to do.
    fn deadline(&self) -> Option<Instant>;

    /// Does what is due.
    fn expire(&mut self, now: Instant);
}
