//! The driver's side of virtio-fs: FUSE requests as a Linux guest makes them, one at a time.

use vm_memory::{Bytes, GuestAddress};
use zerocopy::{FromBytes, IntoBytes};

use super::{Buffer, Driver, Layout};
use crate::virtio::fs::abi::{
    ForgetIn, InHeader, InitIn, InitOut, KERNEL_MINOR_VERSION, KERNEL_VERSION, OutHeader, opcode,
};
use crate::virtio::fs::errno::Errno;
use crate::virtio::fs::{Fs, Tag};
use crate::virtio::spec::fs::{FIRST_REQUEST_QUEUE, HIPRIO_QUEUE};

/// Where requests are written, and replies.
const REQUEST: u64 = Driver::BUFFERS;
const REPLY: u64 = Driver::BUFFERS + 0x4_0000;
/// Room for each.
const ROOM_BYTES: usize = 0x3_0000;

/// A guest that has an [`Fs`] device with one request queue, and waits for each reply.
#[derive(Debug)]
pub struct GuestFiles {
    /// Its driver.
    pub driver: Driver,
    /// What its requests say of the caller.
    pub caller: (u32, u32, u32),
    unique: u64,
    /// Chains that were given to each queue.
    sent: [u16; 2],
}

impl GuestFiles {
    /// A guest whose driver has started with `features`, and which has not mounted.
    #[must_use]
    pub fn new(server: crate::virtio::fs::server::Server, features: u64) -> Self {
        Self::of(server, features, false)
    }

    /// As [`Self::new`]; with `is_inline`, who notifies serves requests itself.
    #[must_use]
    pub fn of(server: crate::virtio::fs::server::Server, features: u64, is_inline: bool) -> Self {
        let tag = Tag::new("share").expect("a tag");
        let device = Fs::new(std::sync::Arc::new(server), tag, 1).inline(is_inline);
        let mut driver = Driver::new(Box::new(device));
        driver.start(features, 2);
        Self { driver, caller: (1000, 100, 42), unique: 0, sent: [0; 2] }
    }

    /// As [`Self::new`], mounted with every INIT flag that there is.
    #[must_use]
    pub fn mounted(server: crate::virtio::fs::server::Server) -> Self {
        let mut guest = Self::new(server, 0);
        guest.mount(!0);
        guest
    }

    /// INIT with `flags`; what the server replied.
    pub fn mount(&mut self, flags: u64) -> InitOut {
        let half = |shift: u32| u32::try_from((flags >> shift) & 0xffff_ffff).expect("masked").into();
        let init = InitIn {
            major: KERNEL_VERSION.into(),
            minor: KERNEL_MINOR_VERSION.into(),
            max_readahead: (128 << 10).into(),
            flags: half(0),
            flags2: half(32),
            ..InitIn::default()
        };
        self.get(opcode::INIT, 0, &[init.as_bytes()]).expect("INIT succeeds")
    }

    /// The header of the next request of `len` bytes behind it.
    pub fn header(&mut self, number: u32, node: u64, len: usize) -> InHeader {
        self.unique += 2;
        let (uid, gid, pid) = self.caller;
        InHeader {
            len: u32::try_from(size_of::<InHeader>() + len).expect("small").into(),
            opcode: number.into(),
            unique: self.unique.into(),
            nodeid: node.into(),
            uid: uid.into(),
            gid: gid.into(),
            pid: pid.into(),
            ..InHeader::default()
        }
    }

    /// Makes a request and waits for its reply, for which there are `room` bytes behind the header.
    ///
    /// # Errors
    /// What the server said.
    ///
    /// # Panics
    /// If the reply is not well-formed: used length, length in the header and identity of the request must agree.
    pub fn call(&mut self, number: u32, node: u64, arguments: &[&[u8]], room: usize) -> Result<Vec<u8>, Errno> {
        let arguments = arguments.concat();
        let header = self.header(number, node, arguments.len());
        self.call_with(&header, &arguments, room)
    }

    /// As [`Self::call`], with a header that may lie.
    ///
    /// # Errors
    /// As for [`Self::call`].
    ///
    /// # Panics
    /// As [`Self::call`].
    pub fn call_with(&mut self, header: &InHeader, arguments: &[u8], room: usize) -> Result<Vec<u8>, Errno> {
        assert!(arguments.len() <= ROOM_BYTES && room <= ROOM_BYTES, "no room for this request");
        let buffers = self.place(header, arguments, room);
        let count = self.sent[1].wrapping_add(1);
        self.sent[1] = count;
        self.driver.send(FIRST_REQUEST_QUEUE, &buffers);
        assert!(self.driver.wait_used(FIRST_REQUEST_QUEUE, count), "the device broke: {header:?}");
        let (_, used) = Layout::of(FIRST_REQUEST_QUEUE).used_element(&self.driver.memory, count.wrapping_sub(1));
        let bytes = self.driver.get(REPLY, usize::try_from(used).expect("small"));
        let (reply, payload) = OutHeader::read_from_prefix(&bytes).expect("a header");
        assert_eq!((reply.len.get(), reply.unique), (used, header.unique), "reply to {header:?}");
        match reply.error.get() {
            0 => Ok(payload.to_vec()),
            error => {
                assert!(payload.is_empty() && error < 0, "an error with a payload: {reply:?}");
                Err(Errno::from_linux(-error))
            }
        }
    }

    /// As [`Self::call`] for a reply of one structure.
    ///
    /// # Errors
    /// As for [`Self::call`].
    ///
    /// # Panics
    /// As [`Self::call`], and if the reply has another length.
    pub fn get<T: FromBytes>(&mut self, number: u32, node: u64, arguments: &[&[u8]]) -> Result<T, Errno> {
        let bytes = self.call(number, node, arguments, size_of::<T>())?;
        assert_eq!(bytes.len(), size_of::<T>(), "length of the reply");
        Ok(T::read_from_bytes(&bytes).unwrap_or_else(|_| unreachable!("of the right length")))
    }

    /// Makes a request that has no reply, on the hiprio queue, and waits until it was taken.
    pub fn tell(&mut self, number: u32, node: u64, arguments: &[&[u8]]) {
        let arguments = arguments.concat();
        let header = self.header(number, node, arguments.len());
        let buffers = self.place(&header, &arguments, 0);
        self.sent[0] = self.sent[0].wrapping_add(1);
        let readable = buffers.iter().filter(|buffer| matches!(buffer, Buffer::Read(..))).count();
        self.driver.send(HIPRIO_QUEUE, &buffers[..readable]);
        assert!(self.driver.wait_used(HIPRIO_QUEUE, self.sent[0]), "the device broke: {header:?}");
        let (_, used) = Layout::of(HIPRIO_QUEUE).used_element(&self.driver.memory, self.sent[0].wrapping_sub(1));
        assert_eq!(used, 0, "a reply to {header:?}");
    }

    /// FORGET.
    pub fn forget(&mut self, node: u64, count: u64) {
        self.tell(opcode::FORGET, node, &[ForgetIn { nlookup: count.into() }.as_bytes()]);
    }

    /// Writes a request to guest memory. Each part has a buffer of its own, as Linux's have; one that is followed by nothing has none.
    fn place(&self, header: &InHeader, arguments: &[u8], room: usize) -> Vec<Buffer> {
        let len = |len: usize| u32::try_from(len).expect("small");
        self.driver.put(REQUEST, header.as_bytes());
        self.driver.put(REQUEST + 0x100, arguments);
        self.driver.memory.write_slice(&vec![0xee; 16 + room], GuestAddress(REPLY)).expect("in RAM");
        let head = len(size_of::<InHeader>());
        if room == 0 && arguments.len() <= 0x40 {
            // A FORGET is one buffer.
            self.driver.put(REQUEST + u64::from(head), arguments);
            return vec![Buffer::Read(REQUEST, head + len(arguments.len())), Buffer::Write(REPLY, 16)];
        }
        let mut buffers = vec![Buffer::Read(REQUEST, head)];
        if !arguments.is_empty() {
            buffers.push(Buffer::Read(REQUEST + 0x100, len(arguments.len())));
        }
        buffers.push(Buffer::Write(REPLY, 16));
        if room > 0 {
            buffers.push(Buffer::Write(REPLY + 16, len(room)));
        }
        buffers
    }
}
