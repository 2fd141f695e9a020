//! Workers off a fork server that have a child for each job, where a cgroup holds them: what is said of a job is said of
//! the child, and nothing of one child is there for the next.

use std::collections::HashSet;
use std::fs::{self, File};
use std::process::{self, Command};
use std::time::Duration;

use nix::libc;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, dup2_stdout, getppid};
use procpool::{Bytes, JobError, Limit, ProcessPool, StartMethod, Status, Tree};

use super::{builder, leaves_nobody};
use crate::support::{Meeting, TempDir, is_alive, meet, say, test, wait_gone, wait_until};

/// A pool of one worker that has a child for each job; `None` where no cgroup can be made.
fn pool() -> Option<ProcessPool> {
    let pool = builder(StartMethod::ForkServer, 1).build().unwrap();
    let tree = pool.containment().tree;
    if tree != Tree::Cgroup {
        eprintln!("skipped: workers are held by {tree:?} here");
        return None;
    }
    Some(pool)
}

fn worker(pool: &ProcessPool) -> u32 {
    pool.workers()[0].pid
}

/// Goal: a worker stays and each job has a child of it, whose id its report has.
#[test]
fn each_job_has_a_child_of_the_same_worker() {
    test(|| {
        let Some(pool) = pool() else { return };
        let who = |()| (process::id(), getppid().as_raw() as u32);
        let futures: Vec<_> = (0..200).map(|_| pool.submit(who, ())).collect();
        let mut pids = HashSet::new();
        for future in futures {
            let outcome = future.outcome();
            let (pid, parent) = outcome.result.unwrap();
            assert_eq!(outcome.report.pid, Some(pid));
            assert_eq!(parent, worker(&pool));
            assert!(pids.insert(pid), "{pid} twice");
        }
        let stats = pool.stats();
        assert_eq!((stats.spawned, stats.deaths, stats.finished), (1, 0, 200));
        leaves_nobody(pool);
    });
}

/// Goal: however a child ends without an outcome, its job's error has its id and its status, the jobs behind it run
/// elsewhere, and none of them twice.
#[test]
fn a_child_that_dies_is_told_as_what_it_was() {
    fn die(how: (i32, String)) {
        let (how, path) = how;
        say(&path, &process::id().to_string());
        match how {
            0 => process::abort(),
            1 => process::exit(0),
            2 => process::exit(1),
            3 => process::exit(42),
            _ => meet(&path, "kill me"),
        }
    }
    test(|| {
        let Some(pool) = pool() else { return };
        let statuses = [
            Status::Signal(6, false),
            Status::Exit(0),
            Status::Exit(1),
            Status::Exit(42),
            Status::Signal(9, false),
        ];
        for (how, status) in (0..).zip(statuses) {
            let meeting = Meeting::new();
            let future = pool.submit(die, (how, meeting.path()));
            let behind: Vec<_> = (0..20u32).map(|n| pool.submit(|n: u32| n, n)).collect();
            let pid: u32 = meeting.next().word.parse().unwrap();
            if status == Status::Signal(9, false) {
                let _guest = meeting.next();
                kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL).unwrap();
            }
            match future.result() {
                Err(JobError::Died(death)) => assert_eq!((death.status, death.pid), (status, pid)),
                other => panic!("{status:?}: {other:?}"),
            }
            for (n, future) in (0..).zip(behind) {
                assert_eq!(future.result().unwrap(), n);
            }
        }
        let stats = pool.stats();
        assert_eq!((stats.deaths, stats.failed, stats.finished), (5, 5, 100));
        leaves_nobody(pool);
    });
}

/// Goal: the death of a worker costs the job of the child that it has then, whatever the child does about it, and the next
/// worker's children live.
#[test]
fn a_worker_that_is_killed_beside_its_child_is_replaced() {
    fn kill_worker(_: ()) {
        kill(getppid(), Signal::SIGKILL).unwrap();
        // Until whoever ends it comes.
        loop {
            std::thread::park();
        }
    }
    test(|| {
        let Some(pool) = pool() else { return };
        for round in 1..=6u64 {
            let died = pool.submit(kill_worker, ()).result();
            assert!(matches!(&died, Err(JobError::Died(_))), "round {round}: {died:?}");
            for n in 0..3u32 {
                assert_eq!(pool.submit(|n: u32| n, n).result().unwrap(), n, "round {round}");
            }
            assert_eq!(pool.stats().deaths, round);
        }
        leaves_nobody(pool);
    });
}

/// Goal: what a job leaves running ends with it, which is no death, and its result counts.
#[test]
fn what_a_job_leaves_running_ends_before_the_next() {
    #[expect(clippy::disallowed_methods, reason = "a job may start what it likes")]
    fn leave(_: ()) -> u32 {
        Command::new("sleep").arg("1000").spawn().unwrap().id()
    }
    test(|| {
        let Some(pool) = pool() else { return };
        for _ in 0..10 {
            let left = pool.submit(leave, ()).result().unwrap();
            pool.submit(|()| (), ()).result().unwrap();
            wait_gone(left);
            assert!(!is_alive(left));
        }
        assert_eq!((pool.stats().deaths, pool.stats().failed), (0, 0));
        leaves_nobody(pool);
    });
}

/// Goal: results and arguments of any size come through, from one child after another: inline, over the channel, and by
/// memory that is passed on.
#[test]
fn results_and_arguments_of_any_size_come_through() {
    test(|| {
        let Some(pool) = pool() else { return };
        for len in [0, 100, 20_000, 300_000, 5_000_000_usize] {
            for round in 0..3u8 {
                let value = vec![round; len];
                let same = pool.submit(|value: Vec<u8>| value, value.clone()).result().unwrap();
                assert!(same == value, "{len} bytes");
                let bytes = pool.submit(|b: Bytes| b, Bytes::from(value.clone())).result().unwrap();
                assert!(bytes[..] == value[..], "{len} bytes");
                let made = pool.submit(|v: Vec<u8>| Bytes::from(v), value.clone()).result();
                assert!(made.unwrap()[..] == value[..], "{len} bytes");
            }
        }
        assert_eq!(pool.stats().spawned, 1);
        leaves_nobody(pool);
    });
}

/// Goal: what a job has printed without ending the line is not lost with its process, whoever has buffered it, and whether
/// threads are left.
#[test]
fn what_waits_in_buffers_is_written() {
    #[expect(unsafe_code, clippy::print_stdout, reason = "a job may print")]
    fn print((path, threads): (String, bool)) {
        dup2_stdout(File::create(path).unwrap()).unwrap();
        // SAFETY: the text ends with a zero and has no directives.
        unsafe { libc::printf(c"from C, ".as_ptr()) };
        // SAFETY: a null pointer stands for all streams. So that the order is ours.
        unsafe { libc::fflush(std::ptr::null_mut()) };
        // SAFETY: as above.
        unsafe { libc::printf(c"twice".as_ptr()) };
        print!("from Rust, ");
        if threads {
            std::thread::spawn(std::thread::park);
        }
    }
    test(|| {
        let Some(pool) = pool() else { return };
        let dir = TempDir::new();
        for threads in [false, true] {
            let path = dir.path().join(format!("{threads}"));
            pool.submit(print, (path.display().to_string(), threads)).result().unwrap();
            wait_until("all is written", || {
                let text = fs::read_to_string(&path).unwrap();
                ["from C, ", "from Rust, ", "twice"].iter().all(|part| text.contains(part))
            });
        }
        leaves_nobody(pool);
    });
}

/// Goal: the CPU time of a job is its child's, from nothing: many short jobs do not add up, and one that computes for ever
/// is stopped.
#[test]
fn cpu_time_is_counted_for_each_child() {
    fn compute(for_ever: bool) {
        let began = std::time::Instant::now();
        while for_ever || began.elapsed() < Duration::from_millis(30) {
            std::hint::spin_loop();
        }
    }
    test(|| {
        let Some(pool) = pool() else { return };
        let limit = Duration::from_millis(150);
        let submit = |for_ever| pool.job(compute, for_ever).cpu_timeout(limit).submit();
        let futures: Vec<_> = (0..12).map(|_| submit(false)).collect();
        futures.into_iter().for_each(|future| future.result().unwrap());
        match submit(true).result() {
            Err(JobError::TimedOut(timeout)) => assert_eq!(timeout.limit, Limit::Cpu),
            other => panic!("{other:?}"),
        }
        pool.submit(compute, false).result().unwrap();
        leaves_nobody(pool);
    });
}
