//! What all executors have in common: the [`Executor`] trait, and the way for one to accept jobs.
//!
//! An executor implements [`Backend`]; `submit`, `map` and `job` come with it. Each job arrives as a
//! [`Call`], which can encode itself for another process or turn into a closure for this one, together
//! with a [`Promise`] to complete. The futures do not know who completes them.

mod done_threads;
mod elsewhere;

use std::any::{Any, type_name};
use std::panic::{AssertUnwindSafe, Location, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use procpool_sys::image::Function;
use procpool_wire::codec::{self, CodecFault};
use procpool_wire::elements::{self, Kind};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Error;
use crate::attachments::{List, session};
use crate::cell::{Bytes, Ended, JobCell, Value};
use crate::future::JobFuture;
use crate::job::Job;
use crate::job_error::{CodecError, JobError, Side};
use crate::job_id::JobId;
use crate::map::Map;
use crate::report::{Progress, Report};
use crate::task::{self, Task};
use crate::worker;

pub use done_threads::DoneThreads;
pub use elsewhere::{
    CodecStep, EncodedCall, EncodedForm, Verdict, argument, is_forked_child, promise, promise_of,
    watch_forks,
};

/// What can travel to a worker and back: everything that serde can write and read and that owns itself.
pub trait Data: Serialize + DeserializeOwned + Send + 'static {}

impl<T: Serialize + DeserializeOwned + Send + 'static> Data for T {}

/// Something that runs jobs: a [`ProcessPool`](crate::ProcessPool), a [`ThreadPool`](crate::ThreadPool).
///
/// The pools have these methods of their own as well, so the trait need not be imported to use one.
pub trait Executor {
    /// The part that accepts jobs.
    fn backend(&self) -> &dyn Backend;

    /// Submits `f(arg)`. Blocks only while a queue limit is reached. A job that is refused comes back as
    /// its future's outcome: `Closed` or `Broken`.
    #[track_caller]
    fn submit<A: Data, R: Data>(&self, f: fn(A) -> R, arg: A) -> JobFuture<R> {
        self.job(f, arg).submit()
    }

    /// Calls `f` on every item, lazily and in order. See [`Map`].
    #[track_caller]
    fn map<A: Data, R: Data, I: IntoIterator<Item = A>>(
        &self,
        f: fn(A) -> R,
        items: I,
    ) -> Map<'_, A, R, I::IntoIter> {
        Map::new(self.backend(), f, items.into_iter(), Location::caller())
    }

    /// Prepares `f(arg)` with options of its own. See [`Job`].
    #[track_caller]
    fn job<A: Data, R: Data>(&self, f: fn(A) -> R, arg: A) -> Job<'_, A, R> {
        Job::new(self.backend(), f, arg, Location::caller())
    }
}

/// The part of an executor that accepts jobs.
pub trait Backend: Send + Sync {
    /// What the futures of this executor's jobs ask to cancel, abort and look.
    fn control(&self) -> Arc<dyn Control>;

    /// Takes a job over: sees to it that `promise` is completed. A refused job is left in `call`.
    fn accept(
        &self,
        call: &mut dyn Call,
        promise: Promise,
        options: &Options,
        when_full: WhenFull,
    ) -> Result<(), Rejection>;

    /// How many jobs can run at the same time.
    fn workers(&self) -> usize;

    /// Whether several elements of a `map` can be one job.
    fn takes_chunks(&self) -> bool;

    /// Whether what is encoded for it may refer to [`Bytes`](crate::Bytes) and [`Shared`](crate::Shared)
    /// values by descriptor.
    #[doc(hidden)]
    fn takes_attachments(&self) -> bool {
        false
    }

    /// The longest argument or result, in bytes.
    fn payload_limit(&self) -> Option<u64>;
}

/// What a future asks of the executor that has its job.
pub trait Control: Send + Sync {
    /// Cancels the job if it has not started. True if it will never run.
    fn cancel(&self, job: &Promise) -> bool;
    /// Cancels those of the jobs that have not started.
    fn cancel_all(&self, jobs: &[Promise]) {
        for job in jobs {
            self.cancel(job);
        }
    }

    /// Stops the job, started or not, without waiting.
    fn abort(&self, job: &Promise);
    /// True if the job has started and not ended.
    fn is_running(&self, job: &Promise) -> bool;
    /// The job's latest progress, while it runs.
    fn progress(&self, job: &Promise) -> Option<Progress>;
    /// The calling thread is about to wait for the job, and may be used to bring its end about. True if some job has
    /// ended meanwhile; false if the thread had better sleep. Takes microseconds either way.
    fn attend(&self, _job: &Promise) -> bool {
        false
    }
    /// A callback was left with a job, and will have to be run.
    fn expect_callback(&self) {}
    /// The calling thread takes results, of jobs that have ended, and may be used for an instant to bring the end of
    /// others about.
    fn glance(&self) {}
    /// True in a forked child of the process that made the executor: nothing will ever happen there.
    fn is_inert(&self) -> bool;
}

/// What to do with a job when the queue limit is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenFull {
    /// Wait for room.
    Block,
    /// Refuse the job.
    Refuse,
}

/// Why a job was refused.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Rejection {
    /// The queue limit is reached.
    Full,
    /// The pool was shut down.
    Closed,
    /// Workers cannot be started.
    Broken(Error),
}

/// A job that was refused, with its argument.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Rejected<A> {
    /// The argument, given back.
    pub arg: A,
    /// Why.
    pub reason: Rejection,
}

impl Rejection {
    pub(crate) fn into_job_error(self) -> JobError {
        match self {
            // Only a job that may not wait is refused as `Full`, and that one is given back.
            Rejection::Full | Rejection::Closed => JobError::Closed,
            Rejection::Broken(error) => JobError::Broken(error),
        }
    }
}

/// The options of one job; what is `None` is the executor's own setting.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Time limit from the job's start.
    pub timeout: Option<Duration>,
    /// Limit on the CPU time of each attempt.
    pub cpu_timeout: Option<Duration>,
    /// How often a job that killed its worker is run again.
    pub retries: Option<u32>,
    /// How often the job was started before, by whoever gives it to this executor again: its attempts are counted
    /// from there.
    pub attempts_before: u32,
}

/// The duty to end one job. Clones are the same duty; it is done by the first that does it.
#[derive(Debug, Clone)]
pub struct Promise(pub(crate) Arc<JobCell>);

impl Promise {
    /// The job.
    pub fn id(&self) -> JobId {
        self.0.id
    }

    /// Higher first.
    pub fn priority(&self) -> i32 {
        self.0.priority
    }

    /// Ends the job with its encoded result. Callbacks run on this thread.
    pub fn finish_encoded(&self, bytes: &[u8], report: Report) {
        self.complete(Ok(Value::Bytes(Bytes::from_slice(bytes))), report);
    }

    /// Ends the job with the value that a [`Call::local`] closure returned. Callbacks run on this thread.
    pub fn finish_local(&self, value: Box<dyn Any + Send>, report: Report) {
        self.complete(Ok(Value::Boxed(value)), report);
    }

    /// Ends the job without a value. Callbacks run on this thread.
    pub fn fail(&self, error: JobError, report: Report) {
        self.complete(Err(error), report);
    }

    fn complete(&self, result: Result<Value, JobError>, report: Report) {
        self.0.complete(Ended::new(result, report)).run();
    }
}

/// What is called.
#[derive(Debug, Clone, Copy)]
pub enum Callee<'a> {
    /// A function of this program.
    Function {
        /// The function with its trampoline.
        function: Function,
        /// Its type, for messages.
        signature: &'static str,
    },
    /// A task, by name, with JSON for argument and result.
    JsonTask(&'a str),
    /// A task, by name and fingerprint.
    BinaryTask(&'a str, u64),
}

/// A call that can be made here or encoded for elsewhere.
pub trait Call {
    /// What is called.
    fn callee(&self) -> Callee<'_>;

    /// The task that the function is registered as, if it is.
    fn task(&self) -> Option<&'static Task> {
        match self.callee() {
            Callee::Function { function, .. } => task::of_function(function),
            Callee::JsonTask(name) | Callee::BinaryTask(name, _) => task::named(name),
        }
    }

    /// Appends the encoded arguments, one element each; answers how many. The call keeps them.
    fn encode(&mut self, limit: Option<u64>, out: &mut Vec<u8>) -> Result<u32, JobError>;

    /// Turns the call into a closure that makes it.
    fn local(&mut self) -> Option<Box<dyn FnOnce() -> Box<dyn Any + Send> + Send>>;
}

/// `f(arg)`.
pub(crate) struct FunctionCall<A, R> {
    pub(crate) f: fn(A) -> R,
    pub(crate) arg: Option<A>,
}

impl<A: Data, R: Data> Call for FunctionCall<A, R> {
    fn callee(&self) -> Callee<'_> {
        Callee::Function {
            function: Function::new(worker::run_function::<A, R>, self.f),
            signature: type_name::<fn(A) -> R>(),
        }
    }

    fn encode(&mut self, limit: Option<u64>, out: &mut Vec<u8>) -> Result<u32, JobError> {
        let arg = self.arg.as_ref().expect("a call is made once");
        encode_argument(arg, limit, out).map(|()| 1).map_err(|error| *error)
    }

    fn local(&mut self) -> Option<Box<dyn FnOnce() -> Box<dyn Any + Send> + Send>> {
        let (f, arg) = (self.f, self.arg.take()?);
        Some(Box::new(move || Box::new(f(arg))))
    }
}

/// A task by name, with JSON for argument and result.
pub(crate) struct JsonCall<'a> {
    pub(crate) name: &'a str,
    pub(crate) json: String,
}

impl Call for JsonCall<'_> {
    fn callee(&self) -> Callee<'_> {
        Callee::JsonTask(self.name)
    }

    fn encode(&mut self, limit: Option<u64>, out: &mut Vec<u8>) -> Result<u32, JobError> {
        let len = self.json.len() as u64;
        if let Some(limit) = limit.filter(|limit| len > *limit) {
            return Err(JobError::TooLarge { len, limit });
        }
        elements::push(out, Kind::Value, self.json.as_bytes());
        Ok(1)
    }

    fn local(&mut self) -> Option<Box<dyn FnOnce() -> Box<dyn Any + Send> + Send>> {
        None
    }
}

/// Appends one encoded argument as an element. A panic in its `Serialize` is an error like any other.
///
/// Here and below errors are boxed: what is returned for each of a million arguments fits into a register.
pub(crate) fn encode_argument<A: Data>(
    arg: &A,
    limit: Option<u64>,
    out: &mut Vec<u8>,
) -> Result<(), Box<JobError>> {
    let start = out.len();
    let encode = || {
        elements::push_with(out, Kind::Value, |out| session::encode_into(arg, limit, out))
            .map_err(Box::new)
    };
    let result = catch_unwind(AssertUnwindSafe(encode));
    result
        .unwrap_or_else(|payload| Err(Box::new(CodecFault::Message(panic_text(payload)))))
        .map_err(|fault| {
            out.truncate(start);
            Box::new(match *fault {
                CodecFault::TooLarge { len, limit } => JobError::TooLarge { len, limit },
                CodecFault::Message(message) => {
                    JobError::Encode(codec_error::<A>(Side::Caller, message))
                }
            })
        })
}

/// How much of its taker's stack a result may take to be decoded: half of what a thread has that std makes, so that
/// the rest is enough for the taker itself. How deep a value is nested is up to the worker, which has a larger stack,
/// and an overflow would be the end of the host.
pub(crate) const STACK_BYTES_MAX: usize = 1 << 20;

/// From so many bytes on a result is decoded only if its taker could get as much memory again, which is about what its
/// value takes: a `Deserialize` that finds none ends the host. To ask costs a hundredth of copying so much.
const LONG_RESULT: usize = 1 << 20;

fn has_memory_for(len: usize) -> bool {
    let mut probe = Vec::<u8>::new();
    let has = probe.try_reserve_exact(len).is_ok();
    // Otherwise the compiler may leave out an allocation that nobody uses.
    std::hint::black_box(probe.as_mut_ptr());
    has
}

/// Decodes a result, on the thread that takes it. A panic in its `Deserialize` is an error like any other.
pub(crate) fn decode_result<R: Data>(
    bytes: &[u8],
    attachments: Option<&List>,
) -> Result<R, Box<JobError>> {
    let error = |message| Box::new(JobError::Decode(codec_error::<R>(Side::Caller, message)));
    if bytes.len() >= LONG_RESULT && !has_memory_for(bytes.len()) {
        return Err(error(format!("no memory for a value of {} bytes", bytes.len())));
    }
    let decode = || codec::decode_within::<R>(bytes, STACK_BYTES_MAX);
    let decode = || session::with_source(attachments, decode);
    catch_unwind(AssertUnwindSafe(decode))
        .unwrap_or_else(|payload| Err(CodecFault::Message(panic_text(payload))))
        .map_err(|fault| error(fault.to_string()))
}

pub(crate) fn codec_error<T>(side: Side, message: String) -> CodecError {
    CodecError { side, type_name: type_name::<T>().to_owned(), message }
}

pub(crate) fn panic_text(payload: Box<dyn Any + Send>) -> String {
    let text = panic_message(&*payload).unwrap_or("its payload is not text").to_owned();
    // A payload's Drop may panic in its turn (rust-lang/rust#86027); it is not worth the risk.
    std::mem::forget(payload);
    format!("panicked: {text}")
}

/// The message of a panic whose payload is text.
pub(crate) fn panic_message(payload: &(dyn Any + Send)) -> Option<&str> {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str))
}
