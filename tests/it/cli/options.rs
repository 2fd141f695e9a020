//! What shapes a batch: forms of output, early ends, and the surroundings of jobs.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::{GUEST, TASKS, procpool, start};
use crate::support::{Meeting, TempDir, is_alive, test, wait_gone};

fn objects(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Goal: `--tag` marks each line of both streams with the input.
#[test]
fn lines_are_tagged() {
    test(|| {
        let script = "printf 'x\\n\\ny\\n'; echo e >&2";
        let args = ["run", "-k", "--tag", "sh", "-c", script, ":::", "a", "b", ":::", "1"];
        let ran = procpool(&args, b"");
        let expected = "a 1\tx\na 1\t\na 1\ty\nb 1\tx\nb 1\t\nb 1\ty\n";
        assert_eq!((ran.code, ran.out()), (0, expected), "{ran:#?}");
        ran.says("a 1\te");
        ran.says("b 1\te");
    });
}

/// Goal: with `--line-buffer` lines come while jobs run; they are mixed, but whole.
/// Method: two jobs say a line and wait; both lines are read before either goes on.
#[test]
fn lines_come_as_they_are_written() {
    test(|| {
        let meeting = Meeting::new();
        let script =
            format!("echo begin; printf part; '{GUEST}' '{}' $0; echo err >&2", meeting.path());
        let args = ["run", "-j2", "--line-buffer", "--tag", "sh", "-c", &script, ":::", "a", "b"];
        let mut started = start(&args, Stdio::null());
        let mut out = BufReader::new(started.child.stdout.take().unwrap());
        let mut lines = || {
            let mut lines: Vec<String> = (&mut out).lines().take(2).map(Result::unwrap).collect();
            lines.sort();
            lines
        };
        assert_eq!(lines(), ["a\tbegin", "b\tbegin"]);
        let guests = [meeting.next(), meeting.next()];
        guests.into_iter().for_each(|guest| guest.go());
        assert_eq!(lines(), ["a\tparta", "b\tpartb"]);
        let ran = started.finish();
        assert_eq!(ran.code, 0, "{ran:#?}");
        ran.says("a\terr");
        ran.says("b\terr");
    });
}

/// Goal: lines of many jobs at a time are never torn.
#[test]
fn streamed_lines_stay_whole() {
    test(|| {
        let script =
            "i=0; while [ $i -lt 200 ]; do echo $0$0$0$0$0$0$0$0; echo $0$0 >&2; i=$((i+1)); done";
        let args =
            ["run", "-j4", "--lb", "sh", "-c", script, ":::", "aaaaa", "bbbbb", "ccccc", "ddddd"];
        let ran = procpool(&args, b"");
        assert_eq!(ran.code, 0, "{ran:#?}");
        for (text, len) in [(ran.out(), 40), (&ran.stderr[..], 10)] {
            assert_eq!(text.lines().count(), 800);
            for line in text.lines() {
                assert_eq!(line.len(), len, "{line}");
                assert!(line.bytes().all(|byte| byte == line.as_bytes()[0]), "{line}");
            }
        }
    });
}

/// Goal: a reader that goes away ends the batch, also when workers print themselves.
#[test]
fn a_reader_that_goes_away_ends_streaming_too() {
    test(|| {
        let args = ["run", "-j2", "--line-buffer", "yes", ":::", "a", "b", "c"];
        let mut started = start(&args, Stdio::null());
        let mut out = BufReader::new(started.child.stdout.take().unwrap());
        out.read_line(&mut String::new()).unwrap();
        drop(out);
        let ran = started.finish();
        assert_eq!((ran.code, &ran.stderr[..]), (141, ""), "{ran:#?}");
    });
}

/// Goal: `--results` keeps both streams and the verdict of each job, beside printing them.
#[test]
fn results_are_kept_in_files() {
    test(|| {
        let dir = TempDir::new();
        let results = dir.path().join("new/results");
        let path = results.to_str().unwrap();
        let script = "head -c $0 /dev/zero; echo e$0 >&2; [ $0 != 7 ]";
        let sizes = ["7", "2000000"];
        let args = ["run", "-k", "--results", path, "sh", "-c", script, ":::"];
        let ran = procpool(&[&args[..], &sizes[..]].concat(), b"");
        assert_eq!((ran.code, ran.stdout.len()), (1, 2_000_007), "{}", ran.stderr);
        for (n, size) in sizes.iter().enumerate() {
            let file = |name: &str| fs::read(results.join((n + 1).to_string()).join(name)).unwrap();
            assert_eq!(file("stdout").len().to_string(), *size);
            assert_eq!(file("stderr"), format!("e{size}\n").into_bytes());
            let verdict: Value = serde_json::from_slice(&file("verdict.json")).unwrap();
            assert_eq!(verdict["input"], json!(size));
            assert_eq!(verdict["exit"], json!(i32::from(n == 0)));
        }

        let args =
            ["call", "-k", "--results", path, "--worker", TASKS, "worker_tasks::crash_on_13"];
        let ran = procpool(&args, b"12\n13\n");
        assert_eq!((ran.code, ran.out()), (1, "12\n"), "{ran:#?}");
        let file = |name: &str| fs::read_to_string(results.join(name));
        assert_eq!(file("1/result.json").unwrap(), "12\n");
        assert!(file("2/result.json").is_err());
        assert!(file("2/verdict.json").unwrap().contains("SIGSEGV"));
    });
}

/// Goal: with `--json` each job is an object: what the joblog has, and what it printed, whatever bytes.
#[test]
fn jobs_are_printed_as_json() {
    test(|| {
        let script = "printf \"$0\"; echo e >&2; [ \"$0\" != b ]";
        let args = ["run", "-k", "--json", "sh", "-c", script, ":::", "a\\n", "b", "\\377"];
        let ran = procpool(&args, b"");
        assert_eq!(ran.code, 1, "{ran:#?}");
        let objects_of_run = objects(ran.out());
        let facts: Vec<_> = objects_of_run
            .iter()
            .map(|object| ["seq", "outcome", "stdout", "stderr"].map(|name| object[name].clone()))
            .collect();
        assert_eq!(
            facts,
            [
                [json!(1), json!("succeeded"), json!("a\n"), json!("e\n")],
                [json!(2), json!("failed"), json!("b"), json!("e\n")],
                [json!(3), json!("succeeded"), json!({"hex": "ff"}), json!("e\n")],
            ]
        );
        let ran = procpool(&["run", "--json", "--shell", "head -c2000000 /dev/zero; : {}"], b"x\n");
        let text = objects(ran.out())[0]["stdout"].clone();
        assert_eq!(text.as_str().unwrap().len(), 2_000_000);

        let args = ["call", "-k", "--json", "--worker", TASKS, "worker_tasks::crash_on_13"];
        let ran = procpool(&args, b"12\n13\n");
        let facts: Vec<_> = objects(ran.out())
            .iter()
            .map(|object| ["input", "outcome", "result"].map(|name| object[name].clone()))
            .collect();
        assert_eq!(
            facts,
            [
                [json!("12"), json!("succeeded"), json!(12)],
                [json!("13"), json!("died"), Value::Null],
            ]
        );
    });
}

/// Goal: `--halt now` stops what runs and starts nothing more; `soon` lets what runs end.
/// Method: one job waits at the meeting, the other fails when the first is there.
#[test]
fn a_batch_can_halt_at_a_failure() {
    test(|| {
        for (rule, code, out) in [("now,fail=1", 1, ""), ("soon,fail=1", 1, "waits\n")] {
            let meeting = Meeting::new();
            let path = meeting.path();
            let script = format!(
                "[ $0 = waits ] && exec '{GUEST}' '{path}' $0; '{GUEST}' '{path}' x; exit 3"
            );
            let args = [
                "run", "-j2", "--halt", rule, "sh", "-c", &script, ":::", "waits", "fails", "never",
            ];
            let mut started = start(&args, Stdio::null());
            let mut guests = [meeting.next(), meeting.next()];
            guests.sort_by(|a, b| a.word.cmp(&b.word));
            let [waits, fails] = guests;
            let pid: u32 = waits.word.split(' ').nth(1).unwrap().parse().unwrap();
            fails.go();
            started.wait_to_say("halted: 1 jobs have failed; 1 running jobs are ");
            if rule.starts_with("now") {
                wait_gone(pid);
            } else {
                assert!(is_alive(pid));
                waits.go();
            }
            let ran = started.finish();
            assert_eq!(
                (ran.code, ran.out().replace("x\n", "")),
                (code, out.to_owned()),
                "{ran:#?}"
            );
            ran.accounts_for(3..=3, |_| "job 3 (input `never`)".into());
        }
    });
}

/// Goal: the other rules: successes, which end the batch well, and shares of all.
#[test]
fn a_batch_can_halt_at_successes_and_shares() {
    test(|| {
        let inputs: Vec<u8> = (0..20).flat_map(|n| format!("{n}\n").into_bytes()).collect();
        let run = |rule: &str, script: &str| {
            procpool(&["run", "-kj1", "--halt", rule, "sh", "-c", script], &inputs)
        };
        let ran = run("soon,success=2", "echo $0; [ $0 -ge 3 ]");
        assert_eq!((ran.code, ran.out()), (0, "0\n1\n2\n3\n4\n"), "{ran:#?}");
        let ran = run("now,fail=25%", "echo $0; [ $0 = 2 ]");
        assert_eq!((ran.code, ran.out()), (5, "0\n1\n2\n3\n4\n5\n"), "{ran:#?}");
        let ran = run("soon,done=10%", "echo $0");
        assert_eq!((ran.code, ran.out()), (0, "0\n1\n"), "{ran:#?}");
        let ran = run("now,fail=100%", "exit 1");
        assert_eq!(ran.code, 20, "{ran:#?}");
    });
}

/// Goal: starts keep their distance.
#[test]
fn starts_can_be_delayed() {
    test(|| {
        let start = Instant::now();
        let ran = procpool(&["run", "-kj4", "--delay", "200ms", "echo", ":::", "a", "b", "c"], b"");
        assert_eq!((ran.code, ran.out()), (0, "a\nb\nc\n"), "{ran:#?}");
        assert!(start.elapsed() >= Duration::from_millis(400), "{:?}", start.elapsed());
    });
}

/// Goal: while memory is short nothing starts, that is said, and a signal ends the wait.
#[test]
fn nothing_starts_while_memory_is_short() {
    test(|| {
        assert_eq!(procpool(&["run", "--memfree", "1k", "echo", ":::", "a"], b"").out(), "a\n");
        let args = ["run", "--memfree", "1000T", "echo", ":::", "a", "b"];
        let mut started = start(&args, Stdio::null());
        started.wait_to_say("procpool: waiting for memory: ");
        started.signal(Signal::SIGTERM);
        let ran = started.finish();
        assert_eq!((ran.code, ran.out()), (130, ""), "{ran:#?}");
        ran.accounts_for(1..=2, |number| {
            format!("job {number} (input `{}`)", ["a", "b"][number as usize - 1])
        });
    });
}

/// Goal: jobs run with the environment, directory and nice value that were asked for.
#[test]
fn jobs_have_the_surroundings_that_were_asked_for() {
    test(|| {
        let dir = TempDir::new();
        let dir_path = fs::canonicalize(dir.path()).unwrap();
        let path = dir_path.to_str().unwrap();
        let args = ["run", "--env", "A=b=c", "--env", "B=", "--workdir", path, "--shell"];
        let ran = procpool(
            &[&args[..], &["echo \"$A,${B-unset}\"; pwd; : {}", ":::", "x"]].concat(),
            b"",
        );
        assert_eq!((ran.code, ran.out()), (0, &format!("b=c,\n{path}\n")[..]), "{ran:#?}");

        let nice = |args: &[&str]| -> i32 { procpool(args, b"").out().trim().parse().unwrap() };
        let ours = nice(&["run", "--shell", "nice; : {}", ":::", "x"]);
        let theirs = nice(&["run", "--nice", "3", "--shell", "nice; : {}", ":::", "x"]);
        assert_eq!(theirs, (ours + 3).min(19));

        // A command with a slash is looked for where it will run.
        fs::write(dir.path().join("here"), "#!/bin/sh\necho found\n").unwrap();
        assert_eq!(procpool(&["run", "chmod", "+x", "{}/here", ":::", path], b"").code, 0);
        let ran = procpool(&["run", "--wd", path, "./here", ":::", "x"], b"");
        assert_eq!((ran.code, ran.out()), (0, "found\n"), "{ran:#?}");
    });
}

/// Goal: a limit on CPU time ends what computes and not what waits, and is named.
#[test]
fn cpu_time_can_be_limited() {
    test(|| {
        let script = "[ $0 = spins ] || exec sleep 1.5; while :; do :; done";
        let args =
            ["run", "-j2", "--cpu-timeout", "1s", "sh", "-c", script, ":::", "spins", "waits"];
        let ran = procpool(&args, b"");
        assert_eq!(ran.code, 1, "{ran:#?}");
        ran.says("procpool: job 1 (input `spins`): the command used up its CPU time of 1s");

        let args = ["call", "--cpu-timeout", "300ms", "--worker", TASKS, "worker_tasks::spin"];
        let ran = procpool(&args, b"null\n");
        assert_eq!(ran.code, 1, "{ran:#?}");
        ran.complains(
            "procpool: line 1: task `worker_tasks::spin` used up its CPU time of 3",
            "ms",
        );
    });
}

/// Goal: what needs more memory than it may have fails, by itself.
/// Method: by which means depends on the machine: it is killed, or its allocation fails.
#[test]
fn memory_can_be_limited() {
    test(|| {
        let script = "[ $0 = small ] || exec tail -n1 < /dev/zero; echo $0";
        let inputs = ["small", "large", "small"];
        let args = ["run", "-k", "--memory", "100M", "sh", "-c", script, ":::"];
        let ran = procpool(&[&args[..], &inputs[..]].concat(), b"");
        assert_eq!((ran.code, ran.out()), (1, "small\nsmall\n"), "{ran:#?}");
        ran.complains("procpool: job 2 (input `large`): ", "");
    });
}
