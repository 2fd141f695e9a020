//! Children in sessions of their own and daemons: nothing of a worker's tree outlives the worker.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use procpool::{EndedBy, Isolation, JobError, ProcessPool, StartMethod, Tree};

use super::{Story, User, tell};
use crate::life::fixture::{Fixture, Watched};
use crate::support::{Meeting, cgroups, describe, meet, test, wait_until};

/// What is promised for the host's death; the other ends are faster, but nothing waits for them.
const GONE_WITHIN: Duration = Duration::from_secs(5);

/// What the job's children do with the worker's standard error.
const KEEP: &str = "";
const LET_GO: &str = "2>&1";

/// Tells the story of a job that starts a child in its own session and a daemon, and ends as `end` says once
/// all are watched; afterwards none may be left. What the host says of the job's end.
fn nothing_is_left(user: User, end: &str, stderr: &str, act: impl FnOnce(&mut Fixture)) -> String {
    let meeting = Meeting::new();
    fs::set_permissions(meeting.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let Story { mut host, _dir } = tell(user, &["tree", end, stderr, &meeting.path()]);
    let tree = host.hear();
    match user {
        User::Own => println!("{end}: {tree}"),
        User::Nobody => assert_eq!(tree, "ProcessGroup"),
    }
    let guest = meeting.next();
    let watched: Vec<Watched> =
        guest.word.split(' ').map(|pid| Watched::new(pid.parse().unwrap())).collect();
    assert_eq!(watched.len(), 3);
    guest.go();
    act(&mut host);
    for process in &watched {
        assert!(
            process.ends_within(GONE_WITHIN),
            "{user:?}, {end}: {} is left: {}",
            process.pid,
            describe(process.pid)
        );
    }
    let said = if end == "wait" { String::new() } else { host.hear() };
    host.kill();
    said
}

/// Goal: `abort` ends what the job has started, daemons that have let go of everything included.
/// Covers: F-20
#[test]
fn an_aborted_job_leaves_no_daemon() {
    test(|| {
        for user in User::all() {
            let said = nothing_is_left(user, "abort", LET_GO, |host| host.say("go"));
            assert_eq!(said, "Err(\"stopped while it ran\")");
        }
    });
}

/// Goal: the same at a time limit.
/// Covers: F-20
#[test]
fn a_job_that_exceeds_its_time_leaves_no_daemon() {
    test(|| {
        for user in User::all() {
            let said = nothing_is_left(user, "timeout", LET_GO, |_| {});
            assert!(said.contains("time limit"), "{said}");
        }
    });
}

/// Goal: the same when the pool is shut down.
/// Covers: F-20
#[test]
fn a_pool_that_is_shut_down_leaves_no_daemon() {
    test(|| {
        for user in User::all() {
            let said = nothing_is_left(user, "shutdown", LET_GO, |host| host.say("go"));
            assert_eq!(said, "Err(\"stopped while it ran\")");
        }
    });
}

/// Goal: the same when the job takes its own worker down, which nobody foresees. Without a cgroup a daemon is
/// found if it still holds the worker's standard error.
/// Covers: F-18, F-20
#[test]
fn a_worker_that_crashes_leaves_no_daemon() {
    test(|| {
        for user in User::all() {
            for end in ["crash", "exit"] {
                let said = nothing_is_left(user, end, KEEP, |_| {});
                assert!(said.contains(" died: "), "{said}");
            }
        }
        nothing_is_left_in_a_cgroup("crash");
    });
}

/// Goal: the same when the worker has done its work and retires.
/// Covers: F-18, F-20
#[test]
fn a_worker_that_retires_leaves_no_daemon() {
    test(|| {
        for user in User::all() {
            let said = nothing_is_left(user, "retire", LET_GO, |_| {});
            assert_eq!(said, "Ok(())");
        }
    });
}

/// Goal: the same when the host is killed and nobody is there to do it for the worker.
/// Covers: F-20, F-61
#[test]
fn a_killed_host_leaves_no_daemon() {
    test(|| {
        for user in User::all() {
            nothing_is_left(user, "wait", LET_GO, Fixture::kill);
        }
    });
}

/// In a cgroup it does not matter what a daemon has let go of.
fn nothing_is_left_in_a_cgroup(end: &str) {
    let pool = ProcessPool::builder().workers(1).build().unwrap();
    if pool.containment().tree == procpool::Tree::Cgroup {
        drop(pool);
        nothing_is_left(User::Own, end, LET_GO, |_| {});
    } else {
        println!("skipped: {}", pool.capabilities().cgroup);
    }
}

/// Goal: a stopped worker exceeds its time like any other, and one that is continued has lost nothing.
/// Covers: F-29
#[test]
fn a_stopped_worker_is_stopped_for_good_at_its_time_limit_and_else_goes_on() {
    test(|| {
        let meeting = Meeting::new();
        let pool =
            ProcessPool::builder().workers(1).grace(Duration::from_millis(100)).build().unwrap();
        let job = |path: String| meet(&path, "");
        let send = |signal| {
            let pid = Pid::from_raw(pool.workers()[0].pid as i32);
            nix::sys::signal::kill(pid, signal).unwrap();
        };
        let future = pool.submit(job, meeting.path());
        let guest = meeting.next();
        send(Signal::SIGSTOP);
        // The signal takes its time, in which the job could end.
        wait_until("it is stopped", || describe(pool.workers()[0].pid).contains(") T "));
        guest.go();
        // Were a stopped process taken for one that has ended, this would be over now; more time could only
        // make the test stronger.
        assert!(!future.wait_timeout(Duration::from_millis(50)));
        send(Signal::SIGCONT);
        future.result().unwrap();

        let future = pool.job(job, meeting.path()).timeout(Duration::from_millis(300)).submit();
        let _guest = meeting.next();
        send(Signal::SIGSTOP);
        let Err(JobError::TimedOut(timeout)) = future.result() else {
            panic!("it was not stopped");
        };
        assert_ne!(timeout.ended_by, EndedBy::Itself);
        pool.submit(|()| (), ()).result().unwrap();
    });
}

/// Goal: a cgroup that others than the pool have killed costs the jobs in it, and no later worker: the kernel kills whoever is
/// born in such a one at any time after.
#[test]
fn a_cgroup_that_others_have_killed_is_not_used_again() {
    const ROOTS: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
    fn kill_own(_: ()) {
        let cgroups = fs::read_to_string("/proc/self/cgroup").unwrap();
        let own = cgroups.lines().find_map(|line| line.strip_prefix("0::")).unwrap();
        let kill = |root| fs::write(format!("{root}{own}/cgroup.kill"), "1");
        assert!(ROOTS.into_iter().any(|root| kill(root).is_ok()));
        loop {
            std::thread::park();
        }
    }
    let pools = [StartMethod::Spawn, StartMethod::ForkServer]
        .into_iter()
        .flat_map(|method| [Isolation::Reuse, Isolation::FreshProcess].map(|i| (method, i)));
    test(|| {
        for (method, isolation) in pools {
            let builder = ProcessPool::builder().workers(2).start_method(method);
            let pool = builder.isolation(isolation).build().unwrap();
            if pool.containment().tree != Tree::Cgroup {
                return println!("skipped: no cgroup can be made here");
            }
            for n in 0..5u32 {
                let died = pool.submit(kill_own, ()).result();
                assert!(
                    matches!(&died, Err(JobError::Died(_))),
                    "{method:?}, {isolation:?}: {died:?}"
                );
                assert_eq!(pool.submit(|n: u32| n, n).result().unwrap(), n);
            }
            // All that there are, those that wait for a worker included.
            let killed = cgroups().into_iter().map(|dir| fs::write(dir.join("cgroup.kill"), "1"));
            assert!(killed.filter(Result::is_ok).count() > 0);
            let mut lost = 0;
            for n in 0..20u32 {
                match pool.submit(|n: u32| n, n).result() {
                    Ok(same) => assert_eq!(same, n),
                    Err(JobError::Died(_)) => lost += 1,
                    other => panic!("{method:?}, {isolation:?}: {other:?}"),
                }
            }
            assert!(lost <= 4, "{method:?}, {isolation:?}: {lost} jobs lost");
        }
    });
}
