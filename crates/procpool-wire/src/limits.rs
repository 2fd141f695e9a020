//! What a worker is held to from its start on: part of its [`Setup`](crate::handshake::Setup).

use serde::{Deserialize, Serialize};

/// Limits that a worker puts on itself before any user code runs. What is `None` stays as the host has it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerLimits {
    /// RLIMIT_NOFILE: one more than the highest descriptor.
    pub open_files: Option<u64>,
    /// RLIMIT_FSIZE, in bytes.
    pub file_size: Option<u64>,
    /// RLIMIT_CORE, in bytes. The soft limit only: a job may raise it again.
    pub core_size: u64,
    /// RLIMIT_STACK, in bytes.
    pub stack: Option<u64>,
    /// /proc/self/oom_score_adj.
    pub oom_score_adj: Option<i32>,
    /// The only CPU that it may run on.
    pub cpu: Option<u32>,
    /// It leaves after a job that finds it larger than this: its resident set, in bytes.
    pub rss: Option<u64>,
    /// What it does about what its jobs leave behind.
    pub leaks: LeakPolicy,
}

/// What a worker does about what a job has left behind in it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum LeakPolicy {
    /// It leaves; the job's report says what was left.
    #[default]
    Retire,
    /// It does not look.
    Ignore,
    /// It leaves, and the job has failed.
    Error,
}

/// What a job has left behind in its worker.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeakRecord {
    /// Threads that had not ended.
    pub threads: u32,
    /// Descriptors beyond those that there were before.
    pub descriptors: u32,
    /// Children that were not waited for, with their names: some of them, if there are many.
    pub processes: Vec<(u32, String)>,
}

impl LeakRecord {
    /// How many processes are listed: what fits into
    /// [`LEAK_BYTES_MAX`](crate::block::LEAK_BYTES_MAX), a name taking 15 bytes, or three times that if it
    /// is no UTF-8.
    pub const PROCESSES_MAX: usize = 16;
}
