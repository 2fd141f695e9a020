//! Programs that forget `init()`, wholly or where it matters.

use std::fs;
use std::process::Command;
use std::time::Duration;

use super::fixture::{Fixture, is_installed};
use crate::support::{TempDir, test, test_within};

/// Goal: a program without `init()` is told so before it starts anything: its worker would be its `main` again.
/// Covers: F-34
#[test]
fn a_forgotten_init_is_told_before_any_process_is_started() {
    test(|| {
        let left = Fixture::start(&mut Command::new(env!("CARGO_BIN_EXE_life-no-init"))).end();
        assert!(left.status.success(), "{left:?}");
        let lines: Vec<&str> = left.output.lines().collect();
        assert!(lines[0].starts_with("true "), "{left:?}");
        assert!(lines[0].contains("procpool::init()") && lines[0].contains("first line of main"));
        assert_eq!(lines[1], "children: ");
    });
}

/// Goal: workers that miss `init()` do not multiply, and every job is told why it did not run.
/// Covers: F-34
#[test]
fn an_init_that_workers_miss_ends_every_job_with_one_sentence() {
    test(|| {
        let dir = TempDir::new();
        let census = dir.path().join("census");
        fs::write(&census, "").unwrap();
        let mut program = Command::new(env!("CARGO_BIN_EXE_life-late-init"));
        let left = Fixture::start(program.arg("host").env("CENSUS", &census)).end();
        assert!(left.status.success(), "{left:?}");
        let processes = fs::read_to_string(&census).unwrap().lines().count();
        // The host, and the two workers of the first try with as many more as the restart limit allows.
        assert!((2..=1 + 2 + 3).contains(&processes), "{processes} processes");
        let lines: Vec<&str> = left.output.lines().collect();
        assert_eq!(lines.len(), 100);
        for line in lines {
            assert!(line.contains("exit code 9"), "{line}");
            assert!(line.contains("did not call procpool::init() first"), "{line}");
        }
    });
}

/// Goal: `procpool::testing!();` works under nextest as it does under `cargo test`.
/// Method: a test of this very binary, run by nextest, which gives each test a process of its own.
#[test]
fn the_line_for_test_files_works_under_nextest() {
    if !is_installed("cargo-nextest") {
        return;
    }
    test_within(Duration::from_secs(600), || {
        let mut nextest = Command::new(env!("CARGO"));
        nextest
            .args(["nextest", "run", "--offline", "-p", "procpool-tests"])
            .args(["--test", "it", "a_job_runs_in_another_process"])
            .current_dir(env!("CARGO_MANIFEST_DIR"));
        let left = Fixture::start(&mut nextest).end();
        assert!(left.status.success(), "{left:?}");
        assert!(left.errors.contains("1 passed"), "{left:?}");
    });
}
