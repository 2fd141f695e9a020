//! Workers that cannot be killed: frozen by a cgroup of version 1, which not even SIGKILL can end before they are
//! thawed (freezer in Documentation/admin-guide/cgroup-v1/freezer-subsystem.rst).

use std::fs;
use std::path::{Path, PathBuf};
use std::process;
use std::time::{Duration, Instant};

use procpool::events::{Event, WorkerEnd};
use procpool::{
    Isolation, JobError, Phase, ProcessPool, ProcessPoolBuilder, Shutdown, StartMethod, Status,
};

use crate::life::fixture::Watched;
use crate::support::{Meeting, describe, meet, test, wait_until};

/// How long the pools of these tests wait for one that was killed.
const UNKILLABLE_AFTER: Duration = Duration::from_millis(200);
/// What a shutdown may take beyond that on a busy machine. Without the end of the wait it is for ever.
const SOON: Duration = Duration::from_secs(10);

/// A cgroup whose processes stand still.
struct Freezer(PathBuf);

impl Freezer {
    /// `None` where none can be made.
    fn new() -> Option<Freezer> {
        let root = Path::new("/sys/fs/cgroup/freezer");
        let path = root.join(format!("procpool-test-{}", process::id()));
        match fs::create_dir(&path) {
            Ok(()) => Some(Freezer(path)),
            Err(error) => {
                println!("skipped: no cgroup of version 1 can freeze here: {error}");
                None
            }
        }
    }

    fn freeze(&self, pid: u32) {
        fs::write(self.0.join("cgroup.procs"), pid.to_string()).unwrap();
        self.set("FROZEN");
        wait_until("it is frozen", || {
            fs::read_to_string(self.0.join("freezer.state")).unwrap().trim() == "FROZEN"
        });
    }

    fn thaw(&self) {
        self.set("THAWED");
    }

    fn set(&self, state: &str) {
        fs::write(self.0.join("freezer.state"), state).unwrap();
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        self.thaw();
        wait_until("the frozen are gone", || fs::remove_dir(&self.0).is_ok());
    }
}

fn pool() -> ProcessPoolBuilder {
    ProcessPool::builder()
        .workers(1)
        .grace(Duration::from_millis(10))
        .unkillable_after(UNKILLABLE_AFTER)
}

fn wait_here(path: String) {
    meet(&path, "");
}

/// Goal: a worker that cannot be killed costs its job, which says so, and nothing else: the next job runs, the
/// pool counts what it has left behind, and reaps it when it ends after all.
/// Covers: F-31
#[test]
fn a_worker_that_cannot_be_killed_costs_its_job_and_is_reaped_late() {
    test(|| {
        let Some(freezer) = Freezer::new() else { return };
        let meeting = Meeting::new();
        let pool = pool().build().unwrap();
        let events = pool.events();
        let future = pool
            .job(wait_here, meeting.path())
            .timeout(Duration::from_millis(100))
            .retries(3)
            .submit();
        let _guest = meeting.next();
        let worker = Watched::new(pool.workers()[0].pid);
        freezer.freeze(worker.pid);
        let error = future.result().unwrap_err();
        let text = error.to_string();
        println!("{text}");
        let JobError::Died(death) = error else { panic!("{text}") };
        assert_eq!(
            (death.status, death.phase, death.pid),
            (Status::Unknown, Phase::Run, worker.pid)
        );
        assert!(text.contains("its time limit of 100ms was over"), "{text}");
        assert!(text.contains("has not ended after 200ms (unkillable_after)"), "{text}");
        assert!(describe(worker.pid).contains(") D "), "{}", describe(worker.pid));

        assert_eq!(pool.submit(|n: i32| n + 1, 1).result().unwrap(), 2);
        let stats = pool.stats();
        assert_eq!((stats.abandoned, stats.workers, stats.deaths), (1, 1, 1), "{stats:?}");
        assert_ne!(pool.workers()[0].pid, worker.pid);

        freezer.thaw();
        assert!(worker.ends_within(SOON));
        wait_until("it is reaped", || pool.stats().abandoned == 0);
        assert!(!Path::new(&format!("/proc/{}", worker.pid)).exists(), "a zombie");
        pool.shutdown(Shutdown::Drain);
        let of_it: Vec<Event> = events
            .filter(|event| match event {
                Event::WorkerAbandoned { pid, .. } | Event::WorkerEnded { pid, .. } => {
                    *pid == worker.pid
                }
                _ => false,
            })
            .collect();
        let [
            Event::WorkerAbandoned { worker: Some(0), job: Some(_), .. },
            Event::WorkerEnded { end: WorkerEnd::Killed, status: Status::Signal(..), .. },
        ] = of_it[..]
        else {
            panic!("{of_it:?}");
        };
    });
}

/// Goal: a shutdown does not wait for a worker that cannot be killed, by whatever means workers come into being,
/// and the worker is reaped although its pool is gone.
/// Covers: F-31
#[test]
fn a_shutdown_does_not_wait_for_a_worker_that_cannot_be_killed() {
    test(|| {
        let Some(freezer) = Freezer::new() else { return };
        for (method, isolation) in [
            (StartMethod::Spawn, Isolation::Reuse),
            (StartMethod::ForkServer, Isolation::Reuse),
            (StartMethod::ForkServer, Isolation::FreshProcess),
        ] {
            let meeting = Meeting::new();
            let pool = pool().start_method(method).isolation(isolation).build().unwrap();
            let future = pool.submit(wait_here, meeting.path());
            let _guest = meeting.next();
            let worker = Watched::new(pool.workers()[0].pid);
            freezer.freeze(worker.pid);
            let began = Instant::now();
            pool.shutdown(Shutdown::Abort);
            assert!(began.elapsed() < UNKILLABLE_AFTER + SOON, "{:?}", began.elapsed());
            assert!(matches!(future.result(), Err(JobError::Cancelled { started: true })));
            assert_eq!(pool.stats().abandoned, 1);
            assert!(!worker.ends_within(Duration::ZERO), "it was not frozen");
            freezer.thaw();
            assert!(worker.ends_within(SOON));
            wait_until("it is reaped", || !Path::new(&format!("/proc/{}", worker.pid)).exists());
        }
    });
}

/// Goal: a fork server that cannot be killed is replaced: jobs that wait for workers get them.
/// Covers: F-31
#[test]
fn a_fork_server_that_cannot_be_killed_is_replaced() {
    test(|| {
        let Some(freezer) = Freezer::new() else { return };
        let pool = pool()
            .start_method(StartMethod::ForkServer)
            .start_timeout(Duration::from_millis(500))
            .restart_limit(100, Duration::from_secs(10))
            .build()
            .unwrap();
        pool.warm_up().unwrap();
        let server = crate::support::children()
            .into_iter()
            .find(|pid| describe(*pid).contains("procpool-fork-server"))
            .unwrap();
        let server = Watched::new(server);
        freezer.freeze(server.pid);
        // Its worker dies, and it does not answer when it is asked for another.
        pool.submit::<_, ()>(|()| process::abort(), ()).result().unwrap_err();
        pool.submit(|()| (), ()).result().unwrap();
        assert_eq!(pool.stats().abandoned, 1);
        freezer.thaw();
        assert!(server.ends_within(SOON));
        pool.shutdown(Shutdown::Drain);
    });
}
