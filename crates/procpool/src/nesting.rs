//! Pools within jobs of pools: how deep they may go.

use std::sync::OnceLock;

use crate::Error;

/// How many pools may stand within each other: a pool, one in its jobs, and so on. Two are of use, three have been
/// seen; a job that makes a pool and submits itself to it would start processes until the machine has none left.
const NESTING_MAX: u32 = 4;

/// How many pools this process is a worker within.
static DEPTH: OnceLock<u32> = OnceLock::new();

/// Notes that this process is a worker at that depth.
pub(crate) fn note(depth: u32) {
    // A process becomes a worker once.
    let _ = DEPTH.set(depth);
}

/// Whether this process is a worker.
pub(crate) fn is_worker() -> bool {
    DEPTH.get().is_some()
}

/// The depth of the workers of a pool of this process.
pub(crate) fn below() -> u32 {
    1 + DEPTH.get().copied().unwrap_or(0)
}

/// Whether this process may have a pool.
pub(crate) fn check() -> Result<(), Error> {
    if below() > NESTING_MAX { Err(Error::nested(NESTING_MAX)) } else { Ok(()) }
}
