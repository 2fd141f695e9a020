//! Clocks that jump, and time that passes while the host does not look.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::fixture::Fixture;
use crate::support::test;

/// Goal: a result that was there in time counts, although the host looks only when the time is over.
/// Method: the host is stopped while its job runs, which then ends; it goes on long after the limit.
/// Covers: F-92
#[test]
fn a_host_that_was_suspended_reads_results_before_it_looks_at_the_clock() {
    const LIMIT: Duration = Duration::from_millis(1500);
    test(|| {
        let mut host = Fixture::host(&["suspended", &LIMIT.as_millis().to_string()]);
        assert_eq!(host.hear(), "runs");
        let pid = Pid::from_raw(host.id() as i32);
        kill(pid, Signal::SIGSTOP).unwrap();
        assert_eq!(host.hear(), "ends");
        // The limit has to pass. With less than that the test would see nothing.
        thread::sleep(LIMIT + LIMIT / 10);
        kill(pid, Signal::SIGCONT).unwrap();
        let left = host.end();
        assert_eq!(left.output, "Ok(42)\n", "{left:?}");
    });
}

fn sources(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries
        .flat_map(|path| match path.is_dir() {
            true => sources(&path),
            false => vec![path],
        })
        .collect()
}

/// Goal: to set the clock changes nothing.
/// Method: the library never looks at the clock that can be set: no source of it has its name. All its
/// durations are those of the monotonic clock, which nobody can set. (The program writes the time of day into
/// its joblog and its report, and reads it nowhere else; the daemon's queue is kept over restarts, and so are its
/// moments.)
/// Covers: F-91
#[test]
fn the_library_never_looks_at_the_wall_clock() {
    test(|| {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let (mut seen, mut monotonic) = (0, 0);
        let packages = fs::read_dir(root.join("crates")).unwrap();
        let packages = packages.map(|entry| entry.unwrap().path());
        for package in packages.filter(|path| !path.ends_with("procpool-daemon")) {
            let package = package.join("src");
            for file in sources(&package) {
                let source = fs::read_to_string(&file).unwrap();
                for clock in ["SystemTime", "UNIX_EPOCH", "CLOCK_REALTIME", "gettimeofday"] {
                    assert!(!source.contains(clock), "{}: {clock}", file.display());
                }
                seen += 1;
                monotonic += usize::from(source.contains("CLOCK_MONOTONIC"));
            }
        }
        assert!(seen > 50 && monotonic > 0, "{seen} files, {monotonic} with the other clock");
    });
}
