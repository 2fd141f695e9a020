//! Threads that run `on_done` callbacks. A callback may block for as long as it likes, and most do not: so a thread
//! is added only when callbacks wait and none gets its turn.
//!
//! Somebody sees to that as long as callbacks wait: an idle thread, which takes one at once; or, while all are busy, a
//! new thread, which watches for a moment whether the others get on, and takes the next one itself if not. If more wait
//! then, the next new thread watches. Nobody watches an empty queue.

use std::collections::VecDeque;
use std::mem;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle, ThreadId};
use std::time::Duration;

use crate::cell::Callbacks;

/// Threads that stay when there is nothing to do: one to run the next callback, one to watch it.
const IDLE_MAX: usize = 2;
/// How long a callback waits at most for threads that do not get on. Short beside what a person notices, long beside a
/// callback that does not block.
const PATIENCE: Duration = Duration::from_millis(2);
/// Each time it was in vain the next wait is half as long, down to this, about what a thread takes to start: however many
/// callbacks block, together they delay another one by little more than two such waits.
const PATIENCE_MIN: Duration = Duration::from_micros(60);
/// Threads that take more callbacks than this in that time get on.
const STUCK_MAX: u64 = 1;

/// The callbacks of one pool.
#[derive(Clone, Default)]
pub(crate) struct CallbackThreads(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// A callback was announced, and a thread has been started for it.
    is_expecting: AtomicBool,
    /// For idle threads: there is something to do, or the end has come.
    changed: Condvar,
    /// For the thread that watches: nothing waits any more.
    calm: Condvar,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Callbacks>,
    /// Threads that wait for callbacks.
    idle: usize,
    /// Threads that run one.
    running: usize,
    /// How many have been taken from the queue, ever.
    taken: u64,
    /// A thread watches the queue, or has been started to.
    watched: bool,
    /// How often in a row it has watched in vain.
    stuck: u32,
    closed: bool,
    threads: Vec<JoinHandle<()>>,
}

impl State {
    /// Lets go of threads that have ended.
    fn reap(&mut self) {
        for thread in self.threads.extract_if(.., |thread| thread.is_finished()) {
            // It ends at once. Callbacks do not unwind: their panics are caught one by one.
            let _ = thread.join();
        }
    }
}

impl CallbackThreads {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Announces that there will be callbacks: the first thread is started while their jobs run, and not when one ends.
    pub(crate) fn expect(&self) {
        if self.0.is_expecting.load(Ordering::Relaxed)
            || self.0.is_expecting.swap(true, Ordering::Relaxed)
        {
            return;
        }
        let mut state = self.state();
        if state.threads.is_empty() && !state.closed {
            self.start(&mut state);
        }
    }

    /// Has the callbacks run, on another thread.
    pub(crate) fn run(&self, callbacks: Callbacks) {
        if callbacks.is_empty() {
            return;
        }
        let mut state = self.state();
        state.queue.push_back(callbacks);
        self.attend(&mut state);
    }

    /// Sees to it that somebody comes to what waits.
    fn attend(&self, state: &mut State) {
        if state.queue.is_empty() {
            self.0.calm.notify_one();
        } else if state.idle > 0 {
            self.0.changed.notify_one();
        } else if !state.watched {
            // At most one for each callback that blocks, and one that watches: what bounds them is the user's own
            // blocking.
            self.start(state);
        }
    }

    /// Starts a thread, which watches first.
    fn start(&self, state: &mut State) {
        let shared = self.clone();
        let thread =
            thread::Builder::new().name("procpool-done".into()).spawn(move || shared.serve());
        // Without a thread the others come to it when they are done, or `close` does: late is better than never.
        if let Ok(thread) = thread {
            state.reap();
            state.threads.push(thread);
            state.watched = true;
        }
    }

    fn serve(&self) {
        let mut state = self.watch(self.state());
        loop {
            if let Some(callbacks) = state.queue.pop_front() {
                state.taken += 1;
                state.running += 1;
                self.attend(&mut state);
                drop(state);
                callbacks.run();
                state = self.state();
                state.running -= 1;
            } else if state.closed || state.idle >= IDLE_MAX {
                state.reap();
                return;
            } else {
                state.idle += 1;
                state = self.0.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.idle -= 1;
            }
        }
    }

    /// Returns once nothing waits, or what waits does so for nothing: then it is for the caller to run.
    fn watch<'a>(&'a self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        while !state.queue.is_empty() && state.running > 0 {
            let before = state.taken;
            let patience = (PATIENCE / (1 << state.stuck.min(10))).max(PATIENCE_MIN);
            let waits = |state: &mut State| !state.queue.is_empty();
            state = self
                .0
                .calm
                .wait_timeout_while(state, patience, waits)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
            if !state.queue.is_empty() && state.taken - before <= STUCK_MAX {
                state.stuck += 1;
                state.watched = false;
                return state;
            }
            state.stuck = 0;
        }
        state.watched = false;
        state
    }

    /// Waits until every callback has run and the threads have ended; all but the calling one, which may
    /// be one of them.
    pub(crate) fn close(&self) {
        self.state().closed = true;
        self.0.changed.notify_all();
        let here: ThreadId = thread::current().id();
        loop {
            // While some of them block, others may start.
            let threads = mem::take(&mut self.state().threads);
            if threads.is_empty() {
                break;
            }
            for thread in threads {
                if thread.thread().id() != here {
                    // As above.
                    let _ = thread.join();
                }
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
