//! Everything at once: workers killed and stopped, system calls that fail, jobs cancelled and aborted.
//!
//! The host is a program of its own, `workers/chaos.rs`, which also checks what has to hold.
//! `PROCPOOL_CHAOS_JOBS` and `PROCPOOL_CHAOS_SECONDS` make the run longer, `PROCPOOL_SEED` repeats one.

use std::fs;
use std::process::Command;
use std::time::Duration;

use crate::life::fixture::{Fixture, is_installed};
use crate::support::{Random, TempDir, test_within};

const CHAOS: &str = env!("CARGO_BIN_EXE_chaos");
/// A run of the ordinary suite: long enough for a hundred deaths.
const JOBS: u64 = 5_000;
const SECONDS: u64 = 3;

/// Which system calls fail, and how often: each thread's first few succeed, so that there is a host at all, and
/// then every so many fails. Starting a worker takes one of the first kind and one each of the others.
const FAILURES: [(&str, &str, &str); 2] =
    [("clone,clone3,vfork,fork", "EAGAIN", "7+9"), ("socketpair,memfd_create", "EMFILE", "9+14")];

fn setting(name: &str, usual: u64) -> u64 {
    std::env::var(name).map_or(usual, |value| value.parse().unwrap())
}

/// Goal: whatever fails when, each job has one outcome and starts at most once, the pool is of use afterwards,
/// and nothing is left: neither memory nor descriptors, threads, or processes.
/// Method: strace has system calls of the host fail; its log proves it. It lets go of workers once they have
/// executed their program: strace 6.1 gives up when a process that it traces is stopped and continued at once.
/// For the same reason there is no filter in the kernel, which the workers would keep.
#[test]
fn random_faults_of_all_kinds_cost_the_jobs_that_they_hit_alone() {
    chaos("reuse", &["EAGAIN", "EMFILE"]);
}

/// Goal: the same of workers off a fork server that have a child for each job, where a cgroup can be made.
#[test]
fn random_faults_cost_the_jobs_that_they_hit_alone_where_each_has_a_process() {
    // Workers are the fork server's clones, which strace has let go of.
    chaos("children", &["EMFILE"]);
}

/// `errors` are those that must have come up.
fn chaos(kind: &str, errors: &[&str]) {
    let jobs = setting("PROCPOOL_CHAOS_JOBS", JOBS);
    let seconds = setting("PROCPOOL_CHAOS_SECONDS", SECONDS);
    test_within(Duration::from_secs(seconds + 200), || {
        let seed = Random::new().next().to_string();
        let dir = TempDir::new();
        let log = dir.path().join("strace");
        let has_strace = is_installed("strace");
        let mut command = Command::new(if has_strace { "strace" } else { CHAOS });
        if has_strace {
            let calls = FAILURES.map(|(calls, ..)| calls).join(",");
            command.args(["-f", "-qq", "-b", "execve", "-o"]).arg(&log);
            command.arg("-e").arg(format!("trace={calls}"));
            for (calls, error, when) in FAILURES {
                command.arg("-e").arg(format!("inject={calls}:error={error}:when={when}"));
            }
            command.arg(CHAOS);
        }
        command.args([&jobs.to_string(), &seconds.to_string(), &seed]).arg(dir.path()).arg(kind);
        let left = Fixture::start(&mut command).end();
        println!("{}\n{}", left.output, left.errors);
        assert!(left.status.success(), "seed {seed}: {:?}", left.status);
        assert_eq!(left.output.lines().last(), Some("all is well"));
        if has_strace {
            let log = fs::read_to_string(&log).unwrap();
            for error in errors {
                let injected =
                    log.lines().filter(|line| line.contains(*error) && line.contains("(INJECTED)"));
                let count = injected.count();
                println!("{error} {count} times");
                assert!(count > 0, "no system call has failed with {error}");
            }
        }
    });
}
