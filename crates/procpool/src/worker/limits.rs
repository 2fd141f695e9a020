//! What a worker holds itself to, before any user code runs.

use std::io;

use nix::sys::resource::{Resource, getrlimit};
use procpool_sys::limits::{self, Limited};
use procpool_wire::handshake::StartFault;
use procpool_wire::limits::WorkerLimits;

/// Puts the limits on this process. One that cannot be set is named: a worker without it would not be what
/// the pool was asked for.
pub(super) fn apply(wanted: &WorkerLimits) -> Result<(), StartFault> {
    // The rest is looked at between jobs.
    let WorkerLimits { open_files, file_size, core_size, stack, oom_score_adj, cpu, .. } = wanted;
    if let Some(cpu) = *cpu {
        named(limits::pin_to(cpu), || format!("cannot run on CPU {cpu} (pin_cpus)"))?;
    }
    if let Some(score) = *oom_score_adj {
        named(limits::set_oom_score_adj(score), || format!("cannot set oom_score_adj({score})"))?;
    }
    if *core_size > 0 {
        named(limits::set_core_size(*core_size), || {
            format!("cannot set core_size_limit({core_size})")
        })?;
    }
    let held = [
        (Limited::Stack, stack, "stack_limit"),
        (Limited::FileSize, file_size, "file_size_limit"),
        (Limited::OpenFiles, open_files, "open_files_limit"),
    ];
    for (limited, value, setting) in held {
        if let Some(value) = *value {
            named(limits::hold_to(limited, value), || format!("cannot set {setting}({value})"))?;
        }
    }
    Ok(())
}

/// Whether the main thread can run jobs that want a stack of so many bytes: not if its own is limited.
pub(crate) fn main_thread_suffices(wanted: &WorkerLimits, stack_size: u64) -> bool {
    let limit = || getrlimit(Resource::RLIMIT_STACK).map_or(0, |(soft, _)| soft);
    wanted.stack.is_none() && limit() >= stack_size
}

fn named(result: io::Result<()>, what: impl FnOnce() -> String) -> Result<(), StartFault> {
    result.map_err(|error| StartFault::Other(format!("{}: {error}", what())))
}
