//! A thread that is somebody else than its process, for tests.

use rustix::process::{Gid, Uid};

/// Makes this thread, which is root's, nobody's from now on. Whether it is.
pub fn become_nobody() -> bool {
    let (uid, gid) = (Uid::from_raw(65534), Gid::from_raw(65534));
    rustix::thread::set_thread_groups(&[]).unwrap();
    rustix::thread::set_thread_res_gid(gid, gid, gid).unwrap();
    rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
    true
}
