//! [`Daemon`]: a daemon as an executor.

use std::path::Path;
use std::sync::Arc;

use procpool::executor::{
    Backend, Call, Control, Options, Promise, Rejected, Rejection, WhenFull, argument,
    is_forked_child, promise, promise_of,
};
use procpool::{Data, Executor, JobError, JobFuture, Report};

use super::connection::Client;
use super::follow::Jobs;
use crate::error::Error;
use crate::job::{Command, CommandEnd, DEFAULT_QUEUE, JobId, JobSpec, TaskWork, Terms, Work};
use crate::protocol::{BODY_BYTES_MAX, Refusal, Request, Response};

/// The longest argument: a request has some more bytes.
const PAYLOAD_MAX: u64 = BODY_BYTES_MAX as u64 - (64 << 10);

/// A daemon, as an executor: jobs are kept by it, and run by its workers, whatever becomes of this process.
///
/// Functions travel by name: only [tasks](macro@procpool::task) can be submitted, to a queue whose worker program
/// has them. Its methods are those of [`Executor`]. What a job does not say of itself is as its queue is configured: its
/// retries, its time limits, and its priority if that is 0.
///
/// Dropping it stops nothing, and waits for nothing. The connection is closed when it is dropped, its futures are, and
/// each of its jobs has ended. A future whose connection is lost ends as [`JobError::Broken`], and the job goes on:
/// [`future`](Daemon::future) takes it up again. One that is submitted when the daemon is about to end is refused, as
/// [`JobError::Closed`].
///
/// A submit returns when the job is on its way: [`id`](Daemon::id) waits until the daemon has kept it. While the daemon
/// has as many jobs as it may have, submits wait; [`try_submit`](Daemon::try_submit) does not. Cancelling a job, and
/// asking whether it runs, is a question to the daemon, and waits for its answer.
#[derive(Debug)]
pub struct Daemon {
    backend: DaemonBackend,
}

#[derive(Debug, Clone)]
struct DaemonBackend {
    jobs: Arc<Jobs>,
    queue: String,
    slots: usize,
}

impl Daemon {
    /// Connects to the daemon at this socket. Jobs go into its queue `default`.
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub fn connect(path: impl AsRef<Path>) -> Result<Daemon, Error> {
        Daemon::connect_to(path, DEFAULT_QUEUE)
    }

    /// Connects to the daemon at this socket. Jobs go into that queue.
    ///
    /// # Errors
    /// As [`Client::connect`]; that there is no such queue.
    pub fn connect_to(path: impl AsRef<Path>, queue: &str) -> Result<Daemon, Error> {
        let client = Client::connect(path.as_ref())?;
        let queues = match client.request(&Request::Queues)? {
            Response::Queues(queues) => queues,
            other => return Err(Error::unexpected(&other)),
        };
        let Some(info) = queues.into_iter().find(|info| info.name == queue) else {
            return Err(Error::refused(Refusal::NoQueue(queue.into())));
        };
        let slots = usize::try_from(info.slots).unwrap_or(usize::MAX).max(1);
        let jobs = Arc::new(Jobs::new(client));
        Ok(Daemon { backend: DaemonBackend { jobs, queue: queue.into(), slots } })
    }

    /// The number that the daemon has given to a job: waits until it has kept it. `None` if the job has ended without
    /// having got there, or is another executor's.
    pub fn id<R>(&self, future: &JobFuture<R>) -> Option<JobId> {
        let promise = promise_of(future, &self.backend.control())?;
        self.backend.jobs.id(&promise)
    }

    /// Submits `f(arg)` if the daemon has room for it, and waits until it has kept it.
    ///
    /// # Errors
    /// [`Rejection::Full`] if it has no room. The argument comes back.
    #[track_caller]
    pub fn try_submit<A: Data, R: Data>(
        &self,
        f: fn(A) -> R,
        arg: A,
    ) -> Result<JobFuture<R>, Rejected<A>> {
        self.job(f, arg).try_submit()
    }

    /// The future of a job that was submitted before, by anybody, whose result is an `R`: of a command, a
    /// [`CommandEnd`]. A result of another type is [`JobError::Decode`], as far as its bytes tell; one of a task that
    /// was called with JSON, and a number that there is not, are [`JobError::Broken`].
    #[track_caller]
    pub fn future<R: Data>(&self, id: JobId) -> JobFuture<R> {
        let (promise, future) = promise::<R>(self.backend.control());
        self.backend.jobs.follow(id, promise);
        future
    }

    /// Submits a command. Its future tells how it ended.
    #[track_caller]
    pub fn command(&self, command: Command) -> JobFuture<CommandEnd> {
        let (promise, future) = promise(self.backend.control());
        let title = command.words.first().map(|word| String::from_utf8_lossy(word).into_owned());
        let terms =
            Terms { queue: self.backend.queue.clone(), ..Terms::new(title.unwrap_or_default()) };
        let spec = JobSpec { terms, work: Work::Command(command) };
        self.backend.jobs.run(Request::Run(spec), promise);
        future
    }
}

impl Executor for Daemon {
    fn backend(&self) -> &dyn Backend {
        &self.backend
    }
}

impl Backend for DaemonBackend {
    fn control(&self) -> Arc<dyn Control> {
        Arc::clone(&self.jobs) as Arc<dyn Control>
    }

    fn accept(
        &self,
        call: &mut dyn Call,
        promise: Promise,
        options: &Options,
        when_full: WhenFull,
    ) -> Result<(), Rejection> {
        if is_forked_child() {
            return Err(Rejection::Closed);
        }
        let Some(task) = call.task() else {
            let what = "a function that is not a task".to_owned();
            promise.fail(JobError::Unregistered(what), Report::default());
            return Ok(());
        };
        let argument = match argument(call, self.payload_limit()) {
            Ok(argument) => argument,
            Err(error) => {
                promise.fail(error, Report::default());
                return Ok(());
            }
        };
        let work =
            TaskWork { task: task.name.into(), fingerprint: Some(task.fingerprint), argument };
        let terms = Terms {
            queue: self.queue.clone(),
            priority: Some(promise.priority()).filter(|priority| *priority != 0),
            retries: options.retries,
            timeout: options.timeout,
            cpu_timeout: options.cpu_timeout,
            ..Terms::new(promise.name().unwrap_or(task.name))
        };
        let spec = JobSpec { terms, work: Work::Task(work) };
        match when_full {
            WhenFull::Block => {
                self.jobs.run(Request::Run(spec), promise);
                Ok(())
            }
            WhenFull::Refuse => self.jobs.try_run(Request::Run(spec), promise),
        }
    }

    fn workers(&self) -> usize {
        self.slots
    }

    fn takes_chunks(&self) -> bool {
        false
    }

    fn payload_limit(&self) -> Option<u64> {
        Some(PAYLOAD_MAX)
    }
}

/// For programs that build commands.
impl Command {
    /// A command with these words, in the current directory of this process.
    ///
    /// # Errors
    /// If that directory is gone.
    pub fn here<W: Into<Vec<u8>>>(words: impl IntoIterator<Item = W>) -> std::io::Result<Command> {
        use std::os::unix::ffi::OsStringExt;
        let dir = std::env::current_dir()?.into_os_string().into_vec();
        let words = words.into_iter().map(|word| serde_bytes::ByteBuf::from(word.into()));
        Ok(Command { words: words.collect(), dir: dir.into(), env: Vec::new() })
    }
}
