//! Section P: errors of the job's own, and what they look like.

use procpool::{JobError, ProcessPool, ThreadPool};
use serde::{Deserialize, Serialize};

use super::jobs::{double, even_only, fail, segv};
use super::{Pool, on_a_daemon, on_both_pools};
use crate::support::test;

#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum Refusal {
    Quota { left: u64 },
    Other(String),
}

#[procpool::task]
fn refuse(n: u64) -> Result<u64, Refusal> {
    match n {
        0 => Err(Refusal::Quota { left: 7 }),
        1 => Err(Refusal::Other("no".into())),
        n => Ok(n),
    }
}

/// The worker that runs it: its process, and its index.
#[procpool::task]
fn worker((): ()) -> Option<(u32, usize)> {
    procpool::worker_index().map(|index| (std::process::id(), index))
}

#[procpool::task]
fn panic_with_a_number(n: u64) -> u64 {
    std::panic::panic_any(n)
}

#[procpool::task]
fn panic_with_a_bomb(_: u64) -> u64 {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("the payload panics as well");
        }
    }
    std::panic::panic_any(Bomb)
}

/// Goal: an error of a job's own is a value: type and content come back.
///
/// Covers: 160
fn an_error_of_the_jobs_own_is_a_value<P: Pool>() {
    let pool = P::of(1);
    let results: Vec<_> = pool.map(refuse, 0..3).map(Result::unwrap).collect();
    assert_eq!(results[0], Err(Refusal::Quota { left: 7 }));
    assert_eq!(results[1], Err(Refusal::Other("no".into())));
    assert_eq!(results[2], Ok(2));
    // An `Err` inside is a value for `wait` as well.
    let waited = procpool::wait([pool.submit(refuse, 0)], procpool::Until::FirstError, None);
    assert!(waited.done.into_iter().next().unwrap().result().unwrap().is_err());
}

/// Goal: a panic is an outcome with its message; neither the worker nor another job is affected.
///
/// Covers: 160, 162
fn a_panic_is_an_outcome<P: Pool>() {
    let pool = P::of(1);
    let before = pool.submit(worker, ()).result().unwrap();
    let futures: Vec<_> = (0..20).map(|n| pool.submit(even_only, n)).collect();
    for (n, future) in futures.into_iter().enumerate() {
        match future.result() {
            Ok(value) => assert_eq!((n % 2, value), (0, n as u64 * 2)),
            Err(JobError::Panicked(panic)) => {
                assert_eq!(panic.message, format!("{n} is odd"));
                assert!(!panic.aborted);
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(pool.submit(worker, ()).result().unwrap(), before);
}

/// Goal: a panic whose payload is not text has a placeholder, and one that panics in its Drop harms nobody.
fn a_panic_with_any_payload_is_an_outcome<P: Pool>() {
    let pool = P::of(1);
    for job in [panic_with_a_number as fn(u64) -> u64, panic_with_a_bomb] {
        let Err(JobError::Panicked(panic)) = pool.submit(job, 1).result() else {
            panic!("the job panicked")
        };
        assert!(!panic.message.is_empty());
        assert_eq!(pool.submit(double, 1).result().unwrap(), 2);
    }
}

/// Goal: texts about a job begin with the job: its number, its name, and where it was submitted.
fn an_errors_text_names_the_job<P: Pool>() {
    let pool = P::of(1);
    let job = pool.job(fail, 2).name("nightly\tbuild");
    let (plain, line) = (pool.submit(fail, 1), line!());
    let named = job.submit();
    let ids = (plain.id(), named.id());
    let file = file!();
    let text = plain.result().unwrap_err().to_string();
    assert!(text.starts_with(&format!("job {} ({file}:{line}) panicked", ids.0)), "{text}");
    assert!(text.contains("no 1"), "{text}");
    let text = named.result().unwrap_err().to_string();
    let start = format!("job {} `nightly\\tbuild` ({file}:{}) panicked", ids.1, line - 1);
    assert!(text.starts_with(&start), "{text}");
    let (mut map, line) = (pool.map(fail, [3]), line!());
    let text = map.next().unwrap().unwrap_err().to_string();
    assert!(text.contains(&format!(" ({file}:{line}) panicked")), "{text}");
}

/// Goal: a panic in a process says where, and with `RUST_BACKTRACE` how it got there.
///
/// Covers: 161
#[test]
fn a_panic_says_where() {
    test(|| {
        let pool = ProcessPool::builder().workers(1).env("RUST_BACKTRACE", "1").build().unwrap();
        let Err(JobError::Panicked(panic)) = pool.submit(fail, 1).result() else {
            panic!("the job panicked")
        };
        let location = panic.location.unwrap();
        assert!(location.contains("conformance/jobs.rs:"), "{location}");
        assert!(panic.backtrace.unwrap().contains("jobs::fail"));
        let pool = ProcessPool::builder().workers(1).env("RUST_BACKTRACE", "0").build().unwrap();
        let Err(JobError::Panicked(panic)) = pool.submit(fail, 1).result() else {
            panic!("the job panicked")
        };
        assert!(panic.backtrace.is_none());
    });
}

/// Goal: a name and a place stand in the texts of deaths and time limits too.
#[test]
fn every_text_names_the_job() {
    test(|| {
        let pool = ProcessPool::builder()
            .workers(1)
            .grace(std::time::Duration::from_millis(1))
            .build()
            .unwrap();
        let (job, line) = (pool.job(segv, 1), line!());
        let death = job.name("a").submit();
        let start = format!("job {} `a` ({}:{line}) died: SIGSEGV", death.id(), file!());
        let text = death.result().unwrap_err().to_string();
        assert!(text.starts_with(&start), "{text}");
        let limit = std::time::Duration::from_millis(20);
        let (job, line) = (pool.job(super::jobs::hang, 1), line!());
        let timeout = job.name("b").timeout(limit).submit();
        let start = format!(
            "job {} `b` ({}:{line}) exceeded its time limit of 20ms",
            timeout.id(),
            file!()
        );
        let text = timeout.result().unwrap_err().to_string();
        assert!(text.starts_with(&start), "{text}");
    });
}

/// Goal: a value whose Drop panics costs neither the thread that ran the job nor the pool.
/// Method: the future is dropped first, so that the pool has the last handle of the value.
#[test]
fn a_result_that_panics_in_its_drop_costs_no_thread() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("a result that panics in its drop");
        }
    }
    test(|| {
        let pool = ThreadPool::of(1);
        for n in 0..3 {
            let (go, wait) = std::sync::mpsc::channel::<()>();
            let future = pool.spawn(move || {
                let _ = wait.recv();
                Bomb
            });
            drop(future);
            drop(go);
            assert_eq!(pool.submit(double, n).result().unwrap(), n * 2);
        }
    });
}

on_both_pools![
    an_error_of_the_jobs_own_is_a_value,
    a_panic_is_an_outcome,
    a_panic_with_any_payload_is_an_outcome,
    an_errors_text_names_the_job,
];

on_a_daemon![
    an_error_of_the_jobs_own_is_a_value,
    a_panic_is_an_outcome,
    a_panic_with_any_payload_is_an_outcome,
    an_errors_text_names_the_job,
];
