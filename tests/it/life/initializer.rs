//! Initializers, the good and the bad, and other ways for a worker not to get ready.

use std::fs::OpenOptions;
use std::hint;
use std::process;
use std::sync::OnceLock;
use std::time::Duration;

use procpool::{Error, JobError, JobFuture, Output, ProcessPool, ProcessPoolBuilder, Rejection};

use crate::support::{TempDir, test, wait_until};

const WORKERS: usize = 2;
const RESTART_LIMIT: u32 = 3;

fn builder() -> ProcessPoolBuilder {
    ProcessPool::builder()
        .workers(WORKERS)
        .stderr(Output::Capture)
        .restart_limit(RESTART_LIMIT, Duration::from_secs(10))
}

fn abort(_: ()) {
    process::abort();
}

/// Everything that has to happen in a pool whose workers cannot start. `cause` stands in what each job is told.
fn breaks(builder: ProcessPoolBuilder, cause: &str) {
    let pool = builder.build().unwrap();
    let futures: Vec<JobFuture<u32>> = (0..100).map(|n| pool.submit(|n: u32| n, n)).collect();
    let broken = |result: Result<u32, JobError>| match result {
        Err(JobError::Broken(error)) => error,
        other => panic!("not broken: {other:?}"),
    };
    let named = |error: &Error| {
        assert!(error.is_start(), "{error:?}");
        assert!(error.to_string().contains(cause), "{error}");
    };
    for future in futures {
        let outcome = future.outcome();
        assert_eq!(outcome.report.attempts, 0);
        named(&broken(outcome.result));
    }
    let spawned = pool.stats().spawned;
    let most = WORKERS as u64 + u64::from(RESTART_LIMIT);
    assert!((1..=most).contains(&spawned), "{spawned} starts");
    named(&broken(pool.submit(|n: u32| n, 1).result()));
    match pool.try_submit(|n: u32| n, 7) {
        Err(rejected) => {
            assert_eq!(rejected.arg, 7);
            assert!(matches!(rejected.reason, Rejection::Broken(_)));
        }
        Ok(future) => panic!("accepted: {future:?}"),
    }
    named(&pool.warm_up().unwrap_err());
    assert_eq!(pool.stats().spawned, spawned, "a broken pool starts nothing");
    drop(pool);
}

/// Goal: an initializer that returns an error breaks the pool, with its message.
#[test]
fn an_initializer_that_fails_breaks_the_pool() {
    fn fail(text: String) -> Result<(), String> {
        Err(text)
    }
    test(|| breaks(builder().initializer(fail, "no such model".to_owned()), "no such model"));
}

/// Goal: an initializer that panics breaks the pool, with the panic's message.
#[test]
fn an_initializer_that_panics_breaks_the_pool() {
    fn cry(_: ()) {
        panic!("what a start");
    }
    test(|| breaks(builder().initializer(cry, ()), "what a start"));
}

/// Goal: an initializer that never returns is killed, and breaks the pool although each start takes longer
/// than the window in which starts are counted.
/// Covers: F-33
#[test]
fn an_initializer_that_hangs_breaks_the_pool() {
    fn hang(_: ()) {
        loop {
            hint::spin_loop();
        }
    }
    test(|| {
        let builder = builder()
            .start_timeout(Duration::from_millis(150))
            .restart_limit(RESTART_LIMIT, Duration::from_millis(100));
        breaks(builder.initializer(hang, ()), "start_timeout");
    });
}

/// Goal: an initializer that ends the process breaks the pool, with the exit code and its last words.
/// Covers: F-32
#[test]
fn an_initializer_that_exits_breaks_the_pool() {
    fn exit(_: ()) {
        eprintln!("I had enough");
        process::exit(3);
    }
    test(|| {
        breaks(builder().initializer(exit, ()), "exit code 3");
        breaks(builder().initializer(exit, ()), "I had enough");
    });
}

/// Goal: an initializer that crashes breaks the pool, with the signal.
#[test]
fn an_initializer_that_crashes_breaks_the_pool() {
    #[expect(unsafe_code, reason = "a real bad write")]
    fn crash(_: ()) {
        // SAFETY: none: nothing is mapped at that address, which is the point.
        unsafe { std::ptr::without_provenance_mut::<u8>(16).write_volatile(1) };
    }
    test(|| breaks(builder().initializer(crash, ()), "SIGSEGV"));
}

/// Goal: a working directory that cannot be entered is named.
#[test]
fn a_missing_directory_is_named() {
    test(|| breaks(builder().current_dir("/no/such/place"), "/no/such/place"));
}

static GREETING: OnceLock<(String, u32)> = OnceLock::new();

/// Goal: what the initializer did is there for every job, in each worker and each replacement, once.
#[test]
fn an_initializer_runs_once_in_every_worker() {
    fn greet(text: String) {
        let first = GREETING.set((text, process::id()));
        assert!(first.is_ok(), "a worker has one start");
    }
    fn greeting(_: ()) -> (String, u32) {
        GREETING.get().unwrap().clone()
    }
    test(|| {
        let pool = ProcessPool::builder()
            .workers(1)
            .initializer(greet, "hello".to_owned())
            .build()
            .unwrap();
        let mut pids = Vec::new();
        for _ in 0..3 {
            for _ in 0..2 {
                let (text, pid) = pool.submit(greeting, ()).result().unwrap();
                assert_eq!(text, "hello");
                pids.push(pid);
            }
            pool.submit(abort, ()).result().unwrap_err();
        }
        pids.dedup();
        assert_eq!(pids.len(), 3, "a worker, and its two replacements");
        assert!(GREETING.get().is_none(), "nothing ran in the host");
    });
}

/// An initializer that kills its worker as long as a file is missing, which it makes.
fn die_once(file: String) {
    if OpenOptions::new().write(true).create_new(true).open(file).is_ok() {
        process::abort();
    }
}

/// Goal: one bad start costs no job.
#[test]
fn a_pool_gets_over_one_bad_start() {
    test(|| {
        let dir = TempDir::new();
        let file = dir.path().join("flag").to_str().unwrap().to_owned();
        let pool = builder().initializer(die_once, file).build().unwrap();
        let futures: Vec<_> = (0..50).map(|n| pool.submit(|n: u32| n, n)).collect();
        for (n, future) in futures.into_iter().enumerate() {
            let outcome = future.outcome();
            assert_eq!(outcome.result.unwrap(), n as u32);
            assert_eq!(outcome.report.attempts, 1);
        }
        assert_eq!(pool.stats().finished, 50);
        // The other workers can be done with all of them before the death of the one is seen.
        wait_until("the bad start is counted", || pool.stats().deaths == 1);
    });
}

/// Goal: `warm_up` is not left waiting for a worker whose start failed, whatever jobs come meanwhile.
#[test]
fn a_warm_up_gets_over_one_bad_start() {
    test(|| {
        let dir = TempDir::new();
        let file = dir.path().join("flag").to_str().unwrap().to_owned();
        let pool = builder().initializer(die_once, file).build().unwrap();
        let future = pool.submit(|n: u32| n, 1);
        pool.warm_up().unwrap();
        assert_eq!(pool.stats().idle + pool.stats().running, WORKERS);
        assert_eq!(future.result().unwrap(), 1);
    });
}
