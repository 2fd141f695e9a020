//! Runs jobs: a warm pool for each queue, and the futures of what runs there.
//!
//! It decides nothing. It starts what it is told to, and says what became of it.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use procpool::executor::{EncodedCall, EncodedForm, Options, Verdict};
use procpool::{JobError, JobFuture, ProcessPool, Report, Shutdown};
use serde_bytes::ByteBuf;

use crate::command::{self, Order, Setup};
use crate::config::QueueConfig;
use crate::job::{Attempt, CommandEnd, Ending, JobId, Outcome, Record, TaskWork, Work};
use crate::protocol::Progress;

/// How long a worker without work stays: a client that submits job after job finds it warm.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// What all workers of a daemon have in common.
#[derive(Debug, Clone)]
pub(crate) struct Surroundings {
    /// The directory for what commands say.
    pub(crate) logs: PathBuf,
    /// How much of each stream of a command is kept.
    pub(crate) log_bytes: u64,
    /// The variable by which the next daemon knows the workers of this one.
    pub(crate) mark: (&'static str, OsString),
}

/// Called when an attempt has ended, on any thread.
pub(crate) type OnEnd = Arc<dyn Fn(JobId, Attempt) + Send + Sync>;

/// All pools, and what runs in them.
pub(crate) struct Engine {
    queues: BTreeMap<String, QueueConfig>,
    surroundings: Surroundings,
    /// How many jobs of a queue run at a time.
    slots: HashMap<String, usize>,
    pools: HashMap<(String, Kind), Arc<ProcessPool>>,
    running: HashMap<JobId, Running>,
    /// Threads that end pools.
    endings: Vec<JoinHandle<()>>,
    on_end: OnEnd,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    Commands,
    Tasks,
}

struct Running {
    attempt: Attempt,
    /// Which pool that is, for others.
    key: (String, Kind),
    /// The pool it runs in; none if there is no such pool.
    pool: Option<Arc<ProcessPool>>,
    future: Future,
}

enum Future {
    Command(JobFuture<CommandEnd>),
    Task(EncodedForm, JobFuture<Vec<u8>>),
    /// It could not even be submitted.
    Refused(String),
}

impl Engine {
    pub(crate) fn new(
        queues: BTreeMap<String, QueueConfig>,
        surroundings: Surroundings,
        on_end: OnEnd,
    ) -> Engine {
        Engine {
            queues,
            surroundings,
            slots: HashMap::new(),
            pools: HashMap::new(),
            running: HashMap::new(),
            endings: Vec::new(),
            on_end,
        }
    }

    /// So many jobs of a queue run at a time. What runs goes on in the pool where it is.
    pub(crate) fn size(&mut self, queue: &str, slots: usize) {
        if self.slots.get(queue) == Some(&slots) {
            return;
        }
        self.slots.insert(queue.to_owned(), slots);
        self.renew(queue);
    }

    /// Other settings. What runs goes on as it was started.
    pub(crate) fn configure(&mut self, queues: BTreeMap<String, QueueConfig>, log_bytes: u64) {
        let before = std::mem::replace(&mut self.queues, queues);
        let worker = |queue: Option<&QueueConfig>| queue.and_then(|queue| queue.worker.clone());
        let is_other_setup =
            std::mem::replace(&mut self.surroundings.log_bytes, log_bytes) != log_bytes;
        for (name, config) in &before {
            if is_other_setup || worker(Some(config)) != worker(self.queues.get(name)) {
                self.renew(name);
            }
        }
    }

    /// What of a queue starts from now on does so in new pools.
    fn renew(&mut self, queue: &str) {
        for kind in [Kind::Commands, Kind::Tasks] {
            if let Some(pool) = self.pools.remove(&(queue.to_owned(), kind)) {
                self.release(pool);
            }
        }
    }

    /// Ends a pool if nothing runs in it that was started before: on a thread, since that can take a while.
    fn release(&mut self, pool: Arc<ProcessPool>) {
        self.endings.retain(|ending| !ending.is_finished());
        let Ok(pool) = Arc::try_unwrap(pool) else {
            return;
        };
        let end = move || pool.shutdown(Shutdown::Abort);
        // Without a thread it ends here, when the closure is dropped.
        if let Ok(ending) = thread::Builder::new().name("procpool-release".into()).spawn(end) {
            self.endings.push(ending);
        }
    }

    /// Starts an attempt.
    pub(crate) fn start(&mut self, attempt: Attempt, record: Record, work: Work) {
        let Record { id, terms, .. } = record;
        let kind = match &work {
            Work::Command(_) => Kind::Commands,
            Work::Task(_) => Kind::Tasks,
        };
        let key = (terms.queue, kind);
        let options = Options {
            timeout: terms.timeout,
            cpu_timeout: terms.cpu_timeout,
            retries: None,
            attempts_before: attempt - 1,
        };
        let (pool, future) = match self.pool(&key) {
            Ok(pool) => {
                let future = submit(&pool, id, work, &options);
                (Some(pool), future)
            }
            Err(why) => (None, Future::Refused(why)),
        };
        let on_end = Arc::clone(&self.on_end);
        match &future {
            Future::Command(future) => future.on_done(move |_| on_end(id, attempt)),
            Future::Task(_, future) => future.on_done(move |_| on_end(id, attempt)),
            Future::Refused(_) => on_end(id, attempt),
        }
        self.running.insert(id, Running { attempt, key, pool, future });
    }

    /// The pool for a kind of work in a queue; why there is none.
    fn pool(&mut self, key: &(String, Kind)) -> Result<Arc<ProcessPool>, String> {
        if let Some(pool) = self.pools.get(key) {
            return Ok(Arc::clone(pool));
        }
        let pool = Arc::new(self.make_pool(&key.0, key.1)?);
        self.pools.insert(key.clone(), Arc::clone(&pool));
        Ok(pool)
    }

    fn make_pool(&self, queue: &str, kind: Kind) -> Result<ProcessPool, String> {
        let config =
            self.queues.get(queue).ok_or_else(|| format!("there is no queue `{queue}`"))?;
        let Surroundings { logs, log_bytes, mark } = &self.surroundings;
        let builder = ProcessPool::builder()
            .workers(self.slots.get(queue).copied().unwrap_or_else(|| config.slots()).max(1))
            .idle_timeout(IDLE_TIMEOUT)
            .env(mark.0, mark.1.clone());
        let builder = match (kind, &config.worker) {
            (Kind::Commands, _) => {
                let setup = Setup { logs: logs.clone().into(), log_bytes: *log_bytes };
                builder.initializer(command::prepare, setup)
            }
            (Kind::Tasks, Some(worker)) => builder.worker_program(worker),
            (Kind::Tasks, None) => return Err(format!("queue `{queue}` has no worker program")),
        };
        builder.build().map_err(|error| error.to_string())
    }

    /// Stops a job that runs. Its end is told as any other.
    pub(crate) fn stop(&self, id: JobId) {
        match self.running.get(&id).map(|running| &running.future) {
            Some(Future::Command(future)) => future.abort(),
            Some(Future::Task(_, future)) => future.abort(),
            Some(Future::Refused(_)) | None => {}
        }
    }

    /// The jobs that run, by number.
    pub(crate) fn running(&self) -> Vec<JobId> {
        let mut ids: Vec<_> = self.running.keys().copied().collect();
        ids.sort_unstable();
        ids
    }

    /// How far a running task says that it has come.
    pub(crate) fn progress(&self, id: JobId) -> Option<Progress> {
        match &self.running.get(&id)?.future {
            Future::Task(_, future) => {
                let procpool::Progress { fraction, message, .. } = future.progress()?;
                Some(Progress { fraction, message })
            }
            Future::Command(_) | Future::Refused(_) => None,
        }
    }

    /// How an attempt has ended, of which that was told.
    pub(crate) fn take(&mut self, id: JobId, attempt: Attempt) -> Option<Ending> {
        if self.running.get(&id)?.attempt != attempt {
            return None;
        }
        let Running { key, pool, future, .. } = self.running.remove(&id)?;
        let (result, report) = match future {
            Future::Command(future) => {
                let outcome = future.outcome();
                (outcome.result.map(Outcome::Command), outcome.report)
            }
            Future::Task(form, future) => {
                let outcome = future.outcome();
                let value = outcome.result.map(|bytes| match form {
                    EncodedForm::Json => {
                        Outcome::Json(String::from_utf8_lossy(&bytes).into_owned())
                    }
                    EncodedForm::Binary { .. } => Outcome::Binary(ByteBuf::from(bytes)),
                });
                (value, outcome.report)
            }
            Future::Refused(why) => (Ok(Outcome::Error(Verdict::Broken(why))), Report::default()),
        };
        if let Err(JobError::Broken(_)) = &result {
            // Another one may be luckier: what was missing can have been put there meanwhile.
            let is_current = |current: &Arc<ProcessPool>| {
                pool.as_ref().is_some_and(|pool| Arc::ptr_eq(pool, current))
            };
            if self.pools.get(&key).is_some_and(is_current)
                && let Some(current) = self.pools.remove(&key)
            {
                self.release(current);
            }
        }
        if let Some(pool) = pool {
            self.release(pool);
        }
        let outcome = result.unwrap_or_else(|error| Outcome::Error(Verdict::of(&error)));
        let Report { ran, cpu, peak_rss, pid, .. } = report;
        // How often it was started, and when, is the machine's to say.
        Some(Ending { outcome, ran, cpu, peak_rss, pid, ..Ending::nothing() })
    }

    /// True if nothing runs.
    pub(crate) fn is_idle(&self) -> bool {
        self.running.is_empty()
    }

    /// Ends all workers, and waits until they are gone.
    pub(crate) fn close(self) {
        let running = self.running.values().filter_map(|running| running.pool.as_ref());
        for pool in self.pools.values().chain(running) {
            pool.shutdown(Shutdown::Abort);
        }
        for ending in self.endings {
            // Its panic has ended the process.
            let _ = ending.join();
        }
    }
}

fn submit(pool: &ProcessPool, id: JobId, work: Work, options: &Options) -> Future {
    match work {
        Work::Command(command) => {
            let job = pool.job(command::run, Order { id, command });
            let job = match options.timeout {
                Some(timeout) => job.timeout(timeout),
                None => job,
            };
            Future::Command(job.submit())
        }
        Work::Task(TaskWork { task, fingerprint, argument }) => {
            let form = match fingerprint {
                Some(fingerprint) => EncodedForm::Binary { fingerprint },
                None => EncodedForm::Json,
            };
            let call = EncodedCall { task: &task, form, argument: &argument };
            Future::Task(form, pool.call_encoded(call, options))
        }
    }
}
