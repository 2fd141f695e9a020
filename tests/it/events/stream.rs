//! `ProcessPool::events`: which events there are, in which order, and receivers that do not receive.

use std::collections::BTreeMap;
use std::process;
use std::sync::mpsc::{RecvTimeoutError, TryRecvError};
use std::time::Duration;

use procpool::events::{Event, StopCause, StopStage};
use procpool::{JobError, Output, ProcessPool, ProcessPoolBuilder, Shutdown};

use super::{is_death, now, word, words};
use crate::conformance::forks::{assert_good, in_child};
use crate::support::{Meeting, meet, test, wait_until};

fn abort(_: ()) {
    process::abort();
}

fn one_worker() -> ProcessPoolBuilder {
    ProcessPool::builder().workers(1).stderr(Output::Capture)
}

/// Goal: the life of a pool of one worker, a crash in the middle, is told in its order, and no more.
#[test]
fn a_crash_is_told_in_the_order_in_which_it_happens() {
    test(|| {
        let pool = one_worker().build().unwrap();
        let events = pool.events();
        let crash = pool.job(abort, ()).name("crash").submit();
        let job = crash.id();
        let error = crash.result().unwrap_err();
        // What is known of a job's end is there before its future is done.
        let first = now(&events);
        assert_eq!(words(&first)[..4], ["0 starting", "0 ready", "0 Died with job", "job failed"]);
        let Event::JobFailed { job: failed, name, origin, error: told, report, .. } = &first[3]
        else {
            panic!("{first:?}");
        };
        assert_eq!((*failed, name.as_deref(), origin.file()), (job, Some("crash"), file!()));
        assert_eq!((told.to_string(), report.attempts), (error.to_string(), 1));
        assert!(matches!(&first[2], Event::WorkerEnded { job: Some(dead), .. } if *dead == job));
        assert_eq!(pool.submit(|n: u32| n, 1).result().unwrap(), 1);
        pool.shutdown(Shutdown::Drain);
        let rest: Vec<Event> = first.into_iter().skip(4).chain(&events).collect();
        let end = ["0 starting", "0 ready", "stopping Drain", "0 Leave", "0 Retired", "pool ended"];
        assert_eq!(words(&rest), end);
        assert_eq!(events.try_recv().unwrap_err(), TryRecvError::Disconnected);
        assert!(pool.events().next().is_none(), "a late receiver hears nothing");
    });
}

/// Goal: of each worker the events come in the order of its life, however many there are at once.
#[test]
fn each_worker_is_told_of_in_the_order_of_its_life() {
    test(|| {
        let pool = ProcessPool::builder().workers(3).max_jobs_per_worker(5).build().unwrap();
        let events = pool.events();
        let job = |n: u32| {
            if n.is_multiple_of(7) {
                process::abort();
            }
        };
        let failed = (0..100).map(|n| pool.submit(job, n)).collect::<Vec<_>>();
        let failed = failed.into_iter().filter_map(|future| future.result().err()).count();
        drop(pool);
        let (mut lives, mut deaths, mut failures) = (BTreeMap::<u32, String>::new(), 0, 0);
        for event in events {
            deaths += usize::from(is_death(&event));
            failures += usize::from(matches!(event, Event::JobFailed { .. }));
            if let Event::WorkerStarting { pid, .. }
            | Event::WorkerReady { pid, .. }
            | Event::WorkerStopping { pid, .. }
            | Event::WorkerEnded { pid, .. } = event
            {
                let word = word(&event);
                lives.entry(pid).or_default().push_str(word.split_once(' ').unwrap().1);
            }
        }
        assert_eq!((failed, deaths, failures), (15, 15, 15));
        let whole =
            ["startingreadyLeaveRetired", "startingreadyDied with job", "startingKillKilled"];
        for life in lives.values() {
            assert!(whole.contains(&life.as_str()), "{life}");
        }
    });
}

/// Goal: a job that is stopped is told with the reason, then each step of it, then the end.
#[test]
fn a_timeout_is_told_with_each_step_that_it_takes() {
    test(|| {
        let pool = one_worker().grace(Duration::from_millis(50)).build().unwrap();
        pool.warm_up().unwrap();
        let events = pool.events();
        let deaf = |()| {
            #[expect(unsafe_code, reason = "nix cannot know what else a handler would do")]
            // SAFETY: to ignore a signal runs no code.
            unsafe {
                let ignore = nix::sys::signal::SigHandler::SigIgn;
                nix::sys::signal::signal(nix::sys::signal::Signal::SIGTERM, ignore).unwrap();
            }
            loop {
                nix::unistd::pause();
            }
        };
        let limit = Duration::from_millis(100);
        let future = pool.job::<_, ()>(deaf, ()).timeout(limit).submit();
        assert!(matches!(future.result(), Err(JobError::TimedOut(_))));
        let told = now(&events);
        let steps =
            ["job stopping in 0", "0 Terminate", "0 Kill", "0 Killed with job", "job failed"];
        assert_eq!(words(&told)[..5], steps);
        let Event::JobStopping { cause: StopCause::Timeout(told), .. } = told[0] else {
            panic!("{told:?}");
        };
        assert_eq!(told, limit);
    });
}

/// Goal: an abort is told as one, and what it cancels before it started is a job that failed.
#[test]
fn an_abort_is_told_as_such() {
    test(|| {
        let meeting = Meeting::new();
        let pool = one_worker().grace(Duration::ZERO).build().unwrap();
        let running = pool.submit(|path: String| meet(&path, ""), meeting.path());
        let waiting = pool.submit(|n: u32| n, 1);
        let _guest = meeting.next();
        let events = pool.events();
        assert!(waiting.cancel());
        let told = now(&events);
        let [Event::JobFailed { error: JobError::Cancelled { started: false }, .. }] = &told[..]
        else {
            panic!("{told:?}");
        };
        running.abort();
        running.wait();
        let told = now(&events);
        assert!(matches!(told[0], Event::JobStopping { cause: StopCause::Abort, .. }), "{told:?}");
        let last = told.iter().rfind(|event| matches!(event, Event::JobFailed { .. }));
        assert!(last.unwrap().to_string().ends_with("stopped while it ran"), "{told:?}");
    });
}

/// Goal: a worker that breaks the protocol is told with how, before it is killed.
///
/// Covers: F-24
#[test]
fn a_broken_protocol_is_told_with_how() {
    test(|| {
        let pool = one_worker().build().unwrap();
        let events = pool.events();
        let close_all = |()| {
            for fd in 3..100 {
                let _ = nix::unistd::close(fd);
            }
            loop {
                nix::unistd::pause();
            }
        };
        let result = pool.submit::<_, ()>(close_all, ()).result();
        let told = now(&events);
        assert!(matches!(result, Err(JobError::Died(_))), "{result:?}");
        let steps = ["0 fault", "0 Kill", "0 Killed with job", "job failed"];
        assert_eq!(words(&told)[2..6], steps);
        assert!(told[2].to_string().contains("closed its control channel"), "{}", told[2]);
    });
}

/// Goal: retries are told with the attempt to come and the pause, and their end with the number of attempts.
#[test]
fn retries_are_told_one_by_one() {
    test(|| {
        let pool = one_worker().retries(2).build().unwrap();
        let events = pool.events();
        pool.submit(abort, ()).result().unwrap_err();
        let told = now(&events);
        let about_job =
            |event: &&Event| matches!(event, Event::JobRetry { .. } | Event::JobFailed { .. });
        let told: Vec<&Event> = told.iter().filter(about_job).collect();
        let [
            Event::JobRetry { attempt: 2, wait: first, .. },
            Event::JobRetry { attempt: 3, wait: second, .. },
            Event::JobFailed { error: JobError::Quarantined { attempts: 3, .. }, .. },
        ] = told[..]
        else {
            panic!("{told:?}");
        };
        let range = |from, to| Duration::from_millis(from)..=Duration::from_millis(to);
        assert!(range(5, 10).contains(first) && range(10, 20).contains(second), "{told:?}");
    });
}

/// Goal: workers that cannot start are told one by one, each with the cause and the growing pause, and then the
/// pool's end, with the first cause.
///
/// Covers: F-32
#[test]
fn starts_that_fail_are_told_with_cause_and_pause() {
    fn refuse(_: ()) -> Result<(), String> {
        Err("no such model".into())
    }
    test(|| {
        let pool = one_worker().initializer(refuse, ()).build().unwrap();
        let events = pool.events();
        assert!(matches!(pool.submit(|n: u32| n, 1).result(), Err(JobError::Broken(_))));
        let told = now(&events);
        let failed: Vec<_> = told
            .iter()
            .filter_map(|event| match event {
                Event::StartFailed { cause, retry_in, .. } => Some((cause.as_str(), *retry_in)),
                _ => None,
            })
            .collect();
        let [(first, Some(one)), (_, Some(two)), (last, None)] = failed[..] else {
            panic!("{told:?}");
        };
        assert!(first.contains("no such model") && last.contains("no such model"), "{told:?}");
        // The pause runs from the failure, which is an instant before it is told.
        let (one_most, two_most) = (Duration::from_millis(10), Duration::from_millis(20));
        assert!(one <= one_most && two <= two_most && one < two, "{one:?} {two:?}");
        let broken = told.iter().find(|event| matches!(event, Event::PoolBroken { .. })).unwrap();
        assert!(broken.to_string().contains("no such model"), "{broken}");
    });
}

/// Goal: a start that the system refuses is told with what it said, and the pool gets over it.
/// Method: a working directory is fine, but the worker's program is not there until later.
#[test]
fn a_spawn_that_fails_is_told() {
    test(|| {
        let pool =
            ProcessPool::builder().workers(1).worker_program("/no/such/program").build().unwrap();
        let events = pool.events();
        assert!(matches!(pool.call("task", "null").result(), Err(JobError::Broken(_))));
        let told = now(&events);
        let failed = told.iter().filter(|event| matches!(event, Event::StartFailed { .. })).count();
        assert_eq!(failed, 3, "{told:?}");
        assert!(
            !told.iter().any(|event| matches!(event, Event::WorkerStarting { .. })),
            "{told:?}"
        );
        let text = told[0].to_string();
        assert!(text.contains("/no/such/program") || text.contains("No such file"), "{text}");
    });
}

/// Goal: a receiver that takes nothing delays nobody, holds only so many events, and is told how many it missed.
/// Method: as many failing jobs as it holds, and more. The pool works on beside it.
#[test]
fn a_receiver_that_takes_nothing_misses_events_and_delays_nobody() {
    const JOBS: usize = 6000;
    test(|| {
        let pool = ProcessPool::builder().workers(2).build().unwrap();
        pool.warm_up().unwrap();
        let (slow, dropped) = (pool.events(), pool.events());
        drop(dropped);
        let futures: Vec<_> = (0..JOBS)
            .map(|_| pool.submit(|()| std::panic::resume_unwind(Box::new(())), ()))
            .collect();
        for future in futures {
            let result: Result<(), _> = future.result();
            assert!(matches!(result, Err(JobError::Panicked(_))));
        }
        assert_eq!(pool.submit(|n: u32| n, 1).result().unwrap(), 1);
        let told = now(&slow);
        let (last, whole) = told.split_last().unwrap();
        assert_eq!(whole.len(), 4096);
        let Event::Missed(missed) = last else { panic!("{last:?}") };
        // A worker's being ready may be told a moment after `warm_up` has returned.
        let all = JOBS as u64..=JOBS as u64 + 2;
        assert!(all.contains(&(4096 + missed)), "{missed}");
        let soon = Duration::from_millis(1);
        assert_eq!(slow.recv_timeout(soon).unwrap_err(), RecvTimeoutError::Timeout);
        drop(pool);
        assert_eq!(words(&slow.collect::<Vec<_>>()).last().unwrap(), "pool ended");
    });
}

/// Goal: each element of a chunk that ends without a value is told.
#[test]
fn elements_of_a_chunk_are_told_one_by_one() {
    test(|| {
        let pool = one_worker().build().unwrap();
        let events = pool.events();
        let job = |n: u32| {
            if n.is_multiple_of(3) {
                process::abort();
            }
        };
        let failed = pool.map(job, 0..10).chunk_size(10).filter(Result::is_err).count();
        let told = now(&events);
        let deaths = told.iter().filter(|event| is_death(event)).count();
        let failures = told.iter().filter(|event| matches!(event, Event::JobFailed { .. })).count();
        assert_eq!((failed, deaths, failures), (4, 4, 4), "{told:?}");
    });
}

/// Goal: in a forked child of the host a receiver is at its end, whatever its locks are.
#[test]
fn a_receiver_in_a_forked_child_is_at_its_end() {
    test(|| {
        let pool = one_worker().build().unwrap();
        let events = pool.events();
        pool.warm_up().unwrap();
        let child = in_child(|| {
            let inert = events.try_recv().is_err() && events.recv().is_err();
            inert && pool.events().recv().is_err()
        });
        assert_good(child);
        assert!(!now(&events).is_empty(), "the host's is well");
    });
}

/// Goal: an idle worker that somebody kills is told as a death without a job.
#[test]
fn the_death_of_an_idle_worker_is_told_without_a_job() {
    test(|| {
        let pool = one_worker().build().unwrap();
        pool.warm_up().unwrap();
        let events = pool.events();
        let pid = pool.workers()[0].pid as i32;
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL)
            .unwrap();
        let told = events.recv().unwrap();
        assert!(
            matches!(told, Event::WorkerEnded { job: None, .. }) && is_death(&told),
            "{told:?}"
        );
        assert!(told.to_string().contains("SIGKILL"), "{told}");
        wait_until("it is replaced", || pool.stats().idle == 1);
        pool.shutdown(Shutdown::Abort);
        let rest: Vec<Event> = events.collect();
        assert!(rest.iter().any(|event| {
            matches!(event, Event::WorkerStopping { stage: StopStage::Leave, .. })
        }));
    });
}
