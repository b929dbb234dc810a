//! System calls of an AArch64 Linux, by their numbers (`asm-generic/unistd.h`): there is no C library here.
// UNSAFETY: the `svc` instruction, the entry point, and what the compiler takes for granted of a C library.
#![expect(unsafe_code, reason = "see UNSAFETY above")]

use core::arch::{asm, naked_asm};

/// A Linux error number.
#[derive(Clone, Copy)]
pub struct Error(pub u32);
pub type Result = core::result::Result<usize, Error>;

pub const AT_FDCWD: usize = -100_isize as usize;
pub const AT_EMPTY_PATH: usize = 0x1000;

fn call(number: usize, arguments: [usize; 6]) -> Result {
    let result: isize;
    // SAFETY: the kernel reads and writes only memory that the callers below hand it references of, for the time of the call, and no call
    // below changes this program's own mappings or threads.
    unsafe {
        asm!(
            "svc 0",
            in("x8") number, inlateout("x0") arguments[0] as isize => result, in("x1") arguments[1], in("x2") arguments[2],
            in("x3") arguments[3], in("x4") arguments[4], in("x5") arguments[5], options(nostack),
        );
    }
    if (-4095..0).contains(&result) { Err(Error(-result as u32)) } else { Ok(result as usize) }
}

/// A string of the kernel's: with its NUL.
fn text(bytes: &[u8]) -> usize {
    debug_assert!(bytes.contains(&0));
    bytes.as_ptr() as usize
}

pub fn read(fd: usize, to: &mut [u8]) -> Result {
    call(63, [fd, to.as_mut_ptr() as usize, to.len(), 0, 0, 0])
}

pub fn write(fd: usize, from: &[u8]) -> Result {
    call(64, [fd, from.as_ptr() as usize, from.len(), 0, 0, 0])
}

pub fn close(fd: usize) {
    let _ = call(57, [fd, 0, 0, 0, 0, 0]);
}

pub fn exit(status: usize) -> ! {
    loop {
        let _ = call(94, [status, 0, 0, 0, 0, 0]);
    }
}

pub fn pid() -> u32 {
    call(172, [0; 6]).unwrap_or(0) as u32
}

/// `struct sockaddr_vm`
fn address(cid: u32, port: u32) -> [u32; 4] {
    const AF_VSOCK: u32 = 40;
    [AF_VSOCK, port, cid, 0]
}

/// A stream to `port` of the host, from `own_port`.
pub fn connect(port: u32, own_port: u32) -> Result {
    const SOCK_STREAM_CLOEXEC: usize = 1 | 0o2_000_000;
    const CID_ANY: u32 = u32::MAX;
    const CID_HOST: u32 = 2;
    let fd = call(198, [40, SOCK_STREAM_CLOEXEC, 0, 0, 0, 0])?;
    let (ours, theirs) = (address(CID_ANY, own_port), address(CID_HOST, port));
    let bound = call(200, [fd, ours.as_ptr() as usize, 16, 0, 0, 0]);
    let connected = bound.and_then(|_| call(203, [fd, theirs.as_ptr() as usize, 16, 0, 0, 0]));
    if connected.is_err() {
        close(fd);
    }
    connected.map(|_| fd)
}

/// Mounts `source` of `kind` at no place; a descriptor of its root, without access to it.
pub fn mount(kind: &[u8], source: &[u8]) -> Result {
    const FSOPEN_CLOEXEC: usize = 1;
    const SET_STRING: usize = 1;
    const CREATE: usize = 6;
    let context = call(430, [text(kind), FSOPEN_CLOEXEC, 0, 0, 0, 0])?;
    let made = call(431, [context, SET_STRING, text(b"source\0"), text(source), 0, 0])
        .and_then(|_| call(431, [context, CREATE, 0, 0, 0, 0]))
        .and_then(|_| call(432, [context, FSOPEN_CLOEXEC, 0, 0, 0, 0]));
    close(context);
    made
}

/// Reconfigures the file system of `mount` to what it is, for which the kernel drops all unused names of it (`shrink_dcache_sb`).
pub fn reconfigure(mount: usize) -> Result {
    const CLOEXEC_EMPTY_PATH: usize = 1 | 8;
    const RECONFIGURE: usize = 7;
    let context = call(433, [mount, text(b"\0"), CLOEXEC_EMPTY_PATH, 0, 0, 0])?;
    let done = call(431, [context, RECONFIGURE, 0, 0, 0, 0]);
    close(context);
    done
}

pub fn change_directory(fd: usize) -> Result {
    call(50, [fd, 0, 0, 0, 0, 0])
}

/// A descriptor, without access, of the object that the file system of the working directory has in memory for FUSE node `node`.
pub fn open_node(node: u64) -> Result {
    const O_PATH_CLOEXEC: usize = 0o10_000_000 | 0o2_000_000;
    // `struct file_handle`: its length, FILEID_INO64_GEN, then as `fuse_encode_fh` makes it: the node's halves, the generation.
    let handle = [12, 0x81, (node >> 32) as u32, node as u32, 0];
    call(265, [AT_FDCWD, handle.as_ptr() as usize, O_PATH_CLOEXEC, 0, 0, 0])
}

/// Attributes of `fd`, not from the kernel's memory but asked for.
pub fn look(fd: usize) -> core::result::Result<[u64; 32], Error> {
    const AT_STATX_FORCE_SYNC: usize = 0x2000;
    const STATX_BASIC_STATS: usize = 0x7ff;
    let mut result = [0; 32];
    call(
        291,
        [fd, text(b"\0"), AT_EMPTY_PATH | AT_STATX_FORCE_SYNC, STATX_BASIC_STATS, result.as_mut_ptr() as usize, 0],
    )?;
    Ok(result)
}

/// Sets the times of `fd` to now, or leaves them: access, modification.
pub fn touch(fd: usize, access: bool, modification: bool) -> Result {
    const NOW: u64 = (1 << 30) - 1;
    const OMIT: u64 = (1 << 30) - 2;
    let nanos = |set| if set { NOW } else { OMIT };
    let times = [0, nanos(access), 0, nanos(modification)];
    call(88, [fd, text(b"\0"), times.as_ptr() as usize, AT_EMPTY_PATH, 0, 0])
}

/// A link to the root directory, which cannot be made, but not before `name` has been looked up.
pub fn link_nothing(directory: usize, name: &[u8]) -> Result {
    call(37, [AT_FDCWD, text(b"/\0"), directory, text(name), 0, 0])
}

pub fn make_node(directory: usize, name: &[u8], mode: usize) -> Result {
    call(33, [directory, text(name), mode, 0, 0, 0])
}

pub fn make_directory(directory: usize, name: &[u8]) -> Result {
    call(34, [directory, text(name), 0o755, 0, 0, 0])
}

pub fn make_symlink(directory: usize, name: &[u8]) -> Result {
    call(36, [text(b"?\0"), directory, text(name), 0, 0, 0])
}

pub fn remove(directory: usize, name: &[u8], is_directory: bool) -> Result {
    const AT_REMOVEDIR: usize = 0x200;
    call(35, [directory, text(name), if is_directory { AT_REMOVEDIR } else { 0 }, 0, 0, 0])
}

pub fn rename(directory: usize, name: &[u8], new_directory: usize, new_name: &[u8]) -> Result {
    call(276, [directory, text(name), new_directory, text(new_name), 0, 0])
}

pub fn sleep(seconds: u64) {
    let time = [seconds, 0];
    let _ = call(101, [time.as_ptr() as usize, 0, 0, 0, 0, 0]);
}

/// Where the kernel starts the program.
// SAFETY: no other symbol of the program has this name; the kernel enters it with an aligned stack.
#[unsafe(no_mangle)]
#[unsafe(naked)]
extern "C" fn _start() -> ! {
    naked_asm!("mov x29, xzr", "mov x30, xzr", "b {main}", main = sym crate::main)
}

// The compiler makes calls of these where it sees loops that copy, fill or compare. Loops of bytes by volatile accesses, or they would be
// calls of themselves.
/// # Safety
/// As memcpy(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    for at in 0..len {
        // SAFETY: the caller's: `len` bytes of each may be accessed.
        unsafe { to.add(at).write_volatile(from.add(at).read_volatile()) };
    }
    to
}

/// # Safety
/// As memset(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, byte: i32, len: usize) -> *mut u8 {
    for at in 0..len {
        // SAFETY: the caller's: `len` bytes may be written.
        unsafe { to.add(at).write_volatile(byte as u8) };
    }
    to
}
