//! The joblog, and going on with one.

use std::collections::HashSet;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::{GUEST, PROCPOOL, TASKS, procpool, start};
use crate::support::{Meeting, Random, TempDir, test, test_within};

/// The lines of a joblog. A torn one at the end is left out.
fn lines(log: &Path) -> Vec<Value> {
    let text = fs::read_to_string(log).unwrap_or_default();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The inputs of these lines, sorted.
fn inputs(lines: &[Value]) -> Vec<String> {
    let mut inputs: Vec<_> = lines.iter().map(|line| line["input"].to_string()).collect();
    inputs.sort();
    inputs
}

/// Goal: each kind of end is a line with its fields; numbers are numbers, and what is not text is exact.
#[test]
fn each_ended_job_is_a_line_of_json() {
    test(|| {
        let dir = TempDir::new();
        let log = dir.path().join("log");
        let path = log.to_str().unwrap();
        let script = format!(
            "case $0 in ok) ;; three) echo why >&2; exit 3;; segv) exec '{GUEST}' segv;; \
             worker) kill -9 $PPID;; late) exec sleep 1000;; esac"
        );
        let args = ["run", "-k", "--joblog", path, "--timeout", "2s", "sh", "-c", &script];
        let ran = procpool(&args, b"ok\nthree\nsegv\nworker\nlate\n\xff\n");
        assert_eq!(ran.code, 4, "{ran:#?}");
        let lines = lines(&log);
        let expected = [
            (json!("ok"), "succeeded", json!(0), Value::Null),
            (json!("three"), "failed", json!(3), Value::Null),
            (json!("segv"), "died", Value::Null, json!("SIGSEGV")),
            (json!("worker"), "died", Value::Null, json!("SIGKILL")),
            (json!("late"), "timed_out", Value::Null, Value::Null),
            (json!({"hex": "ff"}), "succeeded", json!(0), Value::Null),
        ];
        assert_eq!(lines.len(), expected.len());
        for (n, (line, (input, outcome, exit, signal))) in lines.iter().zip(expected).enumerate() {
            assert_eq!(line["seq"], json!(n + 1), "{line}");
            let facts = (&line["input"], &line["outcome"], &line["exit"], &line["signal"]);
            assert_eq!(facts, (&input, &json!(outcome), &exit, &signal), "{line}");
            assert_eq!(line["error"].is_null(), outcome == "succeeded", "{line}");
            assert!(line["slot"].as_u64().is_some_and(|slot| slot >= 1), "{line}");
            assert!(line["start"].as_f64().unwrap() > 1e9, "{line}");
            let limit = if outcome == "timed_out" { 2000.0 } else { 0.0 };
            assert!(line["run_ms"].as_f64().unwrap() > limit, "{line}");
            assert_eq!(line["attempts"], json!(1), "{line}");
        }
        assert_eq!(lines[1]["stderr_tail"], json!("why\n"));
    });
}

/// Goal: `call` has the same log, with the line as the input and the worker's end as the cause.
#[test]
fn calls_have_a_joblog_too() {
    test(|| {
        let dir = TempDir::new();
        let log = dir.path().join("log");
        let path = log.to_str().unwrap();
        let args = ["call", "-k", "--joblog", path, "--retries", "1", "--worker", TASKS];
        let args = [&args[..], &["worker_tasks::crash_on_13"]].concat();
        let ran = procpool(&args, b"12\n13\n\nx\n");
        assert_eq!((ran.code, ran.out()), (2, "12\n"), "{ran:#?}");
        let lines = lines(&log);
        let facts = |n: usize| {
            let fields = ["seq", "input", "outcome", "signal", "attempts"];
            fields.map(|field| lines[n][field].clone())
        };
        assert_eq!(facts(0), [json!(1), json!("12"), json!("succeeded"), Value::Null, json!(1)]);
        assert_eq!(facts(1), [json!(2), json!("13"), json!("died"), json!("SIGSEGV"), json!(2)]);
        assert_eq!(facts(2), [json!(4), json!("x"), json!("failed"), Value::Null, json!(0)]);
        assert_eq!(lines.len(), 3);
    });
}

/// Goal: what has ended is not run again; failures are if that is asked for; what was added is.
#[test]
fn a_batch_goes_on_where_its_joblog_ends() {
    test(|| {
        let dir = TempDir::new();
        let log = dir.path().join("log");
        let path = log.to_str().unwrap();
        let run = |options: &[&str], script: &str, inputs: &[&str]| {
            let options = [&["run", "-k"], options, &["sh", "-c", script, ":::"], inputs].concat();
            procpool(&options, b"")
        };
        // Without a log yet, `--resume` begins one.
        let fails = "echo $0; [ $0 != b ]";
        let ran = run(&["--resume", path], fails, &["a", "b"]);
        assert_eq!((ran.code, ran.out()), (1, "a\nb\n"), "{ran:#?}");
        let ran = run(&["--resume", path], fails, &["new", "a", "b", "a"]);
        assert_eq!((ran.code, ran.out()), (0, "new\na\n"), "{ran:#?}");
        ran.complains("procpool: skipped 1 jobs that had succeeded and 1 that had failed", "");
        let ran = run(&["--resume-failed", "--joblog", path], "echo $0", &["new", "a", "b", "a"]);
        assert_eq!((ran.code, ran.out()), (0, "b\n"), "{ran:#?}");
        let ran = run(&["--resume", path, "--resume-failed"], "echo $0", &["a", "b", "new"]);
        assert_eq!((ran.code, ran.out()), (0, ""), "{ran:#?}");
        ran.says("procpool: skipped 3 jobs that had succeeded");
        assert_eq!(lines(&log).len(), 5);

        // Into another file, and that one is begun anew.
        let other = dir.path().join("other");
        fs::write(&other, "old").unwrap();
        let other_path = other.to_str().unwrap();
        run(&["--resume", path, "--joblog", other_path], "echo $0", &["a", "c"]);
        assert_eq!(inputs(&lines(&other)), ["\"c\""]);
        assert_eq!(lines(&log).len(), 5);
    });
}

/// Goal: a log that cannot be read, is none, cannot be written or is in use is said before anything is run.
#[test]
fn a_joblog_that_cannot_be_used_is_said_first() {
    test(|| {
        let dir = TempDir::new();
        let file = dir.path().join("file");
        fs::write(&file, "hello\nworld\n").unwrap();
        let (file, dir_path) = (file.to_str().unwrap(), dir.path().to_str().unwrap());
        let cases = [
            (["--resume", file], 104, "is no line of a joblog"),
            (["--resume", dir_path], 104, "directory"),
            (["--joblog", dir_path], 105, "directory"),
            (["--joblog", "/no/such/dir/log"], 105, "No such file"),
        ];
        for (option, code, part) in cases {
            let ran = procpool(&[&["run"], &option[..], &["echo", ":::", "x"]].concat(), b"");
            assert_eq!((ran.code, ran.out()), (code, ""), "{ran:#?}");
            ran.complains("procpool: cannot ", option[1]);
            ran.complains("procpool: cannot ", part);
        }
        assert_eq!(fs::read_to_string(file).unwrap(), "hello\nworld\n");

        let meeting = Meeting::new();
        let log = dir.path().join("log");
        let option = ["--joblog", log.to_str().unwrap()];
        let path = meeting.path();
        let words = [&["run"], &option[..], &[GUEST, &path, ":::", "x"]].concat();
        let first = start(&words, Stdio::null());
        let guest = meeting.next();
        let second = procpool(&[&["run"], &option[..], &["echo", ":::", "x"]].concat(), b"");
        assert_eq!((second.code, second.out()), (105, ""), "{second:#?}");
        second.complains("procpool: cannot write `", "another procpool writes to it");
        guest.go();
        assert_eq!(first.finish().code, 0);
        assert_eq!(lines(&log).len(), 1);
    });
}

/// Goal: a joblog that cannot be written any more stops the batch, and keeps what it had, in whole lines.
/// Method: it lies on a file system of one page, in a mount namespace of its own.
#[test]
fn a_joblog_on_a_full_disk_stops_the_batch() {
    test(|| {
        let dir = TempDir::new();
        let disk = dir.path().join("disk");
        fs::create_dir(&disk).unwrap();
        let script = format!(
            "mount -t tmpfs -o size=4k tmpfs '{disk}' || exit 99; \
             '{PROCPOOL}' run -kj1 --joblog '{disk}/log' echo ::: $(seq 100); \
             code=$?; cp '{disk}/log' '{dir}/log'; exit $code",
            disk = disk.display(),
            dir = dir.path().display(),
        );
        let mut command = Command::new("unshare");
        command.args(["-rm", "sh", "-c", &script]).stdin(Stdio::null()).stdout(Stdio::piped());
        let ran = super::start_command(command).finish();
        if matches!(ran.code, 1 | 99) {
            println!("skipped: no file system can be mounted here: {}", ran.stderr);
            return;
        }
        assert_eq!(ran.code, 105, "{ran:#?}");
        ran.complains(
            &format!("procpool: cannot write `{}/log`: ", disk.display()),
            "No space left",
        );
        let log = dir.path().join("log");
        assert!(fs::read_to_string(&log).unwrap().ends_with('\n'), "the last line is torn");
        let lines = lines(&log);
        assert!((2..100).contains(&lines.len()), "{}", lines.len());
        let printed: HashSet<&str> = ran.out().lines().collect();
        assert!(lines.iter().all(|line| printed.contains(line["input"].as_str().unwrap())));
    });
}

/// Goal: killed at random moments, a batch finishes: each job is run, none that its log has is run again, and no
/// output of one that the log has is lost.
/// Method: 20 times the program is killed when it has printed a random number of lines, and a random moment
/// later. Each command adds a line to a file as it starts.
#[test]
fn a_run_that_is_killed_at_random_moments_is_finished_by_resuming() {
    test_within(Duration::from_secs(180), || {
        const JOBS: u64 = 400;
        let mut random = Random::new();
        let dir = TempDir::new();
        let log = dir.path().join("log");
        let starts = dir.path().join("starts");
        let script = format!("echo $0 >> '{}'; echo $0", starts.display());
        let numbers: Vec<String> = (1..=JOBS).map(|n| n.to_string()).collect();
        let mut args =
            vec!["run", "-j4", "--resume", log.to_str().unwrap(), "sh", "-c", &script, ":::"];
        args.extend(numbers.iter().map(|number| &number[..]));
        let printed = killed_again_and_again(&mut random, &args, "", &log, JOBS, || {
            let before: HashSet<String> = inputs(&lines(&log)).into_iter().collect();
            let _ = fs::remove_file(&starts);
            let (log, starts) = (log.clone(), starts.clone());
            Box::new(move || {
                let started = fs::read_to_string(&starts).unwrap_or_default();
                for input in started.lines() {
                    let is_again = before.contains(&format!("\"{input}\""));
                    assert!(!is_again, "{input} was run again");
                }
                assert!(lines(&log).len() >= before.len());
            })
        });
        let log = lines(&log);
        assert_eq!(log.len() as u64, JOBS, "a job is there twice, or missing");
        assert_eq!(inputs(&log).into_iter().collect::<HashSet<_>>().len() as u64, JOBS);
        assert!(log.iter().all(|line| line["outcome"] == "succeeded"));
        assert!(numbers.iter().all(|number| printed.contains(number)), "output was lost");
    });
}

/// Goal: the same for calls, five of which crash.
/// Method: calls are so quick that a program could be at its end before it is killed. So its input has no end before.
#[test]
fn a_call_that_is_killed_at_random_moments_is_finished_by_resuming() {
    test_within(Duration::from_secs(180), || {
        const LINES: u64 = 2000;
        let mut random = Random::new();
        let dir = TempDir::new();
        let log = dir.path().join("log");
        let line = |n: u64| if n.is_multiple_of(400) { 13 } else { n + 100 };
        let text: String = (1..=LINES).map(|n| format!("{}\n", line(n))).collect();
        let args = ["call", "-k", "--resume", log.to_str().unwrap(), "--worker", TASKS];
        let args = [&args[..], &["worker_tasks::crash_on_13"]].concat();
        let begin = || Box::new(|| ()) as Box<dyn FnOnce()>;
        let printed = killed_again_and_again(&mut random, &args, &text, &log, LINES, begin);
        let log = lines(&log);
        assert_eq!(log.len() as u64, LINES, "a line is there twice, or missing");
        let died = log.iter().filter(|line| line["outcome"] == "died").count();
        let succeeded = log.iter().filter(|line| line["outcome"] == "succeeded").count();
        assert_eq!((died, succeeded as u64), (5, LINES - 5));
        let results = (1..=LINES).map(line).filter(|n| *n != 13);
        assert!(results.map(|n| n.to_string()).all(|n| printed.contains(&n)), "output was lost");
    });
}

/// Runs `args` to the end after 20 kills; answers all lines that were printed, one for each of the `jobs` but five at most.
/// Standard input is `input`, which ends in the last run only. `begin` is called before each run, and what it answers
/// after it.
fn killed_again_and_again(
    random: &mut Random,
    args: &[&str],
    input: &str,
    log: &Path,
    jobs: u64,
    begin: impl Fn() -> Box<dyn FnOnce()>,
) -> HashSet<String> {
    const KILLS: u64 = 20;
    let run = || {
        let mut started = start(args, Stdio::piped());
        // The pipe holds all of it.
        started.child.stdin.as_mut().unwrap().write_all(input.as_bytes()).unwrap();
        started
    };
    let mut printed = HashSet::new();
    for _ in 0..KILLS {
        let end = begin();
        let left = jobs - lines(log).len() as u64;
        let mut started = run();
        let mut out = BufReader::new(started.child.stdout.take().unwrap());
        let mut line = String::new();
        for _ in 0..random.below(jobs / KILLS).min(left.saturating_sub(5)) {
            line.clear();
            out.read_line(&mut line).unwrap();
            printed.insert(line.trim().to_owned());
        }
        // The moment is random, and any is as good.
        thread::sleep(Duration::from_micros(random.below(5000)));
        started.signal(Signal::SIGKILL);
        printed.extend(out.lines().map_while(Result::ok));
        let (ran, _left) = started.end();
        assert_eq!(ran.code, 128 + 9, "it was too early at its end: {ran:#?}");
        end();
    }
    let end = begin();
    let ran = run().finish();
    assert!(ran.code <= 5, "{ran:#?}");
    printed.extend(ran.out().lines().map(str::to_owned));
    end();
    printed
}
