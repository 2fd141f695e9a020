//! `concurrent.futures` for Rust, with every job in a process of its own.
//!
//! ```
//! use procpool::ProcessPool;
//!
//! fn is_prime(n: u64) -> bool {
//!     n >= 2 && (2..).take_while(|d| d * d <= n).all(|d| n % d != 0)
//! }
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     procpool::init(); // the first line of main: in a worker process it never returns
//!     let pool = ProcessPool::new()?; // one worker for each available CPU
//!     let future = pool.submit(is_prime, 1_000_003);
//!     assert!(future.result()?);
//!     for (n, prime) in (1..=5).zip(pool.map(is_prime, 1..=5)) {
//!         println!("{n}: {}", prime?);
//!     }
//!     Ok(())
//! }
//! ```
//!
//! # How it works
//!
//! A worker is this program, executed again: [`init`] tells it apart and turns it into a loop that runs
//! jobs. Functions travel as their offset in the program's image, arguments and results as bytes, through
//! memory that pool and worker share. Workers are started when jobs need them; after a crash the slot is
//! filled anew. In a `#[test]`, where libtest has `main`, use [`testing!`](crate::testing).
//!
//! # Functions and data
//!
//! Any `fn(A) -> R` will do, and any closure that captures nothing; several arguments travel as a tuple.
//! `A` and `R` are [`Data`]: what serde can write and read and that owns itself. Types with serde's
//! `flatten`, `untagged`, `tag` or `skip_serializing_if` do not describe themselves in the compact format
//! that is used here, and are refused where they are decoded. A job that can fail returns a `Result` as
//! its `R`: that is a value, not a [`JobError`].
//!
//! # Outcomes
//!
//! Every job ends in exactly one outcome, and none hangs: a value, or a [`JobError`] that says what
//! happened. A **panic** is an outcome: the worker lives on (unless `panic = "abort"`), and the message
//! and place come back. A **death** (segfault, abort, exit, kill) costs the job that ran, which learns the
//! status, the phase, the attempt and the last lines of stderr. Jobs that were handed to the same worker
//! but had not started run elsewhere as if nothing had happened. By default a job that has started is
//! never started again; [`retries`](ProcessPoolBuilder::retries) opts in.
//!
//! # Cancelling and stopping
//!
//! [`cancel`](JobFuture::cancel) is exact: true means that the job will never run. [`abort`](JobFuture::abort)
//! and time limits stop a running job: its [`Context`] says so at once; SIGTERM goes to its process group,
//! right away if the job never asked for its context, else after half of the
//! [`grace`](ProcessPoolBuilder::grace); SIGKILL at the end of it.
//!
//! # Dropping
//!
//! Dropping a future neither cancels nor waits. Dropping a [`Map`] cancels what has not started. Dropping
//! a pool waits for all its jobs, as leaving a `with` block does in Python; while the thread is panicking
//! it stops them. When the host dies by whatever means, its workers and what their jobs have started in
//! their process groups are killed.
//!
//! # Inside a worker
//!
//! Standard input is `/dev/null`, standard output the host's, standard error read by the pool and passed
//! on to the host's (or [not](Output::Capture)), its tail kept for reports. No other descriptor of the
//! host's is open. The signal mask is empty, nothing is ignored but SIGPIPE, no core is dumped, and the
//! worker leads a process group of its own. Its environment is the host's when the pool was built; its user,
//! umask, nice value, CPUs, namespaces and resource limits are the host's at the moment of its start; unless
//! the builder says otherwise:
//! [`env`](ProcessPoolBuilder::env), [`pin_cpus`](ProcessPoolBuilder::pin_cpus),
//! [`open_files_limit`](ProcessPoolBuilder::open_files_limit) and its neighbours. State that a job leaves
//! behind (statics, environment, working directory, umask, limits) is there for the next job of the same
//! worker; [`max_jobs_per_worker(1)`](ProcessPoolBuilder::max_jobs_per_worker) leaves it to nobody.
//!
//! # What happens inside
//!
//! [`ProcessPool::events`] gives a receiver of what happens in a pool, as it happens, and the same goes to the
//! program's `tracing` subscriber, if it has one: see [`events`]. The library itself prints nothing.
//!
//! # Platforms
//!
//! Linux with pidfds (5.4 or later) and a mounted /proc.
//!
//! # Differences from threads and rayon
//!
//! Nothing is shared: each argument and result is encoded and decoded, and a job costs about a
//! microsecond in bulk, some tens of them as a round trip. For short functions that you trust, threads
//! are cheaper. For waiting rather than computing there is [`ThreadPool`], with the same interface.

mod attachments;
mod builder;
mod bytes;
mod cell;
mod completion;
mod containment;
mod context;
mod error;
pub mod events;
pub mod executor;
mod future;
mod init;
mod job;
mod job_error;
mod job_id;
mod leaks;
mod map;
mod nesting;
mod pool;
mod proc_file;
mod report;
mod shared;
mod supervisor;
mod task;
mod thread_pool;
mod tree;
mod worker;

pub use builder::{InitResult, Isolation, Output, ProcessPoolBuilder, Shutdown, StartMethod};
pub use bytes::Bytes;
pub use completion::{AsCompleted, Until, Waited, as_completed, wait};
pub use containment::{Capabilities, Capability, Containment, Memory, Processes, Tree};
pub use context::{Context, context, worker_index};
pub use error::Error;
pub use executor::{Data, Executor, Rejected, Rejection};
pub use future::JobFuture;
pub use init::init;
pub use job::Job;
pub use job_error::{
    CodecError, Death, EndedBy, JobError, Limit, Oom, Panic, Phase, Side, Status, Timeout,
};
pub use job_id::JobId;
pub use leaks::{Leaked, LeakedProcess, Leaks};
pub use map::Map;
pub use pool::ProcessPool;
pub use procpool_macros::task;
pub use report::{Done, Outcome, Progress, Report, Stats, WorkerInfo, WorkerState};
pub use shared::Shared;
pub use task::{Task, TaskInfo, tasks};
pub use thread_pool::{ThreadPool, ThreadPoolBuilder};

/// For the macros.
#[doc(hidden)]
pub mod __private {
    pub use linkme;

    pub use crate::init::init_before_main;
    pub use crate::task::{Functions, TASKS, functions};
}
