//! The jobs that the suite submits.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;

use crate::support::{TempDir, meet};

#[procpool::task]
pub(super) fn double(n: u64) -> u64 {
    n * 2
}

/// Panics with a message that holds its argument.
#[procpool::task]
pub(super) fn fail(n: u64) -> u64 {
    panic!("no {n}")
}

/// Doubles even numbers; panics on odd ones.
#[procpool::task]
pub(super) fn even_only(n: u64) -> u64 {
    assert!(n.is_multiple_of(2), "{n} is odd");
    n * 2
}

/// Says a word at a meeting, waits there, and returns the word.
#[procpool::task]
pub(super) fn wait_at((meeting, word): (String, String)) -> String {
    meet(&meeting, &word);
    word
}

/// As [`wait_at`], then doubles: for tests that need the same type as [`double`].
#[procpool::task]
pub(super) fn wait_and_double((meeting, n): (String, u64)) -> u64 {
    meet(&meeting, "double");
    n * 2
}

/// As [`wait_at`], then panics.
#[procpool::task]
pub(super) fn wait_and_fail((meeting, n): (String, u64)) -> u64 {
    meet(&meeting, "fail");
    fail(n)
}

/// As [`wait_at`], then dies of a real segmentation fault.
#[procpool::task]
pub(super) fn wait_and_die((meeting, _): (String, u64)) -> u64 {
    meet(&meeting, "die");
    bad_write()
}

/// Adds a line to a file; one write, so lines of several processes do not mix.
#[procpool::task]
pub(super) fn mark((path, line): (String, String)) {
    let mut file = OpenOptions::new().append(true).create(true).open(path).unwrap();
    file.write_all(format!("{line}\n").as_bytes()).unwrap();
}

#[procpool::task]
pub(super) fn pid((): ()) -> u32 {
    std::process::id()
}

#[procpool::task]
pub(super) fn segv(_: u64) -> u64 {
    bad_write()
}

#[procpool::task]
pub(super) fn exit(code: i32) -> u64 {
    std::process::exit(code)
}

/// Dies when the number is odd.
#[procpool::task]
pub(super) fn even_or_die(n: u64) -> u64 {
    if n.is_multiple_of(2) { n * 2 } else { bad_write() }
}

/// A real one: raising the signal would be caught once by the standard library's handler.
#[expect(unsafe_code, reason = "a fault must be a real one")]
pub(super) fn bad_write() -> ! {
    // SAFETY: not sound, and not meant to be: the worker that runs this dies of it.
    unsafe { std::ptr::null_mut::<u32>().wrapping_add(1).write_volatile(1) };
    unreachable!("the write above ends the process")
}

/// Never returns by itself and never asks whether it should. A park may return early, so it is repeated.
#[procpool::task]
pub(super) fn hang(_: u64) -> u64 {
    loop {
        std::thread::park();
    }
}

/// Bytes that are encoded as such, in one go: without optimisation one by one is slow.
pub(super) struct Raw(pub(super) Vec<u8>);

impl serde::Serialize for Raw {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> serde::Deserialize<'de> for Raw {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Raw, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Raw;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("bytes")
            }
            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Raw, E> {
                Ok(Raw(bytes.to_vec()))
            }
            fn visit_byte_buf<E>(self, bytes: Vec<u8>) -> Result<Raw, E> {
                Ok(Raw(bytes))
            }
        }
        deserializer.deserialize_byte_buf(Visitor)
    }
}

/// A file that jobs write their marks to.
pub(super) struct Marks {
    dir: TempDir,
}

impl Marks {
    pub(super) fn new() -> Marks {
        Marks { dir: TempDir::new() }
    }

    /// What to give to jobs.
    pub(super) fn path(&self) -> String {
        self.file().to_str().unwrap().to_owned()
    }

    fn file(&self) -> std::path::PathBuf {
        Path::new(self.dir.path()).join("marks")
    }

    /// The argument of [`mark`] for this line.
    pub(super) fn line(&self, line: impl ToString) -> (String, String) {
        (self.path(), line.to_string())
    }

    /// The lines so far.
    pub(super) fn lines(&self) -> Vec<String> {
        let text = fs::read_to_string(self.file()).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}
