//! What a daemon finds that comes after one that was killed.

use std::process::{self, Stdio};

use nix::sys::signal::Signal;
use procpool_daemon::config::Level;
use procpool_daemon::job::{Command, JobId, JobSpec, State, TaskWork, Terms, Work};
use procpool_daemon::protocol::{Request, Response};
use procpool_daemon::store::Store;
use procpool_daemon::store::sqlite::SqliteStore;

use super::fixture::Home;
use crate::support::{Meeting, test};

const GUEST: &str = env!("CARGO_BIN_EXE_guest");

/// Goal: what was acknowledged is there once, what ran is known to have run, and nothing of the old daemon runs on.
/// Covers: F-114, F-124, F-125
#[test]
fn a_killed_daemon_loses_nothing() {
    test(|| {
        let home = Home::new("[queue.default]\nslots = 2\n");
        let daemon = home.start();
        let meeting = Meeting::new();
        let done = home.submit(&["--", "echo", "kept"]);
        home.out(&["wait", &done.to_string()]);
        let once = home.submit(&["--", GUEST, &meeting.path(), "once"]);
        let _once = meeting.next();
        let again = home.submit(&["--retries=1", "--", GUEST, &meeting.path(), "again"]);
        let _again = meeting.next();
        let client = daemon.client();
        let queued: Vec<u64> = (0..100)
            .map(|_| {
                let work = Work::Command(Command::here(["true"]).unwrap());
                let spec = JobSpec { terms: Terms::new("true"), work };
                match client.request(&Request::Submit(spec)).unwrap() {
                    Response::Submitted(id) => id.0,
                    other => panic!("{other:?}"),
                }
            })
            .collect();
        daemon.kill();
        drop(client);
        let daemon = home.start();
        meeting.next().go();
        let mut words = vec!["wait".to_owned(), again.to_string()];
        words.extend(queued.iter().map(u64::to_string));
        home.out(&words);
        assert_eq!(home.history(once), ["queued", "running", "interrupted"]);
        assert_eq!(home.status(once)["history"][2]["may_have_run"], true);
        let expected = ["queued", "running", "scheduled", "queued", "running", "succeeded"];
        assert_eq!(home.history(again), expected);
        assert_eq!(home.out(&["result", &done.to_string()]), "kept\n");
        let all = home.out(&["status"]);
        assert_eq!(all.lines().count(), 103);
        daemon.stop();
    });
}

/// How often it is tried to find jobs with slots in advance, which they have for a moment only.
const ROUNDS: usize = 20;

/// Goal: of the jobs that had slots when the daemon was killed only the one that a worker had is interrupted. The others,
/// whose slot was not free yet, run once, as if nothing had been, though none may be started twice.
/// Method: short tasks, until slots are given in advance; a command that holds the only one, and others behind it. They
/// have their slots for a moment only, so there are some rounds if that has passed.
/// Covers: F-120, F-125
#[test]
fn a_slot_in_advance_is_no_start() {
    test(|| {
        let home = Home::with_tasks(1);
        for round in 1.. {
            let daemon = home.start();
            let client = daemon.client();
            let submit = || {
                let task = "it::daemon::tasks::double".to_owned();
                let work = TaskWork { task, fingerprint: None, argument: b"21".to_vec() };
                let terms = Terms { queue: "tasks".into(), ..Terms::new("double") };
                let spec = JobSpec { terms, work: Work::Task(work) };
                match client.request(&Request::Submit(spec)).unwrap() {
                    Response::Submitted(id) => id,
                    other => panic!("{other:?}"),
                }
            };
            for id in (0..100).map(|_| submit()).collect::<Vec<_>>() {
                client.request(&Request::Wait(id)).unwrap();
            }
            let meeting = Meeting::new();
            let held = home.submit(&["-q", "tasks", "--", GUEST, &meeting.path(), "held"]);
            let guest = meeting.next();
            let behind: Vec<JobId> = (0..4).map(|_| submit()).collect();
            match client.request(&Request::Records(behind.clone())).unwrap() {
                Response::Records(records) => {
                    let states = records.iter().flatten().map(|record| record.life.state());
                    assert!(
                        states.eq([State::Queued; 4]),
                        "none has begun, and none is said to: {records:?}"
                    );
                }
                other => panic!("{other:?}"),
            }
            daemon.kill();
            drop((client, guest));
            let mut store = SqliteStore::open(&home.state(), Level::Machine).unwrap();
            let in_advance =
                behind.iter().filter(|id| store.state(**id).unwrap() == Some(State::Running(1)));
            let in_advance = in_advance.count();
            drop(store);
            let daemon = home.start();
            for id in &behind {
                home.out(&["wait", &id.to_string()]);
                assert_eq!(home.history(id.0), ["queued", "running", "succeeded"]);
                assert_eq!(home.status(id.0)["attempts"], 1);
            }
            assert_eq!(home.history(held), ["queued", "running", "interrupted"]);
            daemon.stop();
            println!("round {round}: {in_advance} had slots in advance");
            if in_advance > 0 {
                return;
            }
            assert!(round < ROUNDS, "no job was ever given a slot in advance");
        }
    });
}

/// Goal: a daemon that loses one of its threads ends at once, instead of living on and answering nobody. The next one
/// finds the directory free, no worker of it, and what it had kept.
/// Method: the log of the program that runs it panics on the thread of a pool, when that has a worker for the job.
/// Covers: F-134
#[test]
fn a_panic_in_any_thread_is_the_end() {
    test(|| {
        let home = Home::new("");
        let mut command = process::Command::new(env!("CARGO_BIN_EXE_daemon-host"));
        command.arg(home.state()).stdin(Stdio::null()).stdout(Stdio::null());
        let mut daemon = home.spawn(command);
        daemon.wait_to_say("listening at");
        let submitted = home.run(&["submit", "--", "true"]);
        let finished = daemon.finish();
        assert_eq!(finished.code, 128 + Signal::SIGABRT as i32, "{finished:?}");
        assert!(finished.err.contains("a log that cannot write"), "{finished:?}");
        let daemon = home.start();
        // It may have ended before it could answer, but not before it had the job.
        if submitted.code == 0 {
            assert_eq!(submitted.out, "1\n");
        }
        assert_eq!(home.history(1), ["queued", "running", "interrupted"]);
        daemon.stop();
    });
}
