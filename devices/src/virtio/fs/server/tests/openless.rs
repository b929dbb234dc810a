//! A session without OPEN, as the guest's kernel sees it.

use super::*;

const NONE: U = U::new(0);

/// A share whose guest sends no OPEN, with the file `f`, which it knows as the second number.
fn openless() -> (Share, u64) {
    let mut share = with_cache(CacheMode::Always);
    share.tree.put("f", b"content");
    let node = share.lookup(ROOT, "f").unwrap().nodeid.get();
    (share, node)
}

#[test]
fn first_open_is_answered_that_there_is_none() {
    let (mut share, node) = openless();
    assert_eq!(share.open(node, open_flags::RDWR).unwrap_err(), Errno::ENOSYS);
    assert_eq!(share.read(node, NONE, 0, 100).unwrap(), b"content");
    let wire = WriteIn { offset: 7.into(), ..WriteIn::default() };
    assert_eq!(share.write(node, wire, b", and more"), Ok(10));
    assert_eq!(share.tree.content("f").unwrap(), b"content, and more");
    assert_eq!(share.release(node, NONE), Ok(Vec::new()), "of who opened it before the answer came");
}

#[test]
fn created_file_is_open_until_the_guest_forgets_it() {
    let (mut share, _) = openless();
    let (entry, open) = share.create(ROOT, "new", open_flags::WRONLY).unwrap();
    let node = entry.nodeid.get();
    assert_eq!(open.fh.get(), 0);
    assert_eq!(share.write(node, WriteIn::default(), b"abc"), Ok(3));
    share.forget(node, 1);
    assert_eq!(share.tree.known().1, 0);
    assert_eq!(share.tree.content("new").unwrap(), b"abc");
}

#[test]
fn appending_and_durable_writes_are_what_each_request_says() {
    let (mut share, node) = openless();
    let append = WriteIn { flags: (open_flags::WRONLY | open_flags::APPEND).into(), ..WriteIn::default() };
    share.write(node, append, b"+").unwrap();
    assert_eq!(share.tree.content("f").unwrap(), b"content+");
    let synced = |share: &mut Share, flags: u32| {
        let before = share.tree.syncs();
        share.write(node, WriteIn { flags: flags.into(), ..WriteIn::default() }, b"x").unwrap();
        share.tree.syncs() - before
    };
    assert_eq!(synced(&mut share, open_flags::WRONLY), 0);
    assert_eq!(synced(&mut share, open_flags::WRONLY | open_flags::DSYNC), 1);
    assert_eq!(synced(&mut share, open_flags::WRONLY | open_flags::DSYNC | open_flags::SYNC), 1);
}

#[test]
fn requests_about_open_files_need_no_handle() {
    let (mut share, node) = openless();
    let sync = FsyncIn::default();
    assert_eq!(share.call(opcode::FSYNC, node, &[sync.as_bytes()], 0), Ok(Vec::new()));
    let extend = FallocateIn { length: 10.into(), ..FallocateIn::default() };
    assert_eq!(share.call(opcode::FALLOCATE, node, &[extend.as_bytes()], 0), Ok(Vec::new()));
    let hole = LseekIn { whence: linux::SEEK_HOLE.into(), ..LseekIn::default() };
    assert_eq!(share.get::<LseekOut>(opcode::LSEEK, node, &[hole.as_bytes()]).unwrap().offset.get(), 10);
    let getattr = GetattrIn { getattr_flags: GETATTR_FH.into(), ..GetattrIn::default() };
    assert_eq!(share.get::<AttrOut>(opcode::GETATTR, node, &[getattr.as_bytes()]).unwrap().attr.size.get(), 10);
    let cut = SetattrIn { valid: (fattr::SIZE | fattr::FH).into(), size: 3.into(), ..SetattrIn::default() };
    assert_eq!(share.get::<AttrOut>(opcode::SETATTR, node, &[cut.as_bytes()]).unwrap().attr.size.get(), 3);
    share.tree.put("to", b"");
    let to = share.lookup(ROOT, "to").unwrap().nodeid;
    let copy = CopyFileRangeIn { nodeid_out: to, len: 3.into(), ..CopyFileRangeIn::default() };
    assert_eq!(share.get::<WriteOut>(opcode::COPY_FILE_RANGE, node, &[copy.as_bytes()]).unwrap().size.get(), 3);
    assert_eq!(share.tree.content("to").unwrap(), b"con");
}

#[test]
fn directories_are_opened_as_ever() {
    let (mut share, _) = openless();
    let open: OpenOut = share.get(opcode::OPENDIR, ROOT, &[OpenIn::default().as_bytes()]).unwrap();
    let wire = ReadIn { fh: open.fh, size: 4096.into(), ..ReadIn::default() };
    let listed = share.call(opcode::READDIR, ROOT, &[wire.as_bytes()], 4096).unwrap();
    assert_eq!(entries(&listed, false).len(), 3);
    let wire = ReleaseIn { fh: open.fh, ..ReleaseIn::default() };
    share.call(opcode::RELEASEDIR, ROOT, &[wire.as_bytes()], 0).unwrap();
    assert_eq!(share.tree.known().1, 0);
}

#[test]
fn nothing_stays_open_when_the_guest_unmounts() {
    let (mut share, node) = openless();
    share.read(node, NONE, 0, 1).unwrap();
    share.create(ROOT, "new", open_flags::RDWR).unwrap();
    share.call(opcode::DESTROY, 0, &[], 0).unwrap();
    assert_eq!(share.tree.known().1, 0);
    share.mount(!0);
    let again = share.lookup(ROOT, "f").unwrap().nodeid.get();
    assert_eq!(share.read(again, NONE, 0, 1), Ok(b"c".to_vec()), "{again} was {node}");
}

#[test]
fn who_may_not_write_is_told_at_open() {
    let mut share = share_with(ServerOptions { read_only: true, cache: CacheMode::Always }, None);
    share.tree.put("f", b"content");
    let node = share.lookup(ROOT, "f").unwrap().nodeid.get();
    assert_eq!(share.open(node, open_flags::WRONLY).unwrap_err(), Errno::EROFS);
    assert_eq!(share.open(node, 0).unwrap().open_flags.get(), fopen::KEEP_CACHE);
}
