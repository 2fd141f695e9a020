//! How a command's end becomes a verdict, and what is left of it: nothing.

use std::fs;
use std::process::Command;
use std::time::Duration;

use super::{GUEST, procpool, start};
use crate::support::{Meeting, Random, TempDir, test, test_within};

/// Goal: the number of failed jobs is the exit code, and each is told with number, input and cause.
#[test]
fn a_failed_command_is_told_with_its_number_and_input() {
    test(|| {
        let ran = procpool(&["run", "sh", "-c", "exit $0"], b"0\n3\n0\n7\n");
        assert_eq!(ran.code, 2, "{ran:#?}");
        ran.says("procpool: job 2 (input `3`): exit code 3");
        ran.says("procpool: job 4 (input `7`): exit code 7");
        assert_eq!(ran.stderr.lines().count(), 2, "{ran:#?}");
    });
}

/// Goal: more failures than the code has numbers are told apart from a hundred.
#[test]
fn more_than_a_hundred_failures_are_code_101() {
    test(|| {
        let inputs: Vec<u8> = (0..100).flat_map(|n| format!("{n}\n").into_bytes()).collect();
        assert_eq!(procpool(&["run", "false"], &inputs).code, 100);
        let more = [&inputs[..], b"100\n"].concat();
        assert_eq!(procpool(&["run", "false"], &more).code, 101);
    });
}

/// Goal: a segfault is the command's, by its name, and touches no other job.
#[test]
fn a_command_that_segfaults_is_reported_as_what_it_is() {
    test(|| {
        let script = format!("[ $0 != b ] || exec '{GUEST}' segv; echo $0");
        let ran = procpool(&["run", "-k", "sh", "-c", &script, ":::", "a", "b", "c"], b"");
        assert_eq!(ran.code, 1, "{ran:#?}");
        assert_eq!(ran.out(), "a\nc\n");
        ran.says("procpool: job 2 (input `b`): killed by SIGSEGV");
    });
}

/// Goal: a job at its time limit is stopped with all that it has started; what it had written is printed.
/// Method: the shell leaves a child in the background, and both outlive the limit by far. The test's own
/// leak check finds whatever is left.
#[test]
fn a_job_that_times_out_leaves_no_process() {
    test(|| {
        let script = "echo before; sleep 1000 & sleep 1000";
        let ran = procpool(&["run", "--timeout", "1s", "sh", "-c", script, ":::", "x"], b"");
        assert_eq!(ran.code, 1, "{ran:#?}");
        assert_eq!(ran.out(), "before\n");
        ran.says("procpool: job 1 (input `x`): the command timed out after 1s and was stopped");
    });
}

/// Goal: a command that ignores SIGTERM is killed at the end of the grace.
#[test]
fn a_job_that_times_out_and_is_deaf_is_killed() {
    test(|| {
        let script = "trap '' TERM; echo deaf; sleep 1000 & wait; sleep 1000";
        let ran = procpool(&["run", "--timeout", "1", "sh", "-c", script, ":::", "x"], b"");
        assert_eq!(ran.code, 1, "{ran:#?}");
        assert_eq!(ran.out(), "deaf\n");
        ran.complains("procpool: job 1", "timed out after 1s and was killed");
    });
}

/// Goal: a command that is stopped has the grace to clean up, and what it says then is not lost.
#[test]
fn a_job_that_times_out_can_clean_up() {
    test(|| {
        let script = "trap 'echo cleaned; exit 0' TERM; echo begun; sleep 1000 & wait";
        let ran = procpool(&["run", "--timeout", "1000ms", "sh", "-c", script, ":::", "x"], b"");
        assert_eq!(ran.code, 1, "{ran:#?}");
        assert_eq!(ran.out(), "begun\ncleaned\n");
    });
}

/// Goal: after a time limit the worker's place goes to the next job.
#[test]
fn a_timeout_costs_no_other_job() {
    test(|| {
        let script = "[ $0 != 1 ] || sleep 1000; echo $0";
        let ran = procpool(&["run", "-j1", "--timeout", "1s", "sh", "-c", script], b"0\n1\n2\n3\n");
        assert_eq!(ran.code, 1, "{ran:#?}");
        assert_eq!(ran.sorted(), ["0", "2", "3"]);
    });
}

/// Goal: with `--retries` a command that fails is run again, and only its last attempt is printed.
/// Method: the command adds a line to a file, and succeeds when it finds three.
#[test]
fn a_failed_command_is_run_again_if_asked_for() {
    test(|| {
        let dir = TempDir::new();
        let file = dir.path().join("attempts");
        let file = file.to_str().unwrap();
        let script = r#"echo $$ >> "$0"; n=$(wc -l < "$0"); echo "attempt $n"; [ $n = 3 ]"#;
        let ran = procpool(&["run", "--retries", "2", "sh", "-c", script, ":::", file], b"");
        assert_eq!((ran.code, ran.out()), (0, "attempt 3\n"), "{ran:#?}");
        assert!(ran.stderr.is_empty(), "{ran:#?}");

        fs::remove_file(file).unwrap();
        let ran = procpool(&["run", "--retries", "1", "sh", "-c", script, ":::", file], b"");
        assert_eq!((ran.code, ran.out()), (1, "attempt 2\n"), "{ran:#?}");
        ran.complains("procpool: job 1", "exit code 1 (attempt 2 of 2)");
        assert_eq!(fs::read_to_string(file).unwrap().lines().count(), 2);
    });
}

/// Goal: without `--retries` nothing is run twice.
#[test]
fn a_failed_command_is_not_run_again_unasked() {
    test(|| {
        let dir = TempDir::new();
        let file = dir.path().join("attempts");
        let file = file.to_str().unwrap();
        let ran = procpool(&["run", "sh", "-c", r#"echo $$ >> "$0"; exit 1"#, ":::", file], b"");
        assert_eq!(ran.code, 1);
        assert_eq!(fs::read_to_string(file).unwrap().lines().count(), 1);
    });
}

/// Goal: a command that kills the worker it runs in fails as itself; the others go on.
#[test]
fn a_killed_worker_costs_its_own_job_alone() {
    test(|| {
        let script = "[ $0 != b ] || kill -9 $PPID; echo $0";
        let ran = procpool(&["run", "-k", "sh", "-c", script, ":::", "a", "b", "c"], b"");
        assert_eq!(ran.code, 1, "{ran:#?}");
        assert_eq!(ran.out(), "a\nc\n");
        ran.complains("procpool: job 2 (input `b`): the worker", "died: SIGKILL");
    });
}

/// Goal: a process that a command leaves in the background holds up neither the job nor the batch.
/// Method: it holds the command's output open, and sleeps for ever.
#[test]
fn what_a_command_leaves_in_the_background_is_not_waited_for() {
    test(|| {
        let ran = procpool(&["run", "sh", "-c", "sleep 1000 & echo $0", ":::", "a", "b"], b"");
        assert_eq!(ran.code, 0, "{ran:#?}");
        assert_eq!(ran.sorted(), ["a", "b"]);
    });
}

/// Goal: `-j` is how many run at the same time, no more and no less.
/// Method: of four guests three are there at the same time, and the fourth comes after one has gone.
#[test]
fn so_many_jobs_run_at_a_time() {
    test(|| {
        let meeting = Meeting::new();
        let path = meeting.path();
        let args = ["run", "-j3", GUEST, &path, ":::", "a", "b", "c", "d"];
        let started = start(&args, std::process::Stdio::null());
        let mut guests: Vec<_> = (0..3).map(|_| meeting.next()).collect();
        assert!(guests.iter().all(|guest| !guest.word.starts_with('d')));
        guests.pop().unwrap().go();
        let last = meeting.next();
        assert!(last.word.starts_with("d "), "{}", last.word);
        guests.into_iter().for_each(|guest| guest.go());
        last.go();
        let ran = started.finish();
        assert_eq!((ran.code, ran.sorted()), (0, vec!["a", "b", "c", "d"]));
    });
}

/// Goal: a command sees the program's environment and directory, and nothing of procpool's own.
#[test]
fn a_command_runs_in_the_surroundings_of_the_program() {
    test(|| {
        let script = "pwd; env | grep -c ^PROCPOOL; cat; echo end";
        let ran = procpool(&["run", "sh", "-c", script, ":::", "x"], b"not for the command");
        let here = std::env::current_dir().unwrap();
        let expected = format!("{}\n0\nend\n", here.display());
        assert_eq!((ran.code, ran.out()), (0, &expected[..]), "{ran:#?}");
    });
}

/// Goal: real work gives what xargs gives, byte for byte: five thousand files, each compressed by a program of its own.
#[test]
fn five_thousand_files_are_compressed_as_by_xargs() {
    const FILES: u32 = 5000;
    test_within(Duration::from_secs(180), || {
        let dir = TempDir::new();
        let mut random = Random::new();
        let mut list = String::new();
        for n in 0..FILES {
            let path = dir.path().join(format!("{n}.txt"));
            let text: String =
                (0..random.below(40)).map(|_| random.below(1000).to_string()).collect();
            fs::write(&path, text).unwrap();
            list.push_str(&format!("{}\n", path.display()));
        }
        let file = dir.path().join("list");
        fs::write(&file, list).unwrap();
        let file = file.to_str().unwrap();
        let xargs = Command::new("xargs").args(["-a", file, "-n1", "gzip", "-c"]).output().unwrap();
        let ran = procpool(&["run", "-k", "gzip", "-c", "{}", "::::", file], b"");
        assert_eq!((ran.code, &ran.stderr[..]), (0, ""));
        assert!(xargs.status.success() && xargs.stdout.len() > 20 * FILES as usize);
        assert!(ran.stdout == xargs.stdout, "not the same bytes");
    });
}
