//! Time limits against jobs that listen, jobs that do not, and jobs that end at that very moment.

use std::time::{Duration, Instant};

use procpool::{EndedBy, JobError, Limit, ProcessPool};

use super::{at_best, timed_out};
use crate::support::{Random, test};

const SECOND: Duration = Duration::from_secs(1);

/// Loops until the stop flag is raised.
fn listens(_: ()) {
    let context = procpool::context().unwrap();
    while !context.is_cancelled() {
        // How soon it is seen does not matter.
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Goal: a job that sees the flag and returns ends then, not after the grace, and its worker lives.
/// Covers: F-15
#[test]
fn a_job_that_returns_when_asked_does_not_wait_for_the_grace() {
    test(|| {
        let pool = ProcessPool::builder().workers(1).grace(60 * SECOND).build().unwrap();
        let limit = Duration::from_millis(50);
        let took = at_best(5, || {
            let begun = Instant::now();
            let outcome = pool.job(listens, ()).timeout(limit).submit().outcome();
            let took = begun.elapsed();
            let timeout = timed_out(outcome.result);
            // Half of the grace is what it would take if the flag were not seen.
            assert!(took < 20 * SECOND, "{took:?}");
            assert!(outcome.report.ran >= limit, "{:?}", outcome.report);
            assert_eq!(
                (timeout.limit, timeout.after, timeout.ended_by),
                (Limit::Job, limit, EndedBy::Itself)
            );
            let next = pool.submit(|()| std::process::id(), ()).result().unwrap();
            assert_eq!(Some(next), outcome.report.pid);
            took
        });
        assert!(took < SECOND / 2, "{took:?}");
        assert_eq!(pool.stats().deaths, 0);
    });
}

fn hang_for_ever(_: ()) {
    super::hang();
}

/// Goal: a job that SIGTERM ends does not wait for the grace either.
/// Covers: F-15
#[test]
fn a_job_that_sigterm_ends_does_not_wait_for_the_grace() {
    test(|| {
        let pool = ProcessPool::builder().workers(1).grace(60 * SECOND).build().unwrap();
        let limit = Duration::from_millis(50);
        let took = at_best(5, || {
            let begun = Instant::now();
            let job = pool.job(hang_for_ever, ()).timeout(limit);
            let timeout = timed_out(job.submit().result());
            let took = begun.elapsed();
            assert!((limit..20 * SECOND).contains(&took), "{took:?}");
            assert_eq!(timeout.ended_by, EndedBy::Term);
            took
        });
        assert!(took < SECOND / 2, "{took:?}");
        pool.submit(|()| (), ()).result().unwrap();
    });
}

#[expect(unsafe_code, reason = "a job that is deaf to signals has to say so")]
fn is_deaf(_: ()) {
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
        // SAFETY: ignoring a signal runs no code.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
    loop {
        std::hint::spin_loop();
    }
}

/// Goal: a job that ignores SIGTERM is killed when limit and grace are over: not before, and not much later.
/// Covers: F-14
#[test]
fn a_job_that_ignores_sigterm_is_killed_after_the_grace() {
    test(|| {
        let (limit, grace) = (Duration::from_millis(50), Duration::from_millis(150));
        let pool = ProcessPool::builder().workers(1).grace(grace).build().unwrap();
        let ran = at_best(5, || {
            let outcome = pool.job(is_deaf, ()).timeout(limit).submit().outcome();
            assert_eq!(timed_out(outcome.result).ended_by, EndedBy::Kill);
            let ran = outcome.report.ran;
            assert!(ran >= limit + grace, "{ran:?}");
            ran
        });
        assert!(ran < limit + grace + SECOND / 4, "{ran:?}");
        pool.submit(|()| (), ()).result().unwrap();
    });
}

/// Goal: jobs that end at about the moment of their time limit have one outcome each, and the pool does
/// not lose count, whichever wins; and no worker is stopped twice, or for another's job.
/// Covers: F-16
#[test]
fn results_that_race_their_deadlines_have_one_outcome_each() {
    test(|| {
        const LIMIT: u64 = 2_000;
        const JOBS: u64 = 5_000;
        fn about(micros: u64) -> u64 {
            let until = Instant::now() + Duration::from_micros(micros);
            // Three of four listen; the others are ended by SIGTERM.
            let listens = !micros.is_multiple_of(4);
            let context = listens.then(|| procpool::context().unwrap());
            while Instant::now() < until {
                if context.as_ref().is_some_and(procpool::Context::is_cancelled) {
                    break;
                }
            }
            micros
        }
        let mut random = Random::new();
        let pool = ProcessPool::builder()
            .workers(2)
            .job_timeout(Duration::from_micros(LIMIT))
            .grace(Duration::from_millis(200))
            .build()
            .unwrap();
        let micros: Vec<u64> = (0..JOBS).map(|_| LIMIT - 1_000 + random.below(2_000)).collect();
        let futures: Vec<_> = micros.iter().map(|m| pool.submit(about, *m)).collect();
        let (mut values, mut stopped) = (0, 0);
        for (micros, future) in micros.iter().zip(futures) {
            let outcome = future.outcome();
            assert_eq!(outcome.report.attempts, 1);
            match outcome.result {
                Ok(value) => {
                    assert_eq!(value, *micros);
                    values += 1;
                }
                Err(JobError::TimedOut(timeout)) => {
                    assert_eq!(timeout.limit, Limit::Job);
                    stopped += u64::from(timeout.ended_by != EndedBy::Itself);
                }
                Err(error) => panic!("{error}"),
            }
        }
        let stats = pool.stats();
        println!("{values} values, {stats:?}");
        assert_eq!((stats.finished, stats.failed), (values, JOBS - values));
        // Some stops hit a worker whose job has returned meanwhile.
        assert!((stopped..=JOBS).contains(&stats.deaths), "{stopped} were stopped");
    });
}
