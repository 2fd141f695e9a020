//! Threads that run `on_done` callbacks. A callback may block for as long as it likes: while all threads
//! are busy, the next callback gets a new one.

use std::collections::VecDeque;
use std::mem;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle, ThreadId};

use crate::cell::Callbacks;

/// The callbacks of one pool.
#[derive(Clone, Default)]
pub(crate) struct CallbackThreads(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Callbacks>,
    idle: usize,
    closed: bool,
    threads: Vec<JoinHandle<()>>,
}

impl CallbackThreads {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the callbacks run, on another thread.
    pub(crate) fn run(&self, callbacks: Callbacks) {
        if callbacks.is_empty() {
            return;
        }
        let mut state = self.state();
        state.queue.push_back(callbacks);
        if state.idle >= state.queue.len() {
            self.0.changed.notify_one();
            return;
        }
        let shared = self.clone();
        // One thread for each callback that blocks: what bounds them is the user's own blocking.
        let thread =
            thread::Builder::new().name("procpool-done".into()).spawn(move || shared.serve());
        match thread {
            Ok(thread) => {
                state.threads.retain(|thread| !thread.is_finished());
                state.threads.push(thread);
            }
            // Late is better than never: the threads that there are will come to it, or `close`.
            Err(_) => self.0.changed.notify_one(),
        }
    }

    fn serve(&self) {
        let mut state = self.state();
        loop {
            if let Some(callbacks) = state.queue.pop_front() {
                drop(state);
                callbacks.run();
                state = self.state();
            } else if state.closed {
                return;
            } else {
                state.idle += 1;
                state = self.0.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.idle -= 1;
            }
        }
    }

    /// Waits until every callback has run and the threads have ended; all but the calling one, which may
    /// be one of them.
    pub(crate) fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        let threads = mem::take(&mut state.threads);
        drop(state);
        self.0.changed.notify_all();
        let here: ThreadId = thread::current().id();
        for thread in threads {
            if thread.thread().id() != here {
                // Callbacks do not unwind: their panics are caught one by one.
                let _ = thread.join();
            }
        }
        loop {
            let left = self.state().queue.pop_front();
            match left {
                Some(callbacks) => callbacks.run(),
                None => return,
            }
        }
    }
}
