//! How long to try: the same for every contestant.

use serde::Serialize;

/// Every contestant has this many workers, but where a row is about their number.
pub(crate) const WORKERS: usize = 2;

/// The Python script reads it as JSON.
#[derive(Debug, Serialize)]
pub(crate) struct Effort {
    pub(crate) rounds: usize,
    /// Jobs submitted before the first result is taken.
    pub(crate) batch: u64,
    /// How long batches and the like are repeated.
    pub(crate) seconds: f64,
    pub(crate) trips: usize,
    /// Elements of a map.
    pub(crate) items: u64,
    /// Fresh pools.
    pub(crate) starts: usize,
    /// Jobs with a process each.
    pub(crate) fresh: u64,
    /// Workers that are killed.
    pub(crate) kills: usize,
    /// Length of a large argument.
    pub(crate) bulk_bytes: usize,
    /// How often it is sent.
    pub(crate) bulk_jobs: usize,
    /// Length of what is shared.
    pub(crate) shared_bytes: usize,
    /// Inputs of `run true`.
    pub(crate) inputs: usize,
    /// Jobs that wait.
    pub(crate) pending: u64,
    /// Elements of a map that is to need no memory.
    pub(crate) long_map: u64,
    /// Workers of pools that have many.
    pub(crate) crowds: [usize; 2],
    pub(crate) idle_seconds: f64,
    /// How long work for the processors lasts.
    pub(crate) compute_seconds: f64,
    /// How long the job lasts that short ones are not to wait for.
    pub(crate) long_job_seconds: f64,
}

pub(crate) const FULL: Effort = Effort {
    rounds: 5,
    batch: 10_000,
    seconds: 0.4,
    trips: 2_000,
    items: 1_000_000,
    starts: 10,
    fresh: 300,
    kills: 20,
    bulk_bytes: 16 << 20,
    bulk_jobs: 10,
    shared_bytes: 256 << 20,
    inputs: 2_000,
    pending: 1_000_000,
    long_map: 10_000_000,
    crowds: [64, 256],
    idle_seconds: 3.0,
    compute_seconds: 0.3,
    long_job_seconds: 2.0,
};

pub(crate) const QUICK: Effort = Effort {
    rounds: 2,
    batch: 100,
    seconds: 0.01,
    trips: 20,
    items: 10_000,
    starts: 1,
    fresh: 4,
    kills: 1,
    bulk_bytes: 1 << 20,
    bulk_jobs: 2,
    shared_bytes: 1 << 20,
    inputs: 10,
    pending: 1_000,
    long_map: 20_000,
    crowds: [3, 4],
    idle_seconds: 0.05,
    compute_seconds: 0.01,
    long_job_seconds: 0.3,
};
