//! Large arguments, large results, and data that many jobs share.

use std::hint::black_box;
use std::time::{Duration, Instant};

use procpool::{Bytes, Data, ProcessPool, Shared};

use super::dispatch::{EXECUTOR, MP_POOL};
use super::effort::Effort;
use super::pools::{Pool, micros};
use super::python;
use super::row::{Row, Unit};

const BYTES: &str = "procpool, Bytes";
const MEMCPY: &str = "memcpy, warm";
const COPY: &str = "a fresh copy";
/// Jobs that use what is shared.
const SHARERS: usize = 100;

pub(crate) fn rows() -> Vec<Row> {
    let python = python::is_there();
    let argument = Row::new("argument", "an argument of 16 MiB", Unit::BytesPerSecond)
        .contestant(BYTES, |effort| {
            arguments(effort, |len| Bytes::from(vec![7; len]), |bytes| bytes.len())
        })
        .contestant("procpool, String", |effort| {
            arguments(effort, |len| "x".repeat(len), |text| text.len())
        })
        .contestant("procpool, Vec<u64>", |effort| {
            arguments(effort, |len| vec![7_u64; len / 8], |numbers| numbers.len() * 8)
        })
        .if_there(python, EXECUTOR, |effort| python::figure("argument", "executor", effort))
        .if_there(python, MP_POOL, |effort| python::figure("argument", "pool", effort))
        .contestant(MEMCPY, memcpy)
        .target(BYTES, 10.0, EXECUTOR)
        .target(BYTES, 0.8, MEMCPY);
    let result = Row::new("result", "a result of 16 MiB", Unit::BytesPerSecond)
        .contestant(BYTES, |effort| results(effort, |len| Bytes::from(vec![7; len]), |b| b.len()))
        .contestant("procpool, String", |effort| {
            results(effort, |len| "x".repeat(len), |text| text.len())
        })
        .contestant("procpool, Vec<u64>", |effort| {
            results(effort, |len| vec![7_u64; len / 8], |numbers| numbers.len() * 8)
        })
        .if_there(python, EXECUTOR, |effort| python::figure("result", "executor", effort))
        .if_there(python, MP_POOL, |effort| python::figure("result", "pool", effort));
    let share = Row::new("share", "256 MiB shared, 100 jobs on it", Unit::Micros)
        .contestant(BYTES, |effort| {
            share(Bytes::from(vec![7; effort.shared_bytes]), |(bytes, n)| bytes[n].into())
        })
        .contestant("procpool, Vec<u64>", |effort| {
            share(vec![7_u64; effort.shared_bytes / 8], |(numbers, n)| numbers[n])
        })
        .contestant(COPY, fresh_copy)
        .target(BYTES, 4.0, COPY)
        .rounds_max(3);
    vec![argument, result, share]
}

/// Bytes a second of arguments that were made before, from `submit` to the result: their length.
fn arguments<A: Data>(effort: &Effort, make: fn(usize) -> A, len: fn(A) -> usize) -> f64 {
    let pool = ProcessPool::warm();
    let mut time = Duration::ZERO;
    for n in 0..=effort.bulk_jobs {
        let argument = make(effort.bulk_bytes);
        let start = Instant::now();
        assert_eq!(pool.submit(len, argument).result().expect("it succeeds"), effort.bulk_bytes);
        // The first is to warm up.
        time += if n == 0 { Duration::ZERO } else { start.elapsed() };
    }
    (effort.bulk_jobs * effort.bulk_bytes) as f64 / time.as_secs_f64()
}

fn results<R: Data>(effort: &Effort, make: fn(usize) -> R, len: fn(&R) -> usize) -> f64 {
    let pool = ProcessPool::warm();
    let mut start = Instant::now();
    for n in 0..=effort.bulk_jobs {
        let result = pool.submit(make, effort.bulk_bytes).result();
        assert_eq!(len(&result.expect("it succeeds")), effort.bulk_bytes);
        if n == 0 {
            start = Instant::now();
        }
    }
    (effort.bulk_jobs * effort.bulk_bytes) as f64 / start.elapsed().as_secs_f64()
}

fn share<T: Data + Sync>(value: T, f: fn((Shared<T>, usize)) -> u64) -> f64 {
    let pool = ProcessPool::warm();
    let start = Instant::now();
    let shared = pool.share(value);
    let futures: Vec<_> = (0..SHARERS).map(|n| pool.submit(f, (shared.clone(), n))).collect();
    for future in futures {
        assert_eq!(future.result().expect("it succeeds"), 7);
    }
    micros(start)
}

/// A copy to where one was made before.
fn memcpy(effort: &Effort) -> f64 {
    let source = vec![7_u8; effort.bulk_bytes];
    let mut copy = source.clone();
    let start = Instant::now();
    for _ in 0..effort.bulk_jobs {
        copy.copy_from_slice(black_box(&source));
        black_box(&mut copy);
    }
    (effort.bulk_jobs * effort.bulk_bytes) as f64 / start.elapsed().as_secs_f64()
}

/// A copy to memory that the system has yet to find.
fn fresh_copy(effort: &Effort) -> f64 {
    let source = vec![7_u8; effort.shared_bytes];
    let start = Instant::now();
    black_box(black_box(&source).clone());
    micros(start)
}
