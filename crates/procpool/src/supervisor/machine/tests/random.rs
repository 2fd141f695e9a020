//! Events in random orders.

use proptest::prelude::*;
use proptest::sample::Index;

use super::*;

#[derive(Debug, Clone)]
enum Step {
    Demand(usize),
    WarmUp,
    Refuse(usize, Trouble),
    Ready(Index),
    StartFailed(Index),
    Exit(Index),
    DieUnused(Index),
    Faulty(Index),
    StopJob(Index, bool),
    Returned(Index),
    Retire(Index),
    Wait(u64),
    Sleep,
    Abort,
    Drained,
    Pause,
    Unpause,
    ServerReady,
    ServerStartFailed,
    /// With so many births lost.
    ServerExit(usize),
    ServerFaulty,
    SpareReady(Index),
    SpareStartFailed(Index),
    SpareExit(Index),
    SpareFaulty(Index),
    SpareRefused(Index, Trouble),
    AbandonedExit,
}

fn step() -> impl Strategy<Value = Step> {
    let index = any::<Index>;
    prop_oneof![
        4 => (0usize..8).prop_map(Step::Demand),
        1 => Just(Step::WarmUp),
        1 => (1usize..4).prop_map(|starts| Step::Refuse(starts, Trouble::Lasting)),
        1 => (1usize..4).prop_map(|starts| Step::Refuse(starts, Trouble::Shortage)),
        6 => index().prop_map(Step::Ready),
        2 => index().prop_map(Step::StartFailed),
        6 => index().prop_map(Step::Exit),
        2 => index().prop_map(Step::DieUnused),
        1 => index().prop_map(Step::Faulty),
        3 => (index(), any::<bool>()).prop_map(|(slot, cooperative)| Step::StopJob(slot, cooperative)),
        2 => index().prop_map(Step::Returned),
        2 => index().prop_map(Step::Retire),
        3 => (0..3 * SECOND).prop_map(Step::Wait),
        4 => Just(Step::Sleep),
        1 => Just(Step::Abort),
        2 => Just(Step::Pause),
        3 => Just(Step::Unpause),
        5 => Just(Step::ServerReady),
        1 => Just(Step::ServerStartFailed),
        2 => (0usize..3).prop_map(Step::ServerExit),
        1 => Just(Step::ServerFaulty),
        2 => Just(Step::AbandonedExit),
        4 => index().prop_map(Step::SpareReady),
        1 => index().prop_map(Step::SpareStartFailed),
        2 => index().prop_map(Step::SpareExit),
        1 => index().prop_map(Step::SpareFaulty),
        1 => index().prop_map(|place| Step::SpareRefused(place, Trouble::Lasting)),
        1 => index().prop_map(|place| Step::SpareRefused(place, Trouble::Shortage)),
    ]
}

fn any_policy() -> impl Strategy<Value = Policy> {
    let times = (1..20 * SECOND, 0..5 * SECOND, 1..20 * SECOND, 1..20 * SECOND);
    let method = prop_oneof![Just(StartMethod::Spawn), Just(StartMethod::ForkServer)];
    let from = prop_oneof![Just(SparesFrom::FirstWorker), Just(SparesFrom::FirstDeath)];
    let counts = (1usize..5, (0usize..4, from), 0usize..4);
    let all = (counts, method, times, 1u32..6);
    all.prop_map(|((slots, (spares, spares_from), abandoned_max), start_method, times, limit)| {
        Policy {
            slots,
            start_method,
            spares,
            spares_from,
            start_timeout_ns: times.0,
            grace_ns: times.1,
            restart_limit: limit,
            restart_window_ns: times.2,
            unkillable_after_ns: times.3,
            abandoned_max,
        }
    })
}

impl World {
    /// One of the slots whose process is as `wanted`.
    fn pick(&self, index: Index, wanted: impl Fn(&Process) -> bool) -> Option<usize> {
        let fit: Vec<usize> = (0..self.processes.len())
            .filter(|slot| self.processes[*slot].as_ref().is_some_and(&wanted))
            .collect();
        (!fit.is_empty()).then(|| fit[index.index(fit.len())])
    }

    fn pick_spare(&self, index: Index, wanted: impl Fn(&Process) -> bool) -> Option<usize> {
        let fit: Vec<usize> = (0..self.spares.len())
            .filter(|place| self.spares[*place].as_ref().is_some_and(&wanted))
            .collect();
        (!fit.is_empty()).then(|| fit[index.index(fit.len())])
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Demand(jobs) => self.event(Event::Demand(jobs)),
            Step::WarmUp => self.event(Event::WarmUp),
            Step::Refuse(starts, trouble) => (self.refusals, self.trouble) = (starts, trouble),
            Step::Ready(index) => {
                if let Some(slot) = self.pick(index, |process| !process.ready) {
                    self.ready(slot);
                }
            }
            Step::StartFailed(index) => {
                // It may be on its way while the worker is killed.
                if let Some(slot) = self.pick(index, |process| !process.ready) {
                    self.event(Event::StartFailed(slot, "failed".into()));
                }
            }
            Step::Exit(index) => {
                if let Some(slot) = self.pick(index, |_| true) {
                    self.exit(slot);
                }
            }
            Step::DieUnused(index) => {
                if let Some(slot) = self.pick(index, |_| true) {
                    self.event(Event::Unused(slot));
                    self.exit(slot);
                }
            }
            // Whatever a worker that was ready has done may be noticed late.
            Step::Faulty(index) => self.notice(index, Event::Faulty),
            Step::StopJob(index, cooperative) => {
                let manner = if cooperative { Manner::Cooperative } else { Manner::Plain };
                self.notice(index, |slot| Event::StopJob(slot, manner));
            }
            Step::Returned(index) => self.notice(index, Event::Returned),
            Step::Retire(index) => self.notice(index, Event::Retire),
            Step::Wait(time) => {
                // The loop wakes in time for each deadline on the way.
                let until = self.now + time;
                while self.machine.deadline().is_some_and(|due| due <= until) {
                    self.sleep();
                }
                self.now = until;
                self.event(Event::Tick);
            }
            Step::Sleep => {
                self.sleep();
            }
            Step::Abort => self.event(Event::Abort),
            Step::Drained => self.event(Event::Drained),
            Step::Pause => self.event(Event::Pause),
            Step::Unpause => self.event(Event::Unpause),
            Step::ServerReady => {
                if self.server.as_ref().is_some_and(|server| !server.ready) {
                    self.server_ready();
                }
            }
            Step::ServerStartFailed => {
                if self.server.as_ref().is_some_and(|server| !server.ready) {
                    self.event(Event::Server(ServerEvent::StartFailed("failed".into())));
                }
            }
            Step::ServerExit(lost) => {
                let unready = |p: &Option<Process>| p.as_ref().is_some_and(|p| !p.ready);
                let slots = (0..self.processes.len())
                    .filter(|slot| unready(&self.processes[*slot]))
                    .map(Place::Slot);
                let spares = (0..self.spares.len())
                    .filter(|place| unready(&self.spares[*place]))
                    .map(Place::Spare);
                let unborn: Vec<Place> = slots.chain(spares).take(lost).collect();
                self.server_exit(&unborn);
            }
            Step::SpareReady(index) => {
                if let Some(place) = self.pick_spare(index, |spare| !spare.ready) {
                    self.spare_ready(place);
                }
            }
            Step::SpareStartFailed(index) => {
                if let Some(place) = self.pick_spare(index, |spare| !spare.ready) {
                    let event = SpareEvent::StartFailed("failed".into());
                    self.event(Event::Spare(place, event));
                }
            }
            Step::SpareExit(index) => {
                if let Some(place) = self.pick_spare(index, |_| true) {
                    self.spare_exit(place);
                }
            }
            Step::SpareFaulty(index) => {
                if let Some(place) = self.pick_spare(index, |_| true) {
                    self.event(Event::Spare(place, SpareEvent::Faulty));
                }
            }
            Step::SpareRefused(index, trouble) => {
                // A fork server answers later.
                if let Some(place) = self.pick_spare(index, |spare| !spare.ready && !spare.killed) {
                    self.spares[place] = None;
                    let event = SpareEvent::SpawnFailed(trouble, "refused".into());
                    self.event(Event::Spare(place, event));
                }
            }
            Step::AbandonedExit => self.abandoned_exit(),
            Step::ServerFaulty => {
                if self.server.is_some() {
                    self.event(Event::Server(ServerEvent::Faulty));
                }
            }
        }
    }

    fn notice(&mut self, index: Index, event: impl FnOnce(usize) -> Event) {
        if let Some(slot) = self.pick(index, |process| process.ready) {
            self.event(event(slot));
        }
    }

    /// The same, but nobody who was killed dies.
    fn end_among_undead(&mut self) {
        self.step(Step::Drained);
        for _ in 0..100 {
            if self.finished {
                return;
            }
            let leaves = |p: &Process| p.told_to_leave && !p.killed;
            if let Some(slot) = self.processes.iter().position(|p| p.as_ref().is_some_and(leaves)) {
                self.exit(slot);
            } else {
                assert!(self.sleep(), "nothing is due and nobody leaves: {self:?}");
            }
        }
        panic!("the shutdown does not end: {self:?}");
    }

    /// The rest of a shutdown: whoever was told to leave leaves, whoever was killed dies, and time passes.
    fn end(&mut self) {
        self.step(Step::Drained);
        for _ in 0..100 {
            if self.finished {
                return;
            }
            let gone = (0..self.processes.len()).find(|slot| {
                self.processes[*slot]
                    .as_ref()
                    .is_some_and(|process| process.killed || process.told_to_leave)
            });
            let going = |p: &Process| p.killed || p.told_to_leave;
            if let Some(place) = self.spares.iter().position(|s| s.as_ref().is_some_and(going)) {
                self.spare_exit(place);
                continue;
            }
            let server = &self.server;
            if server.as_ref().is_some_and(|server| server.killed || server.told_to_leave) {
                self.server_exit(&[]);
                continue;
            }
            match gone {
                Some(slot) => self.exit(slot),
                None => assert!(self.sleep(), "nothing is due and nobody leaves: {self:?}"),
            }
        }
        panic!("the shutdown does not end: {self:?}");
    }
}

proptest! {
    /// Goal: in any order of events no slot gets two processes, none is killed twice, the pool breaks at
    /// most once and never with a live worker, no deadline passes without effect, and shutdown ends, also if nobody
    /// dies who was killed.
    /// Method: `World` holds each action against what exists.
    #[test]
    fn any_order_of_events_keeps_the_invariants(
        policy in any_policy(),
        before in prop::collection::vec(step(), 0..60),
        after in prop::collection::vec(step(), 0..20),
        undead in any::<bool>(),
    ) {
        let mut world = World::new(policy);
        for step in before {
            world.step(step);
        }
        world.step(Step::Drained);
        for step in after {
            if world.finished {
                break;
            }
            world.step(step);
        }
        match undead {
            _ if world.finished => {}
            true => world.end_among_undead(),
            false => world.end(),
        }
    }

    /// Goal: when every start fails, in whatever way, the pool breaks, within the budget of starts.
    #[test]
    fn failing_starts_end_within_the_budget(
        policy in any_policy(),
        jobs in 1usize..10,
        ways in prop::collection::vec((0u8..4, any::<Index>(), 0..30 * SECOND), 40),
    ) {
        let (slots, limit) = (policy.slots, policy.restart_limit as usize);
        let mut world = World::new(policy);
        world.event(Event::Demand(jobs));
        let mut ways = ways.into_iter().cycle();
        for _ in 0..1000 {
            if world.broken.is_some() {
                break;
            }
            let (way, index, time) = ways.next().unwrap();
            if let Some(server) = &world.server
                && (server.killed || !server.ready)
            {
                match way {
                    _ if server.killed => world.server_exit(&[]),
                    0 | 1 => world.server_ready(),
                    2 => world.event(Event::Server(ServerEvent::StartFailed("failed".into()))),
                    _ => world.server_exit(&[]),
                }
                continue;
            }
            let killed = world.pick(index, |process| process.killed);
            match (killed, world.pick(index, |_| true)) {
                (Some(slot), _) => world.exit(slot),
                (None, None) => prop_assert!(world.sleep(), "jobs wait for nothing: {:?}", world),
                (None, Some(slot)) => match way {
                    // Killed workers are reaped at once here: what they dawdle would count.
                    0 if world.machine.deadline().is_some_and(|due| due <= world.now + time) => {
                        world.sleep();
                    }
                    0 => world.now += time,
                    1 => world.event(Event::StartFailed(slot, "failed".into())),
                    2 => world.refusals = 1,
                    _ => world.exit(slot),
                },
            }
        }
        prop_assert!(world.broken.is_some(), "never broken: {:?}", world);
        prop_assert!(world.spawns <= slots + limit, "{} starts", world.spawns);
        world.end();
    }

    /// Goal: as long as jobs wait and starting works again, a worker comes.
    #[test]
    fn demand_is_met_once_starting_works(
        policy in any_policy(),
        steps in prop::collection::vec(step(), 0..60),
    ) {
        let mut world = World::new(policy);
        for step in steps {
            world.step(step);
        }
        while world.abandoned > 0 {
            world.abandoned_exit();
        }
        if world.broken.is_some() {
            return Ok(());
        }
        world.refusals = 0;
        world.event(Event::Unpause);
        let idle = |world: &World| (0..world.processes.len()).any(|slot| world.machine.slot(slot) == Slot::Serving);
        world.event(Event::Demand(1));
        for _ in 0..100 {
            if idle(&world) {
                return Ok(());
            }
            let killed = |process: &Process| process.killed || process.told_to_leave;
            if let Some(server) = &world.server
                && (killed(server) || !server.ready)
            {
                if killed(server) { world.server_exit(&[]) } else { world.server_ready() }
                continue;
            }
            let slots = 0..world.processes.len();
            let gone = slots.clone().find(|slot| world.processes[*slot].as_ref().is_some_and(killed));
            let starts = slots.clone().find(|slot| matches!(world.machine.slot(*slot), Slot::Starting { .. }));
            let spares = 0..world.spares.len();
            if let Some(place) = spares.clone().find(|place| matches!(world.machine.spare(*place), Slot::Starting { .. })) {
                world.spare_ready(place);
                continue;
            }
            match (gone, starts) {
                (Some(slot), _) => world.exit(slot),
                (None, Some(slot)) => world.ready(slot),
                (None, None) => prop_assert!(world.sleep(), "a job waits for nothing: {:?}", world),
            }
        }
        prop_assert!(false, "no worker comes: {:?}", world);
    }
}
