//! Where inputs come from, and what becomes of each.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use super::{GUEST, TASKS, procpool, start};
use crate::support::{Meeting, TempDir, test, test_within};

/// Goal: inputs come after `:::`, from a file, and from standard input, by name or by default.
#[test]
fn inputs_come_from_three_places() {
    test(|| {
        let dir = TempDir::new();
        let file = dir.path().join("inputs");
        fs::write(&file, "a\nb\nc").unwrap();
        let file = file.to_str().unwrap();
        for (args, input) in [
            (&["run", "-k", "echo", ":::", "a", "b", "c"][..], ""),
            (&["run", "-k", "-a", file, "echo"], ""),
            (&["run", "-k", "echo"], "a\nb\nc\n"),
            (&["run", "-k", "-a", "-", "echo"], "a\nb\nc"),
        ] {
            let ran = procpool(args, input.as_bytes());
            assert_eq!((ran.code, ran.out()), (0, "a\nb\nc\n"), "{args:?}: {ran:#?}");
        }
    });
}

/// Goal: the placeholders stand for what they stand for in GNU parallel, in the command's name too.
#[test]
fn placeholders_are_filled() {
    test(|| {
        let line = "{#}: {} {.} {/} {//} {/.}";
        let ran = procpool(&["run", "-k", "echo", line, ":::", "d/a.txt", "b"], b"");
        assert_eq!(ran.out(), "1: d/a.txt d/a a.txt d a\n2: b b b . b\n");
        let ran = procpool(&["run", "-k", "{}", "hello", ":::", "echo", "printf"], b"");
        assert_eq!(ran.out(), "hello\nhello");
    });
}

/// Goal: `{%}` is the slot: never more than there are, and never two jobs in one at a time.
/// Method: four jobs wait for each other at a meeting, so they run at the same time.
#[test]
fn each_of_the_jobs_at_a_time_has_a_slot_of_its_own() {
    test(|| {
        let meeting = Meeting::new();
        let path = meeting.path();
        let args = ["run", "-j4", GUEST, &path, "slot{%}", ":::", "a", "b", "c", "d"];
        let started = start(&args, Stdio::null());
        let mut guests: Vec<_> = (0..4).map(|_| meeting.next()).collect();
        guests.sort_by(|a, b| a.word.cmp(&b.word));
        for (n, guest) in guests.iter().enumerate() {
            assert!(guest.word.starts_with(&format!("slot{} ", n + 1)), "{}", guest.word);
        }
        guests.into_iter().for_each(|guest| guest.go());
        assert_eq!(started.finish().code, 0);
    });
}

/// Goal: with `--shell` the words are a line for a shell, in which an input is still data.
#[test]
fn a_shell_is_used_if_asked_for() {
    test(|| {
        let line = "echo {} | tr a b; printf '[%s]' {#}";
        let ran = procpool(&["run", "-k", "--shell", line, ":::", "$(touch x) 'a", "-a;b"], b"");
        assert_eq!((ran.code, ran.out()), (0, "$(touch x) 'b\n[1]-b;b\n[2]"), "{ran:#?}");
        let ran = procpool(&["run", "--shell", "exit", ":::", "3"], b"");
        ran.says("procpool: job 1 (input `3`): exit code 3");
    });
}

/// Goal: `--no-run` prints lines that a shell would do the same with, in order, and runs nothing.
#[test]
fn a_dry_run_prints_the_commands() {
    test(|| {
        let inputs = ["a b", "it's", "$HOME", "", "plain"];
        for shell in [&["printf", "[%s]"][..], &["--shell", "printf '[%s]'"]] {
            let dry: Vec<&str> = ["run", "--no-run"]
                .iter()
                .chain(shell)
                .chain(&[":::"])
                .chain(&inputs)
                .copied()
                .collect();
            let dry = procpool(&dry, b"");
            assert_eq!((dry.code, dry.out().lines().count()), (0, 5), "{dry:#?}");
            let output =
                std::process::Command::new("sh").arg("-c").arg(dry.out()).output().unwrap();
            assert_eq!(str::from_utf8(&output.stdout).unwrap(), "[a b][it's][$HOME][][plain]");
        }
        let dir = TempDir::new();
        let made = dir.path().join("made");
        assert_eq!(procpool(&["run", "--no-run", "touch"], made.as_os_str().as_bytes()).code, 0);
        assert!(!made.exists());
        assert_eq!(procpool(&["run", "--no-run", "touch"], b"").code, 103);
    });
}

/// Goal: inputs that end in zero bytes may have lines in them.
#[test]
fn inputs_may_end_in_zero_bytes() {
    test(|| {
        let ran = procpool(&["run", "-k0", "printf", "[%s]"], b"a\nb\0c d\0");
        assert_eq!((ran.code, ran.out()), (0, "[a\nb][c d]"), "{ran:#?}");
    });
}

/// Goal: an input is data: no shell ever sees it, and it is not taken for an option.
#[test]
fn no_shell_sees_an_input() {
    test(|| {
        let inputs = ["$(touch x); `y` *", "-n", "--help", "", " a  b "];
        let args: Vec<&str> =
            ["run", "-k", "printf", "[%s]", "{}", ":::"].into_iter().chain(inputs).collect();
        let ran = procpool(&args, b"");
        assert_eq!(ran.out(), "[$(touch x); `y` *][-n][--help][][ a  b ]");
    });
}

/// Goal: inputs are bytes, not text; messages show what is not text as escapes.
#[test]
fn inputs_need_not_be_utf8() {
    test(|| {
        let input = OsStr::from_bytes(b"\xff\x1b[1m\xc3");
        let words = ["run", "printf", "%s", "{}", ":::"].map(OsString::from);
        let args: Vec<OsString> = words.into_iter().chain([input.into()]).collect();
        assert_eq!(procpool(&args, b"").stdout, input.as_bytes());
        let ran = procpool(&["run", "printf", "%s"], b"\xff\xfe\n");
        assert_eq!(ran.stdout, b"\xff\xfe");
        let ran = procpool(&["run", "false"], b"\xff\x1b[1m\n");
        ran.says("procpool: job 1 (input `\\xff\\u{1b}[1m`): exit code 1");
    });
}

/// Goal: many inputs all run, each once, and `-k` keeps their order.
#[test]
fn ten_thousand_inputs_each_run_once_and_in_order() {
    test_within(Duration::from_secs(180), || {
        let inputs: String = (0..10_000).map(|n| format!("{n}\n")).collect();
        let ran = procpool(&["run", "-k", "echo"], inputs.as_bytes());
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        assert!(ran.out() == inputs, "not the same lines in the same order");
    });
}

/// Goal: memory does not grow with the number of inputs: what cannot be started is not read.
/// Method: one job never ends, and `-k` makes the results of all others wait for it. Inputs are written
/// for as long as they are taken.
#[test]
fn inputs_are_read_only_as_they_are_needed() {
    test(|| {
        const LINES: usize = 500_000;
        // 1,000 results that wait, jobs under way, and two buffers of 64 and 8 KiB with two bytes a line.
        const TAKEN_MAX: usize = 40_000;
        let meeting = Meeting::new();
        let first = format!("\"{}\"", meeting.path());
        let args = ["call", "-k", "-j2", "--worker", TASKS, "worker_tasks::wait_at"];
        let mut started = start(&args, Stdio::piped());
        let mut stdin = started.child.stdin.take().unwrap();
        let written = AtomicUsize::new(0);
        let taken = thread::scope(|scope| {
            scope.spawn(|| {
                for n in 0..LINES {
                    // The first waits at the meeting; the others are not JSON, which is soon said.
                    let line = if n == 0 { &first } else { "x" };
                    if writeln!(stdin, "{line}").is_err() {
                        return;
                    }
                    written.fetch_add(1, Ordering::Relaxed);
                }
            });
            let guest = meeting.next();
            // It has no word for reading no more. Were this too short, the test would only be weaker.
            thread::sleep(Duration::from_secs(2));
            let taken = written.load(Ordering::Relaxed);
            started.signal(nix::sys::signal::Signal::SIGKILL);
            guest.go();
            taken
        });
        let (ran, _left) = started.end();
        assert_eq!(ran.code, 128 + 9);
        assert!(taken < TAKEN_MAX, "{taken} inputs were taken");
    });
}

/// Goal: an input that no argument can hold costs no other, and a huge line no memory.
#[test]
fn an_input_that_is_too_long_fails_alone() {
    test(|| {
        let long = "x".repeat(200_000);
        let ran = procpool(
            &["run", "-k", "sh", "-c", "echo ${#0}"],
            format!("a\n{long}\nbb\n").as_bytes(),
        );
        assert_eq!((ran.code, ran.out()), (1, "1\n2\n"), "{}", ran.stderr);
        ran.complains("procpool: job 2 (input `xxx", "not run: an argument has at most");
    });
}

/// Goal: without any input nothing is run, and that is said.
#[test]
fn no_input_is_an_error_of_its_own() {
    test(|| {
        for args in [&["run", "echo"][..], &["run", "echo", ":::"]] {
            let ran = procpool(args, b"");
            assert_eq!((ran.code, ran.out()), (103, ""), "{ran:#?}");
            ran.says("procpool: there is no input, so there is nothing to do");
        }
    });
}

/// Goal: inputs that cannot be read are said to be so, with the name of the file.
#[test]
fn a_file_of_inputs_that_cannot_be_read_is_named() {
    test(|| {
        let dir = TempDir::new();
        let missing = dir.path().join("missing");
        for file in [missing.to_str().unwrap(), dir.path().to_str().unwrap()] {
            let ran = procpool(&["run", "-a", file, "echo"], b"not this");
            assert_eq!((ran.code, ran.out()), (104, ""), "{ran:#?}");
            ran.complains(&format!("procpool: cannot read `{file}`: "), "directory");
        }
    });
}
