//! Disks that are full: what could not be written is named, and what was finished by then is kept.
//!
//! Each test has a file system of 64 KiB in a mount namespace of its own. The joblog lies elsewhere.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::{Finished, PROCPOOL, start_command};
use crate::support::{TempDir, test};

/// A directory that becomes the mount point, and one for the joblog.
struct Disk {
    dir: TempDir,
}

impl Disk {
    fn new() -> Disk {
        let dir = TempDir::new();
        fs::create_dir(dir.path().join("disk")).unwrap();
        Disk { dir }
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join("disk").join(name).display().to_string()
    }

    /// Runs `procpool run -j1` with a joblog as a shell does that is told `prefix` and `suffix` around it. `None` if
    /// nothing can be mounted here, which is said.
    fn run(&self, prefix: &str, args: &[&str], suffix: &str) -> Option<Finished> {
        let script =
            format!("mount -t tmpfs -o size=64k tmpfs \"$0\" || exit 99; {prefix} \"$@\" {suffix}");
        let mut command = Command::new("unshare");
        command.args(["-rm", "sh", "-c", &script]).arg(self.dir.path().join("disk"));
        command.args([PROCPOOL, "run", "-j1", "--joblog"]).arg(self.log()).args(args);
        let ran = start_command(command_with_pipes(command)).finish();
        if ran.code == 99 || ran.stderr.starts_with("unshare: ") {
            println!("skipped: no file system can be mounted here: {}", ran.stderr);
            return None;
        }
        Some(ran)
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    /// How many jobs the joblog has, each in a whole line.
    fn logged(&self) -> usize {
        let log = fs::read_to_string(self.log()).unwrap();
        assert!(log.is_empty() || log.ends_with('\n'), "the last line is torn");
        let parse = |line| serde_json::from_str::<serde_json::Value>(line).unwrap();
        log.lines().map(parse).collect::<Vec<_>>().len()
    }
}

fn command_with_pipes(mut command: Command) -> Command {
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    command
}

/// So many inputs, each so long.
fn inputs(count: usize, len: usize) -> Vec<String> {
    (0..count).map(|n| format!("{n:0len$}")).collect()
}

fn with_inputs<'a>(args: &[&'a str], inputs: &'a [String]) -> Vec<&'a str> {
    args.iter().copied().chain([":::"]).chain(inputs.iter().map(String::as_str)).collect()
}

fn assert_stopped(ran: &Finished, what: &str) {
    assert_eq!(ran.code, 105, "{ran:#?}");
    ran.complains(&format!("procpool: cannot write {what}: "), "No space left");
}

/// Goal: results, trace and capsules that cannot be written stop the batch; the jobs before are in the joblog.
/// Covers: F-87
#[test]
fn what_is_written_job_by_job_stops_the_batch() {
    let crash = "head -c 9000 /dev/zero; kill -9 $$";
    test(|| {
        for option in ["--results", "--trace", "--capsules"] {
            let disk = Disk::new();
            let path = disk.path("kept");
            let inputs = inputs(400, 300);
            let args = with_inputs(&[option, &path, "sh", "-c", crash], &inputs);
            let Some(ran) = disk.run("", &args, "") else { return };
            assert_stopped(&ran, &format!("`{path}`"));
            let logged = disk.logged();
            assert!((1..400).contains(&logged), "{option}: {logged} jobs");
            assert!(ran.stdout.len() >= logged * 9000, "{option}: output is lost");
        }
    });
}

/// Goal: a report that cannot be written is said, after every job was run.
/// Covers: F-87
#[test]
fn a_report_on_a_full_disk_costs_no_job() {
    test(|| {
        let disk = Disk::new();
        let path = disk.path("page.html");
        let inputs = inputs(600, 120);
        let args = with_inputs(&["--report", &path, "true"], &inputs);
        let Some(ran) = disk.run("", &args, "") else { return };
        assert_stopped(&ran, &format!("`{path}`"));
        assert_eq!(disk.logged(), 600);
    });
}

/// Goal: a job whose output finds no room in the temporary directory fails, by name; the others are run and printed.
/// Covers: F-87
#[test]
fn a_full_temporary_directory_costs_the_job_that_fills_it() {
    test(|| {
        let disk = Disk::new();
        let script = "head -c $0 /dev/zero";
        let args = ["sh", "-c", script, ":::", "1000", "3000000", "2000"];
        let Some(ran) = disk.run("TMPDIR=\"$0\"", &args, "") else { return };
        // What had found room is printed.
        assert_eq!((ran.code, ran.stdout.len()), (1, 3000 + (64 << 10)), "{}", ran.stderr);
        let job = "procpool: job 2 (input `3000000`): its output cannot be kept: ";
        ran.complains(job, "No space left");
        assert_eq!(disk.logged(), 3);
    });
}

/// Goal: standard output on a full disk stops the batch, also where workers write to it.
/// Covers: F-87
#[test]
fn a_full_disk_behind_standard_output_stops_the_batch() {
    test(|| {
        for options in [&["-k"][..], &["--tag"], &["--json"], &["--line-buffer"]] {
            let disk = Disk::new();
            let inputs = inputs(400, 300);
            let args = with_inputs(&[options, &["echo"]].concat(), &inputs);
            let Some(ran) = disk.run("", &args, "> \"$0/out\"") else { return };
            assert_stopped(&ran, "to standard output");
            let logged = disk.logged();
            assert!((1..400).contains(&logged), "{options:?}: {logged} jobs");
        }
    });
}

/// Goal: a temporary directory in which nothing can be made is said, with its own code, and nothing is run.
#[test]
fn a_temporary_directory_that_is_not_there_is_said() {
    test(|| {
        let mut command = Command::new("env");
        command.args(["TMPDIR=/no/such/directory", PROCPOOL, "run", "echo", ":::", "a"]);
        let ran = start_command(command_with_pipes(command)).finish();
        assert_eq!((ran.code, ran.out()), (106, ""), "{ran:#?}");
        ran.complains("procpool: cannot make a temporary directory", "/no/such/directory");
    });
}

/// Goal: a file that would grow beyond the limit to a file's size stops the batch as a full disk does, and the signal that
/// comes with it ends jobs, and not the program.
/// Covers: F-87, F-102
#[test]
fn a_limit_to_the_size_of_files_is_a_full_disk_to_the_program() {
    let run = |dir: &TempDir, args: &[&str]| {
        let mut command = Command::new("prlimit");
        // The memory that a worker shares with its pool is a file too, of half of that.
        command.args(["--fsize=1200000", PROCPOOL, "run", "-j1", "--joblog"]);
        command.arg(dir.path().join("log")).args(args);
        start_command(command_with_pipes(command)).finish()
    };
    test(|| {
        let dir = TempDir::new();
        let long = inputs(60, 30_000);
        let ran = run(&dir, &with_inputs(&["true"], &long));
        assert_eq!(ran.code, 105, "{ran:#?}");
        let log = dir.path().join("log");
        ran.complains(&format!("procpool: cannot write `{}`: ", log.display()), "File too large");
        let lines = fs::read_to_string(&log).unwrap();
        assert!(lines.ends_with('\n'), "the last line is torn");
        assert!((20..60).contains(&lines.lines().count()), "{} lines", lines.lines().count());

        let dir = TempDir::new();
        let file = dir.path().join("file").display().to_string();
        let ran = run(&dir, &["truncate", "-s", "{}", &file, ":::", "2000000", "1000"]);
        assert_eq!(ran.code, 1, "{ran:#?}");
        ran.complains("procpool: job 1 (input `2000000`): ", "SIGXFSZ");
    });
}
