//! Processes that live on after SIGKILL: the pool goes on without them, and reaps them if they end after all.
//!
//! That can be long after the pool's own end. Then a thread waits for them, since a zombie would stay for as long as
//! the host lives; it is the only one that outlives a pool, and uses no CPU.

use std::mem;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::EpollFlags;
use procpool_sys::clock;
use procpool_sys::spawn::Exit;
use procpool_wire::frame::FrameKind;

use super::cgroup::Left;
use super::machine::Event;
use super::obituary::{End, Obituary, status_of};
use super::slot::{Place, Slot, Stage};
use super::{Inner, Supervisor, Token, Worker};
use crate::events::{self, WorkerEnd};
use crate::job_error::{Oom, Status};

/// In what state every process is that is abandoned.
const KILLED: Slot = Slot::Stopping(Stage::Killed { abandon_at: 0 });

/// A process that does not end.
pub(super) struct Abandoned {
    worker: Worker,
    /// What it was made for.
    place: Place,
}

impl Supervisor {
    /// Goes on without the process in this place.
    pub(super) fn abandon(&mut self, place: Place) {
        match place {
            Place::Slot(slot) => match self.workers[slot].take() {
                Some(worker) => self.abandon_worker(slot, worker),
                None => self.abandon_birth(place),
            },
            Place::Spare(spare) => match self.spares[spare].take() {
                Some(spare) => self.keep_other(spare.worker, place),
                None => self.abandon_birth(place),
            },
            Place::Server => self.abandon_server(),
            Place::Nowhere => {}
        }
    }

    fn abandon_worker(&mut self, slot: usize, mut worker: Worker) {
        let (completions, _) = self.last_results(slot);
        if let Ok(Some(exit)) = worker.process.exit() {
            // It has ended this very moment.
            worker.kill_remains();
            self.lay_to_rest(slot, worker, exit, KILLED, completions);
            return self.events.push(Event::AbandonedEnded);
        }
        let pid = worker.process.id();
        let tail = self.stderr.close(&worker.tap);
        let mut detail = format!(
            "it was sent SIGKILL and has not ended after {:?} (unkillable_after): it is abandoned",
            self.inner.settings.unkillable_after
        );
        if let Some(channel) = self.inner.dispatch().channel(slot) {
            let _ = self.epoll.delete(channel.fd());
            if let Some(fault) = &channel.fault {
                detail = format!("{fault}; {detail}");
            }
        }
        let obituary = Obituary {
            slot,
            pid,
            status: Status::Unknown,
            state: KILLED,
            oom: Oom::Unknown,
            detail: Some(detail),
            end: End::Abandoned,
            tail: &tail,
        };
        let lived = worker.lived();
        self.settle(&obituary, completions, |job| events::Event::WorkerAbandoned {
            worker: Some(slot),
            pid,
            job,
            lived,
        });
        self.keep(worker, Place::Slot(slot));
    }

    /// A process that the fork server was asked for and has not forked: if it is born, it ends at once.
    fn abandon_birth(&mut self, place: Place) {
        if let Some(server) = &mut self.server {
            server.renounce_all(place);
        }
        self.events.push(Event::AbandonedEnded);
    }

    fn abandon_server(&mut self) {
        let Some(server) = &mut self.server else {
            return self.events.push(Event::AbandonedEnded);
        };
        // What it has forked before it was killed is there; it forks no more.
        for frame in server.last_frames(&mut self.buffer) {
            if frame.kind == FrameKind::Forked {
                self.take_server_frame(&frame);
            }
        }
        if let Some((worker, unborn)) = self.close_server() {
            self.events.extend(unborn.into_iter().map(Event::Unborn));
            self.keep_other(worker, Place::Server);
        }
    }

    fn keep_other(&mut self, worker: Worker, place: Place) {
        self.stderr.close(&worker.tap);
        let (pid, lived) = (worker.process.id(), worker.lived());
        let event = events::Event::WorkerAbandoned { worker: None, pid, job: None, lived };
        self.notes.add(event);
        self.keep(worker, place);
    }

    /// Keeps the process until it ends.
    fn keep(&mut self, worker: Worker, place: Place) {
        self.inner.dispatch().count_abandoned();
        let index = self.abandoned.iter().position(Option::is_none).unwrap_or_else(|| {
            self.abandoned.push(None);
            self.abandoned.len() - 1
        });
        let mut event = Token::Abandoned(index).event(EpollFlags::EPOLLIN);
        // An error is impossible for what has been added.
        let _ = self.epoll.modify(worker.process.pidfd(), &mut event);
        self.abandoned[index] = Some(Abandoned { worker, place });
    }

    /// An abandoned process has ended after all.
    pub(super) fn bury_abandoned(&mut self, index: usize) {
        let Some(abandoned) = self.abandoned[index].take() else {
            return;
        };
        let Abandoned { worker, place } = &abandoned;
        let exit = worker.process.exit().ok().flatten().unwrap_or(Exit::Unknown);
        if let Place::Slot(slot) = place {
            self.notes.add(events::Event::WorkerEnded {
                worker: *slot,
                pid: worker.process.id(),
                end: WorkerEnd::Killed,
                status: status_of(exit),
                job: None,
                lived: worker.lived(),
            });
        }
        abandoned.reap(&self.inner);
        self.inner.dispatch().count_found();
        self.events.push(Event::AbandonedEnded);
    }

    /// The pool ends: leaves those that still live to a thread.
    pub(super) fn leave_abandoned(&mut self) -> Left {
        let left: Vec<Abandoned> = mem::take(&mut self.abandoned).into_iter().flatten().collect();
        if left.is_empty() {
            return Left::Nobody;
        }
        let inner = Arc::clone(&self.inner);
        let held = Arc::new(Mutex::new(left));
        let take = |held: &Mutex<Vec<Abandoned>>| {
            mem::take(&mut *held.lock().unwrap_or_else(PoisonError::into_inner))
        };
        let theirs = Arc::clone(&held);
        let reaper = thread::Builder::new().name("procpool-reaper".into());
        if reaper.spawn(move || reap_all(take(&theirs), &inner)).is_err() {
            // Zombies until the host ends are better than a host that hangs: dropping one waits for it.
            take(&held).into_iter().for_each(mem::forget);
        }
        Left::Somebody
    }
}

/// Waits for each of them to end.
fn reap_all(mut left: Vec<Abandoned>, inner: &Inner) {
    while !left.is_empty() {
        let pidfds = left.iter().map(|abandoned| abandoned.worker.process.pidfd());
        let mut fds: Vec<PollFd<'_>> =
            pidfds.map(|pidfd| PollFd::new(pidfd, PollFlags::POLLIN)).collect();
        // An interrupted wait is one that found nothing.
        let _ = poll(&mut fds, PollTimeout::NONE);
        let mut ended: Vec<bool> = fds.iter().map(|fd| fd.any() == Some(true)).collect();
        for index in (0..left.len()).rev() {
            if ended.pop() == Some(true) {
                left.swap_remove(index).reap(inner);
            }
        }
    }
}

impl Abandoned {
    /// It has ended, long after it was killed.
    fn reap(self, inner: &Inner) {
        let Abandoned { mut worker, place } = self;
        if place != Place::Server {
            worker.kill_remains();
        }
        let Worker { process, hold, .. } = worker;
        process.reap();
        hold.let_go(inner);
    }
}

impl Worker {
    /// How long ago it was started.
    pub(super) fn lived(&self) -> Duration {
        Duration::from_nanos(clock::monotonic_ns().saturating_sub(self.started_ns))
    }
}
