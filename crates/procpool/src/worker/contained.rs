//! What a worker sees to itself where no cgroup does: limits, and the end of its own tree.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use procpool_sys::worker::{self, Birthplace};
use procpool_wire::handshake::{Contained, StartFault};

use crate::{proc_file, tree};

/// How long a worker goes on looking for processes below it before it ends all the same. Under what the
/// host promises of its own death, 5 s.
const WALK_MAX: Duration = Duration::from_secs(2);

/// Moves this process to its cgroups, if it was not born there: where the kernel refuses such births, and always to
/// those of version 1.
pub(super) fn enter(contained: &Contained, born: Birthplace) -> Result<(), StartFault> {
    // The first is the one that one can be born in.
    let others = match born {
        Birthplace::Cgroup => contained.cgroups.get(1..).unwrap_or_default(),
        Birthplace::Elsewhere => &contained.cgroups[..],
    };
    if others.is_empty() {
        return Ok(());
    }
    let cgroups = proc_file::read("/proc/self/cgroup").unwrap_or_default();
    for dir in others {
        let dir = Path::new(OsStr::from_bytes(dir));
        if is_in(&cgroups, dir) {
            continue;
        }
        // Zero stands for whoever writes (cgroups(7)).
        fs::write(dir.join("cgroup.procs"), "0").map_err(|error| {
            StartFault::Other(format!("cannot enter the cgroup {}: {error}", dir.display()))
        })?;
    }
    Ok(())
}

/// Whether a line of /proc/self/cgroup ends with the pool's and the worker's directories. No two directories of
/// pools have the same name, not in different hierarchies either.
fn is_in(cgroups: &[u8], dir: &Path) -> bool {
    let (Some(pool), Some(worker)) = (dir.parent().and_then(Path::file_name), dir.file_name())
    else {
        return false;
    };
    let tail = Path::new(pool).join(worker);
    cgroups
        .split(|byte| *byte == b'\n')
        .any(|line| Path::new(OsStr::from_bytes(line)).ends_with(&tail))
}

/// Sets the limits that no cgroup keeps. They are hard ones, so a job cannot raise them without privileges.
pub(super) fn limit(contained: &Contained, stack_size: u64) -> Result<(), StartFault> {
    let refused = |what: &str, error: io::Error| {
        StartFault::Other(format!("the {what} cannot be kept: {error}"))
    };
    if let Some(bytes) = contained.address_space {
        limit_address_space(bytes.saturating_add(stack_size))
            .map_err(|error| refused("memory limit", error))?;
    }
    if let Some(processes) = contained.processes {
        if nix::unistd::getuid().is_root() {
            let exempt = "no pids controller can be used, and root is exempt from RLIMIT_NPROC";
            return Err(refused("process limit", io::Error::other(exempt)));
        }
        // This process's one thread is among those that are counted.
        let there_are = tasks_of_user().saturating_sub(1);
        lower(Resource::RLIMIT_NPROC, there_are.saturating_add(processes))
            .map_err(|error| refused("process limit", error))?;
    }
    Ok(())
}

/// The host is gone: kills this process with everything below it, and all that it answers for.
pub(super) fn follow_host() -> ! {
    end_tree();
    worker::follow_host()
}

/// Kills this worker with everything below it.
pub(super) fn kill_self() -> ! {
    end_tree();
    worker::kill_self()
}

/// Kills everything below this worker, if no cgroup holds it: from one the host, or the worker's last write,
/// ends all at once.
pub(super) fn end_tree() {
    if !worker::is_in_cgroup() {
        // Who survives this could not be killed by anyone.
        let _ = tree::kill_below(process::id(), WALK_MAX);
    }
}

fn limit_address_space(more: u64) -> io::Result<()> {
    let status = fs::read_to_string("/proc/self/status")?;
    let mapped = status_value(&status, "VmSize:").ok_or(io::ErrorKind::InvalidData)?;
    // In KiB, whatever the unit beside it says (proc_pid_status(5)).
    lower(Resource::RLIMIT_AS, (mapped * 1024).saturating_add(more))
}

/// Sets a limit, unless a lower one is in force.
fn lower(resource: Resource, limit: u64) -> io::Result<()> {
    let (soft, hard) = getrlimit(resource)?;
    Ok(setrlimit(resource, soft.min(limit), hard.min(limit))?)
}

/// How many threads this user's processes have: what RLIMIT_NPROC counts.
fn tasks_of_user() -> u64 {
    let own = nix::unistd::getuid().as_raw();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let statuses = entries.filter_map(|entry| fs::read_to_string(entry.path().join("status")).ok());
    statuses
        .filter_map(|status| {
            let is_own = status_value(&status, "Uid:")? == u64::from(own);
            is_own.then(|| status_value(&status, "Threads:")).flatten()
        })
        .sum()
}

/// The first number of a line of /proc/PID/status.
fn status_value(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}
