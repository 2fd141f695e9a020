//! Workers as the dispatch knows them: they come, serve and go.

use super::{Dispatch, Resident, ResidentState};
use crate::report::{Stats, WorkerInfo, WorkerState};
use crate::supervisor::channel::{Intake, PoolChannel};

impl Dispatch {
    pub(crate) fn add_worker(&mut self, channel: PoolChannel) {
        let slot = channel.slot;
        self.residents[slot] = Some(Resident { pid: channel.pid, state: ResidentState::Starting });
        self.channels[slot] = Some(channel);
        self.stats.spawned += 1;
    }

    pub(crate) fn ready(&mut self, slot: usize) {
        self.set_state(slot, ResidentState::Serving);
    }

    /// The worker gets no more jobs; those that it has not started are taken back.
    pub(crate) fn close_intake(&mut self, slot: usize) {
        self.set_state(slot, ResidentState::Stopping);
        if let Some(channel) = &mut self.channels[slot] {
            channel.intake = Intake::Shut;
            let revoked = channel.revoke_last(usize::MAX);
            self.take_back(slot, revoked);
        }
    }

    /// The slots whose workers have jobs.
    pub(crate) fn busy(&self) -> Vec<usize> {
        self.busy.iter().collect()
    }

    /// For a worker that is idle: a number that each job that is sent to it changes.
    pub(crate) fn idle_since_job(&self, slot: usize) -> Option<u32> {
        let channel = self.channels[slot].as_ref()?;
        self.idle.contains(slot).then(|| channel.generation())
    }

    pub(crate) fn resume(&mut self, slot: usize) {
        if let Some(channel) = &mut self.channels[slot]
            && channel.intake == Intake::Shut
        {
            channel.intake = Intake::Open;
        }
        self.set_state(slot, ResidentState::Serving);
    }

    fn set_state(&mut self, slot: usize, state: ResidentState) {
        let Some(resident) = &mut self.residents[slot] else {
            return;
        };
        if resident.state == ResidentState::Serving && state != ResidentState::Serving {
            self.serving -= 1;
        }
        if resident.state != ResidentState::Serving && state == ResidentState::Serving {
            self.serving += 1;
        }
        resident.state = state;
        self.note_idle(slot);
    }

    /// The slot's worker is no more. Its channel is handed over, to be buried.
    pub(crate) fn remove_worker(&mut self, slot: usize) -> Option<PoolChannel> {
        self.set_state(slot, ResidentState::Stopping);
        self.residents[slot] = None;
        let channel = self.channels[slot].take()?;
        self.note_busy(slot);
        self.sent -= channel.in_flight();
        Some(channel)
    }

    pub(crate) fn count_death(&mut self) {
        self.stats.deaths += 1;
    }

    pub(crate) fn count_abandoned(&mut self) {
        self.stats.abandoned += 1;
    }

    /// One that was abandoned has ended.
    pub(crate) fn count_found(&mut self) {
        self.stats.abandoned -= 1;
    }

    pub(crate) fn stats(&self) -> Stats {
        let running: usize = self.channels.iter().flatten().map(PoolChannel::claimed).sum();
        Stats {
            workers: self.residents.iter().flatten().count(),
            idle: self.idle.len(),
            running,
            queued: self.queue.len() + self.retries.len() + self.sent - running,
            ..self.stats.clone()
        }
    }

    pub(crate) fn workers(&self) -> Vec<WorkerInfo> {
        let residents = self.residents.iter().enumerate();
        let info = |(index, resident): (usize, &Option<Resident>)| {
            let resident = (*resident)?;
            let channel = self.channels[index].as_ref();
            let state = match resident.state {
                ResidentState::Starting => WorkerState::Starting,
                ResidentState::Stopping => WorkerState::Stopping,
                ResidentState::Serving if channel.is_some_and(|c| c.in_flight() > 0) => {
                    WorkerState::Busy
                }
                ResidentState::Serving => WorkerState::Idle,
            };
            Some(WorkerInfo {
                index,
                pid: resident.pid,
                state,
                job: channel
                    .and_then(|channel| channel.running().map(|(_, entry, ..)| entry.cell.id)),
                jobs_done: channel.map_or(0, |channel| channel.jobs_done),
            })
        };
        residents.filter_map(info).collect()
    }
}
