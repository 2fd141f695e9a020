//! Workers that end by the thousand: by plan, by accident, while the pool ends too.

use std::fs;
use std::process;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use procpool::{JobError, JobFuture, Output, ProcessPool, Shutdown};

use crate::support::{Random, children, test, test_within};

/// For tests of thousands of processes, on a machine that has others to run.
const LONG: Duration = Duration::from_secs(300);

fn pid((): ()) -> u32 {
    process::id()
}

fn abort((): ()) -> u32 {
    process::abort()
}

fn exit((): ()) -> u32 {
    process::exit(3)
}

fn panic((): ()) -> u32 {
    panic!("as asked")
}

/// Any of the three ways to end a pool.
fn any_shutdown(random: &mut Random) -> Shutdown {
    [Shutdown::Drain, Shutdown::CancelPending, Shutdown::Abort][random.below(3) as usize]
}

/// Every job has ended, in a way that this shutdown allows.
fn check_ended(futures: Vec<JobFuture<u32>>, how: Shutdown) {
    for future in futures {
        assert!(future.is_done(), "a job without an outcome after {how:?}");
        match future.result() {
            Ok(_) | Err(JobError::Died(_) | JobError::Panicked(_)) => {}
            Err(JobError::Cancelled { started: false }) if how != Shutdown::Drain => {}
            Err(JobError::Cancelled { started: true }) if how == Shutdown::Abort => {}
            other => panic!("after {how:?}: {other:?}"),
        }
    }
}

/// Goal: two thousand workers that each run one job come and go, and pools end among them at random
/// moments: nothing hangs, nothing is left (CPython gh-115634).
/// Method: jobs are far more than workers, so that a worker's last job and the request for its successor
/// meet; some pools are shut down in the middle.
#[test]
fn two_thousand_workers_are_recycled() {
    test_within(LONG, || {
        let mut random = Random::new();
        let mut recycled = 0;
        while recycled < 2_000 {
            let pool = ProcessPool::builder().workers(2).max_jobs_per_worker(1).build().unwrap();
            let futures: Vec<_> = (0..150).map(|_| pool.submit(pid, ())).collect();
            let how = any_shutdown(&mut random);
            // The pool ends after a random one of its jobs.
            futures[random.below(150) as usize].wait();
            pool.shutdown(how);
            check_ended(futures, how);
            let stats = pool.stats();
            assert!(
                stats.deaths == 0 || how == Shutdown::Abort,
                "a planned end is no death: {stats:?}"
            );
            assert!(children().is_empty());
            recycled += stats.spawned;
        }
    });
}

/// What this process holds: descriptors, threads, children (zombies too).
fn held() -> (usize, usize, usize) {
    let count = |dir: &str| fs::read_dir(dir).unwrap().count();
    (count("/proc/self/fd"), count("/proc/self/task"), children().len())
}

/// Goal: two thousand crashes in one pool leave nothing behind in the host.
///
/// Covers: F-74
#[test]
fn two_thousand_crashes_leave_nothing_behind() {
    test_within(LONG, || {
        let pool = ProcessPool::builder().workers(2).stderr(Output::Capture).build().unwrap();
        let crash = |times: usize| {
            let futures: Vec<_> = (0..times).map(|_| pool.submit(abort, ())).collect();
            for future in futures {
                let result = future.result();
                assert!(matches!(result, Err(JobError::Died(_))), "{result:?}");
            }
            pool.warm_up().unwrap();
            held()
        };
        let before = crash(10);
        for _ in 0..20 {
            assert_eq!(crash(100), before, "descriptors, threads, children");
        }
        assert_eq!(pool.stats().deaths, 2_010);
        assert_ne!(pool.submit(pid, ()).result().unwrap(), process::id());
    });
}

/// Goal: a pool can be ended at any moment: while workers start, while jobs arrive, while workers die, while
/// they are recycled. Each end is soon, and every job has an outcome.
/// Method: five hundred pools. The delay is not synchronisation: at any moment the same must hold.
///
/// Covers: F-75
#[test]
fn a_pool_can_be_ended_at_any_moment() {
    /// The catalogue says 2 s, of a machine with nothing else to do; a hang would last for ever.
    const SOON: Duration = Duration::from_secs(20);
    test_within(LONG, || {
        let mut random = Random::new();
        for round in 0..500 {
            let builder = ProcessPool::builder().workers(2).stderr(Output::Capture);
            let builder = match random.below(3) {
                0 => builder,
                1 => builder.max_jobs_per_worker(1 + random.below(2)),
                _ => builder.idle_timeout(Duration::from_millis(1)),
            };
            let pool = builder.build().unwrap();
            let jobs = [pid, pid, pid, abort, exit, panic];
            let futures: Vec<_> = (0..random.below(9))
                .map(|_| pool.submit(jobs[random.below(6) as usize], ()))
                .collect();
            thread::sleep(Duration::from_micros(random.below(5_000)));
            let how = any_shutdown(&mut random);
            let begun = Instant::now();
            pool.shutdown(how);
            assert!(begun.elapsed() < SOON, "round {round}, {how:?}: {:?}", begun.elapsed());
            check_ended(futures, how);
            assert!(children().is_empty(), "round {round}, {how:?}");
        }
    });
}

/// CPU time that this process has used.
fn cpu_used() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_SELF).unwrap();
    let duration = |time: nix::sys::time::TimeVal| {
        Duration::from_secs(time.tv_sec() as u64) + Duration::from_micros(time.tv_usec() as u64)
    };
    duration(usage.user_time()) + duration(usage.system_time())
}

/// Goal: workers that die again and again as they start cost the host next to nothing.
/// Method: starts are allowed without end; over two seconds the back-off lets a handful happen. Far less
/// than a hundredth of the time is used, so a tenth is far from it, and a loop without back-off would use
/// all of it.
///
/// Covers: F-44
#[test]
fn a_crash_loop_costs_the_host_little() {
    fn die((): ()) {
        process::abort();
    }
    test(|| {
        let pool = ProcessPool::builder()
            .workers(2)
            .initializer(die, ())
            .restart_limit(u32::MAX, Duration::from_secs(3_600))
            .stderr(Output::Capture)
            .build()
            .unwrap();
        let (begun, before) = (Instant::now(), cpu_used());
        let future = pool.submit(pid, ());
        // What happens in this time is what is measured; more of it measures better.
        assert!(!future.wait_timeout(Duration::from_secs(2)), "{future:?}");
        let (elapsed, used) = (begun.elapsed(), cpu_used() - before);
        let spawned = pool.stats().spawned;
        println!("{spawned} starts in {elapsed:?} cost {used:?}");
        assert!(used < elapsed / 10, "{used:?} in {elapsed:?}");
        assert!((2..=20).contains(&spawned), "{spawned} starts in {elapsed:?}");
        pool.shutdown(Shutdown::Abort);
        assert!(matches!(future.result(), Err(JobError::Cancelled { started: false })));
    });
}
