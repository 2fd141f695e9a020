//! `--tag` and `--line-buffer`: output line by line.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::spill::Stream;

/// What a pipe takes at once, or not at all (pipe(7), PIPE_BUF).
const PIPE_BUF: usize = 4096;
/// A line that is longer is passed on in pieces: it need not end.
const LINE_MAX: usize = 1 << 20;

/// Writes a tag before each line.
#[derive(Debug)]
pub(crate) struct Tagger<W> {
    to: W,
    tag: Vec<u8>,
    is_line_begun: bool,
}

impl<W: Write> Tagger<W> {
    /// The tag may be nothing.
    pub(crate) fn new(to: W, tag: Vec<u8>) -> Tagger<W> {
        Tagger { to, tag, is_line_begun: false }
    }
}

impl<W: Write> Write for Tagger<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            if !self.is_line_begun {
                self.to.write_all(&self.tag)?;
            }
            self.to.write_all(line)?;
            self.is_line_begun = line.last() != Some(&b'\n');
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// How a worker passes the lines of its commands on.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) enum Streaming {
    Untagged,
    Tagged,
}

/// Standard output could not be written by a worker.
#[derive(Debug)]
pub(crate) struct StdoutFailed(pub(crate) i32);

impl std::fmt::Display for StdoutFailed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "cannot write to standard output: {}", io::Error::from_raw_os_error(self.0))
    }
}

impl std::error::Error for StdoutFailed {}

/// Passes whole lines on to the worker's own standard output or error, one worker at a time.
#[derive(Debug)]
pub(crate) struct LineStream {
    to: Stream,
    tag: Vec<u8>,
    /// The line that has not ended.
    rest: Vec<u8>,
    /// Locked while lines are written. A pipe takes several pages in pieces, between which another worker's
    /// could stand.
    lock: PathBuf,
}

impl LineStream {
    pub(crate) fn new(to: Stream, tag: Vec<u8>, dir: &Path) -> LineStream {
        LineStream { to, tag, rest: Vec::new(), lock: dir.join("lines.lock") }
    }

    /// Passes on the lines that end in `bytes`.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.rest.extend_from_slice(bytes);
        let whole = match self.rest.iter().rposition(|byte| *byte == b'\n') {
            Some(end) => end + 1,
            None if self.rest.len() > LINE_MAX => self.rest.len(),
            None => return Ok(()),
        };
        let lines = self.rest[..whole].to_vec();
        self.rest.drain(..whole);
        self.pass_on(&lines)
    }

    /// Passes on what is left: a line without an end gets one, or the next would be part of it.
    pub(crate) fn finish(&mut self) -> io::Result<()> {
        if self.rest.is_empty() {
            return Ok(());
        }
        let mut line = std::mem::take(&mut self.rest);
        line.push(b'\n');
        self.pass_on(&line)
    }

    fn pass_on(&mut self, lines: &[u8]) -> io::Result<()> {
        let mut tagged = Vec::with_capacity(lines.len() + 64);
        Tagger::new(&mut tagged, self.tag.clone()).write_all(lines)?;
        let lock = File::options().create(true).append(true).open(&self.lock)?;
        match lock.lock() {
            Err(error) if error.kind() != io::ErrorKind::Unsupported => return Err(error),
            _ => {}
        }
        match self.to {
            Stream::Stdout => {
                let mut out = io::stdout().lock();
                let result = out.write_all(&tagged).and_then(|()| out.flush());
                result.map_err(|error| {
                    io::Error::other(StdoutFailed(error.raw_os_error().unwrap_or(0)))
                })
            }
            Stream::Stderr => {
                // The pool reads it from a pipe and passes on what it reads, so each piece is one that the pipe
                // takes at once.
                let mut err = io::stderr().lock();
                pieces(&tagged).try_for_each(|piece| err.write_all(piece))
            }
        }
    }
}

/// As many whole lines at a time as a pipe takes at once; a line that is longer alone.
fn pieces(lines: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = lines;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let first_max = &rest[..rest.len().min(PIPE_BUF)];
        let end = match first_max.iter().rposition(|byte| *byte == b'\n') {
            Some(end) => end + 1,
            None => rest.iter().position(|byte| *byte == b'\n').map_or(rest.len(), |end| end + 1),
        };
        let (piece, next) = rest.split_at(end);
        rest = next;
        Some(piece)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_has_the_tag_however_it_comes() {
        for size in 1..10 {
            let mut out = Vec::new();
            let mut tagger = Tagger::new(&mut out, b"t\t".to_vec());
            for chunk in b"a\n\nbc\nd".chunks(size) {
                tagger.write_all(chunk).unwrap();
            }
            assert_eq!(out, b"t\ta\nt\t\nt\tbc\nt\td");
        }
    }

    #[test]
    fn pieces_are_whole_lines() {
        let long = [&[b'x'; 5000][..], b"\n"].concat();
        let text =
            [&b"a\nb\n"[..], &long, b"c\n", &[b'y'; 4000], b"\n", &[b'z'; 200], b"\nend"].concat();
        let pieces: Vec<&[u8]> = pieces(&text).collect();
        assert_eq!(pieces.concat(), text);
        assert_eq!(pieces[0], b"a\nb\n");
        assert_eq!(pieces[1], long);
        assert!(pieces[..pieces.len() - 1].iter().all(|piece| piece.ends_with(b"\n")));
        assert!(pieces.iter().all(|piece| piece.len() <= PIPE_BUF || *piece == long));
    }
}
