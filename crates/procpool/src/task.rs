//! Tasks: functions registered by name, for callers that do not run the same image.

use std::fmt;

use linkme::distributed_slice;
use procpool_sys::image::Function;

use crate::executor::{Data, codec_error};
use crate::job_error::{JobError, Side};
use crate::worker;

/// A function registered with [`#[procpool::task]`](macro@crate::task).
#[derive(Clone)]
#[non_exhaustive]
pub struct Task {
    /// `module_path!()::name`.
    pub name: &'static str,
    /// The function's type as it is written.
    pub signature: &'static str,
    /// A number that changes with the name or the signature. A caller and a worker that disagree on it
    /// do not exchange binary arguments.
    pub fingerprint: u64,
    pub(crate) functions: fn() -> Functions,
}

/// The function with its two trampolines.
#[derive(Debug, Clone, Copy)]
pub struct Functions {
    pub(crate) binary: Function,
    pub(crate) json: Function,
}

impl Task {
    /// For the attribute macro.
    #[doc(hidden)]
    pub const fn new(
        name: &'static str,
        signature: &'static str,
        functions: fn() -> Functions,
    ) -> Task {
        let fingerprint = fnv1a(signature.as_bytes(), fnv1a(name.as_bytes(), FNV_OFFSET));
        Task { name, signature, fingerprint, functions }
    }
}

impl fmt::Debug for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Task")
            .field("name", &self.name)
            .field("signature", &self.signature)
            .field("fingerprint", &format_args!("{:016x}", self.fingerprint))
            .finish_non_exhaustive()
    }
}

const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0000_0100_0000_01b3;

/// FNV-1a: short, and `const`, which no hasher of the standard library is. Not a secret, not a checksum.
const fn fnv1a(bytes: &[u8], mut hash: u64) -> u64 {
    let mut index = 0;
    while index < bytes.len() {
        hash = (hash ^ bytes[index] as u64).wrapping_mul(FNV_PRIME);
        index += 1;
    }
    hash
}

/// Where the attribute macro puts its tasks.
#[doc(hidden)]
#[distributed_slice]
pub static TASKS: [Task];

/// The tasks that are linked into this program, in no particular order.
pub fn tasks() -> &'static [Task] {
    &TASKS
}

/// The task of this name.
pub(crate) fn named(name: &str) -> Option<&'static Task> {
    tasks().iter().find(|task| task.name == name)
}

/// The task that this function is registered as.
pub(crate) fn of_function(function: Function) -> Option<&'static Task> {
    tasks().iter().find(|task| (task.functions)().binary.address() == function.address())
}

/// Pairs a function with its trampolines.
#[doc(hidden)]
pub fn functions<A: Data, R: Data>(f: fn(A) -> R) -> Functions {
    Functions {
        binary: Function::new(worker::run_function::<A, R>, f),
        json: Function::new(worker::run_json::<A, R>, f),
    }
}

/// A task of another program, as that program describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TaskInfo {
    /// `module_path!()::name`.
    pub name: String,
    /// The function's type as it is written.
    pub signature: String,
    /// See [`Task::fingerprint`].
    pub fingerprint: u64,
}

/// The tasks of this program, as a worker tells them to a pool.
pub(crate) fn list_as_json() -> String {
    let list: Vec<_> =
        tasks().iter().map(|task| (task.name, task.signature, task.fingerprint)).collect();
    serde_json::to_string(&list).expect("strings and numbers are always JSON")
}

impl TaskInfo {
    /// Reads what `list_as_json` wrote in a worker, by name.
    pub(crate) fn parse_list(json: &str) -> Result<Vec<TaskInfo>, JobError> {
        let list: Vec<(String, String, u64)> = serde_json::from_str(json).map_err(|error| {
            JobError::Decode(codec_error::<Vec<TaskInfo>>(Side::Caller, error.to_string()))
        })?;
        let info = |(name, signature, fingerprint)| TaskInfo { name, signature, fingerprint };
        let mut tasks: Vec<TaskInfo> = list.into_iter().map(info).collect();
        tasks.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(tasks)
    }
}
