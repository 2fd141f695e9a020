//! The workers of an earlier daemon: none may be left before this one starts a job.
//!
//! They kill themselves when their daemon is gone, with all that they have started. This is for what has not yet
//! done so, or cannot: they are found by the mark in their environment, which commands inherit.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::error::Error;

/// How long they may take to be gone once they are killed. Only the kernel can hold them longer.
const DYING: Duration = Duration::from_secs(10);

/// Kills every process with this mark, and waits until there is none.
pub(super) fn end(variable: &str, mark: &str) -> Result<(), Error> {
    let wanted = format!("{variable}={mark}");
    let deadline = Instant::now() + DYING;
    // Again until there are none: what was being started while we looked has the mark as well.
    loop {
        let found: Vec<Pid> = marked(wanted.as_bytes());
        if found.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            let pids: Vec<String> = found.iter().map(ToString::to_string).collect();
            return Err(Error::setting(format!(
                "workers of an earlier daemon cannot be killed: processes {}",
                pids.join(", ")
            )));
        }
        for pid in found {
            kill(pid, wanted.as_bytes(), deadline);
        }
    }
}

/// The processes whose environment has this. Those of other users cannot be looked at, and are not ours.
fn marked(wanted: &[u8]) -> Vec<Pid> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = entries
        .filter_map(|entry| str::from_utf8(entry.file_name().as_bytes()).ok()?.parse::<i32>().ok());
    // A daemon that a job of the earlier one has started has the mark itself.
    let own = std::process::id() as i32;
    numbers.filter(|pid| *pid != own && has(*pid, wanted)).filter_map(Pid::from_raw).collect()
}

fn has(pid: i32, wanted: &[u8]) -> bool {
    // Empty for a process that is dead and not yet waited for.
    let environment = fs::read(Path::new("/proc").join(pid.to_string()).join("environ"));
    environment.is_ok_and(|bytes| bytes.split(|byte| *byte == 0).any(|one| one == wanted))
}

fn kill(pid: Pid, wanted: &[u8], deadline: Instant) {
    // An error means that it is gone.
    let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else {
        return;
    };
    // Looked at again, now that the number cannot become another's.
    if !has(pid.as_raw_nonzero().get(), wanted)
        || pidfd_send_signal(&process, Signal::KILL).is_err()
    {
        return;
    }
    let left = deadline.saturating_duration_since(Instant::now());
    let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
    let _ = poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&left));
}
