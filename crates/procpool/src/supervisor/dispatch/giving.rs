//! Jobs that wait are given out, and moved from behind others to workers that are idle.

use smallvec::SmallVec;

use super::{Dispatch, Pace};
use crate::supervisor::channel::PoolChannel;

impl Dispatch {
    /// Tops workers up from the queue, and moves jobs from behind others to workers that are idle.
    pub(crate) fn pump(&mut self) {
        if self.pace != Pace::Going {
            return;
        }
        if self.queue.is_empty() {
            self.steal();
        }
        // Until all workers are up, those that are get one job at a time.
        let house_is_full = self.serving == self.channels.len();
        while let Some(priority) = self.queue.first_priority() {
            if self.crew_suffices(priority) {
                return self.fill_crew();
            }
            let Some(slot) = self.idle.first() else { break };
            if !self.send_next(slot, 1) {
                break;
            }
        }
        if !house_is_full || self.queue.is_empty() {
            return;
        }
        // Each gets its share: all to the first would only have to be taken back again.
        let share = self.queue.len().div_ceil(self.serving.max(1));
        for slot in 0..self.channels.len() {
            let room = self.channels[slot].as_ref().map_or(0, PoolChannel::room);
            if room > 0 && self.is_serving(slot) && !self.send_next(slot, room.min(share)) {
                continue;
            }
        }
    }

    /// As the end of [`pump`](Self::pump) for those that are awake.
    fn fill_crew(&mut self) {
        let share = self.queue.len().div_ceil(self.brisk.len().max(1));
        let slots: SmallVec<[usize; 8]> = self.brisk.iter().collect();
        for slot in slots {
            let room = self.channels[slot].as_ref().map_or(0, PoolChannel::room);
            if room > 0 {
                self.send_next(slot, room.min(share));
            }
        }
    }

    /// As [`pump`](Self::pump) after results of one worker: the others have what they had.
    pub(in crate::supervisor) fn top_up(&mut self, slot: usize) {
        if !self.idle.is_empty() || self.serving < self.channels.len() {
            if self.queue.is_empty() && self.sent <= self.busy.len() {
                return;
            }
            return self.pump();
        }
        let room = self.channels[slot].as_ref().map_or(0, PoolChannel::room);
        let going = self.pace == Pace::Going && self.is_serving(slot);
        if room > 0 && going && !self.queue.is_empty() {
            let share = self.queue.len().div_ceil(self.serving);
            self.send_next(slot, room.min(share));
        }
    }

    /// Sends up to `count` jobs from the queue. False if the worker could not take one.
    fn send_next(&mut self, slot: usize, count: usize) -> bool {
        for _ in 0..count {
            let Some(priority) = self.queue.first_priority() else {
                break;
            };
            if !self.may_send(priority) {
                self.wake(slot);
                return false;
            }
            let Some(entry) = self.queue.pop() else { break };
            if let Err(entry) = self.send(slot, entry) {
                self.enqueue(entry);
                self.idle.remove(slot);
                self.wake(slot);
                return false;
            }
        }
        self.wake(slot);
        true
    }

    /// A short job never waits behind a long one while a worker is idle.
    fn steal(&mut self) {
        let busy = self.serving - self.idle.len();
        if self.idle.is_empty() || self.sent <= busy {
            return;
        }
        if self.lowest_sent == self.highest_sent && self.crew_suffices(self.lowest_sent) {
            return;
        }
        let crowded = self
            .busy
            .iter()
            .max_by_key(|slot| self.channels[*slot].as_ref().map_or(0, PoolChannel::in_flight));
        if let Some(slot) = crowded
            && !self.is_worth_waiting(slot)
            && let Some(channel) = &mut self.channels[slot]
        {
            let behind = channel.in_flight().saturating_sub(1);
            let revoked = channel.revoke_last(behind.div_ceil(2).max(self.idle.len().min(behind)));
            self.take_back(slot, revoked);
        }
    }
}
