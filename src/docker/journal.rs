//! The guest's console on disk, in two files of bounded size, and what the guest reports on it.
//!
//! The guest's scripts say how far they are in lines that begin with [`REPORT`]. They are what a person would read there; nothing depends
//! on them but messages, since any program in the guest that may write to its console can forge one.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use minivmm_firmware::guest::docker::{FAILED, REPORT};

/// A file that has more gives way to a new one; the one before that goes.
const MAX_FILE_BYTES: u64 = 8 << 20;
/// Longest line that is looked at.
const MAX_LINE_BYTES: usize = 512;

/// What the guest says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// It has come to this stage.
    Stage(String),
    /// It gives up, for this reason.
    Failed(String),
}

/// Writes what the guest prints, and reads the reports in it.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    written: u64,
    line: Vec<u8>,
}

impl Journal {
    /// Continues the file at `path`.
    ///
    /// # Errors
    /// The host's.
    pub fn open(path: PathBuf) -> io::Result<Self> {
        let file = append(&path)?;
        let written = file.metadata()?.len();
        Ok(Self { path, file, written, line: Vec::new() })
    }

    /// Takes everything from `console` to its end. A host that has no room for it loses it; the guest goes on.
    pub fn follow(mut self, mut console: impl Read, mut report: impl FnMut(Report)) {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = console.read(&mut buffer) {
            self.take(buffer.get(..count).unwrap_or_default(), &mut report);
        }
    }

    fn take(&mut self, bytes: &[u8], report: &mut impl FnMut(Report)) {
        if self.written >= MAX_FILE_BYTES {
            // Else it goes on in the old file, which is better than nowhere.
            if fs::rename(&self.path, self.path.with_added_extension("1")).is_ok()
                && let Ok(file) = append(&self.path)
            {
                (self.file, self.written) = (file, 0);
            }
        }
        if self.file.write_all(bytes).is_ok() {
            self.written += bytes.len() as u64;
        }
        for &byte in bytes {
            match byte {
                b'\n' => {
                    if let Some(found) = parse(&String::from_utf8_lossy(&self.line)) {
                        report(found);
                    }
                    self.line.clear();
                }
                byte if self.line.len() < MAX_LINE_BYTES => self.line.push(byte),
                _ => {}
            }
        }
    }
}

fn append(path: &PathBuf) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

/// `minivmm: STAGE SECONDS`, or `minivmm: failed REASON: SECONDS`.
fn parse(line: &str) -> Option<Report> {
    let (text, _seconds) = line.trim_end().strip_prefix(REPORT)?.rsplit_once(' ')?;
    let printable = || text.chars().filter(|c| !c.is_control()).collect::<String>();
    match text.split_once(' ') {
        Some((FAILED, _)) => {
            Some(Report::Failed(printable().trim_start_matches(FAILED).trim_matches([' ', ':']).to_owned()))
        }
        None => Some(Report::Stage(printable())),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_are_found_among_other_lines() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let text = "[ 1.0] kernel\r\nminivmm: init 1.25\r\nx minivmm: no 1\nminivmm: two words 3\nminivmm: failed no \x1bdisk: 3.5\n";
        let mut reports = Vec::new();
        Journal::open(path.clone()).unwrap().follow(text.as_bytes(), |report| reports.push(report));
        assert_eq!(reports, [Report::Stage("init".to_owned()), Report::Failed("no disk".to_owned())]);
        assert_eq!(fs::read_to_string(path).unwrap(), text);
    }

    #[test]
    fn files_are_bounded_and_the_last_words_stay() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let old = path.with_added_extension("1");
        let limit = usize::try_from(MAX_FILE_BYTES).unwrap();
        let mut journal = Journal::open(path.clone()).unwrap();
        for _ in 0..5 {
            journal.take(&vec![b'x'; limit / 2], &mut |_| panic!("no report"));
        }
        journal.take(b"last\n", &mut |_| ());
        assert_eq!(fs::metadata(&old).unwrap().len(), MAX_FILE_BYTES);
        assert!(fs::read(&path).unwrap().ends_with(b"last\n"));
        // The next process goes on where this one stopped.
        let len = fs::metadata(&path).unwrap().len();
        assert_eq!(Journal::open(path).unwrap().written, len);
    }

    #[test]
    fn endless_line_needs_no_memory() {
        let directory = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(directory.path().join("log")).unwrap();
        journal.take(&[b'x'; 100_000], &mut |_| ());
        assert_eq!(journal.line.len(), MAX_LINE_BYTES);
    }
}
