//! Workers killed at random, all along.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use procpool::{JobError, Outcome, ProcessPool, Status};

use super::kill_worker;
use super::ledger::{Ledger, note};
use crate::support::{Random, test_within};

/// How many jobs; `PROCPOOL_CHAOS_JOBS` makes it more.
const JOBS: u64 = 20_000;

fn work((number, path): (u64, String)) -> u64 {
    note(&path, number);
    // A little work, so that many of the kills hit a job.
    let until = Instant::now() + Duration::from_micros(50);
    while Instant::now() < until {
        std::hint::spin_loop();
    }
    number * 2
}

/// Runs the jobs while workers are killed, and checks what holds of any run.
fn chaos(retries: u32) -> (Vec<Outcome<u64>>, Ledger) {
    let jobs = std::env::var("PROCPOOL_CHAOS_JOBS").map_or(JOBS, |jobs| jobs.parse().unwrap());
    let mut random = Random::new();
    let ledger = Ledger::new();
    let pool = ProcessPool::builder()
        .workers(4)
        .retries(retries)
        // Workers are killed while they start, too, and that is nobody's fault here.
        .restart_limit(u32::MAX, Duration::from_secs(1))
        .build()
        .unwrap();
    let done = AtomicBool::new(false);
    let outcomes: Vec<Outcome<u64>> = thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let workers = pool.workers();
                if !workers.is_empty() {
                    kill_worker(workers[random.below(workers.len() as u64) as usize].pid);
                }
                // The pace of the kills; any will do.
                thread::sleep(Duration::from_micros(random.below(16_000)));
            }
        });
        let path = ledger.path();
        let submit = |number| pool.submit(work, (number, path.clone()));
        let futures: Vec<_> = (0..jobs).map(submit).collect();
        let outcomes = futures.into_iter().map(|f| f.outcome()).collect();
        done.store(true, Ordering::Relaxed);
        outcomes
    });
    let stats = pool.stats();
    println!("{stats:?}");
    assert!(stats.deaths > 0, "nothing was killed");
    assert_eq!((stats.running, stats.queued), (0, 0));
    assert_eq!(stats.submitted, jobs);
    assert_eq!(stats.finished + stats.failed, jobs);
    for (number, outcome) in (0..).zip(&outcomes) {
        match &outcome.result {
            Ok(value) => assert_eq!(*value, number * 2),
            Err(error) => check_error(error, retries, outcome.report.attempts),
        }
    }
    (outcomes, ledger)
}

fn check_error(error: &JobError, retries: u32, attempts: u32) {
    let death = match (error, retries) {
        (JobError::Died(death), 0) => death,
        (JobError::Quarantined { attempts, last, .. }, 1..) => {
            assert_eq!(*attempts, retries + 1);
            match &**last {
                JobError::Died(death) => death,
                other => panic!("{other:?}"),
            }
        }
        _ => panic!("{error:?}"),
    };
    assert_eq!(death.status, Status::Signal(libc::SIGKILL, false));
    assert_eq!(death.attempt, retries + 1);
    assert_eq!(attempts, retries + 1);
    assert_eq!(death.detail, None);
}

/// Goal: whatever is killed when, every job has one outcome, and none is started twice.
#[test]
fn jobs_whose_workers_are_killed_at_random_run_at_most_once() {
    test_within(Duration::from_secs(600), || {
        let (outcomes, ledger) = chaos(0);
        let attempts = ledger.attempts();
        for (number, outcome) in (0..).zip(&outcomes) {
            match attempts.get(&number).map(Vec::as_slice) {
                Some([1]) => {}
                // Killed after its claim and before its line.
                None => assert!(outcome.result.is_err(), "{number} has a value and never ran"),
                Some(more) => panic!("{number} ran as attempts {more:?}: {outcome:?}"),
            }
            assert_eq!(outcome.report.attempts, 1, "{number}");
        }
    });
}

/// Goal: with retries a killed job runs again, as often as allowed, and is told which attempt it is.
#[test]
fn jobs_whose_workers_are_killed_at_random_are_retried_and_count_right() {
    test_within(Duration::from_secs(600), || {
        let (outcomes, ledger) = chaos(2);
        let ran = ledger.attempts();
        for (number, outcome) in (0..).zip(&outcomes) {
            let attempts = outcome.report.attempts;
            let lines = ran.get(&number).map_or(&[][..], Vec::as_slice);
            let ascending = lines.is_sorted_by(|a, b| a < b);
            let in_range = lines.iter().all(|line| (1..=attempts).contains(line));
            assert!(ascending && in_range, "{number} ran as {lines:?}: {outcome:?}");
            if outcome.result.is_ok() {
                assert_eq!(lines.last(), Some(&attempts), "{number}: {outcome:?}");
            }
        }
    });
}
