//! [`Daemon`]: a daemon as an executor.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use procpool::executor::{
    Backend, Call, Control, Options, Promise, Rejection, Verdict, WhenFull, argument, promise,
};
use procpool::{Data, Executor, JobError, JobFuture, Progress, Report};
use procpool_wire::codec;

use super::connection::{Client, Lost, More};
use crate::error::Error;
use crate::job::{
    Command, CommandEnd, DEFAULT_QUEUE, Ending, JobId, JobSpec, Outcome, State, TaskWork, Terms,
    Work,
};
use crate::protocol::{BODY_BYTES_MAX, Cancelled, Request, Response};

/// The longest argument: a request has some more bytes.
const PAYLOAD_MAX: u64 = BODY_BYTES_MAX as u64 - (64 << 10);

/// A daemon, as an executor: jobs are kept by it, and run by its workers, whatever becomes of this process.
///
/// Functions travel by name: only [tasks](macro@procpool::task) can be submitted, to a queue whose worker program
/// has them. Dropping it stops nothing. The connection is closed when every future that is not done is dropped or
/// done as well; a future whose connection is lost ends as [`JobError::Broken`], and the job goes on:
/// [`future`](Daemon::future) takes it up again.
#[derive(Debug)]
pub struct Daemon {
    backend: DaemonBackend,
}

#[derive(Debug, Clone)]
struct DaemonBackend {
    shared: Arc<Shared>,
    queue: String,
}

/// What the handle and its futures share.
#[derive(Debug)]
struct Shared {
    client: Client,
    slots: usize,
    /// The numbers that the daemon has given to the jobs of this process.
    ids: Mutex<HashMap<procpool::JobId, JobId>>,
    numbered: Condvar,
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
        let slots = match client.request(&Request::Queues)? {
            Response::Queues(queues) => queues.into_iter().find(|info| info.name == queue),
            _ => return Err(Error::lost(None)),
        };
        let Some(info) = slots else {
            return Err(Error::refused(crate::protocol::Refusal::NoQueue(queue.into())));
        };
        let shared = Shared {
            client,
            slots: usize::try_from(info.slots).unwrap_or(usize::MAX).max(1),
            ids: Mutex::default(),
            numbered: Condvar::new(),
        };
        Ok(Daemon { backend: DaemonBackend { shared: Arc::new(shared), queue: queue.into() } })
    }

    /// The number that the daemon has given to a job of this process: waits until it has kept it. `None` if the job
    /// has ended without having got there.
    pub fn id<R>(&self, future: &JobFuture<R>) -> Option<JobId> {
        self.backend.shared.id(future.id(), || future.is_done())
    }

    /// The future of a job that was submitted before, by anybody, whose result is an `R`.
    #[track_caller]
    pub fn future<R: Data>(&self, id: JobId) -> JobFuture<R> {
        let shared = &self.backend.shared;
        let (promise, future) = promise::<R>(Arc::clone(shared) as Arc<dyn Control>);
        shared.number(promise.id(), id);
        shared.follow(&Request::Result(id), promise);
        future
    }

    /// Submits a command. Its future tells how it ended.
    #[track_caller]
    pub fn command(&self, command: Command) -> JobFuture<CommandEnd> {
        let shared = &self.backend.shared;
        let (promise, future) = promise(Arc::clone(shared) as Arc<dyn Control>);
        let title = command.words.first().map(|word| String::from_utf8_lossy(word).into_owned());
        let terms =
            Terms { queue: self.backend.queue.clone(), ..Terms::new(title.unwrap_or_default()) };
        let spec = JobSpec { terms, work: Work::Command(command) };
        shared.follow(&Request::Run(spec), promise);
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
        Arc::clone(&self.shared) as Arc<dyn Control>
    }

    fn accept(
        &self,
        call: &mut dyn Call,
        promise: Promise,
        options: &Options,
        _when_full: WhenFull,
    ) -> Result<(), Rejection> {
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
            priority: promise.priority(),
            retries: options.retries.unwrap_or(0),
            timeout: options.timeout,
            ..Terms::new(task.name)
        };
        let spec = JobSpec { terms, work: Work::Task(work) };
        self.shared.follow(&Request::Run(spec), promise);
        Ok(())
    }

    fn workers(&self) -> usize {
        self.shared.slots
    }

    fn takes_chunks(&self) -> bool {
        false
    }

    fn payload_limit(&self) -> Option<u64> {
        Some(PAYLOAD_MAX)
    }
}

impl Shared {
    fn ids(&self) -> MutexGuard<'_, HashMap<procpool::JobId, JobId>> {
        // Nothing of the user's runs under this lock.
        self.ids.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn number(&self, job: procpool::JobId, id: JobId) {
        self.ids().insert(job, id);
        self.numbered.notify_all();
    }

    /// The daemon's number of a job; waits until it has one, or has ended.
    fn id(&self, job: procpool::JobId, has_ended: impl Fn() -> bool) -> Option<JobId> {
        let mut ids = self.ids();
        loop {
            if let Some(id) = ids.get(&job) {
                return Some(*id);
            }
            if has_ended() {
                return None;
            }
            ids = self.numbered.wait(ids).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Sends what has a job's end as its last answer.
    fn follow(self: &Arc<Self>, request: &Request, promise: Promise) {
        let shared = Arc::clone(self);
        let duty = promise.clone();
        let handler = move |answer| shared.answered(&duty, answer);
        if let Err(error) = self.client.send(request, handler) {
            self.fail(&promise, error.to_string());
        }
    }

    fn answered(&self, promise: &Promise, answer: Result<Response, Lost>) -> More {
        match answer {
            Ok(Response::Submitted(id)) => {
                self.number(promise.id(), id);
                return More::Yes;
            }
            Ok(Response::Ending(_, state, ending)) => finish(promise, state, *ending),
            Ok(Response::Refused(refusal)) => self.fail(promise, refusal.to_string()),
            Ok(_) => self.fail(promise, "the daemon gives an answer to another question".into()),
            Err(Lost) => self.fail(promise, "the connection to the daemon was lost".into()),
        }
        More::No
    }

    fn fail(&self, promise: &Promise, why: String) {
        promise.fail_as(Verdict::Broken(why), Report::default());
        // Whoever waits for its number sees that there will be none.
        drop(self.ids());
        self.numbered.notify_all();
    }
}

/// Ends a job here as it has ended there.
fn finish(promise: &Promise, state: State, ending: Ending) {
    let Ending { outcome, ran, cpu, peak_rss, pid } = ending;
    let mut report = Report::default();
    (report.ran, report.cpu, report.peak_rss, report.pid) = (ran, cpu, peak_rss, pid);
    match outcome {
        Outcome::Json(_) => {
            let why = "it was called with JSON, and its result is JSON".to_owned();
            promise.fail_as(Verdict::Broken(why), report);
        }
        Outcome::Binary(value) => promise.finish_encoded(&value, report),
        Outcome::Command(end) => {
            let mut bytes = Vec::new();
            codec::encode_into(&end, None, &mut bytes).expect("plain data can be encoded");
            promise.finish_encoded(&bytes, report);
        }
        Outcome::Error(verdict) => promise.fail_as(verdict, report),
        Outcome::Nothing => {
            let verdict = match state {
                State::Cancelled => Verdict::Cancelled { started: false },
                other => Verdict::Broken(format!("the job is {}", other.word())),
            };
            promise.fail_as(verdict, report);
        }
    }
}

impl Control for Shared {
    fn cancel(&self, job: &Promise) -> bool {
        let Some(id) = self.id(job.id(), || false) else {
            return false;
        };
        let answer = self.client.request(&Request::Cancel(id));
        matches!(answer, Ok(Response::Cancel(Cancelled::Unstarted)))
    }

    fn abort(&self, job: &Promise) {
        if let Some(id) = self.id(job.id(), || false) {
            // Whatever is answered, the future tells how it ended.
            let _ = self.client.request(&Request::Abort(id));
        }
    }

    fn is_running(&self, job: &Promise) -> bool {
        let Some(id) = self.id(job.id(), || false) else {
            return false;
        };
        match self.client.request(&Request::Records(vec![id])) {
            Ok(Response::Records(records)) => records
                .iter()
                .flatten()
                .any(|record| matches!(record.life.state(), State::Running(_))),
            _ => false,
        }
    }

    fn progress(&self, _job: &Promise) -> Option<Progress> {
        None
    }

    fn is_inert(&self) -> bool {
        false
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
