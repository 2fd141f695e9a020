//! How few workers are awake while jobs are short.
//!
//! To wake a worker takes longer than a short job does, and more workers than processors get no more done. So while as
//! many workers as there are processors have jobs, and short ones, they are the *crew*: new jobs queue up behind
//! theirs, and who sleeps is left asleep. A pool of 256 workers then costs no more than one of two.
//!
//! How long a job takes is known when it has ended. So the crew is trusted only while the supervisor watches it: it
//! looks at those that have had no result since its last look, some 0.1 ms, and *relieves* one that it finds at a long
//! job: what waits there is taken back, to be run by others. One that only waits for a processor is left alone, since
//! another worker would get none sooner.

use super::{Dispatch, Pace};
use crate::supervisor::channel::PoolChannel;

/// Jobs that take less than this are short: a fraction of what it takes to wake a worker.
pub(crate) const SHORT_NS: u64 = 10_000;
/// What waits behind short jobs is not worth moving if it takes less than this: less than it takes to wake who would
/// get it.
const WORTH_MOVING_NS: u64 = 50_000;

/// Who works while jobs are short.
pub(crate) struct Crew {
    /// How many are enough.
    pub(super) enough: usize,
    /// The supervisor looks after those that wait.
    pub(super) watch: Watch,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Watch {
    Off,
    /// The supervisor is to begin.
    Called,
    On,
}

/// A worker where jobs wait behind another, at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) slot: usize,
    pub(crate) pid: u32,
    /// The thread that runs its jobs, as it says itself.
    pub(crate) thread: u32,
    /// How many jobs it has ended.
    pub(crate) jobs_done: u64,
    /// When it began the one at hand, as it says.
    pub(crate) began_ns: Option<u64>,
}

impl Dispatch {
    /// Notes how many workers can run at a time. By default the crew is never enough.
    pub(crate) fn set_processors(&mut self, processors: usize) {
        self.crew.enough = processors;
    }

    /// Whether a job of this priority shall wait behind others, although a worker is idle.
    #[inline]
    pub(super) fn crew_suffices(&self, priority: i32) -> bool {
        self.crew.watch != Watch::Off && self.crew_could_do(priority)
    }

    /// The same; calls the supervisor to look after the crew if it does not.
    #[inline]
    pub(super) fn call_crew(&mut self, priority: i32) -> bool {
        let could = self.crew_could_do(priority);
        if could && self.crew.watch == Watch::Off {
            self.crew.watch = Watch::Called;
        }
        could
    }

    /// True if the supervisor was called to look after the crew, and has not come.
    #[inline]
    pub(crate) fn crew_calls(&self) -> bool {
        self.crew.watch == Watch::Called
    }

    fn crew_could_do(&self, priority: i32) -> bool {
        self.brisk.len() >= self.crew.enough
            && self.serving == self.channels.len()
            // An order among them could not be kept behind other jobs.
            && self.lowest_sent == priority
            && self.highest_sent == priority
    }

    /// The member that gets the next job, and has room for it.
    pub(super) fn next_of_crew(&mut self) -> Option<usize> {
        for _ in 0..self.brisk.len() {
            self.cursor = self.brisk.next_after(self.cursor)?;
            if self.channels[self.cursor].as_ref().is_some_and(|channel| channel.room() > 0) {
                return Some(self.cursor);
            }
        }
        None
    }

    /// True if what waits at this worker is left there although others are idle.
    pub(super) fn is_worth_waiting(&self, slot: usize) -> bool {
        self.crew.watch != Watch::Off
            && self.brisk.contains(slot)
            && self.channels[slot].as_ref().is_some_and(|channel| {
                channel.in_flight() as u64 * channel.average_ns() < WORTH_MOVING_NS
            })
    }

    /// The supervisor looks after the crew from here on.
    pub(crate) fn watch_crew(&mut self) {
        self.crew.watch = Watch::On;
    }

    /// It does not any more: nobody waits while another is idle.
    pub(crate) fn leave_crew(&mut self) {
        if self.crew.watch != Watch::Off {
            self.crew.watch = Watch::Off;
            self.pump();
        }
    }

    /// True if jobs wait behind others although a worker is idle.
    pub(crate) fn relies_on_crew(&self) -> bool {
        self.crew.watch != Watch::Off
            && self.pace == Pace::Going
            && !self.idle.is_empty()
            && (self.sent > self.busy.len() || !self.queue.is_empty())
    }

    /// Where jobs wait behind others.
    pub(crate) fn members(&self) -> Vec<Member> {
        let channels = self.busy.iter().filter_map(|slot| self.channels[slot].as_ref());
        let crowded = channels.filter(|channel| channel.in_flight() > 1);
        let member = |channel: &PoolChannel| Member {
            slot: channel.slot,
            pid: channel.pid,
            thread: channel.thread(),
            jobs_done: channel.jobs_done,
            began_ns: channel.running().map(|(_, _, _, black_box)| black_box.started_ns),
        };
        crowded.map(member).collect()
    }

    /// Its job is a long one, unless it has ended meanwhile: what waits there goes to others.
    pub(crate) fn relieve(&mut self, member: Member) {
        let Some(channel) = &mut self.channels[member.slot] else { return };
        if channel.jobs_done != member.jobs_done || channel.pid != member.pid {
            return;
        }
        channel.set_long();
        let revoked = channel.revoke_last(usize::MAX);
        self.take_back(member.slot, revoked);
        self.pump();
    }

    /// Notes whether a worker has jobs, and short ones.
    pub(super) fn note_busy(&mut self, slot: usize) {
        let channel = self.channels[slot].as_ref().filter(|channel| channel.in_flight() > 0);
        if channel.is_some() {
            self.busy.insert(slot)
        } else {
            self.busy.remove(slot)
        }
        let brisk = channel.is_some_and(PoolChannel::is_brisk) && self.is_serving(slot);
        if brisk { self.brisk.insert(slot) } else { self.brisk.remove(slot) }
    }
}
