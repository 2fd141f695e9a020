//! Pools that end in the middle of something, or somewhere odd.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process;
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use procpool::{JobError, ProcessPool, Shutdown, context};

use crate::support::{Meeting, Random, meet, test, wait_until};

fn meet_and_spin(path: String) {
    meet(&path, "spinning");
    loop {
        std::hint::spin_loop();
    }
}

fn exit(_: ()) {
    process::exit(0);
}

fn abort(_: ()) {
    process::abort();
}

/// Goal: workers belong to the pool, not to the thread that made it: the parent-death signal follows the
/// thread that spawned.
/// Covers: F-62
#[test]
fn a_pool_outlives_the_thread_that_made_it() {
    test(|| {
        let made = thread::spawn(|| {
            let pool = ProcessPool::builder().workers(2).build().unwrap();
            pool.warm_up().unwrap();
            (pool, nix::unistd::gettid())
        });
        let (pool, maker) = made.join().unwrap();
        // A join returns a moment before the thread is gone, and with it what hangs on it.
        let maker = format!("/proc/self/task/{maker}");
        wait_until("its maker is gone", || !Path::new(&maker).exists());
        let meeting = Meeting::new();
        let pids = || pool.workers().into_iter().map(|worker| worker.pid).collect::<Vec<_>>();
        let before = pids();
        let future = pool.submit(|path: String| meet(&path, "here"), meeting.path());
        meeting.next().go();
        future.result().unwrap();
        assert_eq!(pids(), before);
        assert_eq!(pool.stats().deaths, 0);
    });
}

/// Goal: a panic does not wait for jobs that may take for ever: they are stopped, and say so.
#[test]
fn a_pool_dropped_while_unwinding_stops_its_jobs() {
    test(|| {
        let meeting = Meeting::new();
        let mut futures = Vec::new();
        let result = catch_unwind(AssertUnwindSafe(|| {
            let pool = ProcessPool::builder()
                .workers(1)
                .grace(Duration::from_millis(100))
                .build()
                .unwrap();
            futures.push(pool.submit(meet_and_spin, meeting.path()));
            meeting.next().go();
            futures.push(pool.submit(meet_and_spin, meeting.path()));
            std::panic::resume_unwind(Box::new("unwinding"));
        }));
        assert!(result.is_err());
        let ends: Vec<_> = futures.into_iter().map(|future| future.result()).collect();
        assert!(
            matches!(
                ends[..],
                [
                    Err(JobError::Cancelled { started: true }),
                    Err(JobError::Cancelled { started: false })
                ]
            ),
            "{ends:?}"
        );
    });
}

/// Goal: a callback may end the pool whose thread it runs on, in any way, and the other jobs end as that says.
/// Covers: F-64, F-76
#[test]
fn a_pool_can_be_ended_in_a_callback() {
    #[derive(Clone, Copy)]
    enum End {
        Drop,
        Shutdown(Shutdown),
    }
    test(|| {
        let ends = [
            End::Drop,
            End::Shutdown(Shutdown::Drain),
            End::Shutdown(Shutdown::CancelPending),
            End::Shutdown(Shutdown::Abort),
        ];
        for end in ends {
            let meeting = Meeting::new();
            let pool = ProcessPool::builder().workers(1).build().unwrap();
            let first = pool.submit(|path: String| meet(&path, "first"), meeting.path());
            let guest = meeting.next();
            let others: Vec<_> = (0..20).map(|n| pool.submit(|n: u32| n, n)).collect();
            let pool = Arc::new(Mutex::new(Some(pool)));
            let (said, word) = mpsc::channel();
            first.on_done(move |done| {
                let pool = pool.lock().unwrap().take().unwrap();
                if let End::Shutdown(how) = end {
                    pool.shutdown(how);
                }
                drop(pool);
                said.send(done.error.is_none()).unwrap();
            });
            guest.go();
            assert!(word.recv().unwrap());
            first.result().unwrap();
            for (n, future) in others.into_iter().enumerate() {
                match future.result() {
                    Ok(value) => assert_eq!(value, n as u32),
                    Err(JobError::Cancelled { .. }) => {
                        assert!(!matches!(end, End::Drop | End::Shutdown(Shutdown::Drain)));
                    }
                    Err(error) => panic!("{error}"),
                }
            }
        }
    });
}

/// Goal: a drain ends with the last job, however its result was read.
/// Method: pools that are dropped while short jobs are coming back as fast as they can.
#[test]
fn a_drain_ends_with_the_last_job() {
    test(|| {
        let pools = 100;
        for jobs in 1..=pools {
            let pool = ProcessPool::builder().workers(1).build().unwrap();
            let futures: Vec<_> = (0..jobs).map(|n| pool.submit(|n: u32| n, n)).collect();
            drop(pool);
            assert!(futures.iter().all(|future| future.is_done()));
        }
    });
}

/// Goal: a pool that breaks while it is being shut down ends as well.
/// Method: the drain waits for jobs whose worker dies before it is ready, each time.
#[test]
fn a_drain_of_a_pool_that_breaks_ends() {
    test(|| {
        let pool = ProcessPool::builder()
            .workers(1)
            .stderr(procpool::Output::Capture)
            .initializer(abort, ())
            .build()
            .unwrap();
        let future = pool.submit(|n: u32| n, 1);
        pool.shutdown(Shutdown::Drain);
        let result = future.result();
        assert!(matches!(result, Err(JobError::Broken(_))), "{result:?}");
    });
}

fn spin_unless_asked(_: ()) {
    let context = context().unwrap();
    while !context.is_cancelled() {
        std::hint::spin_loop();
    }
}

fn die_sometimes(chance: u64) {
    if u64::from(process::id()) % 4 < chance {
        process::abort();
    }
}

/// Goal: whenever a pool is shut down, in whatever state, it ends soon, and each job has ended with it.
/// Method: pools that spawn, dispatch, crash and recycle their workers, ended after a random short while. The
/// time is not synchronisation: wherever it hits, the same must hold.
#[test]
fn a_shutdown_at_any_moment_ends_everything() {
    test(|| {
        let mut random = Random::new();
        for round in 0..200 {
            let aborts = random.below(3) == 0;
            let mut builder = ProcessPool::builder()
                .workers(1 + random.below(3) as usize)
                .stderr(procpool::Output::Capture)
                .grace(Duration::from_millis(50));
            if random.below(3) == 0 {
                builder = builder.max_jobs_per_worker(1 + random.below(2));
            }
            if random.below(4) == 0 {
                builder = builder.initializer(die_sometimes, random.below(5));
            }
            let pool = builder.build().unwrap();
            let mut futures = Vec::new();
            for _ in 0..random.below(12) {
                futures.push(match random.below(8) {
                    0 => pool.submit(abort, ()),
                    1 => pool.submit(exit, ()),
                    2 if aborts => pool.submit(spin_unless_asked, ()),
                    3 if aborts => pool.submit(|()| thread::sleep(Duration::from_secs(1000)), ()),
                    _ => pool.submit(|()| (), ()),
                });
            }
            // Where in its life the pool is shut down: any moment will do.
            thread::sleep(Duration::from_micros(random.below(6000)));
            let how = match random.below(2) {
                _ if aborts => Shutdown::Abort,
                0 => Shutdown::Drain,
                _ => Shutdown::CancelPending,
            };
            let began = Instant::now();
            pool.shutdown(how);
            // Generous: back-offs of up to 20 ms, and machines that are busy with other things.
            let took = began.elapsed();
            assert!(took < Duration::from_secs(5), "round {round}: {how:?} took {took:?}");
            for future in futures {
                assert!(future.is_done(), "round {round}: {future:?} after {how:?}");
            }
            let stats = pool.stats();
            assert_eq!((stats.workers, stats.running, stats.queued), (0, 0, 0), "round {round}");
            assert_eq!(
                stats.submitted,
                stats.finished + stats.failed + stats.cancelled,
                "round {round}"
            );
        }
    });
}
