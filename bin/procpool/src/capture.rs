//! One stream of a command's output: in memory while it is short, in a file from then on.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use serde::{Deserialize, Serialize};

use crate::lines::LineStream;

/// How much of each stream of a job is kept in memory.
pub(crate) const INLINE_MAX: usize = 1 << 20;
/// How much is kept of a stream that is passed on as it comes: for the report of a failure.
const STREAMED_KEPT: usize = 2048;
/// How much is read before the other stream gets its turn.
const TURN_MAX: usize = 1 << 20;

/// What a command has written to one stream.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Captured {
    /// All of it.
    Inline(#[serde(with = "serde_bytes")] Vec<u8>),
    /// It is in the job's file for this stream.
    Spilled,
}

/// The reading end of one stream.
#[derive(Debug)]
pub(crate) struct Capture {
    pipe: Option<File>,
    buffer: Vec<u8>,
    path: PathBuf,
    file: Option<File>,
    /// Where its lines go as they come, if they do.
    lines: Option<LineStream>,
}

impl Capture {
    /// Reads from `pipe`; what is too long for memory goes to a new file at `path`.
    /// With `lines` it goes there instead.
    pub(crate) fn new(
        pipe: OwnedFd,
        path: PathBuf,
        lines: Option<LineStream>,
    ) -> io::Result<Capture> {
        fcntl(&pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        Ok(Capture { pipe: Some(pipe.into()), buffer: Vec::new(), path, file: None, lines })
    }

    /// What to poll; `None` once the stream has ended.
    pub(crate) fn open(&self) -> Option<BorrowedFd<'_>> {
        self.pipe.as_ref().map(AsFd::as_fd)
    }

    /// Reads what there is, but not for ever.
    pub(crate) fn read(&mut self) -> io::Result<()> {
        let Some(pipe) = &self.pipe else {
            return Ok(());
        };
        let start = self.buffer.len();
        let end = pipe.take(TURN_MAX as u64).read_to_end(&mut self.buffer);
        let came = self.buffer.len() - start;
        match end {
            // The stream may go on when its turn comes again.
            Ok(_) if came == TURN_MAX => {}
            Ok(_) => self.pipe = None,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        if let Some(lines) = &mut self.lines {
            lines.push(&self.buffer[start..])?;
            let gone = self.buffer.len().saturating_sub(STREAMED_KEPT);
            self.buffer.drain(..gone);
        }
        if self.file.is_some() || self.buffer.len() > INLINE_MAX {
            self.spill()?;
        }
        Ok(())
    }

    /// Moves everything to the file, now and from now on: there it outlives this process.
    pub(crate) fn spill(&mut self) -> io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(File::create(&self.path)?),
        };
        file.write_all(&self.buffer)?;
        self.buffer.clear();
        Ok(())
    }

    pub(crate) fn finish(mut self) -> io::Result<Captured> {
        if let Some(lines) = &mut self.lines {
            lines.finish()?;
        }
        Ok(match self.file {
            Some(_) => Captured::Spilled,
            None => Captured::Inline(self.buffer),
        })
    }
}
