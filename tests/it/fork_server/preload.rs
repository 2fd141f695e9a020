//! What a fork server loads, the good and the bad.

use std::fs::{self, OpenOptions};
use std::hint;
use std::io::Write;
use std::path::Path;
use std::process;
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use procpool::{Error, JobError, Output, ProcessPool, ProcessPoolBuilder, StartMethod};

use super::{builder, find_server, leaves_nobody};
use crate::support::{Guest, Meeting, TempDir, meet, test, wait_gone};

static TABLE: OnceLock<Vec<u64>> = OnceLock::new();

fn fill_table((len, log): (u64, String)) {
    TABLE.set((0..len).collect()).unwrap();
    writeln!(OpenOptions::new().append(true).create(true).open(log).unwrap(), "loaded").unwrap();
}

fn lines(file: &Path) -> usize {
    fs::read_to_string(file).unwrap_or_default().lines().count()
}

/// Goal: what is preloaded is there in every worker, and was loaded once, in a process that is none of them.
#[test]
fn a_preload_runs_once_for_all_workers() {
    fn sum(_: ()) -> u64 {
        TABLE.get().unwrap().iter().sum()
    }
    test(|| {
        let dir = TempDir::new();
        let log = dir.path().join("log");
        let argument = (1_000, log.to_str().unwrap().to_owned());
        let pool = builder(3).max_jobs_per_worker(1).preload(fill_table, argument).build().unwrap();
        assert_eq!(lines(&log), 0, "not before the first job");
        pool.warm_up().unwrap();
        for future in [(); 20].map(|()| pool.submit(sum, ())) {
            assert_eq!(future.result().unwrap(), 499_500);
        }
        assert_eq!(lines(&log), 1);
        assert!(TABLE.get().is_none(), "nothing ran in the host");
        let server = find_server().unwrap();
        kill(Pid::from_raw(server as i32), Signal::SIGKILL).unwrap();
        wait_gone(server);
        for future in [(); 20].map(|()| pool.submit(sum, ())) {
            assert_eq!(future.result().unwrap(), 499_500);
        }
        assert_eq!(lines(&log), 2, "once more, by its successor");
        leaves_nobody(pool);
    });
}

/// Everything that has to happen in a pool whose server cannot start. `cause` stands in what each job is told.
fn breaks(builder: ProcessPoolBuilder, cause: &str) {
    let limit = (3, Duration::from_secs(10));
    let pool = builder.stderr(Output::Capture).restart_limit(limit.0, limit.1).build().unwrap();
    let futures: Vec<_> = (0..20).map(|n| pool.submit(|n: u32| n, n)).collect();
    let named = |error: &Error| {
        assert!(error.is_start(), "{error:?}");
        assert!(error.to_string().contains(cause), "{error}");
    };
    for future in futures {
        match future.result() {
            Err(JobError::Broken(error)) => named(&error),
            other => panic!("not broken: {other:?}"),
        }
    }
    named(&pool.warm_up().unwrap_err());
    assert_eq!(pool.stats().spawned, 0, "no worker was there");
    leaves_nobody(pool);
}

/// Goal: a preload that fails, in whatever way, breaks the pool with its cause, as an initializer does.
#[test]
fn a_preload_that_fails_breaks_the_pool() {
    fn fail(text: String) -> Result<(), String> {
        Err(text)
    }
    fn cry(_: ()) {
        panic!("what a start");
    }
    fn exit(_: ()) {
        eprintln!("I had enough");
        process::exit(3);
    }
    #[expect(unsafe_code, reason = "a real bad write")]
    fn crash(_: ()) {
        // SAFETY: none: nothing is mapped at that address, which is the point.
        unsafe { std::ptr::without_provenance_mut::<u8>(16).write_volatile(1) };
    }
    fn abort(_: ()) {
        process::abort();
    }
    fn overflow(levels: usize) -> usize {
        let page = hint::black_box([levels; 512]);
        if page[7] == usize::MAX { 0 } else { page[8] + overflow(levels + 1) }
    }
    test(|| {
        breaks(builder(2).preload(fail, "no such model".to_owned()), "no such model");
        breaks(builder(2).preload(cry, ()), "what a start");
        breaks(builder(2).preload(exit, ()), "exit code 3");
        breaks(builder(2).preload(exit, ()), "I had enough");
        breaks(builder(2).preload(crash, ()), "SIGSEGV");
        breaks(builder(2).preload(abort, ()), "SIGABRT");
        breaks(builder(2).preload(|()| assert_eq!(overflow(0), 0), ()), "overflowed its stack");
    });
}

/// Goal: a preload that never returns is killed, and breaks the pool.
#[test]
fn a_preload_that_hangs_breaks_the_pool() {
    fn hang(_: ()) {
        loop {
            hint::spin_loop();
        }
    }
    test(|| {
        let builder = builder(2).start_timeout(Duration::from_millis(150)).preload(hang, ());
        breaks(builder, "start_timeout");
    });
}

/// Goal: a thread that a preload leaves running, which no worker would have, is told; one that it has joined is
/// no matter.
#[test]
fn a_preload_that_leaves_threads_breaks_the_pool() {
    fn leave(_: ()) {
        thread::Builder::new().name("left-running".into()).spawn(thread::park).unwrap();
    }
    fn join(_: ()) {
        (0..8).map(|_| thread::spawn(|| ())).for_each(|thread| thread.join().unwrap());
    }
    test(|| {
        breaks(builder(2).preload(leave, ()), "left-running");
        let pool = builder(2).preload(join, ()).build().unwrap();
        assert_eq!(pool.submit(|n: u32| n, 7).result().unwrap(), 7);
        leaves_nobody(pool);
    });
}

/// Goal: files that a preload has opened are open in every worker, under the same number.
#[test]
fn files_of_a_preload_stay_open() {
    static FILE: OnceLock<fs::File> = OnceLock::new();
    fn open(path: String) {
        FILE.set(fs::File::open(path).unwrap()).unwrap();
    }
    fn read(_: ()) -> String {
        use std::os::unix::fs::FileExt;
        let mut bytes = [0; 5];
        FILE.get().unwrap().read_exact_at(&mut bytes, 0).unwrap();
        String::from_utf8(bytes.to_vec()).unwrap()
    }
    test(|| {
        let dir = TempDir::new();
        let path = dir.path().join("file");
        fs::write(&path, "hello").unwrap();
        let path = path.to_str().unwrap().to_owned();
        let pool = builder(2).preload(open, path).max_jobs_per_worker(1).build().unwrap();
        for future in [(); 6].map(|()| pool.submit(read, ())) {
            assert_eq!(future.result().unwrap(), "hello");
        }
        leaves_nobody(pool);
    });
}

/// Goal: a pool that a preload has made and ended does not make the workers' own pools inert.
#[test]
fn a_preload_may_use_a_pool() {
    fn nested(n: u32) -> u32 {
        let pool = ProcessPool::builder().workers(1).build().unwrap();
        pool.submit(|n: u32| n + 1, n).result().unwrap()
    }
    test(|| {
        let pool = builder(1).preload(|n: u32| assert_eq!(nested(n), n + 1), 1).build().unwrap();
        assert_eq!(pool.submit(nested, 41).result().unwrap(), 42);
        leaves_nobody(pool);
    });
}

/// Goal: without a fork server there is nothing to load anything, and `build` says so.
#[test]
fn a_preload_needs_a_fork_server() {
    test(|| {
        for builder in [
            ProcessPool::builder().preload(|()| (), ()),
            builder(1).preload(|()| (), ()).start_method(StartMethod::Spawn),
        ] {
            let error = builder.build().unwrap_err();
            assert!(error.is_setting() && error.to_string().contains("preload"), "{error}");
        }
    });
}

/// Goal: what is preloaded is shared: eight workers that read 512 MiB take little more than these, together.
/// Method: the preload writes each page; each job reads each page and waits until all have. Then the kernel's
/// proportional set sizes are added up, the server's left out.
#[test]
fn eight_workers_share_512_mib() {
    const BYTES: usize = 512 << 20;
    const WORKERS: usize = 8;
    static BIG: OnceLock<Vec<u8>> = OnceLock::new();
    fn load(len: usize) {
        BIG.set((0..len).map(|n| (n >> 12) as u8 | 1).collect()).unwrap();
    }
    fn read(path: String) -> usize {
        let pages = BIG.get().unwrap().iter().step_by(4096);
        let odd = pages.filter(|byte| **byte & 1 == 1).count();
        meet(&path, "read");
        odd
    }
    fn pss(pid: u32) -> usize {
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
        let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).unwrap();
        1024 * line.split_whitespace().next().unwrap().parse::<usize>().unwrap()
    }
    test(|| {
        let timeout = Duration::from_secs(50);
        let builder = builder(WORKERS).preload(load, BYTES).start_timeout(timeout);
        let pool = builder.build().unwrap();
        let meeting = Meeting::new();
        let futures = [(); WORKERS].map(|()| pool.submit(read, meeting.path()));
        let guests = [(); WORKERS].map(|()| meeting.next());
        let workers = pool.workers();
        assert_eq!(workers.len(), WORKERS);
        let all: usize = workers.iter().map(|worker| pss(worker.pid)).sum();
        guests.into_iter().for_each(Guest::go);
        for future in futures {
            assert_eq!(future.result().unwrap(), BYTES / 4096);
        }
        println!("{} MiB", all >> 20);
        // An eighth of them and a bit is the server's part.
        assert!(all > BYTES * 8 / 10, "{all} bytes: they have not read it");
        assert!(all < 600 << 20, "{all} bytes");
        leaves_nobody(pool);
    });
}
