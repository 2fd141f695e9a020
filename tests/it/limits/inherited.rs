//! What a worker has from its host's limits, and what not.

use std::fs;
use std::thread;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::{Mode, umask};
use nix::unistd::Pid;
use procpool::{JobError, ProcessPool, Status};

use super::limit_of;
use crate::support::{TempDir, test};

fn cpus((): ()) -> Vec<usize> {
    let set = sched_getaffinity(Pid::from_raw(0)).unwrap();
    (0..CpuSet::count()).filter(|cpu| set.is_set(*cpu).unwrap()).collect()
}

/// Runs `body` on a thread that may use these CPUs only, as its pools may then.
fn on_cpus(cpus: &[usize], body: impl FnOnce() + Send) {
    let mut set = CpuSet::new();
    cpus.iter().for_each(|cpu| set.set(*cpu).unwrap());
    thread::scope(|scope| {
        scope.spawn(move || {
            sched_setaffinity(Pid::from_raw(0), &set).unwrap();
            body();
        });
    });
}

/// Raises the soft limit on core files while it lives.
struct CoresAllowed(u64, u64);

impl CoresAllowed {
    fn new() -> CoresAllowed {
        let (soft, hard) = getrlimit(Resource::RLIMIT_CORE).unwrap();
        setrlimit(Resource::RLIMIT_CORE, hard, hard).unwrap();
        CoresAllowed(soft, hard)
    }
}

impl Drop for CoresAllowed {
    fn drop(&mut self) {
        setrlimit(Resource::RLIMIT_CORE, self.0, self.1).unwrap();
    }
}

/// Goal: a crash leaves no core file, whatever the host allows; with `core_size_limit` it does.
/// Method: the host allows cores, the job writes to address 8 in a directory of its own.
///
/// Covers: F-99
#[test]
fn a_crash_leaves_no_core_unless_asked_for() {
    #[expect(unsafe_code, reason = "a real bad write is what this is about")]
    fn segv((): ()) {
        // SAFETY: it is not; nothing is mapped there, and the process dies of it.
        unsafe { std::ptr::without_provenance_mut::<u8>(8).write_volatile(1) };
    }
    test(|| {
        let allowed = CoresAllowed::new();
        for size in [0, 64 << 20] {
            let place = TempDir::new();
            let pool = ProcessPool::builder()
                .workers(1)
                .current_dir(place.path())
                .core_size_limit(size)
                .build()
                .unwrap();
            let Err(JobError::Died(death)) = pool.submit(segv, ()).result() else {
                panic!("it did not die");
            };
            drop(pool);
            let cores = fs::read_dir(place.path()).unwrap().count();
            // Where the kernel hands cores to a program there is no file in either case.
            let pattern = fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
            if size > 0 && allowed.1 >= size && pattern.starts_with("core") {
                assert_eq!((death.status, cores), (Status::Signal(libc::SIGSEGV, true), 1));
            } else if size == 0 {
                assert_eq!((death.status, cores), (Status::Signal(libc::SIGSEGV, false), 0));
            } else {
                println!("skipped: cores go to {pattern:?}, hard limit {}", allowed.1);
            }
        }
    });
}

/// Goal: a host that may use one CPU has one worker by default, and it may use that one.
///
/// Covers: F-101
#[test]
fn a_pool_has_a_worker_for_each_cpu_of_its_own() {
    test(|| {
        let all = cpus(());
        for count in 1..=all.len().min(2) {
            on_cpus(&all[..count], || {
                let pool = ProcessPool::new().unwrap();
                pool.warm_up().unwrap();
                assert_eq!(pool.workers().len(), count);
                assert_eq!(pool.submit(cpus, ()).result().unwrap(), all[..count]);
            });
        }
    });
}

/// Goal: pinned workers are spread over the CPUs of the host's own mask, in order and around.
#[test]
fn pinned_workers_take_the_cpus_in_turn() {
    test(|| {
        let all = cpus(());
        if all.len() < 2 {
            return println!("skipped: there is one CPU");
        }
        let mine = &all[..2];
        on_cpus(mine, || {
            let pool = ProcessPool::builder().workers(3).pin_cpus(true).build().unwrap();
            pool.warm_up().unwrap();
            let mut seen = std::collections::BTreeMap::new();
            while seen.len() < 3 {
                let jobs: Vec<_> = (0..12).map(|_| pool.submit(cpus, ())).collect();
                for job in jobs {
                    let outcome = job.outcome();
                    seen.insert(outcome.report.worker.unwrap(), outcome.result.unwrap());
                }
            }
            for (worker, cpus) in seen {
                assert_eq!(cpus, [mine[worker % 2]], "worker {worker}");
            }
        });
    });
}

/// What a worker has from its host without having been asked: umask, limits, nice, CPUs.
fn surroundings((): ()) -> Vec<String> {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = |name: &str| status.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let nice = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(16).unwrap().to_owned();
    vec![
        line("Umask"),
        line("Cpus_allowed_list"),
        format!("nice {nice}"),
        limit_of("Max open files").0,
    ]
}

/// Goal: what documentation says is inherited is: umask, nice value, CPUs, limits; and a setting replaces it.
///
/// Covers: F-107
#[test]
fn a_worker_inherits_umask_nice_cpus_and_limits() {
    test(|| {
        let before = umask(Mode::from_bits_truncate(0o137));
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, 500, hard).unwrap();
        let pool = ProcessPool::builder().workers(1).build().unwrap();
        let seen = pool.submit(surroundings, ()).result();
        let other = ProcessPool::builder().workers(1).open_files_limit(400).build().unwrap();
        let overridden = other.submit(surroundings, ()).result();
        let mine = surroundings(());
        setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
        umask(before);
        let (seen, overridden) = (seen.unwrap(), overridden.unwrap());
        assert_eq!(seen, mine);
        assert!(seen[0].ends_with("0137"), "{seen:?}");
        assert_eq!(seen[3], "500");
        assert_eq!(overridden[3], "400");
    });
}
