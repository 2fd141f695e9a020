//! Limits of memory and processes: what hits them ends, what does not goes on, and the verdict names them.

use std::collections::BTreeSet;
use std::hint;

use procpool::{JobError, Memory, Oom, ProcessPool, Processes, Status};

use super::{Story, User, tell};
use crate::life::fixture::Watched;
use crate::support::{Meeting, meet, say, test};

const MEBIBYTE: usize = 1 << 20;

/// Touches every page of so many bytes.
fn fill(bytes: usize) -> usize {
    hint::black_box(vec![1_u8; bytes]).len()
}

/// Goal: a job that exceeds the memory limit dies of it and of nothing else, the verdict says so, and other
/// workers and the host go on.
/// Method: a cgroup's limit of 64 MiB, and a job that fills 256 MiB while another waits.
/// Covers: F-81
#[test]
fn a_job_that_exceeds_the_memory_limit_dies_of_it_alone() {
    test(|| {
        let limit = 64 * MEBIBYTE;
        let pool = ProcessPool::builder().workers(2).memory_limit(limit as u64).build().unwrap();
        if pool.containment().memory != Memory::Cgroup {
            println!("skipped: {}", pool.capabilities().memory_controller);
            return;
        }
        let meeting = Meeting::new();
        let other = pool.submit(|path: String| meet(&path, ""), meeting.path());
        let guest = meeting.next();
        for _ in 0..2 {
            assert_eq!(pool.submit(fill, limit / 4).result().unwrap(), limit / 4);
            let error = pool.submit(fill, 4 * limit).result().unwrap_err();
            let text = error.to_string();
            let JobError::Died(death) = error else { panic!("{error}") };
            assert_eq!((death.status, death.oom), (Status::Signal(9, false), Oom::Yes), "{text}");
            assert!(death.detail.unwrap().contains("memory limit of 64 MiB"), "{text}");
            assert!(text.contains("out of memory"), "{text}");
        }
        guest.go();
        other.result().unwrap();
        assert_eq!(pool.submit(fill, limit / 4).result().unwrap(), limit / 4);
    });
}

/// Goal: a worker under a memory limit that somebody else kills was not out of memory.
/// Covers: F-81
#[test]
fn a_worker_killed_by_somebody_is_not_out_of_memory() {
    test(|| {
        for limit in [None, Some(64 * MEBIBYTE as u64)] {
            let mut settings = ProcessPool::builder().workers(1);
            if let Some(limit) = limit {
                settings = settings.memory_limit(limit);
            }
            let pool = settings.build().unwrap();
            let suicide = |()| nix::sys::signal::raise(nix::sys::signal::SIGKILL).unwrap();
            let JobError::Died(death) = pool.submit(suicide, ()).result().unwrap_err() else {
                panic!("it lives");
            };
            // Without a limit the machine's own counter is all there is: another process may have been
            // killed for want of memory meanwhile.
            assert_ne!(death.oom, Oom::Yes, "{death}");
            assert!(limit.is_none() || death.oom == Oom::No, "{death:?}");
            assert_eq!(death.detail, None);
        }
    });
}

/// Goal: where no cgroup can be made, the limit is kept by looking: what is reserved does not count, what is used does,
/// that of all processes below the worker together; the verdict is that of a cgroup. Nobody looks at an idle pool.
/// Covers: F-81
#[test]
fn without_a_cgroup_memory_in_use_is_watched() {
    test(|| {
        if !User::all().contains(&User::Nobody) {
            return;
        }
        let Story { mut host, _dir } = tell(User::Nobody, &["watched"]);
        assert_eq!(host.hear(), "Watched");
        assert_eq!(host.hear(), format!("Ok({})", 200 * MEBIBYTE));
        for _ in ["one process", "three of them"] {
            let death = host.hear();
            println!("{death}");
            assert!(death.contains("died: SIGKILL"), "{death}");
            assert!(death.contains("killed at the memory limit of 64 MiB: more than "), "{death}");
            assert!(death.contains("out of memory"), "{death}");
        }
        assert_eq!(host.hear(), "Ok(42)");
        // The last look, and what the end of the job brings. With looks at the distance for an empty worker it is 16.
        let switches: u64 = host.hear().parse().unwrap();
        assert!(switches < 8, "the supervisor woke {switches} times in half a second");
        assert!(host.end().status.success());
    });
}

/// Goal: where no cgroup can be made an allocation far beyond the limit fails, and the verdict names the limit.
/// Covers: F-82
#[test]
fn without_a_cgroup_an_allocation_beyond_the_limit_fails() {
    test(|| {
        if !User::all().contains(&User::Nobody) {
            return;
        }
        let Story { mut host, _dir } = tell(User::Nobody, &["allocate"]);
        assert_eq!(host.hear(), "Watched");
        assert_eq!(host.hear(), format!("Ok({})", 16 * MEBIBYTE));
        let death = host.hear();
        assert!(death.contains("died: SIGABRT"), "{death}");
        assert!(death.contains("memory limit of 64 MiB"), "{death}");
        assert!(death.contains("memory allocation of 2147483648 bytes failed"), "{death}");
        assert_eq!(host.hear(), format!("Ok({})", 16 * MEBIBYTE));
        assert!(host.end().status.success());
    });
}

/// Goal: a process limit holds, as an error in the job that wants more, by whatever means it is kept.
/// Covers: F-84
#[test]
fn a_job_cannot_start_more_processes_than_the_limit() {
    test(|| {
        for user in User::all() {
            let Story { mut host, _dir } = tell(user, &["processes", "12"]);
            let means = host.hear();
            let said = host.hear();
            if user == User::Own && means == "User" {
                println!("skipped as root: {said}");
                continue;
            }
            assert_eq!(means, if user == User::Own { "Cgroup" } else { "User" });
            let count = said.strip_prefix("Ok((").and_then(|rest| rest.split_once(", "));
            let (count, error) = count.unwrap_or_else(|| panic!("{said}"));
            let count: u64 = count.parse().unwrap();
            assert_eq!(error, "\"operation would block\"))", "{user:?}");
            // A worker has two threads itself. Threads of the host that come and go count for its user.
            assert!(
                if user == User::Own { count == 10 } else { (1..=12).contains(&count) },
                "{said}"
            );
            assert!(host.end().status.success());
        }
    });
}

/// A job that forks without end, and each of its children too. Each leaves the group and the session that it was
/// born in.
#[expect(unsafe_code, reason = "a bomb of forks is the point")]
fn bomb(path: String) {
    say(&path, "lit");
    loop {
        // SAFETY: the child does nothing but fork, as its parent does.
        if unsafe { libc::fork() } == 0 {
            // It leads no group, so it can.
            let _ = nix::unistd::setsid();
        }
    }
}

/// Goal: a fork bomb under a process limit is ended by `abort`, all of it; host and pool go on.
/// Method: its processes are known by a variable in their environment. No group holds two of them.
/// Covers: F-21
#[test]
fn nothing_of_a_fork_bomb_is_alive_after_abort() {
    test(|| {
        let meeting = Meeting::new();
        let settings = ProcessPool::builder().workers(1).process_limit(64);
        let pool = settings.env("BOMB", meeting.path()).build().unwrap();
        if pool.containment().processes != Processes::Cgroup {
            println!("skipped: {}", pool.capabilities().pids_controller);
            return;
        }
        let future = pool.submit(bomb, meeting.path());
        assert_eq!(meeting.next().word, "lit");
        let worker = Watched::new(pool.workers()[0].pid);
        crate::support::wait_until("the bomb has gone off", || armed(&meeting.path()).len() > 40);
        let sessions: BTreeSet<u32> =
            armed(&meeting.path()).into_iter().filter_map(session).collect();
        assert!(sessions.len() > 40, "one signal to a group reaches many: {sessions:?}");
        future.abort();
        assert!(matches!(future.result(), Err(JobError::Cancelled { started: true })));
        assert!(worker.ends_within(std::time::Duration::from_secs(2)));
        // They were all sent SIGKILL before the result came; only dying takes its time.
        crate::support::wait_until("all of it is gone", || {
            let replacement = pool.workers().first().map(|worker| worker.pid);
            armed(&meeting.path()).iter().all(|pid| Some(*pid) == replacement)
        });
        assert_eq!(pool.submit(|n: i32| n + 1, 1).result().unwrap(), 2);
    });
}

fn session(pid: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit(')').next()?.split_whitespace().nth(3)?.parse().ok()
}

/// The living processes of the bomb.
fn armed(path: &str) -> Vec<u32> {
    let variable = format!("BOMB={path}");
    let processes = std::fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        // The environment of a process that is gone reads as empty.
        let environment = std::fs::read(entry.path().join("environ")).ok()?;
        environment.split(|byte| *byte == 0).any(|text| text == variable.as_bytes()).then_some(pid)
    });
    processes.collect()
}

/// Goal: limits that make no sense are refused where they are set.
#[test]
fn limits_that_allow_nothing_are_refused() {
    let refused = |builder: procpool::ProcessPoolBuilder| builder.build().unwrap_err();
    assert!(refused(ProcessPool::builder().memory_limit(0)).is_setting());
    assert!(refused(ProcessPool::builder().process_limit(1)).is_setting());
}
