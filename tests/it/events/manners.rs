//! How the library behaves in a host that is not its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::test;

const HOST: &str = env!("CARGO_BIN_EXE_events-host");

/// Goal: through every failure the library prints nothing, changes no signal's disposition or mask, and neither
/// ends nor kills its host.
///
/// Covers: F-71
#[test]
fn a_host_hears_nothing_and_keeps_its_signals() {
    test(|| {
        let output = Command::new(HOST).arg("manners").output().unwrap();
        assert!(output.status.success(), "{output:?}");
        assert_eq!(String::from_utf8_lossy(&output.stdout), "");
        assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    });
}

/// The library's files that run in workers alone, where other rules hold; the last of them between a worker's
/// birth and its program, with the host's mask put back before the host goes on.
const WORKER_SIDE: &[&str] = &[
    "procpool/src/worker/",
    "procpool-sys/src/child.rs",
    "procpool-sys/src/worker.rs",
    "procpool-sys/src/worker/",
    "procpool-sys/src/stack.rs",
    "procpool-sys/src/held.rs",
    "procpool-sys/src/spawn/born.rs",
];

/// What no code of the library may say that runs in the host, and why.
const FORBIDDEN: &[(&str, &str)] = &[
    ("process::exit", "ends the host"),
    ("process::abort", "ends the host"),
    ("libc::exit", "ends the host"),
    ("libc::_exit", "ends the host"),
    ("libc::abort", "ends the host"),
    ("getpid()", "the only process to signal by that number is the host"),
    ("libc::waitpid", "may reap what is not ours; workers are waited for by pidfd"),
    ("waitpid(None", "reaps what is not ours"),
    ("waitpid(Pid::from_raw(-1)", "reaps what is not ours"),
    ("wait::wait(", "reaps what is not ours"),
    ("P_ALL", "reaps what is not ours"),
    ("Id::All", "reaps what is not ours"),
    ("SIGCHLD", "is the host's to handle"),
    ("sigaction", "dispositions are the host's"),
    ("libc::signal(", "dispositions are the host's"),
    ("sigprocmask", "masks are the host's"),
    ("pthread_sigmask", "masks are the host's"),
    ("set_hook", "the panic hook is the host's"),
    ("println!", "the host's streams are the host's"),
    ("eprint", "the host's streams are the host's"),
    ("print!", "the host's streams are the host's"),
    ("dbg!", "the host's streams are the host's"),
    ("set_child_subreaper", "makes the host the parent of strangers"),
];

fn sources(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

/// The lines of code that are not comments, and not in the unit tests at a file's end.
fn code(source: &str) -> impl Iterator<Item = (usize, &str)> {
    let lines = source.lines().enumerate().map(|(at, line)| (at + 1, line.trim_start()));
    lines
        .take_while(|(_, line)| *line != "#[cfg(test)]")
        .filter(|(_, line)| !line.starts_with("//"))
}

/// Goal: what the manners above rest on cannot come in unnoticed.
///
/// Covers: F-70, F-71
#[test]
fn the_hosts_side_of_the_library_has_manners() {
    test(|| {
        let crates = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates");
        let mut files = Vec::new();
        for name in ["procpool", "procpool-sys", "procpool-wire"] {
            sources(&crates.join(name).join("src"), &mut files);
        }
        assert!(files.len() > 40, "{files:?}");
        let worker_side = |path: &Path| {
            let path = path.to_str().unwrap();
            WORKER_SIDE.iter().any(|part| path.contains(part))
        };
        let is_test = |path: &Path| {
            let path = path.to_str().unwrap();
            path.ends_with("/tests.rs") || path.contains("/tests/")
        };
        let mut found = Vec::new();
        for file in files
            .iter()
            .filter(|file| !worker_side(file) && !is_test(file.strip_prefix(&crates).unwrap()))
        {
            let source = fs::read_to_string(file).unwrap();
            for (at, line) in code(&source) {
                for (word, reason) in FORBIDDEN.iter().filter(|(word, _)| line.contains(word)) {
                    found.push(format!("{}:{at}: {word} {reason}", file.display()));
                }
            }
        }
        assert!(found.is_empty(), "{found:#?}");
    });
}

/// Goal: workers that die as soon as they are ready, with no job to blame and none that waits, do not keep their
/// host busy.
/// Method: two seconds of that, the host's own CPU time. A slow machine only makes fewer starts, but dearer ones,
/// and so does a debug build: a tenth of one CPU is allowed.
///
/// Covers: F-44
#[test]
fn a_storm_of_deaths_does_not_keep_the_host_busy() {
    test(|| {
        let output = Command::new(HOST).arg("storm").output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        println!("starts, milliseconds of CPU: {text}");
        let (starts, cpu) = text.trim().split_once(' ').unwrap();
        assert!((3..60).contains(&starts.parse::<u32>().unwrap()), "{text}");
        assert!(cpu.parse::<u32>().unwrap() < 200, "{text}");
    });
}
