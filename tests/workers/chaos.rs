//! A host whose workers are killed and stopped all along, while jobs are submitted, cancelled and aborted; run
//! under strace, its system calls fail as well. It checks everything that must hold of any such run.
//!
//! Arguments: how many jobs, over how many seconds, the seed, a directory for its ledger, and `reuse` for workers that are
//! executed or `children` for such as have a child for each job.

#![expect(clippy::unwrap_used, reason = "a run that cannot be made fails its test")]

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::ops::Range;
use std::path::Path;
use std::process;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use procpool::{
    Isolation, JobError, JobFuture, Outcome, ProcessPool, Shutdown, StartMethod, Status,
};

#[expect(dead_code, reason = "shared with the tests, which have more to support")]
#[path = "../it/support.rs"]
mod support;

use support::{Random, children};

const WORKERS: usize = 4;
/// So many jobs are under way at a time.
const BATCH: u64 = 500;
/// After so many of them is measured what the rest must not add to.
const FIRST_BATCHES: u64 = 4;
/// What a run may take beyond the time over which it is spread: machines are slow and shared.
const PATIENCE: Duration = Duration::from_secs(120);
/// What the memory of the host may grow by from the first batches to the last: less than a hundred bytes for
/// each job of a long run, and what the allocator keeps.
const GROWTH_MAX: u64 = 8 << 20;

fn main() {
    procpool::init();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [jobs, seconds, seed, dir, kind] = &arguments[..] else { panic!("{arguments:?}") };
    let jobs = jobs.parse::<u64>().unwrap().next_multiple_of(BATCH);
    let time = Duration::from_secs(seconds.parse().unwrap());
    let kind = match kind.as_str() {
        "reuse" => Kind::Reuse,
        "children" => Kind::Children,
        _ => panic!("{kind}"),
    };
    run(kind, jobs, time, seed.parse().unwrap(), &Path::new(dir).join("ledger"));
}

/// What workers there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Reuse,
    Children,
}

impl Kind {
    /// How many processes a pool has that is at rest.
    fn processes(self) -> usize {
        match self {
            Kind::Reuse => WORKERS,
            // And the fork server.
            Kind::Children => WORKERS + 1,
        }
    }

    /// How many descriptors a pool may have at one time, and not at another at which it is at rest as well.
    fn descriptors_kept(self) -> usize {
        match self {
            Kind::Reuse => 0,
            // The pipe and the cgroup of a worker that has left nothing are kept open for the next: two each.
            Kind::Children => 4 * WORKERS,
        }
    }

    fn pool(self) -> ProcessPool {
        let builder = ProcessPool::builder()
            .workers(WORKERS)
            .grace(Duration::from_millis(100))
            // Workers are killed while they start, too, and that is nobody's fault here.
            .restart_limit(u32::MAX, Duration::from_secs(1));
        let builder = match self {
            Kind::Reuse => builder,
            Kind::Children => builder
                .start_method(StartMethod::ForkServer)
                .isolation(Isolation::FreshProcess)
                .spares(0),
        };
        builder.build().unwrap()
    }
}

// ---- the jobs ------------------------------------------------------------------------------------

/// Writes that it runs, and then takes some time, so that much of what happens to its worker hits it.
fn work((number, time, ledger): (u64, Duration, String)) -> u64 {
    static LEDGER: OnceLock<File> = OnceLock::new();
    let open = || OpenOptions::new().append(true).create(true).open(ledger).unwrap();
    // One write is one line, whoever else writes.
    LEDGER.get_or_init(open).write_all(format!("{number}\n").as_bytes()).unwrap();
    thread::sleep(time);
    number * 2
}

/// What is done to a job beside being submitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Left,
    Cancelled,
    Aborted,
    Limited,
}

impl Fate {
    fn random(random: &mut Random) -> Fate {
        match random.below(400) {
            0..40 => Fate::Cancelled,
            40..50 => Fate::Aborted,
            50..60 => Fate::Limited,
            _ => Fate::Left,
        }
    }
}

// ---- what happens to workers ---------------------------------------------------------------------

/// Kills and stops workers until it is over.
fn haunt(pool: &ProcessPool, over: &AtomicBool, mut random: Random) -> (u64, u64) {
    let (mut kills, mut stops) = (0, 0);
    while !over.load(Ordering::Relaxed) {
        let workers = pool.workers();
        if !workers.is_empty() {
            let pid = workers[random.below(workers.len() as u64) as usize].pid;
            if random.below(3) == 0 {
                kills += u64::from(send(pid, Signal::SIGKILL));
            } else {
                stops += u64::from(send(pid, Signal::SIGSTOP));
                thread::sleep(Duration::from_micros(random.below(5_000)));
                send(pid, Signal::SIGCONT);
            }
        }
        // The pace of it all; any will do.
        thread::sleep(Duration::from_micros(random.below(20_000)));
    }
    (kills, stops)
}

/// Signals a worker, if it still is one: the number of one that was reaped may belong to a stranger.
fn send(pid: u32, signal: Signal) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let parent = stat.rsplit(") ").next().and_then(|rest| rest.split_whitespace().nth(1));
    parent == Some(process::id().to_string().as_str())
        && kill(Pid::from_raw(pid as i32), signal).is_ok()
}

// ---- the run -------------------------------------------------------------------------------------

#[derive(Debug, Default)]
struct Counts {
    values: u64,
    killed: u64,
    cancelled: u64,
    aborted: u64,
    timed_out: u64,
}

fn run(kind: Kind, jobs: u64, time: Duration, seed: u64, ledger: &Path) {
    let pool = Arc::new(kind.pool());
    let (finished, watch) = mpsc::channel::<()>();
    let watchdog = {
        let pool = Arc::downgrade(&pool);
        thread::spawn(move || {
            if watch.recv_timeout(time + PATIENCE) == Err(RecvTimeoutError::Timeout) {
                let pool = pool.upgrade();
                let known = pool.map(|pool| (pool.stats(), pool.workers()));
                eprintln!("the run hangs: {known:#?}\n{}", support::state());
                process::abort();
            }
        })
    };
    let mut run = Run {
        pool: &pool,
        ledger: ledger.to_str().unwrap().to_owned(),
        begun: Instant::now(),
        batch_time: time.div_f64((jobs / BATCH) as f64),
        random: Random::of_seed(seed),
        called_back: Arc::default(),
        may_have_run: Vec::with_capacity(jobs as usize),
        must_have_run: Vec::with_capacity(jobs as usize),
        counts: Counts::default(),
    };
    run.haunted(0..FIRST_BATCHES);
    let before = Held::by(&pool, kind);
    run.haunted(FIRST_BATCHES..jobs / BATCH);
    let after = Held::by(&pool, kind);
    println!("{:?} in {:?}", run.counts, run.begun.elapsed());
    println!("{before:?}, then {after:?}");
    let kept = kind.descriptors_kept();
    assert!(after.descriptors <= before.descriptors + kept, "descriptors are left open");
    assert_eq!(before.threads, after.threads);
    assert_eq!(after.children, kind.processes());
    assert!(after.bytes < before.bytes + GROWTH_MAX, "memory has grown");
    run.check_ledger();
    run.check_stats(jobs);
    // Of use: all workers, at once.
    for (number, result) in (0..).zip(pool.map(|n: u64| n + 1, 0..10_000)) {
        assert_eq!(result.unwrap(), number + 1);
    }
    pool.shutdown(Shutdown::Drain);
    assert_eq!(run.called_back.load(Ordering::Relaxed), jobs, "each job ends once");
    assert!(children().is_empty(), "{:?}", children());
    drop(finished);
    watchdog.join().unwrap();
    println!("all is well");
}

struct Run<'p> {
    pool: &'p ProcessPool,
    ledger: String,
    begun: Instant,
    /// How long a batch should take.
    batch_time: Duration,
    random: Random,
    /// How many callbacks have run.
    called_back: Arc<AtomicU64>,
    /// By number, what a job's outcome says.
    may_have_run: Vec<bool>,
    must_have_run: Vec<bool>,
    counts: Counts,
}

impl Run<'_> {
    /// Runs these batches while workers are killed and stopped.
    fn haunted(&mut self, batches: Range<u64>) {
        let over = AtomicBool::new(false);
        let pool = self.pool;
        thread::scope(|scope| {
            let over = &over;
            // The calls that fail are this thread's too.
            let haunting = loop {
                let random = self.random.split();
                let haunt = move || haunt(pool, over, random);
                match thread::Builder::new().spawn_scoped(scope, haunt) {
                    Ok(haunting) => break haunting,
                    Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EAGAIN), "{error}"),
                }
            };
            for batch in batches {
                // Spreads the jobs over the time; nothing depends on it.
                let due = self.batch_time.mul_f64(batch as f64);
                thread::sleep(due.saturating_sub(self.begun.elapsed()));
                self.batch(batch * BATCH..(batch + 1) * BATCH);
            }
            over.store(true, Ordering::Relaxed);
            println!("kills and stops: {:?}", haunting.join().unwrap());
        });
    }

    fn batch(&mut self, numbers: Range<u64>) {
        let mut futures: Vec<(Fate, JobFuture<u64>)> = Vec::new();
        let mut cancelled = vec![false; BATCH as usize];
        for number in numbers.clone() {
            let fate = Fate::random(&mut self.random);
            futures.push((fate, self.submit(number, fate)));
            // One that was submitted lately: most of those wait, some at a worker.
            let lag = self.random.below(futures.len().min(20) as u64) as usize;
            let at = futures.len() - 1 - lag;
            match &futures[at] {
                (Fate::Cancelled, future) => cancelled[at] |= future.cancel(),
                (Fate::Aborted, future) => future.abort(),
                _ => {}
            }
        }
        for ((number, cancelled), (fate, future)) in numbers.zip(cancelled).zip(futures) {
            // Those before it have ended, so it runs, or has just ended, or is about to run.
            let cancelled = cancelled || fate == Fate::Cancelled && future.cancel();
            if fate == Fate::Aborted {
                future.abort();
            }
            self.note(number, fate, cancelled, future.outcome());
        }
    }

    fn submit(&mut self, number: u64, fate: Fate) -> JobFuture<u64> {
        // So that the workers are busy most of the time.
        let mean = self.batch_time.mul_f64(0.7 * WORKERS as f64 / BATCH as f64);
        let time = mean.mul_f64(self.random.below(200) as f64 / 100.0);
        let job = self.pool.job(work, (number, time, self.ledger.clone()));
        let future = match fate {
            Fate::Limited => job.timeout(mean).submit(),
            _ => job.submit(),
        };
        let called_back = Arc::clone(&self.called_back);
        future.on_done(move |_| {
            called_back.fetch_add(1, Ordering::Relaxed);
        });
        future
    }

    fn note(&mut self, number: u64, fate: Fate, cancelled: bool, outcome: Outcome<u64>) {
        let counts = &mut self.counts;
        let (may, must, count) = match outcome.result {
            Ok(value) => {
                assert_eq!(value, number * 2);
                (true, true, &mut counts.values)
            }
            Err(JobError::Cancelled { started: false }) => {
                assert!(cancelled || fate == Fate::Aborted, "{number}: {fate:?}");
                (false, false, &mut counts.cancelled)
            }
            Err(JobError::Cancelled { started: true }) if fate == Fate::Aborted => {
                (true, false, &mut counts.aborted)
            }
            Err(JobError::TimedOut(_)) if fate == Fate::Limited => {
                (true, false, &mut counts.timed_out)
            }
            Err(JobError::Died(death)) => {
                let killed = Status::Signal(nix::libc::SIGKILL, false);
                assert_eq!((death.status, &death.detail), (killed, &None), "{number}: {death:?}");
                (true, false, &mut counts.killed)
            }
            Err(error) => panic!("{number}, {fate:?}: {error:?}"),
        };
        *count += 1;
        assert!(!(cancelled && may), "{number} was cancelled and may have run");
        assert!(outcome.report.attempts <= 1, "{number}: {:?}", outcome.report);
        self.may_have_run.push(may);
        self.must_have_run.push(must);
    }

    fn check_ledger(&self) {
        let mut ran = vec![false; self.may_have_run.len()];
        for line in fs::read_to_string(&self.ledger).unwrap().lines() {
            let number: usize = line.parse().unwrap();
            assert!(!ran[number], "{number} ran twice");
            ran[number] = true;
        }
        for (number, ran) in ran.into_iter().enumerate() {
            assert!(!ran || self.may_have_run[number], "{number} ran and was cancelled");
            assert!(ran || !self.must_have_run[number], "{number} has a value and never ran");
        }
    }

    fn check_stats(&self, jobs: u64) {
        let (stats, counts) = (self.pool.stats(), &self.counts);
        println!("{stats:?}");
        assert_eq!((stats.running, stats.queued), (0, 0));
        assert_eq!(stats.submitted, jobs);
        assert_eq!(stats.finished, counts.values);
        assert_eq!(stats.failed, counts.killed + counts.timed_out);
        assert_eq!(stats.cancelled, counts.cancelled + counts.aborted);
        assert!(stats.deaths > 0, "nothing was killed");
    }
}

// ---- what the host holds -------------------------------------------------------------------------

#[derive(Debug)]
struct Held {
    descriptors: usize,
    threads: usize,
    children: usize,
    bytes: u64,
}

impl Held {
    /// While all workers are there, whatever is done to them.
    fn by(pool: &ProcessPool, kind: Kind) -> Held {
        let descriptors = || fs::read_dir("/proc/self/fd").unwrap().count();
        // Threads for callbacks are as many as were ever needed at once.
        let threads =
            || support::pool_threads().iter().filter(|name| *name != "procpool-done").count();
        // As few as there were at any moment of a while: a worker that comes or goes holds some for that long.
        // A longer while is only slower.
        let looks = (0..50).map(|_| {
            pool.warm_up().unwrap();
            thread::sleep(Duration::from_millis(2));
            (descriptors(), threads(), children().len())
        });
        let all: Vec<_> = looks.filter(|(.., children)| *children == kind.processes()).collect();
        let (descriptors, threads, children) = *all.iter().min().unwrap();
        Held { descriptors, threads, children, bytes: resident() }
    }
}

fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    1024 * line.split_whitespace().next().unwrap().parse::<u64>().unwrap()
}
