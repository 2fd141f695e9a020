//! GNU parallel's own program beside ours: the same words must give the same bytes. Where it is not
//! installed, this is said, and nothing is compared.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use super::procpool_in;
use crate::support::{TempDir, test};

/// What it prints in `dir`.
fn gnu_parallel(dir: &Path, args: &[&str], input: &str) -> String {
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
    String::from_utf8(output.stdout).unwrap()
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
