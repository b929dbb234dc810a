//! The independent processor: QEMU user mode, which runs `tests/guests/oracle/oracle.c`.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use crate::case::Case;
use crate::state::{BRK, CODE_WORDS, INPUT_BYTES, OUTPUT_BYTES, Outcome, decode_outcome, encode_case};

const MAGIC: u32 = 0x4d56_444f;
const EMULATOR: &str = "qemu-aarch64";
const COMPILER: &str = "aarch64-linux-gnu-gcc";

/// A processor model of QEMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Model {
    /// Every feature QEMU has, without those that change instructions we give another meaning: PAuth, which makes
    /// hints write registers, and SVE, which enlarges signal frames.
    Max,
    /// Armv8.0 with CRC32, whose DC ZVA block is 64 bytes as ours is (QEMU's `max` has 512 in user mode).
    CortexA72,
}

impl Model {
    fn argument(self) -> &'static str {
        match self {
            Self::Max => "max,pauth=off,sve=off,sme=off",
            Self::CortexA72 => "cortex-a72",
        }
    }
}

/// Why the oracle cannot be had on this host.
#[derive(Debug)]
pub struct Missing(pub String);

/// A running oracle.
#[derive(Debug)]
pub struct Oracle {
    child: Child,
    stdin: ChildStdin,
    stdout: ChildStdout,
    buffer: Vec<u8>,
}

impl Oracle {
    /// Compiles the guest program and returns its path.
    ///
    /// # Errors
    /// [`Missing`] when the host has no cross compiler or no emulator.
    pub fn build() -> Result<PathBuf, Missing> {
        for program in [COMPILER, EMULATOR] {
            let found = Command::new(program).arg("--version").stdout(Stdio::null()).status();
            if !found.is_ok_and(|status| status.success()) {
                return Err(Missing(format!(
                    "{program} is not installed (Debian: apt-get install qemu-user gcc-aarch64-linux-gnu)"
                )));
            }
        }
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/guests/oracle/oracle.c");
        let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("oracle");
        // Several test processes may build at once: each writes a file of its own, and puts it in place whole.
        let unfinished = program.with_extension(std::process::id().to_string());
        let status = Command::new(COMPILER)
            .args(["-O2", "-nostdlib", "-static", "-ffreestanding", "-fno-stack-protector"])
            .args(["-fno-tree-loop-distribute-patterns", "-Wl,-Ttext-segment=0x5a5a5a0000"])
            .arg(source)
            .arg("-o")
            .arg(&unfinished)
            .status()
            .expect("the compiler was there a moment ago");
        assert!(status.success(), "the oracle does not compile");
        std::fs::rename(&unfinished, &program).expect("both names are in the same directory");
        Ok(program)
    }

    /// Starts the `program` that [`Oracle::build`] made on `model`.
    pub fn start(program: &Path, model: Model) -> Self {
        let mut child = Command::new(EMULATOR)
            .args(["-cpu", model.argument()])
            .arg(program)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the emulator was there a moment ago");
        let stdin = child.stdin.take().expect("stdin is a pipe");
        let stdout = child.stdout.take().expect("stdout is a pipe");
        Self { child, stdin, stdout, buffer: Vec::new() }
    }

    /// Hands over a batch; the oracle works on it while the caller does something else.
    pub fn send<'a>(&mut self, cases: impl ExactSizeIterator<Item = &'a Case>) {
        let count = u32::try_from(cases.len()).expect("a batch is small");
        self.buffer.clear();
        self.buffer.reserve(8 + cases.len() * INPUT_BYTES);
        self.buffer.extend_from_slice(&MAGIC.to_le_bytes());
        self.buffer.extend_from_slice(&count.to_le_bytes());
        for case in cases {
            // An outcome that is known already is not asked for: QEMU 7.2 aborts on some words of FEAT_FP16.
            let code = if case.draft.expected.is_some() { &[BRK; CODE_WORDS] } else { &case.draft.code };
            encode_case(&case.state, code, &mut self.buffer);
        }
        self.stdin.write_all(&self.buffer).expect("the oracle reads a whole batch");
    }

    /// The outcomes of the batch that was sent last, which had `count` cases.
    pub fn receive(&mut self, count: usize) -> Vec<Outcome> {
        self.buffer.resize(count * OUTPUT_BYTES, 0);
        if let Err(error) = self.stdout.read_exact(&mut self.buffer) {
            panic!("the oracle ended in the middle of a batch: {error}, {:?}", self.child.wait());
        }
        self.buffer.chunks_exact(OUTPUT_BYTES).map(decode_outcome).collect()
    }
}

impl Drop for Oracle {
    fn drop(&mut self) {
        // After a panic it may be waiting for someone to read its results.
        if let Err(error) = self.child.kill().and_then(|()| self.child.wait()) {
            eprintln!("cannot end the oracle: {error}");
        }
    }
}
