//! Runs jobs: a warm pool for each queue, and the futures of what runs there.
//!
//! It decides nothing. It begins what it is told to as soon as there is a slot for it, and says what became of it. What
//! it has begun is noted first (`store/begun.rs`): what is told to it and not begun can be taken back.
//!
//! Each pool has one job more for each slot, which its worker takes up as soon as it has ended another: to wait until
//! this thread has heard of an end and sent the next job would take longer than a short job does. What
//! waits there can be taken back as well.

mod ready;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use procpool::executor::{EncodedCall, EncodedForm, Options, Verdict};
use procpool::{JobError, JobFuture, ProcessPool, Report, Shutdown};
use serde_bytes::ByteBuf;

use crate::command::{self, Order, Setup};
use crate::config::QueueConfig;
use crate::job::{Attempt, CommandEnd, Ending, JobId, Outcome, TaskWork, Work};
use crate::protocol::Progress;
use crate::store::{Begun, StoreError};
pub(crate) use ready::Prepared;
use ready::{LATE, Ready};

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
    ready: Ready,
    begun: Begun,
    running: HashMap<JobId, Running>,
    /// How many of each pool do, or wait there.
    busy: HashMap<(String, Kind), usize>,
    /// Those that were given to a pool without a free slot, and when; perhaps some that run by now.
    extra: VecDeque<(Instant, JobId)>,
    /// Threads that end pools.
    endings: Vec<JoinHandle<()>>,
    on_end: OnEnd,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    Commands,
    Tasks,
}

impl Kind {
    fn of(work: &Work) -> Kind {
        match work {
            Work::Command(_) => Kind::Commands,
            Work::Task(_) => Kind::Tasks,
        }
    }

    fn other(self) -> Kind {
        match self {
            Kind::Commands => Kind::Tasks,
            Kind::Tasks => Kind::Commands,
        }
    }
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

impl Future {
    /// Whether a worker has had it.
    fn has_begun(&self) -> bool {
        match self {
            Future::Command(future) => future.is_running() || future.is_done(),
            Future::Task(_, future) => future.is_running() || future.is_done(),
            Future::Refused(_) => true,
        }
    }
}

impl Engine {
    pub(crate) fn new(
        queues: BTreeMap<String, QueueConfig>,
        surroundings: Surroundings,
        begun: Begun,
        on_end: OnEnd,
    ) -> Engine {
        Engine {
            queues,
            surroundings,
            slots: HashMap::new(),
            pools: HashMap::new(),
            ready: Ready::default(),
            begun,
            running: HashMap::new(),
            busy: HashMap::new(),
            extra: VecDeque::new(),
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
        let setup =
            |queue: Option<&QueueConfig>| queue.map(|queue| (queue.worker.clone(), queue.memory));
        let is_other_setup =
            std::mem::replace(&mut self.surroundings.log_bytes, log_bytes) != log_bytes;
        for (name, config) in &before {
            if is_other_setup || setup(Some(config)) != setup(self.queues.get(name)) {
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

    /// Has an attempt begin at the next [`begin`](Engine::begin) for which there is a slot.
    pub(crate) fn prepare(&mut self, prepared: Prepared) {
        self.ready.add(prepared, Instant::now());
    }

    /// Begins what is prepared and has a slot. Answers how much that was.
    ///
    /// # Errors
    /// If it cannot be noted that an attempt has begun. It has not, and nothing else must begin either.
    pub(crate) fn begin(&mut self) -> Result<u64, StoreError> {
        let mut count = 0;
        for queue in self.ready.queues() {
            while let Some(kind) = self.ready.first(&queue).map(|first| Kind::of(&first.work))
                && let Some(is_extra) = self.room(&queue, kind)
                && let Some(prepared) = self.ready.next(&queue)
            {
                let (id, attempt) = (prepared.id, prepared.attempt);
                match self.begun.note(id, attempt) {
                    Ok(true) => {
                        if is_extra {
                            self.extra.push_back((Instant::now(), id));
                        }
                        self.start(prepared);
                        count += 1;
                    }
                    // What ends makes room; a disk may have some again later.
                    Ok(false) | Err(StoreError::Full) => {
                        self.ready.add(prepared, Instant::now());
                        return Ok(count);
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(count)
    }

    /// Whether a job of this kind may be given to its pool; and if so, whether it will wait there. Only while the other
    /// pool of the queue has none: each has as many workers as the queue has slots.
    fn room(&self, queue: &str, kind: Kind) -> Option<bool> {
        let slots = self.slots.get(queue).copied().unwrap_or_default();
        let busy = |kind| self.busy.get(&(queue.to_owned(), kind)).copied().unwrap_or_default();
        let (own, other) = (busy(kind), busy(kind.other()));
        match own + other {
            all if all < slots => Some(false),
            all if all < slots * 2 && other == 0 => Some(true),
            _ => None,
        }
    }

    /// Takes back what is prepared, or waits in its pool; answers its attempt.
    pub(crate) fn take_back(&mut self, id: JobId) -> Option<Attempt> {
        self.ready.take(id).or_else(|| self.take_back_begun(id))
    }

    /// A pool knows exactly whether a worker has had a job.
    fn take_back_begun(&mut self, id: JobId) -> Option<Attempt> {
        let Running { attempt, future, .. } = self.running.get(&id)?;
        let attempt = *attempt;
        let is_unstarted = match future {
            Future::Command(future) => !future.is_done() && future.cancel(),
            Future::Task(_, future) => !future.is_done() && future.cancel(),
            Future::Refused(_) => false,
        };
        if !is_unstarted {
            return None;
        }
        if let Some(pool) = self.forget(id).and_then(|running| running.pool) {
            self.release(pool);
        }
        self.begun.over(id, attempt);
        Some(attempt)
    }

    /// The same with all of a queue.
    pub(crate) fn take_back_all(&mut self, queue: &str) -> Vec<(JobId, Attempt)> {
        let mut ids = self.ready.ids(queue);
        let begun = self.running.iter().filter(|(_, running)| running.key.0 == queue);
        ids.extend(begun.map(|(id, _)| *id));
        ids.into_iter().filter_map(|id| Some((id, self.take_back(id)?))).collect()
    }

    /// The same with what has waited too long for a slot.
    pub(crate) fn take_back_late(&mut self) -> Vec<(JobId, Attempt)> {
        let now = Instant::now();
        let mut late = self.ready.take_late(now);
        while let Some((since, id)) = self.extra.front().copied()
            && since + LATE <= now
        {
            self.extra.pop_front();
            late.extend(self.take_back_begun(id).map(|attempt| (id, attempt)));
        }
        late
    }

    /// When something will have waited too long.
    pub(crate) fn late_at(&self) -> Option<Instant> {
        let extra = self.extra.front().map(|(since, _)| *since + LATE);
        [self.ready.late_at(), extra].into_iter().flatten().min()
    }

    /// How many of a queue have slots in advance, and have not begun.
    pub(crate) fn prepared(&self, queue: &str) -> usize {
        let waiting = self.waiting();
        let in_pools = waiting.iter().filter(|id| self.running[*id].key.0 == queue).count();
        self.ready.len(queue) + in_pools
    }

    /// It is known for good how an attempt ended.
    pub(crate) fn over(&mut self, id: JobId, attempt: Attempt) {
        self.begun.over(id, attempt);
    }

    fn start(&mut self, prepared: Prepared) {
        let Prepared { id, attempt, terms, work } = prepared;
        let options = Options {
            timeout: terms.timeout(),
            cpu_timeout: terms.cpu_timeout(),
            retries: None,
            attempts_before: attempt - 1,
        };
        let key = (terms.queue, Kind::of(&work));
        *self.busy.entry(key.clone()).or_default() += 1;
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
        let builder = match config.memory {
            Some(bytes) => builder.memory_limit(bytes),
            None => builder,
        };
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
        let waiting = self.waiting();
        let ids = self.running.keys().copied();
        let mut ids: Vec<_> = ids.filter(|id| !waiting.contains(id)).collect();
        ids.sort_unstable();
        ids
    }

    /// Whether an attempt has begun of which the journal does not know yet how it ended. One that was given to a pool
    /// without a free slot begins when a worker has it.
    pub(crate) fn has_begun(&self, id: JobId, attempt: Attempt) -> bool {
        let waits = || {
            let running = self.running.get(&id).filter(|running| running.attempt == attempt);
            running.is_some_and(|running| !running.future.has_begun())
                && self.extra.iter().any(|(_, extra)| *extra == id)
        };
        self.begun.has(id, attempt) && !waits()
    }

    /// Those that wait in their pools for a slot.
    fn waiting(&self) -> HashSet<JobId> {
        let waits =
            |id: &JobId| self.running.get(id).is_some_and(|running| !running.future.has_begun());
        self.extra.iter().map(|(_, id)| *id).filter(waits).collect()
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
        let Running { key, pool, future, .. } = self.forget(id)?;
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

    /// Takes a job out of those that run.
    fn forget(&mut self, id: JobId) -> Option<Running> {
        let running = self.running.remove(&id)?;
        if let Some(busy) = self.busy.get_mut(&running.key) {
            *busy -= 1;
        }
        while self.extra.front().is_some_and(|(_, id)| !self.running.contains_key(id)) {
            self.extra.pop_front();
        }
        Some(running)
    }

    /// True if nothing runs, and nothing is about to.
    pub(crate) fn is_idle(&self) -> bool {
        self.running.is_empty() && self.ready.is_empty()
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
