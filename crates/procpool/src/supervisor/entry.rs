//! One submitted job on the pool's side: what to send, what has come back, how it ends.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use procpool_wire::block::{
    BlackBox, INLINE_WORDS_MAX, JobHeader, Phase as WorkerPhase, ResultHeader, Ticket,
};
use procpool_wire::elements::{self, Kind, WORD};

use super::cpu_limit;
use crate::attachments::session::Collected;
use crate::attachments::{Attachment, List};
use crate::cell::{Bytes, Ended, JobCell, Part, Value};
use crate::job_error::{Death, EndedBy, JobError, Limit, Phase, Timeout};
use crate::leaks::Leaked;
use crate::report::Report;
use crate::worker::recorded_error;

/// Encoded arguments of this length and more are lent. Below it, the messages that pass a descriptor on and bring
/// it back cost more than the copies through a socket.
const LEND_FROM: usize = 256 * 1024;

/// Encoded arguments. The long ones are shared with what is being written to a worker.
pub(crate) enum Payload {
    /// Fits into the shared memory.
    Inline(Bytes),
    /// Travels on the control channel.
    Streamed(Arc<Streamed>),
}

/// Encoded arguments that travel on the control channel, or beside it.
pub(crate) struct Streamed {
    bytes: Place,
    /// What they refer to.
    pub(crate) attachments: Option<List>,
}

/// Where encoded arguments are.
enum Place {
    /// They are written to the channel.
    Here(Vec<u8>),
    /// Their memory goes beside it.
    Lent(Arc<Attachment>),
}

impl Streamed {
    fn new(elements: &[u8], attachments: Option<List>) -> Streamed {
        let lent = (elements.len() >= LEND_FROM).then(|| Attachment::lend(elements)).flatten();
        let bytes = lent.map_or_else(|| Place::Here(elements.to_vec()), Place::Lent);
        Streamed { bytes, attachments }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        match &self.bytes {
            Place::Here(bytes) => bytes,
            // It was mapped when it was made.
            Place::Lent(attachment) => attachment.bytes().unwrap_or_default(),
        }
    }

    /// The memory that they are in, if that goes beside the channel.
    pub(crate) fn lent(&self) -> Option<&Arc<Attachment>> {
        match &self.bytes {
            Place::Here(_) => None,
            Place::Lent(attachment) => Some(attachment),
        }
    }
}

impl Payload {
    pub(crate) fn new(elements: &[u8], attached: Collected) -> Payload {
        let attachments = (!attached.is_empty()).then(|| attached.into_list());
        // What is attached comes before the payload on the control channel, so it is there when the payload
        // is: a job that has attachments needs no other rule.
        if attachments.is_some() || elements.len() / WORD > INLINE_WORDS_MAX {
            Payload::Streamed(Arc::new(Streamed::new(elements, attachments)))
        } else {
            Payload::Inline(Bytes::from_slice(elements))
        }
    }
}

/// What a job calls, as workers of this pool understand it.
#[derive(Debug, Clone)]
pub(crate) enum WireTarget {
    /// Offsets of trampoline and function.
    Offset(u64, u64),
    /// A name; `(0, 0)` for JSON, `(1, fingerprint)` for binary.
    Named(Box<(Arc<str>, u64, u64)>),
}

/// A job that a pool has accepted and not completed.
pub(crate) struct Entry {
    pub(crate) cell: Arc<JobCell>,
    pub(crate) target: WireTarget,
    /// Encoded arguments, unless they are streamed.
    inline: Bytes,
    submitted_ns: u64,
    count: u32,
    /// Elements that have an outcome.
    done: u32,
    rare: Option<Box<Rare>>,
}

/// As it goes from the caller to the queue, to a worker's table and back: to pass a pointer on takes less time than what
/// it points to.
pub(crate) type EntryBox = Box<Entry>;

/// A million that wait are a million times this, a count of malloc(3)'s and a place in the queue.
const _: () = assert!(size_of::<Entry>() <= 88);

/// What few jobs have.
#[derive(Default)]
struct Rare {
    limits: Limits,
    /// Arguments that do not fit into the shared memory.
    streamed: Option<Arc<Streamed>>,
    past: Past,
}

/// The limits of a job. Most jobs have none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Limits {
    pub(crate) retries: u32,
    pub(crate) timeout: Option<Duration>,
    pub(crate) cpu_timeout: Option<Duration>,
    pub(crate) payload: Option<u64>,
    /// Attempts that this pool knows nothing of.
    pub(crate) attempts_before: u32,
}

/// What has happened to a job that is not done with its first record.
#[derive(Default)]
struct Past {
    /// Outcomes of elements.
    parts: Vec<Part>,
    /// Workers that the current element has killed, each in one attempt.
    kills: u32,
    report: Report,
}

/// Outcomes, as a worker has recorded them.
pub(crate) enum Recorded<'a> {
    /// One after another, as they stood in the shared memory.
    Elements(&'a [u8]),
    /// A single one, which came over the socket.
    Streamed(Kind, Vec<u8>),
}

impl<'a> Recorded<'a> {
    /// The single outcome that this is, if it is one.
    #[inline]
    fn single(self) -> Option<(Kind, Bytes)> {
        match self {
            Recorded::Elements(elements) => {
                let (kind, bytes, rest) = elements::split_first(elements)?;
                rest.is_empty().then(|| (kind, Bytes::from_slice(bytes)))
            }
            Recorded::Streamed(kind, bytes) => Some((kind, Bytes::from_vec(bytes))),
        }
    }

    /// The outcomes one after another; `None` if there is no memory for them.
    pub(crate) fn elements(self) -> Option<Cow<'a, [u8]>> {
        match self {
            Recorded::Elements(elements) => Some(Cow::Borrowed(elements)),
            Recorded::Streamed(kind, bytes) => {
                let mut element = Vec::new();
                element.try_reserve_exact(elements::padded(bytes.len())).ok()?;
                elements::push(&mut element, kind, &bytes);
                Some(Cow::Owned(element))
            }
        }
    }
}

/// Why a running job was stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StopReason {
    Abort,
    Timeout(Limit, Duration),
}

/// What follows from something that happened to a job.
pub(crate) enum Next {
    /// It has ended.
    Complete(Completion),
    /// It is not complete and must run elsewhere.
    Requeue(EntryBox),
    /// It has killed its worker, and shall run again after a while.
    Retry(EntryBox),
}

/// A job that has ended; to be told to its cell once no lock is held.
pub(crate) struct Completion {
    pub(crate) cell: Arc<JobCell>,
    pub(crate) ended: Ended,
}

impl Entry {
    pub(crate) fn new(
        cell: Arc<JobCell>,
        target: WireTarget,
        payload: Payload,
        count: u32,
        submitted_ns: u64,
        limits: Limits,
    ) -> EntryBox {
        let (inline, streamed) = match payload {
            Payload::Inline(bytes) => (bytes, None),
            Payload::Streamed(streamed) => (Bytes::new(), Some(streamed)),
        };
        let is_rare = streamed.is_some() || limits != Limits::default();
        let rare = is_rare.then(|| Box::new(Rare { limits, streamed, past: Past::default() }));
        Box::new(Entry { cell, target, inline, submitted_ns, count, done: 0, rare })
    }

    /// Its place among jobs of equal priority: they go by their numbers.
    pub(crate) fn sequence(&self) -> u64 {
        self.cell.id.number()
    }

    pub(crate) fn timeout(&self) -> Option<Duration> {
        self.limits()?.timeout
    }

    pub(crate) fn cpu_timeout(&self) -> Option<Duration> {
        self.limits()?.cpu_timeout
    }

    /// How soon after its start, at the earliest, one of its limits can be reached.
    pub(crate) fn first_look(&self) -> Option<Duration> {
        let limits = self.limits()?;
        let cpu = limits.cpu_timeout.map(cpu_limit::first_look);
        limits.timeout.into_iter().chain(cpu).min()
    }

    fn retries(&self) -> u32 {
        self.limits().map_or(0, |limits| limits.retries)
    }

    fn limits(&self) -> Option<&Limits> {
        self.rare.as_ref().map(|rare| &rare.limits)
    }

    fn past(&mut self) -> &mut Past {
        &mut self.rare.get_or_insert_default().past
    }

    pub(crate) fn done(&self) -> u32 {
        self.done
    }

    pub(crate) fn remaining(&self) -> u32 {
        self.count - self.done
    }

    /// Which attempt the next, or the running, one is.
    pub(crate) fn attempt(&self) -> u32 {
        let before = |rare: &Rare| rare.limits.attempts_before + rare.past.kills;
        self.rare.as_deref().map_or(0, before) + 1
    }

    /// The header and elements to send: those that have no outcome yet.
    pub(crate) fn to_send(&self, ticket: Ticket) -> (JobHeader, &[u8]) {
        let (name_len, run, function) = match &self.target {
            WireTarget::Offset(run, function) => (0, *run, *function),
            WireTarget::Named(named) => (named.0.len() as u32, named.1, named.2),
        };
        let header = JobHeader {
            ticket,
            job: self.cell.id.number(),
            attempt: self.attempt(),
            first: self.done,
            count: self.remaining(),
            name_len,
            note_cpu: self.cpu_timeout().is_some(),
            run,
            function,
        };
        let streamed = self.rare.as_ref().and_then(|rare| rare.streamed.as_ref());
        let bytes = streamed.map_or(&self.inline[..], |streamed| streamed.bytes());
        let rest = elements::skip(bytes, self.done as usize);
        (header, rest.expect("the pool has encoded so many elements itself"))
    }

    /// What to keep alive while the elements of `to_send` are written to a channel; with what offset.
    pub(crate) fn streamed(&self) -> Option<(Arc<Streamed>, usize)> {
        let streamed = self.rare.as_ref()?.streamed.as_ref()?;
        let bytes = streamed.bytes();
        let rest = elements::skip(bytes, self.done as usize)?;
        Some((Arc::clone(streamed), bytes.len() - rest.len()))
    }

    /// What the arguments refer to.
    pub(crate) fn attachments(&self) -> Option<&List> {
        self.rare.as_ref()?.streamed.as_ref()?.attachments.as_ref()
    }

    pub(crate) fn payload_limit(&self) -> Option<u64> {
        self.limits()?.payload
    }

    /// What a record says of the attempt that it comes from; several records of one chunk add up.
    pub(crate) fn report(
        &self,
        pid: u32,
        worker: usize,
        header: &ResultHeader,
        leaked: Option<Box<Leaked>>,
    ) -> Report {
        let before = self.rare.as_ref().map(|rare| &rare.past.report).filter(|_| header.first > 0);
        let ran = Duration::from_nanos(header.ran_ns);
        let cpu = header.usage.map(|usage| Duration::from_nanos(usage.cpu_ns));
        Report {
            attempts: self.attempt(),
            queued: Duration::from_nanos(header.started_ns.saturating_sub(self.submitted_ns)),
            ran: before.map_or(ran, |before| before.ran.saturating_add(ran)),
            cpu: match (before.and_then(|before| before.cpu), cpu) {
                (Some(before), Some(now)) => Some(before.saturating_add(now)),
                (before, now) => before.or(now),
            },
            peak_rss: header.usage.map(|usage| usage.peak_rss).or(before.and_then(|b| b.peak_rss)),
            pid: Some(pid),
            worker: Some(worker),
            leaked: leaked.or_else(|| before.and_then(|before| before.leaked.clone())),
        }
    }

    /// Notes an attempt whose job is not complete with this record.
    pub(crate) fn note_run(
        &mut self,
        pid: u32,
        worker: usize,
        header: &ResultHeader,
        leaked: Option<Box<Leaked>>,
    ) {
        self.past().report = self.report(pid, worker, header, leaked);
    }

    /// Takes up `count` recorded outcomes. False if `elements` are not such outcomes.
    pub(crate) fn record(
        &mut self,
        count: u32,
        elements: &[u8],
        attachments: Option<List>,
    ) -> bool {
        if count > self.remaining() || !matches!(elements::skip(elements, count as usize), Some([]))
        {
            return false;
        }
        let elements = elements.to_vec();
        self.past().parts.push(Part::Recorded { elements, attachments });
        self.advance(count);
        true
    }

    fn advance(&mut self, count: u32) {
        self.done += count;
        self.past().kills = 0;
    }

    /// Ends a job of one element with its recorded outcome, without a copy in between.
    #[expect(clippy::boxed_local, reason = "unboxed it would be copied first")]
    pub(crate) fn complete_single(
        self: Box<Self>,
        recorded: Recorded<'_>,
        attachments: Option<List>,
        report: Report,
    ) -> Option<Completion> {
        let (kind, bytes) = recorded.single()?;
        let result = match kind {
            Kind::Value => Ok(match attachments {
                None => Value::Bytes(bytes),
                Some(list) => Value::Attached(Box::new((bytes.into_vec(), list))),
            }),
            fault => {
                let limit = self.payload_limit();
                Err(recorded_error(fault, &bytes, &self.cell.label(), limit))
            }
        };
        Some(Completion { cell: self.cell, ended: Ended::new(result, report) })
    }

    pub(crate) fn is_single(&self) -> bool {
        self.count == 1
    }

    fn complete(self, result: Result<Value, JobError>) -> Completion {
        let mut report = self.rare.map(|rare| rare.past.report).unwrap_or_default();
        if report.attempts == 0 {
            let waited = procpool_sys::clock::monotonic_ns().saturating_sub(self.submitted_ns);
            report.queued = Duration::from_nanos(waited);
        }
        Completion { cell: self.cell, ended: Ended::new(result, report) }
    }

    /// Ends a job of which every element has an outcome.
    pub(crate) fn complete_parts(mut self: Box<Self>) -> Completion {
        debug_assert_eq!(self.done, self.count);
        let past = self.past();
        let mut parts = std::mem::take(&mut past.parts);
        let report = past.report.clone();
        match parts.pop_if(|_| self.count == 1) {
            None => self.complete(Ok(Value::Parts(parts))),
            Some(Part::Failed(error)) => self.complete(Err(error)),
            Some(Part::Recorded { elements, attachments }) => {
                // `record` has looked at these bytes, so they are one element.
                let recorded = Recorded::Elements(&elements);
                self.complete_single(recorded, attachments, report).expect("one whole element")
            }
        }
    }

    /// Ends the job with `error` for every element that has no outcome.
    pub(crate) fn fail_rest(mut self: Box<Self>, error: &JobError) -> Completion {
        if self.done == 0 {
            return self.complete(Err(error.clone()));
        }
        while self.done < self.count {
            self.past().parts.push(Part::Failed(error.clone()));
            self.advance(1);
        }
        self.complete_parts()
    }

    /// The current element has ended with `error`; others of the job go on.
    pub(crate) fn fail_current(mut self: Box<Self>, error: JobError) -> Next {
        self.past().parts.push(Part::Failed(error));
        self.advance(1);
        self.next()
    }

    /// Completes the job, or sends the rest of it on.
    pub(crate) fn next(self: Box<Self>) -> Next {
        if self.done == self.count {
            Next::Complete(self.complete_parts())
        } else {
            Next::Requeue(self)
        }
    }

    /// The current element was stopped, for `reason`.
    pub(crate) fn stopped(self: Box<Self>, reason: StopReason, ended_by: EndedBy) -> Next {
        match reason {
            StopReason::Abort => match self.fail_current(JobError::Cancelled { started: true }) {
                Next::Requeue(rest) => rest.stopped_between(reason),
                complete => complete,
            },
            StopReason::Timeout(limit, after) => {
                let label = self.cell.label();
                self.fail_current(JobError::TimedOut(Timeout { limit, after, ended_by, label }))
            }
        }
    }

    /// The current element was to be stopped, for `reason`, and its worker does not end. That its time was over is
    /// not the whole truth, so it is told as a death; it is not tried again.
    pub(crate) fn outlived(self: Box<Self>, reason: StopReason, mut death: Death) -> Next {
        let StopReason::Timeout(limit, after) = reason else {
            return self.stopped(reason, EndedBy::Kill);
        };
        let what = if limit == Limit::Cpu { "CPU time" } else { "time" };
        let detail = death.detail.unwrap_or_default();
        death.detail = Some(format!("its {what} limit of {after:?} was over; {detail}"));
        self.fail_current(JobError::Died(death))
    }

    /// The job was stopped, for `reason`, while none of its elements ran.
    pub(crate) fn stopped_between(self: Box<Self>, reason: StopReason) -> Next {
        match reason {
            StopReason::Abort => {
                Next::Complete(self.fail_rest(&JobError::Cancelled { started: false }))
            }
            StopReason::Timeout(..) => self.next(),
        }
    }

    /// The current element has killed its worker.
    pub(crate) fn killed_worker(mut self: Box<Self>, error: JobError) -> Next {
        let retries = self.retries();
        let past = self.past();
        past.kills += 1;
        let kills = past.kills;
        if matches!(error, JobError::Died(_)) && kills <= retries {
            return Next::Retry(self);
        }
        let error = match error {
            JobError::Died(_) if retries > 0 => {
                JobError::Quarantined { attempts: kills, last: Box::new(error) }
            }
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
        let started_ns =
            black_box.started_ns.clamp(self.submitted_ns, now_ns.max(self.submitted_ns));
        self.past().report = Report {
            attempts: self.attempt(),
            queued: Duration::from_nanos(started_ns - self.submitted_ns),
            ran: Duration::from_nanos(now_ns.saturating_sub(started_ns)),
            pid: Some(pid),
            worker: Some(worker),
            ..Report::default()
        };
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: ten million pending jobs fit into a machine. What a job weighs while it waits, apart from a
    /// payload that does not fit inline, is its entry and its cell.
    #[test]
    fn a_waiting_job_is_small() {
        assert!(size_of::<Entry>() <= 88, "{} bytes", size_of::<Entry>());
        // With the two counts of an `Arc` this is as much as fits into what malloc(3) hands out for it.
        assert!(size_of::<JobCell>() <= 264, "{} bytes", size_of::<JobCell>());
    }
}
