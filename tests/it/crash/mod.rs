//! Jobs that crash, workers that die, channels that break: what it costs, and what it must not.
//!
//! [`fault`] and [`matrix`] are every fault in every place, [`table`] the ways in which they are run. The
//! others are about one kind of trouble each.

mod cancel;
pub(crate) mod channel;
mod chaos;
mod codec;
mod deadline;
mod death;
mod fault;
mod foreign;
mod hook;
mod ledger;
mod map;
mod matrix;
mod payload;
mod streams;
mod table;

use std::fs;
use std::process;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use procpool::{Death, JobError, Panic, Timeout};

use crate::support::resident;

fn died<R: std::fmt::Debug>(result: Result<R, JobError>) -> Death {
    match result {
        Err(JobError::Died(death)) => death,
        other => panic!("Died was expected, got {other:?}"),
    }
}

fn panicked<R: std::fmt::Debug>(result: Result<R, JobError>) -> Panic {
    match result {
        Err(JobError::Panicked(panic)) => panic,
        other => panic!("Panicked was expected, got {other:?}"),
    }
}

fn timed_out<R: std::fmt::Debug>(result: Result<R, JobError>) -> Timeout {
    match result {
        Err(JobError::TimedOut(timeout)) => timeout,
        other => panic!("TimedOut was expected, got {other:?}"),
    }
}

/// The shortest of so many tries: what it takes on a machine that is busy with other things only now and then.
fn at_best(tries: u32, measure: impl FnMut() -> Duration) -> Duration {
    std::iter::repeat_with(measure).take(tries as usize).min().unwrap_or_default()
}

/// SIGKILL to a worker. One that has just been reaped is left alone: its number may belong to a stranger.
fn kill_worker(pid: u32) {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let parent = stat.rsplit(") ").next().and_then(|rest| rest.split_whitespace().nth(1));
    if parent == Some(process::id().to_string().as_str()) {
        let _ = kill(Pid::from_raw(pid as i32), Signal::SIGKILL);
    }
}

/// For a job that nothing but a signal ends. It looks at nothing and asks for nothing.
fn hang() -> ! {
    loop {
        nix::unistd::pause();
    }
}
