//! What workers write to standard error: read without end, so that no worker ever blocks on it for long,
//! the tail kept for crash reports, and passed on if the pool shall.
//!
//! A thread of its own does it. When the host's own standard error is slow, this thread waits, then the
//! workers that write, and nobody else.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use procpool_sys::channel::pipe;

use crate::Error;
use crate::builder::Output;

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
    /// What dead workers wrote last, for the thread to pass on.
    late: Mutex<Vec<Vec<u8>>>,
    output: Output,
}

/// One worker's standard error.
pub(crate) struct Tap {
    pipe: std::fs::File,
    tail: Mutex<VecDeque<u8>>,
}

impl StderrReader {
    pub(crate) fn start(output: Output) -> Result<StderrReader, Error> {
        let system =
            |error: io::Error| Error::system("cannot read the workers' standard error", error);
        let epoll =
            Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(|errno| system(errno.into()))?;
        let (ask, asked) = UnixStream::pair().map_err(system)?;
        epoll
            .add(&asked, EpollEvent::new(EpollFlags::EPOLLIN, ASKED))
            .map_err(|errno| system(errno.into()))?;
        let shared =
            Arc::new(Shared { epoll, taps: Mutex::default(), late: Mutex::default(), output });
        let reader = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("procpool-stderr".into())
            .spawn(move || reader.serve(asked))
            .map_err(system)?;
        Ok(StderrReader { shared, ask, thread: Some(thread) })
    }

    /// Makes a pipe for the worker of `slot`: the tap to keep and the end to pass on.
    pub(crate) fn open(&self, slot: usize) -> io::Result<(Arc<Tap>, OwnedFd)> {
        let (read, write) = pipe()?;
        let tap = Arc::new(Tap { pipe: read.into(), tail: Mutex::default() });
        let mut taps = self.shared.taps();
        if taps.len() <= slot {
            taps.resize_with(slot + 1, || None);
        }
        taps[slot] = Some(Arc::clone(&tap));
        self.shared
            .epoll
            .add(tap.pipe.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, slot as u64))?;
        Ok((tap, write))
    }

    /// The worker of `slot` has ended: its last words.
    pub(crate) fn close(&self, slot: usize, tap: &Arc<Tap>) -> String {
        if let Some(known) = self.shared.taps().get_mut(slot)
            && known.as_ref().is_some_and(|known| Arc::ptr_eq(known, tap))
        {
            *known = None;
        }
        let _ = self.shared.epoll.delete(tap.pipe.as_fd());
        let mut buffer = vec![0; READ_MAX];
        let mut last_words = Vec::new();
        while last_words.len() < LAST_WORDS_MAX {
            match tap.read(&mut buffer) {
                0 => break,
                len => last_words.extend_from_slice(&buffer[..len]),
            }
        }
        if self.shared.output == Output::Inherit && !last_words.is_empty() {
            self.shared.late().push(last_words);
            let _ = (&self.ask).write_all(b"l");
        }
        let tail = tap.tail();
        let (front, back) = tail.as_slices();
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
    fn tail(&self) -> MutexGuard<'_, VecDeque<u8>> {
        self.tail.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads once and keeps the tail. 0: nothing is there now, or ever.
    fn read(&self, buffer: &mut [u8]) -> usize {
        // Reading and keeping are one step, so that two threads cannot swap two pieces.
        let mut tail = self.tail();
        let len = loop {
            match (&self.pipe).read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => break result.unwrap_or(0),
            }
        };
        let kept = &buffer[len.saturating_sub(TAIL_MAX)..len];
        let over = (tail.len() + kept.len()).saturating_sub(TAIL_MAX);
        tail.drain(..over);
        tail.extend(kept);
        len
    }
}

impl Shared {
    fn taps(&self) -> MutexGuard<'_, Vec<Option<Arc<Tap>>>> {
        self.taps.lock().unwrap_or_else(PoisonError::into_inner)
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
                match tap.read(&mut buffer) {
                    // Closed by the worker: nothing more will come of it.
                    0 => drop(self.epoll.delete(tap.pipe.as_fd())),
                    len => self.pass_on(&buffer[..len]),
                }
            }
        }
    }

    fn pass_on(&self, bytes: &[u8]) {
        if self.output == Output::Inherit {
            // A host without a standard error loses what its workers say, as it does its own words.
            let _ = io::stderr().write_all(bytes);
        }
    }
}
