//! Writes down what a command says, as it says it, up to a limit.
//!
//! The command's end is its process's end, whatever it has left behind that holds its streams open: what is in the
//! pipes then is read, and no more.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdout, ExitStatus};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::log_path;
use crate::job::JobId;
use crate::protocol::Stream;

/// How much is read at a time: as much as a pipe holds.
const CHUNK: usize = 64 << 10;

/// Both streams of a command.
pub(super) struct Scribe {
    out: Page<ChildStdout>,
    err: Page<ChildStderr>,
}

/// A stream, and the file it goes to.
struct Page<S> {
    /// Gone at its end.
    stream: Option<S>,
    path: PathBuf,
    /// Made with the first byte: most commands say nothing to one of the two.
    file: Option<File>,
    written: u64,
    limit: u64,
    dropped: u64,
}

impl Scribe {
    /// Writes until the command has ended, and says how it did.
    pub(super) fn follow(
        mut child: Child,
        logs: &Path,
        id: JobId,
        limit: u64,
    ) -> io::Result<ExitStatus> {
        let page = |stream| {
            let path = log_path(logs, id, stream);
            // An earlier attempt's.
            let _ = fs::remove_file(&path);
            path
        };
        let mut scribe = Scribe {
            out: Page::new(child.stdout.take(), page(Stream::Stdout), limit),
            err: Page::new(child.stderr.take(), page(Stream::Stderr), limit),
        };
        scribe.listen(&child)?;
        let status = child.wait()?;
        scribe.out.close();
        scribe.err.close();
        Ok(status)
    }

    fn listen(&mut self, child: &Child) -> io::Result<()> {
        self.out.prepare()?;
        self.err.prepare()?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let end = pidfd_open(pid.expect("a child has a number"), PidfdFlags::empty())?;
        let mut chunk = vec![0; CHUNK];
        loop {
            let (has_ended, ready) = {
                let mut waits = vec![PollFd::new(&end, PollFlags::IN)];
                waits.extend(self.out.fd().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
                waits.extend(self.err.fd().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
                match poll(&mut waits, None) {
                    Ok(_) => {}
                    Err(rustix::io::Errno::INTR) => continue,
                    Err(error) => return Err(error.into()),
                }
                let is_ready = |wait: &PollFd<'_>| !wait.revents().is_empty();
                (is_ready(&waits[0]), waits[1..].iter().any(is_ready))
            };
            if ready || has_ended {
                self.out.copy(&mut chunk);
                self.err.copy(&mut chunk);
            }
            if has_ended {
                return Ok(());
            }
        }
    }
}

impl<S: Read + AsFd> Page<S> {
    fn new(stream: Option<S>, path: PathBuf, limit: u64) -> Page<S> {
        Page { stream, path, file: None, written: 0, limit, dropped: 0 }
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.stream.as_ref().map(AsFd::as_fd)
    }

    /// Nobody waits in a read.
    fn prepare(&self) -> io::Result<()> {
        if let Some(fd) = self.fd() {
            fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        }
        Ok(())
    }

    /// Copies what there is; twice what a pipe holds at most, so that the other stream has its turn, and a process
    /// that was left behind and never stops does not hold up the end.
    fn copy(&mut self, chunk: &mut [u8]) {
        for _ in 0..2 {
            let Some(stream) = &mut self.stream else {
                return;
            };
            match stream.read(chunk) {
                Ok(0) => self.stream = None,
                Ok(len) => self.write(&chunk[..len]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => self.stream = None,
            }
        }
    }

    /// Keeps what there is room for. The command goes on also where nothing can be kept, as on a full disk.
    fn write(&mut self, bytes: &[u8]) {
        let room = usize::try_from(self.limit - self.written).unwrap_or(usize::MAX);
        let kept = &bytes[..bytes.len().min(room)];
        let result = self.file().and_then(|mut file| file.write_all(kept));
        self.written += kept.len() as u64;
        let lost = if result.is_ok() { bytes.len() - kept.len() } else { bytes.len() };
        self.dropped += lost as u64;
    }

    fn file(&mut self) -> io::Result<&File> {
        if self.file.is_none() {
            if let Some(dir) = self.path.parent() {
                fs::create_dir_all(dir)?;
            }
            self.file = Some(File::create_new(&self.path)?);
        }
        Ok(self.file.as_ref().expect("it was just put there"))
    }

    /// Says what was not kept.
    fn close(&mut self) {
        let dropped = self.dropped;
        if dropped > 0
            && let Ok(mut file) = self.file()
        {
            // If this cannot be written either, nothing can.
            let _ = writeln!(file, "\n[procpool: {dropped} more bytes were not kept]");
        }
    }
}
