//! What a pool and its new worker tell each other before the first job.
//!
//! The pool writes a [`Setup`] as soon as the worker is spawned, with the shared memory's descriptor
//! beside it; the worker answers `Ready` or `StartFailed`. Nothing else is exchanged, so a start costs
//! no round trip beyond the worker's own.

use serde::{Deserialize, Serialize};

use crate::limits::WorkerLimits;

/// What a function is called by between processes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Target {
    /// Pool and worker run the same image: offsets of the trampoline and of the function in it.
    Offset {
        /// The function that decodes, calls and encodes.
        run: u64,
        /// The user's function.
        function: u64,
    },
    /// A task registered by name, with its arguments in the given form.
    Named {
        /// `module_path!()::name`.
        name: String,
        /// How arguments and results are written.
        form: Form,
    },
}

/// How the arguments and results of a task called by name are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Form {
    /// By the [`codec`](crate::codec); both sides must agree on the types, which the fingerprint checks.
    Binary {
        /// The fingerprint of the task as the caller knows it.
        fingerprint: u64,
    },
    /// As JSON text.
    Json,
}

/// What a process is started for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// It runs jobs.
    Worker,
    /// It forks workers.
    ForkServer,
}

/// Where a worker runs its jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Runs {
    /// It runs them itself.
    Here,
    /// Each in a child of its own, which ends with it.
    InChildren,
}

/// What came of a request to fork.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Forked {
    /// A worker with this process id.
    Born(u32),
    /// Nothing: the system's error number.
    Refused(i32),
}

/// The first frame on a control channel, from pool to worker or fork server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setup {
    /// What the process is started for.
    pub role: Role,
    /// The build id of the pool's own image, if the worker must be the same one.
    pub build_id: Option<Vec<u8>>,
    /// The slot that the worker fills, if that is known yet. The shared memory has it with the first job.
    pub slot: Option<u32>,
    /// How many pools the worker stands within.
    pub depth: u32,
    /// The pool's process, which the worker must still have as its parent.
    pub host: u32,
    /// Stack of the thread that runs jobs, in bytes.
    pub stack_size: u64,
    /// How many jobs the worker runs, if it exits by itself after so many.
    pub jobs: Option<u64>,
    /// Where the worker runs them.
    pub runs: Runs,
    /// Whether the worker looks for a job for a moment before it sleeps. On the only processor that would keep the pool
    /// from running.
    pub spins: bool,
    /// Whether the processor's counter tells the time between two looks at the clock.
    pub counts: bool,
    /// The longest result, in bytes.
    pub payload_limit: Option<u64>,
    /// Run once before the first job, or the first fork: what, and its encoded argument.
    pub initializer: Option<(Target, Vec<u8>)>,
    /// The sealed memory that its argument refers to; it is attached in frames that follow.
    pub initializer_uses: Vec<u64>,
    /// The working directory to enter.
    pub current_dir: Option<Vec<u8>>,
    /// What the worker holds itself to.
    pub limits: WorkerLimits,
    /// What holds the worker, and what it must see to itself.
    pub contained: Contained,
}

/// What holds a worker and the processes below it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contained {
    /// The directories of its cgroups, which it enters before anything else if it was not born there. If there is one of
    /// version 2 it is the first, and the only one that it can have been born in.
    pub cgroups: Vec<Vec<u8>>,
    /// The file that ends everything in the worker's cgroup, if it has one. A fork server's ends all of the pool's workers.
    pub kill_file: Option<Vec<u8>>,
    /// Bytes that each of its processes may map beyond what it starts with, if no cgroup limits memory.
    pub address_space: Option<u64>,
    /// Processes and threads that its user may have beyond those there are, if no cgroup limits them.
    pub processes: Option<u64>,
}

/// Why a worker cannot start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum StartFault {
    /// The executable is not the one the pool runs.
    OtherBuild,
    /// The initializer returned an error or panicked: its message.
    Initializer(String),
    /// The same of what the fork server was to load.
    Preload(String),
    /// Anything else, as a sentence.
    Other(String),
}

/// What is known of a panic in a worker.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PanicRecord {
    /// The payload, if it was text; else a placeholder.
    pub message: String,
    /// `file:line:column`.
    pub location: Option<String>,
    /// If `RUST_BACKTRACE` asked for one.
    pub backtrace: Option<String>,
}
