//! Runs the `minivmm` command, and makes guests of a few instructions for it.
#![expect(dead_code, reason = "every test file uses a part of this")]

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, PoisonError};

pub mod debian;
pub mod gic;
pub mod guest;
pub mod network;
pub mod session;
pub mod share;
#[cfg_attr(target_os = "macos", path = "no_simulator.rs")]
pub mod simulator;
pub mod small_guest;
pub mod stock_kernel;
pub mod system;
#[cfg(target_os = "linux")]
pub mod terminal;

/// The command under test with `arguments`, without a terminal, its bundle cache at a place that does not exist.
pub fn minivmm<S: AsRef<OsStr>>(arguments: &[S]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_minivmm"));
    command.args(arguments).stdin(Stdio::null()).env_remove("MINIVMM_LOG").env_remove("MINIVMM_DEBIAN_MIRROR");
    command
}

/// Exit status, standard output, standard error.
pub fn run<S: AsRef<OsStr>>(arguments: &[S]) -> (i32, String, String) {
    parts(minivmm(arguments).output().unwrap())
}

pub fn parts(output: Output) -> (i32, String, String) {
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
}

/// A file of `len` zero bytes, which take no room on the host's disk.
pub fn file_of_len(path: &Path, len: u64) -> PathBuf {
    File::create(path).unwrap().set_len(len).unwrap();
    path.to_owned()
}

/// A guest: an arm64 `Image` whose first instruction after the header is the first of `code`.
pub fn write_image(path: &Path, code: &[u32]) -> PathBuf {
    // Linux, Documentation/arch/arm64/booting.rst, "Call the kernel image".
    let mut image = Vec::new();
    image.extend(0x1400_0010_u32.to_le_bytes()); // code0: b . + 64
    image.extend(0_u32.to_le_bytes()); // code1
    image.extend(0_u64.to_le_bytes()); // text_offset
    image.extend(0x1_0000_u64.to_le_bytes()); // image_size
    image.extend(0xa_u64.to_le_bytes()); // flags: little-endian, 4 KiB pages, anywhere
    image.extend([0; 24]);
    image.extend(*b"ARM\x64");
    image.extend(0_u32.to_le_bytes());
    assert_eq!(image.len(), 64);
    image.extend(code.iter().flat_map(|word| word.to_le_bytes()));
    std::fs::write(path, image).unwrap();
    path.to_owned()
}

/// `mov x<register>, #value`, 32 bits of it.
pub fn mov(register: u32, value: u32) -> [u32; 2] {
    let movz = 0xd280_0000 | (value & 0xffff) << 5 | register;
    let movk = 0xf2a0_0000 | (value >> 16) << 5 | register;
    [movz, movk]
}

/// `hvc #0`.
pub const HVC: u32 = 0xd400_0002;
/// `b .`
pub const LOOP: u32 = 0x1400_0000;
/// `wfi`
pub const WFI: u32 = 0xd503_207f;

/// Calls PSCI function `function` without arguments.
pub fn psci(function: u32) -> Vec<u32> {
    [&mov(0, function)[..], &[HVC, LOOP]].concat()
}

/// Prints `text` on the PL011.
pub fn print(text: &str) -> Vec<u32> {
    let mut code = mov(2, 0x0b00_0000).to_vec();
    for byte in text.bytes() {
        code.extend(mov(1, byte.into()));
        code.push(0x3900_0041); // strb w1, [x2]
    }
    code
}

pub const SYSTEM_OFF: u32 = 0x8400_0008;
pub const SYSTEM_RESET: u32 = 0x8400_0009;

/// A disk image with the program that `tests/guests/NAME/NAME.c` makes, static, for arm64 Linux. `None` where there is no compiler for
/// it, which is said.
pub fn guest_program(name: &str) -> Option<PathBuf> {
    // Once: a guest of another test may be reading it.
    static MADE: Mutex<BTreeMap<String, Option<PathBuf>>> = Mutex::new(BTreeMap::new());
    let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
    made.entry(name.to_owned()).or_insert_with(|| make_guest_program(name)).clone()
}

fn make_guest_program(name: &str) -> Option<PathBuf> {
    let source = format!("{}/tests/guests/{name}/{name}.c", env!("CARGO_MANIFEST_DIR"));
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let mut compiler = Command::new("aarch64-linux-gnu-gcc");
    compiler.args(["-O2", "-Wall", "-Wextra", "-Werror", "-static", "-pthread", "-o"]).arg(&program).arg(source);
    match compiler.status() {
        Ok(status) => assert!(status.success(), "{name} does not compile"),
        Err(error) => {
            eprintln!("skipped: aarch64-linux-gnu-gcc: {error}");
            return None;
        }
    }
    let image = program.with_extension("img");
    let mut bytes = fs::read(program).unwrap();
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    fs::write(&image, bytes).unwrap();
    Some(image)
}
