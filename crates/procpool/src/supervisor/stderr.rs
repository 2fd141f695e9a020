//! What workers write to standard error: read without end, so that no worker ever blocks on it for long,
//! the tail kept for crash reports, and passed on: to the host's, or line by line as events.
//!
//! A thread of its own does it. When the host's own standard error is slow, this thread waits, then the
//! workers that write, and nobody else.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use procpool_sys::channel::{let_writes_wait, pipe};
use tracing::Level;

use super::Inner;
use super::lines::Lines;
use crate::Error;
use crate::builder::Output;
use crate::events::Event;
use crate::job_id::JobId;

/// Bytes kept of what a worker wrote last: a screenful.
const TAIL_MAX: usize = 4096;
/// Bytes read at a time: what a pipe holds.
const READ_MAX: usize = 64 * 1024;
/// Bytes read at most after a worker's death. What a pipe holds, and some for a child of the worker that
/// keeps writing until it is killed.
const LAST_WORDS_MAX: usize = 1 << 20;
/// Marks the event that something was asked of the thread.
const ASKED: u64 = u64::MAX;

/// The standard error of all workers of a pool.
pub(crate) struct StderrReader {
    shared: Arc<Shared>,
    ask: UnixStream,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    epoll: Epoll,
    taps: Mutex<Vec<Option<Arc<Tap>>>>,
    /// Pipes of workers of which nothing is left, for the next ones. As many as there were workers at a time, at most.
    free: Mutex<Vec<Arc<Pipe>>>,
    /// What dead workers wrote last, for the thread to pass on.
    late: Mutex<Vec<Vec<u8>>>,
    inner: Arc<Inner>,
}

/// One worker's standard error.
pub(crate) struct Tap {
    pipe: Arc<Pipe>,
    /// Its place among the taps that are read.
    key: OnceLock<usize>,
    /// The worker's slot, if it has one: what others write is no worker's line.
    worker: OnceLock<usize>,
    /// The process, known before anything is read.
    pid: OnceLock<u32>,
    kept: Mutex<Kept>,
}

/// What standard error goes through.
struct Pipe {
    read: std::fs::File,
    /// For the next worker, if another one can have it. While it is here the thread is not woken for an end that others tell of
    /// anyway.
    write: Option<OwnedFd>,
}

/// How many workers can have a pipe, one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Uses {
    /// Whether anyone can still write to it can be asked ([`Tap::has_writers`]).
    Once,
    /// The host can: who else can must be known by other means.
    Several,
}

/// What is kept of what a worker wrote.
#[derive(Default)]
struct Kept {
    /// Its pipe may be another's by now.
    closed: bool,
    tail: VecDeque<u8>,
    lines: Lines,
}

impl StderrReader {
    pub(crate) fn start(inner: &Arc<Inner>) -> Result<StderrReader, Error> {
        let system =
            |error: io::Error| Error::system("cannot read the workers' standard error", error);
        let epoll =
            Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(|errno| system(errno.into()))?;
        let (ask, asked) = UnixStream::pair().map_err(system)?;
        epoll
            .add(&asked, EpollEvent::new(EpollFlags::EPOLLIN, ASKED))
            .map_err(|errno| system(errno.into()))?;
        let shared = Arc::new(Shared {
            epoll,
            taps: Mutex::default(),
            free: Mutex::default(),
            late: Mutex::default(),
            inner: Arc::clone(inner),
        });
        let reader = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("procpool-stderr".into())
            .spawn(move || reader.serve(asked))
            .map_err(system)?;
        Ok(StderrReader { shared, ask, thread: Some(thread) })
    }

    /// Makes a pipe for a process: the tap to keep and the end to pass on.
    pub(crate) fn open(&self, uses: Uses) -> io::Result<(Arc<Tap>, OwnedFd)> {
        let (pipe, write) = self.pipe(uses)?;
        let tap = Tap {
            pipe,
            key: OnceLock::new(),
            worker: OnceLock::new(),
            pid: OnceLock::new(),
            kept: Mutex::default(),
        };
        Ok((Arc::new(tap), write))
    }

    /// A pipe, and the end to pass on.
    fn pipe(&self, uses: Uses) -> io::Result<(Arc<Pipe>, OwnedFd)> {
        let free = || self.shared.free().pop();
        if uses == Uses::Several
            && let Some(pipe) = free()
            && let Some(write) = &pipe.write
        {
            let_writes_wait(write)?;
            let write = write.try_clone()?;
            return Ok((pipe, write));
        }
        let (read, write) = pipe()?;
        let kept = (uses == Uses::Several).then(|| write.try_clone()).transpose()?;
        Ok((Arc::new(Pipe { read: read.into(), write: kept }), write))
    }

    /// Begins to read what this process writes, the worker of a slot or none.
    pub(crate) fn watch(&self, tap: &Arc<Tap>, pid: u32, slot: Option<usize>) -> io::Result<()> {
        tap.settle(slot);
        let mut taps = self.shared.taps();
        let key = taps.iter().position(Option::is_none).unwrap_or(taps.len());
        // Nobody else sets these two.
        let _ = tap.pid.set(pid);
        let _ = tap.key.set(key);
        let len = taps.len().max(key + 1);
        taps.resize_with(len, || None);
        taps[key] = Some(Arc::clone(tap));
        let event = EpollEvent::new(EpollFlags::EPOLLIN, key as u64);
        self.shared.epoll.add(&tap.pipe.read, event)?;
        Ok(())
    }

    /// The worker has ended, and nothing of it is left that could write: its last words.
    pub(crate) fn close_for_next(&self, tap: &Arc<Tap>) -> String {
        let last_words = self.close(tap);
        if tap.pipe.write.is_some() {
            self.shared.free().push(Arc::clone(&tap.pipe));
        }
        last_words
    }

    /// The worker has ended: its last words.
    pub(crate) fn close(&self, tap: &Arc<Tap>) -> String {
        if let Some(key) = tap.key.get() {
            self.shared.taps()[*key] = None;
        }
        let _ = self.shared.epoll.delete(&tap.pipe.read);
        // Most have nothing to say in the end, and to zero what a pipe holds would cost more than to ask.
        let mut buffer = [0; TAIL_MAX];
        let mut last_words = Vec::new();
        while last_words.len() < LAST_WORDS_MAX {
            match tap.read(&mut buffer, &self.shared.inner) {
                0 => break,
                len => last_words.extend_from_slice(&buffer[..len]),
            }
        }
        tap.end(&self.shared.inner);
        if self.shared.inner.settings.stderr == Output::Inherit && !last_words.is_empty() {
            self.shared.late().push(last_words);
            let _ = (&self.ask).write_all(b"l");
        }
        let mut kept = tap.kept();
        kept.closed = true;
        let (front, back) = kept.tail.as_slices();
        String::from_utf8_lossy(&[front, back].concat()).into_owned()
    }
}

impl Drop for StderrReader {
    fn drop(&mut self) {
        // Closing our end is the word to stop.
        let _ = self.ask.shutdown(Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Tap {
    /// The process fills this slot from now on.
    pub(crate) fn settle(&self, slot: Option<usize>) {
        if let Some(slot) = slot {
            // It fills one in its life.
            let _ = self.worker.set(slot);
        }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether any process can still write to it.
    pub(crate) fn has_writers(&self) -> bool {
        let mut fds = [PollFd::new(self.pipe.read.as_fd(), PollFlags::POLLIN)];
        // Told at once, whatever is in the pipe.
        let _ = poll(&mut fds, PollTimeout::ZERO);
        !fds[0].revents().is_some_and(|events| events.contains(PollFlags::POLLHUP))
    }

    /// The pipe's inode, by which /proc shows who holds it.
    pub(crate) fn inode(&self) -> u64 {
        self.pipe.read.metadata().map_or(0, |metadata| metadata.ino())
    }

    /// Reads once, keeps the tail and tells the lines. 0: nothing is there now, or ever.
    fn read(&self, buffer: &mut [u8], inner: &Inner) -> usize {
        let telling = Telling::of(self, inner);
        // Reading, keeping and telling are one step, so that two threads cannot swap two pieces.
        let mut kept = self.kept();
        if kept.closed {
            return 0;
        }
        let len = loop {
            match (&self.pipe.read).read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => break result.unwrap_or(0),
            }
        };
        let last = &buffer[len.saturating_sub(TAIL_MAX)..len];
        let over = (kept.tail.len() + last.len()).saturating_sub(TAIL_MAX);
        kept.tail.drain(..over);
        kept.tail.extend(last);
        match telling {
            Some(mut telling) => {
                kept.lines.feed(&buffer[..len], |line, whole| telling.tell(line, whole));
                drop(kept);
                telling.log();
            }
            None => kept.lines.clear(),
        }
        len
    }

    /// Tells the line that the worker did not end.
    fn end(&self, inner: &Inner) {
        if let Some(mut telling) = Telling::of(self, inner) {
            self.kept().lines.end(|line, whole| telling.tell(line, whole));
            telling.log();
        }
    }
}

/// Tells lines of one worker.
struct Telling<'a> {
    inner: &'a Inner,
    worker: usize,
    pid: u32,
    job: Option<JobId>,
    /// For the log, whose subscriber may be slow, and so hears of them after the receivers.
    for_log: Vec<Event>,
}

impl Telling<'_> {
    /// `None` if nobody wants to hear. Which job runs is looked up now.
    fn of<'a>(tap: &Tap, inner: &'a Inner) -> Option<Telling<'a>> {
        if inner.settings.stderr != Output::Capture || !inner.hub.wants(Level::INFO) {
            return None;
        }
        let (worker, pid) = (*tap.worker.get()?, *tap.pid.get()?);
        let dispatch = inner.dispatch();
        let channel = dispatch.channel(worker).filter(|channel| channel.pid == pid);
        let job = channel.and_then(|channel| Some(channel.running()?.1.cell.id));
        Some(Telling { inner, worker, pid, job, for_log: Vec::new() })
    }

    fn tell(&mut self, line: String, whole: bool) {
        let (worker, pid, job) = (self.worker, self.pid, self.job);
        let event = Event::WorkerLine { worker, pid, job, line, whole };
        self.inner.hub.send(event.clone());
        if self.inner.hub.logs(Level::INFO) {
            self.for_log.push(event);
        }
    }

    fn log(self) {
        for event in self.for_log {
            self.inner.hub.log(&event);
        }
    }
}

impl Shared {
    fn taps(&self) -> MutexGuard<'_, Vec<Option<Arc<Tap>>>> {
        self.taps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn free(&self) -> MutexGuard<'_, Vec<Arc<Pipe>>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn late(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        self.late.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self, mut asked: UnixStream) {
        let mut buffer = vec![0; READ_MAX];
        let mut events = [EpollEvent::empty(); 16];
        loop {
            let count = self.epoll.wait(&mut events, EpollTimeout::NONE).unwrap_or(0);
            for event in &events[..count] {
                if event.data() == ASKED {
                    let stop = asked.read(&mut buffer).is_ok_and(|len| len == 0);
                    for last_words in std::mem::take(&mut *self.late()) {
                        self.pass_on(&last_words);
                    }
                    if stop {
                        return;
                    }
                    continue;
                }
                let tap = self.taps().get(event.data() as usize).cloned().flatten();
                let Some(tap) = tap else { continue };
                match tap.read(&mut buffer, &self.inner) {
                    // Closed by the worker: nothing more will come of it. Or somebody else has read it at the worker's end.
                    0 if tap.pipe.write.is_none() => drop(self.epoll.delete(&tap.pipe.read)),
                    0 => {}
                    len => self.pass_on(&buffer[..len]),
                }
            }
        }
    }

    fn pass_on(&self, bytes: &[u8]) {
        if self.inner.settings.stderr == Output::Inherit {
            // A host without a standard error loses what its workers say, as it does its own words.
            let _ = io::stderr().write_all(bytes);
        }
    }
}
