//! What a batch leaves for later: the report, the trace, capsules and their replay.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::{GUEST, PROCPOOL, TASKS, procpool, procpool_in, start, start_command};
use crate::support::{Meeting, TempDir, test};

/// What the script of a page reads.
fn data(page: &str) -> Vec<Value> {
    let (_, rest) = page.split_once("<script type=\"application/json\" id=\"jobs\">").unwrap();
    serde_json::from_str(rest.split_once("</script>").unwrap().0).unwrap()
}

/// Goal: the report has every job, the failed ones with cause and last words, and needs no other file; nothing that
/// a job is called or says is taken for HTML.
#[test]
fn a_report_is_one_page_with_every_job() {
    test(|| {
        let dir = TempDir::new();
        let file = dir.path().join("report.html");
        let path = file.to_str().unwrap();
        let script = "case $0 in '<b>'*) echo \"why: $0\" >&2; exit 3;; segv) kill -SEGV $$;; esac";
        let inputs = ["one", "two", "<b>three</b>", "segv", "</script>"];
        let args = ["run", "-j2", "--report", path, "sh", "-c", script, ":::"];
        let ran = procpool(&[&args[..], &inputs[..]].concat(), b"");
        assert_eq!(ran.code, 2, "{ran:#?}");
        let page = fs::read_to_string(&file).unwrap();
        for part in
            ["exit code 3", "killed by SIGSEGV", "why: &lt;b&gt;three&lt;/b&gt;", "<dd>5</dd>"]
        {
            assert!(page.contains(part), "{part:?} is not in {page}");
        }
        assert!(!page.contains("<b>three"), "{page}");
        for part in ["http:", "https:", " src=", "@import", "url("] {
            assert!(!page.contains(part), "{part:?} would be loaded");
        }
        let jobs = data(&page);
        let shown: BTreeSet<&str> = jobs.iter().map(|job| job[5].as_str().unwrap()).collect();
        assert_eq!(shown, inputs.into_iter().collect());
        assert!(jobs.iter().all(|job| (1..=2).contains(&job[1].as_u64().unwrap())));
    });
}

/// Goal: jobs of one slot follow each other in a report: a slot has one job at a time.
#[test]
fn the_jobs_of_a_slot_do_not_overlap() {
    test(|| {
        let dir = TempDir::new();
        let file = dir.path().join("report.html");
        let inputs: String = (0..200).map(|n| format!("{n}\n")).collect();
        let args = ["run", "-j2", "--report", file.to_str().unwrap(), "true"];
        assert_eq!(procpool(&args, inputs.as_bytes()).code, 0);
        let jobs = data(&fs::read_to_string(&file).unwrap());
        assert_eq!(jobs.len(), 200);
        for slot in [1, 2] {
            let mut jobs: Vec<(f64, f64)> = jobs
                .iter()
                .filter(|job| job[1] == slot)
                .map(|job| (job[2].as_f64().unwrap(), job[3].as_f64().unwrap()))
                .collect();
            jobs.sort_by(|a, b| a.0.total_cmp(&b.0));
            for pair in jobs.windows(2) {
                let overlap = pair[0].0 + pair[0].1 - pair[1].0;
                assert!(overlap <= 0.002, "{overlap} ms: {pair:?}");
            }
        }
    });
}

/// Goal: a trace is JSON with an event for each job; one of a batch that was killed lacks its end and no more.
#[test]
fn a_trace_has_an_event_for_each_job() {
    test(|| {
        let dir = TempDir::new();
        let file = dir.path().join("trace.json");
        let path = file.to_str().unwrap();
        let ran = procpool(&["run", "--trace", path, "sh", "-c", "exit $0", ":::", "0", "3"], b"");
        assert_eq!(ran.code, 1, "{ran:#?}");
        let events: Vec<Value> = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        let jobs: Vec<_> = events.iter().filter(|event| event["ph"] == "X").collect();
        assert_eq!(jobs.len(), 2, "{events:?}");
        assert!(jobs.iter().all(|job| job["dur"].as_u64().is_some_and(|dur| dur > 0)));
        assert!(jobs.iter().any(|job| job["args"]["error"] == "exit code 3"));

        let meeting = Meeting::new();
        let meeting_path = meeting.path();
        let script = format!("[ $0 = done ] || '{GUEST}' '{meeting_path}' $0");
        let args = ["run", "-j1", "--trace", path, "sh", "-c", &script, ":::", "done", "waits"];
        let started = start(&args, Stdio::null());
        let guest = meeting.next();
        // The first job's end was told before the second could start, or is being told.
        crate::support::wait_until("the job is in the trace", || {
            fs::read_to_string(&file).unwrap().contains("\"1 done\"")
        });
        started.signal(Signal::SIGKILL);
        started.end();
        drop(guest);
        let text = fs::read_to_string(&file).unwrap();
        let whole = format!("{}]", text.trim_end().trim_end_matches(','));
        serde_json::from_str::<Vec<Value>>(&whole).unwrap();
    });
}

/// Goal: a command that died is kept with all that it was run with, for its owner's eyes, and can be run again.
#[test]
fn a_command_that_died_can_be_replayed() {
    test(|| {
        let dir = TempDir::new();
        let here = fs::canonicalize(dir.path()).unwrap();
        let script = "pwd; echo $SECRET $0; [ $0 = ok ] || [ $0 = fails ] && exit 5; kill -SEGV $$";
        let args = ["run", "-k", "--capsules", "caps", "--env", "SECRET=x y", "sh", "-c", script];
        let ran = procpool_in(&here, &[&args[..], &[":::", "ok", "a b", "fails"]].concat(), b"");
        assert_eq!(ran.code, 3, "{ran:#?}");
        let files: Vec<_> = fs::read_dir(here.join("caps")).unwrap().flatten().collect();
        assert_eq!(files.len(), 1, "only what died: {files:?}");
        let capsule = here.join("caps/2.json");
        assert_eq!(fs::metadata(&capsule).unwrap().permissions().mode() & 0o777, 0o600);
        let content: Value = serde_json::from_slice(&fs::read(&capsule).unwrap()).unwrap();
        assert_eq!(content["input"], "a b");
        assert_eq!(content["verdict"]["signal"], "SIGSEGV");

        let again = procpool(&["replay", capsule.to_str().unwrap()], b"");
        assert_eq!(again.code, 128 + Signal::SIGSEGV as i32, "{again:#?}");
        assert_eq!(again.out(), format!("{}\nx y a b\n", here.display()));
        again.complains("procpool: replaying `", "it ended so: killed by SIGSEGV");
    });
}

/// Goal: the same for a call, whose result or end is told.
#[test]
fn a_call_that_crashed_can_be_replayed() {
    test(|| {
        let dir = TempDir::new();
        let caps = dir.path().join("caps");
        let path = caps.to_str().unwrap();
        let args = ["call", "--capsules", path, "--worker", TASKS, "worker_tasks::crash_on_13"];
        assert_eq!(procpool(&args, b"12\n13\n").code, 1);
        let capsule = caps.join("2.json");
        let again = procpool(&["replay", capsule.to_str().unwrap()], b"");
        assert_eq!((again.code, again.out()), (1, ""), "{again:#?}");
        again.complains("procpool: the worker", "died: SIGSEGV while running");

        // With an input that does it no harm, it has a result.
        let text = fs::read_to_string(&capsule).unwrap();
        let mut content: Value = serde_json::from_str(&text).unwrap();
        content["input"] = json!("14");
        fs::write(&capsule, content.to_string()).unwrap();
        let again = procpool(&["replay", capsule.to_str().unwrap()], b"");
        assert_eq!((again.code, again.out()), (0, "14\n"), "{again:#?}");
    });
}

/// Goal: a debugger sees the crash as it happens, in a command and in a task.
#[test]
fn a_debugger_can_watch_a_replay() {
    test(|| {
        if Command::new("gdb").arg("--version").output().is_err() {
            println!("skipped: gdb is not installed");
            return;
        }
        let dir = TempDir::new();
        let caps = dir.path().join("caps");
        let path = caps.to_str().unwrap();
        procpool(&["run", "--capsules", path, GUEST, ":::", "segv"], b"");
        let replay = |commands: &str| {
            let input = dir.path().join("commands");
            fs::write(&input, commands).unwrap();
            let mut command = Command::new(PROCPOOL);
            command.args(["replay", "--debugger", "gdb"]).arg(caps.join("1.json"));
            command.stdin(fs::File::open(&input).unwrap()).stdout(Stdio::piped());
            // No questions, and no settings of the user's own.
            command.env("HOME", dir.path());
            start_command(command).finish()
        };
        let ran = replay("run\nbacktrace\nquit\n");
        assert!(ran.out().contains("write_nowhere"), "{ran:#?}");

        let args = ["call", "--capsules", path, "--worker", TASKS, "worker_tasks::crash_on_13"];
        procpool(&args, b"13\n");
        let ran = replay("backtrace\nquit\n");
        if ran.stderr.contains("ptrace") {
            println!("skipped: gdb may not attach here: {}", ran.stderr);
            return;
        }
        assert!(ran.out().contains("write_nowhere"), "{ran:#?}");
    });
}

/// Goal: what cannot be replayed or written is said, with its own code.
#[test]
fn what_cannot_be_kept_or_replayed_is_said() {
    test(|| {
        let dir = TempDir::new();
        let file = dir.path().join("file");
        fs::write(&file, "{}").unwrap();
        let file = file.to_str().unwrap();
        for path in [file, "/no/such/capsule", dir.path().to_str().unwrap()] {
            let ran = procpool(&["replay", path], b"");
            assert_eq!((ran.code, ran.out()), (104, ""), "{ran:#?}");
            ran.complains("procpool: cannot read the capsule `", path);
        }
        for option in ["--report", "--trace", "--capsules", "--results"] {
            let path = format!("{file}/below");
            let ran = procpool(&["run", option, &path, "echo", ":::", "a"], b"");
            assert_eq!((ran.code, ran.out()), (105, ""), "{ran:#?}");
            ran.complains("procpool: cannot write", &path);
        }
    });
}

/// Goal: a directory that another user may not write to is said before anything is run.
/// Method: the program runs as a user that owns nothing.
#[test]
fn a_directory_of_somebody_elses_is_said_first() {
    test(|| {
        if !nix::unistd::Uid::effective().is_root() {
            println!("skipped: only root can become somebody else");
            return;
        }
        let dir = TempDir::new();
        // Neither the test's build nor its directory need be open to others.
        let program =
            Path::new("/tmp").join(format!("procpool-test-program-{}", std::process::id()));
        fs::copy(PROCPOOL, &program).unwrap();
        for option in ["--joblog", "--report", "--trace", "--capsules", "--results"] {
            let path = dir.path().join("sub");
            let mut command = Command::new("setpriv");
            command.args(["--reuid=54321", "--regid=54321", "--clear-groups"]).arg(&program);
            command.args(["run", option]).arg(&path).args(["echo", ":::", "a"]);
            command.stdin(Stdio::null()).stdout(Stdio::piped()).current_dir("/");
            let ran = start_command(command).finish();
            assert_eq!((ran.code, ran.out()), (105, ""), "{option}: {ran:#?}");
            ran.complains("procpool: cannot write", "ermission denied");
        }
        fs::remove_file(&program).unwrap();
    });
}

/// Goal: completions and manual pages are made of the options that there are.
#[test]
fn completions_and_manual_pages_are_printed() {
    test(|| {
        for shell in ["bash", "zsh", "fish"] {
            let ran = procpool(&["completions", shell], b"");
            assert_eq!(ran.code, 0, "{ran:#?}");
            assert!(ran.out().contains("line-buffer") && ran.out().contains("replay"), "{shell}");
        }
        let ran = procpool(&["man", "run"], b"");
        assert!(ran.code == 0 && ran.out().contains(".TH") && ran.out().contains("joblog"));
        assert!(procpool(&["man"], b"").out().contains("procpool"));
        let ran = procpool(&["man", "nothing"], b"");
        assert_eq!(ran.code, 102, "{ran:#?}");
    });
}
