//! `procpool call` and `procpool tasks`.

use std::fs;

use super::{TASKS, procpool};
use crate::support::{Meeting, TempDir, test};

fn call(task: &str, options: &[&str], lines: &str) -> super::Finished {
    let task = format!("worker_tasks::{task}");
    let args: Vec<&str> = ["call", "--worker", TASKS]
        .into_iter()
        .chain(options.iter().copied())
        .chain([&task[..]])
        .collect();
    procpool(&args, lines.as_bytes())
}

/// Goal: one line of JSON in, one line of JSON out; `-k` keeps the order; blank lines are nothing.
#[test]
fn each_line_is_a_call_and_each_result_a_line() {
    test(|| {
        let lines: String = (0..1000).map(|n| format!("{n}\n")).collect();
        let expected: String = (0..1000).map(|n| format!("{}\n", n * 2)).collect();
        let ran = call("double", &["-k"], &lines);
        assert_eq!((ran.code, ran.out()), (0, &expected[..]), "{ran:#?}");
        let ran = call("greet", &["-k"], "[\"a\",1]\n\n  \n [ \"é\", 2 ] \r\n[\"\",0]");
        let expected = "\"hello a\\n\"\n\"hello é\\nhello é\\n\"\n\"\"\n";
        assert_eq!((ran.code, ran.out()), (0, expected), "{ran:#?}");
    });
}

/// Goal: the lines can stand in a file.
#[test]
fn lines_come_from_a_file_too() {
    test(|| {
        let dir = TempDir::new();
        let file = dir.path().join("lines");
        fs::write(&file, "1\n2\n").unwrap();
        let file = file.to_str().unwrap();
        let args = ["call", "-k", "--worker", TASKS, "worker_tasks::double", file];
        assert_eq!(procpool(&args, b"").out(), "2\n4\n");
        let args = ["call", "--worker", TASKS, "worker_tasks::double", "/no/such/file"];
        let ran = procpool(&args, b"");
        assert_eq!(ran.code, 104);
        ran.complains("procpool: cannot read `/no/such/file`: ", "No such file");
    });
}

/// Goal: a line that cannot be called, for whatever reason, is named with its task; the others go on.
#[test]
fn bad_lines_are_named_and_cost_no_other() {
    test(|| {
        let lines = "1\n2\n3\n4\n5\n6\n{\"n\": 7\n8\n\"nine\"\n-10\n1 1\n12\n";
        let ran = call("double", &["-k"], lines);
        assert_eq!(ran.out(), "2\n4\n6\n8\n10\n12\n16\n24\n", "{ran:#?}");
        assert_eq!(ran.code, 4, "{ran:#?}");
        let task = "task `worker_tasks::double`";
        ran.complains(
            &format!("procpool: line 7: {task} was not called: not JSON: EOF"),
            "at column 7",
        );
        ran.complains(
            &format!("procpool: line 9: the argument does not fit {task}: "),
            "expected u64 at column 6",
        );
        ran.complains(&format!("procpool: line 10: the argument does not fit {task}: "), "`-10`");
        ran.complains(&format!("procpool: line 11: {task} was not called: "), "column 3");
        assert_eq!(ran.stderr.lines().count(), 4, "{ran:#?}");
    });
}

/// Goal: a line that is not even text is named like any other.
#[test]
fn a_line_that_is_not_utf8_is_named() {
    test(|| {
        let args = ["call", "--worker", TASKS, "worker_tasks::length"];
        let ran = procpool(&args, b"\"a\"\n\"\xff\"\n");
        assert_eq!((ran.code, ran.out()), (1, "1\n"), "{ran:#?}");
        ran.complains("procpool: line 2: task `worker_tasks::length`", "utf-8");
    });
}

/// Goal: a crash and a panic cost their own lines, and say what they were.
#[test]
fn crashes_and_panics_cost_their_own_lines() {
    test(|| {
        let lines = "11\n12\n13\n14\n15\n";
        let ran = call("crash_on_13", &["-k"], lines);
        assert_eq!((ran.code, ran.out()), (1, "11\n12\n14\n15\n"), "{ran:#?}");
        let start = "procpool: line 3: the worker (pid ";
        ran.complains(start, "of task `worker_tasks::crash_on_13` died: SIGSEGV while running");

        let ran = call("panic_on_13", &["-k"], lines);
        assert_eq!((ran.code, ran.out()), (1, "11\n12\n14\n15\n"), "{ran:#?}");
        let start = "procpool: line 3: task `worker_tasks::panic_on_13` panicked at ";
        ran.complains(start, "tasks.rs");
        ran.complains(start, ": no 13\\u{1b}[31m here");
    });
}

/// Goal: with `--retries` a task that kills its worker is tried so often, and then given up.
#[test]
fn a_task_that_kills_every_worker_is_given_up() {
    test(|| {
        let ran = call("crash_on_13", &["-k", "--retries", "2"], "12\n13\n14\n");
        assert_eq!((ran.code, ran.out()), (1, "12\n14\n"), "{ran:#?}");
        ran.complains("procpool: line 2: ", "killed 3 workers and is not tried again");
        ran.complains("procpool: line 2: ", "SIGSEGV");
    });
}

/// Goal: an `Err` that a task returns is a value; a value that JSON cannot say is a failure.
#[test]
fn an_err_is_a_value_and_what_is_no_json_a_failure() {
    test(|| {
        let ran = call("half", &["-k"], "4\n5\n");
        let expected = "{\"Ok\":2}\n{\"Err\":\"5 is odd\"}\n";
        assert_eq!((ran.code, ran.out()), (0, expected), "{ran:#?}");

        let ran = call("unspeakable", &["-k"], "0\n1\n0\n");
        assert_eq!((ran.code, ran.out()), (1, "{}\n{}\n"), "{ran:#?}");
        let start =
            "procpool: line 2: the result of task `worker_tasks::unspeakable` does not fit: ";
        ran.complains(start, "key must be a string");
    });
}

/// Goal: a task that the program does not have is said for each line.
#[test]
fn an_unknown_task_fails_every_line() {
    test(|| {
        let ran = call("dubble", &[], "1\n2\n");
        assert_eq!((ran.code, ran.out()), (2, ""), "{ran:#?}");
        for line in [1, 2] {
            ran.says(&format!(
                "procpool: line {line}: the worker program has no task `worker_tasks::dubble`"
            ));
        }
    });
}

/// Goal: a time limit holds for each call.
#[test]
fn a_call_that_takes_too_long_is_stopped() {
    test(|| {
        let meeting = Meeting::new();
        let line = format!("\"{}\"\n", meeting.path());
        let ran = call("wait_at", &["--timeout", "200ms"], &line);
        assert_eq!((ran.code, ran.out()), (1, ""), "{ran:#?}");
        ran.complains("procpool: line 1: task `worker_tasks::wait_at`", "timed out after 200ms");
    });
}

/// Goal: long arguments and results are whole.
#[test]
fn a_line_may_be_long() {
    test(|| {
        let line = format!("\"{}\"\n", "x".repeat(3_000_000));
        assert_eq!(call("length", &[], &line).out(), "3000000\n");
        let ran = call("greet", &[], "[\"x\", 500000]\n");
        assert_eq!(ran.out().len(), 500_000 * "hello x\\n".len() + 3);
    });
}

/// Goal: a program that is no worker program cannot pass what it prints for results, and one that is has the
/// caller's standard output for its jobs.
#[test]
fn only_a_worker_program_writes_to_standard_output() {
    test(|| {
        // It prints the name that it was started by, and its arguments.
        let ran = procpool(&["call", "--worker", "/bin/ls", "a::b"], b"1\n");
        assert_eq!(ran.out(), "");
        let ran = procpool(&["call", "--worker", TASKS, "worker_tasks::chatter"], b"1\n");
        assert_eq!(ran.out(), "said aloud\nnull\n");
    });
}

/// Goal: a program that is no worker program is named, with what is wrong, and every line that was read is
/// accounted for.
#[test]
fn a_program_that_is_no_worker_program_is_named() {
    test(|| {
        let ran = procpool(&["call", "--worker", "/bin/true", "a::b"], b"1\n2\n3\n");
        assert_eq!((ran.code, ran.out()), (106, ""), "{ran:#?}");
        let start = "procpool: `/bin/true` cannot serve as the worker program: ";
        ran.complains(start, "procpool::init()");
        ran.accounts_for(1..=3, |number| format!("line {number}"));
        let ran = procpool(&["tasks", "--worker", "/bin/true"], b"");
        assert_eq!((ran.code, ran.out()), (106, ""), "{ran:#?}");
        ran.complains(start, "procpool::init()");

        for args in
            [&["call", "--worker", "/no/such", "a::b"][..], &["tasks", "--worker", "/no/such"]]
        {
            let ran = procpool(args, b"1\n");
            assert_eq!((ran.code, ran.out()), (127, ""), "{ran:#?}");
            ran.complains("procpool: --worker: cannot execute `/no/such`: ", "No such file");
        }
    });
}

/// Goal: `tasks` lists what can be called, for people and for programs.
#[test]
fn tasks_are_listed() {
    test(|| {
        let ran = procpool(&["tasks", "--worker", TASKS], b"");
        assert_eq!(ran.code, 0, "{ran:#?}");
        let line = ran.out().lines().find(|line| line.starts_with("worker_tasks::half "));
        assert!(line.unwrap().contains("fn(u64) -> Result<u64, String>"), "{line:?}");

        let ran = procpool(&["tasks", "--json", "--worker", TASKS], b"");
        assert_eq!(ran.code, 0, "{ran:#?}");
        let parse = |line| serde_json::from_str::<serde_json::Value>(line).unwrap();
        let tasks: Vec<_> = ran.out().lines().map(parse).collect();
        assert_eq!(tasks.len(), 10);
        let double = tasks.iter().find(|task| task["name"] == "worker_tasks::double").unwrap();
        assert_eq!(double["signature"], "fn(u64) -> u64");
        let fingerprint = double["fingerprint"].as_str().unwrap();
        assert!(u64::from_str_radix(fingerprint, 16).is_ok() && fingerprint.len() == 16);
    });
}
