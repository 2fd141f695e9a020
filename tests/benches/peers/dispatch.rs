//! Jobs that do nothing: what the way there and back costs.

use std::time::{Duration, Instant};

use procpool::ProcessPool;

use super::effort::Effort;
use super::pools::{Pool, SharedChannel, Threads, micros, procpool_of, same};
use super::python;
use super::row::{Row, Unit, quantile};

pub(crate) const EXECUTOR: &str = "ProcessPoolExecutor";
pub(crate) const MP_POOL: &str = "multiprocessing.Pool";
const THREADS: &str = "threadpool, a channel a job";
const ONE_CHANNEL: &str = "threadpool, one channel";

pub(crate) fn rows() -> Vec<Row> {
    let python = python::is_there();
    let jobs = Row::new("jobs", "jobs, one future each", Unit::PerSecond)
        .contestant("procpool", jobs::<ProcessPool>)
        .contestant(THREADS, jobs::<Threads>)
        .contestant(ONE_CHANNEL, jobs::<SharedChannel>)
        .contestant("procspawn", jobs::<procspawn::Pool>)
        .if_there(python, EXECUTOR, |effort| python::figure("jobs", "executor", effort))
        .if_there(python, MP_POOL, |effort| python::figure("jobs", "pool", effort))
        .target("procpool", 1.0, THREADS)
        .target("procpool", 1.0, ONE_CHANNEL);
    let map = Row::new("map", "map of no-ops, automatic chunks", Unit::PerSecond)
        .contestant("procpool", map)
        .if_there(python, EXECUTOR, |effort| python::figure("map", "executor", effort))
        .if_there(python, MP_POOL, |effort| python::figure("map", "pool", effort))
        .target("procpool", 3.0, MP_POOL);
    let crowds = Row::new("crowds", "jobs, by number of workers", Unit::PerSecond)
        .contestant("procpool, 64 workers", |effort| jobs_with(effort.crowds[0], effort))
        .contestant("procpool, 256 workers", |effort| jobs_with(effort.crowds[1], effort))
        .contestant("procpool, 2 workers", |effort| jobs_with(2, effort))
        .target("procpool, 64 workers", 0.7, "procpool, 2 workers")
        .target("procpool, 256 workers", 0.7, "procpool, 2 workers");
    let start = Row::new("life", "fresh pool, two jobs, end", Unit::Micros)
        .contestant("procpool", life::<ProcessPool>)
        .contestant(THREADS, life::<Threads>)
        .contestant("procspawn", life::<procspawn::Pool>)
        .if_there(python, EXECUTOR, |effort| python::figure("life", "executor", effort))
        .if_there(python, MP_POOL, |effort| python::figure("life", "pool", effort));
    vec![jobs, map, crowds, start]
}

fn jobs<P: Pool>(effort: &Effort) -> f64 {
    let pool = P::warm();
    let rate = rate(&pool, effort);
    pool.end();
    rate
}

fn jobs_with(workers: usize, effort: &Effort) -> f64 {
    let pool = procpool_of(workers);
    pool.warm_up().expect("the workers start");
    pool.run(100);
    rate(&pool, effort)
}

fn rate<P: Pool>(pool: &P, effort: &Effort) -> f64 {
    let batch = effort.batch.min(P::PENDING_MAX);
    let start = Instant::now();
    let mut jobs = 0;
    while jobs == 0 || start.elapsed() < Duration::from_secs_f64(effort.seconds) {
        pool.run(batch);
        jobs += batch;
    }
    jobs as f64 / start.elapsed().as_secs_f64()
}

fn map(effort: &Effort) -> f64 {
    let pool = ProcessPool::warm();
    let start = Instant::now();
    let sum: u64 = pool.map(same, 0..effort.items).map(|n| n.expect("a no-op succeeds")).sum();
    let rate = effort.items as f64 / start.elapsed().as_secs_f64();
    assert_eq!(sum, effort.items * (effort.items - 1) / 2);
    rate
}

/// The times of jobs that are waited for one by one, at this quantile.
pub(crate) fn trips<P: Pool>(effort: &Effort, at: f64) -> f64 {
    let pool = P::warm();
    let trip = |n| {
        let start = Instant::now();
        pool.result(pool.submit(n));
        micros(start)
    };
    let trips: Vec<f64> = (0..effort.trips as u64).map(trip).collect();
    pool.end();
    quantile(trips, at)
}

fn life<P: Pool>(effort: &Effort) -> f64 {
    let life = |_| {
        let start = Instant::now();
        let pool = P::start();
        pool.run(2);
        pool.end();
        micros(start)
    };
    quantile((0..effort.starts).map(life).collect(), 0.5)
}
