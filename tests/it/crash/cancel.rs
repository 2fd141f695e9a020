//! `cancel` and `is_running` are exact.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use procpool::{JobError, JobFuture, ProcessPool};

use super::ledger::{Ledger, note};
use crate::support::{Guest, Meeting, Random, meet, test};

const JOBS: u64 = 10_000;
const THREADS: usize = 4;

fn work((number, path): (u64, String)) -> u64 {
    note(&path, number);
    number
}

/// Goal: `cancel` answers true for exactly those jobs that never run, be they queued, prefetched or just
/// being started, and `is_running` never says so of one that can still be cancelled.
/// Method: several threads cancel at random while the workers eat the queue; the jobs' own lines say
/// which ran.
/// Covers: F-16
#[test]
fn cancel_is_true_exactly_for_jobs_that_never_run() {
    test(|| {
        let mut random = Random::new();
        let (ledger, gate) = (Ledger::new(), Meeting::new());
        let pool = ProcessPool::builder().workers(2).build().unwrap();
        let held = [0, 1].map(|_| pool.submit(|path: String| meet(&path, ""), gate.path()));
        let guests = [gate.next(), gate.next()];
        let futures: Vec<_> =
            (0..JOBS).map(|number| pool.submit(work, (number, ledger.path()))).collect();
        let answers: Vec<Answers> = futures.iter().map(|_| Answers::default()).collect();
        thread::scope(|scope| {
            for thread in 0..THREADS {
                let mut random = random.split();
                let (futures, answers) = (&futures, &answers);
                scope.spawn(move || {
                    for step in 0..futures.len() / 2 {
                        // Half of the threads walk in step with the workers and each other, so that
                        // they meet at the same jobs; the others go anywhere.
                        let number = match thread % 2 {
                            0 => step,
                            _ => random.below(futures.len() as u64) as usize,
                        };
                        try_cancel(&futures[number], &answers[number]);
                    }
                });
            }
            // The cancels began on jobs that wait, and go on among jobs that run.
            guests.into_iter().for_each(Guest::go);
        });
        held.into_iter().for_each(|future| future.result().unwrap());
        let mut counts = [0; 2];
        let outcomes: Vec<_> = futures.into_iter().map(|f| f.outcome()).collect();
        let ran = ledger.attempts();
        for (number, outcome) in outcomes.iter().enumerate() {
            let cancelled = answers[number].yes.load(Ordering::Relaxed);
            let refused = answers[number].no.load(Ordering::Relaxed);
            assert!(!(cancelled && refused), "{number}: both true and false");
            counts[usize::from(cancelled)] += 1;
            let lines = ran.get(&(number as u64)).map_or(0, Vec::len);
            match &outcome.result {
                Ok(value) => {
                    assert_eq!((*value, cancelled, lines), (number as u64, false, 1));
                    assert_eq!(outcome.report.attempts, 1);
                }
                Err(JobError::Cancelled { started: false }) => {
                    assert_eq!((cancelled, lines), (true, 0), "{number}");
                    assert_eq!(outcome.report.attempts, 0);
                }
                Err(error) => panic!("{number}: {error}"),
            }
        }
        println!("ran and cancelled: {counts:?}");
        let stats = pool.stats();
        assert_eq!(stats.cancelled, counts[1]);
        assert_eq!(stats.finished, counts[0] + 2);
        assert_eq!(stats.deaths, 0);
    });
}

/// What `cancel` has answered for a job, to anyone.
#[derive(Default)]
struct Answers {
    yes: AtomicBool,
    no: AtomicBool,
}

fn try_cancel(future: &JobFuture<u64>, answers: &Answers) {
    // In this order: what runs now cannot be cancelled later, but what waits now may run.
    let running = future.is_running();
    let answer = future.cancel();
    assert!(!(running && answer), "a running job was cancelled");
    if answer {
        answers.yes.store(true, Ordering::Relaxed);
        assert!(future.is_done() && future.is_cancelled() && !future.is_running());
    } else {
        answers.no.store(true, Ordering::Relaxed);
    }
}

/// Goal: two threads that cancel the same job at the same moment get the same answer.
#[test]
fn all_who_cancel_a_job_at_once_get_the_same_answer() {
    test(|| {
        let gate = Meeting::new();
        let pool = ProcessPool::builder().workers(1).build().unwrap();
        let held = pool.submit(|path: String| meet(&path, ""), gate.path());
        let guest = gate.next();
        let futures: Vec<_> = (0..JOBS).map(|n| pool.submit(|n: u64| n, n)).collect();
        let (next, refused) = (AtomicUsize::new(0), AtomicUsize::new(0));
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for (number, future) in futures.iter().enumerate() {
                        // Shoulder to shoulder: each waits for the other before every job.
                        next.fetch_add(1, Ordering::AcqRel);
                        while next.load(Ordering::Acquire) < 2 * (number + 1) {
                            // The other may need this very CPU.
                            std::thread::yield_now();
                        }
                        // Judged below: a panic here would leave the other thread waiting.
                        if !future.cancel() || !future.is_cancelled() {
                            refused.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                });
            }
        });
        guest.go();
        held.result().unwrap();
        assert_eq!(refused.into_inner(), 0);
    });
}

/// Goal: a job runs from its first line to its last, and not while it waits behind another at its worker.
#[test]
fn a_job_behind_another_is_not_running_and_can_be_cancelled() {
    test(|| {
        let meeting = Meeting::new();
        let pool = ProcessPool::builder().workers(1).build().unwrap();
        let job = |(path, word): (String, String)| meet(&path, &word);
        let submit = |word: &str| pool.submit(job, (meeting.path(), word.to_owned()));
        let (first, second, third) = (submit("first"), submit("second"), submit("third"));
        let guest = meeting.next();
        assert!(first.is_running() && !second.is_running() && !third.is_running());
        assert!(!first.cancel());
        assert!(second.cancel() && second.cancel());
        assert!(first.is_running() && !first.is_done());
        guest.go();
        first.result().unwrap();
        let guest = meeting.next();
        assert_eq!(guest.word, "third");
        assert!(third.is_running() && !second.is_running());
        guest.go();
        third.wait();
        assert!(!third.is_running() && !third.cancel());
        third.result().unwrap();
    });
}
