//! The surroundings of a worker.

use std::process::Command;

use procpool::{JobError, Output, ProcessPool};

use super::jobs::double;
use crate::support::{TempDir, test};

fn variable(name: String) -> Option<String> {
    std::env::var(name).ok()
}

fn variables((): ()) -> Vec<(String, String)> {
    std::env::vars().collect()
}

/// Goal: variables are set before anything of the worker runs; the rest of the environment is the host's;
/// nothing of the pool's own is seen.
///
/// Covers: X13, F-105
#[test]
fn variables_are_set_in_the_workers() {
    test(|| {
        let pool = ProcessPool::builder()
            .workers(1)
            .env("CONFORMANCE_ONE", "1")
            .env("CONFORMANCE_TWO", "first")
            .env("CONFORMANCE_TWO", "second")
            .env("PATH", "")
            .build()
            .unwrap();
        let get = |name: &str| pool.submit(variable, name.into()).result().unwrap();
        assert_eq!(get("CONFORMANCE_ONE").as_deref(), Some("1"));
        assert_eq!(get("CONFORMANCE_TWO").as_deref(), Some("second"));
        assert_eq!(get("PATH").as_deref(), Some(""));
        assert_eq!(get("HOME"), std::env::var("HOME").ok());
        let all = pool.submit(variables, ()).result().unwrap();
        assert!(all.iter().all(|(name, _)| !name.starts_with("PROCPOOL")), "{all:?}");
        assert!(std::env::var("CONFORMANCE_ONE").is_err());
    });
}

/// Goal: with `env_clear` there is nothing but what is set, before or after it.
///
/// Covers: X13, F-105
#[test]
fn a_cleared_environment_has_what_is_set() {
    test(|| {
        let pool = ProcessPool::builder()
            .workers(1)
            .env("A", "1")
            .env_clear()
            .env("B", "2")
            .build()
            .unwrap();
        let mut all = pool.submit(variables, ()).result().unwrap();
        all.sort();
        let expected = [("A", "1"), ("B", "2")].map(|(a, b)| (a.to_owned(), b.to_owned()));
        assert_eq!(all, expected);
    });
}

fn directory((): ()) -> String {
    let directory = std::env::current_dir().unwrap();
    directory.to_str().unwrap().to_owned()
}

/// Goal: workers have the directory that was asked for; one that cannot be entered breaks the pool and is
/// named.
#[test]
fn workers_have_their_directory() {
    test(|| {
        let place = TempDir::new();
        let pool = ProcessPool::builder().workers(1).current_dir(place.path()).build().unwrap();
        let here = place.path().canonicalize().unwrap();
        assert_eq!(pool.submit(directory, ()).result().unwrap(), here.to_str().unwrap());
        let here = std::env::current_dir().unwrap();
        let pool = ProcessPool::builder().workers(1).build().unwrap();
        assert_eq!(pool.submit(directory, ()).result().unwrap(), here.to_str().unwrap());

        let missing = place.path().join("missing");
        let pool = ProcessPool::builder().workers(1).current_dir(&missing).build().unwrap();
        let error = pool.submit(double, 1).result().unwrap_err();
        assert!(matches!(error, JobError::Broken(_)), "{error}");
        assert!(error.to_string().contains(missing.to_str().unwrap()), "{error}");
    });
}

/// Uses so many KiB of stack.
fn deep(kib: u64) -> u64 {
    let frame = std::hint::black_box([1u8; 1024]);
    let below = if kib == 0 { 0 } else { deep(kib - 1) };
    below + u64::from(std::hint::black_box(&frame)[0])
}

/// Goal: jobs have the stack that was asked for, and one that needs more is told of the setting.
///
/// Covers: F-3
#[test]
fn jobs_have_their_stack() {
    test(|| {
        let pool = ProcessPool::builder().workers(1).stack_size(256 << 20).build().unwrap();
        let kib = 64 << 10;
        assert_eq!(pool.submit(deep, kib).result().unwrap(), kib + 1);
        let pool = ProcessPool::builder()
            .workers(1)
            .stack_size(128 << 10)
            .stderr(Output::Capture)
            .build()
            .unwrap();
        let error = pool.submit(deep, kib).result().unwrap_err();
        assert!(matches!(error, JobError::Died(_)), "{error}");
        assert!(error.to_string().contains("stack_size"), "{error}");
    });
}

fn read_all((): ()) -> String {
    std::io::read_to_string(std::io::stdin()).unwrap()
}

fn ask_a_child((): ()) -> (bool, Vec<u8>) {
    let output = Command::new("cat").output().unwrap();
    (output.status.success(), output.stdout)
}

/// Goal: standard input is empty, for jobs and for what they start.
///
/// Covers: X14, F-26
#[test]
fn standard_input_is_empty() {
    test(|| {
        let pool = ProcessPool::builder().workers(1).build().unwrap();
        assert_eq!(pool.submit(read_all, ()).result().unwrap(), "");
        // `output` alone would give the child an empty input of its own: this one inherits.
        let inherit = |()| {
            let status = Command::new("cat").stdout(std::process::Stdio::null()).status().unwrap();
            status.success()
        };
        assert!(pool.submit(inherit, ()).result().unwrap());
        assert_eq!(pool.submit(ask_a_child, ()).result().unwrap(), (true, Vec::new()));
    });
}

fn complain(word: String) {
    eprintln!("{word}");
}

/// A host whose standard error is looked at by [`standard_error_is_passed_on_or_kept`].
#[test]
#[ignore = "run by another test, in a process of its own"]
fn a_host_with_two_pools() {
    for (output, word) in [(Output::Inherit, "inherited"), (Output::Capture, "captured")] {
        let pool = ProcessPool::builder().workers(1).stderr(output).build().unwrap();
        pool.submit(complain, word.to_owned()).result().unwrap();
        assert!(pool.submit(super::jobs::segv, 1).result().unwrap_err().to_string().contains(word));
    }
}

/// Goal: what workers write to standard error comes out of the host's, or nowhere.
#[test]
fn standard_error_is_passed_on_or_kept() {
    test(|| {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "conformance::settings::a_host_with_two_pools"])
            .args(["--ignored", "--nocapture"])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{text}");
        assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"));
        assert!(text.contains("inherited\n"), "{text}");
        assert!(!text.contains("captured"), "{text}");
    });
}
