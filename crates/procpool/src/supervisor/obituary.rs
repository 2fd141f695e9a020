//! What is said of a worker after its end: what becomes of its jobs, and why one never became ready.

use nix::libc;
use procpool_sys::clock;
use procpool_sys::spawn::Exit;

use super::channel::{Fate, PoolChannel};
use super::entry::{Entry, EntryBox, Next, phase_of};
use super::slot::{Slot, Stage};
use crate::job_error::{Death, EndedBy, Escaped, JobError, Oom, Phase, Status};
use crate::worker::panic_of;

/// How much of a stderr tail stands in the text of a broken pool.
const TAIL_IN_CAUSE: usize = 1000;

/// What is known of a worker's end.
pub(super) struct Obituary<'a> {
    pub(super) slot: usize,
    pub(super) pid: u32,
    pub(super) status: Status,
    pub(super) state: Slot,
    pub(super) oom: Oom,
    /// What else is known.
    pub(super) detail: Option<String>,
    pub(super) end: End,
    pub(super) tail: &'a str,
}

/// Whether a worker that is gone for the pool is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// It is reaped.
    Reaped,
    /// It was abandoned.
    Abandoned,
}

impl Obituary<'_> {
    /// What becomes of each of the worker's jobs.
    pub(super) fn settle(&self, channel: PoolChannel) -> Vec<Next> {
        let now = clock::monotonic_ns();
        let black_box_ticket = channel.running().map(|(ticket, ..)| ticket);
        let panic = black_box_ticket.and_then(|ticket| channel.fatal_panic(ticket));
        let pid = match self.end {
            End::Reaped => channel.pid_of_job(),
            End::Abandoned => self.pid,
        };
        let fates = channel.bury();
        let settle = |(mut entry, ticket, fate): (EntryBox, _, Fate)| match fate {
            Fate::NotStarted => Next::Requeue(entry),
            Fate::Finished => entry.next(),
            Fate::Culprit { black_box, stopping } => {
                entry.note_death(pid, self.slot, &black_box, now);
                match (stopping, &panic) {
                    (Some(reason), _) if self.end == End::Abandoned => {
                        let death = self.death(&entry, pid, phase_of(black_box.phase));
                        entry.outlived(reason, death)
                    }
                    (Some(reason), _) => entry.stopped(reason, self.ended_by()),
                    (None, Some(bytes)) if Some(ticket) == black_box_ticket => {
                        let error = JobError::Panicked(panic_of(bytes, &entry.cell.label(), true));
                        entry.fail_current(error)
                    }
                    (None, _) => {
                        let death = self.death(&entry, pid, phase_of(black_box.phase));
                        entry.killed_worker(JobError::Died(death))
                    }
                }
            }
        };
        fates.into_iter().map(settle).collect()
    }

    fn death(&self, entry: &Entry, pid: u32, phase: Phase) -> Death {
        Death {
            status: self.status,
            phase,
            oom: self.oom,
            pid,
            attempt: entry.attempt(),
            stderr_tail: self.tail.to_owned(),
            detail: self.detail.clone().or_else(|| limit_hit(self.status).map(str::to_owned)),
            label: entry.cell.label(),
            worker: self.slot,
        }
    }

    fn ended_by(&self) -> EndedBy {
        match self.state {
            Slot::Stopping(Stage::Killed { .. }) => EndedBy::Kill,
            Slot::Stopping(Stage::Terminated { .. }) => EndedBy::Term,
            // It died of itself before any signal of ours.
            _ => EndedBy::Itself,
        }
    }
}

/// The limit that a signal of the kernel's stands for. setrlimit(2) names both.
fn limit_hit(status: Status) -> Option<&'static str> {
    match status {
        Status::Signal(libc::SIGXFSZ, _) => {
            Some("it wrote beyond the limit on a file's size (RLIMIT_FSIZE, file_size_limit)")
        }
        Status::Signal(libc::SIGXCPU, _) => {
            Some("it reached the process's limit on CPU time (RLIMIT_CPU)")
        }
        _ => None,
    }
}

/// How it ended, as callers see it.
pub(super) fn status_of(exit: Exit) -> Status {
    match exit {
        Exit::Code(code) => Status::Exit(code),
        Exit::Signal(signal, core) => Status::Signal(signal, core),
        Exit::Unknown => Status::Unknown,
    }
}

/// The sentence for a process that ended before it was ready.
pub(super) fn start_cause(
    who: &str,
    pid: u32,
    exit: Exit,
    detail: Option<String>,
    tail: &str,
) -> String {
    let mut cause = format!("{who} (pid {pid}) ended before it was ready: {}", status_of(exit));
    if let Some(detail) = detail {
        cause.push_str(&format!("; {detail}"));
    }
    if matches!(exit, Exit::Code(_)) {
        cause.push_str("; is procpool::init() the first line of its main?");
    }
    let tail = tail.trim_end();
    if !tail.is_empty() {
        let from = tail.ceil_char_boundary(tail.len().saturating_sub(TAIL_IN_CAUSE));
        cause.push_str(&format!("; last stderr: \"{}\"", Escaped(&tail[from..])));
    }
    cause
}
