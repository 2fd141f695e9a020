//! The pure core of the supervisor: which worker is started, stopped and killed, and when.
//!
//! An event and the time go in, actions come out. No I/O, no clock, no threads, no jobs: what a worker
//! does between `Ready` and its end is the [dispatch](super::dispatch)'s affair. The states are drawn in
//! README.md beside this file.

mod abandoned;
mod pause;
mod server;
mod spares;
mod starts;

use std::collections::VecDeque;

use super::slot::{Place, Slot, Stage};
use crate::builder::StartMethod;
use pause::Pace;
use server::Server;
pub(crate) use server::ServerEvent;
use spares::Spares;
pub(crate) use spares::{SpareEvent, SparesFrom};

/// What the core goes by: plain data.
#[derive(Debug, Clone)]
pub(crate) struct Policy {
    pub(crate) slots: usize,
    pub(crate) start_method: StartMethod,
    /// How many processes shall be ready that fill no slot.
    pub(crate) spares: usize,
    pub(crate) spares_from: SparesFrom,
    pub(crate) start_timeout_ns: u64,
    pub(crate) grace_ns: u64,
    /// How long a process may live on that was sent SIGKILL.
    pub(crate) unkillable_after_ns: u64,
    /// How many that live on may be abandoned and replaced.
    pub(crate) abandoned_max: usize,
    pub(crate) restart_limit: u32,
    pub(crate) restart_window_ns: u64,
}

/// Everything that can happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// So many jobs wait for a worker to be started.
    Demand(usize),
    /// Every slot shall have a worker.
    WarmUp,
    /// The worker could not be started.
    SpawnFailed(usize, Trouble, String),
    /// The worker can take jobs.
    Ready(usize),
    /// The worker says that it cannot start.
    StartFailed(usize, String),
    /// The worker has run no job and is about to be told to have exited.
    Unused(usize),
    /// The worker's process has ended and is reaped; what is known of the cause.
    Exited(usize, String),
    /// The process was not asked for: the fork server is gone or going.
    Unborn(Place),
    /// A process that was abandoned has ended after all, and is reaped; or there never was one.
    AbandonedEnded,
    /// Something has happened to the fork server.
    Server(ServerEvent),
    /// Something has happened to the spare in this place.
    Spare(usize, SpareEvent),
    /// The worker broke the rules.
    Faulty(usize),
    /// The worker's job shall stop.
    StopJob(usize, Manner),
    /// The job that was to stop has returned.
    Returned(usize),
    /// The worker has run all the jobs it shall.
    Retire(usize),
    /// Time has passed.
    Tick,
    /// Workers that are starting are not needed any more.
    Abort,
    /// No jobs are left, and none will come.
    Drained,
    /// The workers shall be stopped in their tracks.
    Pause,
    /// They shall go on.
    Unpause,
}

/// Why a worker could not be started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// The system is short of something, which may come back.
    Shortage,
    /// It will go wrong again.
    Lasting,
}

/// How a job is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Manner {
    /// It looks at the stop flag: it gets half of the grace before SIGTERM.
    Cooperative,
    /// SIGTERM at once.
    Plain,
}

/// Everything that the loop is told to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    /// Start a worker.
    Spawn(usize),
    /// Start the fork server.
    StartServer,
    /// Tell the fork server to exit.
    DismissServer,
    /// SIGKILL to the fork server's group.
    KillServer,
    /// Start a spare in this place.
    SpawnSpare(usize),
    /// The spare in this place is the worker of the slot from now on, and takes jobs.
    TakeSpare { spare: usize, slot: usize },
    /// Tell the spare to exit.
    DismissSpare(usize),
    /// SIGKILL to the spare's group.
    KillSpare(usize),
    /// Tell the worker to exit.
    Bye(usize),
    /// SIGTERM to the worker's group.
    Terminate(usize),
    /// SIGKILL to the worker's group.
    Kill(usize),
    /// The process in this place does not end: the place is free, its jobs are to be settled.
    Abandon(Place),
    /// The worker takes jobs again.
    Resume(usize),
    /// SIGSTOP to the process in this place and everything below it.
    Suspend(Place),
    /// SIGCONT to those.
    Continue(Place),
    /// Every process that shall be is stopped.
    Paused,
    /// Every process goes on.
    Unpaused,
    /// Nothing to do, but to tell: a worker was not started, why, and when the next one may be.
    StartFailed {
        /// `None`: the fork server, or a spare.
        slot: Option<usize>,
        cause: String,
        retry_at: Option<u64>,
    },
    /// No worker can be started: the first cause.
    Break(String),
    /// Nothing is left and nothing will come.
    Finished,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    Open,
    /// The pool is broken: nothing is started any more.
    Broken,
    /// No jobs are left and none will come.
    Drained,
    Finished,
}

impl Life {
    /// Whether there are, or may come, jobs to be run.
    fn is_going_on(self) -> bool {
        matches!(self, Life::Open | Life::Broken)
    }
}

/// The core.
#[derive(Debug)]
pub(crate) struct Machine {
    policy: Policy,
    slots: Vec<Slot>,
    /// If workers are forked.
    server: Option<Server>,
    spares: Spares,
    life: Life,
    pace: Pace,
    /// Workers that are wanted for jobs, besides those that live.
    demand: usize,
    /// Workers that are wanted for those that died unasked. Apart from the demand, which changes with the jobs
    /// while starts have to wait.
    replacements: usize,
    /// Every slot shall have a worker, until once every slot has.
    warming_up: bool,
    /// Since when the system has been too short of something to start a worker.
    short_since: Option<u64>,
    /// When workers died before they were ready, within the window.
    start_deaths: VecDeque<u64>,
    first_cause: Option<String>,
    /// No worker is started before this time.
    not_before: u64,
    /// Workers that were ready and died without having run a job, one soon after the other.
    unused_deaths: u32,
    last_unused: u64,
    /// No worker is started before this time either, whatever became of other starts.
    rest_until: u64,
    /// Processes that were abandoned and live.
    abandoned: usize,
}

impl Machine {
    pub(crate) fn new(policy: Policy) -> Machine {
        let slots = vec![Slot::Empty; policy.slots];
        Machine {
            server: (policy.start_method == StartMethod::ForkServer).then(Server::new),
            spares: Spares::new(policy.spares, policy.spares_from),
            policy,
            slots,
            life: Life::Open,
            pace: Pace::Going,
            demand: 0,
            replacements: 0,
            warming_up: false,
            short_since: None,
            start_deaths: VecDeque::new(),
            first_cause: None,
            not_before: 0,
            unused_deaths: 0,
            last_unused: 0,
            rest_until: 0,
            abandoned: 0,
        }
    }

    pub(crate) fn slot(&self, slot: usize) -> Slot {
        self.slots[slot]
    }

    /// Takes an event and appends what is to be done to `out`.
    pub(crate) fn handle(&mut self, event: Event, now: u64, out: &mut Vec<Action>) {
        match event {
            Event::Demand(jobs) => self.demand = jobs,
            Event::WarmUp => self.warming_up = true,
            Event::SpawnFailed(slot, trouble, cause) => {
                // Not only if it is starting: the failure of another slot may have broken the pool
                // meanwhile, and so have killed the worker that this one never had.
                let before = std::mem::replace(&mut self.slots[slot], Slot::Empty);
                if let Slot::Starting { give_up_at } = before {
                    match trouble {
                        Trouble::Shortage => self.shortage(Some(slot), give_up_at, cause, now, out),
                        Trouble::Lasting => {
                            self.start_death(Some(slot), give_up_at, cause, now, out)
                        }
                    }
                }
            }
            Event::Ready(slot) => {
                if matches!(self.slots[slot], Slot::Starting { .. }) {
                    self.slots[slot] = Slot::Serving;
                    self.note_wanted_worker();
                    self.spares.note_worker();
                    self.starts_go_well();
                    if self.life == Life::Drained {
                        self.retire(slot, now, out);
                    }
                }
            }
            Event::StartFailed(slot, cause) => {
                if let Slot::Starting { give_up_at } = self.slots[slot] {
                    self.kill(slot, now, out);
                    self.start_death(Some(slot), give_up_at, cause, now, out);
                }
            }
            Event::Unused(slot) => {
                if self.slots[slot] == Slot::Serving {
                    self.rest(now);
                }
            }
            Event::Exited(slot, cause) => {
                let before = std::mem::replace(&mut self.slots[slot], Slot::Empty);
                match before {
                    Slot::Starting { give_up_at } => {
                        self.start_death(Some(slot), give_up_at, cause, now, out);
                    }
                    // Nobody told it to go: the pool shall be as strong as it was.
                    Slot::Serving => {
                        self.replacements = self.replacements.max(self.starting()) + 1;
                        self.spares.note_death();
                    }
                    Slot::Empty | Slot::Lost | Slot::Stopping(Stage::Leaving { .. }) => {}
                    Slot::Stopping(_) => self.spares.note_death(),
                }
            }
            Event::Unborn(place) => {
                self.unborn(place);
            }
            Event::AbandonedEnded => self.abandoned_ended(),
            Event::Server(event) => self.handle_server(event, now, out),
            Event::Spare(place, event) => self.handle_spare(place, event, now, out),
            Event::Faulty(slot) => {
                if !self.slots[slot].is_vacant() {
                    self.kill(slot, now, out);
                }
            }
            Event::StopJob(slot, manner) => self.stop_job(slot, manner, now, out),
            Event::Returned(slot) => match self.slots[slot] {
                Slot::Stopping(Stage::Asked { .. }) => {
                    self.slots[slot] = Slot::Serving;
                    if self.life == Life::Drained {
                        self.retire(slot, now, out);
                    } else {
                        out.push(Action::Resume(slot));
                        self.suspend_again(slot, out);
                    }
                }
                // It has been sent SIGTERM, and what that did to it nobody knows.
                Slot::Stopping(Stage::Terminated { .. }) => self.kill(slot, now, out),
                _ => {}
            },
            Event::Retire(slot) => {
                if self.slots[slot] == Slot::Serving {
                    self.retire(slot, now, out);
                }
            }
            // Not with any event: a process that has ended may have been reaped just now, and the core is told of
            // that in the same batch.
            Event::Tick => self.expire_killed(now, out),
            Event::Abort => {
                // The loop tells of the jobs that are gone only after this.
                (self.demand, self.replacements, self.warming_up) = (0, 0, false);
                for slot in 0..self.slots.len() {
                    if matches!(self.slots[slot], Slot::Starting { .. }) {
                        self.kill(slot, now, out);
                    }
                }
            }
            Event::Drained => {
                if self.life.is_going_on() {
                    self.life = Life::Drained;
                    if self.is_paused() {
                        self.unpause(now, out);
                    }
                    for slot in 0..self.slots.len() {
                        match self.slots[slot] {
                            Slot::Serving => self.retire(slot, now, out),
                            Slot::Starting { .. } => self.kill(slot, now, out),
                            Slot::Empty | Slot::Stopping(_) | Slot::Lost => {}
                        }
                    }
                    self.dismiss_spares(now, out);
                    self.dismiss_server(now, out);
                }
            }
            Event::Pause => self.pause(now, out),
            Event::Unpause => self.unpause(now, out),
        }
        self.expire(now, out);
        self.give_up_if_all_are_lost(now, out);
        self.take_spares(out);
        self.start_workers(now, out);
        self.start_spares(now, out);
        if self.slots.iter().all(|slot| *slot == Slot::Serving) {
            (self.replacements, self.warming_up) = (0, false);
        }
        let nobody = self.slots.iter().all(Slot::is_vacant)
            && self.spares.is_empty()
            && self.server().is_none_or(|server| server.is_vacant());
        if self.life == Life::Drained && nobody {
            self.life = Life::Finished;
            out.push(Action::Finished);
        }
    }

    /// When the core wants to be woken by a `Tick`.
    pub(crate) fn deadline(&self) -> Option<u64> {
        let start =
            (self.to_start() > 0 && self.slots.contains(&Slot::Empty)).then_some(self.start_at());
        let others = self.server_deadline(start).into_iter().chain(self.spares_deadline());
        self.slots.iter().filter_map(|slot| self.due(slot)).chain(others).min()
    }

    fn stop_job(&mut self, slot: usize, manner: Manner, now: u64, out: &mut Vec<Action>) {
        if self.slots[slot] != Slot::Serving {
            return;
        }
        self.let_end(Place::Slot(slot), out);
        let kill_at = now.saturating_add(self.policy.grace_ns);
        self.slots[slot] = Slot::Stopping(match manner {
            Manner::Cooperative => {
                Stage::Asked { terminate_at: now.saturating_add(self.policy.grace_ns / 2), kill_at }
            }
            Manner::Plain => {
                out.push(Action::Terminate(slot));
                Stage::Terminated { kill_at }
            }
        });
    }

    fn retire(&mut self, slot: usize, now: u64, out: &mut Vec<Action>) {
        self.let_end(Place::Slot(slot), out);
        self.slots[slot] =
            Slot::Stopping(Stage::Leaving { kill_at: now.saturating_add(self.policy.grace_ns) });
        out.push(Action::Bye(slot));
    }

    fn kill(&mut self, slot: usize, now: u64, out: &mut Vec<Action>) {
        if !self.slots[slot].is_killed() {
            self.slots[slot] = self.killed(now);
            out.push(Action::Kill(slot));
        }
    }

    /// Does what is due by now.
    fn expire(&mut self, now: u64, out: &mut Vec<Action>) {
        self.expire_server(now, out);
        self.expire_spares(now, out);
        for slot in 0..self.slots.len() {
            match self.slots[slot] {
                Slot::Starting { give_up_at } if now >= give_up_at && !self.is_paused() => {
                    self.kill(slot, now, out);
                    let timeout = std::time::Duration::from_nanos(self.policy.start_timeout_ns);
                    self.start_death(
                        Some(slot),
                        give_up_at,
                        format!("a worker was not ready after {timeout:?} (start_timeout)"),
                        now,
                        out,
                    );
                }
                Slot::Stopping(Stage::Asked { terminate_at, kill_at }) if now >= terminate_at => {
                    self.slots[slot] = Slot::Stopping(Stage::Terminated { kill_at });
                    out.push(Action::Terminate(slot));
                }
                Slot::Stopping(Stage::Terminated { kill_at } | Stage::Leaving { kill_at })
                    if now >= kill_at =>
                {
                    self.kill(slot, now, out);
                }
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests;
