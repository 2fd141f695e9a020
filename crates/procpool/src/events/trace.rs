//! Events as the `tracing` crate's. The names, levels and fields are those of the table in `events.rs`.

use std::panic::{AssertUnwindSafe, catch_unwind};

use tracing::Level;

use super::{Event, WorkerEnd};
use crate::cell::JobCell;
use crate::job_error::{Escaped, JobError};
use crate::supervisor::entry::Completion;

const TARGET: &str = "procpool";

/// True if some subscriber may want events of this level: a load and a compare.
pub(super) fn is_enabled(level: Level) -> bool {
    level <= tracing::level_filters::STATIC_MAX_LEVEL
        && level <= tracing::level_filters::LevelFilter::current()
}

/// A subscriber's panic must not end the thread that a pool stands on.
fn guarded(tell: impl FnOnce()) {
    if let Err(payload) = catch_unwind(AssertUnwindSafe(tell)) {
        // Its Drop may panic in its turn.
        std::mem::forget(payload);
    }
}

macro_rules! tell {
    ($level:ident, $name:literal, $($fields:tt)*) => {
        tracing::event!(name: $name, target: TARGET, Level::$level, $($fields)*)
    };
}

pub(super) fn pool_started(pool: u64, workers: usize) {
    guarded(|| tell!(DEBUG, "pool_started", pool, workers, "a pool has started"));
}

pub(super) fn job_accepted(pool: u64, cell: &JobCell) {
    guarded(|| {
        let (job, name, origin) = (cell.id.number(), cell.name().map(|name| &**name), cell.origin);
        tell!(TRACE, "job_accepted", pool, job, name, %origin, "a job was accepted");
    });
}

pub(super) fn job_ended(pool: u64, completion: &Completion) {
    if is_enabled(Level::TRACE) {
        guarded(|| {
            let (job, report) = (completion.cell.id.number(), completion.ended.report());
            let (attempts, worker, pid) = (report.attempts, report.worker, report.pid);
            let (queued, ran) = (report.queued, report.ran);
            tell!(
                TRACE,
                "job_ended",
                pool,
                job,
                attempts,
                ?queued,
                ?ran,
                worker,
                pid,
                "a job has ended"
            );
        });
    }
}

pub(super) fn event(pool: u64, event: &Event) {
    if is_enabled(Level::ERROR) {
        guarded(|| tell_event(pool, event));
    }
}

fn tell_event(pool: u64, event: &Event) {
    match event {
        Event::PoolBroken { error } => {
            let text = error.to_string();
            let error = Escaped(&text);
            tell!(ERROR, "pool_broken", pool, %error, "the pool is broken");
        }
        Event::PoolStopping { how } => {
            tell!(DEBUG, "pool_stopping", pool, ?how, "the pool is being shut down");
        }
        Event::PoolEnded {} => tell!(DEBUG, "pool_ended", pool, "the pool has ended"),
        Event::WorkerStarting { worker, pid } => {
            tell!(DEBUG, "worker_starting", pool, worker, pid, "a worker starts");
        }
        Event::WorkerReady { worker, pid, after } => {
            tell!(DEBUG, "worker_ready", pool, worker, pid, ?after, "a worker is ready");
        }
        Event::StartFailed { worker, cause, retry_in } => {
            let (cause, retry_in) = (Escaped(cause), retry_in.map(tracing::field::debug));
            tell!(WARN, "start_failed", pool, worker, %cause, retry_in, "a worker was not started");
        }
        Event::WorkerStopping { worker, pid, stage } => {
            tell!(DEBUG, "worker_stopping", pool, worker, pid, ?stage, "a worker is being stopped");
        }
        Event::WorkerFault { worker, pid, detail } => {
            let detail = Escaped(detail);
            tell!(WARN, "worker_fault", pool, worker, pid, %detail, "a worker broke the rules");
        }
        Event::WorkerEnded { worker, pid, end: end @ WorkerEnd::Died, status, job, lived } => {
            let job = job.map(|job| job.number());
            tell!(WARN, "worker_ended", pool, worker, pid, ?end, %status, job, ?lived, "a worker died");
        }
        Event::WorkerEnded { worker, pid, end, status, job, lived } => {
            let job = job.map(|job| job.number());
            tell!(DEBUG, "worker_ended", pool, worker, pid, ?end, %status, job, ?lived, "a worker has ended");
        }
        Event::WorkerAbandoned { worker, pid, job, lived } => {
            let job = job.map(|job| job.number());
            tell!(
                ERROR,
                "worker_abandoned",
                pool,
                worker,
                pid,
                job,
                ?lived,
                "a process does not end"
            );
        }
        Event::WorkerLine { worker, pid, job, line, whole: _ } => {
            let (job, line) = (job.map(|job| job.number()), Escaped(line));
            tell!(INFO, "worker_line", pool, worker, pid, job, %line, "a worker wrote");
        }
        Event::JobStopping { job, worker, pid, cause } => {
            let job = job.number();
            tell!(DEBUG, "job_stopping", pool, job, worker, pid, %cause, "a job is being stopped");
        }
        Event::JobRetry { job, attempt, wait } => {
            let job = job.number();
            tell!(WARN, "job_retry", pool, job, attempt, ?wait, "a job will be tried again");
        }
        Event::JobFailed { job, name, origin, error, report } => {
            let (job, name, attempts) = (job.number(), name.as_deref(), report.attempts);
            if matches!(error, JobError::Quarantined { .. }) {
                tell!(WARN, "job_quarantined", pool, job, name, %origin, %error, attempts, "a job is given up");
            } else {
                tell!(DEBUG, "job_failed", pool, job, name, %origin, %error, attempts, "a job has failed");
            }
        }
        // Of one receiver, not of the pool.
        Event::Missed(_) => {}
    }
}
