//! Workers without a job leave after the pool's `idle_timeout`.
//!
//! When a worker becomes idle nobody looks at a clock: that happens a hundred thousand times a second. The
//! supervisor notes who is idle before it sleeps, and with it how many jobs the worker had been sent. One
//! that is idle when its time is over, and has been sent nothing since, was idle all the while.

use std::sync::Arc;

use procpool_sys::clock;

use super::Supervisor;
use super::dispatch::Pace;
use super::machine::Event;

/// Who is idle, and since when.
pub(super) struct IdleWatch {
    timeout_ns: u64,
    /// By slot: what the worker had been sent when it was first seen idle, and when that was.
    since: Vec<Option<(u32, u64)>>,
    due: Option<u64>,
}

impl IdleWatch {
    pub(super) fn new(slots: usize, timeout_ns: u64) -> IdleWatch {
        IdleWatch { timeout_ns, since: vec![None; slots], due: None }
    }

    /// When to look again, if nothing else happens.
    pub(super) fn due(&self) -> Option<u64> {
        self.due
    }

    /// Looks who is idle, and answers whose time is over. `sent` tells for an idle slot what its worker has
    /// been sent: a number that each job changes.
    fn look(&mut self, now: u64, sent: impl Fn(usize) -> Option<u32>) -> Vec<usize> {
        let mut over = Vec::new();
        self.due = None;
        for (slot, since) in self.since.iter_mut().enumerate() {
            *since = sent(slot).map(|sent| match *since {
                Some((before, at)) if before == sent => (sent, at),
                _ => (sent, now),
            });
            let Some((_, at)) = *since else { continue };
            let end = at.saturating_add(self.timeout_ns);
            if end <= now {
                *since = None;
                over.push(slot);
            } else {
                self.due = Some(self.due.map_or(end, |due| due.min(end)));
            }
        }
        over
    }

    /// Nobody's time runs: it begins anew with the next look.
    pub(super) fn forget(&mut self) {
        self.since.fill(None);
        self.due = None;
    }
}

impl Supervisor {
    /// Sends workers home that have been idle for long enough.
    pub(super) fn let_idle_go(&mut self) {
        let Some(watch) = &mut self.idle else {
            return;
        };
        let inner = Arc::clone(&self.inner);
        let mut dispatch = inner.dispatch();
        if dispatch.warming > 0 || dispatch.pace != Pace::Going {
            // Somebody waits until all workers are up at the same time, or they cannot even leave.
            return watch.forget();
        }
        let over = watch.look(clock::monotonic_ns(), |slot| dispatch.idle_since_job(slot));
        for slot in &over {
            // Under the same lock as the look, so that no job can come in between: one that did would be
            // with a worker that has been told to go.
            dispatch.close_intake(*slot);
            self.events.push(Event::Retire(*slot));
        }
        drop(dispatch);
        if !over.is_empty() {
            self.handle_events();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: only a worker that was idle from one look to the other, without a job between, has to go.
    #[test]
    fn a_worker_that_had_a_job_meanwhile_stays() {
        let mut watch = IdleWatch::new(3, 100);
        assert_eq!(watch.look(1000, |_| Some(1)), [0usize; 0]);
        assert_eq!(watch.due(), Some(1100));
        // 0 has had a job and is idle again, 1 has one, 2 has had none.
        let sent = |slot| [Some(2), None, Some(1)][slot];
        assert_eq!(watch.look(1050, sent), [0usize; 0]);
        assert_eq!(watch.look(1100, sent), [2]);
        assert_eq!(watch.due(), Some(1150));
        let sent = |slot| [Some(2), Some(2), None][slot];
        assert_eq!(watch.look(1150, sent), [0]);
        assert_eq!(watch.due(), Some(1250));
        assert_eq!(watch.look(1250, |_| None), [0usize; 0]);
        assert_eq!(watch.due(), None, "nobody is idle: nothing is due");
    }
}
