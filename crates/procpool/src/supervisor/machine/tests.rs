//! The pure core against a model of the outside world.

mod abandoned;
mod examples;
mod pause;
mod random;
mod server;
mod spares;

use super::*;

const SECOND: u64 = 1_000_000_000;

/// A worker's process, as the outside world knows it.
#[derive(Debug, Default)]
struct Process {
    ready: bool,
    told_to_leave: bool,
    killed: bool,
    stopped: bool,
}

/// The machine with what surrounds it: processes that exist from `Spawn` to `Exited`, and a clock.
#[derive(Debug)]
struct World {
    machine: Machine,
    processes: Vec<Option<Process>>,
    server: Option<Process>,
    spares: Vec<Option<Process>>,
    worker_seen: bool,
    /// A process is gone that was not told to leave.
    death_seen: bool,
    spares_from: SparesFrom,
    /// Starts of the fork server.
    servers: usize,
    /// The start of the fork server was refused, which the machine does not know yet.
    server_refused: bool,
    /// Slots whose start was refused, which the machine does not know yet.
    refused: Vec<usize>,
    /// The same, of the batch that is being told to it.
    batch: Vec<usize>,
    now: u64,
    spawns: usize,
    broken: Option<String>,
    finished: bool,
    /// Processes that were killed, do not end, and are not waited for.
    abandoned: usize,
    /// Starts that the system refuses from now on.
    refusals: usize,
    /// Why.
    trouble: Trouble,
    /// Of the starts that were told to have failed: when the next one may be.
    told: Vec<Option<u64>>,
    /// What was done, newest last.
    done: Vec<Action>,
}

impl World {
    fn new(policy: Policy) -> World {
        World {
            processes: (0..policy.slots).map(|_| None).collect(),
            machine: Machine::new(policy.clone()),
            server: None,
            spares: (0..policy.spares).map(|_| None).collect(),
            worker_seen: false,
            death_seen: false,
            spares_from: policy.spares_from,
            servers: 0,
            server_refused: false,
            refused: Vec::new(),
            batch: Vec::new(),
            now: SECOND,
            spawns: 0,
            broken: None,
            finished: false,
            abandoned: 0,
            refusals: 0,
            trouble: Trouble::Lasting,
            told: Vec::new(),
            done: Vec::new(),
        }
    }

    /// Hands an event in, carries out what comes of it, and holds every action against the model.
    fn event(&mut self, event: Event) {
        let mut actions = Vec::new();
        self.machine.handle(event, self.now, &mut actions);
        self.act_all(actions);
        self.nothing_spins();
    }

    /// As the loop does: first all actions, then the failures that came of them.
    fn act_all(&mut self, actions: Vec<Action>) {
        let mut actions = actions;
        loop {
            for action in actions {
                self.act(&action);
                if !matches!(action, Action::StartFailed { .. }) {
                    self.done.push(action);
                }
            }
            actions = Vec::new();
            if std::mem::take(&mut self.server_refused) {
                let event = ServerEvent::SpawnFailed(self.trouble, "refused".into());
                self.machine.handle(Event::Server(event), self.now, &mut actions);
            } else if self.refused.is_empty() {
                return;
            }
            self.batch = std::mem::take(&mut self.refused);
            for slot in self.batch.clone() {
                let event = Event::SpawnFailed(slot, self.trouble, "refused".into());
                self.machine.handle(event, self.now, &mut actions);
            }
        }
    }

    fn act(&mut self, action: &Action) {
        assert!(!self.finished, "{action:?} after the end");
        match action {
            Action::StartServer => {
                assert!(self.server.is_none() && self.broken.is_none());
                self.servers += 1;
                self.server = Some(Process::default());
                if self.refusals > 0 {
                    self.refusals -= 1;
                    self.server = None;
                    self.server_refused = true;
                }
            }
            Action::SpawnSpare(place) => {
                assert!(self.forks(), "there is nobody to fork spare {place}");
                assert!(self.spares[*place].is_none() && self.broken.is_none());
                assert!(!self.machine.is_paused(), "nothing is started in a pause");
                assert!(self.worker_seen, "no spare before the first worker");
                let from_worker = self.spares_from == SparesFrom::FirstWorker;
                assert!(from_worker || self.death_seen, "no spare before the first death");
                self.spares[*place] = Some(Process::default());
            }
            Action::TakeSpare { spare, slot } => {
                let process = self.spares[*spare].take().expect("a spare that exists is taken");
                assert!(process.ready && !process.told_to_leave && !process.killed);
                assert!(self.processes[*slot].is_none(), "slot {slot} has a process");
                self.processes[*slot] = Some(process);
            }
            Action::DismissSpare(place) => {
                let spare = self.spares[*place].as_mut().expect("there is a spare to dismiss");
                assert!(spare.ready && !spare.told_to_leave && !spare.killed);
                spare.told_to_leave = true;
            }
            Action::KillSpare(place) => {
                let spare = self.spares[*place].as_mut().expect("there is a spare to kill");
                assert!(!spare.killed, "spare {place} is killed twice");
                spare.killed = true;
            }
            Action::DismissServer => {
                let server = self.server.as_mut().expect("there is a server to dismiss");
                assert!(server.ready && !server.told_to_leave && !server.killed);
                server.told_to_leave = true;
            }
            Action::KillServer => {
                let server = self.server.as_mut().expect("there is a server to kill");
                assert!(!server.killed, "the server is killed twice");
                server.killed = true;
            }
            Action::Spawn(slot) => {
                assert!(self.forks(), "there is nobody to fork slot {slot}");
                assert!(self.processes[*slot].is_none(), "slot {slot} has a process");
                assert!(!self.machine.is_paused(), "nothing is started in a pause");
                assert!(self.broken.is_none(), "a broken pool starts nothing");
                self.spawns += 1;
                if self.refusals > 0 {
                    self.refusals -= 1;
                    self.refused.push(*slot);
                    return;
                }
                self.processes[*slot] = Some(Process::default());
            }
            Action::Bye(slot) => {
                let process = self.process(*slot);
                assert!(process.ready && !process.told_to_leave && !process.killed);
                assert!(!process.stopped, "a stopped process cannot leave");
                process.told_to_leave = true;
            }
            Action::Terminate(slot) => {
                assert!(!self.process(*slot).killed && !self.process(*slot).stopped)
            }
            // There is nothing to kill, and the loop does not.
            Action::Kill(slot) if self.processes[*slot].is_none() => {
                assert!(self.batch.contains(slot), "slot {slot} has no process");
            }
            Action::Kill(slot) => {
                let process = self.process(*slot);
                assert!(!process.killed, "slot {slot} is killed twice");
                process.killed = true;
            }
            Action::Resume(slot) => {
                let process = self.process(*slot);
                assert!(process.ready && !process.told_to_leave && !process.killed);
            }
            Action::Suspend(place) => {
                if let Some(process) = self.process_in(*place) {
                    assert!(!process.told_to_leave && !process.killed && !process.stopped);
                    process.stopped = true;
                }
            }
            Action::Continue(place) => {
                if let Some(process) = self.process_in(*place) {
                    process.stopped = false;
                }
            }
            Action::Paused => assert!(self.machine.life != Life::Open || self.machine.is_paused()),
            Action::Unpaused => {
                assert!(!self.machine.is_paused());
                let all = self.processes.iter().chain(&self.spares).flatten();
                let stopped = all.filter(|process| process.stopped && !process.killed);
                assert_eq!(stopped.count(), 0, "somebody stays stopped");
            }
            Action::Abandon(place) => {
                let process = match place {
                    Place::Slot(slot) => self.processes[*slot].take(),
                    Place::Spare(place) => self.spares[*place].take(),
                    Place::Server => self.server.take(),
                    Place::Nowhere => None,
                };
                let process = process.expect("a process that exists is abandoned");
                assert!(process.killed, "nobody is abandoned before SIGKILL: {place:?}");
                self.abandoned += 1;
            }
            Action::StartFailed { retry_at, .. } => self.told.push(*retry_at),
            Action::Break(cause) => {
                assert!(self.broken.is_none(), "the pool breaks once");
                for slot in 0..self.processes.len() {
                    assert_ne!(self.machine.slot(slot), Slot::Serving, "a live worker");
                }
                self.broken = Some(cause.clone());
            }
            Action::Finished => {
                assert!(self.processes.iter().all(Option::is_none) && self.server.is_none());
                assert!(self.spares.iter().all(Option::is_none));
                self.finished = true;
            }
        }
    }

    /// True if workers can come into being.
    fn forks(&self) -> bool {
        let ready = |server: &Process| server.ready && !server.killed && !server.told_to_leave;
        self.machine.server().is_none() || self.server.as_ref().is_some_and(ready)
    }

    fn server_ready(&mut self) {
        if let Some(server) = &mut self.server
            && !server.killed
        {
            server.ready = true;
            self.event(Event::Server(ServerEvent::Ready));
        }
    }

    fn spare_ready(&mut self, place: usize) {
        if let Some(spare) = &mut self.spares[place]
            && !spare.killed
        {
            spare.ready = true;
            self.worker_seen = true;
            self.event(Event::Spare(place, SpareEvent::Ready));
        }
    }

    fn spare_exit(&mut self, place: usize) {
        if self.spares[place].take().is_some() {
            self.event(Event::Spare(place, SpareEvent::Exited("a spare ended".into())));
        }
    }

    /// The server's process ends, and with it the births in `unborn`.
    fn server_exit(&mut self, unborn: &[Place]) {
        if self.server.take().is_some() {
            for place in unborn {
                match place {
                    Place::Slot(slot) => self.processes[*slot] = None,
                    Place::Spare(place) => self.spares[*place] = None,
                    Place::Server | Place::Nowhere => {}
                }
            }
            let (cause, unborn) = ("the server ended".into(), unborn.to_vec());
            self.event(Event::Server(ServerEvent::Exited { cause, unborn }));
        }
    }

    fn process_in(&mut self, place: Place) -> Option<&mut Process> {
        match place {
            Place::Slot(slot) => self.processes[slot].as_mut(),
            Place::Spare(place) => self.spares[place].as_mut(),
            Place::Server | Place::Nowhere => panic!("the fork server is never stopped"),
        }
    }

    /// One that was abandoned ends after all.
    fn abandoned_exit(&mut self) {
        if self.abandoned > 0 {
            self.abandoned -= 1;
            self.event(Event::AbandonedEnded);
        }
    }

    fn process(&mut self, slot: usize) -> &mut Process {
        self.processes[slot].as_mut().expect("an action is about a process that exists")
    }

    /// A deadline that has passed is one at which a tick does something; otherwise the loop would turn
    /// without end.
    fn nothing_spins(&mut self) {
        while self.machine.deadline().is_some_and(|due| due <= self.now) {
            let before = format!("{:?}", self.machine);
            let mut actions = Vec::new();
            self.machine.handle(Event::Tick, self.now, &mut actions);
            assert!(
                !actions.is_empty() || format!("{:?}", self.machine) != before,
                "a deadline has passed and nothing comes of it: {before}"
            );
            self.act_all(actions);
        }
    }

    /// Time moves on to the next deadline, if there is one.
    fn sleep(&mut self) -> bool {
        let Some(due) = self.machine.deadline() else {
            return false;
        };
        self.now = self.now.max(due);
        self.event(Event::Tick);
        true
    }

    fn exit(&mut self, slot: usize) {
        if let Some(process) = self.processes[slot].take() {
            self.death_seen |= !process.told_to_leave || process.killed;
            self.event(Event::Exited(slot, format!("worker {slot} ended")));
        }
    }

    fn ready(&mut self, slot: usize) {
        if let Some(process) = &mut self.processes[slot]
            && !process.killed
        {
            process.ready = true;
            self.worker_seen = true;
            self.event(Event::Ready(slot));
        }
    }

    fn take_done(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.done)
    }
}

fn policy(slots: usize) -> Policy {
    Policy {
        slots,
        start_method: StartMethod::Spawn,
        spares: 0,
        spares_from: SparesFrom::FirstWorker,
        start_timeout_ns: 10 * SECOND,
        grace_ns: 2 * SECOND,
        unkillable_after_ns: 10 * SECOND,
        abandoned_max: 2,
        restart_limit: 3,
        restart_window_ns: 10 * SECOND,
    }
}

fn world(slots: usize) -> World {
    World::new(policy(slots))
}

/// A world in which many starts may fail.
fn patient_world(slots: usize) -> World {
    World::new(Policy { restart_limit: 100, ..policy(slots) })
}

/// A world in which every slot serves.
fn serving(slots: usize) -> World {
    let mut world = world(slots);
    world.event(Event::WarmUp);
    for slot in 0..slots {
        world.ready(slot);
    }
    world.take_done();
    world
}
