//! Memory, and what workers cost that have nothing to do. Hosts are processes of their own, which measure themselves:
//! nothing else is then in their figures.

use std::fs;
use std::thread;
use std::time::Duration;

use nix::sys::time::TimeValLike;
use nix::time::{ClockId, clock_getcpuclockid};
use nix::unistd::Pid;
use procpool::{ProcessPool, Shutdown};

use super::effort::WORKERS;
use super::pools::{Pool, procpool_of, same};
use super::roles;
use super::row::{Row, Unit, quantile};

/// What an argument of [`same`] is encoded to.
const PAYLOAD_BYTES: f64 = 8.0;
/// What a map may grow by between its first tenth and its end, to be called constant.
const GROWTH_MAX: f64 = (1 << 20) as f64;

/// A worker is its host's program, and this one is large: much of what it has in memory is code of peers. cargo names
/// the small one to a benchmark alone, not to the program of the tests that this also is.
const SMALL_PROGRAM: Option<&str> = option_env!("CARGO_BIN_EXE_worker-tasks");
const SMALL: &str = "procpool, a small program";

pub(crate) fn rows() -> Vec<Row> {
    let pending =
        Row::new("pending", "memory for a job that waits, beyond its payload", Unit::Bytes)
            .contestant("procpool", |effort| {
                roles::figure("pending", &[&effort.pending.to_string()])
            })
            .limit("procpool", 300.0)
            .rounds_max(3);
    let long_map = Row::new("long-map", "a map of 10 M items: growth after 1 M", Unit::Bytes)
        .contestant("procpool", |effort| roles::figure("long-map", &[&effort.long_map.to_string()]))
        .limit("procpool", GROWTH_MAX)
        .rounds_max(3);
    let rss = Row::new("rss", "memory of an idle worker", Unit::Bytes)
        .if_there(SMALL_PROGRAM.is_some(), SMALL, |_| of_small_workers(&["VmRSS:"]))
        .contestant("procpool, this program", |_| of_workers(&ProcessPool::warm(), &["VmRSS:"]))
        .if_there(SMALL_PROGRAM.is_some(), "procpool, unshared", |_| {
            of_small_workers(&["RssAnon:", "RssShmem:"])
        })
        .limit(SMALL, 2.5 * 1024.0 * 1024.0);
    let idle = |workers: usize, seconds: f64| {
        roles::figure("idle", &[&workers.to_string(), &seconds.to_string()])
    };
    let idle = Row::new("idle", "CPU time of an idle pool in 3 s, host and workers", Unit::Micros)
        .contestant("procpool, 64 workers", move |e| idle(e.crowds[0], e.idle_seconds))
        .contestant("procpool, 256 workers", move |e| idle(e.crowds[1], e.idle_seconds))
        .limit("procpool, 64 workers", 3_000.0)
        .limit("procpool, 256 workers", 3_000.0)
        .rounds_max(3);
    vec![pending, long_map, rss, idle]
}

/// A line of /proc/PID/status, in bytes.
fn status_bytes(pid: &str, field: &str) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process is there");
    let line = status.lines().find(|line| line.starts_with(field)).expect("Linux has the field");
    let kib = line.split_whitespace().nth(1).and_then(|kib| kib.parse::<f64>().ok());
    kib.expect("a number of KiB") * 1024.0
}

/// Bytes of this process for each job that waits, with the future that its caller has.
pub(crate) fn pending_here(jobs: u64) -> f64 {
    let pool = ProcessPool::start();
    for _ in 0..WORKERS {
        // It keeps its worker busy, so that the others wait. The pool's end is what ends it.
        pool.submit(|()| thread::sleep(Duration::from_secs(3600)), ());
    }
    // What is there once and for all is no job's.
    let first: Vec<_> = (0..jobs / 100).map(|n| pool.submit(same, n)).collect();
    let before = status_bytes("self", "VmRSS:");
    let futures: Vec<_> = (0..jobs).map(|n| pool.submit(same, n)).collect();
    let after = status_bytes("self", "VmRSS:");
    pool.shutdown(Shutdown::Abort);
    drop((first, futures));
    (after - before) / jobs as f64 - PAYLOAD_BYTES
}

/// By how much a map makes this process grow when it is ten times as long.
pub(crate) fn long_map_here(items: u64) -> f64 {
    let pool = ProcessPool::warm();
    let run = |items: u64| {
        let sum: u64 = pool.map(same, 0..items).map(|n| n.expect("a no-op succeeds")).sum();
        assert_eq!(sum, items * (items - 1) / 2);
        status_bytes("self", "VmHWM:")
    };
    let short = run(items / 10);
    run(items) - short
}

/// These lines of the largest worker's status, together.
fn of_workers(pool: &ProcessPool, fields: &[&str]) -> f64 {
    let sum = |pid: u32| fields.iter().map(|field| status_bytes(&pid.to_string(), field)).sum();
    quantile(pool.workers().iter().map(|worker| sum(worker.pid)).collect(), 1.0)
}

fn of_small_workers(fields: &[&str]) -> f64 {
    let program = SMALL_PROGRAM.expect("it is left out where there is none");
    let pool = ProcessPool::builder().workers(WORKERS).worker_program(program).build();
    let pool = pool.expect("a pool can be made");
    pool.warm_up().expect("the workers start");
    of_workers(&pool, fields)
}

/// Microseconds of CPU time in which a pool that has worked does nothing.
pub(crate) fn idle_here(workers: u64, seconds: &str) -> f64 {
    let seconds = Duration::from_secs_f64(seconds.parse().expect("a number of seconds"));
    let pool = procpool_of(usize::try_from(workers).expect("a number of workers"));
    pool.warm_up().expect("the workers start");
    pool.run(1_000);
    let pids: Vec<u32> = pool.workers().iter().map(|worker| worker.pid).collect();
    let clocks: Vec<ClockId> = pids
        .iter()
        .map(|pid| clock_getcpuclockid(Pid::from_raw(pid.cast_signed())))
        .chain([Ok(ClockId::CLOCK_PROCESS_CPUTIME_ID)])
        .collect::<Result<_, _>>()
        .expect("the workers are there");
    let total = || -> i64 {
        let times = clocks.iter().map(|clock| clock.now().expect("the workers are there"));
        times.map(|time| time.num_nanoseconds()).sum()
    };
    // Whoever spins for a while after work has given up by then.
    thread::sleep(Duration::from_millis(200).min(seconds));
    let before = total();
    // What is measured is what they use in this time.
    thread::sleep(seconds);
    (total() - before) as f64 / 1e3
}
