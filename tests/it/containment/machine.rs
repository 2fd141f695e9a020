//! What this machine allows, as a pool tells it, and pools on machines that allow less.

use std::path::Path;
use std::process::Command;

use procpool::{Capability, Memory, ProcessPool, Processes, Tree};

use super::{HOST, Story, User, tell};
use crate::life::fixture::{Fixture, is_installed};
use crate::support::{TempDir, test};

/// Goal: what is reported is what is there.
/// Method: the report beside a look at the worker's own cgroup, and beside the files.
#[test]
fn what_holds_a_worker_is_told_as_it_is() {
    test(|| {
        let pool = ProcessPool::builder().workers(1).build().unwrap();
        let before = pool.containment();
        assert_eq!((before.memory, before.processes), (Memory::Unlimited, Processes::Unlimited));
        let read = |file: String| std::fs::read_to_string(file).unwrap();
        let cgroup = pool.submit(read, "/proc/self/cgroup".to_owned()).result().unwrap();
        assert_eq!(pool.containment(), before);
        let is_held =
            cgroup.lines().any(|line| line.starts_with("0::") && line.contains("procpool-"));
        assert_eq!(before.tree == Tree::Cgroup, is_held, "{cgroup}");
        // Version 1 is entered only by those who are limited.
        assert_eq!(cgroup.matches("procpool-").count(), usize::from(is_held), "{cgroup}");
        let capabilities = pool.capabilities();
        println!("{capabilities}");
        assert_eq!(capabilities.to_string().lines().count(), 8);
        assert_eq!(capabilities.cgroup.is_present(), is_held);
        assert_eq!(
            capabilities.children_list.is_present(),
            Path::new("/proc/thread-self/children").exists()
        );
        assert!(capabilities.pidfd.is_present() && capabilities.memfd.is_present());
    });
}

/// Goal: a user who can make no cgroups gets a pool that works, and is told why it holds less.
#[test]
fn a_user_without_cgroups_is_told_why() {
    test(|| {
        if !User::all().contains(&User::Nobody) {
            return;
        }
        let Story { host, _dir } = tell(User::Nobody, &["say"]);
        let left = host.end();
        assert!(left.status.success(), "{left:?}");
        for line in ["cgroup: no: ", "memory controller: no: ", "pids controller: no: "] {
            assert!(left.output.contains(line), "{}", left.output);
        }
        assert!(left.output.contains("\nOk(42)\n"), "{}", left.output);
        assert!(left.output.contains("tree: ProcessGroup"), "{}", left.output);
    });
}

/// Runs the host with a system call refused, and gives what it says. `None` without strace.
fn with_refused(calls: &str, error: &str) -> Option<String> {
    if !is_installed("strace") {
        return None;
    }
    let dir = TempDir::new();
    let log = dir.path().join("log");
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq", "-o"]).arg(&log);
    strace.args(["-e", &format!("trace={calls}"), "-e", &format!("inject={calls}:error={error}")]);
    let left = Fixture::start(strace.arg(HOST).arg("say")).end();
    let log = std::fs::read_to_string(log).unwrap();
    assert!(log.contains("(INJECTED)"), "nothing was refused: {log}");
    assert!(left.status.success(), "{left:?}");
    Some(left.output)
}

/// Goal: without `clone3` a worker is started as ever, and moved to its cgroup.
/// Covers: F-110
#[test]
fn a_system_without_clone3_is_no_hindrance() {
    test(|| {
        let pool = ProcessPool::builder().workers(1).build().unwrap();
        let tree = format!("tree: {:?}", pool.containment().tree);
        if let Some(said) = with_refused("clone3", "ENOSYS") {
            assert!(said.contains("clone into cgroup: no: clone3 is refused"), "{said}");
            assert!(said.contains("\nOk(42)\n"), "{said}");
            assert!(said.contains(&tree), "{said}");
        }
    });
}

/// Goal: what no pool works without is named by the error, and the job does not hang.
/// Covers: F-110
#[test]
fn a_system_call_that_is_refused_is_named() {
    test(|| {
        for (call, error) in
            [("memfd_create", "EPERM"), ("memfd_create", "ENOSYS"), ("pidfd_open", "EPERM")]
        {
            let Some(said) = with_refused(call, error) else { return };
            let result = said
                .lines()
                .find(|line| line.starts_with("Ok(") || line.starts_with("Err("))
                .unwrap();
            // A worker that is born in a cgroup has its pidfd from its birth.
            if call == "memfd_create" || result.starts_with("Err") {
                assert!(result.contains(&format!("{call} is refused")), "{said}");
            }
        }
    });
}

/// Goal: where something is missing, the text says why.
#[test]
fn a_capability_says_why_it_is_missing() {
    let missing = Capability::Missing("forbidden".into());
    assert_eq!((missing.to_string().as_str(), missing.is_present()), ("no: forbidden", false));
    assert_eq!(Capability::Present(String::new()).to_string(), "yes");
    assert_eq!(Capability::Present("version 2".into()).to_string(), "yes: version 2");
}
