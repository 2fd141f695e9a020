//! `concurrent.futures` for Rust, with every job in a process of its own.
#![doc = include_str!("../../../README.md")]

mod builder;
mod cell;
mod completion;
mod context;
mod error;
pub mod executor;
mod future;
mod init;
mod job;
mod job_error;
mod job_id;
mod map;
mod pool;
mod report;
mod supervisor;
mod task;
mod thread_pool;
mod worker;

pub use builder::{InitResult, Output, ProcessPoolBuilder, Shutdown};
pub use completion::{AsCompleted, Until, Waited, as_completed, wait};
pub use context::{Context, context};
pub use error::Error;
pub use executor::{Data, Executor, Rejected, Rejection};
pub use future::JobFuture;
pub use init::init;
pub use job::Job;
pub use job_error::{
    CodecError, Death, EndedBy, JobError, Limit, Oom, Panic, Phase, Side, Status, Timeout,
};
pub use job_id::JobId;
pub use map::Map;
pub use pool::ProcessPool;
pub use procpool_macros::task;
pub use report::{Done, Outcome, Progress, Report, Stats, WorkerInfo, WorkerState};
pub use task::{Task, TaskInfo, tasks};
pub use thread_pool::{ThreadPool, ThreadPoolBuilder};

/// For the macros.
#[doc(hidden)]
pub mod __private {
    pub use linkme;

    pub use crate::init::init_before_main;
    pub use crate::task::{Functions, TASKS, functions};
}
