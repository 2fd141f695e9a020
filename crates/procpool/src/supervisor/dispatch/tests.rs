//! The dispatch against fake workers: ends of the same memory, without processes. They claim, run, publish and
//! die at any point, while jobs are submitted, cancelled, stopped and taken back.

use std::os::fd::OwnedFd;
use std::panic::Location;

use procpool_sys::{channel as sockets, mapping};
use procpool_wire::block::{BLOCK_WORDS, Block, JobHeader, Phase, ResultHeader, WorkerEnd};
use procpool_wire::elements::{self, Kind};
use procpool_wire::handshake::Runs;
use proptest::prelude::*;
use proptest::sample::Index;

use super::super::entry::{Completion, Limits, Payload, WireTarget};
use super::super::obituary::{End, Obituary};
use super::super::retry::Backoff;
use super::super::slot::Slot;
use super::*;
use crate::attachments::session::Collected;
use crate::cell::Part;
use crate::executor::{Control, Promise};
use crate::job_error::Status;

/// Nobody asks.
struct Nobody;

impl Control for Nobody {
    fn cancel(&self, _: &Promise) -> bool {
        false
    }
    fn abort(&self, _: &Promise) {}
    fn is_running(&self, _: &Promise) -> bool {
        false
    }
    fn progress(&self, _: &Promise) -> Option<Progress> {
        None
    }
    fn is_inert(&self) -> bool {
        false
    }
}

/// What is known of a job from outside the dispatch.
struct Job {
    cell: Arc<JobCell>,
    retries: u32,
    /// By element: how often it was begun.
    begun: Vec<u32>,
    claims: u32,
    deaths: u32,
    ends: u32,
}

struct FakeWorker {
    end: WorkerEnd<mapping::Mapping>,
    _socket: OwnedFd,
    ready: bool,
    leaving: bool,
    current: Option<Current>,
}

/// The job that a fake worker runs.
struct Current {
    header: JobHeader,
    element: u32,
    begun: bool,
    /// First element of the record in the making.
    record_first: u32,
}

struct World {
    dispatch: Dispatch,
    jobs: Vec<Job>,
    workers: Vec<Option<FakeWorker>>,
    now: u64,
}

/// What a job of this number is to answer for this element.
fn value_of(job: usize, element: usize) -> Vec<u8> {
    format!("{job}/{element}").into_bytes()
}

impl World {
    fn new(workers: usize) -> World {
        let mut dispatch = Dispatch::new(workers);
        dispatch.retries.backoff = Backoff { first_ns: 10, max_ns: 20, seed: 0 };
        World { dispatch, jobs: Vec::new(), workers: (0..workers).map(|_| None).collect(), now: 0 }
    }

    fn submit(&mut self, priority: i32, retries: u32, count: u32) {
        let cell = JobCell::new(Arc::new(Nobody), Location::caller(), None, priority);
        let number = self.jobs.len();
        let mut arguments = Vec::new();
        for element in 0..count as usize {
            elements::push(&mut arguments, Kind::Value, &value_of(number, element));
        }
        let limits = Limits { retries, ..Limits::default() };
        let target = WireTarget::Offset(0, 0);
        let payload = Payload::new(&arguments, Collected::default());
        self.jobs.push(Job {
            cell: Arc::clone(&cell),
            retries,
            begun: vec![0; count as usize],
            claims: 0,
            deaths: 0,
            ends: 0,
        });
        self.dispatch.accept(Entry::new(cell, target, payload, count, 0, limits));
    }

    fn start(&mut self, slot: usize) {
        if self.workers[slot].is_some() {
            return;
        }
        let (ours, theirs) = sockets::pair().unwrap();
        let (memory, _) = mapping::create(BLOCK_WORDS).unwrap();
        let pid = 1 + slot as u32;
        let mut channel = PoolChannel::new(memory.clone(), ours, None, Runs::Here);
        channel.move_in(slot, pid, None);
        self.dispatch.add_worker(channel);
        self.workers[slot] = Some(FakeWorker {
            end: WorkerEnd::new(Block::new(memory)),
            _socket: theirs,
            ready: false,
            leaving: false,
            current: None,
        });
    }

    fn ready(&mut self, slot: usize) {
        if let Some(worker) = &mut self.workers[slot]
            && !worker.ready
        {
            worker.ready = true;
            self.dispatch.ready(slot);
            self.dispatch.pump();
        }
    }

    /// The next thing that the worker does: takes a job, begins an element, or ends one.
    fn work(&mut self, slot: usize, publish: bool) {
        let Some(worker) = &mut self.workers[slot] else {
            return;
        };
        let Some(current) = &mut worker.current else {
            let mut body = Vec::new();
            let Some((header, _)) = worker.end.next_job(&mut body).unwrap() else {
                return;
            };
            if worker.end.claim(header.ticket, 1) {
                let job = job_of(&mut self.jobs, &header);
                assert_eq!(job.ends, 0, "a job that has ended is claimed");
                job.claims += 1;
                worker.current = Some(Current {
                    element: header.first,
                    record_first: header.first,
                    header,
                    begun: false,
                });
            }
            return;
        };
        let end = current.header.first + current.header.count;
        if !current.begun {
            current.begun = true;
            worker.end.begin_element(current.element, 1);
            worker.end.set_phase(current.element, Phase::Run);
            let job = job_of(&mut self.jobs, &current.header);
            let begun = &mut job.begun[current.element as usize];
            *begun += 1;
            assert!(*begun <= 1 + job.retries, "an element is run too often");
            return;
        }
        let number =
            self.jobs.iter().position(|job| job.cell.id.number() == current.header.job).unwrap();
        worker.end.set_phase(current.element, Phase::Send);
        let value = value_of(number, current.element as usize);
        assert!(worker.end.append(Kind::Value, &value));
        worker.end.set_phase(current.element, Phase::Drop);
        current.begun = false;
        current.element += 1;
        let last = current.element == end;
        let given_back = !last && worker.end.block().is_asked_to_stop(current.header.ticket);
        if last || given_back || publish {
            worker.end.publish(&ResultHeader {
                ticket: current.header.ticket,
                first: current.record_first,
                count: 0,
                started_ns: 1,
                ran_ns: 1,
                last,
                given_back,
                leaked: false,
                leaving: false,
                child: 0,
                usage: None,
            });
            current.record_first = current.element;
        }
        if last || given_back {
            worker.end.set_phase(0, Phase::Idle);
            worker.current = None;
        }
    }

    fn harvest(&mut self, slot: usize) {
        let harvest = self.dispatch.harvest(slot, PoolChannel::read_results);
        if let Some(channel) = self.dispatch.channel(slot) {
            assert_eq!(channel.fault, None, "nobody has broken a rule");
        }
        self.complete(harvest.completions);
        self.dispatch.pump();
        self.requests();
    }

    /// What the core would do.
    fn requests(&mut self) {
        for request in std::mem::take(&mut self.dispatch.requests) {
            if let Request::Returned(slot) = request
                && self.workers[slot].as_ref().is_some_and(|w| !w.leaving)
            {
                self.dispatch.resume(slot);
                self.dispatch.pump();
            }
        }
    }

    fn retire(&mut self, slot: usize) {
        if let Some(worker) = &mut self.workers[slot]
            && worker.ready
        {
            worker.leaving = true;
            self.dispatch.close_intake(slot);
            self.dispatch.pump();
        }
    }

    fn die(&mut self, slot: usize) {
        let Some(worker) = self.workers[slot].take() else {
            return;
        };
        // Whether it is to blame for the job that it had is for the dispatch to find out.
        if let Some(current) = &worker.current {
            job_of(&mut self.jobs, &current.header).deaths += 1;
        }
        loop {
            let harvest = self.dispatch.harvest(slot, PoolChannel::read_results);
            self.complete(harvest.completions);
            if !harvest.more {
                break;
            }
        }
        let completions = self.bury(slot);
        self.complete(completions);
    }

    /// Takes leave of a worker of which everything was read that it has published.
    fn bury(&mut self, slot: usize) -> Vec<Completion> {
        let channel = self.dispatch.remove_worker(slot).unwrap();
        self.dispatch.count_death();
        let obituary = Obituary {
            slot,
            pid: 1 + slot as u32,
            status: Status::Exit(1),
            state: Slot::Serving,
            oom: crate::job_error::Oom::No,
            detail: None,
            end: End::Reaped,
            tail: "",
        };
        let settled = obituary.settle(channel).into_iter();
        let completions =
            settled.filter_map(|next| self.dispatch.settle(next, self.now)).collect::<Vec<_>>();
        self.dispatch.pump();
        self.requests();
        completions
    }

    fn cancel(&mut self, index: Index) {
        if !self.jobs.is_empty() {
            let cell = Arc::clone(&self.jobs[index.index(self.jobs.len())].cell);
            let completion = self.dispatch.cancel(&cell);
            self.complete(completion.into_iter().collect());
        }
    }

    fn abort(&mut self, index: Index) {
        if !self.jobs.is_empty() {
            let cell = Arc::clone(&self.jobs[index.index(self.jobs.len())].cell);
            let completions = self.dispatch.abort(&cell);
            self.complete(completions);
            self.requests();
        }
    }

    fn complete(&mut self, completions: Vec<Completion>) {
        for Completion { cell, ended } in completions {
            let number = self.jobs.iter().position(|job| Arc::ptr_eq(&job.cell, &cell)).unwrap();
            let job = &mut self.jobs[number];
            job.ends += 1;
            assert_eq!(job.ends, 1, "job {number} ends twice");
            check_outcome(number, job, ended.into_result().map_err(|error| *error));
        }
    }

    /// Time passes.
    fn wait(&mut self, time: u64) {
        self.now += time;
        self.dispatch.queue_retries(self.now);
        self.dispatch.pump();
    }

    /// Workers come, and do what there is to do.
    fn finish(&mut self) {
        for _ in 0..1000 {
            if self.dispatch.is_drained() {
                return;
            }
            self.wait(1);
            for slot in 0..self.workers.len() {
                if self.workers[slot].as_ref().is_some_and(|w| w.leaving && w.current.is_none()) {
                    self.die(slot);
                }
                self.start(slot);
                self.ready(slot);
                for _ in 0..4 {
                    self.work(slot, true);
                }
                self.harvest(slot);
            }
        }
        panic!("jobs are left: {:?}", self.dispatch.stats());
    }
}

fn job_of<'a>(jobs: &'a mut [Job], header: &JobHeader) -> &'a mut Job {
    jobs.iter_mut()
        .find(|job| job.cell.id.number() == header.job)
        .expect("only jobs that were submitted are sent")
}

/// Holds an outcome against what happened to the job.
fn check_outcome(number: usize, job: &Job, result: Result<Value, JobError>) {
    let count = job.begun.len();
    let check_error = |error: &JobError| match error {
        JobError::Died(_) | JobError::Quarantined { .. } => assert!(job.deaths > 0),
        JobError::Cancelled { started: true } => assert!(job.claims > 0),
        JobError::Cancelled { started: false } if count == 1 && job.deaths == 0 => {
            assert_eq!(job.claims, 0, "job {number} had started");
        }
        JobError::Cancelled { started: false } => {}
        other => panic!("job {number}: {other}"),
    };
    let mut element = 0;
    let mut check_value = |bytes: &[u8]| {
        assert_eq!(bytes, value_of(number, element), "job {number}");
        assert!(job.begun[element] > 0);
        element += 1;
    };
    match result {
        Ok(Value::Bytes(bytes)) => {
            check_value(&bytes);
            assert_eq!(element, count);
        }
        Ok(Value::Parts(parts)) => {
            let mut failed = 0;
            for part in &parts {
                match part {
                    Part::Recorded { elements, .. } => {
                        let mut rest = elements.as_slice();
                        while let Some((Kind::Value, bytes, next)) = elements::split_first(rest) {
                            // Failed elements are counted in below.
                            let at = element + failed;
                            assert_eq!(bytes, value_of(number, at), "job {number}");
                            assert!(job.begun[at] > 0);
                            element += 1;
                            rest = next;
                        }
                        assert!(rest.is_empty());
                    }
                    Part::Failed(error) => {
                        check_error(error);
                        failed += 1;
                    }
                }
            }
            assert_eq!(element + failed, count, "each element has an outcome");
        }
        Ok(Value::Boxed(_)) => panic!("nothing ran in this process"),
        Ok(Value::Attached(_)) => panic!("nothing was attached"),
        Err(error) => check_error(&error),
    }
}

#[derive(Debug, Clone)]
enum Step {
    Submit(i32, u32, u32),
    Start(Index),
    Ready(Index),
    Work(Index, bool),
    Harvest(Index),
    Retire(Index),
    Die(Index),
    Cancel(Index),
    Abort(Index),
    CancelUnstarted,
    Wait(u64),
    WatchCrew,
    LeaveCrew,
    Relieve,
}

fn step() -> impl Strategy<Value = Step> {
    let index = any::<Index>;
    prop_oneof![
        8 => (0i32..3, 0u32..3, prop_oneof![3 => Just(1u32), 1 => 2u32..5])
            .prop_map(|(priority, retries, count)| Step::Submit(priority, retries, count)),
        2 => index().prop_map(Step::Start),
        3 => index().prop_map(Step::Ready),
        20 => (index(), any::<bool>()).prop_map(|(slot, publish)| Step::Work(slot, publish)),
        6 => index().prop_map(Step::Harvest),
        1 => index().prop_map(Step::Retire),
        2 => index().prop_map(Step::Die),
        2 => index().prop_map(Step::Cancel),
        2 => index().prop_map(Step::Abort),
        1 => Just(Step::CancelUnstarted),
        4 => (0u64..20).prop_map(Step::Wait),
        2 => Just(Step::WatchCrew),
        1 => Just(Step::LeaveCrew),
        2 => Just(Step::Relieve),
    ]
}

proptest! {
    /// Goal: whatever workers and callers do, each job ends exactly once and as what happened to it, each
    /// element runs at most once and once more for each retry, and nothing is lost.
    #[test]
    fn each_job_ends_exactly_once(
        workers in 1usize..5,
        processors in 1usize..3,
        steps in prop::collection::vec(step(), 0..200),
    ) {
        let mut world = World::new(workers);
        world.dispatch.set_processors(processors);
        // Most of the time somebody is there to work.
        for slot in 0..workers {
            world.start(slot);
            world.ready(slot);
        }
        for step in steps {
            match step {
                Step::Submit(priority, retries, count) => world.submit(priority, retries, count),
                Step::Start(index) => world.start(index.index(workers)),
                Step::Ready(index) => world.ready(index.index(workers)),
                Step::Work(index, publish) => world.work(index.index(workers), publish),
                Step::Harvest(index) => world.harvest(index.index(workers)),
                Step::Retire(index) => world.retire(index.index(workers)),
                Step::Die(index) => world.die(index.index(workers)),
                Step::Cancel(index) => world.cancel(index),
                Step::Abort(index) => world.abort(index),
                Step::Wait(time) => world.wait(time),
                Step::WatchCrew => world.dispatch.watch_crew(),
                Step::LeaveCrew => {
                    world.dispatch.leave_crew();
                    prop_assert!(!world.dispatch.relies_on_crew());
                }
                Step::Relieve => {
                    for member in world.dispatch.members() {
                        world.dispatch.relieve(member);
                    }
                }
                Step::CancelUnstarted => {
                    let completions = world.dispatch.cancel_unstarted();
                    world.complete(completions);
                }
            }
            let stats = world.dispatch.stats();
            let ended = stats.finished + stats.failed + stats.cancelled;
            prop_assert_eq!(stats.submitted, ended + (stats.running + stats.queued) as u64);
        }
        world.finish();
        for (number, job) in world.jobs.iter().enumerate() {
            prop_assert_eq!(job.ends, 1, "job {}", number);
        }
    }
}

/// Goal: a job that was stopped has been stopped, although what it returned before its worker died of that is there.
#[test]
fn what_a_stopped_job_has_returned_is_not_recovered() {
    for count in [1, 3] {
        let mut world = World::new(1);
        world.start(0);
        world.ready(0);
        world.submit(0, 0, count);
        world.work(0, false);
        for _ in 1..count {
            world.work(0, false);
            world.work(0, false);
        }
        world.work(0, false);
        let cell = Arc::clone(&world.jobs[0].cell);
        assert!(world.dispatch.abort(&cell).is_empty(), "its worker is asked to stop it");
        // As `work` does it, but for the publication.
        let last = count - 1;
        let mut worker = world.workers[0].take().unwrap();
        assert!(worker.end.append(Kind::Value, &value_of(0, last as usize)));
        worker.end.set_phase(last, Phase::Drop);
        let completion = world.bury(0).pop().expect("it has ended");
        let error = match completion.ended.into_result() {
            Err(error) => *error,
            Ok(Value::Parts(mut parts)) if count == 3 && parts.len() == 2 => match parts.pop() {
                Some(Part::Failed(error)) => error,
                _ => panic!("a value has been recovered"),
            },
            Ok(_) => panic!("a value has been recovered"),
        };
        assert!(matches!(error, JobError::Cancelled { started: true }), "{error}");
    }
}

/// A world in which a job has killed its worker and waits to be tried again, ten units from its death.
fn waiting_for_a_retry() -> World {
    let mut world = World::new(1);
    world.start(0);
    world.ready(0);
    world.submit(0, 2, 1);
    world.work(0, true);
    world.work(0, true);
    world.die(0);
    world.start(0);
    world.ready(0);
    world
}

/// Goal: a job that killed its worker waits, as one of those that are queued, and runs again when its wait is
/// over, not before.
#[test]
fn a_retry_waits_in_virtual_time() {
    let mut world = waiting_for_a_retry();
    let due = world.dispatch.retries.next_due().unwrap();
    assert!((5..=10).contains(&due), "half of it at least: {due}");
    let stats = world.dispatch.stats();
    assert_eq!((stats.queued, stats.running, stats.idle), (1, 0, 1));
    assert_eq!(world.dispatch.unstarted(), 1);
    assert_eq!(world.dispatch.queued(), 0, "no worker is wanted for it now");
    assert!(!world.dispatch.is_drained());
    world.wait(due - 1);
    assert_eq!(world.dispatch.stats().idle, 1);
    world.wait(1);
    assert_eq!(world.dispatch.stats().idle, 0, "sent");
    world.finish();
    assert_eq!(world.dispatch.stats().finished, 1);
}

/// Goal: a job that waits to be tried again is cancelled like any that waits, by name and with all others.
#[test]
fn a_retry_that_waits_can_be_cancelled() {
    for all in [false, true] {
        let mut world = waiting_for_a_retry();
        let cell = Arc::clone(&world.jobs[0].cell);
        let completions = match all {
            true => world.dispatch.cancel_unstarted(),
            false => world.dispatch.abort(&cell),
        };
        assert_eq!(completions.len(), 1);
        assert!(world.dispatch.is_drained());
        assert!(world.dispatch.was_cancelled(&cell));
        assert_eq!((world.dispatch.stats().cancelled, world.dispatch.stats().queued), (1, 0));
        assert_eq!(world.dispatch.retries.next_due(), None);
    }
}

/// Goal: a pool that breaks while a job waits to be tried again ends that job too, with the cause; and one
/// that was told to abort does not make a job wait that comes back.
#[test]
fn a_retry_ends_with_its_pool() {
    let mut world = waiting_for_a_retry();
    let completions = world.dispatch.break_down(Error::start("no more"));
    let [completion] = &completions[..] else { panic!("{} ended", completions.len()) };
    assert!(matches!(completion.ended.error(), Some(JobError::Broken(_))));
    let mut world = waiting_for_a_retry();
    world.wait(10);
    world.work(0, true);
    world.dispatch.discard = true;
    world.die(0);
    assert_eq!((world.jobs[0].ends, world.dispatch.stats().cancelled), (1, 1));
}

/// A world of so many workers, two of which have run short jobs, where two processors are.
fn with_a_crew(workers: usize) -> World {
    let mut world = World::new(workers);
    world.dispatch.set_processors(2);
    for slot in 0..workers {
        world.start(slot);
        world.ready(slot);
    }
    for _ in 0..2 {
        world.submit(0, 0, 1);
    }
    for slot in 0..2 {
        (0..3).for_each(|_| world.work(slot, true));
        world.harvest(slot);
    }
    world
}

fn in_flight(world: &World) -> Vec<usize> {
    let channels = (0..world.workers.len()).filter_map(|slot| world.dispatch.channel(slot));
    channels.map(PoolChannel::in_flight).collect()
}

/// Goal: while as many workers as there are processors have short jobs, further ones wait there, and nobody else is
/// woken; the supervisor is called to look after them.
#[test]
fn short_jobs_wait_for_workers_that_are_awake() {
    let mut world = with_a_crew(4);
    for _ in 0..2 {
        world.submit(0, 0, 1);
    }
    assert!(!world.dispatch.crew_calls(), "nobody waits yet");
    for _ in 0..6 {
        world.submit(0, 0, 1);
    }
    assert_eq!(in_flight(&world), [4, 4, 0, 0]);
    assert!(world.dispatch.crew_calls() && world.dispatch.relies_on_crew());
    world.dispatch.watch_crew();
    assert!(!world.dispatch.crew_calls());
    // Who has done its share gets nothing that another is about to do.
    for _ in 0..12 {
        world.work(0, true);
    }
    world.harvest(0);
    assert_eq!(in_flight(&world), [0, 4, 0, 0]);
    world.dispatch.leave_crew();
    assert!(in_flight(&world).iter().all(|jobs| *jobs == 1), "{:?}", in_flight(&world));
    world.finish();
}

/// Goal: jobs of another priority do not wait behind others while a worker is idle.
#[test]
fn a_crew_has_jobs_of_one_priority() {
    let mut world = with_a_crew(4);
    for _ in 0..3 {
        world.submit(0, 0, 1);
    }
    assert_eq!(in_flight(&world).iter().filter(|jobs| **jobs > 0).count(), 2);
    world.submit(-1, 0, 1);
    assert_eq!(in_flight(&world)[2], 1);
    world.finish();
}

/// Goal: what waits behind a job that turns out to be long is taken by others, and none joins it there.
#[test]
fn who_waits_behind_a_long_job_is_relieved() {
    let mut world = with_a_crew(4);
    world.dispatch.watch_crew();
    for _ in 0..8 {
        world.submit(0, 0, 1);
    }
    assert_eq!(in_flight(&world), [4, 4, 0, 0]);
    world.work(0, true);
    let members = world.dispatch.members();
    let [first, second] = &members[..] else { panic!("{members:?}") };
    assert_eq!((first.slot, second.slot), (0, 1));
    assert!(first.began_ns.is_some() && second.began_ns.is_none());
    // Word that is out of date relieves nobody.
    world.dispatch.relieve(Member { jobs_done: first.jobs_done + 1, ..*first });
    assert_eq!(in_flight(&world), [4, 4, 0, 0]);
    world.dispatch.relieve(*first);
    assert_eq!(in_flight(&world)[0], 1, "the long one itself");
    assert_eq!(in_flight(&world).iter().sum::<usize>(), 8 - world.dispatch.queued());
    for _ in 0..4 {
        world.submit(0, 0, 1);
    }
    assert_eq!(in_flight(&world)[0], 1);
    // It may have been a long one by exception.
    world.work(0, true);
    world.work(0, true);
    world.harvest(0);
    assert!(world.dispatch.brisk.contains(0) || in_flight(&world)[0] == 0);
    world.finish();
}
