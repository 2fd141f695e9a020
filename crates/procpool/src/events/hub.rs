//! Where the events of one pool go: to its receivers, each with a bounded queue of its own.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, TryRecvError};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use procpool_sys::fork;
use tracing::Level;

use super::{Event, Events, trace};
use crate::cell::JobCell;
use crate::supervisor::entry::Completion;

/// Events that a receiver holds at most: more than any burst of lines from a crash, and a few megabytes at worst
/// if each carries as much text as it may.
const EVENTS_MAX: usize = 4096;

/// Tells the events of one pool.
pub(crate) struct Hub {
    /// Tells pools apart in logs.
    pub(crate) pool: u64,
    receivers: Mutex<Receivers>,
    /// How many receivers there are.
    listening: AtomicUsize,
}

struct Receivers {
    ended: bool,
    queues: Vec<Arc<Queue>>,
}

impl Hub {
    pub(crate) fn new() -> Arc<Hub> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Arc::new(Hub {
            pool: NEXT.fetch_add(1, Ordering::Relaxed),
            receivers: Mutex::new(Receivers { ended: false, queues: Vec::new() }),
            listening: AtomicUsize::new(0),
        })
    }

    fn receivers(&self) -> MutexGuard<'_, Receivers> {
        // Nothing of the user's runs under this lock.
        self.receivers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn events(self: &Arc<Hub>) -> Events {
        let queue = Arc::new(Queue::default());
        if fork::is_child() {
            // Its other locks may be held by threads that do not exist here.
            queue.end();
            return Events { queue, hub: Arc::clone(self) };
        }
        let mut receivers = self.receivers();
        if receivers.ended {
            queue.end();
        } else {
            receivers.queues.push(Arc::clone(&queue));
            self.listening.store(receivers.queues.len(), Ordering::Relaxed);
        }
        drop(receivers);
        Events { queue, hub: Arc::clone(self) }
    }

    pub(super) fn leave(&self, queue: &Arc<Queue>) {
        if fork::is_child() {
            return;
        }
        let mut receivers = self.receivers();
        receivers.queues.retain(|other| !Arc::ptr_eq(other, queue));
        self.listening.store(receivers.queues.len(), Ordering::Relaxed);
    }

    /// True if an event of this level is worth being made.
    pub(crate) fn wants(&self, level: Level) -> bool {
        self.listening.load(Ordering::Relaxed) > 0 || trace::is_enabled(level)
    }

    /// Tells an event to everyone. Not to be called under a lock: a subscriber's code runs here.
    pub(crate) fn tell(&self, event: Event) {
        trace::event(self.pool, &event);
        self.send(event);
    }

    /// Tells an event to the receivers alone.
    pub(crate) fn send(&self, event: Event) {
        if self.listening.load(Ordering::Relaxed) > 0 {
            let receivers = self.receivers();
            for queue in &receivers.queues {
                queue.push(&event);
            }
        }
    }

    /// Tells what jobs' ends there are to tell.
    pub(crate) fn tell_ends(&self, completions: &[Completion]) {
        if !self.wants(Level::DEBUG) {
            return;
        }
        for completion in completions {
            trace::job_ended(self.pool, completion);
            let (cell, report) = (&completion.cell, completion.ended.report());
            for error in completion.ended.errors() {
                self.tell(Event::JobFailed {
                    job: cell.id,
                    name: cell.name().cloned(),
                    origin: cell.origin,
                    error: error.clone(),
                    report: report.clone(),
                });
            }
        }
    }

    /// Tells the log what no receiver could hear: it comes after this.
    pub(crate) fn log_started(&self, workers: usize) {
        trace::pool_started(self.pool, workers);
    }

    /// True if the log may want events of this level: a load and a compare.
    pub(crate) fn logs(&self, level: Level) -> bool {
        trace::is_enabled(level)
    }

    /// Tells the log about an event that the receivers have.
    pub(crate) fn log(&self, event: &Event) {
        trace::event(self.pool, event);
    }

    pub(crate) fn log_accepted(&self, cell: &JobCell) {
        trace::job_accepted(self.pool, cell);
    }

    /// The pool has ended: so do the receivers, once they have taken what there is.
    pub(crate) fn end(&self) {
        self.tell(Event::PoolEnded {});
        let mut receivers = self.receivers();
        receivers.ended = true;
        for queue in receivers.queues.drain(..) {
            queue.end();
        }
        self.listening.store(0, Ordering::Relaxed);
    }
}

/// What one receiver has not taken yet.
#[derive(Default)]
pub(super) struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    events: VecDeque<Event>,
    /// Events that were dropped since the newest of these.
    missed: u64,
    ended: bool,
}

impl State {
    fn take(&mut self) -> Option<Event> {
        let next = self.events.pop_front();
        next.or_else(|| match std::mem::take(&mut self.missed) {
            0 => None,
            missed => Some(Event::Missed(missed)),
        })
    }
}

impl Queue {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn len(&self) -> usize {
        if fork::is_child() { 0 } else { self.state().events.len() }
    }

    fn push(&self, event: &Event) {
        let mut state = self.state();
        // Room for two: the gap has to be told before what comes after it.
        let room = EVENTS_MAX - state.events.len();
        if room == 0 || state.missed > 0 && room == 1 {
            state.missed += 1;
        } else {
            if state.missed > 0 {
                let missed = std::mem::take(&mut state.missed);
                state.events.push_back(Event::Missed(missed));
            }
            state.events.push_back(event.clone());
        }
        drop(state);
        self.changed.notify_one();
    }

    fn end(&self) {
        self.state().ended = true;
        self.changed.notify_all();
    }

    pub(super) fn try_recv(&self) -> Result<Event, TryRecvError> {
        if fork::is_child() {
            return Err(TryRecvError::Disconnected);
        }
        let mut state = self.state();
        let empty = if state.ended { TryRecvError::Disconnected } else { TryRecvError::Empty };
        state.take().ok_or(empty)
    }

    pub(super) fn recv(&self, until: Option<Instant>) -> Result<Event, RecvTimeoutError> {
        if fork::is_child() {
            return Err(RecvTimeoutError::Disconnected);
        }
        let mut state = self.state();
        loop {
            if let Some(event) = state.take() {
                return Ok(event);
            }
            if state.ended {
                return Err(RecvTimeoutError::Disconnected);
            }
            state = match until {
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(until) => {
                    let left = until.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Err(RecvTimeoutError::Timeout);
                    }
                    let wait = self.changed.wait_timeout(state, left);
                    wait.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn starting(pid: usize) -> Event {
        Event::WorkerStarting { worker: 0, pid: pid as u32 }
    }

    fn numbers(events: &Events) -> Vec<Result<u32, u64>> {
        let next = || match events.try_recv() {
            Ok(Event::WorkerStarting { pid, .. }) => Some(Ok(pid)),
            Ok(Event::Missed(count)) => Some(Err(count)),
            Ok(other) => panic!("{other:?}"),
            Err(_) => None,
        };
        std::iter::from_fn(next).collect()
    }

    /// Goal: a receiver that takes nothing holds so many events and no more; what it missed is told once, in its
    /// place, before what comes after it.
    #[test]
    fn what_is_missed_is_counted_where_it_is_missing() {
        let hub = Hub::new();
        let events = hub.events();
        for n in 0..EVENTS_MAX + 10 {
            hub.send(starting(n));
        }
        assert_eq!(events.queue.len(), EVENTS_MAX);
        assert!(matches!(events.try_recv(), Ok(Event::WorkerStarting { pid: 0, .. })));
        // Room for the event or for the gap before it, not for both.
        hub.send(starting(90_000));
        for _ in 0..2 {
            events.try_recv().unwrap();
        }
        hub.send(starting(90_001));
        let rest = numbers(&events);
        assert_eq!(rest[0], Ok(3));
        assert_eq!(rest[EVENTS_MAX - 4..], [Ok(EVENTS_MAX as u32 - 1), Err(11), Ok(90_001)]);
    }

    /// Goal: what is missing at the end of the queue is told as well, without another event after it.
    #[test]
    fn what_is_missed_last_is_told_too() {
        let hub = Hub::new();
        let events = hub.events();
        for n in 0..EVENTS_MAX + 3 {
            hub.send(starting(n));
        }
        hub.end();
        let last: Vec<Event> = events.skip(EVENTS_MAX).collect();
        assert!(matches!(last[..], [Event::Missed(4)]), "{last:?}");
    }

    /// Goal: receivers do not take events from each other, one that is dropped costs nothing more, and all end
    /// with the pool, also one that comes after it.
    #[test]
    fn receivers_are_independent_and_end() {
        let hub = Hub::new();
        assert_eq!(hub.listening.load(Ordering::Relaxed), 0);
        let (one, other) = (hub.events(), hub.events());
        hub.send(starting(1));
        drop(one);
        assert_eq!(hub.listening.load(Ordering::Relaxed), 1);
        hub.send(starting(2));
        assert_eq!(numbers(&other), [Ok(1), Ok(2)]);
        assert_eq!(other.try_recv().unwrap_err(), TryRecvError::Empty);
        let soon = std::time::Duration::from_millis(1);
        assert_eq!(other.recv_timeout(soon).unwrap_err(), RecvTimeoutError::Timeout);
        hub.end();
        assert!(matches!(other.recv(), Ok(Event::PoolEnded {})));
        other.recv().unwrap_err();
        assert_eq!(other.recv_timeout(soon).unwrap_err(), RecvTimeoutError::Disconnected);
        hub.events().recv().unwrap_err();
    }

    /// Goal: somebody who waits is woken, by an event and by the end.
    #[test]
    fn a_waiting_receiver_is_woken() {
        let hub = Hub::new();
        let events = hub.events();
        std::thread::scope(|scope| {
            let count = scope.spawn(move || events.count());
            hub.send(starting(1));
            hub.end();
            assert_eq!(count.join().unwrap(), 2);
        });
    }
}
