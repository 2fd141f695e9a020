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
}
