//! Work for the processors, beside threads that steal from each other; and short jobs behind a long one.

use std::hint::black_box;
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use procpool::ProcessPool;
use rayon::iter::{IntoParallelIterator, ParallelIterator};

use super::effort::{Effort, WORKERS};
use super::pools::{Pool, micros};
use super::row::{Row, Unit};

const SHORT_JOBS: u64 = 200;

pub(crate) fn rows() -> Vec<Row> {
    let row = |name, title, micros, target| {
        Row::new(name, title, Unit::PerSecond)
            .contestant("procpool", move |effort| {
                let pool = ProcessPool::warm();
                rate(effort, micros, |jobs| {
                    for result in pool.map(work, jobs) {
                        result.expect("it succeeds");
                    }
                })
            })
            .contestant("rayon", move |effort| {
                let threads = rayon::ThreadPoolBuilder::new().num_threads(WORKERS).build();
                let threads = threads.expect("threads can be started");
                rate(effort, micros, |jobs| {
                    let results: Vec<u64> =
                        threads.install(|| jobs.into_par_iter().map(work).collect());
                    black_box(results);
                })
            })
            .target("procpool", target, "rayon")
    };
    let behind = Row::new("behind", "200 jobs of 1 ms beside one of 2 s", Unit::Micros)
        .contestant("procpool", behind_a_long_job)
        .limit("procpool", 600e3)
        .rounds_max(3);
    vec![
        row("cpu-100us", "jobs that compute for 100 µs", 100.0, 0.85),
        row("cpu-1ms", "jobs that compute for 1 ms", 1_000.0, 0.95),
        row("cpu-10ms", "jobs that compute for 10 ms", 10_000.0, 0.97),
        behind,
    ]
}

/// Computes for so many steps.
fn work(steps: u64) -> u64 {
    // A multiplication and a rotation that each need the one before: no memory, no vectors.
    (0..steps).fold(black_box(1), |n: u64, step| {
        (n ^ step).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(5)
    })
}

/// Steps in a microsecond, measured once: all contestants do the same work.
fn steps_per_micro() -> f64 {
    static STEPS: OnceLock<f64> = OnceLock::new();
    *STEPS.get_or_init(|| {
        const STEPS: u64 = 2_000_000;
        let time = |_| {
            let start = Instant::now();
            black_box(work(STEPS));
            micros(start)
        };
        STEPS as f64 / (0..5).map(time).fold(f64::INFINITY, f64::min)
    })
}

/// Jobs a second.
fn rate(effort: &Effort, micros: f64, run: impl Fn(Vec<u64>)) -> f64 {
    let steps = (micros * steps_per_micro()) as u64;
    let count = (effort.compute_seconds * 1e6 / micros) as usize * WORKERS;
    let jobs = vec![steps; count.max(WORKERS)];
    run(jobs[..WORKERS].to_vec());
    let start = Instant::now();
    run(jobs.clone());
    jobs.len() as f64 / start.elapsed().as_secs_f64()
}

/// How long the short jobs take.
fn behind_a_long_job(effort: &Effort) -> f64 {
    let pool = ProcessPool::warm();
    let long = Duration::from_secs_f64(effort.long_job_seconds);
    let start = Instant::now();
    // Jobs that take a known time and no processor: the row is about who waits for whom.
    let long = pool.submit(thread::sleep, long);
    let short = (0..SHORT_JOBS).map(|_| pool.submit(thread::sleep, Duration::from_millis(1)));
    for future in short.collect::<Vec<_>>() {
        future.result().expect("it succeeds");
    }
    let time = micros(start);
    long.abort();
    time
}
