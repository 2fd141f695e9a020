//! GNU parallel's own program beside ours: the same words must give the same bytes. Where it is not
//! installed, this is said, and nothing is compared.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use super::procpool_in;
use crate::support::{TempDir, test};

/// What it prints in `dir`.
fn gnu_parallel(dir: &Path, args: &[&str], input: &str) -> String {
    run_gnu_parallel(dir, args, input).1
}

/// Its exit code, and what it prints.
fn run_gnu_parallel(dir: &Path, args: &[&str], input: &str) -> (i32, String) {
    let file = dir.join("input");
    fs::write(&file, input).unwrap();
    let output = Command::new("parallel")
        // Without this it asks to be cited. Its own files stay in the test's directory.
        .arg("--will-cite")
        .args(args)
        .current_dir(dir)
        .env("PARALLEL_HOME", dir)
        .env("PARALLEL_SHELL", "/bin/sh")
        .stdin(Stdio::from(fs::File::open(&file).unwrap()))
        .output()
        .unwrap();
    (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
}

/// False also if the program of that name is the one of moreutils.
fn is_installed() -> bool {
    let version = Command::new("parallel").arg("--version").output();
    let is_gnu = version.is_ok_and(|output| output.stdout.starts_with(b"GNU parallel"));
    if !is_gnu {
        println!("skipped: GNU parallel is not installed (Debian package `parallel`)");
    }
    is_gnu
}

/// Goal: sources, placeholders, columns and tags mean what they mean to GNU parallel.
/// Method: each case is run by both, with `-k`; ours with `--shell`, since a shell is what GNU parallel uses.
#[test]
fn sources_and_placeholders_give_what_gnu_parallel_gives() {
    test(|| {
        if !is_installed() {
            return;
        }
        let dir = TempDir::new();
        fs::write(dir.path().join("A"), "a\nb c\n\nd").unwrap();
        fs::write(dir.path().join("B"), "1\n2\n3\n").unwrap();
        let cases: [(&[&str], &str); 33] = [
            (&["echo", ":::", "a", "b c", "$HOME", "it's", "*"], ""),
            (&["echo"], "a\n  b  c \n\nd"),
            (
                &[
                    "echo", "{}", "{.}", "{/}", "{//}", "{/.}", ":::", "d/a.b.c", "x", "/y.z",
                    "d.e/f",
                ],
                "",
            ),
            (&["echo {#}: {/.}", ":::", "a/b.c", "d"], ""),
            (&["echo", ":::", "a", "b", ":::", "1", "2", "3"], ""),
            (&["echo", ":::", "a", "b", "c", ":::+", "1", "2"], ""),
            (&["echo", "{2}-{1}", ":::", "a", "b", ":::+", "1", "2", ":::", "X", "Y"], ""),
            (&["echo", "{2}-{1}", ":::", "X", "Y", ":::", "a", "b", ":::+", "1", "2"], ""),
            (&["echo {1}:{3}:{-1}:{-2}", ":::", "a", "b", ":::", "1"], ""),
            (
                &[
                    "echo", "{1.}", "{1/}", "{1//}", "{1/.}", "{2/.}", ":::", "d/a.b.c", ":::",
                    "e/f.g",
                ],
                "",
            ),
            (&["echo", "{}", "{.}", "{/}", "{//}", "{/.}", ":::", "d/a.b.c", ":::", "e/f.g"], ""),
            (&["printf '[%s]'", "{}", ":::", "a b", ":::", "c"], ""),
            (&["printf '[%s]'", ":::", "a b", ":::", "c"], ""),
            (&["-a", "A", "echo"], ""),
            (&["-a", "A", "-a", "B", "echo", "{2}", "{1}"], ""),
            (&["-a", "B", "echo", ":::", "x", "y"], ""),
            (&["echo", "::::", "A", "B"], ""),
            (&["echo", "::::", "A", "::::+", "B"], ""),
            (&["echo", ":::", "x", "::::", "-"], "s\nt\n"),
            (&["-a", "-", "echo"], "s t\nu"),
            (&["-0", "echo", "x{}"], "a\0b c\0"),
            (&["--colsep", ",", "echo 1={1} 2={2} all={}"], "a,b\nc,d,e\nf\n"),
            (&["--colsep", ",", "echo"], "a,b\nc,d\n"),
            (&["-C", "[ \t]+", "echo", "{3}{2}{1}"], "a b\t c\nd  e f\n"),
            (&["--colsep", ",", "echo", "{1}", "{2}", "{3}", ":::", "a,b", "c,d", ":::", "X"], ""),
            (&["--colsep", "\\.", "echo", "{2}", ":::", "a.b", "c.d"], ""),
            (&["--tag", "echo", ":::", "a", "b", ":::", "1", "2"], ""),
            (&["--tag", "printf '{1}\\n\\n{2}'", ":::", "a", "b", ":::+", "1", "2"], ""),
            (&["--timeout", "1", "echo {}; sleep {}", ":::", "0", "9"], ""),
            (&["--retries", "2", "echo {}; false", ":::", "0", "9"], ""),
            (
                &[
                    "-j1",
                    "--halt",
                    "soon,fail=1",
                    "echo {}; exit {}",
                    ":::",
                    "0",
                    "0",
                    "1",
                    "0",
                    "1",
                ],
                "",
            ),
            (
                &[
                    "-j1",
                    "--halt",
                    "now,success=2",
                    "echo {}; exit {}",
                    ":::",
                    "1",
                    "0",
                    "1",
                    "0",
                    "1",
                ],
                "",
            ),
            (
                &["-j1", "--halt", "soon,fail=50%", "echo {}; exit {}", ":::", "1", "0", "1", "0"],
                "",
            ),
        ];
        for (args, input) in cases {
            let theirs: Vec<&str> = ["-k"].iter().chain(args).copied().collect();
            let theirs = gnu_parallel(dir.path(), &theirs, input);
            let ours: Vec<&str> = ["run", "-k", "--shell"].iter().chain(args).copied().collect();
            let ours = procpool_in(dir.path(), &ours, input.as_bytes());
            assert_eq!(ours.out(), theirs, "{args:?}: {ours:#?}");
            assert!(!theirs.is_empty(), "{args:?} compares nothing");
        }
    });
}

/// Goal: what a dry run prints does the same as what GNU parallel's prints. (They quote differently.)
#[test]
fn a_dry_run_means_what_gnu_parallels_means() {
    test(|| {
        if !is_installed() {
            return;
        }
        let dir = TempDir::new();
        let args = ["--dry-run", "printf '[%s]' {} {/.}", ":::", "a b", "it's.x", "$HOME", "d/*.c"];
        let theirs = gnu_parallel(dir.path(), &[&["-k"], &args[..]].concat(), "");
        let ours = procpool_in(dir.path(), &[&["run", "--shell"], &args[..]].concat(), b"");
        let run = |text: &str| Command::new("sh").arg("-c").arg(text).output().unwrap().stdout;
        assert!(!theirs.is_empty());
        assert_eq!(run(ours.out()), run(&theirs), "{ours:#?} {theirs}");
    });
}

/// Goal: a joblog tells of each job what GNU parallel's tells, and the exit codes are the same.
#[test]
fn a_joblog_says_what_gnu_parallels_says() {
    test(|| {
        if !is_installed() {
            return;
        }
        let dir = TempDir::new();
        let jobs = ["exit 0", "exit 3", "kill -9 $$", "exit 255", "kill -15 $$", "true"];
        let args = [&["-j2", "--joblog", "log", "sh -c {}", ":::"], &jobs[..]].concat();
        let (code, _) = run_gnu_parallel(dir.path(), &args, "");
        let theirs = fs::read_to_string(dir.path().join("log")).unwrap();
        let mut theirs: Vec<(u64, String, String)> = theirs
            .lines()
            .skip(1)
            .map(|line| {
                let columns: Vec<&str> = line.split('\t').collect();
                (columns[0].parse().unwrap(), columns[6].into(), columns[7].into())
            })
            .collect();
        theirs.sort();
        let ran = procpool_in(dir.path(), &[&["run", "--shell"], &args[..]].concat(), b"");
        let ours = fs::read_to_string(dir.path().join("log")).unwrap();
        let mut ours: Vec<(u64, String, String)> = ours
            .lines()
            .map(|line| {
                let job: serde_json::Value = serde_json::from_str(line).unwrap();
                let signal = match job["signal"].as_str() {
                    None => "0",
                    Some("SIGKILL") => "9",
                    Some("SIGTERM") => "15",
                    Some(other) => panic!("{other}"),
                };
                let exit = job["exit"].as_i64().unwrap_or(0);
                (job["seq"].as_u64().unwrap(), exit.to_string(), signal.into())
            })
            .collect();
        ours.sort();
        assert_eq!(ours, theirs);
        assert_eq!((ran.code, ours.len()), (code, jobs.len()));
    });
}

/// Goal: a batch is resumed where GNU parallel resumes it, with and without what has failed.
#[test]
fn a_batch_is_resumed_as_by_gnu_parallel() {
    test(|| {
        if !is_installed() {
            return;
        }
        let dir = TempDir::new();
        let part = ["echo {}; exit {}", ":::", "0", "1", "2"];
        let all = [&part[..], &["0", "3"]].concat();
        for again in ["--resume", "--resume-failed"] {
            let log = |name: &str| dir.path().join(name).display().to_string();
            let (theirs, ours) = (log(&format!("theirs{again}")), log(&format!("ours{again}")));
            let begin = [&["-k", "--joblog", &theirs], &part[..]].concat();
            gnu_parallel(dir.path(), &begin, "");
            let resume = [&["-k", again, "--joblog", &theirs], &all[..]].concat();
            let theirs = gnu_parallel(dir.path(), &resume, "");

            let begin = [&["run", "-k", "--shell", "--joblog", &ours], &part[..]].concat();
            procpool_in(dir.path(), &begin, b"");
            let options = match again {
                "--resume" => vec!["--resume", &ours],
                _ => vec!["--resume-failed", "--joblog", &ours],
            };
            let resume = [&["run", "-k", "--shell"], &options[..], &all[..]].concat();
            let ran = procpool_in(dir.path(), &resume, b"");
            assert_eq!(ran.out(), theirs, "{again}: {ran:#?}");
            assert!(!theirs.is_empty() && theirs.lines().count() < 5, "{again}: {theirs}");
        }
    });
}
