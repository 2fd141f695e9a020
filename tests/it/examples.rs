//! The examples do what they say. Each is run as a program of its own, as a user would.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Command, Output};

use crate::support::{TempDir, test};

fn run(program: &str, arguments: &[&OsStr]) -> Output {
    Command::new(program).args(arguments).output().unwrap()
}

/// The lines that an example printed, having succeeded and complained about nothing.
fn lines(program: &str) -> Vec<String> {
    let output = run(program, &[]);
    let complaints = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{}: {complaints}", output.status);
    assert_eq!(complaints, "");
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(str::to_owned).collect()
}

/// Goal: the program of Python's documentation gives the answers of Python's documentation, twice.
#[test]
fn primes_knows_the_six_numbers() {
    test(|| {
        let lines = lines(env!("CARGO_BIN_EXE_example-primes"));
        let answers = [
            "112272535095293 is prime: true",
            "112582705942171 is prime: true",
            "112272535095293 is prime: true",
            "115280095190773 is prime: true",
            "115797848077099 is prime: true",
            "1099726899285419 is prime: false",
        ];
        assert!(lines[0].starts_with("submit"), "{lines:#?}");
        assert_eq!(lines[1..7], answers);
        assert!(lines[7].starts_with("map"), "{lines:#?}");
        assert_eq!(lines[8..], answers);
    });
}

/// Goal: each URL is reported once by `as_completed` and once, in order, by `map`; the failures too.
#[test]
fn fetch_reports_every_url() {
    test(|| {
        let lines = lines(env!("CARGO_BIN_EXE_example-fetch"));
        assert_eq!(lines.len(), 2 * (1 + 42), "{lines:#?}");
        let expected = |n: usize| match n % 14 {
            5 => (format!("/missing/{n}"), "failed: http status: 404".into()),
            9 => (format!("/broken/{n}"), "failed: http status: 500".into()),
            _ => {
                let path = format!("/page/{n}");
                let len = format!("This is {path}.\n").len() * 100;
                (path, format!("has {len} bytes"))
            }
        };
        // Without the port, which is another each time.
        let got = |line: &str| {
            let (url, what) = line.split_once(' ').unwrap();
            let path = url.strip_prefix("http://127.0.0.1:").unwrap();
            (path[path.find('/').unwrap()..].to_owned(), what.to_owned())
        };
        let expected: Vec<_> = (0..42).map(expected).collect();
        let mut completed: Vec<_> = lines[1..43].iter().map(|line| got(line)).collect();
        let number = |path: &str| path.rsplit('/').next().unwrap().parse::<usize>().unwrap();
        completed.sort_by_key(|(path, _)| number(path));
        assert_eq!(completed, expected);
        let mapped: Vec<_> = lines[44..].iter().map(|line| got(line)).collect();
        assert_eq!(mapped, expected);
    });
}

/// Goal: each way to crash has a verdict of its own that says what happened, who, where, when and why; the jobs
/// beside it are not touched; nothing that the dying workers print reaches the screen, and nothing is left.
#[test]
fn crash_says_of_each_job_how_it_ended() {
    test(|| {
        let lines = lines(env!("CARGO_BIN_EXE_example-crash"));
        let text = lines.join("\n");
        let (verdicts, summary) = text.split_once("\nThe same in a line each").unwrap();
        let verdicts: Vec<&str> = verdicts.trim_end().split("\n\n").collect();
        let expected: [(&str, &[&str]); 11] = [
            ("add: 42", &[]),
            ("segfault: died of SIGSEGV while running", &["why    a bad memory access"]),
            ("abort: died of SIGABRT while running", &["the sum of this does not add up"]),
            ("exit: died of exit code 3 while running", &["called exit(3)"]),
            ("overflow: died of SIGABRT while running", &["has overflowed its stack"]),
            ("add again: 42", &[]),
            ("panic: panicked at ", &["crash.rs:", "why    cannot add 40 and 2"]),
            ("hang: was stopped after 1s", &["it took longer than it may; SIGTERM ended it"]),
            ("poison: given up after 3 attempts", &["attempt 3", "it said \"attempt 3\""]),
            (
                "litter: died of SIGABRT while running",
                &["is left behind", "left   nothing of process"],
            ),
            ("add at last: 42", &[]),
        ];
        assert_eq!(verdicts.len(), expected.len(), "{text}");
        let mut places = BTreeSet::new();
        for (verdict, (start, parts)) in verdicts.iter().zip(expected) {
            assert!(verdict.starts_with(start), "{verdict}");
            for part in parts {
                assert!(verdict.contains(part), "{part} is not in: {verdict}");
            }
            if verdict.ends_with(": 42") {
                continue;
            }
            for part in ["where  worker ", ", process ", "when   ", " s after the start, for "] {
                assert!(verdict.contains(part), "{part} is not in: {verdict}");
            }
            assert!(verdict.lines().all(|line| line.len() <= 80), "{verdict}");
            places.insert(verdict.split_once("crash.rs:").unwrap().1.split('\n').next().unwrap());
        }
        assert_eq!(places.len(), 8, "each is told with its own line: {text}");
        let summary: Vec<&str> = summary.lines().skip(1).collect();
        assert_eq!(summary.len(), 9, "{text}");
        for line in &summary[..8] {
            assert!(line.starts_with("  job ") && line.contains("crash.rs:"), "{line}");
        }
        // Five that died once, the poison's three, and the one that hung.
        assert!(summary[8].ends_with("9 died; left of them: nothing"), "{}", summary[8]);
    });
}

/// Goal: the lines are those of the real `sha256sum`, whatever the files are called, and a file that
/// cannot be read costs itself alone.
#[test]
fn checksums_agrees_with_sha256sum() {
    test(|| {
        let dir = TempDir::new();
        let file = |name: &[u8], content: &[u8]| -> PathBuf {
            let path = dir.path().join(OsStr::from_bytes(name));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, content).unwrap();
            path
        };
        let mut files = vec![
            file(b"empty", b""),
            file(b"deep/er/abc", b"abc"),
            file(b"deep/a name with  spaces", &[0; 100_000]),
            file(b"not \xff UTF-8", b"x"),
            file(b"back\\slash and\nnew line and\rreturn", b"y"),
        ];
        files.extend((0..200).map(|n: u32| {
            let content = n.to_le_bytes().repeat(n as usize);
            file(format!("many/{n}").as_bytes(), &content)
        }));
        let link = dir.path().join("link");
        symlink("deep/er/abc", &link).unwrap();
        files.push(link);
        // Root may read every file, but not one that is not there.
        symlink("nowhere", dir.path().join("dangling")).unwrap();
        symlink("..", dir.path().join("deep/circle")).unwrap();
        nix::unistd::mkfifo(&dir.path().join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();

        let ours = run(env!("CARGO_BIN_EXE_example-checksums"), &[dir.path().as_os_str()]);
        let theirs = Command::new("sha256sum").args(&files).output().unwrap();
        assert!(theirs.status.success(), "{theirs:?}");
        let lines = |output: &Output| -> BTreeSet<Vec<u8>> {
            let lines = output.stdout.split_inclusive(|byte| *byte == b'\n');
            lines.map(<[u8]>::to_owned).collect()
        };
        assert_eq!(lines(&theirs).len(), files.len());
        assert_eq!(lines(&ours), lines(&theirs));
        assert_eq!(ours.stdout.len(), theirs.stdout.len());
        let complaints = String::from_utf8(ours.stderr).unwrap();
        assert_eq!(complaints.lines().count(), 1, "{complaints}");
        assert!(complaints.contains("dangling: No such file"), "{complaints}");
        assert_eq!(ours.status.code(), Some(1));
    });
}

/// Goal: awaited futures come together, in a race, and past a timeout; what lost is stopped, since the
/// program ends long before the ten minutes that those jobs would sleep.
#[test]
fn await_jobs_does_not_wait_for_the_losers() {
    test(|| {
        let lines = lines(env!("CARGO_BIN_EXE_example-await-jobs"));
        assert_eq!(lines.len(), 3, "{lines:#?}");
        assert_eq!(lines[0], "together: 6765, 75025, 832040");
        assert_eq!(lines[1], "the quick job wins with 55");
        // On a busy machine it may not have started within the timeout.
        let ends = ["too late: stopped while it ran", "too late: cancelled before it started"];
        assert!(ends.contains(&lines[2].as_str()), "{lines:#?}");
    });
}
