//! Limits on the CPU time of jobs.

use std::hint;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};
use procpool::{EndedBy, JobError, Limit, ProcessPool, ThreadPool, Timeout, context};

use crate::support::test;

const MS: Duration = Duration::from_millis(1);

fn timed_out<R: std::fmt::Debug>(result: Result<R, JobError>) -> Timeout {
    match result {
        Err(JobError::TimedOut(timeout)) => timeout,
        other => panic!("not out of time: {other:?}"),
    }
}

fn thread_cpu() -> Duration {
    Duration::from(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap())
}

/// Uses so much CPU time, however long that takes; answers the process.
fn burn(milliseconds: u64) -> u32 {
    let end = thread_cpu() + Duration::from_millis(milliseconds);
    while thread_cpu() < end {
        hint::spin_loop();
    }
    std::process::id()
}

fn burn_for_ever((): ()) {
    burn(u64::MAX);
}

/// Goal: a job that has used up its CPU time is stopped like one whose time is over, and the verdict says
/// which limit it was.
#[test]
fn a_job_that_burns_cpu_time_is_stopped() {
    test(|| {
        let limit = 100 * MS;
        let pool = ProcessPool::builder().workers(1).cpu_timeout(limit).build().unwrap();
        let outcome = pool.submit(burn_for_ever, ()).outcome();
        let timeout = timed_out(outcome.result);
        assert_eq!((timeout.limit, timeout.after), (Limit::Cpu, limit));
        assert_eq!(timeout.ended_by, EndedBy::Term);
        assert!(timeout.to_string().contains("CPU time limit of 100ms"), "{timeout}");
        // One thread cannot use more than the time that passes.
        assert!(outcome.report.ran >= limit, "{:?}", outcome.report);
        pool.submit(burn, 1).result().unwrap();
    });
}

/// Goal: time that passes without being used does not count.
#[test]
fn a_job_that_sleeps_uses_no_cpu_time() {
    test(|| {
        let pool = ProcessPool::builder().workers(1).cpu_timeout(50 * MS).build().unwrap();
        // The sleep is what is tested; a longer one only tests more.
        pool.submit(|()| thread::sleep(300 * MS), ()).result().unwrap();
        assert_eq!(pool.stats().spawned, 1);
    });
}

/// Goal: each job starts from nothing, whatever its worker has used before: in jobs, and in elements of a
/// chunk, which a stopped element costs nothing.
#[test]
fn what_the_worker_used_before_does_not_count() {
    test(|| {
        let pool = ProcessPool::builder().workers(1).cpu_timeout(300 * MS).build().unwrap();
        let futures: Vec<_> = (0..6).map(|_| pool.submit(burn, 100)).collect();
        for future in futures {
            future.result().unwrap();
        }
        assert_eq!(pool.stats().spawned, 1);
        let results: Vec<_> =
            pool.map(burn, [100, 100, 100, 100, u64::MAX, 100]).chunk_size(6).collect();
        for (index, result) in results.into_iter().enumerate() {
            match index {
                4 => assert_eq!(timed_out(result).limit, Limit::Cpu),
                _ => assert!(result.is_ok(), "{index}: {result:?}"),
            }
        }
    });
}

/// Goal: a job's own limit replaces the pool's, more or less; and either limit can be reached first.
#[test]
fn a_jobs_own_limit_replaces_the_pools() {
    test(|| {
        let pool = ProcessPool::builder().workers(1).cpu_timeout(60 * MS).build().unwrap();
        pool.job(burn, 200).cpu_timeout(Duration::from_secs(60)).submit().result().unwrap();
        let shorter = pool.job(burn_for_ever, ()).cpu_timeout(30 * MS).submit();
        assert_eq!(timed_out(shorter.result()).after, 30 * MS);
        let both = pool.job(burn_for_ever, ()).cpu_timeout(60_000 * MS).timeout(80 * MS).submit();
        assert_eq!(timed_out(both.result()).limit, Limit::Job);
        let both = pool.job(burn_for_ever, ()).timeout(Duration::from_secs(60)).submit();
        assert_eq!(timed_out(both.result()).limit, Limit::Cpu);
    });
}

/// Goal: threads of the job count.
#[test]
fn threads_of_the_job_count() {
    fn idle_beside_busy_threads((): ()) {
        let threads = [(); 2].map(|()| thread::spawn(|| burn_for_ever(())));
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    }
    test(|| {
        let pool = ProcessPool::builder().workers(1).cpu_timeout(200 * MS).build().unwrap();
        let timeout = timed_out(pool.submit(idle_beside_busy_threads, ()).result());
        assert_eq!(timeout.limit, Limit::Cpu);
    });
}

/// Goal: programs that the job has started and waited for count.
/// Method: one after another burns some; none of them reaches the limit.
#[test]
fn programs_that_the_job_waited_for_count() {
    fn run_programs((): ()) {
        let script = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done";
        for _ in 0..10_000 {
            Command::new("sh").args(["-c", script]).status().unwrap();
        }
    }
    test(|| {
        let pool = ProcessPool::builder().workers(1).cpu_timeout(400 * MS).build().unwrap();
        let timeout = timed_out(pool.submit(run_programs, ()).result());
        assert_eq!(timeout.limit, Limit::Cpu);
    });
}

/// Goal: a job that looks at the stop flag can return, and keeps its worker.
#[test]
fn a_job_can_see_that_its_cpu_time_is_used_up() {
    fn burn_until_told((): ()) {
        let context = context().unwrap();
        while !context.is_cancelled() {
            hint::spin_loop();
        }
    }
    test(|| {
        let pool = ProcessPool::builder()
            .workers(1)
            .cpu_timeout(50 * MS)
            .grace(Duration::from_secs(60))
            .build()
            .unwrap();
        let timeout = timed_out(pool.submit(burn_until_told, ()).result());
        assert_eq!((timeout.limit, timeout.ended_by), (Limit::Cpu, EndedBy::Itself));
        pool.submit(burn, 1).result().unwrap();
        assert_eq!((pool.stats().spawned, pool.stats().deaths), (1, 0));
    });
}

/// Goal: on threads the limit ends the future and raises the flag, and a thread that sleeps uses nothing.
#[test]
fn threads_of_a_pool_have_cpu_time_too() {
    fn burn_until_told((): ()) {
        let context = context().unwrap();
        while !context.is_cancelled() {
            hint::spin_loop();
        }
    }
    test(|| {
        let pool = ThreadPool::builder().workers(1).build().unwrap();
        let asleep = pool.job(|()| thread::sleep(100 * MS), ()).cpu_timeout(50 * MS).submit();
        asleep.result().unwrap();
        let begun = Instant::now();
        let timeout =
            timed_out(pool.job(burn_until_told, ()).cpu_timeout(50 * MS).submit().result());
        assert_eq!((timeout.limit, timeout.after), (Limit::Cpu, 50 * MS));
        assert!(begun.elapsed() >= 50 * MS);
        pool.submit(burn, 1).result().unwrap();
    });
}
