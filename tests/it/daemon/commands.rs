//! Commands through `procpool submit` and its kin.

use nix::sys::signal::Signal;

use super::fixture::Home;
use crate::support::{Meeting, test};

const GUEST: &str = env!("CARGO_BIN_EXE_guest");

/// Goal: `submit --wait` is as good as running the command oneself.
#[test]
fn a_command_ends_as_if_it_had_been_run_here() {
    test(|| {
        let home = Home::new("");
        let daemon = home.start();
        let run = |script: &str| home.run(&["submit", "--wait", "--", "sh", "-c", script]);
        let good = run("echo out; echo err >&2; pwd");
        let here = std::env::current_dir().unwrap();
        assert_eq!((good.code, good.err.as_str()), (0, "err\n"));
        assert_eq!(good.out, format!("out\n{}\n", here.display()));
        let bad = run("echo out; exit 7");
        assert_eq!((bad.code, bad.out.as_str()), (7, "out\n"));
        assert_eq!(bad.err, "procpool: job 2: the command failed: exit code 7\n");
        assert_eq!(run("kill -SEGV $$").code, 128 + 11);
        let missing = home.run(&["submit", "--wait", "--", "/no/such/program"]);
        assert_eq!(missing.code, 127);
        assert!(missing.err.contains("cannot start `/no/such/program`"), "{missing:?}");
        let words = ["submit", "--wait", "--timeout", "50ms", "--", "sleep", "60"];
        let late = home.run(&words);
        assert_eq!(
            (late.code, home.status(5)["state"].as_str()),
            (1, Some("timed_out")),
            "{late:?}"
        );
        daemon.stop();
    });
}

/// Goal: one job after the other succeeds, or none is run.
#[test]
fn a_job_waits_for_those_before_it() {
    test(|| {
        let home = Home::new("");
        let daemon = home.start();
        let meeting = Meeting::new();
        let first = home.submit(&["--", GUEST, &meeting.path(), "first"]);
        let guest = meeting.next();
        let after = format!("--after={first}");
        let second = home.submit(&[&after, "--", "true"]);
        assert_eq!(home.history(second), ["scheduled"]);
        guest.go();
        home.out(&["wait", &first.to_string(), &second.to_string()]);
        assert_eq!(home.history(second), ["scheduled", "queued", "running", "succeeded"]);
        let bad = home.submit(&["--", "false"]);
        let never = home.submit(&[format!("--after={bad}").as_str(), "--", "true"]);
        assert_eq!(home.run(&["wait", &never.to_string()]).code, 1);
        assert_eq!(home.history(never), ["scheduled", "cancelled"]);
        // Those that have ended before are looked up.
        let late = home.submit(&[&after, "--", "true"]);
        home.out(&["wait", &late.to_string()]);
        let unknown = home.run(&["submit", "--after=99", "--", "true"]);
        assert_eq!((unknown.code, unknown.err.as_str()), (111, "procpool: there is no job 99\n"));
        daemon.stop();
    });
}

/// Goal: a client that does not know whether it was heard asks again, and nothing is run twice.
/// Covers: F-127
#[test]
fn a_key_makes_two_requests_one_job() {
    test(|| {
        let home = Home::new("");
        let daemon = home.start();
        let words = ["--key=nightly", "--", "echo", "once"];
        let first = home.submit(&words);
        assert_eq!(home.submit(&words), first);
        home.out(&["wait", &first.to_string()]);
        assert_eq!(home.submit(&words), first);
        let other = home.run(&["submit", "--key=nightly", "--", "echo", "twice"]);
        assert_eq!(other.code, 111);
        assert_eq!(other.err, format!("procpool: job {first} has that key, and is another job\n"));
        daemon.stop();
    });
}

#[test]
fn a_job_is_cancelled_before_it_starts_and_stopped_after() {
    test(|| {
        let home = Home::new("[queue.default]\nslots = 1\n");
        let daemon = home.start();
        let meeting = Meeting::new();
        let running = home.submit(&["--", GUEST, &meeting.path(), "here"]).to_string();
        let _guest = meeting.next();
        let waiting = home.submit(&["--", "true"]).to_string();
        home.out(&["cancel", &waiting]);
        assert_eq!(home.history(2), ["queued", "cancelled"]);
        let refused = home.run(&["cancel", &running]);
        assert_eq!(refused.code, 1);
        assert!(refused.err.contains("it runs"), "{refused:?}");
        home.out(&["abort", &running]);
        assert_eq!(home.history(1), ["queued", "running", "cancelled"]);
        daemon.stop();
    });
}

/// Covers: F-129
#[test]
fn a_daemon_that_is_told_to_stop_finishes_what_runs() {
    test(|| {
        let home = Home::new("");
        let daemon = home.start();
        let meeting = Meeting::new();
        home.submit(&["--", GUEST, &meeting.path(), "here"]);
        let guest = meeting.next();
        home.out(&["stop"]);
        let refused = home.run(&["submit", "--", "true"]);
        assert_eq!(refused.code, 111, "{refused:?}");
        guest.go();
        let finished = daemon.finish();
        assert_eq!(finished.code, 0, "{finished:?}");
        let daemon = home.start();
        assert_eq!(home.history(1), ["queued", "running", "succeeded"]);
        daemon.stop();
    });
}

/// Covers: F-112
#[test]
fn one_daemon_has_a_state_directory() {
    test(|| {
        let home = Home::new("");
        let daemon = home.start();
        let second = home.spawn(home.command()).finish();
        assert_eq!(second.code, 108);
        assert!(second.err.contains(&format!("(process {})", daemon.pid())), "{second:?}");
        home.out(&["ping"]);
        daemon.stop();
    });
}

#[test]
fn what_cannot_be_done_is_told() {
    test(|| {
        let home = Home::new("[queue.default]\nslots = 0\n");
        let finished = home.spawn(home.command()).finish();
        assert_eq!(finished.code, 102);
        assert!(finished.err.contains("slots = 0"), "{finished:?}");
        assert!(!home.state().exists());
        let nobody = home.run(&["ping"]);
        assert_eq!(nobody.code, 110);
        assert!(nobody.err.contains("no daemon answers"), "{nobody:?}");
        let home = Home::new("");
        let daemon = home.start();
        let refused = home.run(&["submit", "--queue=other", "--", "true"]);
        assert_eq!(
            (refused.code, refused.err.as_str()),
            (111, "procpool: there is no queue `other`\n")
        );
        let refused = home.run(&["submit", "--task", "t"]);
        assert!(refused.err.contains("has no worker program"), "{refused:?}");
        assert_eq!(home.run(&["status", "1"]).code, 111);
        daemon.signal(Signal::SIGINT);
        assert_eq!(daemon.finish().code, 0);
    });
}
