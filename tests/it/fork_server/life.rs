//! What a forked worker is, and what it can do.

use std::collections::HashMap;
use std::env;
use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::process;
use std::thread;
use std::time::Duration;

use nix::unistd::getppid;
use procpool::{Isolation, JobError, Output, ProcessPool, ProcessPoolBuilder, Shutdown, context};

use super::{builder, find_server, leaves_nobody};
use crate::support::{Meeting, TempDir, children, meet, test, wait_until};

/// Goal: workers run jobs, and are children of the host as those that are executed; the server is one more child
/// and no worker.
#[test]
fn forked_workers_run_jobs_and_are_the_hosts_children() {
    test(|| {
        let pool = builder(2).build().unwrap();
        assert!(children().is_empty(), "nothing is started before the first job");
        pool.warm_up().unwrap();
        assert_eq!(children().len(), 3);
        let server = find_server().unwrap();
        let workers = pool.workers();
        assert!(workers.len() == 2 && workers.iter().all(|worker| worker.pid != server));
        assert_eq!((pool.stats().workers, pool.stats().spawned), (2, 2));
        let (pid, parent, index) = pool
            .submit(
                |()| {
                    let index = context().unwrap().worker_index();
                    (process::id(), getppid().as_raw() as u32, index)
                },
                (),
            )
            .result()
            .unwrap();
        assert_eq!(parent, process::id());
        assert!(workers.iter().any(|worker| (worker.index, worker.pid) == (index, pid)));
        let sum: u64 = pool.map(|n: u64| n * 2, 0..1000).map(Result::unwrap).sum();
        assert_eq!(sum, 999_000);
        leaves_nobody(pool);
    });
}

/// Goal: a fork server's libraries are bound before it forks, and jobs see only what the user has said about that.
#[test]
fn what_the_linker_is_told_is_not_told_to_jobs() {
    const BIND_NOW: &str = "LD_BIND_NOW";
    fn told(_: ()) -> Option<String> {
        env::var(BIND_NOW).ok()
    }
    test(|| {
        let pool = builder(1).build().unwrap();
        let here = env::var(BIND_NOW).ok();
        assert_eq!(pool.submit(told, ()).result().unwrap(), here);
        let server = find_server().unwrap();
        // What it was executed with, as the kernel keeps it.
        let environ = fs::read_to_string(format!("/proc/{server}/environ")).unwrap();
        assert!(environ.split('\0').any(|variable| variable.starts_with(BIND_NOW)), "{environ}");
        leaves_nobody(pool);
        let pool = builder(1).env(BIND_NOW, "users").build().unwrap();
        assert_eq!(pool.submit(told, ()).result().unwrap().as_deref(), Some("users"));
        leaves_nobody(pool);
    });
}

/// Goal: `ps` and `top` tell server and workers apart.
#[test]
fn a_fork_server_is_named_for_what_it_is() {
    test(|| {
        let pool = builder(1).build().unwrap();
        pool.warm_up().unwrap();
        let server = find_server().unwrap();
        let read = |file: &str| fs::read_to_string(format!("/proc/{server}/{file}")).unwrap();
        let program = env::current_exe().unwrap();
        let program = program.file_name().unwrap().to_str().unwrap().to_owned();
        assert_eq!(read("cmdline"), format!("procpool-fork-server of {program}\0"));
        assert_eq!(read("comm"), "procpool-fork\n");
        let worker = pool.workers()[0].pid;
        let command = fs::read_to_string(format!("/proc/{worker}/cmdline")).unwrap();
        assert_eq!(command.trim_end_matches('\0'), format!("procpool-worker 0 of {program}"));
        leaves_nobody(pool);
    });
}

/// Goal: jobs in a forked worker can do what any process can: threads, processes, panics caught, pools of both
/// kinds.
#[test]
fn a_forked_worker_is_a_whole_process() {
    fn everything(_: ()) -> (u64, String, u64, u64) {
        let threads: Vec<_> = (0..4).map(|n| thread::spawn(move || n * 10)).collect();
        let sum = threads.into_iter().map(|thread| thread.join().unwrap()).sum();
        let panicked = std::panic::catch_unwind(|| panic!("{}", "caught"));
        let message = panicked.unwrap_err().downcast::<String>().unwrap();
        let executed = ProcessPool::builder().workers(1).build().unwrap();
        let forked = builder(1).build().unwrap();
        let one = executed.submit(|n: u64| n + 1, 41).result().unwrap();
        let other = forked.submit(|n: u64| n + 2, 41).result().unwrap();
        (sum, *message, one, other)
    }
    test(|| {
        let pool = builder(2).build().unwrap();
        for _ in 0..3 {
            let result = pool.submit(everything, ()).result().unwrap();
            assert_eq!(result, (60, "caught".into(), 42, 43));
        }
        leaves_nobody(pool);
    });
}

/// Goal: panics tell their place and, where asked for, a backtrace.
#[test]
fn a_panic_in_a_forked_worker_tells_everything() {
    fn cry(_: ()) {
        panic!("from a fork");
    }
    test(|| {
        let pool = builder(1).env("RUST_BACKTRACE", "1").build().unwrap();
        match pool.submit(cry, ()).result() {
            Err(JobError::Panicked(panic)) => {
                assert_eq!(panic.message, "from a fork");
                assert!(panic.location.unwrap().contains("life.rs"));
                assert!(panic.backtrace.unwrap().contains("cry"));
            }
            other => panic!("{other:?}"),
        }
        leaves_nobody(pool);
    });
}

/// Goal: the settings of workers mean what they mean elsewhere.
#[test]
fn settings_hold_for_forked_workers() {
    fn deep(levels: usize) -> usize {
        let page = std::hint::black_box([levels; 512]);
        if levels == 0 { 0 } else { 1 + deep(page[7] - 1) }
    }
    fn look(_: ()) -> (Option<String>, Option<String>, String, usize) {
        let dir = env::current_dir().unwrap().to_str().unwrap().to_owned();
        // 40 MiB of the 64 that there are.
        (env::var("WORD").ok(), env::var("HOME").ok(), dir, deep(8_000))
    }
    fn speak_and_die(_: ()) {
        eprintln!("my last words");
        process::abort();
    }
    test(|| {
        let dir = TempDir::new();
        let path = fs::canonicalize(dir.path()).unwrap();
        let pool = builder(1)
            .env_clear()
            .env("WORD", "set")
            .current_dir(&path)
            .stack_size(64 << 20)
            .stderr(Output::Capture)
            .max_jobs_per_worker(2)
            .build()
            .unwrap();
        for _ in 0..4 {
            let (word, home, dir, levels) = pool.submit(look, ()).result().unwrap();
            assert_eq!((word.as_deref(), home, levels), (Some("set"), None, 8_000));
            assert_eq!(dir, path.to_str().unwrap());
        }
        match pool.submit(speak_and_die, ()).result() {
            Err(JobError::Died(death)) => assert!(death.stderr_tail.contains("my last words")),
            other => panic!("{other:?}"),
        }
        leaves_nobody(pool);
    });
}

/// Goal: an initializer runs in each forked worker, once; one that fails breaks the pool.
#[test]
fn an_initializer_runs_in_every_forked_worker() {
    thread_local! {
        static GREETING: std::cell::RefCell<Vec<String>> = const { std::cell::RefCell::new(Vec::new()) };
    }
    fn greet(text: String) {
        GREETING.with_borrow_mut(|greeting| greeting.push(text));
    }
    fn fail(_: ()) -> Result<(), String> {
        Err("no such model".into())
    }
    test(|| {
        let pool = builder(2).initializer(greet, "hello".to_owned()).build().unwrap();
        pool.warm_up().unwrap();
        for _ in 0..10 {
            let greeting = pool.submit(|()| GREETING.with_borrow(Clone::clone), ()).result();
            assert_eq!(greeting.unwrap(), ["hello"]);
        }
        leaves_nobody(pool);
        let pool = builder(2).initializer(fail, ()).build().unwrap();
        match pool.submit(|()| (), ()).result() {
            Err(JobError::Broken(error)) => {
                assert!(error.to_string().contains("no such model"), "{error}");
            }
            other => panic!("{other:?}"),
        }
        wait_until("the server of a broken pool leaves", || find_server().is_none());
        leaves_nobody(pool);
    });
}

/// Goal: hash maps of different workers have different keys: what one attacker learns of one is of no use.
#[test]
fn hash_keys_are_each_workers_own() {
    fn hash(path: String) -> u64 {
        meet(&path, "here");
        RandomState::new().hash_one(7)
    }
    test(|| {
        let preloading = || builder(2).preload(|()| drop(HashMap::from([(1, 2)])), ());
        let fresh = |builder: ProcessPoolBuilder| builder.isolation(Isolation::FreshProcess);
        for builder in [preloading(), fresh(preloading()), fresh(builder(2))] {
            let pool = builder.build().unwrap();
            let meeting = Meeting::new();
            let futures = [(); 2].map(|()| pool.submit(hash, meeting.path()));
            let guests = [(); 2].map(|()| meeting.next());
            guests.into_iter().for_each(crate::support::Guest::go);
            let [one, other] = futures.map(|future| future.result().unwrap());
            assert_ne!(one, other);
            leaves_nobody(pool);
        }
        // One after another in the same worker, which has a child for each.
        let pool = fresh(builder(1)).build().unwrap();
        let hash = |()| RandomState::new().hash_one(7);
        let [one, other] = [(); 2].map(|()| pool.submit(hash, ()).result().unwrap());
        assert_ne!(one, other);
        leaves_nobody(pool);
    });
}

/// Goal: a pool that is shut down while its server loads, or forks, ends at once and leaves nobody.
#[test]
fn a_shutdown_while_the_server_starts_leaves_nobody() {
    fn wait(path: String) {
        meet(&path, "loading");
    }
    test(|| {
        for how in [Shutdown::Abort, Shutdown::CancelPending] {
            let meeting = Meeting::new();
            let pool = builder(4).preload(wait, meeting.path()).build().unwrap();
            let future = pool.submit(|()| (), ());
            let guest = meeting.next();
            pool.shutdown(how);
            assert!(matches!(future.result(), Err(JobError::Cancelled { started: false })));
            drop(guest);
            leaves_nobody(pool);
        }
        // The time is not synchronisation: at any moment the same must hold.
        let mut random = crate::support::Random::new();
        for _ in 0..40 {
            let pool = builder(4).build().unwrap();
            let futures: Vec<_> = (0..8).map(|n| pool.submit(|n: u32| n, n)).collect();
            thread::sleep(Duration::from_micros(random.below(6_000)));
            pool.shutdown(Shutdown::Abort);
            assert!(futures.iter().all(procpool::JobFuture::is_done));
            leaves_nobody(pool);
        }
    });
}
