//! The dispatch against fake workers: ends of the same memory, without processes. They claim, run, publish and
//! die at any point, while jobs are submitted, cancelled, stopped and taken back.

mod examples;
mod random;

use std::os::fd::OwnedFd;
use std::panic::Location;

use procpool_sys::{channel as sockets, mapping};
use procpool_wire::block::{BLOCK_WORDS, Block, JobHeader, Phase, ResultHeader, WorkerEnd};
use procpool_wire::elements::{self, Kind};
use procpool_wire::handshake::Runs;
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
