//! A process for each job: nothing of one is there for the next.

mod children;

use std::collections::{BTreeMap, HashSet};
use std::env;
use std::fs;
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigHandler, SigSet, Signal, kill};
use nix::sys::stat::{Mode, umask};
use nix::unistd::Pid;
use procpool::{
    Isolation, JobError, Output, ProcessPool, ProcessPoolBuilder, Shutdown, StartMethod, context,
};

use crate::support::{Random, children, describe, spare_pids, test, wait_until};

const METHODS: [StartMethod; 2] = [StartMethod::Spawn, StartMethod::ForkServer];

fn builder(method: StartMethod, workers: usize) -> ProcessPoolBuilder {
    ProcessPool::builder()
        .workers(workers)
        .start_method(method)
        .isolation(Isolation::FreshProcess)
        .stderr(Output::Capture)
}

/// Ends the pool, and sees to it that it has reaped every child itself.
fn leaves_nobody(pool: ProcessPool) {
    drop(pool);
    let left: Vec<String> = children().into_iter().map(describe).collect();
    assert!(left.is_empty(), "left behind, or not reaped: {left:?}");
}

static COUNTER: AtomicU64 = AtomicU64::new(0);

/// What a job could find changed.
fn look(_: ()) -> BTreeMap<String, String> {
    let mask = umask(Mode::empty());
    umask(mask);
    let (files, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let status = fs::read_to_string("/proc/thread-self/status").unwrap();
    let signals = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
        line.trim().to_owned()
    };
    let seen = [
        ("static", COUNTER.load(Ordering::Relaxed).to_string()),
        ("variable", format!("{:?}", env::var_os("LEFT_BEHIND"))),
        ("directory", env::current_dir().unwrap().display().to_string()),
        ("umask", format!("{mask:?}")),
        ("open files", files.to_string()),
        ("blocked", signals("SigBlk:")),
        ("ignored", signals("SigIgn:")),
        ("threads", signals("Threads:")),
    ];
    seen.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

/// Changes all of that.
#[expect(unsafe_code, reason = "a job may do what it likes to its process")]
fn change(_: ()) {
    COUNTER.fetch_add(1, Ordering::Relaxed);
    // SAFETY: no other thread of this worker reads its environment.
    unsafe { env::set_var("LEFT_BEHIND", "yes") };
    env::set_current_dir("/").unwrap();
    umask(Mode::from_bits_truncate(0o077));
    setrlimit(Resource::RLIMIT_NOFILE, 100, 100).unwrap();
    let mut blocked = SigSet::empty();
    blocked.add(Signal::SIGUSR1);
    blocked.thread_block().unwrap();
    // SAFETY: to ignore a signal runs no code.
    unsafe { nix::sys::signal::signal(Signal::SIGUSR2, SigHandler::SigIgn) }.unwrap();
    thread::spawn(thread::park);
}

/// Goal: whatever a job does to its process, no other job sees it; in a worker that is used again each is seen.
/// Covers: F-27
#[test]
fn what_a_job_changes_is_never_seen_by_another() {
    test(|| {
        for method in METHODS {
            let pool = builder(method, 1).build().unwrap();
            let before = pool.submit(look, ()).result().unwrap();
            for _ in 0..5 {
                pool.submit(change, ()).result().unwrap();
                assert_eq!(pool.submit(look, ()).result().unwrap(), before);
            }
            leaves_nobody(pool);
        }
        let pool = ProcessPool::builder().workers(1).build().unwrap();
        let before = pool.submit(look, ()).result().unwrap();
        pool.submit(change, ()).result().unwrap();
        let after = pool.submit(look, ()).result().unwrap();
        for (key, value) in before {
            assert_ne!(after[&key], value, "{key}");
        }
    });
}

/// Goal: each job has a process of its own, and each element of a map, whatever the size of chunks.
#[test]
fn no_two_jobs_share_a_process() {
    test(|| {
        for method in METHODS {
            let pool = builder(method, 3).build().unwrap();
            let futures: Vec<_> = (0..100).map(|_| pool.submit(|()| process::id(), ())).collect();
            let mut pids: Vec<u32> = futures.into_iter().map(|f| f.result().unwrap()).collect();
            let mapped = pool.map(|_: u32| process::id(), 0..100).chunk_size(25);
            pids.extend(mapped.map(Result::unwrap));
            // Ids are reused only after some ten thousand others.
            assert_eq!(pids.iter().collect::<HashSet<_>>().len(), 200);
            assert_eq!(pool.stats().deaths, 0, "a planned end is no death");
            leaves_nobody(pool);
        }
    });
}

/// Goal: a map of a thousand elements has its results in order, and its crashes cost their elements.
#[test]
fn a_crash_costs_its_own_element() {
    fn work(n: u64) -> u64 {
        if n % 100 == 7 {
            process::abort();
        }
        n * 2
    }
    test(|| {
        for method in METHODS {
            let pool = builder(method, 2).build().unwrap();
            for (n, result) in (0..1000).zip(pool.map(work, 0..1000)) {
                match result {
                    Ok(value) => assert_eq!(value, n * 2),
                    Err(JobError::Died(_)) => assert_eq!(n % 100, 7, "{n} died"),
                    Err(other) => panic!("{n}: {other:?}"),
                }
            }
            let stats = pool.stats();
            assert_eq!((stats.finished, stats.failed, stats.deaths), (990, 10, 10));
            leaves_nobody(pool);
        }
    });
}

/// Goal: the initializer runs in each process, before its job; the job knows which worker it is.
#[test]
fn an_initializer_runs_in_each_process() {
    fn greet(n: u64) {
        assert_eq!(COUNTER.fetch_add(n, Ordering::Relaxed), 0);
    }
    fn seen(_: ()) -> (u64, usize) {
        (COUNTER.load(Ordering::Relaxed), context().unwrap().worker_index())
    }
    test(|| {
        for method in METHODS {
            let pool = builder(method, 2).initializer(greet, 7).build().unwrap();
            for _ in 0..20 {
                let outcome = pool.submit(seen, ()).outcome();
                let (greeting, index) = outcome.result.unwrap();
                assert_eq!(greeting, 7);
                assert_eq!(outcome.report.worker, Some(index));
                assert!(index < 2);
            }
            leaves_nobody(pool);
        }
    });
}

/// Goal: cancels, aborts, limits, deaths and the end of the pool, at any moment, give each job one outcome and
/// leave nobody.
/// Method: random choices; the times are not synchronisation, since at any moment the same must hold.
#[test]
fn jobs_are_stopped_at_any_moment() {
    fn sleep(micros: u64) {
        thread::sleep(Duration::from_micros(micros));
        if micros % 10 == 3 {
            process::abort();
        }
    }
    test(|| {
        let mut random = Random::new();
        for round in 0..12 {
            let pool = builder(METHODS[round % 2], 3)
                .grace(Duration::from_millis(20))
                .job_timeout(Duration::from_millis(4))
                .build()
                .unwrap();
            let futures: Vec<_> =
                (0..60).map(|_| pool.submit(sleep, random.below(8_000))).collect();
            for future in &futures {
                match random.below(8) {
                    0 => drop(future.cancel()),
                    1 => future.abort(),
                    2 => thread::sleep(Duration::from_micros(random.below(3_000))),
                    _ => {}
                }
            }
            let how = [Shutdown::Drain, Shutdown::CancelPending, Shutdown::Abort];
            pool.shutdown(how[random.below(3) as usize]);
            assert!(futures.iter().all(procpool::JobFuture::is_done));
            let stats = pool.stats();
            assert_eq!(stats.submitted, stats.finished + stats.failed + stats.cancelled);
            leaves_nobody(pool);
        }
    });
}

/// Goal: spares are made once there was a worker, are no workers to callers, and are replaced when they die, which
/// costs no job.
#[test]
fn spares_are_ready_and_nobodys_business() {
    test(|| {
        for method in METHODS {
            let pool = builder(method, 2).build().unwrap();
            assert!(children().is_empty(), "nothing is started before the first job");
            pool.submit(|()| (), ()).result().unwrap();
            // One that forks a child for each job stays.
            let stays = |workers: usize| workers == 0 || method == StartMethod::ForkServer;
            wait_until("two spares, and no worker that has had its job", || {
                spare_pids(&pool).len() == 2 && stays(pool.workers().len())
            });
            let stats = pool.stats();
            assert_eq!((stats.spawned, stats.deaths), (1, 0));
            for _ in 0..3 {
                let before = spare_pids(&pool);
                kill(Pid::from_raw(before[0] as i32), Signal::SIGKILL).unwrap();
                // One that was not ready yet counts as a failed start, after which there are spares again once a
                // start went well: so there are jobs meanwhile.
                wait_until("the dead one is replaced", || {
                    assert_eq!(pool.submit(|n: u32| n, 7).result().unwrap(), 7);
                    let now = spare_pids(&pool);
                    now.len() == 2 && !now.contains(&before[0])
                });
            }
            // One can be taken as it is killed.
            assert!(pool.stats().deaths <= 3);
            assert_eq!(pool.stats().failed, 0, "and costs no job");
            leaves_nobody(pool);
        }
    });
}
