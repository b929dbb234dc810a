//! FUSE requests of any shape to a shared folder in memory, with a count of what the guest may know and have open.
//!
//! Whatever a guest sends: every request that can have a reply gets one, of the length that it says; nothing is written outside the
//! buffers for it; and the share has no lookup and no handle that the guest was not told of, nor forgets one that it was.

use std::collections::BTreeMap;
use std::sync::Arc;

use arbitrary::Arbitrary;
use zerocopy::{FromBytes, IntoBytes};

use super::{Steps, assert_no_worker_panicked, watch_workers};
use crate::testing::FileTree;
use crate::testing::files::GuestFiles;
use crate::virtio::fs::abi::{
    CopyFileRangeIn, CreateIn, Dirent, EntryOut, FallocateIn, ForgetIn, FsyncIn, GetattrIn, GetxattrIn, InitOut,
    LinkIn, LseekIn, MkdirIn, MknodIn, OpenIn, OpenOut, ReadIn, ReleaseIn, Rename2In, RenameIn, SetattrIn, SetxattrIn,
    StatxIn, WriteIn, init, opcode,
};
use crate::virtio::fs::server::{CacheMode, MOST_FILES, Server, ServerOptions};

/// Which node, or open file, a request is about: more often one that the guest has.
#[derive(Clone, Copy, Debug, Arbitrary)]
pub struct Which {
    kind: u8,
    index: u8,
}

impl Which {
    /// A number that is most likely nobody's.
    fn stranger(self) -> Option<u64> {
        match self.kind % 16 {
            0 => Some(self.index.into()),
            1 => Some(u64::MAX - u64::from(self.index)),
            _ => None,
        }
    }
}

/// A number that matters, such as an offset or flags.
#[derive(Clone, Copy, Debug, Arbitrary)]
pub enum Number {
    /// Up to 255.
    Small(u8),
    /// One bit of 64.
    Bit(u8),
    /// Near the largest.
    Huge(u8),
    /// Any.
    Any(u64),
}

impl Number {
    fn wide(self) -> u64 {
        match self {
            Self::Small(number) => number.into(),
            Self::Bit(bit) => 1 << (bit % 64),
            Self::Huge(below) => u64::MAX - u64::from(below),
            Self::Any(number) => number,
        }
    }

    fn narrow(self) -> u32 {
        u32::try_from(self.wide() & 0xffff_ffff).expect("masked")
    }
}

/// A string of a request: most often one of a few names, so that they meet.
#[derive(Clone, Copy, Debug, Arbitrary)]
pub struct Text {
    kind: u8,
    choice: u8,
}

impl Text {
    fn bytes(self) -> Vec<u8> {
        let len = usize::from(self.choice);
        match self.kind % 16 {
            0 => [&b"\0"[..], b".\0", b"..\0", b"a/b\0", b"/\0"][len % 5].to_vec(),
            1 => [vec![b'l'; len + 2], vec![0]].concat(),
            2 => [vec![b'l'; 20 * len], vec![0]].concat(),
            // Without its NUL.
            3 => vec![b'e'; len],
            _ => vec![b'a' + self.choice % 5, 0],
        }
    }
}

/// What is wrong with a request, besides its content: most often nothing.
#[derive(Clone, Copy, Debug, Arbitrary)]
pub struct Lie {
    kind: u8,
    by: u8,
}

impl Lie {
    /// The length in the header is wrong by this.
    fn length(self) -> i32 {
        if self.kind % 16 == 1 { i32::from(self.by) - 128 } else { 0 }
    }

    fn arguments(self, arguments: &mut Vec<u8>) {
        let by = usize::from(self.by);
        match self.kind % 16 {
            2 => arguments.truncate(arguments.len().saturating_sub(by)),
            3 => arguments.resize(arguments.len() + by, 7),
            _ => {}
        }
    }

    /// Bytes for the reply.
    fn room(self) -> usize {
        if self.kind % 16 == 4 { self.by.into() } else { 0x2000 }
    }

    /// Extensions that are not there, or not extensions, in units of 8 bytes.
    fn extensions(self) -> u16 {
        if self.kind % 16 == 5 { self.by.into() } else { 0 }
    }
}

/// One request.
#[derive(Clone, Debug, Arbitrary)]
pub struct Request {
    opcode: u8,
    /// The opcode may be one that ends the session, or that nobody knows.
    is_wild: bool,
    node: Which,
    other: Which,
    handle: Which,
    numbers: [Number; 4],
    texts: [Text; 2],
    lie: Lie,
}

/// What a driver asks one share for.
#[derive(Clone, Debug, Arbitrary)]
pub struct Script {
    read_only: bool,
    /// Who notifies serves requests, not threads.
    is_inline: bool,
    cache: u8,
    flags: u64,
    requests: Steps<Request>,
}

/// What the guest was told: lookups by node, and open files and directories with their nodes.
#[derive(Debug, Default)]
struct Told {
    lookups: BTreeMap<u64, u64>,
    open: Vec<(u64, u64)>,
    /// The long form of SETXATTR was agreed.
    extended: bool,
    /// The server opens files by itself.
    openless: bool,
}

impl Told {
    fn agreed(reply: &InitOut) -> Self {
        let has = |flag| u64::from(reply.flags.get()) & flag != 0;
        Self { extended: has(init::SETXATTR_EXT), openless: has(init::NO_OPEN_SUPPORT), ..Self::default() }
    }

    fn node(&self, which: Which) -> u64 {
        // The root is known as well.
        let known = usize::from(which.index) % (self.lookups.len() + 1);
        which.stranger().unwrap_or_else(|| self.lookups.keys().nth(known).copied().unwrap_or(1))
    }

    /// A handle, with its node where there is one.
    fn handle(&self, which: Which) -> (Option<u64>, u64) {
        match which.stranger() {
            None if !self.open.is_empty() => {
                let open = self.open[usize::from(which.index) % self.open.len()];
                (Some(open.0), open.1)
            }
            stranger => (None, stranger.unwrap_or(0)),
        }
    }

    fn learn(&mut self, entry: &EntryOut) {
        if entry.nodeid.get() != 0 {
            *self.lookups.entry(entry.nodeid.get()).or_default() += 1;
        }
    }

    fn forget(&mut self, node: u64, count: u64) {
        if let Some(lookups) = self.lookups.get_mut(&node) {
            *lookups = lookups.saturating_sub(count);
            if *lookups == 0 {
                self.lookups.remove(&node);
            }
        }
    }

    /// What a successful reply to `number` about `node` tells.
    fn hear(&mut self, number: u32, node: u64, handle: u64, reply: &[u8]) {
        let entry = || EntryOut::read_from_prefix(reply).expect("an entry").0;
        match number {
            opcode::INIT => *self = Self::agreed(&InitOut::read_from_bytes(reply).expect("a reply to INIT")),
            opcode::DESTROY => *self = Self::default(),
            opcode::LOOKUP | opcode::SYMLINK | opcode::MKNOD | opcode::MKDIR | opcode::LINK => self.learn(&entry()),
            opcode::CREATE | opcode::TMPFILE => {
                self.learn(&entry());
                let open = OpenOut::read_from_bytes(&reply[128..]).expect("an open file");
                if !self.openless {
                    self.open.push((entry().nodeid.get(), open.fh.get()));
                }
            }
            opcode::OPEN | opcode::OPENDIR => {
                let open = OpenOut::read_from_bytes(reply).expect("an open file");
                self.open.push((node, open.fh.get()));
            }
            opcode::RELEASE | opcode::RELEASEDIR => self.open.retain(|open| open.1 != handle),
            opcode::READDIRPLUS => {
                let mut rest = reply;
                while !rest.is_empty() {
                    let (entry, behind) = EntryOut::read_from_prefix(rest).expect("an entry");
                    let (dirent, names) = Dirent::read_from_prefix(behind).expect("a name");
                    self.learn(&entry);
                    let len = usize::try_from(dirent.namelen.get()).expect("small").next_multiple_of(8);
                    rest = &names[len..];
                }
            }
            _ => {}
        }
    }
}

/// Runs `script`.
///
/// # Panics
/// If a rule is broken.
pub fn run(script: &Script) {
    watch_workers();
    let tree = FileTree::new();
    tree.put("a", b"content");
    let cache = [CacheMode::Auto, CacheMode::Never, CacheMode::Always][usize::from(script.cache % 3)];
    let server = Server::new(Arc::new(tree.clone()), None, ServerOptions { read_only: script.read_only, cache });
    let mut guest = GuestFiles::of(server, 0, script.is_inline);
    let agreed = guest.mount(script.flags);
    let mut told = Told::agreed(&agreed);
    for request in &script.requests.0 {
        step(&mut guest, &mut told, request);
        tree.check();
        assert_eq!(tree.lookups(), told.lookups, "after {request:?}");
        let most = told.open.len() + if told.openless { MOST_FILES } else { 0 };
        assert!((told.open.len()..=most).contains(&tree.known().1), "after {request:?}");
    }
    assert_no_worker_panicked();
}

/// An opcode that does something, and does not end the session.
fn tame(choice: u8) -> u32 {
    const TAME: [u32; 36] = [
        1, 1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 13, 14, 14, 15, 16, 16, 17, 18, 20, 21, 22, 23, 24, 27, 27, 28, 29, 30, 35,
        35, 43, 44, 45, 46, 47,
    ];
    TAME[usize::from(choice) % TAME.len()]
}

/// Sends one request.
fn step(guest: &mut GuestFiles, told: &mut Told, request: &Request) {
    let number = if request.is_wild { u32::from(request.opcode) % 58 } else { tame(request.opcode) };
    let (of_handle, handle) = told.handle(request.handle);
    let uses_handle = matches!(number, 15 | 16 | 18 | 20 | 28 | 29 | 30 | 43 | 44 | 46 | 47 | 53);
    let node = of_handle.filter(|_| uses_handle).unwrap_or_else(|| told.node(request.node));
    let mut arguments = arguments(told, request, number, handle);
    request.lie.arguments(&mut arguments);
    if matches!(number, opcode::FORGET | opcode::INTERRUPT | 41 | opcode::BATCH_FORGET) {
        if number == opcode::FORGET && arguments.len() >= size_of::<ForgetIn>() {
            told.forget(node, request.numbers[0].wide());
        }
        guest.tell(number, node, &[&arguments]);
        return;
    }
    let mut header = guest.header(number, node, arguments.len());
    header.len = header.len.get().wrapping_add_signed(request.lie.length()).into();
    header.total_extlen = request.lie.extensions().into();
    if let Ok(reply) = guest.call_with(&header, &arguments, request.lie.room()) {
        told.hear(number, node, handle, &reply);
    }
}

/// The arguments of opcode `number`, of the right shape.
fn arguments(told: &Told, request: &Request, number: u32, handle: u64) -> Vec<u8> {
    let [a, b, c, d] = request.numbers.map(Number::narrow);
    let [wide, second, third, _] = request.numbers.map(Number::wide);
    let [text, other_text] = request.texts.map(Text::bytes);
    let other = told.node(request.other);
    let fh = handle.into();
    let with = |head: &[u8], rest: &[&[u8]]| [head, &rest.concat()].concat();
    match number {
        opcode::INIT => with(&[7, 0, 0, 0, 41, 0, 0, 0], &[&[0xff; 56]]),
        opcode::LOOKUP | opcode::UNLINK | opcode::RMDIR | opcode::REMOVEXATTR => text,
        opcode::FORGET => wide.to_le_bytes().to_vec(),
        opcode::GETATTR => GetattrIn { getattr_flags: a.into(), fh, ..GetattrIn::default() }.as_bytes().to_vec(),
        opcode::STATX => StatxIn { getattr_flags: a.into(), fh, ..StatxIn::default() }.as_bytes().to_vec(),
        opcode::SETATTR => {
            let wire = SetattrIn {
                valid: a.into(),
                fh,
                size: second.into(),
                mode: c.into(),
                uid: d.into(),
                atimensec: b.into(),
                ..SetattrIn::default()
            };
            wire.as_bytes().to_vec()
        }
        opcode::SYMLINK => with(&text, &[&other_text]),
        opcode::MKNOD => {
            let kinds = [0o100_000, 0o010_000, 0o020_000, 0, 0o140_000, a];
            let mode = kinds[usize::from(request.handle.kind) % kinds.len()] | b & 0o7777;
            with(MknodIn { mode: mode.into(), rdev: c.into(), ..MknodIn::default() }.as_bytes(), &[&text])
        }
        opcode::MKDIR => with(MkdirIn { mode: a.into(), umask: b.into() }.as_bytes(), &[&text]),
        opcode::RENAME => with(RenameIn { newdir: other.into() }.as_bytes(), &[&text, &other_text]),
        opcode::RENAME2 => {
            let wire = Rename2In { newdir: other.into(), flags: (a & 7).into(), padding: 0.into() };
            with(wire.as_bytes(), &[&text, &other_text])
        }
        opcode::LINK => with(LinkIn { oldnodeid: other.into() }.as_bytes(), &[&text]),
        opcode::OPEN | opcode::OPENDIR => {
            // Read, write, both, or neither; sometimes O_TRUNC and more.
            let flags = u32::from(request.handle.kind & 3) | if request.is_wild { a } else { 0 };
            OpenIn { flags: flags.into(), open_flags: b.into() }.as_bytes().to_vec()
        }
        opcode::CREATE | opcode::TMPFILE => {
            let wire = CreateIn { flags: (a & 0o1203).into(), mode: b.into(), umask: c.into(), open_flags: d.into() };
            with(wire.as_bytes(), &[&text])
        }
        opcode::READ | opcode::READDIR | opcode::READDIRPLUS => {
            ReadIn { fh, offset: wide.into(), size: b.into(), ..ReadIn::default() }.as_bytes().to_vec()
        }
        opcode::WRITE => {
            let len = usize::from(request.opcode) * 3;
            let size = u32::try_from(len).expect("small");
            let wire =
                WriteIn { fh, offset: wide.into(), size: size.into(), write_flags: b.into(), ..WriteIn::default() };
            with(WriteIn { flags: c.into(), ..wire }.as_bytes(), &[&vec![0x55; len]])
        }
        opcode::RELEASE | opcode::RELEASEDIR => ReleaseIn { fh, ..ReleaseIn::default() }.as_bytes().to_vec(),
        opcode::FSYNC | opcode::FSYNCDIR => {
            FsyncIn { fh, fsync_flags: a.into(), padding: 0.into() }.as_bytes().to_vec()
        }
        opcode::SETXATTR => {
            let len = u32::try_from(other_text.len()).expect("short");
            let size = if request.is_wild { b } else { len };
            let wire = SetxattrIn { size: size.into(), flags: (c & 3).into(), ..SetxattrIn::default() };
            let form = if told.extended { size_of::<SetxattrIn>() } else { 8 };
            with(&wire.as_bytes()[..form], &[&text, &other_text])
        }
        opcode::GETXATTR => with(GetxattrIn { size: a.into(), padding: 0.into() }.as_bytes(), &[&text]),
        opcode::LISTXATTR => GetxattrIn { size: a.into(), padding: 0.into() }.as_bytes().to_vec(),
        opcode::FALLOCATE => {
            let wire = FallocateIn { fh, offset: wide.into(), length: second.into(), ..FallocateIn::default() };
            FallocateIn { mode: (if request.is_wild { c } else { c & 0x3b }).into(), ..wire }.as_bytes().to_vec()
        }
        opcode::LSEEK => {
            let whence = if request.is_wild { b } else { 3 + (b & 1) };
            LseekIn { fh, offset: wide.into(), whence: whence.into(), padding: 0.into() }.as_bytes().to_vec()
        }
        opcode::COPY_FILE_RANGE | opcode::COPY_FILE_RANGE_64 => {
            let (to_node, to) = told.handle(request.other);
            let wire =
                CopyFileRangeIn { fh_in: fh, off_in: wide.into(), len: third.into(), ..CopyFileRangeIn::default() };
            let place = CopyFileRangeIn {
                nodeid_out: to_node.unwrap_or(other).into(),
                fh_out: to.into(),
                off_out: second.into(),
                ..wire
            };
            place.as_bytes().to_vec()
        }
        // BATCH_FORGET of nothing, and what has no arguments or no meaning.
        _ => vec![0; 8],
    }
}
