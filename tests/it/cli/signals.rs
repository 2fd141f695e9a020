//! SIGINT and SIGTERM, once, twice, three times; SIGKILL.

use std::process::Stdio;

use nix::sys::signal::Signal;

use super::{GUEST, pid, start};
use crate::support::{Meeting, is_alive, test, wait_gone};

/// Goal: after the first signal what runs is finished, and nothing else is started; each input that was
/// read is accounted for.
#[test]
fn the_first_signal_finishes_what_runs() {
    test(|| {
        for signal in [Signal::SIGINT, Signal::SIGTERM] {
            let meeting = Meeting::new();
            let path = meeting.path();
            let args = ["run", "-j1", GUEST, &path, ":::", "a", "b", "c"];
            let mut started = start(&args, Stdio::null());
            let guest = meeting.next();
            started.signal(signal);
            started.wait_to_say("interrupted: nothing new is started");
            assert!(is_alive(pid(&guest)));
            guest.go();
            let ran = started.finish();
            assert_eq!((ran.code, ran.out()), (130, "a\n"), "{ran:#?}");
            ran.accounts_for(2..=3, |number| {
                let input = ["a", "b", "c"][number as usize - 1];
                format!("job {number} (input `{input}`)")
            });
        }
    });
}

/// Goal: if everything was under way already, a signal that finishes what runs changes nothing.
#[test]
fn a_signal_that_cuts_nothing_is_not_told_in_the_exit_code() {
    test(|| {
        let meeting = Meeting::new();
        let path = meeting.path();
        let mut started = start(&["run", GUEST, &path, ":::", "a"], Stdio::null());
        let guest = meeting.next();
        started.signal(Signal::SIGINT);
        started.wait_to_say("interrupted");
        guest.go();
        let ran = started.finish();
        assert_eq!((ran.code, ran.out()), (0, "a\n"), "{ran:#?}");
    });
}

/// Goal: the second signal stops what runs, which has the grace to clean up.
#[test]
fn the_second_signal_stops_what_runs() {
    test(|| {
        let meeting = Meeting::new();
        let script =
            format!("trap 'echo cleaned; exit 0' TERM; '{GUEST}' '{}' $0 & wait", meeting.path());
        let args = ["run", "-j1", "sh", "-c", &script, ":::", "a", "b"];
        let mut started = start(&args, Stdio::null());
        let guest = meeting.next();
        started.signal(Signal::SIGINT);
        started.wait_to_say("interrupted: nothing new is started");
        started.signal(Signal::SIGINT);
        let ran = started.finish();
        assert_eq!((ran.code, ran.out()), (130, "cleaned\n"), "{ran:#?}");
        ran.says("procpool: job 1 (input `a`): the command was stopped");
        ran.accounts_for(2..=2, |_| "job 2 (input `b`)".into());
        wait_gone(pid(&guest));
    });
}

/// Goal: the third signal kills, whatever ignores SIGTERM, and still removes the temporary directory.
#[test]
fn the_third_signal_kills() {
    test(|| {
        let meeting = Meeting::new();
        let script = format!("trap '' TERM; exec '{GUEST}' '{}' $0", meeting.path());
        let args = ["run", "-j1", "sh", "-c", &script, ":::", "a", "b"];
        let mut started = start(&args, Stdio::null());
        let guest = meeting.next();
        started.signal(Signal::SIGINT);
        started.wait_to_say("interrupted: nothing new is started");
        started.signal(Signal::SIGTERM);
        started.wait_to_say("interrupted again");
        assert!(is_alive(pid(&guest)));
        started.signal(Signal::SIGINT);
        let ran = started.finish();
        assert_eq!((ran.code, ran.out()), (130, ""), "{ran:#?}");
        ran.says("procpool: interrupted three times: killed what was running");
        wait_gone(pid(&guest));
    });
}

/// Goal: a signal ends a batch that waits for its next input.
#[test]
fn a_signal_ends_a_batch_that_waits_for_input() {
    test(|| {
        let meeting = Meeting::new();
        let path = meeting.path();
        let mut started = start(&["run", GUEST, &path], Stdio::piped());
        let mut stdin = started.child.stdin.take().unwrap();
        std::io::Write::write_all(&mut stdin, b"a\n").unwrap();
        // Its handlers are there once a job runs.
        meeting.next().go();
        started.signal(Signal::SIGTERM);
        let ran = started.finish();
        drop(stdin);
        assert_eq!((ran.code, ran.out()), (130, "a\n"), "{ran:#?}");
        ran.says("procpool: interrupted: what follows input 1 was not run");
    });
}

/// Goal: when the program is killed, its workers and their commands are gone too.
#[test]
fn nothing_outlives_a_program_that_is_killed() {
    test(|| {
        let meeting = Meeting::new();
        let path = meeting.path();
        let script = format!("trap '' TERM HUP; '{GUEST}' '{path}' $0 & wait; sleep 1000");
        let args = ["run", "-j2", "sh", "-c", &script, ":::", "a", "b"];
        let started = start(&args, Stdio::null());
        let guests = [meeting.next(), meeting.next()];
        started.signal(Signal::SIGKILL);
        let (ran, _left) = started.end();
        assert_eq!(ran.code, 128 + 9);
        guests.iter().for_each(|guest| wait_gone(pid(guest)));
    });
}
