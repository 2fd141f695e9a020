//! Random events against the machine, with restarts in between: what must hold whatever happens.
//!
//! What is durable is modelled beside it: the changes, in order, of which a crash keeps those up to some event, as the
//! journal does, which writes what follows from one event as a whole. A seed that fails is printed; put it into `SEEDS`.

use std::collections::{BTreeMap, HashMap};

use std::time::Duration;

use super::entry::HISTORY_MAX;
use super::queue::AHEAD_MAX;
use super::*;
use crate::job::{CommandEnd, Terms, Work};

/// How many plays, and how many events each has. More by `PROCPOOL_PLAYS`.
const PLAYS: u64 = 300;
const EVENTS: usize = 300;
/// Seeds that have failed once.
const SEEDS: &[u64] = &[];

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit
    }
}

/// What the disk has.
#[derive(Clone, Default)]
struct Disk {
    jobs: BTreeMap<JobId, Record>,
    settings: BTreeMap<String, QueueSetting>,
    last: u64,
}

impl Disk {
    fn keep(&mut self, change: &Change) {
        match change {
            Change::Insert { record, .. } => {
                assert!(self.jobs.insert(record.id, record.clone()).is_none(), "a number twice");
                self.last = self.last.max(record.id.0);
            }
            Change::Step { id, life } | Change::Back { id, life } => {
                assert!(!life.state().is_terminal());
                self.jobs.get_mut(id).expect("only kept jobs make steps").life = life.clone();
            }
            Change::End { id, life, .. } => {
                assert!(life.state().is_terminal());
                let job = self.jobs.get_mut(id).expect("only kept jobs end");
                assert!(!job.life.state().is_terminal(), "job {id} has ended twice");
                job.life = life.clone();
            }
            Change::Queue { name, setting } => {
                self.settings.insert(name.clone(), *setting);
            }
            other => unreachable!("the machine does not ask for {other:?}"),
        }
    }

    /// A machine that takes up what is here, as the server does it.
    fn restart(
        &self,
        begun: Option<&BTreeMap<JobId, Attempt>>,
        now: Moment,
        effects: &mut Effects,
    ) -> Machine {
        let mut machine = Machine::new(queues(), JobId(self.last + 1));
        for (name, setting) in &self.settings {
            machine.restore_queue(name, *setting);
        }
        let live = self.jobs.values().filter(|record| !record.life.state().is_terminal());
        let is_dependent = |record: &&Record| {
            record.life.state() == State::Scheduled && !record.terms.after.is_empty()
        };
        let (dependents, others): (Vec<_>, Vec<_>) = live.partition(is_dependent);
        for record in others.into_iter().chain(dependents) {
            let ended: Vec<_> = record
                .terms
                .after
                .iter()
                .filter(|id| !machine.is_live(**id))
                .map(|id| (*id, self.jobs[id].life.state()))
                .collect();
            machine.restore(record.clone(), &ended, now, effects);
        }
        let unbegun = machine
            .attempts()
            .filter(|(id, attempt)| begun.is_some_and(|begun| begun.get(id) != Some(attempt)));
        let unbegun = unbegun.map(|(id, _)| id).collect();
        machine.handle(Event::Restarted { unbegun }, now, effects);
        machine
    }
}

fn queues() -> Vec<Queue> {
    vec![Queue::new("default", 2), Queue::new("other", 1)]
}

/// What has been seen of a job from the outside.
#[derive(Default)]
struct Seen {
    /// Attempts that may have had effects, since it was last retried by hand.
    started: u32,
    retries: u32,
}

struct Play {
    random: Random,
    machine: Machine,
    disk: Disk,
    /// Attempts that have a slot and have not begun.
    ready: BTreeMap<JobId, Attempt>,
    /// Attempts that a worker has, and that have not ended.
    running: BTreeMap<JobId, Attempt>,
    /// Attempts of which it is noted that they have begun, and not known for good how they ended.
    begun: BTreeMap<JobId, Attempt>,
    seen: HashMap<JobId, Seen>,
    now: Moment,
}

impl Play {
    fn new(seed: u64) -> Play {
        Play {
            random: Random(seed),
            machine: Machine::new(queues(), JobId(1)),
            disk: Disk::default(),
            ready: BTreeMap::new(),
            running: BTreeMap::new(),
            begun: BTreeMap::new(),
            seen: HashMap::new(),
            now: Moment(1_000_000),
        }
    }

    /// What the server does with effects: first the disk has them, then they are followed.
    fn follow(&mut self, effects: Effects) {
        for change in &effects.changes {
            self.disk.keep(change);
        }
        for then in effects.then {
            match then {
                Then::Start { id, attempt } => {
                    assert_eq!(self.disk.jobs[&id].life.state(), State::Running(attempt));
                    assert!(self.ready.insert(id, attempt).is_none(), "job {id} has two slots");
                    // At once, or some other time, or never.
                    if self.random.below(3) > 0 {
                        self.begin(id);
                    }
                }
                Then::Over { id, attempt } => {
                    assert_ne!(self.disk.jobs[&id].life.state(), State::Running(attempt));
                    if self.begun.get(&id) == Some(&attempt) {
                        self.begun.remove(&id);
                    }
                }
                Then::Stop { id } => {
                    if let Some(attempt) = self.ready.remove(&id) {
                        let outcome = Outcome::Error(Verdict::Cancelled { started: false });
                        let ending = Box::new(Ending { outcome, ..Ending::nothing() });
                        self.handle(Event::Ended { id, attempt, ending });
                    }
                }
                Then::Tell { id, state } => {
                    assert_eq!(self.disk.jobs[&id].life.state(), state, "told before it was kept");
                }
            }
        }
    }

    /// A worker has it.
    fn begin(&mut self, id: JobId) {
        let Some(attempt) = self.ready.remove(&id) else {
            return;
        };
        assert_eq!(self.disk.jobs[&id].life.state(), State::Running(attempt));
        let seen = self.seen.entry(id).or_default();
        seen.started += 1;
        assert!(seen.started <= 1 + seen.retries, "job {id} is started too often");
        assert!(self.running.insert(id, attempt).is_none(), "job {id} runs twice");
        self.begun.insert(id, attempt);
    }

    /// Something that has a slot begins, or is taken back.
    fn begin_or_not(&mut self) {
        let nth = self.random.below(1 + self.ready.len() as u64) as usize;
        let Some((id, attempt)) = self.ready.iter().nth(nth).map(|(id, a)| (*id, *a)) else {
            return;
        };
        if self.random.below(2) == 0 {
            return self.begin(id);
        }
        self.ready.remove(&id);
        let because = if self.random.below(2) == 0 { Because::Late } else { Because::Closed };
        self.handle(Event::TakenBack { id, attempt, because });
        // Said of an attempt that is not that one: not heard.
        self.handle(Event::TakenBack { id, attempt: attempt + 7, because });
    }

    fn handle(&mut self, event: Event) -> Answer {
        let mut effects = Effects::default();
        let answer = self.machine.handle(event, self.now, &mut effects);
        self.follow(effects);
        answer
    }

    fn any_job(&mut self) -> Option<JobId> {
        let last = self.disk.last;
        (last > 0).then(|| JobId(1 + self.random.below(last)))
    }

    fn submit(&mut self) {
        let mut terms = Terms::new("a");
        terms.priority = Some(self.random.below(3) as i32 - 1);
        terms.retries = Some(self.random.below(3) as u32);
        if self.random.below(4) == 0 {
            terms.queue = "other".into();
        }
        if self.random.below(5) == 0 {
            terms.not_before = Some(self.now.after(Duration::from_millis(self.random.below(500))));
        }
        for _ in 0..self.random.below(3) {
            terms.after.extend(self.any_job());
        }
        let ended = terms.after.iter().filter(|id| !self.machine.is_live(**id));
        let ended = ended.map(|id| (*id, self.disk.jobs[id].life.state())).collect();
        let retries = terms.retries();
        let work = Work::Command(crate::job::Command {
            words: vec![b"true".to_vec().into()],
            dir: b"/".to_vec().into(),
            env: Vec::new(),
        });
        let next = JobId(self.disk.last + 1);
        self.seen.insert(next, Seen { started: 0, retries });
        let spec = Box::new(JobSpec { terms, work });
        let answer = self.handle(Event::Submit { spec, by: Who::Client(1), ended });
        assert_eq!(answer, Answer::Born(next));
    }

    fn end(&mut self) {
        let count = self.running.len() as u64;
        if count == 0 {
            return;
        }
        let nth = self.random.below(count) as usize;
        let (id, attempt) = self.running.iter().nth(nth).map(|(id, a)| (*id, *a)).expect("so many");
        let mut ending = Ending::nothing();
        // Short ones, or there would never be a slot in advance; sometimes a long one.
        ending.ran = Duration::from_micros(match self.random.below(40) {
            0 => 90_000,
            _ => 100,
        });
        ending.outcome = match self.random.below(6) {
            0 => Outcome::Command(CommandEnd::Exit(1)),
            1 => Outcome::Command(CommandEnd::Signal(9, false)),
            2 => Outcome::Error(Verdict::Cancelled { started: true }),
            3 => {
                // It never reached a worker.
                self.seen.get_mut(&id).expect("it was started").started -= 1;
                Outcome::Error(Verdict::Broken("no worker".into()))
            }
            _ => Outcome::Command(CommandEnd::Exit(0)),
        };
        self.running.remove(&id);
        self.handle(Event::Ended { id, attempt, ending: Box::new(ending.clone()) });
        // Told again, and of an attempt that never was: not heard.
        let before = self.disk.jobs.get(&id).map(|record| record.life.clone());
        for other in [attempt.wrapping_sub(1), attempt + 7] {
            self.handle(Event::Ended { id, attempt: other, ending: Box::new(ending.clone()) });
        }
        assert_eq!(self.disk.jobs.get(&id).map(|record| record.life.clone()), before);
    }

    fn retry(&mut self) {
        let Some(id) = self.any_job() else {
            return;
        };
        if self.machine.is_live(id) || self.running.contains_key(&id) {
            return;
        }
        self.seen.get_mut(&id).expect("it was submitted").started = 0;
        let record = Box::new(self.disk.jobs[&id].clone());
        assert_eq!(self.handle(Event::Retry { record, by: Who::Client(1) }), Answer::Queued);
    }

    /// Some more happens of which the disk never hears, and so nobody else.
    fn lose(&mut self) {
        for _ in 0..self.random.below(4) {
            let mut lost = Effects::default();
            let Some(id) = self.any_job() else {
                return;
            };
            let event = match (self.random.below(3), self.running.get(&id)) {
                (0, Some(attempt)) => {
                    let ending = Box::new(Ending::nothing());
                    Event::Ended { id, attempt: *attempt, ending }
                }
                (1, _) => Event::Cancel { id, taken_back: None, by: Who::Client(3) },
                _ => Event::Time,
            };
            self.machine.handle(event, self.now, &mut lost);
        }
    }

    /// The daemon dies, and its workers with it: the next one has the disk.
    fn crash(&mut self) {
        self.lose();
        self.running.clear();
        self.ready.clear();
        let mut effects = Effects::default();
        // After a crash of the machine nobody knows what had begun.
        let known = (self.random.below(4) > 0).then_some(&self.begun);
        let begun_before = known.cloned();
        self.machine = self.disk.restart(known, self.now, &mut effects);
        for record in self.disk.jobs.values() {
            if let State::Running(_) = record.life.state() {
                let was_begun =
                    begun_before.as_ref().is_none_or(|begun| begun.contains_key(&record.id));
                let is_known = effects.changes.iter().any(|change| match change {
                    Change::Step { id, .. } | Change::End { id, .. } => {
                        *id == record.id && was_begun
                    }
                    Change::Back { id, .. } => *id == record.id && !was_begun,
                    _ => false,
                });
                assert!(is_known, "job {} is thought to run", record.id);
            }
        }
        self.follow(effects);
    }

    fn step(&mut self) {
        match self.random.below(24) {
            20..=23 => self.begin_or_not(),
            0..=5 => self.submit(),
            6..=11 => self.end(),
            12 | 13 => {
                self.now = self.now.after(Duration::from_millis(self.random.below(1000)));
                self.handle(Event::Time);
            }
            14 | 15 => {
                if let Some(id) = self.any_job() {
                    let by = Who::Client(2);
                    let taken_back = self.ready.remove(&id);
                    let event = match self.random.below(2) {
                        0 => Event::Cancel { id, taken_back, by },
                        _ => Event::Abort { id, taken_back, by },
                    };
                    self.handle(event);
                }
            }
            16 => self.retry(),
            17 => {
                let order = match self.random.below(4) {
                    0 => QueueOrder::Pause,
                    1 => QueueOrder::Limit(Some(1 + self.random.below(4))),
                    2 => QueueOrder::Limit(None),
                    _ => QueueOrder::Resume,
                };
                self.handle(Event::Queue { name: "default".into(), order });
            }
            18 => {
                let slots = 1 + self.random.below(3) as usize;
                let mut queues = vec![("default".to_owned(), slots)];
                if self.random.below(3) > 0 {
                    queues.push(("other".to_owned(), 1));
                }
                self.handle(Event::Configured(queues));
            }
            _ => self.crash(),
        }
    }

    /// What holds at any time.
    fn check(&self, slots_before: &HashMap<String, u64>) {
        let live = self.disk.jobs.values().filter(|record| !record.life.state().is_terminal());
        let live: Vec<_> = live.collect();
        assert_eq!(live.len(), self.machine.len(), "the machine and the disk disagree");
        for record in &live {
            assert_eq!(self.machine.state(record.id), Some(record.life.state()));
            assert!(record.life.history.len() <= HISTORY_MAX);
        }
        for queue in self.machine.queues() {
            // Fewer slots stop nothing that runs, and start nothing more.
            let allowed = queue.slots + AHEAD_MAX as u64;
            let allowed = allowed.max(slots_before.get(&queue.name).copied().unwrap_or(0));
            assert!(queue.running <= allowed, "{queue:?} has more than {allowed} slots");
        }
        let running = live.iter().filter(|r| matches!(r.life.state(), State::Running(_))).count();
        assert_eq!(running, self.running.len() + self.ready.len());
        assert_eq!(running, self.machine.running_ids().len());
        let edges: usize = self.machine.dependents.values().map(BTreeSet::len).sum();
        assert_eq!(edges, self.machine.edges);
    }

    /// Everything that can still happen happens: then every job has ended.
    fn run_dry(&mut self) {
        self.handle(Event::Configured(vec![("default".into(), 2), ("other".into(), 1)]));
        self.handle(Event::Queue { name: "default".into(), order: QueueOrder::Resume });
        for _ in 0..100_000 {
            if self.machine.is_empty() {
                assert_eq!(self.machine.weight(), 0);
                return;
            }
            self.end();
            self.begin_or_not();
            if let Some(due) = self.machine.next_time() {
                self.now = self.now.max(due);
            }
            self.handle(Event::Time);
        }
        panic!("jobs never end: {:?}", self.machine);
    }
}

fn play(seed: u64) {
    let mut play = Play::new(seed);
    let mut running = HashMap::new();
    for _ in 0..EVENTS {
        play.step();
        play.check(&running);
        running = play.machine.queues().map(|queue| (queue.name.clone(), queue.running)).collect();
    }
    play.run_dry();
}

/// Goal: a job ends once, at-most-once is at most once, slots are never exceeded, and a crash at any event leaves
/// a disk that the next machine goes on from.
/// Covers: F-120, F-121, F-136
#[test]
fn whatever_happens_the_rules_hold() {
    let plays = std::env::var("PROCPOOL_PLAYS").ok().map_or(PLAYS, |plays| plays.parse().unwrap());
    let first = std::env::var("PROCPOOL_SEED").ok().map_or_else(
        || std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64,
        |seed| seed.parse().unwrap(),
    );
    for seed in SEEDS.iter().copied().chain((0..plays).map(|nth| first.wrapping_add(nth))) {
        println!("PROCPOOL_SEED={seed}");
        play(seed);
    }
}
