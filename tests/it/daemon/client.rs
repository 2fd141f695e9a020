//! `Daemon`, the executor: what it has beyond the suite that all executors pass.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, mpsc};
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use procpool::{Bytes, Executor, JobError, JobFuture, Limit, ProcessPool, Rejected, Rejection};
use procpool_daemon::Daemon;
use procpool_daemon::job::{Command, CommandEnd, JobId};

use super::fixture::Home;
use crate::support::{Guest, Meeting, meet, test, wait_until};

#[procpool::task]
fn triple(n: u64) -> u64 {
    n * 3
}

#[procpool::task]
fn meet_and_triple((meeting, n): (String, u64)) -> u64 {
    meet(&meeting, "here");
    n * 3
}

/// Dies in its first attempts; tells in which it did not.
#[procpool::task]
fn die_before(attempt: u32) -> u32 {
    let context = procpool::context().unwrap();
    if context.attempt() < attempt {
        std::process::abort();
    }
    context.attempt()
}

#[procpool::task]
fn report_and_meet(meeting: String) {
    let context = procpool::context().unwrap();
    meet(&meeting, "silent");
    context.progress(0.5, "half");
    meet(&meeting, "half");
}

#[procpool::task]
fn burn((): ()) {
    loop {
        std::hint::spin_loop();
    }
}

#[procpool::task]
fn twice(bytes: Bytes) -> Bytes {
    bytes.repeat(2).into()
}

#[procpool::task]
fn sleep((): ()) {
    loop {
        thread::park();
    }
}

fn connect(home: &Home) -> Daemon {
    Daemon::connect_to(home.socket(), "tasks").unwrap()
}

fn hold(daemon: &Daemon, meeting: &Meeting) -> (JobFuture<u64>, Guest) {
    let future = daemon.submit(meet_and_triple, (meeting.path(), 1));
    (future, meeting.next())
}

/// Goal: when the daemon is killed, every future ends, its callbacks run, and nothing hangs; the next daemon has the
/// jobs, whose futures are taken up again.
#[test]
fn a_killed_daemon_ends_every_future() {
    test(|| {
        let home = Home::with_tasks(1);
        let server = home.start();
        let daemon = connect(&home);
        let meeting = Meeting::new();
        let (held, guest) = hold(&daemon, &meeting);
        let futures: Vec<_> = (0..50).map(|n| daemon.submit(triple, n)).collect();
        let ids: Vec<JobId> = futures.iter().map(|future| daemon.id(future).unwrap()).collect();
        let (word, said) = mpsc::channel();
        futures[7].on_done(move |done| word.send(done.error).unwrap());
        server.kill();
        drop(guest);
        for future in futures.into_iter().chain([held]) {
            match future.result() {
                Err(JobError::Broken(error)) => {
                    assert!(error.to_string().contains("was lost"), "{error}");
                }
                other => panic!("{other:?}"),
            }
        }
        assert!(matches!(said.recv().unwrap(), Some(JobError::Broken(_))));
        let late = daemon.submit(triple, 1);
        assert!(daemon.id(&late).is_none());
        assert!(!late.is_running() && !late.cancel());
        late.abort();
        assert!(matches!(late.result(), Err(JobError::Broken(_))));
        assert!(matches!(daemon.future::<u64>(ids[0]).result(), Err(JobError::Broken(_))));
        let server = home.start();
        let daemon = connect(&home);
        for (n, id) in ids.into_iter().enumerate() {
            assert_eq!(daemon.future::<u64>(id).result().unwrap(), n as u64 * 3);
        }
        drop(daemon);
        server.stop();
    });
}

/// Goal: submits that race with the end of the daemon end themselves: none is lost, none hangs.
#[test]
fn submits_race_with_the_end_of_the_daemon() {
    test(|| {
        let home = Home::with_tasks(2);
        let server = home.start();
        let daemon = connect(&home);
        thread::scope(|scope| {
            let submitters: Vec<_> = (0..3)
                .map(|_| {
                    scope.spawn(|| {
                        loop {
                            match daemon.submit(triple, 1).result() {
                                Ok(3) => {}
                                Err(error @ (JobError::Closed | JobError::Broken(_))) => {
                                    return error;
                                }
                                other => panic!("{other:?}"),
                            }
                        }
                    })
                })
                .collect();
            daemon.submit(triple, 1).wait();
            server.signal(Signal::SIGTERM);
            for submitter in submitters {
                submitter.join().unwrap();
            }
        });
        assert_eq!(server.finish().code, 0);
    });
}

/// Goal: while it ends, a daemon refuses jobs as closed, and tells the end of what runs.
#[test]
fn a_daemon_that_is_about_to_end_refuses_jobs() {
    test(|| {
        let home = Home::with_tasks(1);
        let server = home.start();
        let daemon = connect(&home);
        let meeting = Meeting::new();
        let (held, guest) = hold(&daemon, &meeting);
        home.out(&["stop"]);
        assert!(matches!(daemon.submit(triple, 1).result(), Err(JobError::Closed)));
        guest.go();
        assert_eq!(held.result().unwrap(), 3);
        assert_eq!(server.finish().code, 0);
    });
}

/// Goal: what travels by descriptor between a pool and its workers is kept by the daemon as what it is.
#[test]
fn long_bytes_go_there_and_back() {
    test(|| {
        let home = Home::with_tasks(1);
        let server = home.start();
        let daemon = connect(&home);
        let bytes = Bytes::from(vec![7; 2 << 20]);
        let future = daemon.submit(twice, bytes);
        let id = daemon.id(&future).unwrap();
        assert!(future.result().unwrap() == Bytes::from(vec![7; 4 << 20]));
        assert_eq!(daemon.future::<Bytes>(id).result().unwrap().len(), 4 << 20);
        drop(daemon);
        server.stop();
    });
}

/// Goal: beyond the size that is kept the oldest results go, and no more of them than have to.
/// Covers: F-126
#[test]
fn the_oldest_results_go_when_all_are_too_large() {
    test(|| {
        let home = Home::with_tasks(1);
        let config = home.path().join("config.toml");
        let retention = "[retention]\nmib = 2\n";
        fs::write(&config, fs::read_to_string(&config).unwrap() + retention).unwrap();
        let server = home.start();
        let daemon = connect(&home);
        let ids: Vec<JobId> = (0..5)
            .map(|n| {
                // With its argument, a third as long, somewhat less than half of what is kept.
                let future = daemon.submit(twice, Bytes::from(vec![n; 320 << 10]));
                let id = daemon.id(&future).unwrap();
                assert_eq!(future.result().unwrap().len(), 640 << 10);
                id
            })
            .collect();
        let state = |id: JobId| home.status(id.0)["state"].clone();
        wait_until("three have expired", || ids[..3].iter().all(|id| state(*id) == "expired"));
        for id in &ids[3..] {
            assert_eq!(state(*id), "succeeded");
            assert_eq!(daemon.future::<Bytes>(*id).result().unwrap().len(), 640 << 10);
        }
        match daemon.future::<Bytes>(ids[0]).result() {
            Err(error) => assert!(error.to_string().contains("expired"), "{error}"),
            Ok(bytes) => panic!("{} bytes are there", bytes.len()),
        }
        drop(daemon);
        server.stop();
    });
}

/// Goal: a job is taken up by its number, in another connection, as often as one likes; what does not fit is said.
/// Covers: F-126
#[test]
fn a_future_is_taken_up_by_its_number() {
    test(|| {
        let home = Home::with_tasks(1);
        let server = home.start();
        let daemon = connect(&home);
        let meeting = Meeting::new();
        let (held, guest) = hold(&daemon, &meeting);
        let id = daemon.id(&held).unwrap();
        let other = connect(&home);
        assert_eq!(other.id(&held), None, "it is another executor's");
        let again = other.future::<u64>(id);
        assert!(again.is_running() && !again.is_done() && !again.cancel());
        drop(held);
        guest.go();
        assert_eq!(again.result().unwrap(), 3);
        for _ in 0..2 {
            assert_eq!(other.future::<u64>(id).result().unwrap(), 3);
        }
        assert!(matches!(other.future::<Vec<String>>(id).result(), Err(JobError::Decode(_))));
        match other.future::<u64>(JobId(99)).result() {
            Err(JobError::Broken(error)) => {
                assert!(error.to_string().contains("no job 99"), "{error}");
            }
            other => panic!("{other:?}"),
        }
        let words = ["-q", "tasks", "--task", "it::daemon::client::triple", "14"];
        let json = JobId(home.submit(&words));
        match other.future::<u64>(json).result() {
            Err(JobError::Broken(error)) => assert!(error.to_string().contains("JSON"), "{error}"),
            other => panic!("{other:?}"),
        }
        let command = other.command(Command::here(["true"]).unwrap());
        let command = other.id(&command).unwrap();
        let end = other.future::<CommandEnd>(command).result().unwrap();
        assert_eq!(end, CommandEnd::Exit(0));
        let pool = ProcessPool::builder().workers(1).build().unwrap();
        assert_eq!(daemon.id(&pool.submit(triple, 1)), None);
        drop((daemon, other));
        server.stop();
    });
}

/// Goal: a daemon that is full refuses a job with its argument, or has the next submits wait until it has room; a job
/// that waits for room can be cancelled.
#[test]
fn a_full_daemon_lets_submits_wait() {
    test(|| {
        let worker = std::fs::canonicalize("/proc/self/exe").unwrap();
        let home = Home::new(&format!(
            "[limits]\njobs = 2\n[queue.tasks]\nworker = {worker:?}\nslots = 1\n"
        ));
        let server = home.start();
        let daemon = connect(&home);
        let meeting = Meeting::new();
        let (held, guest) = hold(&daemon, &meeting);
        let behind = daemon.try_submit(triple, 2).unwrap();
        match daemon.try_submit(triple, 7) {
            Err(Rejected { arg: 7, reason: Rejection::Full, .. }) => {}
            other => panic!("{other:?}"),
        }
        // It is on its way, and refused; its number is not there, and a cancel finds it here.
        let waits = daemon.submit(triple, 3);
        assert!(!waits.is_done() && !waits.is_running());
        assert!(waits.cancel() && waits.is_cancelled());
        let waits = daemon.submit(triple, 4);
        thread::scope(|scope| {
            let next = scope.spawn(|| daemon.submit(triple, 5).result());
            guest.go();
            assert_eq!(next.join().unwrap().unwrap(), 15);
        });
        assert_eq!(waits.result().unwrap(), 12);
        assert_eq!((held.result().unwrap(), behind.result().unwrap()), (3, 6));
        assert_eq!(home.out(&["status"]).lines().count(), 4, "what was refused was not kept");
        submits_come_to_a_halt(&home, &daemon, &meeting);
        // Lost while a job waits for room.
        let (held, guest) = hold(&daemon, &meeting);
        let _behind = daemon.submit(triple, 1);
        let waits = daemon.submit(triple, 2);
        server.kill();
        drop(guest);
        assert!(matches!(held.result(), Err(JobError::Broken(_))));
        assert!(matches!(waits.result(), Err(JobError::Broken(_))));
    });
}

/// Submits without end, to a daemon that is full.
fn submits_come_to_a_halt(home: &Home, daemon: &Daemon, meeting: &Meeting) {
    const MANY: usize = 20_000;
    let (held, guest) = hold(daemon, meeting);
    let behind = daemon.submit(triple, 2);
    let (futures, over) = (Mutex::new(Vec::new()), AtomicBool::new(false));
    let submitted = || futures.lock().unwrap().len();
    let cancel = || futures.lock().unwrap().iter().all(JobFuture::cancel);
    thread::scope(|scope| {
        let submits = scope.spawn(|| {
            while submitted() < MANY && !over.load(Ordering::Relaxed) {
                let future = daemon.submit(triple, 1);
                futures.lock().unwrap().push(future);
            }
        });
        // Some are on their way before the first is refused; after that none is sent. A question takes the daemon longer.
        wait_until("submits stand still", || {
            let before = submitted();
            home.out(&["status"]);
            before > 0 && submitted() == before
        });
        assert!(submitted() < MANY, "nothing has them wait");
        over.store(true, Ordering::Relaxed);
        // The one that waits goes on when those before it are gone.
        assert!(cancel());
        submits.join().unwrap();
        assert!(cancel());
        guest.go();
    });
    assert_eq!((held.result().unwrap(), behind.result().unwrap()), (3, 6));
}

/// Goal: attempts are counted over the daemon's own retries, in the job and in its report, and a job's options are
/// the daemon's terms.
#[test]
fn a_jobs_options_are_the_daemons_terms() {
    test(|| {
        let home = Home::with_tasks(1);
        let mut server = home.start();
        let daemon = connect(&home);
        let outcome = daemon.job(die_before, 2).retries(3).submit().outcome();
        assert_eq!(outcome.result.unwrap(), 2);
        assert_eq!(outcome.report.attempts, 2);
        assert!(outcome.report.queued >= Duration::from_millis(100), "{:?}", outcome.report);
        assert!(outcome.report.pid.is_some());
        match daemon.job(die_before, 9).submit().result() {
            Err(JobError::Died(death)) => assert_eq!(death.attempt, 1),
            other => panic!("{other:?}"),
        }
        let limit = Duration::from_millis(40);
        match daemon.job(sleep, ()).timeout(limit).submit().result() {
            Err(JobError::TimedOut(timeout)) => {
                assert_eq!((timeout.limit, timeout.after), (Limit::Job, limit));
            }
            other => panic!("{other:?}"),
        }
        match daemon.job(burn, ()).cpu_timeout(limit).submit().result() {
            Err(JobError::TimedOut(timeout)) => assert_eq!(timeout.limit, Limit::Cpu),
            other => panic!("{other:?}"),
        }
        // What it does not say is as its queue is configured.
        let worker = std::fs::canonicalize("/proc/self/exe").unwrap();
        let config = format!(
            "[queue.tasks]\nworker = {worker:?}\nslots = 1\nretries = 3\ncpu_timeout = \"40ms\"\n"
        );
        std::fs::write(home.path().join("config.toml"), config).unwrap();
        server.signal(Signal::SIGHUP);
        server.wait_to_say("holds now");
        assert_eq!(daemon.job(die_before, 2).submit().result().unwrap(), 2);
        match daemon.job(die_before, 2).retries(0).submit().result() {
            Err(JobError::Died(death)) => assert_eq!(death.attempt, 1),
            other => panic!("{other:?}"),
        }
        match daemon.submit(burn, ()).result() {
            Err(JobError::TimedOut(timeout)) => assert_eq!(timeout.limit, Limit::Cpu),
            other => panic!("{other:?}"),
        }
        let named = daemon.job(triple, 1).name("nightly").priority(4).submit();
        let status = home.status(daemon.id(&named).unwrap().0);
        assert_eq!((&status["title"], &status["priority"]), (&"nightly".into(), &4.into()));
        named.wait();
        drop(daemon);
        server.stop();
    });
}

/// Goal: progress is seen while the job runs.
#[test]
fn progress_is_seen_through_the_daemon() {
    test(|| {
        let home = Home::with_tasks(1);
        let server = home.start();
        let daemon = connect(&home);
        let meeting = Meeting::new();
        let future = daemon.submit(report_and_meet, meeting.path());
        let guest = meeting.next();
        assert_eq!(future.progress(), None);
        guest.go();
        let guest = meeting.next();
        let progress = future.progress().unwrap();
        assert_eq!((progress.fraction, progress.message.as_str()), (0.5, "half"));
        guest.go();
        future.result().unwrap();
        drop(daemon);
        server.stop();
    });
}

/// Goal: a callback may ask the daemon whatever it likes: also what waits for an answer.
#[test]
fn a_callback_may_ask_the_daemon() {
    test(|| {
        let home = Home::with_tasks(1);
        let server = home.start();
        let daemon = connect(&home);
        let meeting = Meeting::new();
        let (first, guest) = hold(&daemon, &meeting);
        let second = daemon.submit(meet_and_triple, (meeting.path(), 2));
        let third = daemon.submit(triple, 3);
        let (word, said) = mpsc::channel();
        let same = connect(&home);
        first.on_done(move |_| {
            let id = same.id(&same.submit(triple, 4)).unwrap();
            let value = same.future::<u64>(id);
            assert!(third.cancel());
            third.abort();
            word.send((value, second)).unwrap();
        });
        guest.go();
        let guest = meeting.next();
        let (value, second) = said.recv().unwrap();
        assert!(second.is_running());
        second.abort();
        assert!(matches!(second.result(), Err(JobError::Cancelled { started: true })));
        drop(guest);
        assert_eq!(value.result().unwrap(), 12);
        drop(daemon);
        server.stop();
    });
}
