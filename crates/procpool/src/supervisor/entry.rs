//! One submitted job on the pool's side: what to send, what has come back, how it ends.

use std::sync::Arc;
use std::time::Duration;

use procpool_wire::block::{BlackBox, JobHeader, Phase as WorkerPhase, ResultHeader, Ticket};
use procpool_wire::elements::{self, Kind, WORD};

use crate::cell::{Bytes, Ended, JobCell, Part, Value};
use crate::job_error::{EndedBy, JobError, Limit, Phase, Timeout};
use crate::report::Report;
use crate::worker::recorded_error;

/// Encoded arguments. The long ones are shared with what is being written to a worker.
#[derive(Debug, Clone)]
pub(crate) enum Payload {
    /// Fits into the shared memory.
    Inline(Bytes),
    /// Travels on the control channel.
    Streamed(Arc<Vec<u8>>),
}

impl Payload {
    pub(crate) fn new(elements: &[u8]) -> Payload {
        if elements.len() / WORD > procpool_wire::block::INLINE_WORDS_MAX {
            Payload::Streamed(Arc::new(elements.to_vec()))
        } else {
            Payload::Inline(Bytes::from_slice(elements))
        }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Payload::Inline(bytes) => bytes,
            Payload::Streamed(bytes) => bytes,
        }
    }
}

/// What a job calls, as workers of this pool understand it.
#[derive(Debug, Clone)]
pub(crate) enum WireTarget {
    /// Offsets of trampoline and function.
    Offset(u64, u64),
    /// A name; `(0, 0)` for JSON, `(1, fingerprint)` for binary.
    Named(Arc<str>, u64, u64),
}

/// A job that a pool has accepted and not completed.
pub(crate) struct Entry {
    pub(crate) cell: Arc<JobCell>,
    pub(crate) target: WireTarget,
    payload: Payload,
    /// Its place among jobs of equal priority.
    pub(crate) sequence: u64,
    submitted_ns: u64,
    count: u32,
    /// Elements that have an outcome.
    done: u32,
    /// Their outcomes, if there are several.
    parts: Vec<Part>,
    /// Workers that the current element has killed.
    kills: u32,
    /// Times the current element was started before.
    attempts: u32,
    pub(crate) retries: u32,
    pub(crate) timeout: Option<Duration>,
    payload_limit: Option<u64>,
    report: Report,
    started_ns: Option<u64>,
}

/// Why a running job was stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StopReason {
    Abort,
    Timeout(Duration),
}

/// What follows from something that happened to a job.
pub(crate) enum Next {
    /// It has ended.
    Complete(Completion),
    /// It is not complete and must run elsewhere.
    Requeue(Entry),
}

/// A job that has ended; to be told to its cell once no lock is held.
pub(crate) struct Completion {
    pub(crate) cell: Arc<JobCell>,
    pub(crate) ended: Ended,
}

impl Completion {
    pub(crate) fn is_cancelled(&self) -> bool {
        matches!(self.ended.result, Err(JobError::Cancelled { .. }))
    }

    /// For the pool's counts. A chunk that ends with outcomes for all its elements has finished.
    pub(crate) fn is_failed(&self) -> bool {
        self.ended.result.is_err() && !self.is_cancelled()
    }
}

impl Entry {
    pub(crate) fn new(
        cell: Arc<JobCell>,
        target: WireTarget,
        payload: Payload,
        count: u32,
        submitted_ns: u64,
        limits: (u32, Option<Duration>, Option<u64>),
    ) -> Entry {
        let (retries, timeout, payload_limit) = limits;
        Entry {
            cell,
            target,
            payload,
            sequence: 0,
            submitted_ns,
            count,
            done: 0,
            parts: Vec::new(),
            kills: 0,
            attempts: 0,
            retries,
            timeout,
            payload_limit,
            report: Report::default(),
            started_ns: None,
        }
    }

    pub(crate) fn done(&self) -> u32 {
        self.done
    }

    pub(crate) fn remaining(&self) -> u32 {
        self.count - self.done
    }

    pub(crate) fn attempt(&self) -> u32 {
        self.attempts + 1
    }

    /// The header and elements to send: those that have no outcome yet.
    pub(crate) fn to_send(&self, ticket: Ticket) -> (JobHeader, &[u8]) {
        let (name_len, run, function) = match &self.target {
            WireTarget::Offset(run, function) => (0, *run, *function),
            WireTarget::Named(name, run, function) => (name.len() as u32, *run, *function),
        };
        let header = JobHeader {
            ticket,
            job: self.cell.id.number(),
            attempt: self.attempt(),
            first: self.done,
            count: self.remaining(),
            name_len,
            run,
            function,
        };
        let rest = elements::skip(self.payload.bytes(), self.done as usize);
        (
            header,
            rest.expect("the pool has encoded so many elements itself"),
        )
    }

    /// What to keep alive while the elements of `to_send` are written to a channel; with what offset.
    pub(crate) fn streamed(&self) -> Option<(Arc<Vec<u8>>, usize)> {
        let Payload::Streamed(bytes) = &self.payload else {
            return None;
        };
        let rest = elements::skip(bytes, self.done as usize)?;
        Some((Arc::clone(bytes), bytes.len() - rest.len()))
    }

    /// Notes that an attempt ran: where and when.
    pub(crate) fn note_run(&mut self, pid: u32, worker: usize, header: &ResultHeader) {
        self.started_ns = Some(header.started_ns);
        let report = &mut self.report;
        report.attempts = self.attempts + 1;
        report.pid = Some(pid);
        report.worker = Some(worker);
        report.queued = Duration::from_nanos(header.started_ns.saturating_sub(self.submitted_ns));
        // Several records of one chunk add up.
        let ran = Duration::from_nanos(header.ran_ns);
        report.ran = if header.first == 0 {
            ran
        } else {
            report.ran.saturating_add(ran)
        };
        if let Some(usage) = header.usage {
            let cpu = Duration::from_nanos(usage.cpu_ns);
            report.cpu = Some(
                report
                    .cpu
                    .filter(|_| header.first > 0)
                    .map_or(cpu, |before| before.saturating_add(cpu)),
            );
            report.peak_rss = Some(usage.peak_rss);
        }
    }

    /// Takes up `count` recorded outcomes. False if `elements` are not such outcomes.
    pub(crate) fn record(&mut self, count: u32, elements: &[u8]) -> bool {
        if count > self.remaining() || !matches!(elements::skip(elements, count as usize), Some([]))
        {
            return false;
        }
        self.parts.push(Part::Recorded {
            elements: elements.to_vec(),
        });
        self.advance(count);
        true
    }

    fn advance(&mut self, count: u32) {
        self.done += count;
        self.kills = 0;
        self.attempts = 0;
    }

    /// Ends a job of one element with its recorded outcome, without a copy in between.
    pub(crate) fn complete_single(self, elements: &[u8]) -> Option<Completion> {
        let (kind, bytes, rest) = elements::split_first(elements)?;
        if !rest.is_empty() {
            return None;
        }
        let result = match kind {
            Kind::Value => Ok(Value::Bytes(Bytes::from_slice(bytes))),
            fault => Err(recorded_error(
                fault,
                bytes,
                &self.cell.label(),
                self.payload_limit,
            )),
        };
        Some(self.complete(result))
    }

    pub(crate) fn is_single(&self) -> bool {
        self.count == 1
    }

    fn complete(self, result: Result<Value, JobError>) -> Completion {
        let mut report = self.report;
        if report.attempts == 0 {
            let waited = procpool_sys::clock::monotonic_ns().saturating_sub(self.submitted_ns);
            report.queued = Duration::from_nanos(waited);
        }
        Completion {
            cell: self.cell,
            ended: Ended { result, report },
        }
    }

    /// Ends a job of which every element has an outcome.
    pub(crate) fn complete_parts(mut self) -> Completion {
        debug_assert_eq!(self.done, self.count);
        if self.is_single()
            && let Some(part) = self.parts.pop()
        {
            return match part {
                Part::Failed(error) => self.complete(Err(error)),
                Part::Recorded { elements, .. } => {
                    // `record` has looked at these bytes, so they are one element.
                    self.complete_single(&elements).expect("one whole element")
                }
            };
        }
        let parts = std::mem::take(&mut self.parts);
        self.complete(Ok(Value::Parts(parts)))
    }

    /// Ends the job with `error` for every element that has no outcome.
    pub(crate) fn fail_rest(mut self, error: &JobError) -> Completion {
        if self.done == 0 {
            return self.complete(Err(error.clone()));
        }
        while self.done < self.count {
            self.parts.push(Part::Failed(error.clone()));
            self.advance(1);
        }
        self.complete_parts()
    }

    /// The current element has ended with `error`; others of the job go on.
    pub(crate) fn fail_current(mut self, error: JobError) -> Next {
        self.parts.push(Part::Failed(error));
        self.advance(1);
        self.next()
    }

    /// Completes the job, or sends the rest of it on.
    pub(crate) fn next(self) -> Next {
        if self.done == self.count {
            Next::Complete(self.complete_parts())
        } else {
            Next::Requeue(self)
        }
    }

    /// The current element was stopped, for `reason`.
    pub(crate) fn stopped(self, reason: StopReason, ended_by: EndedBy) -> Next {
        match reason {
            StopReason::Abort => match self.fail_current(JobError::Cancelled { started: true }) {
                Next::Requeue(rest) => rest.stopped_between(reason),
                complete => complete,
            },
            StopReason::Timeout(after) => {
                let label = self.cell.label();
                self.fail_current(JobError::TimedOut(Timeout {
                    limit: Limit::Job,
                    after,
                    ended_by,
                    label,
                }))
            }
        }
    }

    /// The job was stopped, for `reason`, while none of its elements ran.
    pub(crate) fn stopped_between(self, reason: StopReason) -> Next {
        match reason {
            StopReason::Abort => {
                Next::Complete(self.fail_rest(&JobError::Cancelled { started: false }))
            }
            StopReason::Timeout(_) => self.next(),
        }
    }

    /// The current element has killed its worker.
    pub(crate) fn killed_worker(mut self, error: JobError) -> Next {
        self.kills += 1;
        self.attempts += 1;
        if matches!(error, JobError::Died(_)) && self.kills <= self.retries {
            return Next::Requeue(self);
        }
        let error = match error {
            JobError::Died(_) if self.retries > 0 => JobError::Quarantined {
                attempts: self.kills,
                last: Box::new(error),
            },
            error => error,
        };
        self.fail_current(error)
    }

    /// Notes an attempt that ended with its worker.
    pub(crate) fn note_death(
        &mut self,
        pid: u32,
        worker: usize,
        black_box: &BlackBox,
        now_ns: u64,
    ) {
        // The clock in the black box is the worker's word.
        let started_ns = black_box
            .started_ns
            .clamp(self.submitted_ns, now_ns.max(self.submitted_ns));
        self.report.attempts = self.attempts + 1;
        self.report.pid = Some(pid);
        self.report.worker = Some(worker);
        self.report.queued = Duration::from_nanos(started_ns - self.submitted_ns);
        self.report.ran = Duration::from_nanos(now_ns.saturating_sub(started_ns));
    }
}

/// The phase of a death, of a job that was started and has no outcome.
pub(crate) fn phase_of(phase: WorkerPhase) -> Phase {
    match phase {
        // Claimed, and not yet begun: decoding is what comes next.
        WorkerPhase::Idle | WorkerPhase::Decode => Phase::Decode,
        WorkerPhase::Run => Phase::Run,
        WorkerPhase::Encode => Phase::Encode,
        WorkerPhase::Send | WorkerPhase::Drop => Phase::Send,
    }
}
