//! What makes no sense is said in one line that names it.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::process::{Command, Stdio};

use super::{procpool, procpool_in};
use crate::support::{TempDir, test};

/// Goal: every wrong usage has one code, one line, and names what is wrong. Nothing is run.
#[test]
fn wrong_usage_is_named_in_one_line() {
    test(|| {
        let cases: [(&[&str], &str); 34] = [
            (&["run"], "COMMAND"),
            (&["run", ":::", "a"], "no command"),
            (&["run", "--bogus", "echo", ":::", "a"], "--bogus"),
            (&["run", "-j0", "echo", ":::", "a"], "--jobs"),
            (&["run", "-j", "many", "echo", ":::", "a"], "'many'"),
            (&["run", "-j", "5000", "echo", ":::", "a"], "5000"),
            (&["run", "--timeout", "soon", "echo", ":::", "a"], "'soon'"),
            (&["run", "--timeout", "0s", "echo", ":::", "a"], "--timeout"),
            (&["run", "--retries", "-1", "echo", ":::", "a"], "-1"),
            (&["run", "-a", "-", "-a", "-", "echo"], "one source only"),
            (&["run", "-j", "-1", "echo", ":::", "a"], "found; tip: "),
            (&["run", "--colsep", "(", "echo", ":::", "a"], "--colsep"),
            (&["run", "--colsep", "x*", "echo", ":::", "a"], "--colsep"),
            (&["run", "--resume-failed", "echo", ":::", "a"], "--resume-failed"),
            (&["run", "--halt", "now", "echo", ":::", "a"], "--halt"),
            (&["run", "--halt", "soon,fail=200%", "echo", ":::", "a"], "--halt"),
            (&["run", "--delay", "x", "echo", ":::", "a"], "--delay"),
            (&["run", "--memfree", "lots", "echo", ":::", "a"], "--memfree"),
            (&["run", "--memory", "much", "echo", ":::", "a"], "--memory"),
            (&["run", "--cpu-timeout", "0", "echo", ":::", "a"], "--cpu-timeout"),
            (&["run", "--nice", "-5", "echo", ":::", "a"], "-5"),
            (&["run", "--nice", "40", "echo", ":::", "a"], "--nice"),
            (&["run", "--env", "A", "echo", ":::", "a"], "--env"),
            (&["run", "--workdir", "/no/such/dir", "echo", ":::", "a"], "/no/such/dir"),
            (&["run", "--workdir", "/dev/null", "echo", ":::", "a"], "--workdir"),
            (&["run", "--json", "--tag", "echo", ":::", "a"], "--tag"),
            (&["run", "-k", "--line-buffer", "echo", ":::", "a"], "--line-buffer"),
            (&["call", "--tag", "--worker", "x", "some::task"], "--tag"),
            (&["call", "some::task"], "--worker"),
            (&["tasks", "--worker"], "--worker"),
            (&["replay"], "CAPSULE"),
            (&["replay", "--debugger", "edb", "x"], "--debugger"),
            (&["completions", "cmd"], "cmd"),
            (&["run", "--progress", "maybe", "echo", ":::", "a"], "--progress"),
        ];
        for (args, named) in cases {
            let ran = procpool(args, b"input\n");
            assert_eq!((ran.code, ran.out()), (102, ""), "{args:?}: {ran:#?}");
            assert_eq!(ran.stderr.lines().count(), 1, "{args:?}: {ran:#?}");
            ran.complains("procpool: ", named);
        }
    });
}

/// Goal: no file is written over that the batch itself needs: its input, or what another option writes.
/// Method: each option with a file that has another use, by another name; what is in the file stays.
#[test]
fn a_file_with_two_uses_is_named_and_left_as_it_is() {
    test(|| {
        let dir = TempDir::new();
        let file = dir.path().join("list");
        let link = dir.path().join("link");
        symlink(&file, &link).unwrap();
        let (list, link) = (file.to_str().unwrap(), link.to_str().unwrap());
        let worker = super::TASKS;
        let cases: [(&[&str], &str); 9] = [
            (&["run", "-a", list, "--joblog", list, "echo"], "--joblog"),
            (&["run", "-a", list, "--joblog", link, "echo"], "--joblog"),
            (&["run", "--resume", link, "echo", "::::", list], "--resume"),
            (&["run", "--report", link, "echo", ":::", "a", "::::", list], "--report"),
            (&["run", "-a", list, "--trace", link, "echo"], "--trace"),
            (&["run", "--joblog", list, "--report", link, "echo", ":::", "a"], "--report"),
            (&["run", "--resume", list, "--trace", link, "echo", ":::", "a"], "--trace"),
            (&["run", "--report", "new", "--trace", "./new", "echo", ":::", "a"], "--trace"),
            (&["call", "--joblog", link, "--worker", worker, "some::task", list], "--joblog"),
        ];
        for (args, option) in cases {
            fs::write(&file, "1\n2\n").unwrap();
            let ran = procpool_in(dir.path(), args, b"");
            assert_eq!((ran.code, ran.out()), (102, ""), "{args:?}: {ran:#?}");
            ran.complains(&format!("procpool: {option}: `"), " as well");
            assert_eq!(fs::read(&file).unwrap(), b"1\n2\n", "{args:?}");
        }
        // Standard input is a file as well.
        let mut command = Command::new(super::PROCPOOL);
        command.args(["run", "--joblog", link, "echo"]).stdin(File::open(&file).unwrap());
        command.stdout(Stdio::null());
        let ran = super::start_command(command).finish();
        assert_eq!(ran.code, 102, "{ran:#?}");
        assert_eq!(fs::read(&file).unwrap(), b"1\n2\n");
        // A device has as many uses as anybody likes.
        let null = ["run", "--joblog", "/dev/null", "--trace", "/dev/null", "echo", ":::", "a"];
        assert_eq!(procpool(&null, b"").code, 0);
    });
}

/// Goal: a command that does not exist is said once, not once for each input, and before any is read.
#[test]
fn a_command_that_is_not_found_is_said_once() {
    test(|| {
        let dir = TempDir::new();
        let file = dir.path().join("not-executable");
        fs::write(&file, "echo").unwrap();
        let cases = [
            ("no-such-command", "there is no program `no-such-command`"),
            ("/no/such/command", "cannot execute `/no/such/command`"),
            (file.to_str().unwrap(), "is not an executable file"),
            ("gzip -9", "no shell is used"),
        ];
        for (command, message) in cases {
            let ran = procpool(&["run", command], b"a\nb\nc\n");
            assert_eq!((ran.code, ran.out()), (127, ""), "{ran:#?}");
            assert_eq!(ran.stderr.lines().count(), 1, "{ran:#?}");
            ran.complains("procpool: ", message);
        }
    });
}

/// Goal: a command is looked for where the jobs look: in the PATH that they are given, and from their directory.
#[test]
fn a_command_is_looked_for_where_jobs_look() {
    test(|| {
        let dir = TempDir::new();
        fs::create_dir(dir.path().join("bin")).unwrap();
        symlink("/bin/echo", dir.path().join("bin/only-here")).unwrap();
        let here = dir.path().to_str().unwrap();
        let path = format!("PATH={here}/bin");
        let ran = procpool(&["run", "--env", &path, "only-here", ":::", "a"], b"");
        assert_eq!((ran.code, ran.out()), (0, "a\n"), "{ran:#?}");
        let args = ["run", "--workdir", here, "--env", "PATH=bin", "only-here", ":::", "a"];
        let ran = procpool(&args, b"");
        assert_eq!((ran.code, ran.out()), (0, "a\n"), "{ran:#?}");
        let ran = procpool(&["run", "--env", &path, "ls", ":::", "a", "b"], b"");
        assert_eq!((ran.code, ran.out()), (127, ""), "{ran:#?}");
        assert_eq!(ran.stderr.lines().count(), 1, "{ran:#?}");
    });
}

/// Goal: a command whose name depends on the input fails for the input for which it does.
#[test]
fn a_command_that_an_input_names_fails_with_that_input() {
    test(|| {
        let args = ["run", "-k", "{}", "x", ":::", "echo", "no-such-command", "echo"];
        let ran = procpool(&args, b"");
        assert_eq!((ran.code, ran.out()), (1, "x\nx\n"), "{ran:#?}");
        ran.complains(
            "procpool: job 2 (input `no-such-command`): cannot start `no-such-command`: ",
            "No such file",
        );
    });
}

/// Goal: help and version are output, not errors; no arguments at all are.
#[test]
fn help_is_there() {
    test(|| {
        for args in [&["--help"][..], &["run", "--help"], &["help", "call"]] {
            let ran = procpool(args, b"");
            assert!(ran.code == 0 && ran.out().contains("Usage: procpool"), "{ran:#?}");
            assert!(ran.out().contains("Exit codes: 0 "), "{ran:#?}");
        }
        assert!(procpool(&["--version"], b"").out().starts_with("procpool 0."));
        assert_eq!(procpool::<&str>(&[], b"").code, 102);
    });
}
