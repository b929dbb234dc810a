//! The server as a guest's kernel sees it, through the device, on a tree of files in memory.

mod openless;

use std::sync::atomic::AtomicBool;

use zerocopy::{FromBytes, IntoBytes};

use super::*;
use crate::testing::FileTree;
use crate::testing::files::GuestFiles;
use crate::virtio::fs::abi::{
    AttrOut, BatchForgetIn, CopyFileRangeIn, CopyFileRangeOut, CreateIn, Dirent, EXT_GROUPS, ExtHeader, FallocateIn,
    ForgetOne, FsyncIn, GETATTR_FH, GetattrIn, GetxattrIn, LinkIn, LseekIn, LseekOut, MkdirIn, MknodIn, OpenIn,
    OpenOut, ReadIn, ReleaseIn, Rename2In, SetattrIn, SetxattrIn, StatfsOut, StatxIn, StatxOut, SuppGroups, WriteIn,
    fattr, fopen, linux, open_flags,
};
use crate::virtio::fs::attr::Attr;
use crate::virtio::fs::attr::mode;
use crate::virtio::fs::coherence::Pretence;
use crate::virtio::fs::file_system::Capabilities;
use crate::virtio::fs::name::Name;

const ROOT: u64 = 1;
const DAY: u64 = 86_400;

/// A mounted share, with the tree that is shared.
struct Share {
    guest: GuestFiles,
    tree: FileTree,
    counters: Arc<FsCounters>,
}

impl std::ops::Deref for Share {
    type Target = GuestFiles;

    fn deref(&self) -> &GuestFiles {
        &self.guest
    }
}

impl std::ops::DerefMut for Share {
    fn deref_mut(&mut self) -> &mut GuestFiles {
        &mut self.guest
    }
}

/// An hour after everything in a new [`FileTree`].
fn an_hour_later() -> Time {
    Time { secs: 4600, nanos: 0 }
}

fn share_with(options: ServerOptions, coherence: Option<Arc<dyn Coherence>>) -> Share {
    let tree = FileTree::new();
    let mut server = Server::new(Arc::new(tree.clone()), coherence, options);
    server.now = an_hour_later;
    let counters = server.counters();
    Share { guest: GuestFiles::mounted(server), tree, counters }
}

fn share() -> Share {
    share_with(ServerOptions::default(), None)
}

fn with_cache(cache: CacheMode) -> Share {
    share_with(ServerOptions { cache, ..ServerOptions::default() }, None)
}

fn name(text: &str) -> Vec<u8> {
    [text.as_bytes(), &[0]].concat()
}

impl Share {
    fn lookup(&mut self, parent: u64, text: &str) -> Result<EntryOut, Errno> {
        self.get(opcode::LOOKUP, parent, &[&name(text)])
    }

    fn create(&mut self, parent: u64, text: &str, flags: u32) -> Result<(EntryOut, OpenOut), Errno> {
        let wire = CreateIn { flags: flags.into(), mode: 0o644.into(), ..CreateIn::default() };
        let reply = self.call(opcode::CREATE, parent, &[wire.as_bytes(), &name(text)], 144)?;
        Ok((EntryOut::read_from_bytes(&reply[..128]).unwrap(), OpenOut::read_from_bytes(&reply[128..]).unwrap()))
    }

    fn open(&mut self, node: u64, flags: u32) -> Result<OpenOut, Errno> {
        self.get(opcode::OPEN, node, &[OpenIn { flags: flags.into(), ..OpenIn::default() }.as_bytes()])
    }

    fn write(&mut self, node: u64, wire: WriteIn, bytes: &[u8]) -> Result<u32, Errno> {
        let size = u32::try_from(bytes.len()).unwrap();
        let wire = WriteIn { size: size.into(), ..wire };
        self.get::<WriteOut>(opcode::WRITE, node, &[wire.as_bytes(), bytes]).map(|out| out.size.get())
    }

    fn read(&mut self, node: u64, fh: U, offset: u64, size: u32) -> Result<Vec<u8>, Errno> {
        let wire = ReadIn { fh, offset: offset.into(), size: size.into(), ..ReadIn::default() };
        self.call(opcode::READ, node, &[wire.as_bytes()], usize::try_from(size).unwrap())
    }

    fn getattr(&mut self, node: u64) -> Result<AttrOut, Errno> {
        self.get(opcode::GETATTR, node, &[GetattrIn::default().as_bytes()])
    }

    fn mkdir(&mut self, parent: u64, text: &str) -> Result<EntryOut, Errno> {
        let wire = MkdirIn { mode: 0o755.into(), umask: 0.into() };
        self.get(opcode::MKDIR, parent, &[wire.as_bytes(), &name(text)])
    }

    fn release(&mut self, node: u64, fh: U) -> Result<Vec<u8>, Errno> {
        self.call(opcode::RELEASE, node, &[ReleaseIn { fh, ..ReleaseIn::default() }.as_bytes()], 0)
    }
}

type U = zerocopy::little_endian::U64;

/// Entries of a READDIR reply: name, offset and type; for a READDIRPLUS with the node.
fn entries(mut bytes: &[u8], plus: bool) -> Vec<(String, u64, u32, u64)> {
    let mut list = Vec::new();
    while !bytes.is_empty() {
        let mut node = 0;
        if plus {
            node = EntryOut::read_from_prefix(bytes).unwrap().0.nodeid.get();
            bytes = &bytes[128..];
        }
        let (dirent, rest) = Dirent::read_from_prefix(bytes).unwrap();
        let len = dirent.namelen.get() as usize;
        list.push((String::from_utf8(rest[..len].to_vec()).unwrap(), dirent.off.get(), dirent.kind.get(), node));
        bytes = &bytes[(24 + len).next_multiple_of(8)..];
    }
    list
}

#[test]
fn file_is_made_written_read_and_closed() {
    let mut share = share();
    let (entry, open) = share.create(ROOT, "f", open_flags::RDWR).unwrap();
    let node = entry.nodeid.get();
    assert_eq!((entry.attr.mode.get(), entry.attr.uid.get(), entry.attr.gid.get()), (0o100_644, 1000, 100));
    let wire = WriteIn { fh: open.fh, offset: 2.into(), ..WriteIn::default() };
    assert_eq!(share.write(node, wire, b"hello"), Ok(5));
    assert_eq!(share.read(node, open.fh, 0, 100).unwrap(), b"\0\0hello");
    assert_eq!(share.read(node, open.fh, 4, 2).unwrap(), b"ll");
    assert_eq!(share.read(node, open.fh, 7, 100).unwrap(), b"");
    assert_eq!(share.getattr(node).unwrap().attr.size.get(), 7);
    assert_eq!(share.release(node, open.fh), Ok(Vec::new()));
    assert_eq!(share.release(node, open.fh), Err(Errno::EBADF));
    assert_eq!(share.tree.content("f").unwrap(), b"\0\0hello");
    assert_eq!(share.counters.bytes_written.load(Ordering::SeqCst), 5);
    assert_eq!(share.counters.bytes_read.load(Ordering::SeqCst), 9);
    share.tree.check();
}

#[test]
fn appending_goes_to_the_end_unless_the_page_cache_writes() {
    let mut share = share();
    share.tree.put("f", b"0123456789");
    let node = share.lookup(ROOT, "f").unwrap().nodeid.get();
    let fh = share.open(node, open_flags::WRONLY | open_flags::APPEND).unwrap().fh;
    let wire = WriteIn { fh, offset: 1.into(), flags: open_flags::APPEND.into(), ..WriteIn::default() };
    assert_eq!(share.write(node, wire, b"ab"), Ok(2));
    assert_eq!(share.write(node, WriteIn { write_flags: 1.into(), ..wire }, b"XY"), Ok(2));
    assert_eq!(share.tree.content("f").unwrap(), b"0XY3456789ab");
}

#[test]
fn nothing_is_done_before_init_and_after_destroy() {
    let tree = FileTree::new();
    let mut guest = GuestFiles::new(Server::new(Arc::new(tree.clone()), None, ServerOptions::default()), 0);
    let getattr = GetattrIn::default();
    let stat = |guest: &mut GuestFiles| guest.get::<AttrOut>(opcode::GETATTR, ROOT, &[getattr.as_bytes()]).map(drop);
    assert_eq!(stat(&mut guest), Err(Errno::EIO));
    guest.mount(!0);
    assert_eq!(stat(&mut guest), Ok(()));
    assert_eq!(guest.call(opcode::DESTROY, 0, &[], 0), Ok(Vec::new()));
    assert_eq!(tree.destroyed(), 1);
    assert_eq!(stat(&mut guest), Err(Errno::EIO));
}

#[test]
fn second_init_forgets_what_was_known() {
    let mut share = share();
    let node = share.mkdir(ROOT, "d").unwrap().nodeid.get();
    share.getattr(node).unwrap();
    share.mount(!0);
    assert_eq!(share.getattr(node).unwrap_err(), Errno::ESTALE);
    share.getattr(ROOT).unwrap();
    assert_eq!(share.tree.known(), (1, 0));
}

#[test]
fn reset_of_the_device_forgets_everything() {
    let mut share = share();
    share.create(ROOT, "f", 0).unwrap();
    assert_eq!(share.tree.known(), (2, 1));
    share.driver.reset();
    assert_eq!(share.tree.known(), (1, 0));
    share.tree.check();
}

#[test]
fn timeouts_are_short_where_nobody_watches_long_where_asked_and_none_where_forbidden() {
    let valid = |cache| {
        let mut share = with_cache(cache);
        share.tree.put("f", b"");
        let entry = share.lookup(ROOT, "f").unwrap();
        let attr = share.getattr(entry.nodeid.get()).unwrap();
        (entry.entry_valid.get(), entry.attr_valid.get(), attr.attr_valid.get())
    };
    assert_eq!(valid(CacheMode::Auto), (1, 1, 1));
    assert_eq!(valid(CacheMode::Always), (DAY, DAY, DAY));
    assert_eq!(valid(CacheMode::Never), (0, 0, 0));
}

#[test]
fn missing_name_is_remembered_as_long_as_one_that_exists() {
    let mut auto = share();
    let missing = auto.lookup(ROOT, "none").unwrap();
    assert_eq!((missing.nodeid.get(), missing.entry_valid.get()), (0, 1));
    assert_eq!(with_cache(CacheMode::Always).lookup(ROOT, "none").unwrap().entry_valid.get(), DAY);
    assert_eq!(with_cache(CacheMode::Never).lookup(ROOT, "none").unwrap_err(), Errno::ENOENT);
}

/// Watches everything but what it is told not to.
#[derive(Default)]
struct Watcher {
    blind: AtomicBool,
    log: std::sync::Mutex<Vec<String>>,
}

impl Coherence for Watcher {
    fn watch(&self, directory: NodeId) -> bool {
        self.log.lock().unwrap().push(format!("watch {directory}"));
        !self.blind.load(Ordering::SeqCst)
    }

    fn is_watched(&self, _: NodeId) -> bool {
        !self.blind.load(Ordering::SeqCst)
    }

    fn learned(&self, directory: NodeId, node: NodeId) {
        self.log.lock().unwrap().push(format!("learned {directory} {node}"));
    }

    fn forgotten(&self, node: NodeId) {
        self.log.lock().unwrap().push(format!("forgotten {node}"));
    }

    fn changing_name(&self, _: NodeId, _: Name<'_>) {}

    fn changed_name(&self, _: NodeId, _: Name<'_>, _: bool) {}

    fn changed_content(&self, _: NodeId) {}

    fn reset(&self) {}

    fn pretence(&self, _: NodeId, name: Name<'_>) -> Option<Pretence> {
        match name.as_bytes() {
            b"hidden" => Some(Pretence::Absent),
            b"phantom" => Some(Pretence::Present { is_directory: true }),
            _ => None,
        }
    }

    fn is_agent(&self, pid: u32) -> bool {
        pid == 7
    }
}

fn watched() -> (Share, Arc<Watcher>) {
    let watcher = Arc::new(Watcher::default());
    (share_with(ServerOptions::default(), Some(watcher.clone())), watcher)
}

#[test]
fn what_is_watched_may_be_kept_for_long() {
    let (mut share, watcher) = watched();
    share.tree.put("f", b"");
    let entry = share.lookup(ROOT, "f").unwrap();
    let node = entry.nodeid.get();
    assert_eq!((entry.entry_valid.get(), entry.attr_valid.get()), (DAY, DAY));
    assert_eq!(share.getattr(node).unwrap().attr_valid.get(), DAY);
    assert_eq!(share.lookup(ROOT, "none").unwrap().entry_valid.get(), DAY);
    assert_eq!(*watcher.log.lock().unwrap(), ["watch 1", "learned 1 2", "watch 1"]);
    watcher.blind.store(true, Ordering::SeqCst);
    assert_eq!(share.lookup(ROOT, "f").unwrap().entry_valid.get(), 1);
    assert_eq!(share.getattr(node).unwrap().attr_valid.get(), 1);
    share.forget(node, 2);
    assert_eq!(watcher.log.lock().unwrap().last().unwrap(), "forgotten 2");
}

#[test]
fn attributes_that_change_unseen_are_not_kept_for_long() {
    let (mut share, _) = watched();
    // A directory's change with what happens inside it, a file's by its other names.
    let directory = share.mkdir(ROOT, "d").unwrap();
    assert_eq!((directory.entry_valid.get(), directory.attr_valid.get()), (DAY, 1));
    let (file, _) = share.create(ROOT, "f", 0).unwrap();
    assert_eq!(file.attr_valid.get(), DAY);
    let wire = LinkIn { oldnodeid: file.nodeid };
    let link: EntryOut = share.get(opcode::LINK, ROOT, &[wire.as_bytes(), &name("g")]).unwrap();
    assert_eq!((link.nodeid, link.attr.nlink.get()), (file.nodeid, 2));
    assert_eq!((link.entry_valid.get(), link.attr_valid.get()), (DAY, 1));
}

#[test]
fn agent_makes_the_guest_look_again_and_changes_nothing() {
    let (mut share, _) = watched();
    share.tree.put("f", b"12345");
    let node = share.lookup(ROOT, "f").unwrap().nodeid.get();
    let fh = share.open(node, open_flags::RDWR).unwrap().fh;
    let setattr = SetattrIn { valid: fattr::SIZE.into(), size: 0.into(), ..SetattrIn::default() };
    let allocate = FallocateIn { fh, length: 100.into(), ..FallocateIn::default() };
    share.caller = (0, 0, 7);
    let attr: AttrOut = share.get(opcode::SETATTR, node, &[setattr.as_bytes()]).unwrap();
    share.call(opcode::FALLOCATE, node, &[allocate.as_bytes()], 0).unwrap();
    assert_eq!((attr.attr.size.get(), share.tree.content("f").unwrap().len()), (5, 5));
    share.caller = (0, 0, 8);
    let attr: AttrOut = share.get(opcode::SETATTR, node, &[setattr.as_bytes()]).unwrap();
    assert_eq!((attr.attr.size.get(), share.tree.content("f").unwrap().len()), (0, 0));
}

#[test]
fn data_is_kept_from_one_open_to_the_next_if_the_file_is_unchanged() {
    let mut share = share();
    share.tree.put("f", b"old");
    let node = share.lookup(ROOT, "f").unwrap().nodeid.get();
    let keeps = |share: &mut Share| share.open(node, 0).unwrap().open_flags.get() == fopen::KEEP_CACHE;
    assert!(!keeps(&mut share), "nothing is known of the first");
    assert!(keeps(&mut share));
    share.tree.set_time(Time { secs: 2000, nanos: 0 });
    share.tree.put("f", b"new");
    assert!(!keeps(&mut share), "the host changed it");
    assert!(keeps(&mut share));
    assert_eq!(share.counters.kept_cache.load(Ordering::SeqCst), 2);
}

#[test]
fn file_that_changed_a_moment_ago_is_read_again() {
    let mut share = share();
    share.tree.set_time(Time { secs: 4599, nanos: 950_000_000 });
    share.tree.put("f", b"old");
    let node = share.lookup(ROOT, "f").unwrap().nodeid.get();
    for _ in 0..3 {
        assert_eq!(share.open(node, 0).unwrap().open_flags.get(), 0, "another change might get the same time");
    }
}

#[test]
fn forgotten_file_leaves_nothing_behind() {
    let mut share = share();
    share.tree.put("f", b"old");
    let node = share.lookup(ROOT, "f").unwrap().nodeid.get();
    let fh = share.open(node, 0).unwrap().fh;
    share.release(node, fh).unwrap();
    share.forget(node, 1);
    assert_eq!(share.tree.known(), (1, 0));
    assert_eq!(share.open(node, 0).unwrap_err(), Errno::ESTALE);
}

#[test]
fn open_flags_follow_the_cache_mode() {
    let flags = |cache, guest_flags| {
        let mut share = with_cache(cache);
        share.mount(!init::NO_OPEN_SUPPORT);
        share.tree.put("f", b"");
        let node = share.lookup(ROOT, "f").unwrap().nodeid.get();
        share.open(node, 0).unwrap();
        share.open(node, guest_flags).unwrap().open_flags.get()
    };
    assert_eq!(flags(CacheMode::Never, 0), fopen::DIRECT_IO);
    assert_eq!(flags(CacheMode::Always, 0), fopen::KEEP_CACHE);
    assert_eq!(flags(CacheMode::Auto, 0), fopen::KEEP_CACHE);
    assert_eq!(flags(CacheMode::Auto, open_flags::WRONLY | open_flags::TRUNC), 0);
}

#[test]
fn listing_is_cached_where_its_attributes_stay_valid() {
    let opendir = |share: &mut Share| {
        let open: OpenOut = share.get(opcode::OPENDIR, ROOT, &[OpenIn::default().as_bytes()]).unwrap();
        open.open_flags.get()
    };
    let (mut share, _) = watched();
    assert_eq!((opendir(&mut share), opendir(&mut share)), (fopen::CACHE_DIR, fopen::CACHE_DIR | fopen::KEEP_CACHE));
    share.tree.set_time(Time { secs: 4600, nanos: 0 });
    share.tree.put("new", b"");
    assert_eq!(opendir(&mut share), 0, "another change might get the same time");
    let mut unwatched = self::share();
    assert_eq!((opendir(&mut unwatched), opendir(&mut unwatched)), (0, 0));
    let always = opendir(&mut with_cache(CacheMode::Always));
    assert_eq!(always, fopen::CACHE_DIR | fopen::KEEP_CACHE);
}

#[test]
fn directory_is_listed_in_pieces() {
    let mut share = share();
    (0..20).for_each(|index| share.tree.put(&format!("file-{index:02}"), b""));
    let open: OpenOut = share.get(opcode::OPENDIR, ROOT, &[OpenIn::default().as_bytes()]).unwrap();
    let (mut offset, mut names) = (0u64, Vec::new());
    loop {
        let wire = ReadIn { fh: open.fh, offset: offset.into(), size: 200.into(), ..ReadIn::default() };
        let bytes = share.call(opcode::READDIR, ROOT, &[wire.as_bytes()], 200).unwrap();
        let piece = entries(&bytes, false);
        let Some(last) = piece.last() else { break };
        offset = last.1;
        // What is removed after the directory was opened may come or not; the others come once.
        share.call(opcode::UNLINK, ROOT, &[&name("file-00")], 0).ok();
        names.extend(piece.into_iter().map(|entry| entry.0));
    }
    let expected: Vec<String> = (0..20).map(|index| format!("file-{index:02}")).collect();
    assert_eq!(names[..2], [".", ".."]);
    assert_eq!(names[2..], expected);
    share.call(opcode::RELEASEDIR, ROOT, &[ReleaseIn { fh: open.fh, ..ReleaseIn::default() }.as_bytes()], 0).unwrap();
}

#[test]
fn readdirplus_looks_up_exactly_what_it_returns() {
    let mut share = share();
    (0..20).for_each(|index| share.tree.put(&format!("file-{index:02}"), b""));
    let open: OpenOut = share.get(opcode::OPENDIR, ROOT, &[OpenIn::default().as_bytes()]).unwrap();
    let wire = ReadIn { fh: open.fh, size: 1000.into(), ..ReadIn::default() };
    let bytes = share.call(opcode::READDIRPLUS, ROOT, &[wire.as_bytes()], 1000).unwrap();
    let list = entries(&bytes, true);
    assert!(list[..2].iter().all(|entry| entry.3 == 0), "nobody forgets the dots: {list:?}");
    let nodes: Vec<u64> = list[2..].iter().map(|entry| entry.3).collect();
    assert_eq!(share.tree.known().0, 1 + nodes.len());
    assert!(nodes.len() >= 4 && nodes.iter().all(|node| *node > 1), "{list:?}");
    nodes.into_iter().for_each(|node| share.forget(node, 1));
    assert_eq!(share.tree.known().0, 1);
}

#[test]
fn readdir_for_a_buffer_of_many_megabytes_fills_what_there_is() {
    let mut share = share();
    let open: OpenOut = share.get(opcode::OPENDIR, ROOT, &[OpenIn::default().as_bytes()]).unwrap();
    let wire = ReadIn { fh: open.fh, size: (64 << 20).into(), ..ReadIn::default() };
    let bytes = share.call(opcode::READDIR, ROOT, &[wire.as_bytes()], 4096).unwrap();
    assert_eq!(entries(&bytes, false).len(), 2);
}

#[test]
fn read_only_share_refuses_every_change() {
    let options = ServerOptions { read_only: true, ..ServerOptions::default() };
    let mut share = share_with(options, None);
    share.tree.put("f", b"1");
    let node = share.lookup(ROOT, "f").unwrap().nodeid.get();
    let fh = share.open(node, 0).unwrap().fh;
    let place = fh.get();
    let (f, g) = (name("f"), name("g"));
    let open = |flags: u32| OpenIn { flags: flags.into(), ..OpenIn::default() };
    let create = CreateIn::default();
    let write = WriteIn { fh, size: 1.into(), ..WriteIn::default() };
    let copy =
        CopyFileRangeIn { fh_in: fh, nodeid_out: node.into(), fh_out: place.into(), ..CopyFileRangeIn::default() };
    let with = |head: &[u8], names: &[&[u8]]| [head, &names.concat()].concat();
    let changes: [(u32, u64, Vec<u8>); 18] = [
        (opcode::SETATTR, node, with(SetattrIn::default().as_bytes(), &[])),
        (opcode::SYMLINK, ROOT, with(&g, &[&f])),
        (opcode::MKNOD, ROOT, with(MknodIn::default().as_bytes(), &[&g])),
        (opcode::MKDIR, ROOT, with(MkdirIn::default().as_bytes(), &[&g])),
        (opcode::UNLINK, ROOT, with(&f, &[])),
        (opcode::RMDIR, ROOT, with(&f, &[])),
        (opcode::RENAME, ROOT, with(1u64.as_bytes(), &[&f, &g])),
        (opcode::RENAME2, ROOT, with(Rename2In { newdir: 1.into(), ..Rename2In::default() }.as_bytes(), &[&f, &g])),
        (opcode::LINK, ROOT, with(node.as_bytes(), &[&g])),
        (opcode::OPEN, node, with(open(open_flags::WRONLY).as_bytes(), &[])),
        (opcode::OPEN, node, with(open(open_flags::TRUNC).as_bytes(), &[])),
        (opcode::CREATE, ROOT, with(create.as_bytes(), &[&g])),
        (opcode::TMPFILE, ROOT, with(create.as_bytes(), &[&g])),
        (opcode::WRITE, node, with(write.as_bytes(), &[b"x"])),
        (opcode::FALLOCATE, node, with(FallocateIn { fh, length: 1.into(), ..FallocateIn::default() }.as_bytes(), &[])),
        (opcode::COPY_FILE_RANGE, node, with(copy.as_bytes(), &[])),
        (opcode::SETXATTR, node, with(SetxattrIn::default().as_bytes(), &[&g])),
        (opcode::REMOVEXATTR, node, with(&g, &[])),
    ];
    for (number, node, arguments) in changes {
        assert_eq!(
            share.call(number, node, &[&arguments], 256),
            Err(Errno::EROFS),
            "{}",
            opcode::NAMES[number as usize]
        );
    }
    assert_eq!(share.read(node, fh, 0, 9).unwrap(), b"1");
    assert_eq!(share.tree.known(), (2, 1));
}

#[test]
fn what_is_not_done_on_purpose_is_never_asked_again() {
    let mut share = share();
    for number in [
        opcode::FLUSH,
        opcode::GETLK,
        opcode::SETLK,
        opcode::SETLKW,
        opcode::ACCESS,
        opcode::BMAP,
        opcode::POLL,
        opcode::SETUPMAPPING,
        opcode::REMOVEMAPPING,
    ] {
        assert_eq!(share.call(number, ROOT, &[&[0; 64]], 64), Err(Errno::ENOSYS));
    }
    assert_eq!(share.call(opcode::IOCTL, ROOT, &[&[0; 32]], 64), Err(Errno::ENOTTY));
    for number in [0, 7, 19, 54, u32::MAX] {
        assert_eq!(share.call(number, ROOT, &[], 64), Err(Errno::EOPNOTSUPP));
    }
    assert_eq!(share.counters.unknown.load(Ordering::SeqCst), 5);
}

#[test]
fn back_end_cannot_end_an_operation_for_the_whole_mount() {
    let mut share = share();
    share.tree.set_failure(Some(Errno::ENOSYS));
    assert_eq!(share.getattr(ROOT).unwrap_err(), Errno::EOPNOTSUPP);
    assert_eq!(share.open(ROOT, 0).unwrap_err(), Errno::EOPNOTSUPP);
    share.tree.set_failure(Some(Errno::ENOSPC));
    assert_eq!(share.mkdir(ROOT, "d").unwrap_err(), Errno::ENOSPC);
    assert_eq!(share.counters.errors.load(Ordering::SeqCst), 3);
}

#[test]
fn header_whose_length_lies_is_an_io_error() {
    let mut share = share();
    for lie in [-1i32, 1, -40, i32::MAX] {
        let mut header = share.header(opcode::GETATTR, ROOT, 16);
        header.len = header.len.get().wrapping_add_signed(lie).into();
        assert_eq!(share.call_with(&header, GetattrIn::default().as_bytes(), 104), Err(Errno::EIO));
    }
    share.getattr(ROOT).unwrap();
}

#[test]
fn arguments_that_end_early_are_invalid() {
    let mut share = share();
    let known = (1..54).filter(|number| !opcode::NAMES[*number].is_empty());
    for number in known.map(|number| u32::try_from(number).unwrap()) {
        let (none, silent) = (opcode::READLINK, super::request::has_no_reply(number));
        let bare = [none, opcode::STATFS, opcode::DESTROY, opcode::OPENDIR, opcode::SYNCFS].contains(&number);
        if silent || bare {
            continue;
        }
        let result = share.call(number, ROOT, &[b"x"], 300);
        let expected = [Err(Errno::EINVAL), Err(Errno::ENOSYS), Err(Errno::ENOTTY)];
        assert!(expected.contains(&result), "{}: {result:?}", opcode::NAMES[number as usize]);
    }
    share.getattr(ROOT).unwrap();
}

#[test]
fn name_that_is_no_component_is_refused() {
    let mut share = share();
    for text in ["", ".", "..", "a/b", "/"] {
        assert_eq!(share.lookup(ROOT, text).unwrap_err(), Errno::EINVAL);
        assert_eq!(share.mkdir(ROOT, text).unwrap_err(), Errno::EINVAL);
    }
    assert_eq!(share.lookup(ROOT, &"x".repeat(256)).unwrap_err(), Errno::ENAMETOOLONG);
    assert_eq!(share.get::<EntryOut>(opcode::LOOKUP, ROOT, &[b"unterminated"]).unwrap_err(), Errno::EINVAL);
    let two = [&1u64.to_le_bytes()[..], b"a\0b"].concat();
    assert_eq!(share.call(opcode::RENAME, ROOT, &[&two], 0), Err(Errno::EINVAL));
}

#[test]
fn unknown_nodes_and_handles_are_refused() {
    let mut share = share();
    share.tree.put("f", b"");
    let node = share.lookup(ROOT, "f").unwrap().nodeid.get();
    let fh = share.open(node, 0).unwrap().fh;
    assert_eq!(share.getattr(99).unwrap_err(), Errno::ESTALE);
    assert_eq!(share.getattr(0).unwrap_err(), Errno::ESTALE);
    assert_eq!(share.getattr(u64::MAX).unwrap_err(), Errno::ESTALE);
    assert_eq!(share.read(node, 99.into(), 0, 1), Err(Errno::EBADF));
    assert_eq!(share.read(ROOT, fh, 0, 1), Err(Errno::EBADF));
    let wire = GetattrIn { getattr_flags: GETATTR_FH.into(), fh: 99.into(), ..GetattrIn::default() };
    assert_eq!(share.get::<AttrOut>(opcode::GETATTR, node, &[wire.as_bytes()]).unwrap_err(), Errno::EBADF);
    let wire = ReadIn { fh, size: 100.into(), ..ReadIn::default() };
    assert_eq!(share.call(opcode::READDIR, node, &[wire.as_bytes()], 100), Err(Errno::EBADF));
}

#[test]
fn nothing_is_looked_up_or_opened_without_room_for_the_answer() {
    let mut share = share();
    share.tree.put("f", b"");
    assert_eq!(share.call(opcode::LOOKUP, ROOT, &[&name("f")], 127), Err(Errno::EIO));
    let wire = CreateIn { mode: 0o644.into(), ..CreateIn::default() };
    assert_eq!(share.call(opcode::CREATE, ROOT, &[wire.as_bytes(), &name("g")], 143), Err(Errno::EIO));
    assert_eq!(share.call(opcode::OPENDIR, ROOT, &[OpenIn::default().as_bytes()], 15), Err(Errno::EIO));
    assert_eq!((share.tree.known(), share.tree.content("g")), ((1, 0), None));
}

#[test]
fn offsets_at_the_end_of_the_world_are_refused() {
    let mut share = share();
    let (entry, open) = share.create(ROOT, "f", open_flags::RDWR).unwrap();
    let (node, fh) = (entry.nodeid.get(), open.fh);
    assert_eq!(share.read(node, fh, u64::MAX, 10), Err(Errno::EINVAL));
    assert_eq!(share.read(node, fh, i64::MAX as u64 - 5, 10), Err(Errno::EINVAL));
    let wire = WriteIn { fh, offset: u64::MAX.into(), ..WriteIn::default() };
    assert_eq!(share.write(node, wire, b"x"), Err(Errno::EFBIG));
    let allocate = |offset: u64, length: u64, how: u32| FallocateIn {
        fh,
        offset: offset.into(),
        length: length.into(),
        mode: how.into(),
        ..FallocateIn::default()
    };
    let mut fallocate = |wire: FallocateIn| share.call(opcode::FALLOCATE, node, &[wire.as_bytes()], 0);
    assert_eq!(fallocate(allocate(u64::MAX, 2, 0)), Err(Errno::EFBIG));
    assert_eq!(fallocate(allocate(0, 0, 0)), Err(Errno::EINVAL));
    assert_eq!(fallocate(allocate(0, 1, 0x40)), Err(Errno::EOPNOTSUPP));
    assert_eq!(fallocate(allocate(0, 100, 0)), Ok(Vec::new()));
    let wire = SetattrIn { valid: fattr::SIZE.into(), size: u64::MAX.into(), ..SetattrIn::default() };
    assert_eq!(share.get::<AttrOut>(opcode::SETATTR, node, &[wire.as_bytes()]).unwrap_err(), Errno::EFBIG);
}

#[test]
fn write_has_as_much_data_as_it_says() {
    let mut share = share();
    let (entry, open) = share.create(ROOT, "f", open_flags::RDWR).unwrap();
    let wire = WriteIn { fh: open.fh, size: 6.into(), ..WriteIn::default() };
    let result = share.call(opcode::WRITE, entry.nodeid.get(), &[wire.as_bytes(), b"short"], 8);
    assert_eq!(result, Err(Errno::EINVAL));
    assert_eq!(share.tree.content("f").unwrap(), b"");
}

#[test]
fn forgets_come_alone_and_in_batches() {
    let mut share = share();
    (0..3).for_each(|index| share.tree.put(&format!("f{index}"), b""));
    let nodes: Vec<u64> = (0..3).map(|index| share.lookup(ROOT, &format!("f{index}")).unwrap().nodeid.get()).collect();
    share.lookup(ROOT, "f0").unwrap();
    share.forget(nodes[0], 1);
    assert_eq!(share.tree.known().0, 4, "looked up twice, forgotten once");
    let one = |node: u64| ForgetOne { nodeid: node.into(), nlookup: 1.into() };
    let batch: Vec<ForgetOne> = nodes.iter().map(|node| one(*node)).collect();
    let count = |count: u32| BatchForgetIn { count: count.into(), dummy: 0.into() };
    share.tell(opcode::BATCH_FORGET, 0, &[count(4).as_bytes(), batch.as_bytes()]);
    assert_eq!(share.tree.known().0, 4, "one of the four is missing");
    share.tell(opcode::BATCH_FORGET, 0, &[count(3).as_bytes(), batch.as_bytes()]);
    assert_eq!(share.tree.known().0, 1);
    share.forget(ROOT, u64::MAX);
    share.getattr(ROOT).unwrap();
    share.tree.check();
}

#[test]
fn extended_attributes_are_asked_for_their_size_first() {
    let mut share = share();
    let set = |flags: u32, value: &[u8]| {
        let size = u32::try_from(value.len()).unwrap();
        [SetxattrIn { size: size.into(), flags: flags.into(), ..SetxattrIn::default() }.as_bytes(), b"user.a\0", value]
            .concat()
    };
    let get = |size: u32| [GetxattrIn { size: size.into(), padding: 0.into() }.as_bytes(), b"user.a\0"].concat();
    assert_eq!(share.call(opcode::GETXATTR, ROOT, &[&get(0)], 64), Err(Errno::ENODATA));
    assert_eq!(share.call(opcode::SETXATTR, ROOT, &[&set(linux::XATTR_REPLACE, b"v")], 0), Err(Errno::ENODATA));
    share.call(opcode::SETXATTR, ROOT, &[&set(0, b"value")], 0).unwrap();
    assert_eq!(share.call(opcode::SETXATTR, ROOT, &[&set(linux::XATTR_CREATE, b"v")], 0), Err(Errno::EEXIST));
    assert_eq!(share.call(opcode::GETXATTR, ROOT, &[&get(0)], 64).unwrap(), [5, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(share.call(opcode::GETXATTR, ROOT, &[&get(5)], 64).unwrap(), b"value");
    assert_eq!(share.call(opcode::GETXATTR, ROOT, &[&get(4)], 64), Err(Errno::ERANGE));
    let list = GetxattrIn { size: 64.into(), padding: 0.into() };
    assert_eq!(share.call(opcode::LISTXATTR, ROOT, &[list.as_bytes()], 64).unwrap(), b"user.a\0");
    share.call(opcode::REMOVEXATTR, ROOT, &[b"user.a\0"], 0).unwrap();
    assert_eq!(share.call(opcode::LISTXATTR, ROOT, &[list.as_bytes()], 64).unwrap(), b"");
    assert_eq!(share.call(opcode::REMOVEXATTR, ROOT, &[b"\0"], 0), Err(Errno::ERANGE));
    let lie = [SetxattrIn { size: 9.into(), ..SetxattrIn::default() }.as_bytes(), b"user.a\0value"].concat();
    assert_eq!(share.call(opcode::SETXATTR, ROOT, &[&lie], 0), Err(Errno::EINVAL));
}

#[test]
fn setxattr_is_short_where_the_long_form_was_not_agreed() {
    let tree = FileTree::new();
    tree.set_capabilities(Capabilities::default());
    let mut guest = GuestFiles::mounted(Server::new(Arc::new(tree), None, ServerOptions::default()));
    let set = [&5u32.to_le_bytes()[..], &0u32.to_le_bytes(), b"user.a\0value"].concat();
    guest.call(opcode::SETXATTR, ROOT, &[&set], 0).unwrap();
    let get = [&64u32.to_le_bytes()[..], &0u32.to_le_bytes(), b"user.a\0"].concat();
    assert_eq!(guest.call(opcode::GETXATTR, ROOT, &[&get], 64).unwrap(), b"value");
}

/// The extension with a supplementary group, whose size is `size`.
fn extension(size: u32, group: u32) -> Vec<u8> {
    let header = ExtHeader { size: size.into(), kind: EXT_GROUPS.into() };
    [header.as_bytes(), SuppGroups { nr_groups: 1.into(), group: group.into() }.as_bytes()].concat()
}

#[test]
fn supplementary_group_is_found_behind_the_name() {
    let wire = MkdirIn { mode: 0o755.into(), umask: 0.into() };
    let arguments = [wire.as_bytes(), &name("directory"), &extension(16, 77)].concat();
    let header = |extlen: u16| InHeader {
        opcode: opcode::MKDIR.into(),
        uid: 5.into(),
        total_extlen: extlen.into(),
        ..InHeader::default()
    };
    let Ok(Operation::Mkdir(found, creation)) = super::request::parse(&header(2), &arguments, true) else {
        panic!("no MKDIR")
    };
    assert_eq!((found.as_bytes(), creation.caller.uid), (&b"directory"[..], 5));
    assert_eq!(creation.caller.supplementary_gid, Some(77));
    let parse = |extlen, arguments: &[u8]| super::request::parse(&header(extlen), arguments, true).map(drop);
    for size in [0, 7, 9, 24, u32::MAX] {
        let arguments = [wire.as_bytes(), &name("directory"), &extension(size, 77)].concat();
        assert_eq!(parse(2, &arguments).unwrap_err(), Errno::EINVAL, "size {size}");
    }
    assert_eq!(parse(100, &arguments).unwrap_err(), Errno::EINVAL);
    assert_eq!(parse(0, &arguments), Ok(()));
}

#[test]
fn statx_tells_the_time_of_birth() {
    let mut share = share();
    let wire = StatxIn { sx_mask: 0xfff.into(), ..StatxIn::default() };
    let out: StatxOut = share.get(opcode::STATX, ROOT, &[wire.as_bytes()]).unwrap();
    assert_eq!((out.stat.mask.get(), out.stat.btime.tv_sec.get()), (0xfff, 1000));
    assert_eq!((out.stat.mode.get(), out.stat.nlink.get(), out.attr_valid.get()), (0o40_755, 2, 1));
    let wire = MknodIn { mode: 0o020_600.into(), rdev: 0x0123_4567.into(), ..MknodIn::default() };
    let device: EntryOut = share.get(opcode::MKNOD, ROOT, &[wire.as_bytes(), &name("null")]).unwrap();
    let out: StatxOut = share.get(opcode::STATX, device.nodeid.get(), &[StatxIn::default().as_bytes()]).unwrap();
    // new_encode_dev(0x345, 0x01267).
    assert_eq!((out.stat.rdev_major.get(), out.stat.rdev_minor.get()), (0x345, 0x1267));
}

#[test]
fn mknod_of_a_directory_or_link_is_refused() {
    let mut share = share();
    for kind in [mode::DIRECTORY, mode::SYMLINK, 0o150_000] {
        let wire = MknodIn { mode: (kind | 0o644).into(), ..MknodIn::default() };
        assert_eq!(share.call(opcode::MKNOD, ROOT, &[wire.as_bytes(), &name("n")], 128), Err(Errno::EINVAL));
    }
}

#[test]
fn link_target_is_read_back_whatever_it_is() {
    let mut share = share();
    let link: EntryOut = share.get(opcode::SYMLINK, ROOT, &[&name("l"), &name("../../etc/passwd")]).unwrap();
    assert_eq!(link.attr.mode.get(), 0o120_777);
    assert_eq!(share.call(opcode::READLINK, link.nodeid.get(), &[], 4096).unwrap(), b"../../etc/passwd");
    assert_eq!(share.call(opcode::READLINK, link.nodeid.get(), &[], 10), Err(Errno::ENAMETOOLONG));
    assert_eq!(share.call(opcode::SYMLINK, ROOT, &[&name("m"), &[0]], 128), Err(Errno::ENOENT));
    let long = name(&"x".repeat(4096));
    assert_eq!(share.call(opcode::SYMLINK, ROOT, &[&name("m"), &long], 128), Err(Errno::ENAMETOOLONG));
}

#[test]
fn attributes_are_set_one_by_one() {
    let mut share = share();
    share.tree.put("f", b"");
    let node = share.lookup(ROOT, "f").unwrap().nodeid.get();
    let mut set = |wire: SetattrIn| share.get::<AttrOut>(opcode::SETATTR, node, &[wire.as_bytes()]).map(|out| out.attr);
    let attr = set(SetattrIn { valid: fattr::MODE.into(), mode: 0o107_600.into(), ..SetattrIn::default() }).unwrap();
    assert_eq!((attr.mode.get(), attr.uid.get()), (0o107_600, 0));
    let attr =
        set(SetattrIn { valid: fattr::UID.into(), uid: 9.into(), gid: 8.into(), ..SetattrIn::default() }).unwrap();
    assert_eq!((attr.uid.get(), attr.gid.get()), (9, 0));
    let times = SetattrIn {
        valid: (fattr::ATIME | fattr::MTIME | fattr::MTIME_NOW).into(),
        atime: (-5).into(),
        atimensec: 7.into(),
        mtime: 1.into(),
        ..SetattrIn::default()
    };
    let attr = set(times).unwrap();
    assert_eq!((attr.atime.get(), attr.atimensec.get(), attr.mtime.get()), (-5, 7, 1000));
    assert_eq!(set(SetattrIn { atimensec: 1_000_000_000.into(), ..times }).unwrap_err(), Errno::EINVAL);
}

#[test]
fn copies_are_answered_in_the_width_that_was_asked() {
    let mut share = share();
    share.tree.put("f", b"0123456789");
    let node = share.lookup(ROOT, "f").unwrap().nodeid.get();
    let from = share.open(node, 0).unwrap().fh;
    let (entry, to) = share.create(ROOT, "g", open_flags::RDWR).unwrap();
    let wire = CopyFileRangeIn {
        fh_in: from,
        off_in: 2.into(),
        nodeid_out: entry.nodeid,
        fh_out: to.fh,
        len: u64::MAX.into(),
        ..CopyFileRangeIn::default()
    };
    let narrow: WriteOut = share.get(opcode::COPY_FILE_RANGE, node, &[wire.as_bytes()]).unwrap();
    let wide: CopyFileRangeOut = share.get(opcode::COPY_FILE_RANGE_64, node, &[wire.as_bytes()]).unwrap();
    assert_eq!((narrow.size.get(), wide.bytes_copied.get()), (8, 8));
    assert_eq!(share.tree.content("g").unwrap(), b"23456789");
    let flagged = CopyFileRangeIn { flags: 1.into(), ..wire };
    assert_eq!(share.call(opcode::COPY_FILE_RANGE, node, &[flagged.as_bytes()], 8), Err(Errno::EINVAL));
}

#[test]
fn tmpfile_gets_a_name_by_a_link() {
    let mut share = share();
    let wire = CreateIn { flags: open_flags::RDWR.into(), mode: 0o600.into(), ..CreateIn::default() };
    let reply = share.call(opcode::TMPFILE, ROOT, &[wire.as_bytes(), &name("/")], 144).unwrap();
    let node = EntryOut::read_from_bytes(&reply[..128]).unwrap().nodeid;
    let link: EntryOut = share.get(opcode::LINK, ROOT, &[LinkIn { oldnodeid: node }.as_bytes(), &name("t")]).unwrap();
    assert_eq!((link.nodeid, link.attr.nlink.get()), (node, 1));
    assert_eq!(share.tree.content("t").unwrap(), b"");
}

#[test]
fn rename_modes_reach_the_back_end() {
    let mut share = share();
    share.tree.put("a", b"A");
    share.tree.put("b", b"B");
    let mut rename = |flags: u32, from: &str, to: &str| {
        let wire = Rename2In { newdir: ROOT.into(), flags: flags.into(), padding: 0.into() };
        share.call(opcode::RENAME2, ROOT, &[wire.as_bytes(), &name(from), &name(to)], 0).map(drop)
    };
    assert_eq!(rename(linux::RENAME_NOREPLACE, "a", "b"), Err(Errno::EEXIST));
    assert_eq!(rename(linux::RENAME_EXCHANGE, "a", "b"), Ok(()));
    assert_eq!(rename(8, "a", "b"), Err(Errno::EINVAL));
    assert_eq!(rename(0, "a", "b"), Ok(()));
    assert_eq!((share.tree.content("a"), share.tree.content("b").unwrap()), (None, b"B".to_vec()));
}

#[test]
fn seeks_syncs_and_statistics_are_answered() {
    let mut share = share();
    share.tree.put("f", b"0123");
    let node = share.lookup(ROOT, "f").unwrap().nodeid.get();
    let fh = share.open(node, 0).unwrap().fh;
    let mut seek = |offset: u64, whence: u32| {
        let wire = LseekIn { fh, offset: offset.into(), whence: whence.into(), padding: 0.into() };
        share.get::<LseekOut>(opcode::LSEEK, node, &[wire.as_bytes()]).map(|out| out.offset.get())
    };
    assert_eq!((seek(1, linux::SEEK_DATA), seek(1, linux::SEEK_HOLE)), (Ok(1), Ok(4)));
    assert_eq!((seek(4, linux::SEEK_DATA), seek(0, 2)), (Err(Errno::ENXIO), Err(Errno::EINVAL)));
    share.call(opcode::FSYNC, node, &[FsyncIn { fh, ..FsyncIn::default() }.as_bytes()], 0).unwrap();
    share.call(opcode::SYNCFS, ROOT, &[&[0; 8]], 0).unwrap();
    let stat: StatfsOut = share.get(opcode::STATFS, ROOT, &[]).unwrap();
    assert_eq!((stat.bsize.get(), stat.namelen.get(), stat.frsize.get()), (4096, 255, 4096));
    let counted: Vec<_> = share.counters.by_opcode().filter(|(name, ..)| ["lseek", "statfs"].contains(name)).collect();
    assert_eq!(counted, [("statfs", 1, 0), ("lseek", 4, 0)]);
}

#[test]
fn name_that_is_spelled_otherwise_is_not_remembered() {
    let server = Server::new(Arc::new(FileTree::new()), None, ServerOptions::default());
    let attr = Attr { mode: mode::FILE, nlink: 1, ..Attr::default() };
    let entry = |is_cacheable| server.entry_out(NodeId::ROOT, false, &Entry { node: NodeId(2), attr, is_cacheable });
    assert_eq!((entry(true).entry_valid.get(), entry(false).entry_valid.get()), (1, 0));
    assert_eq!(entry(false).attr_valid.get(), 1);
}

#[test]
fn recycled_slices_keep_their_memory() {
    let slices: Vec<VolatileSlice<'static>> = Vec::with_capacity(300);
    let place = slices.as_ptr().addr();
    let other: Vec<VolatileSlice<'_>> = recycle(slices);
    assert_eq!((other.capacity(), other.as_ptr().addr()), (300, place));
}

#[test]
fn agent_repeats_what_the_host_did_without_doing_it_again() {
    let (mut share, _) = watched();
    share.tree.put("hidden", b"1");
    share.caller = (0, 0, 7);
    assert_eq!(share.lookup(ROOT, "hidden").unwrap_err(), Errno::ENOENT);
    let wire = MknodIn { mode: 0o100_644.into(), ..MknodIn::default() };
    let made: EntryOut = share.get(opcode::MKNOD, ROOT, &[wire.as_bytes(), &name("hidden")]).unwrap();
    assert_eq!((made.attr.size.get(), share.tree.content("hidden").unwrap().len()), (1, 1));
    // What the host removed can be looked up once more, and removed.
    let phantom = share.lookup(ROOT, "phantom").unwrap();
    assert!(phantom.nodeid.get() > u64::MAX / 2 && phantom.entry_valid.get() == 0);
    share.call(opcode::RMDIR, ROOT, &[&name("phantom")], 0).unwrap();
    // What the host has is not removed.
    assert_eq!(share.call(opcode::UNLINK, ROOT, &[&name("hidden")], 0).unwrap_err(), Errno::EBUSY);
    share.caller = (0, 0, 8);
    assert_eq!(share.lookup(ROOT, "hidden").unwrap().nodeid, made.nodeid);
    assert_eq!(share.lookup(ROOT, "phantom").unwrap().nodeid.get(), 0);
}
