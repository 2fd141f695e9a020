//! Registered tasks, by JSON from the shell and by `Daemon` from Rust.

use procpool::{Executor, JobError};
use procpool_daemon::Daemon;
use procpool_daemon::job::{Command, CommandEnd};

use super::fixture::Home;
use crate::support::test;

#[procpool::task]
fn double(n: u64) -> u64 {
    n * 2
}

#[procpool::task]
fn refuse_13(n: u64) -> u64 {
    assert!(n != 13, "no {n} here");
    n
}

#[procpool::task]
fn exit_with(code: i32) {
    std::process::exit(code);
}

fn unregistered(n: u64) -> u64 {
    n
}

const DOUBLE: &str = "it::daemon::tasks::double";

#[test]
fn a_task_takes_and_gives_json() {
    test(|| {
        let home = Home::with_tasks(2);
        let daemon = home.start();
        let call = |words: &[&str]| {
            let mut all = vec!["submit", "--wait", "-q", "tasks", "--task"];
            all.extend(words);
            home.run(&all)
        };
        let good = call(&[DOUBLE, "21"]);
        assert_eq!((good.code, good.out.as_str()), (0, "42\n"), "{good:?}");
        let bad = call(&[DOUBLE, "\"x\""]);
        assert_eq!(bad.code, 1);
        assert!(bad.err.contains("does not fit"), "{bad:?}");
        assert!(call(&["it::no_such", "1"]).err.contains("has no such task"));
        assert!(call(&[DOUBLE, "{"]).err.contains("not JSON"));
        daemon.stop();
    });
}

/// Goal: a future of a daemon's tells what one of a pool would.
#[test]
fn a_daemon_is_an_executor() {
    test(|| {
        let home = Home::with_tasks(2);
        let server = home.start();
        let daemon = Daemon::connect_to(home.socket(), "tasks").unwrap();
        let first = daemon.submit(double, 21);
        let id = daemon.id(&first).unwrap();
        assert_eq!(first.result().unwrap(), 42);
        assert_eq!(daemon.future::<u64>(id).result().unwrap(), 42);
        let sum: u64 = daemon.map(double, 1..=100).map(Result::unwrap).sum();
        assert_eq!(sum, 10_100);
        match daemon.submit(refuse_13, 13).result() {
            Err(JobError::Panicked(panic)) => assert_eq!(panic.message, "no 13 here"),
            other => panic!("{other:?}"),
        }
        match daemon.submit(exit_with, 3).result() {
            Err(JobError::Died(death)) => assert_eq!(death.status, procpool::Status::Exit(3)),
            other => panic!("{other:?}"),
        }
        match daemon.job(exit_with, 3).retries(1).submit().result() {
            Err(JobError::Quarantined { attempts, .. }) => assert_eq!(attempts, 2),
            other => panic!("{other:?}"),
        }
        match daemon.submit(unregistered, 1).result() {
            Err(JobError::Unregistered(_)) => {}
            other => panic!("{other:?}"),
        }
        let command = Command::here(["sh", "-c", "exit 9"]).unwrap();
        assert_eq!(daemon.command(command).result().unwrap(), CommandEnd::Exit(9));
        drop(daemon);
        server.stop();
    });
}
