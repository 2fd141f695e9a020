//! Pools whose workers are stopped in their tracks for a while.

use std::process::{self, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use procpool::{
    Isolation, JobError, ProcessPool, Shutdown, StartMethod, Status, Until, WorkerState, context,
    wait,
};

use crate::support::{Guest, Meeting, describe, meet, say, test, wait_until};

const METHODS: [StartMethod; 2] = [StartMethod::Spawn, StartMethod::ForkServer];
/// The time limit of jobs that are paused for longer.
const LIMIT: Duration = Duration::from_millis(400);

/// Lets more time pass than the limit allows. With less the test would see nothing; it cannot fail of it.
fn outlast_the_limit() {
    thread::sleep(LIMIT + LIMIT / 4);
}

fn is_stopped(pid: u32) -> bool {
    describe(pid).contains(") T ")
}

/// A stop takes effect a moment after it was sent.
fn wait_stopped(pid: u32) {
    wait_until("it is stopped", || is_stopped(pid));
}

fn one_worker() -> ProcessPool {
    ProcessPool::builder().workers(1).grace(Duration::from_millis(200)).build().unwrap()
}

/// A job that says its process id and waits.
fn stay(path: String) {
    meet(&path, &process::id().to_string());
}

fn pid(guest: &Guest) -> u32 {
    guest.word.parse().unwrap()
}

/// Goal: a pause stops a worker with everything below it, in groups and sessions of their own too, and what it has
/// stopped goes on afterwards; what the job had stopped itself does not.
#[test]
fn a_pause_stops_the_whole_tree() {
    test(|| {
        let meeting = Meeting::new();
        let pool = one_worker();
        let grow = |path: String| {
            let sleeper = |command: &mut Command| {
                #[expect(clippy::disallowed_methods, reason = "a job's child is not a worker")]
                let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
                child
            };
            let mut plain = sleeper(Command::new("sleep").arg("1000"));
            let mut session = sleeper(Command::new("setsid").args(["sleep", "1000"]));
            let mut stopped = sleeper(Command::new("sleep").arg("1000"));
            kill(Pid::from_raw(stopped.id() as i32), Signal::SIGSTOP).unwrap();
            let children = [&plain, &session, &stopped].map(|child| child.id().to_string());
            meet(&path, &format!("{} {}", process::id(), children.join(" ")));
            for child in [&mut plain, &mut session, &mut stopped] {
                child.kill().unwrap();
                child.wait().unwrap();
            }
        };
        let future = pool.submit(grow, meeting.path());
        let guest = meeting.next();
        let pids: Vec<u32> = guest.word.split(' ').map(|pid| pid.parse().unwrap()).collect();
        let [tree @ .., own_stopped] = &pids[..] else { panic!("{pids:?}") };
        wait_stopped(*own_stopped);
        assert!(!tree.iter().any(|pid| is_stopped(*pid)));
        pool.pause();
        tree.iter().for_each(|pid| wait_stopped(*pid));
        pool.resume();
        for pid in tree {
            wait_until("it goes on", || !is_stopped(*pid));
        }
        assert!(is_stopped(*own_stopped));
        guest.go();
        future.result().unwrap();
    });
}

/// Goal: a job's time stands still, and goes on afterwards: no less and no more than it had left.
/// Covers: F-67
#[test]
fn a_paused_job_has_its_time_afterwards() {
    test(|| {
        let meeting = Meeting::new();
        let pool = one_worker();
        let timed = || {
            let future = pool.job(stay, meeting.path()).timeout(LIMIT).submit();
            let guest = meeting.next();
            // Two pauses: what the job is spared adds up.
            for _ in 0..2 {
                pool.pause();
                outlast_the_limit();
                pool.resume();
            }
            (future, guest)
        };
        let (future, guest) = timed();
        guest.go();
        future.result().unwrap();

        let (future, _guest) = timed();
        let outcome = future.outcome();
        assert!(matches!(outcome.result, Err(JobError::TimedOut(_))), "{outcome:?}");
        assert!(outcome.report.ran > 2 * LIMIT, "the pauses count: {:?}", outcome.report);
    });
}

/// Goal: what a pause spares one element of a map is not given to the next.
/// Method: the pause is long beside the limit. An element that had both would end long after it.
#[test]
fn each_element_is_spared_its_own_pauses() {
    const SHORT: Duration = Duration::from_millis(200);
    const PAUSE: Duration = Duration::from_secs(3);
    test(|| {
        let meeting = Meeting::new();
        let pool = ProcessPool::builder().workers(1).job_timeout(SHORT).build().unwrap();
        let path = meeting.path();
        thread::scope(|scope| {
            let outcomes = scope.spawn(|| {
                let paths = [path.clone(), path.clone()];
                pool.map(stay, paths).chunk_size(2).collect::<Vec<_>>()
            });
            let first = meeting.next();
            pool.pause();
            thread::sleep(PAUSE);
            pool.resume();
            first.go();
            let _second = meeting.next();
            let began = Instant::now();
            let outcomes = outcomes.join().unwrap();
            assert!(matches!(outcomes[..], [Ok(()), Err(JobError::TimedOut(_))]), "{outcomes:?}");
            assert!(began.elapsed() < PAUSE, "{:?}", began.elapsed());
        });
    });
}

/// Goal: in a pause jobs are taken, can be cancelled, and are not handed out; afterwards they run.
#[test]
fn nothing_is_handed_out_in_a_pause() {
    test(|| {
        let pool = ProcessPool::builder().workers(2).build().unwrap();
        pool.warm_up().unwrap();
        pool.pause();
        pool.pause();
        let futures: Vec<_> = (0..100u64).map(|n| pool.submit(|n: u64| n + 1, n)).collect();
        let stats = pool.stats();
        assert_eq!((stats.queued, stats.running, stats.idle), (100, 0, 2), "{stats:?}");
        assert!(futures[7].cancel());
        // More time could only make the test stronger.
        let waited = wait(futures, Until::FirstDone, Some(Duration::from_millis(20)));
        assert_eq!(waited.done.len(), 1, "the one that was cancelled");
        pool.resume();
        pool.resume();
        for future in waited.pending {
            future.result().unwrap();
        }
    });
}

/// Goal: no worker is started in a pause, and one that is starting has its time after it.
#[test]
fn a_start_stands_still() {
    test(|| {
        for method in METHODS {
            let meeting = Meeting::new();
            let pool = ProcessPool::builder()
                .workers(2)
                .start_method(method)
                .start_timeout(4 * LIMIT)
                .initializer(stay, meeting.path())
                .build()
                .unwrap();
            let future = pool.submit(|()| 42, ());
            let guest = meeting.next();
            pool.pause();
            wait_stopped(pid(&guest));
            thread::sleep(5 * LIMIT);
            let more: Vec<_> = (0..10).map(|_| pool.submit(|()| 42, ())).collect();
            assert_eq!(pool.workers().len(), 1);
            pool.resume();
            guest.go();
            meeting.next().go();
            for future in more.into_iter().chain([future]) {
                assert_eq!(future.result().unwrap(), 42);
            }
            assert_eq!(pool.stats().deaths, 0);
        }
    });
}

/// Goal: workers are stopped at their birth if they are asked for before a pause and born in it, and pauses of
/// no length change nothing: every job runs once.
#[test]
fn pauses_at_any_moment_cost_no_job() {
    test(|| {
        for method in METHODS {
            for isolation in [Isolation::Reuse, Isolation::FreshProcess] {
                let builder = ProcessPool::builder().workers(2).start_method(method);
                let pool = builder.isolation(isolation).build().unwrap();
                let futures: Vec<_> = (0..60u64).map(|n| pool.submit(|n: u64| n * n, n)).collect();
                for _ in 0..60 {
                    pool.pause();
                    pool.resume();
                }
                for (n, future) in futures.into_iter().enumerate() {
                    assert_eq!(future.result().unwrap(), (n * n) as u64);
                }
                assert_eq!(pool.stats().deaths, 0);
            }
        }
    });
}

/// Goal: a worker that is killed while it is stopped is a death like any other; its job is told, the other's goes on,
/// and its place is filled after the pause.
#[test]
fn a_stopped_worker_can_be_killed() {
    test(|| {
        let meeting = Meeting::new();
        let pool = ProcessPool::builder().workers(2).build().unwrap();
        let futures = [(); 2].map(|()| pool.submit(stay, meeting.path()));
        let guests = [meeting.next(), meeting.next()];
        pool.pause();
        let victim = pid(&guests[0]);
        kill(Pid::from_raw(victim as i32), Signal::SIGKILL).unwrap();
        let waited = wait(futures, Until::FirstDone, None);
        let Some(Err(JobError::Died(death))) = waited.done.into_iter().map(|f| f.result()).next()
        else {
            panic!("it did not die");
        };
        assert_eq!((death.pid, death.status), (victim, Status::Signal(9, false)));
        assert_eq!(pool.workers().len(), 1, "nobody is started");
        pool.resume();
        guests.into_iter().for_each(Guest::go);
        for future in waited.pending {
            future.result().unwrap();
        }
        pool.warm_up().unwrap();
    });
}

/// Goal: a job can be aborted in a pause: one that sees the flag, one that dies of SIGTERM, one that ignores it. The
/// other worker stays stopped.
#[test]
fn a_job_can_be_aborted_in_a_pause() {
    let obey = |path: String| {
        let context = context().unwrap();
        say(&path, &process::id().to_string());
        while !context.is_cancelled() {
            thread::yield_now();
        }
    };
    let ignore = |path: String| {
        let mut signals = nix::sys::signal::SigSet::empty();
        signals.add(Signal::SIGTERM);
        signals.thread_block().unwrap();
        #[expect(unsafe_code, reason = "nix's own call is unsafe")]
        // SAFETY: to ignore a signal runs no code.
        unsafe {
            nix::sys::signal::signal(Signal::SIGTERM, nix::sys::signal::SigHandler::SigIgn)
                .unwrap();
        }
        stay(path);
    };
    test(|| {
        for job in [stay as fn(String), obey, ignore] {
            let meeting = Meeting::new();
            let pool = ProcessPool::builder()
                .workers(2)
                .grace(Duration::from_millis(200))
                .build()
                .unwrap();
            let bystander = pool.submit(stay, meeting.path());
            let guest = meeting.next();
            let future = pool.submit(job, meeting.path());
            let _aborted = meeting.next();
            pool.pause();
            future.abort();
            let error = future.result().unwrap_err();
            assert!(matches!(error, JobError::Cancelled { started: true }), "{error}");
            wait_stopped(pid(&guest));
            pool.resume();
            guest.go();
            bystander.result().unwrap();
        }
    });
}

/// Goal: a paused pool can be ended in each way, by dropping it too, and jobs end as they would without the pause.
#[test]
fn a_paused_pool_ends() {
    test(|| {
        for how in [Shutdown::Drain, Shutdown::CancelPending, Shutdown::Abort] {
            let meeting = Meeting::new();
            let pool = one_worker();
            let running = pool.submit(stay, meeting.path());
            let guest = meeting.next();
            let waiting = pool.submit(|()| (), ());
            pool.pause();
            guest.go();
            match how {
                Shutdown::Drain => drop(pool),
                how => pool.shutdown(how),
            }
            let ended = (running.result().is_ok(), waiting.result().is_ok());
            let expected = match how {
                Shutdown::Drain => (true, true),
                Shutdown::CancelPending => (true, false),
                _ => (false, false),
            };
            assert_eq!(ended, expected, "{how:?}");
        }
    });
}

/// Goal: `pause` and `resume` are harmless on pools without workers, and on pools that have ended.
#[test]
fn a_pause_of_nobody_is_no_error() {
    test(|| {
        let pool = one_worker();
        pool.resume();
        pool.pause();
        assert!(!pool.submit(|()| (), ()).wait_timeout(Duration::from_millis(20)));
        pool.resume();
        pool.shutdown(Shutdown::Drain);
        pool.pause();
        pool.resume();
    });
}

/// Goal: an idle worker neither leaves in a pause nor for the time that it lasts.
#[test]
fn no_idle_worker_leaves_in_a_pause() {
    test(|| {
        let pool = ProcessPool::builder().workers(1).idle_timeout(LIMIT).build().unwrap();
        pool.warm_up().unwrap();
        pool.pause();
        outlast_the_limit();
        let workers = pool.workers();
        assert_eq!((workers.len(), workers[0].state), (1, WorkerState::Idle));
        wait_stopped(workers[0].pid);
        pool.resume();
        // It is there, whatever the next moment brings.
        assert_eq!(pool.submit(process_id, ()).result().unwrap(), workers[0].pid);
        wait_until("it leaves", || pool.workers().is_empty());
    });
}

fn process_id(_: ()) -> u32 {
    process::id()
}
