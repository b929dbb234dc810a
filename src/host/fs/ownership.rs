//! Ownership and modes laid over the host's, for a server that is an ordinary user.
//!
//! Such a server cannot give files away, make devices, or let a setuid bit be. So what the guest is told differs from what the host has,
//! and the difference is kept in an extended attribute of the file, [`RECORD`]; a file without one has the *default view*: what belongs to
//! the server's user belongs to root in the guest, all else to nobody. Permission bits are applied to the host as well, except that the
//! server's user always keeps reading and writing (`0600`, `0700` of a directory): host tools see sensible files. Setuid, setgid, sticky
//! bits, devices, FIFOs and sockets exist in the record alone; the last three are empty regular files on the host.
//!
//! A chmod on the host that came after the record is honoured: the record remembers what permissions the host had, and where they are
//! others now, those count.
//!
//! This file knows no system call: it says what to store and what to show.

use minivmm_devices::virtio::fs::attr::{Attr, Time, mode};

use super::stat::Stat;

/// Where the record of a file is.
pub const RECORD: &std::ffi::CStr = c"user.minivmm.stat";
/// The longest record.
pub const RECORD_MAX_BYTES: usize = 80;
/// Whom files of other host users belong to in the guest.
pub const NOBODY: u32 = 65534;

/// What the guest is told instead of what the host has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// Owner in the guest.
    pub uid: u32,
    /// Group in the guest.
    pub gid: u32,
    /// Type and permissions in the guest.
    pub mode: u32,
    /// Permission bits that the host's file was given.
    pub host_mode: u32,
    /// Device number in the guest, `new_encode_dev` form.
    pub rdev: u32,
}

/// A record that was read, or that there was none, and of which state of the file.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// The file's change time then; `None` if it was written since.
    pub ctime: Option<Time>,
    /// What there was.
    pub record: Option<Record>,
}

/// The users of the default view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View {
    /// The server's user on the host: root in the guest.
    pub uid: u32,
    /// The server's group on the host: root's in the guest. `None` where a new file's group is its directory's, whoever makes it: then every
    /// group is root's.
    pub gid: Option<u32>,
}

impl Record {
    /// Reads what [`Self::encode`] wrote; `None` if it is anything else: the attribute is the host user's to break.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?;
        let mut fields = text.split(':');
        let mut next = |radix| u32::from_str_radix(fields.next()?, radix).ok();
        let (uid, gid, mode, host_mode, rdev) = (next(10)?, next(10)?, next(8)?, next(8)?, next(16)?);
        let record = Self { uid, gid, mode, host_mode, rdev };
        let is_known = matches!(
            mode & mode::TYPE,
            mode::FILE | mode::DIRECTORY | mode::SYMLINK | mode::FIFO | mode::SOCKET | mode::BLOCK | mode::CHARACTER
        );
        (fields.next().is_none() && is_known && mode <= 0o177_777).then_some(record)
    }

    /// `uid:gid:mode:host mode:device`, readable by people: decimal, decimal, octal, octal, hexadecimal.
    pub fn encode(&self) -> String {
        format!("{}:{}:{:o}:{:o}:{:x}", self.uid, self.gid, self.mode, self.host_mode, self.rdev)
    }

    /// Whether the guest's type is one that the host has as an empty regular file.
    pub fn is_placeholder(&self) -> bool {
        is_placeholder(self.mode)
    }
}

/// Whether a file of this type is an empty regular file on the host.
pub fn is_placeholder(mode: u32) -> bool {
    !matches!(mode & mode::TYPE, mode::FILE | mode::DIRECTORY | mode::SYMLINK)
}

/// The permission bits that a file with `mode` in the guest gets on the host.
pub fn host_mode(mode: u32) -> u32 {
    if is_placeholder(mode) {
        return 0o600;
    }
    let keep = if mode & mode::TYPE == mode::DIRECTORY { 0o700 } else { 0o600 };
    (mode & 0o777) | keep
}

impl View {
    /// What the guest is told of a file that has `record`.
    pub fn attr(&self, stat: &Stat, record: Option<&Record>, parent_mount: u64) -> Attr {
        let mut attr = stat.attr(parent_mount);
        let host_type = stat.file_type();
        // A record that says another type than a host file can stand for is not of this file.
        let fits = |record: &&Record| {
            let told = record.mode & mode::TYPE;
            told == host_type || (host_type == mode::FILE && record.is_placeholder())
        };
        let Some(record) = record.filter(fits) else {
            attr.uid = if stat.uid == self.uid { 0 } else { NOBODY };
            attr.gid = if self.gid.is_none_or(|gid| gid == stat.gid) { 0 } else { NOBODY };
            // Setuid on the host is for the host's users.
            let kept = if host_type == mode::DIRECTORY { 0o3777 } else { 0o1777 };
            attr.mode = host_type | (stat.mode & kept);
            return attr;
        };
        (attr.uid, attr.gid, attr.mode) = (record.uid, record.gid, record.mode);
        if record.is_placeholder() {
            (attr.rdev, attr.size, attr.blocks) = (record.rdev, 0, 0);
        }
        let permissions = stat.mode & 0o777;
        if host_type != mode::SYMLINK && permissions != record.host_mode {
            attr.mode = (record.mode & !0o777) | permissions;
        }
        attr
    }

    /// The record that makes the guest see `attr`; `None` if the default view shows it already. The host's file has the permissions
    /// [`host_mode`] of it.
    pub fn record(&self, attr: &Attr, stat: &Stat) -> Option<Record> {
        let host = if stat.file_type() == mode::SYMLINK { stat.mode & 0o777 } else { host_mode(attr.mode) };
        let record = Record { uid: attr.uid, gid: attr.gid, mode: attr.mode, host_mode: host, rdev: attr.rdev };
        let mut after = *stat;
        after.mode = (stat.mode & !0o777) | host;
        let shown = self.attr(&after, None, stat.identity.mount);
        let is_default = (shown.uid, shown.gid, shown.mode) == (record.uid, record.gid, record.mode);
        (!is_default).then_some(record)
    }
}

/// The group and mode of a new object in a directory with these attributes (`inode_init_owner`, fs/inode.c): a setgid directory gives
/// its group, and subdirectories the bit too; a file loses setgid if its maker is not in that group.
pub fn inherit(directory: &Attr, mode: u32, gid: u32, is_in_group: bool) -> (u32, u32) {
    if directory.mode & mode::SETGID == 0 {
        return (mode, gid);
    }
    let group = directory.gid;
    if mode & mode::TYPE == mode::DIRECTORY {
        return (mode | mode::SETGID, group);
    }
    let executable = mode & (mode::SETGID | 0o010) == mode::SETGID | 0o010;
    let mode = if executable && !is_in_group { mode & !mode::SETGID } else { mode };
    (mode, group)
}

/// `mode` after its file was written by somebody who may not keep setuid and setgid (`setattr_should_drop_suidgid`, fs/attr.c).
pub fn without_privilege(mode: u32) -> u32 {
    if mode & mode::TYPE != mode::FILE {
        return mode;
    }
    let mode = mode & !mode::SETUID;
    if mode & 0o010 == 0 { mode } else { mode & !mode::SETGID }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::fs::stat::Identity;

    const VIEW: View = View { uid: 501, gid: Some(20) };

    fn stat(mode: u32, uid: u32, gid: u32) -> Stat {
        let time = Time { secs: 1, nanos: 2 };
        Stat {
            identity: Identity { device: 1, ino: 2, mount: 0, born: None },
            mode,
            nlink: 1,
            uid,
            gid,
            rdev: 0,
            size: 5,
            blocks: 8,
            blksize: 4096,
            atime: time,
            mtime: time,
            ctime: time,
            btime: None,
            has_no_xattrs: false,
        }
    }

    fn shown(stat: &Stat, record: Option<&Record>) -> (u32, u32, u32) {
        let attr = VIEW.attr(stat, record, 0);
        (attr.uid, attr.gid, attr.mode)
    }

    #[test]
    fn record_survives_its_encoding() {
        let record = Record { uid: 1000, gid: u32::MAX, mode: mode::BLOCK | 0o6751, host_mode: 0o600, rdev: 0xfff };
        assert_eq!(record.encode(), "1000:4294967295:66751:600:fff");
        assert_eq!(Record::decode(record.encode().as_bytes()), Some(record));
        let longest = Record { uid: u32::MAX, gid: u32::MAX, mode: 0o177_777, host_mode: 0o777, rdev: u32::MAX };
        assert!(longest.encode().len() <= RECORD_MAX_BYTES);
    }

    #[test]
    fn what_is_no_record_is_none() {
        for text in
            ["", "1:2", "1:2:100644:644", "1:2:100644:644:0:0", "1:2:644:644:0", "a:2:100644:644:0", "1:2:9:644:0"]
        {
            assert_eq!(Record::decode(text.as_bytes()), None, "{text}");
        }
        assert_eq!(Record::decode(b"\xff:2:100644:644:0"), None);
        assert_eq!(Record::decode(b"1:2:1100644:644:0"), None);
    }

    #[test]
    fn servers_files_are_roots_and_others_nobodys() {
        assert_eq!(shown(&stat(mode::FILE | 0o644, 501, 20), None), (0, 0, mode::FILE | 0o644));
        assert_eq!(shown(&stat(mode::FILE | 0o644, 0, 0), None), (NOBODY, NOBODY, mode::FILE | 0o644));
    }

    #[test]
    fn setuid_of_the_host_is_not_the_guests() {
        assert_eq!(shown(&stat(mode::FILE | 0o6755, 501, 20), None).2, mode::FILE | 0o755);
        assert_eq!(shown(&stat(mode::DIRECTORY | 0o3755, 501, 20), None).2, mode::DIRECTORY | 0o3755);
    }

    #[test]
    fn default_view_needs_no_record() {
        let stat = stat(mode::FILE | 0o644, 501, 20);
        let attr = VIEW.attr(&stat, None, 0);
        assert_eq!(VIEW.record(&attr, &stat), None);
        assert!(VIEW.record(&Attr { uid: 7, ..attr }, &stat).is_some());
        // 0444 is 0644 on the host, so it has to be recorded.
        assert!(VIEW.record(&Attr { mode: mode::FILE | 0o444, ..attr }, &stat).is_some());
    }

    #[test]
    fn host_keeps_reading_and_writing() {
        assert_eq!(host_mode(mode::FILE | 0o444), 0o644);
        assert_eq!(host_mode(mode::FILE), 0o600);
        assert_eq!(host_mode(mode::FILE | 0o4755), 0o755);
        assert_eq!(host_mode(mode::DIRECTORY), 0o700);
        assert_eq!(host_mode(mode::CHARACTER | 0o666), 0o600);
    }

    #[test]
    fn placeholder_is_what_its_record_says() {
        let record = Record { uid: 3, gid: 4, mode: mode::CHARACTER | 0o620, host_mode: 0o600, rdev: 0x103 };
        let attr = VIEW.attr(&stat(mode::FILE | 0o600, 501, 20), Some(&record), 0);
        assert_eq!((attr.mode, attr.rdev, attr.size, attr.blocks), (mode::CHARACTER | 0o620, 0x103, 0, 0));
    }

    #[test]
    fn record_of_another_type_is_not_this_files() {
        let record = Record { uid: 3, gid: 4, mode: mode::DIRECTORY | 0o755, host_mode: 0o755, rdev: 0 };
        assert_eq!(shown(&stat(mode::FILE | 0o644, 501, 20), Some(&record)).0, 0);
    }

    #[test]
    fn chmod_of_the_host_counts_if_it_came_later() {
        let record = Record { uid: 3, gid: 4, mode: mode::FILE | 0o4444, host_mode: 0o644, rdev: 0 };
        assert_eq!(shown(&stat(mode::FILE | 0o644, 501, 20), Some(&record)).2, mode::FILE | 0o4444);
        assert_eq!(shown(&stat(mode::FILE | 0o600, 501, 20), Some(&record)).2, mode::FILE | 0o4600);
    }

    #[test]
    fn setgid_directory_gives_its_group() {
        let directory = Attr { mode: mode::DIRECTORY | 0o2775, gid: 50, ..Attr::default() };
        assert_eq!(inherit(&directory, mode::DIRECTORY | 0o755, 7, true), (mode::DIRECTORY | 0o2755, 50));
        assert_eq!(inherit(&directory, mode::FILE | 0o2755, 7, true), (mode::FILE | 0o2755, 50));
        assert_eq!(inherit(&directory, mode::FILE | 0o2755, 7, false), (mode::FILE | 0o755, 50));
        assert_eq!(inherit(&directory, mode::FILE | 0o2644, 7, false), (mode::FILE | 0o2644, 50));
        let ordinary = Attr { mode: mode::DIRECTORY | 0o775, ..directory };
        assert_eq!(inherit(&ordinary, mode::FILE | 0o2755, 7, false), (mode::FILE | 0o2755, 7));
    }

    #[test]
    fn write_takes_setuid_and_executable_setgid_away() {
        assert_eq!(without_privilege(mode::FILE | 0o6755), mode::FILE | 0o755);
        assert_eq!(without_privilege(mode::FILE | 0o6745), mode::FILE | 0o2745);
        assert_eq!(without_privilege(mode::DIRECTORY | 0o6755), mode::DIRECTORY | 0o6755);
    }
}
