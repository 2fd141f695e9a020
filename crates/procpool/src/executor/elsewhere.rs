//! For executors whose jobs run under another process, which has a pool: calls that are encoded already,
//! and outcomes as data that can travel or be kept.

use std::io;
use std::num::NonZeroU64;
use std::panic::Location;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use procpool_sys::fork;
use procpool_wire::elements::{self, Kind, WORD};
use serde::{Deserialize, Serialize};

use super::{Call, Callee, Control, Data, Options, Promise};
use crate::Error;
use crate::cell::JobCell;
use crate::future::JobFuture;
use crate::job::submit_call;
use crate::job_error::{
    CodecError, Death, EndedBy, JobError, Label, Limit, Oom, Panic, Phase, Side, Status, Timeout,
};
use crate::leaks::Leaked;
use crate::pool::ProcessPool;
use crate::report::{Progress, Report};

/// A promise and the future that it is for: of a job that is known elsewhere already.
#[track_caller]
pub fn promise<R: Data>(control: Arc<dyn Control>) -> (Promise, JobFuture<R>) {
    let cell = JobCell::new(control, Location::caller(), None, 0);
    (Promise(Arc::clone(&cell)), JobFuture::of_data(cell))
}

/// A future's promise, if it is one of this executor's.
pub fn promise_of<R>(future: &JobFuture<R>, control: &Arc<dyn Control>) -> Option<Promise> {
    let cell = future.cell();
    let address = |control: &Arc<dyn Control>| Arc::as_ptr(control).cast::<()>();
    (address(&cell.control) == address(control)).then(|| Promise(Arc::clone(cell)))
}

/// Sees to it that [`is_forked_child`] knows. Once for each process is enough.
///
/// # Errors
/// If there is no memory for it.
pub fn watch_forks() -> io::Result<()> {
    fork::watch()
}

/// True in a forked child of the process that [made the executor](watch_forks), where nothing of it works: locks may be held by
/// threads that are not there, and connections are the parent's.
pub fn is_forked_child() -> bool {
    fork::is_child()
}

/// Encodes the one argument of a call.
///
/// # Errors
/// What the argument's `Serialize` said, or that it is longer than `limit`.
pub fn argument(call: &mut dyn Call, limit: Option<u64>) -> Result<Vec<u8>, JobError> {
    let mut encoded = Vec::new();
    call.encode(limit, &mut encoded)?;
    let word = encoded[..WORD].try_into().expect("an element begins with a word");
    let (_, len) = elements::parse_header(u64::from_le_bytes(word)).expect("it was just encoded");
    encoded.truncate(WORD + len as usize);
    encoded.drain(..WORD);
    Ok(encoded)
}

/// A call of a task by name, with its argument encoded already.
#[derive(Debug, Clone, Copy)]
pub struct EncodedCall<'a> {
    /// The task.
    pub task: &'a str,
    /// How the argument is written; the result is written in the same way. [`Bytes`](crate::Bytes) are in both with their
    /// content; a [`Shared`](crate::Shared) result is [`JobError::Encode`].
    pub form: EncodedForm,
    /// The argument.
    pub argument: &'a [u8],
}

/// How the argument and the result of an [`EncodedCall`] are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EncodedForm {
    /// As JSON.
    Json,
    /// In the library's own form, by a program whose task has this fingerprint.
    Binary {
        /// [`Task::fingerprint`](crate::Task::fingerprint).
        fingerprint: u64,
    },
}

impl Call for EncodedCall<'_> {
    fn callee(&self) -> Callee<'_> {
        match self.form {
            EncodedForm::Json => Callee::JsonTask(self.task),
            EncodedForm::Binary { fingerprint } => Callee::BinaryTask(self.task, fingerprint),
        }
    }

    fn encode(&mut self, limit: Option<u64>, out: &mut Vec<u8>) -> Result<u32, JobError> {
        let len = self.argument.len() as u64;
        if let Some(limit) = limit.filter(|limit| len > *limit) {
            return Err(JobError::TooLarge { len, limit });
        }
        elements::push(out, Kind::Value, self.argument);
        Ok(1)
    }

    fn local(&mut self) -> Option<Box<dyn FnOnce() -> Box<dyn std::any::Any + Send> + Send>> {
        None
    }
}

impl ProcessPool {
    /// Calls a task whose argument is encoded already; the result stays encoded. For a program that runs the
    /// jobs of others, whose types it does not know. The workers may be
    /// [another program](crate::ProcessPoolBuilder::worker_program).
    #[track_caller]
    pub fn call_encoded(&self, mut call: EncodedCall<'_>, options: &Options) -> JobFuture<Vec<u8>> {
        let backend = crate::Executor::backend(self);
        let cell = JobCell::new(backend.control(), Location::caller(), Some(call.task.into()), 0);
        submit_call(backend, &mut call, &cell, options);
        JobFuture::of_encoded(cell)
    }
}

/// A [`JobError`] as data: to be kept, or to end the same job's promise in another process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Verdict {
    /// [`JobError::Panicked`].
    Panicked {
        /// [`Panic::message`].
        message: String,
        /// [`Panic::location`].
        location: Option<String>,
        /// [`Panic::backtrace`].
        backtrace: Option<String>,
        /// [`Panic::aborted`].
        aborted: bool,
    },
    /// [`JobError::Died`].
    Died {
        /// [`Death::status`].
        #[serde(with = "StatusDef")]
        status: Status,
        /// [`Death::phase`].
        #[serde(with = "PhaseDef")]
        phase: Phase,
        /// [`Death::oom`].
        #[serde(with = "OomDef")]
        oom: Oom,
        /// [`Death::pid`].
        pid: u32,
        /// [`Death::attempt`].
        attempt: u32,
        /// The worker's index.
        worker: u64,
        /// [`Death::stderr_tail`].
        stderr_tail: String,
        /// [`Death::detail`].
        detail: Option<String>,
    },
    /// [`JobError::TimedOut`].
    TimedOut {
        /// [`Timeout::limit`].
        #[serde(with = "LimitDef")]
        limit: Limit,
        /// [`Timeout::after`].
        after: Duration,
        /// [`Timeout::ended_by`].
        #[serde(with = "EndedByDef")]
        ended_by: EndedBy,
    },
    /// [`JobError::Cancelled`].
    Cancelled {
        /// Whether it had started.
        started: bool,
    },
    /// [`JobError::Quarantined`].
    Quarantined {
        /// How many workers it killed.
        attempts: u32,
        /// How the last of them died.
        last: Box<Verdict>,
    },
    /// [`JobError::Encode`] or [`JobError::Decode`].
    Codec {
        /// Which of the two.
        step: CodecStep,
        /// [`CodecError::side`].
        #[serde(with = "SideDef")]
        side: Side,
        /// [`CodecError::type_name`].
        type_name: String,
        /// [`CodecError::message`].
        message: String,
    },
    /// [`JobError::TooLarge`].
    TooLarge {
        /// The encoded length, in bytes.
        len: u64,
        /// The limit, in bytes.
        limit: u64,
    },
    /// [`JobError::Unregistered`].
    Unregistered(String),
    /// [`JobError::Leaked`], in words.
    Leaked(String),
    /// [`JobError::Closed`].
    Closed,
    /// [`JobError::Broken`], and whatever only an executor of another kind has to say.
    Broken(String),
}

/// What went wrong with an argument or a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum CodecStep {
    /// It could not be encoded.
    Encode,
    /// It could not be decoded.
    Decode,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Status")]
enum StatusDef {
    Exit(i32),
    Signal(i32, bool),
    Unknown,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Phase")]
enum PhaseDef {
    Start,
    Idle,
    Decode,
    Run,
    Encode,
    Send,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Oom")]
enum OomDef {
    Yes,
    No,
    Unknown,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Limit")]
enum LimitDef {
    Job,
    Cpu,
    Map,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "EndedBy")]
enum EndedByDef {
    NotStarted,
    Itself,
    Term,
    Kill,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Side")]
enum SideDef {
    Caller,
    Worker,
}

impl Verdict {
    /// What is kept of an error. Which job it is about is not part of it.
    pub fn of(error: &JobError) -> Verdict {
        match error.clone() {
            JobError::Panicked(Panic { message, location, backtrace, aborted, label: _ }) => {
                Verdict::Panicked { message, location, backtrace, aborted }
            }
            JobError::Died(death) => Verdict::Died {
                status: death.status,
                phase: death.phase,
                oom: death.oom,
                pid: death.pid,
                attempt: death.attempt,
                worker: death.worker as u64,
                stderr_tail: death.stderr_tail,
                detail: death.detail,
            },
            JobError::TimedOut(Timeout { limit, after, ended_by, label: _ }) => {
                Verdict::TimedOut { limit, after, ended_by }
            }
            JobError::Cancelled { started } => Verdict::Cancelled { started },
            JobError::Quarantined { attempts, last } => {
                Verdict::Quarantined { attempts, last: Box::new(Verdict::of(&last)) }
            }
            JobError::Encode(error) => Verdict::codec(CodecStep::Encode, error),
            JobError::Decode(error) => Verdict::codec(CodecStep::Decode, error),
            JobError::TooLarge { len, limit } => Verdict::TooLarge { len, limit },
            JobError::Unregistered(what) => Verdict::Unregistered(what),
            JobError::Leaked(leaked) => Verdict::Leaked(leaked.to_string()),
            JobError::Closed => Verdict::Closed,
            JobError::Broken(error) => Verdict::Broken(error.to_string()),
        }
    }

    fn codec(step: CodecStep, error: CodecError) -> Verdict {
        let CodecError { side, type_name, message } = error;
        Verdict::Codec { step, side, type_name, message }
    }

    pub(super) fn into_error(self, label: &Label) -> JobError {
        let label = label.clone();
        match self {
            Verdict::Panicked { message, location, backtrace, aborted } => {
                JobError::Panicked(Panic { message, location, backtrace, aborted, label })
            }
            Verdict::Died { status, phase, oom, pid, attempt, worker, stderr_tail, detail } => {
                let worker = worker as usize;
                JobError::Died(Death {
                    status,
                    phase,
                    oom,
                    pid,
                    attempt,
                    stderr_tail,
                    detail,
                    label,
                    worker,
                })
            }
            Verdict::TimedOut { limit, after, ended_by } => {
                JobError::TimedOut(Timeout { limit, after, ended_by, label })
            }
            Verdict::Cancelled { started } => JobError::Cancelled { started },
            Verdict::Quarantined { attempts, last } => {
                JobError::Quarantined { attempts, last: Box::new(last.into_error(&label)) }
            }
            Verdict::Codec { step, side, type_name, message } => {
                let error = CodecError { side, type_name, message };
                match step {
                    CodecStep::Encode => JobError::Encode(error),
                    CodecStep::Decode => JobError::Decode(error),
                }
            }
            Verdict::TooLarge { len, limit } => JobError::TooLarge { len, limit },
            Verdict::Unregistered(what) => JobError::Unregistered(what),
            // What was left is known in words only.
            Verdict::Leaked(_) => JobError::Leaked(Leaked::default()),
            Verdict::Closed => JobError::Closed,
            Verdict::Broken(cause) => JobError::Broken(Error::start(cause)),
        }
    }
}

impl Progress {
    /// What a job has reported elsewhere.
    pub fn new(fraction: f64, message: String) -> Progress {
        Progress { fraction, message }
    }
}

impl Promise {
    /// Ends the job as it has ended elsewhere. Callbacks run on this thread.
    pub fn fail_as(&self, verdict: Verdict, report: Report) {
        self.fail(verdict.into_error(&self.0.label()), report);
    }

    /// The name that its caller gave to the job.
    pub fn name(&self) -> Option<&str> {
        self.0.name().map(|name| &**name)
    }

    /// True if the job has ended.
    pub fn is_done(&self) -> bool {
        self.0.is_done()
    }

    /// True if the job was cancelled, and never started.
    pub fn is_cancelled_unstarted(&self) -> bool {
        self.0.is_cancelled_unstarted()
    }

    /// Keeps a number with the job, whatever the executor knows it by. 0 means none.
    pub fn note(&self, number: u64) {
        self.0.place.store(number, Ordering::Release);
    }

    /// What was [noted](Promise::note) last.
    pub fn noted(&self) -> Option<NonZeroU64> {
        NonZeroU64::new(self.0.place.load(Ordering::Acquire))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job_id::JobId;

    /// Goal: nothing that a job's end says is lost on its way through data.
    #[test]
    fn an_error_comes_back_as_it_was() {
        let label = Label { id: JobId::from_number(7), name: None, origin: Location::caller() };
        let died = JobError::Died(Death {
            status: Status::Signal(11, true),
            phase: Phase::Run,
            oom: Oom::Unknown,
            pid: 4711,
            attempt: 2,
            stderr_tail: "last words".into(),
            detail: Some("it closed its channel".into()),
            label: label.clone(),
            worker: 3,
        });
        let codec =
            || CodecError { side: Side::Worker, type_name: "u8".into(), message: "no".into() };
        let errors = [
            JobError::Quarantined { attempts: 2, last: Box::new(died.clone()) },
            died,
            JobError::Panicked(Panic {
                message: "oh".into(),
                location: Some("a.rs:1:2".into()),
                backtrace: None,
                aborted: true,
                label: label.clone(),
            }),
            JobError::TimedOut(Timeout {
                limit: Limit::Cpu,
                after: Duration::from_millis(1),
                ended_by: EndedBy::Kill,
                label: label.clone(),
            }),
            JobError::Cancelled { started: true },
            JobError::Encode(codec()),
            JobError::Decode(codec()),
            JobError::TooLarge { len: 2, limit: 1 },
            JobError::Unregistered("f".into()),
            JobError::Closed,
        ];
        for error in errors {
            let verdict = Verdict::of(&error);
            let mut bytes = Vec::new();
            procpool_wire::codec::encode_into(&verdict, None, &mut bytes).unwrap();
            let read: Verdict = procpool_wire::codec::decode(&bytes).unwrap();
            assert_eq!(read, verdict);
            assert_eq!(read.into_error(&label).to_string(), error.to_string());
        }
    }
}
