//! Hosts that make it hard to start workers and to learn of their ends.

use std::fs;
use std::process::Command;

use super::fixture::{Fixture, HOST, METHODS, is_installed};
use crate::support::{TempDir, test};

/// Goal: a host that ignores SIGCHLD, so that no status can be waited for, learns of each death all the same.
/// Covers: F-69
#[test]
fn a_host_that_ignores_sigchld_learns_of_deaths() {
    test(|| {
        for method in METHODS {
            let left = Fixture::host(&["ignorant", method]).end();
            assert!(left.status.success(), "{left:?}");
            assert_eq!(left.output, format!("{}Ok(42)\n", "Unknown\n".repeat(5)));
        }
    });
}

/// Goal: a library that reaps our children takes the status of a death, never the news of it.
/// Method: a thread of the host waits for any child, all the time. Who is first is chance.
/// Covers: F-70
#[test]
fn a_host_whose_children_are_reaped_by_others_learns_of_deaths() {
    test(|| {
        for method in METHODS {
            let left = Fixture::host(&["thief", method]).end();
            assert!(left.status.success(), "{left:?}");
            let lines: Vec<&str> = left.output.lines().collect();
            let (last, deaths) = lines.split_last().unwrap();
            assert_eq!((*last, deaths.len()), ("Ok(42)", 5), "{left:?}");
            for death in deaths {
                assert!(["Unknown", "Signal(6, false)"].contains(death), "{death}");
            }
        }
    });
}

/// Goal: workers start although other threads of the host hold the locks of the allocator and of the
/// environment at that moment, a thousand times.
/// Covers: F-72
#[test]
fn workers_start_from_a_host_that_is_busy_in_eight_threads() {
    test(|| {
        let left = Fixture::host(&["storm"]).end();
        assert!(left.status.success(), "{left:?}");
        assert!(left.output.trim().parse::<u64>().unwrap() >= 1_000, "{left:?}");
    });
}

/// Goal: all workers of a pool have the environment that the host had when the pool was built, whatever the host
/// has changed before they start.
/// Covers: F-105
#[test]
fn workers_have_the_environment_of_when_their_pool_was_built() {
    test(|| {
        for method in METHODS {
            let mut host = Command::new(HOST);
            let left =
                Fixture::start(host.args(["later-variable", method]).env("WORD", "first")).end();
            assert!(left.status.success(), "{left:?}");
            let lines: Vec<&str> = left.output.lines().collect();
            let expected = [
                r#"[Some("first"), None]"#,
                r#"[Some("first"), None]"#,
                r#"[Some("changed 1"), Some("set")]"#,
            ];
            assert_eq!(lines, expected);
        }
    });
}

/// Goal: a host without descriptors to spare keeps the workers that it has, breaks a pool that has none, and
/// starts workers again when there are descriptors again.
/// Covers: F-85
#[test]
fn a_host_without_descriptors_goes_on_with_what_it_has() {
    test(|| {
        let dir = TempDir::new();
        let left = Fixture::host(&["no-descriptors", dir.path().to_str().unwrap()]).end();
        assert!(left.status.success(), "{left:?}");
        let lines: Vec<&str> = left.output.lines().collect();
        assert_eq!(lines[0], "goes on");
        assert_eq!(lines[21..], ["ended", "recovered"]);
        for line in &lines[1..21] {
            assert!(line.contains("cannot start worker"), "{line}");
            assert!(line.contains("Too many open files"), "{line}");
        }
    });
}

/// Goal: a result for which the host has no memory costs its job, not the host.
/// Method: the host limits its own address space to 40 MiB more. One result does not fit into it; of the
/// other, which does, there is no room for the value as well.
/// Covers: F-83
#[test]
fn a_host_without_memory_for_a_result_goes_on() {
    test(|| {
        for (mib, detail) in [
            (64, "no memory for a Payload frame of 67108872 bytes"),
            (24, "no memory for a value of 25165832 bytes"),
        ] {
            // Without address space that the allocator has in reserve for each thread.
            let mut host = Command::new(HOST);
            host.args(["little-memory", &mib.to_string()]).env("MALLOC_ARENA_MAX", "1");
            let left = Fixture::start(&mut host).end();
            assert!(left.status.success(), "{left:?}");
            let lines: Vec<&str> = left.output.lines().collect();
            assert_eq!(lines, [detail, &format!("Ok({})", mib << 20)]);
        }
    });
}

/// Goal: where a sandbox forbids clone3, whose arguments a filter cannot see, workers are forked by the older call.
/// Method: strace refuses clone3 to the host and to all that comes of it, the fork server too.
#[test]
fn a_fork_server_does_without_clone3() {
    if !is_installed("strace") {
        return;
    }
    test(|| {
        let dir = TempDir::new();
        let log = dir.path().join("log");
        let mut strace = Command::new("strace");
        strace
            .args(["-f", "-qq", "-o", log.to_str().unwrap()])
            .args(["-e", "trace=clone,clone3", "-e", "inject=clone3:error=ENOSYS"])
            .args([HOST, "no-processes", "forked"]);
        let left = Fixture::start(&mut strace).end();
        let log = fs::read_to_string(&log).unwrap();
        assert!(left.status.success(), "{left:?}\n{log}");
        assert_eq!(left.output.lines().last(), Some("Ok(42)"), "{left:?}");
        let forks: Vec<&str> = log.lines().filter(|line| line.contains("CLONE_PARENT|")).collect();
        // Into a cgroup, which the older call cannot do; where none can be made there is one refusal only.
        let (refused, made): (Vec<&str>, Vec<&str>) =
            forks.into_iter().partition(|line| line.contains("clone3("));
        assert!(
            !refused.is_empty() && refused.iter().all(|line| line.contains("INJECTED")),
            "{log}"
        );
        let made = made[0];
        assert!(made.contains("clone(") && !made.contains("= -1"), "{log}");
    });
}

/// Goal: a forked worker is born in its cgroup, as one that is executed is: to move there would take it longer than to
/// be forked, and nothing of it is ever outside.
#[test]
fn a_forked_worker_is_born_in_its_cgroup() {
    if !is_installed("strace") {
        return;
    }
    test(|| {
        let pool = procpool::ProcessPool::builder().workers(1).build().unwrap();
        if pool.containment().tree != procpool::Tree::Cgroup {
            return println!("skipped: {}", pool.capabilities().cgroup);
        }
        let dir = TempDir::new();
        let log = dir.path().join("log");
        let mut strace = Command::new("strace");
        strace
            .args(["-f", "-qq", "-o", log.to_str().unwrap(), "-e", "trace=clone3,openat"])
            .args([HOST, "no-processes", "forked"]);
        let left = Fixture::start(&mut strace).end();
        let log = fs::read_to_string(&log).unwrap();
        assert!(left.status.success(), "{left:?}\n{log}");
        let forked = |line: &&str| {
            line.contains("CLONE_PARENT|")
                && line.contains("CLONE_INTO_CGROUP")
                && !line.contains("= -1")
        };
        assert!(log.lines().any(|line| forked(&line)), "{log}");
        let moved: Vec<&str> = log.lines().filter(|line| line.contains("cgroup.procs")).collect();
        assert!(moved.is_empty(), "it has moved: {moved:?}");
    });
}

/// Goal: a system that has no process to give at the moment is asked again.
/// Method: strace refuses the first three processes or threads of each thread of the host. It lets go of
/// the workers once they have executed their program.
#[test]
fn a_refused_process_is_asked_for_again() {
    if !is_installed("strace") {
        return;
    }
    test(|| {
        let dir = TempDir::new();
        let log = dir.path().join("log");
        let calls = "clone,clone3,vfork,fork";
        let mut strace = Command::new("strace");
        strace
            .args(["-f", "-qq", "-b", "execve", "-o", log.to_str().unwrap(), "-e"])
            .arg(format!("trace={calls}"))
            .arg("-e")
            .arg(format!("inject={calls}:error=EAGAIN:when=1..3"))
            .args([HOST, "no-processes"]);
        let left = Fixture::start(&mut strace).end();
        let log = fs::read_to_string(&log).unwrap();
        assert!(left.status.success(), "{left:?}\n{log}");
        assert_eq!(left.output.lines().last(), Some("Ok(42)"), "{left:?}");
        // Those of the supervisor, which starts processes, not threads.
        let refused = |line: &&str| line.contains("CLONE_VFORK") && line.contains("INJECTED");
        assert_eq!(log.lines().filter(refused).count(), 3, "{log}");
    });
}
