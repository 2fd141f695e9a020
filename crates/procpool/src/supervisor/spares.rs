//! Spares: processes that are ready before a slot wants one. A process for each job then costs a hand-over, as does the
//! next worker after a death.
//!
//! A spare has everything that a worker has but a slot, so it is not among the workers that callers see. When it
//! is taken it is told which slot it fills, in the shared memory, and takes jobs at once.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::epoll::EpollFlags;
use procpool_sys::clock;
use procpool_sys::spawn::Exit;
use procpool_wire::frame::{Frame, FrameKind};

use super::channel::{Harvest, Link, PoolChannel};
use super::machine::{Event, SpareEvent, SparesFrom};
use super::obituary::start_cause;
use super::slot::{Place, Slot};
use super::start::{cause_of, trouble_of};
use super::{HANGUP_GRACE_NS, Supervisor, Token, Worker};
use crate::builder::{Isolation, Settings, StartMethod};
use crate::events;

/// The most spares that a pool has unasked. They serve to have the next process ready while the system makes another, and
/// no machine makes more at a time than it has processors.
const SPARES_MAX: usize = 16;

/// A process that fills no slot.
pub(super) struct Spare {
    pub(super) worker: Worker,
    channel: PoolChannel,
}

/// How many spares a pool shall have, and from when on.
///
/// With a process for each job, one for each worker, within bounds. Else only where one costs next to nothing, a fork
/// that shares its memory, and where it is nothing to the user, who has no code that runs in it; and only once a worker has
/// died, since most pools never see that.
pub(super) fn spares_of(settings: &Settings) -> (usize, SparesFrom) {
    match (settings.spares, settings.isolation, settings.start_method) {
        (Some(spares), ..) => (spares, SparesFrom::FirstWorker),
        (None, Isolation::FreshProcess, _) => {
            (settings.workers.min(SPARES_MAX), SparesFrom::FirstWorker)
        }
        (None, Isolation::Reuse, StartMethod::ForkServer) if settings.initializer.is_none() => {
            (1, SparesFrom::FirstDeath)
        }
        (None, Isolation::Reuse, _) => (0, SparesFrom::FirstDeath),
    }
}

impl Supervisor {
    pub(super) fn spawn_spare(&mut self, place: usize) {
        if let Err(error) = self.try_spawn_spare(place) {
            self.spare_failed(place, &error);
        }
    }

    fn try_spawn_spare(&mut self, place: usize) -> io::Result<()> {
        let method = self.inner.settings.start_method;
        let cradle = self.make_cradle(Place::Spare(place), method)?;
        match method {
            StartMethod::Spawn => {
                let (worker, channel) = self.execute("procpool-worker", cradle)?;
                self.settle_spare(place, worker, channel)
            }
            StartMethod::ForkServer => {
                self.ask_for(cradle);
                Ok(())
            }
        }
    }

    fn spare_failed(&mut self, place: usize, error: &io::Error) {
        let cause = format!("cannot start a spare: {error}");
        let event = SpareEvent::SpawnFailed(trouble_of(error), cause);
        self.events.push(Event::Spare(place, event));
    }

    pub(super) fn settle_spare(
        &mut self,
        place: usize,
        worker: Worker,
        channel: PoolChannel,
    ) -> io::Result<()> {
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP;
        let token = Token::SpareProcess(place).event(EpollFlags::EPOLLIN);
        let watched = self
            .epoll
            .add(channel.fd(), Token::SpareChannel(place).event(flags))
            .and_then(|()| self.epoll.add(worker.process.pidfd(), token))
            .map_err(io::Error::from)
            .and_then(|()| self.stderr.watch(&worker.tap, worker.process.id(), None));
        if let Err(error) = watched {
            self.stderr.close(&worker.tap);
            return Err(error);
        }
        self.spares[place] = Some(Spare { worker, channel });
        self.register_spare_writing(place);
        self.suspend_newborn(Place::Spare(place));
        Ok(())
    }

    /// The spare becomes the worker of a slot, and gets a job.
    pub(super) fn take_spare(&mut self, place: usize, slot: usize) {
        let Some(Spare { mut worker, mut channel }) = self.spares[place].take() else {
            // The core takes only what was ready and is not buried.
            return self.events.push(Event::Exited(slot, "the spare is gone".into()));
        };
        let pid = worker.process.id();
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP;
        // An error is impossible for what has been added: the descriptors are the same.
        let _ = self.epoll.modify(channel.fd(), &mut Token::Channel(slot).event(flags));
        let _ = self
            .epoll
            .modify(worker.process.pidfd(), &mut Token::Process(slot).event(EpollFlags::EPOLLIN));
        worker.writing = false;
        worker.tap.settle(Some(slot));
        channel.move_in(slot, pid, self.cpu_of(slot));
        self.workers[slot] = Some(worker);
        self.begin_memory_watch(slot);
        self.notes.add(events::Event::WorkerStarting { worker: slot, pid });
        let after = Duration::ZERO;
        self.notes.add(events::Event::WorkerReady { worker: slot, pid, after });
        let inner = Arc::clone(&self.inner);
        let mut dispatch = inner.dispatch();
        dispatch.add_worker(channel);
        dispatch.ready(slot);
        dispatch.pump();
        self.register_writers(&mut dispatch);
        self.after_dispatch(&mut dispatch);
        drop(dispatch);
        inner.changed.notify_all();
    }

    pub(super) fn dismiss_spare(&mut self, place: usize) {
        if let Some(spare) = &mut self.spares[place] {
            spare.channel.send_frame(FrameKind::Bye);
        }
        self.register_spare_writing(place);
    }

    pub(super) fn kill_spare(&mut self, place: usize) {
        match &mut self.spares[place] {
            Some(spare) => spare.worker.kill_tree(),
            None => self.renounce(Place::Spare(place)),
        }
    }

    /// Reads what a spare has sent.
    pub(super) fn read_spare(&mut self, place: usize) {
        let Some(spare) = &mut self.spares[place] else {
            return;
        };
        spare.channel.flush();
        let (frames, link) = spare.read(&mut self.buffer);
        if link == Link::Closed {
            spare.worker.hung_up_at = Some(clock::monotonic_ns());
            let _ = self.epoll.delete(spare.channel.fd());
        }
        for frame in frames {
            self.take_spare_frame(place, &frame);
        }
        self.check_spare_fault(place);
        self.register_spare_writing(place);
    }

    fn take_spare_frame(&mut self, place: usize, frame: &Frame) {
        let is_starting = matches!(self.machine.spare(place), Slot::Starting { .. });
        match frame.kind {
            FrameKind::Ready if is_starting => {
                self.events.push(Event::Spare(place, SpareEvent::Ready));
            }
            FrameKind::StartFailed if is_starting => {
                let cause = cause_of("a spare", &frame.body);
                self.events.push(Event::Spare(place, SpareEvent::StartFailed(cause)));
            }
            kind => {
                let fault = || format!("it sent a {kind:?} frame when there was no place for one");
                if let Some(spare) = &mut self.spares[place] {
                    spare.channel.fault.get_or_insert_with(fault);
                }
            }
        }
    }

    fn check_spare_fault(&mut self, place: usize) {
        if self.spares[place].as_ref().is_some_and(|spare| spare.channel.fault.is_some()) {
            self.events.push(Event::Spare(place, SpareEvent::Faulty));
        }
    }

    /// Spares whose channel is closed although they live are killed.
    pub(super) fn check_spare_hangups(&mut self) {
        for place in 0..self.spares.len() {
            let Some(spare) = &mut self.spares[place] else {
                continue;
            };
            let hung_up_at = &mut spare.worker.hung_up_at;
            if hung_up_at.take_if(|at| clock::monotonic_ns() >= *at + HANGUP_GRACE_NS).is_some() {
                spare.channel.fault.get_or_insert_with(|| "it closed its control channel".into());
                self.check_spare_fault(place);
            }
        }
    }

    /// Tells epoll whether its channel waits for room.
    fn register_spare_writing(&mut self, place: usize) {
        if let Some(Spare { worker, channel }) = &mut self.spares[place] {
            let wants = channel.wants_to_write();
            if wants != worker.writing && worker.hung_up_at.is_none() {
                worker.writing = wants;
                let mut flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP;
                flags.set(EpollFlags::EPOLLOUT, wants);
                let event = &mut Token::SpareChannel(place).event(flags);
                let _ = self.epoll.modify(channel.fd(), event);
            }
        }
    }

    /// A spare's process has ended.
    pub(super) fn bury_spare(&mut self, place: usize) {
        let Some(spare) = &mut self.spares[place] else {
            return;
        };
        let exit = match spare.worker.process.exit() {
            Ok(Some(exit)) => exit,
            Ok(None) => return,
            Err(_) => Exit::Unknown,
        };
        spare.worker.kill_remains();
        let (frames, _) = spare.read(&mut self.buffer);
        for frame in frames {
            if frame.kind == FrameKind::StartFailed {
                self.take_spare_frame(place, &frame);
            }
        }
        self.handle_events();
        // It may just have been taken, and is buried as a worker then.
        let Some(Spare { worker: Worker { process, tap, hold, .. }, channel }) =
            self.spares[place].take()
        else {
            return;
        };
        let pid = process.id();
        process.reap();
        hold.let_go_after(exit, self.machine.spare(place), &self.inner);
        let tail = self.stderr.close(&tap);
        let cause = start_cause("a spare", pid, exit, channel.fault, &tail);
        self.events.push(Event::Spare(place, SpareEvent::Exited(cause)));
        // At once: between this and an earlier event the core could give away a spare that is not there any more.
        self.handle_events();
    }
}

impl Spare {
    fn read(&mut self, buffer: &mut [u8]) -> (Vec<Frame>, Link) {
        let mut frames = Vec::new();
        // It has no jobs, so there is nothing to harvest.
        let mut harvest = Harvest::default();
        let link = self.channel.read_frames(buffer, &mut harvest, |frame| frames.push(frame));
        (frames, link)
    }
}
