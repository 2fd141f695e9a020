//! What jobs leave behind in their workers.

use std::fs::File;
use std::mem;
use std::process::{self, Command};
use std::sync::mpsc::{self, Sender};
use std::sync::{Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use procpool::{JobError, Leaks, Outcome, ProcessPool, Report, context};

use crate::support::{Meeting, meet, say, test};

fn pool(leaks: Leaks) -> ProcessPool {
    ProcessPool::builder().workers(1).leaks(leaks).build().unwrap()
}

/// Work that is not short: a worker does not look behind it otherwise.
fn work() {
    let end = Instant::now() + Duration::from_millis(1);
    while Instant::now() < end {
        std::hint::spin_loop();
    }
}

fn pid((): ()) -> u32 {
    process::id()
}

fn done<R: std::fmt::Debug>(outcome: Outcome<R>) -> Report {
    outcome.result.unwrap();
    outcome.report
}

fn leave_running_thread((): ()) {
    let (running, runs) = mpsc::channel();
    thread::spawn(move || {
        running.send(()).unwrap();
        loop {
            std::hint::spin_loop();
        }
    });
    runs.recv().unwrap();
    work();
}

#[expect(clippy::disallowed_methods, reason = "a child that the job leaves behind")]
fn leave_process((): ()) {
    let pid = Command::new("sleep").arg("1000").spawn().unwrap().id();
    // It has the name of its program a moment after it has begun to be that.
    while std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap() != "sleep\n" {
        thread::yield_now();
    }
    work();
}

/// Goal: a thread that runs on costs its worker: the next job runs in another process, this one's outcome
/// stays, and its report says what was left.
///
/// Covers: F-17
#[test]
fn a_thread_that_runs_on_costs_its_worker() {
    test(|| {
        let pool = pool(Leaks::Retire);
        let report = done(pool.submit(leave_running_thread, ()).outcome());
        let leaked = report.leaked.unwrap();
        assert_eq!((leaked.threads, leaked.descriptors, leaked.processes.len()), (1, 0, 0));
        assert_ne!(pool.submit(pid, ()).result().unwrap(), report.pid.unwrap());
        assert_eq!(pool.stats().deaths, 0, "a planned end is no death");
    });
}

/// Goal: a process that is left does not hold the outcome up, is named in the report, and ends with its
/// worker.
///
/// Covers: F-18
#[test]
fn a_process_that_is_left_is_named() {
    test(|| {
        let pool = pool(Leaks::Retire);
        let report = done(pool.submit(leave_process, ()).outcome());
        let leaked = report.leaked.unwrap();
        assert_eq!((leaked.threads, leaked.descriptors), (0, 0));
        assert_eq!(leaked.processes.len(), 1, "{leaked:?}");
        assert_eq!(leaked.processes[0].name, "sleep");
        assert_ne!(pool.submit(pid, ()).result().unwrap(), report.pid.unwrap());
        crate::support::wait_gone(leaked.processes[0].pid);
    });
}

/// Goal: descriptors that jobs leave never reach the limit under an innocent job.
///
/// Covers: F-28
#[test]
fn leaked_descriptors_never_reach_the_limit() {
    fn leave_files((): ()) {
        (0..50).for_each(|_| mem::forget(File::open("/dev/null").unwrap()));
        work();
    }
    test(|| {
        let pool = ProcessPool::builder().workers(1).open_files_limit(256).build().unwrap();
        let mut pids = Vec::new();
        for _ in 0..12 {
            let report = done(pool.submit(leave_files, ()).outcome());
            // The worker itself opens one more, to see its host's death, at about the time of its first job.
            let left = report.leaked.unwrap().descriptors;
            assert!((50..=51).contains(&left), "{left}");
            pids.push(report.pid.unwrap());
        }
        pids.dedup();
        assert_eq!(pids.len(), 12);
        assert_eq!((pool.stats().deaths, pool.stats().failed), (0, 0));
    });
}

/// Goal: a few descriptors that a job keeps for the next one are its own affair.
#[test]
fn a_few_kept_descriptors_are_no_leak() {
    fn keep_file((): ()) -> u32 {
        static KEPT: OnceLock<File> = OnceLock::new();
        KEPT.get_or_init(|| File::open("/dev/null").unwrap());
        work();
        process::id()
    }
    test(|| {
        let pool = pool(Leaks::Error);
        let first = pool.submit(keep_file, ()).result().unwrap();
        for _ in 0..5 {
            assert_eq!(pool.submit(keep_file, ()).result().unwrap(), first);
        }
    });
}

/// Has a thread of this process do something, as libraries do with their pools: started when first needed,
/// waiting for more when done.
fn use_runtime((): ()) -> u32 {
    static RUNTIME: OnceLock<Mutex<Sender<Sender<u32>>>> = OnceLock::new();
    let runtime = RUNTIME.get_or_init(|| {
        let (send, receive) = mpsc::channel::<Sender<u32>>();
        thread::spawn(move || {
            receive.iter().for_each(|answer| answer.send(process::id()).unwrap())
        });
        Mutex::new(send)
    });
    let (answer, answered) = mpsc::channel();
    runtime.lock().unwrap().send(answer).unwrap();
    work();
    answered.recv().unwrap()
}

/// Goal: a library that starts its threads with the first job that needs them costs no worker, and the
/// next thread that is left does.
#[test]
fn a_librarys_threads_belong_to_the_worker() {
    fn leave_waiting_thread((): ()) {
        thread::spawn(|| {
            loop {
                thread::park();
            }
        });
        work();
    }
    test(|| {
        let pool = pool(Leaks::Retire);
        let report = done(pool.submit(use_runtime, ()).outcome());
        assert_eq!(report.leaked.unwrap().threads, 1, "it is told, all the same");
        for _ in 0..10 {
            let next = done(pool.submit(use_runtime, ()).outcome());
            assert_eq!((next.pid, next.leaked), (report.pid, None));
        }
        let leak = done(pool.submit(leave_waiting_thread, ()).outcome());
        assert_eq!(leak.leaked.unwrap().threads, 1);
        assert_ne!(pool.submit(pid, ()).result().unwrap(), report.pid.unwrap());
    });
}

/// Goal: threads and processes that a job has waited for are not taken for left ones, though their last
/// traces can be there for a moment.
#[test]
fn what_a_job_waited_for_is_not_left() {
    fn use_and_wait((): ()) -> u32 {
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(work);
            }
        });
        thread::spawn(work).join().unwrap();
        process::id()
    }
    fn run_program((): ()) -> u32 {
        assert!(Command::new("true").status().unwrap().success());
        process::id()
    }
    test(|| {
        let pool = pool(Leaks::Error);
        let first = pool.submit(pid, ()).result().unwrap();
        for _ in 0..40 {
            assert_eq!(pool.submit(use_and_wait, ()).result().unwrap(), first);
        }
        for _ in 0..10 {
            assert_eq!(pool.submit(run_program, ()).result().unwrap(), first);
        }
    });
}

/// Goal: who asks for an error gets one, which names what was left; the worker goes all the same.
#[test]
fn a_leak_can_be_an_error() {
    test(|| {
        let pool = pool(Leaks::Error);
        for (job, what) in
            [(leave_process as fn(()), "(sleep)"), (leave_running_thread, "1 thread")]
        {
            let before = pool.submit(pid, ()).result().unwrap();
            let outcome = pool.submit(job, ()).outcome();
            let Err(error @ JobError::Leaked(_)) = outcome.result else {
                panic!("no error: {:?}", outcome.result);
            };
            let text = error.to_string();
            assert!(
                text.starts_with("left behind in its worker: ") && text.contains(what),
                "{text}"
            );
            assert!(outcome.report.leaked.is_some());
            assert_ne!(pool.submit(pid, ()).result().unwrap(), before);
        }
        assert_eq!((pool.stats().failed, pool.stats().deaths), (2, 0));
    });
}

/// Goal: who does not want to know is not told, and keeps the worker.
#[test]
fn leaks_can_be_ignored() {
    test(|| {
        let pool = pool(Leaks::Ignore);
        for job in [leave_process as fn(()), leave_running_thread] {
            let report = done(pool.submit(job, ()).outcome());
            assert_eq!(report.leaked, None);
            assert_eq!(Some(pool.submit(pid, ()).result().unwrap()), report.pid);
        }
    });
}

/// Goal: what the initializer starts belongs to the worker, by whatever policy.
#[test]
fn what_the_initializer_leaves_belongs_to_the_worker() {
    fn start_all((): ()) {
        leave_process(());
        leave_running_thread(());
        (0..50).for_each(|_| mem::forget(File::open("/dev/null").unwrap()));
    }
    fn work_and_tell((): ()) -> u32 {
        work();
        process::id()
    }
    test(|| {
        let builder = ProcessPool::builder().workers(1).leaks(Leaks::Error);
        let pool = builder.initializer(start_all, ()).build().unwrap();
        let first = pool.submit(work_and_tell, ()).result().unwrap();
        assert_eq!(pool.submit(work_and_tell, ()).result().unwrap(), first);
        assert!(matches!(pool.submit(leave_process, ()).result(), Err(JobError::Leaked(_))));
    });
}

/// Goal: a panic that leaves something stays a panic; its report says what was left, by either policy.
#[test]
fn a_panic_that_leaves_something_stays_a_panic() {
    fn leave_and_panic((): ()) {
        leave_process(());
        panic!("in the middle");
    }
    test(|| {
        for leaks in [Leaks::Retire, Leaks::Error] {
            let pool = pool(leaks);
            let outcome = pool.submit(leave_and_panic, ()).outcome();
            assert!(matches!(outcome.result, Err(JobError::Panicked(_))), "{:?}", outcome.result);
            assert_eq!(outcome.report.leaked.unwrap().processes.len(), 1);
            assert_ne!(Some(pool.submit(pid, ()).result().unwrap()), outcome.report.pid);
        }
    });
}

/// Goal: jobs that wait behind one that leaks run elsewhere, each once.
#[test]
fn jobs_behind_a_leaking_one_run_elsewhere() {
    fn meet_and_leave(path: String) -> u32 {
        meet(&path, "leaking");
        leave_process(());
        process::id()
    }
    fn tell(path: String) -> u32 {
        say(&path, "ran");
        process::id()
    }
    test(|| {
        let pool = pool(Leaks::Retire);
        let (meeting, ran) = (Meeting::new(), Meeting::new());
        pool.submit(pid, ()).result().unwrap();
        let leaking = pool.submit(meet_and_leave, meeting.path());
        let guest = meeting.next();
        let behind: Vec<_> = (0..50).map(|_| pool.submit(tell, ran.path())).collect();
        guest.go();
        let dirty = leaking.result().unwrap();
        for _ in 0..50 {
            assert_eq!(ran.next().word, "ran");
        }
        for future in behind {
            let outcome = future.outcome();
            assert_ne!(outcome.result.unwrap(), dirty);
            assert_eq!(outcome.report.attempts, 1);
        }
        assert_eq!(pool.stats().spawned, 2);
    });
}

/// Goal: in a chunk of a map the worker stays for the chunk, and leaves after it.
#[test]
fn a_leak_in_a_chunk_costs_the_worker_after_it() {
    fn leave_at_three(n: u32) -> u32 {
        if n == 3 {
            leave_process(());
        }
        process::id()
    }
    test(|| {
        let pool = pool(Leaks::Retire);
        let pids: Vec<_> =
            pool.map(leave_at_three, 0..20).chunk_size(10).map(Result::unwrap).collect();
        assert!(pids[..10].iter().all(|pid| *pid == pids[0]), "{pids:?}");
        assert!(pids[10..].iter().all(|pid| *pid == pids[10]), "{pids:?}");
        assert_ne!(pids[0], pids[10]);
    });
}

/// Goal: a long result, which travels otherwise, and a job that was asked to stop can leak like any other.
#[test]
fn a_long_result_and_a_stopped_job_can_leak_too() {
    fn leave_and_return(len: usize) -> Vec<u8> {
        leave_process(());
        vec![7; len]
    }
    fn leave_when_asked(path: String) {
        let context = context().unwrap();
        meet(&path, "running");
        while !context.is_cancelled() {
            thread::yield_now();
        }
        leave_process(());
    }
    test(|| {
        let builder = ProcessPool::builder().workers(1).grace(Duration::from_secs(60));
        let pool = builder.build().unwrap();
        let outcome = pool.submit(leave_and_return, 1 << 20).outcome();
        assert_eq!(outcome.result.unwrap().len(), 1 << 20);
        assert_eq!(outcome.report.leaked.unwrap().processes.len(), 1);
        assert_ne!(Some(pool.submit(pid, ()).result().unwrap()), outcome.report.pid);

        let meeting = Meeting::new();
        let future = pool.submit(leave_when_asked, meeting.path());
        meeting.next().go();
        future.abort();
        let outcome = future.outcome();
        assert!(matches!(outcome.result, Err(JobError::Cancelled { started: true })));
        let next = pool.submit(pid, ());
        assert!(next.wait_timeout(Duration::from_secs(20)), "{:?}", pool.workers());
        assert_ne!(Some(next.result().unwrap()), outcome.report.pid);
    });
}
