//! How the supervisor looks for results without being told of each: for how long, when it naps instead, and when it
//! asks for a bell and sleeps.

use std::hint;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use nix::sys::epoll::EpollTimeout;
use procpool_sys::clock;

use super::channel::PoolChannel;
use super::{Course, Supervisor, Worker};
use crate::builder::Isolation;

/// How long the supervisor looks for more results before it sleeps: about what it costs to be woken.
pub(super) const SPIN_NS: u64 = 20_000;
/// How long it leaves results to callers that read them themselves; with the kernel's slack about twice that. Then it
/// looks whether anybody still does.
pub(super) const NAP: Duration = Duration::from_micros(50);
/// How long it naps for results of jobs that should take less than this, if none come.
const CROWD_QUIET_NS: u64 = 1_000_000;
/// After so many naps it looks at all workers once, all the same: those who help look at one after another, and some have
/// long to wait for their turn.
const NAPS_MAX: u32 = 4;
/// For how long it looks without sleeping for a worker that it has asked the fork server for and that a job waits for: about
/// how long one takes to be ready. Of two wake-ups, at its birth and then, each costs a tenth of that.
const BIRTH_NS: u64 = 500_000;
/// For how long it looks without sleeping for the end of a worker whose channel is closed, while jobs wait: several times
/// as long as the kernel takes from one to the other, which is less than a wake-up.
const DEATH_NS: u64 = 100_000;
/// Results that the supervisor reads at a time where others may want the lock: some microseconds' worth.
const RECORDS_AT_A_TIME: usize = 32;
/// While it spins, it looks at everything else every so many rounds.
const ROUNDS_BETWEEN_LOOKS: u32 = 64;

/// What a look at the workers that had results has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    Results,
    Nothing,
    /// Nothing, and jobs there take longer than it is worth to wait for without sleeping.
    NothingSoon,
    /// There will be more: jobs take longer than it is worth to spin, not long enough to be woken for each, and
    /// more of them wait at the workers.
    Crowd,
}

impl Supervisor {
    /// Whether a worker that a job waits for is being forked, and will be ready in a moment.
    pub(super) fn expects_birth(&self) -> bool {
        self.demanded > 0
            && self.inner.spin_ns > 0
            && self.inner.settings.isolation == Isolation::Reuse
            && self.server.as_ref().is_some_and(|server| server.has_been_asked_since(BIRTH_NS))
    }

    /// Whether a worker is just ending, and jobs wait for what comes of it. With a process for each job workers end all the
    /// time, and those that start need the processors.
    pub(super) fn expects_death(&self) -> bool {
        let now = clock::monotonic_ns();
        let is_ending =
            |worker: &Worker| worker.hung_up_at.is_some_and(|at| now.saturating_sub(at) < DEATH_NS);
        self.inner.spin_ns > 0
            && self.inner.settings.isolation == Isolation::Reuse
            && self.workers.iter().flatten().any(is_ending)
            && !self.inner.dispatch().is_drained()
    }

    /// Looks for results of the workers that have just had some, for as long as some keep coming.
    pub(super) fn spin(&mut self) {
        if self.inner.settings.isolation == Isolation::FreshProcess && !self.forks_children() {
            // A worker that has had its job has no more results, and those that start need the processors.
            while !self.hot.is_empty() && self.cool_down() {}
            return;
        }
        if self.hot.is_empty() && !self.inner.dispatch().crew_calls() {
            return;
        }
        let mut quiet_since = clock::monotonic_ns();
        let (mut rounds, mut naps) = (0, 0);
        let mut called = self.hot.is_empty();
        while (!self.hot.is_empty() || called) && self.course != Course::Finished {
            self.look_after_crew();
            if self.is_helped() {
                // Whoever helps is quicker without us. If nobody does any more, results wait for a nap.
                if naps == NAPS_MAX {
                    naps = 0;
                    self.harvest_hot();
                    self.turn(EpollTimeout::ZERO);
                    self.let_idle_go();
                }
                naps += 1;
                if self.inner.wake.nap(NAP) {
                    self.turn(EpollTimeout::ZERO);
                }
                continue;
            }
            let found = self.harvest_hot();
            let now = clock::monotonic_ns();
            let napped = std::mem::take(&mut naps) > 0;
            if napped {
                quiet_since = now;
            }
            match found {
                Found::Crowd => {
                    self.inner.wake.nap(NAP);
                    quiet_since = clock::monotonic_ns();
                }
                Found::Results => quiet_since = now,
                Found::Nothing if now.saturating_sub(quiet_since) < self.inner.spin_ns => {
                    hint::spin_loop();
                }
                // The processors are others', who need them.
                Found::Nothing | Found::NothingSoon if self.inner.dispatch().relies_on_crew() => {
                    self.inner.wake.nap(NAP);
                    self.turn(EpollTimeout::ZERO);
                    quiet_since = clock::monotonic_ns();
                }
                Found::Nothing | Found::NothingSoon => {
                    called = false;
                    if !self.cool_down() {
                        return;
                    }
                    // Some had been published in the meantime, and more than one harvest takes may be left:
                    // to sleep now would be to leave them unread, since they have rung no bell.
                    quiet_since = now;
                }
            }
            rounds += 1;
            if napped || found == Found::Crowd || rounds % ROUNDS_BETWEEN_LOOKS == 0 {
                self.turn(EpollTimeout::ZERO);
                self.let_idle_go();
            }
        }
        self.leave_crew();
    }

    /// Whether one of the workers that had results has a child for each job, and so will have more.
    fn forks_children(&self) -> bool {
        let dispatch = self.inner.dispatch();
        let mut channels = self.hot.iter().filter_map(|slot| dispatch.channel(*slot));
        channels.any(PoolChannel::forks_children)
    }

    /// True if callers have read results since the last look, and none has left it to this thread meanwhile.
    fn is_helped(&mut self) -> bool {
        let helped = self.inner.helped.load(Ordering::Relaxed);
        let left = self.inner.left.swap(false, Ordering::Acquire);
        std::mem::replace(&mut self.helped, helped) != helped && !left
    }

    /// Asks the workers for a bell with their next results, and looks once more. True if there were some.
    fn cool_down(&mut self) -> bool {
        let hot = std::mem::take(&mut self.hot);
        {
            let dispatch = self.inner.dispatch();
            for slot in &hot {
                if let Some(channel) = dispatch.channel(*slot) {
                    channel.want_bell(true);
                }
            }
        }
        // Results published before the request was seen have rung no bell.
        let found = self.harvest(&hot);
        let quiet = matches!(found, Found::Nothing | Found::NothingSoon);
        if quiet {
            self.leave_crew();
        } else {
            self.hot = hot;
        }
        !quiet
    }

    fn harvest_hot(&mut self) -> Found {
        let hot = std::mem::take(&mut self.hot);
        let found = self.harvest(&hot);
        self.hot = hot;
        found
    }

    fn harvest(&mut self, slots: &[usize]) -> Found {
        let mut completions = Vec::new();
        let mut any = false;
        let inner = Arc::clone(&self.inner);
        let mut dispatch = inner.dispatch();
        dispatch.watch_crew();
        let (mut soon, mut crowd) = (false, false);
        for slot in slots {
            let harvest = dispatch.harvest(*slot, |channel, harvest| {
                channel.read_some_results(harvest, RECORDS_AT_A_TIME)
            });
            soon |= dispatch.is_brisk(*slot, inner.spin_ns);
            crowd |= dispatch.is_crowded(*slot);
            if harvest.any {
                any = true;
                dispatch.book(*slot, harvest, &mut completions);
                dispatch.top_up(*slot);
                // Others may have been waiting for the lock.
                self.notes.append(&mut dispatch.notes);
                drop(dispatch);
                self.complete(std::mem::take(&mut completions));
                dispatch = inner.dispatch();
            }
        }
        if any || !dispatch.requests.is_empty() {
            dispatch.pump();
            self.after_dispatch(&mut dispatch);
        }
        drop(dispatch);
        self.complete(completions);
        self.handle_events();
        if any {
            self.results_ns = clock::monotonic_ns();
        }
        // A long job with others behind it is no crowd.
        let flows = || clock::monotonic_ns().saturating_sub(self.results_ns) < CROWD_QUIET_NS;
        match (any, soon) {
            (_, false) if crowd && flows() => Found::Crowd,
            (true, _) => Found::Results,
            (false, true) => Found::Nothing,
            (false, false) => Found::NothingSoon,
        }
    }
}
