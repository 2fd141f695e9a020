//! [`ProcessPoolBuilder`] and the settings it makes.

mod limits;

use std::any::type_name;
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use procpool_sys::image::Function;
use procpool_sys::privileges;
use procpool_sys::spawn::Environment;
use procpool_wire::elements;
use procpool_wire::handshake::Role;
use procpool_wire::limits::WorkerLimits;

use crate::Error;
use crate::attachments::List;
use crate::attachments::session::{self, Collected};
use crate::executor::{Data, encode_argument};
use crate::init;
use crate::pool::ProcessPool;
use crate::worker;

/// How long a worker may take from its start to its first job. Generous: a slow disk, a big initializer.
const START_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a job that is being stopped has to clean up.
const GRACE: Duration = Duration::from_secs(2);
/// How long a process may take to end that was sent SIGKILL. To free its memory takes the kernel a second for tens
/// of GiB, and to write a core file as long as its disk takes; who needs more than this waits for something.
const UNKILLABLE_AFTER: Duration = Duration::from_secs(10);
/// Deaths of workers that never became ready, within how long, until the pool gives up: enough to get
/// over an accident, few enough to stop a mistake early.
const RESTART_LIMIT: (u32, Duration) = (3, Duration::from_secs(10));
/// The stack of the thread that runs jobs: what Linux gives a main thread, because users move code here
/// that ran there.
const STACK_SIZE: usize = 8 << 20;
/// How long a job that killed its worker waits before its first retry, and at most: long enough for what it
/// collided with to be over, short beside what a person waits for.
const RETRY_BACKOFF: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));
/// Why a program with such privileges has no workers that are copies of itself.
const RAISED_PRIVILEGES: &str = "this program runs with raised privileges (file capabilities, a set group id, or a \
                                 set user id that is not in force), and its workers could not tell it from whoever \
                                 runs it: give it its privileges another way, or use worker_program";
/// The most workers: each has three descriptors in the host, and hosts are commonly limited to 1024.
const WORKERS_MAX: usize = 4096;

/// What an initializer may return: `()`, or a `Result` whose `Err` breaks the start of the worker.
pub trait InitResult {
    /// The message of the failure, if it is one.
    #[doc(hidden)]
    fn into_init_result(self) -> Result<(), String>;
}

impl InitResult for () {
    fn into_init_result(self) -> Result<(), String> {
        Ok(())
    }
}

impl<T, E: fmt::Display> InitResult for Result<T, E> {
    fn into_init_result(self) -> Result<(), String> {
        self.map(|_| ()).map_err(|error| error.to_string())
    }
}

/// Where what workers write to standard error goes. Its tail is kept for crash reports either way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Output {
    /// To the host's standard error.
    Inherit,
    /// Line by line to who receives the pool's [events](crate::events), or logs them; else nowhere.
    Capture,
}

/// How workers come into being.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum StartMethod {
    /// Each is the program, executed again. The default.
    Spawn,
    /// The program is executed once, loads what [`preload`](ProcessPoolBuilder::preload) says, and is then
    /// forked for each worker, in about a tenth of a millisecond. What was loaded is shared by all of them until
    /// one of them writes to it.
    ///
    /// The fork server has one thread and does nothing but fork, so a fork finds no lock held. Workers are
    /// direct children of the host (clone(2), `CLONE_PARENT`), and die with it, not with the server; a server
    /// that dies is replaced. What they have from the host, other than variables and working directory, is as it
    /// was at the server's start. Random numbers: what the preload has seeded is the same in every worker; the keys of hash maps
    /// that a job makes are not.
    ForkServer,
}

/// What jobs may find of earlier ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Isolation {
    /// A worker runs one job after another. What a job changes in its process (statics, environment, working
    /// directory, signal handlers, limits) the next one finds changed. The default.
    Reuse,
    /// Each job, and each element of a [`map`](crate::ProcessPool::map), has a process of its own, which ends with
    /// it. [`chunk_size`](crate::Map::chunk_size) does not count. The initializer runs in each of them.
    ///
    /// It is cheapest with [`StartMethod::ForkServer`] where a cgroup holds workers, without a preload, an initializer, a
    /// `memory_limit`, `process_limit` or `stack_limit`, and unless `leaks` are errors: then a worker runs no code but ours, and
    /// forks a child for each job. The job runs on the child's main thread, in the worker's process group; its report and
    /// its death have the child's id. A child that dies takes its worker with it. After its job the child writes what waits in
    /// its standard output and in the C library's streams, and ends without handlers of atexit(3), unless the job has left
    /// threads: then it exits as any program does. Elsewhere each job has a worker.
    FreshProcess,
}

/// How a pool is shut down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Shutdown {
    /// Finish every job that was submitted.
    Drain,
    /// Cancel the jobs that have not started, finish the others.
    CancelPending,
    /// Cancel the jobs that have not started, stop the others.
    Abort,
}

/// Plain data: what a pool was asked to be.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) workers: usize,
    pub(crate) start_method: StartMethod,
    pub(crate) preload: Option<Initializer>,
    pub(crate) isolation: Isolation,
    /// As the pool thinks fit, unless the user has said.
    pub(crate) spares: Option<usize>,
    pub(crate) initializer: Option<Initializer>,
    pub(crate) max_jobs_per_worker: Option<u64>,
    pub(crate) idle_timeout: Option<Duration>,
    pub(crate) cpu_timeout: Option<Duration>,
    pub(crate) job_timeout: Option<Duration>,
    pub(crate) grace: Duration,
    pub(crate) unkillable_after: Duration,
    pub(crate) start_timeout: Duration,
    pub(crate) retries: u32,
    pub(crate) retry_backoff: (Duration, Duration),
    pub(crate) restart_limit: (u32, Duration),
    pub(crate) queue_limit: Option<usize>,
    pub(crate) payload_limit: Option<u64>,
    pub(crate) memory_limit: Option<u64>,
    pub(crate) process_limit: Option<u64>,
    pub(crate) environment: Environment,
    pub(crate) current_dir: Option<PathBuf>,
    pub(crate) stack_size: usize,
    pub(crate) stderr: Output,
    pub(crate) worker_program: Option<PathBuf>,
    pub(crate) limits: WorkerLimits,
    pub(crate) pin_cpus: bool,
}

impl Settings {
    /// What runs at the start of a process with this role.
    pub(crate) fn initializer_of(&self, role: Role) -> Option<&Initializer> {
        match role {
            Role::Worker => self.initializer.as_ref(),
            Role::ForkServer => self.preload.as_ref(),
        }
    }

    /// How many jobs a worker runs.
    pub(crate) fn jobs_per_worker(&self) -> Option<u64> {
        match self.isolation {
            Isolation::Reuse => self.max_jobs_per_worker,
            Isolation::FreshProcess => Some(1),
        }
    }
}

/// An initializer, or what is to be preloaded, its argument encoded.
#[derive(Debug)]
pub(crate) struct Initializer {
    pub(crate) function: Function,
    pub(crate) argument: Vec<u8>,
    /// What the argument refers to, kept for workers that are started later.
    pub(crate) attachments: List,
}

/// Settings for a [`ProcessPool`]. Made by [`ProcessPool::builder`].
#[must_use = "a builder does nothing until `build`"]
#[derive(Debug)]
pub struct ProcessPoolBuilder {
    settings: Settings,
    workers: Option<usize>,
    /// Whether workers have the host's variables, and which they have besides.
    env_clear: bool,
    env: Vec<(OsString, OsString)>,
    /// The first setting that makes no sense; `build` tells.
    fault: Option<String>,
}

impl ProcessPoolBuilder {
    pub(crate) fn new() -> ProcessPoolBuilder {
        let settings = Settings {
            workers: 0,
            start_method: StartMethod::Spawn,
            preload: None,
            isolation: Isolation::Reuse,
            spares: None,
            initializer: None,
            max_jobs_per_worker: None,
            idle_timeout: None,
            cpu_timeout: None,
            job_timeout: None,
            grace: GRACE,
            unkillable_after: UNKILLABLE_AFTER,
            start_timeout: START_TIMEOUT,
            retries: 0,
            retry_backoff: RETRY_BACKOFF,
            restart_limit: RESTART_LIMIT,
            queue_limit: None,
            payload_limit: None,
            memory_limit: None,
            process_limit: None,
            environment: Environment::default(),
            current_dir: None,
            stack_size: STACK_SIZE,
            stderr: Output::Inherit,
            worker_program: None,
            limits: WorkerLimits::default(),
            pin_cpus: false,
        };
        ProcessPoolBuilder {
            settings,
            workers: None,
            env_clear: false,
            env: Vec::new(),
            fault: None,
        }
    }

    fn check(&mut self, sound: bool, message: impl FnOnce() -> String) {
        if !sound && self.fault.is_none() {
            self.fault = Some(message());
        }
    }

    /// How many workers there are at most. By default one for each available CPU, which takes account of
    /// affinity and cgroup quota. 0 is an error.
    pub fn workers(mut self, workers: usize) -> Self {
        self.check((1..=WORKERS_MAX).contains(&workers), || {
            format!("workers({workers}): a pool has 1 to {WORKERS_MAX} workers")
        });
        self.workers = Some(workers);
        self
    }

    /// How workers come into being. Default: [`StartMethod::Spawn`].
    pub fn start_method(mut self, method: StartMethod) -> Self {
        self.settings.start_method = method;
        self
    }

    /// Runs `f(arg)` once in the [fork server](StartMethod::ForkServer), before the first worker is forked off it,
    /// and again if it has to be replaced. What it leaves in memory every worker has from birth, shared until
    /// somebody writes to it. Descriptors that it leaves open are open in every worker.
    ///
    /// A panic or an `Err` breaks the start of the server, as does a thread that is left running: no worker would
    /// have it. Such a start counts against [`restart_limit`](Self::restart_limit), and has
    /// [`start_timeout`](Self::start_timeout) like that of a worker. It runs on the main thread, whose stack
    /// [`stack_size`](Self::stack_size) does not change.
    pub fn preload<A: Data, R: InitResult>(mut self, f: fn(A) -> R, arg: A) -> Self {
        self.settings.preload = Some(self.at_start("preload", f, &arg));
        self
    }

    /// What jobs may find of earlier ones. Default: [`Isolation::Reuse`].
    pub fn isolation(mut self, isolation: Isolation) -> Self {
        self.settings.isolation = isolation;
        self
    }

    /// How many processes are kept ready beside the workers, from the first worker on, so that the next one costs a
    /// hand-over and not a start: after a death, a timeout, the last job of a worker that has
    /// [so many](Self::max_jobs_per_worker), or the only job of a [fresh process](Isolation::FreshProcess). More than 4096
    /// is an error.
    ///
    /// A spare is a process like any worker, with the same limits, and has run the
    /// [initializer](Self::initializer); but it is no worker yet: it has no job, no index, and is in no statistics.
    ///
    /// By default a pool of fresh processes has one for each worker, 16 at most. A pool without an initializer whose
    /// workers are [forked](StartMethod::ForkServer) has one once a worker has died: it shares its memory with the fork
    /// server. Others have none: a worker that is executed has some megabytes of its own, and what an initializer takes may be there only once
    /// for each worker.
    pub fn spares(mut self, spares: usize) -> Self {
        self.check(spares <= WORKERS_MAX, || {
            format!("spares({spares}): a pool has at most {WORKERS_MAX} spares")
        });
        self.settings.spares = Some(spares);
        self
    }

    /// Runs `f(arg)` once in every worker before its first job. A panic or an `Err` breaks the start of
    /// the worker, which counts against [`restart_limit`](Self::restart_limit).
    pub fn initializer<A: Data, R: InitResult>(mut self, f: fn(A) -> R, arg: A) -> Self {
        self.settings.initializer = Some(self.at_start("initializer", f, &arg));
        self
    }

    fn at_start<A: Data, R: InitResult>(
        &mut self,
        setting: &str,
        f: fn(A) -> R,
        arg: &A,
    ) -> Initializer {
        let mut encoded = Vec::new();
        let mut attached = Collected::default();
        let result = session::collect(&mut attached, || encode_argument(arg, None, &mut encoded));
        self.check(result.is_ok(), || {
            let cause = result.as_ref().map_or_else(ToString::to_string, |()| String::new());
            format!("{setting}: {cause}")
        });
        let argument =
            elements::split_first(&encoded).map_or(&[][..], |(_, bytes, _)| bytes).to_vec();
        let function = Function::new(worker::run_initializer::<A, R>, f);
        if let Ok(image) = init::image() {
            let signature = type_name::<fn(A) -> R>();
            self.check(image.offsets(function).is_some(), || {
                format!("{setting}: a function outside the main image ({signature}) cannot be called in a worker")
            });
        }
        Initializer { function, argument, attachments: attached.into_list() }
    }

    /// Replaces a worker after it has run this many jobs. A chunk of a `map` counts as one. 0 is an error.
    pub fn max_jobs_per_worker(mut self, jobs: u64) -> Self {
        self.check(jobs > 0, || "max_jobs_per_worker(0): a worker runs at least one job".into());
        self.settings.max_jobs_per_worker = Some(jobs);
        self
    }

    /// The time limit of each attempt of a job, from its start. In a chunk of a `map` it is each
    /// element's. By default there is none.
    pub fn job_timeout(mut self, timeout: Duration) -> Self {
        self.settings.job_timeout = Some(timeout);
        self
    }

    /// How long a job that is being stopped has from the first request to SIGKILL. Default 2 s.
    pub fn grace(mut self, grace: Duration) -> Self {
        self.settings.grace = grace;
        self
    }

    /// How long a process that was sent SIGKILL may take to end before the pool goes on without it. Default 10 s;
    /// zero is an error.
    ///
    /// The kernel ends a process only when it returns from what it waits for: a file system that does not answer, a
    /// device, a frozen cgroup. Such a worker is *abandoned*: its job ends as [`Died`](crate::JobError::Died) with a
    /// detail that says so (as cancelled, if it was aborted), its slot gets another worker, a shutdown does not wait
    /// for it, [`Stats::abandoned`](crate::Stats::abandoned) counts it and
    /// [`WorkerAbandoned`](crate::events::Event::WorkerAbandoned) tells of it. It runs nothing any more, but what it
    /// was doing in the kernel may still be done. If it ends later it is reaped, also after the pool's end.
    ///
    /// A pool replaces as many as it has workers, and at least four; beyond, the slot stays empty until one of them
    /// has ended, and a pool without any worker left is [`Broken`](crate::JobError::Broken) for the next job.
    pub fn unkillable_after(mut self, time: Duration) -> Self {
        self.check(!time.is_zero(), || {
            "unkillable_after(0ns): no process ends the moment it is killed".into()
        });
        self.settings.unkillable_after = time;
        self
    }

    /// How long a worker may take to become ready, its initializer included. Default 10 s.
    pub fn start_timeout(mut self, timeout: Duration) -> Self {
        self.settings.start_timeout = timeout;
        self
    }

    /// How often a job that killed its worker is run again, each time after a
    /// [pause](Self::retry_backoff). Default 0: a job that has started is never started again. Panics and
    /// timeouts are never retried.
    pub fn retries(mut self, retries: u32) -> Self {
        self.settings.retries = retries;
        self
    }

    /// How long a job waits before it is run again: about `first` before its first retry, twice as long before
    /// each further one, never longer than `max`. Up to half of it is taken off at random, so that jobs that
    /// died together do not come back together. Meanwhile the job counts as queued, can be cancelled, and is
    /// waited for by [`Shutdown::Drain`]; its time limit does not run. The other elements of its chunk of a
    /// `map` wait with it. Default: 10 ms and 1 s. Zero for both means at once; a `max` less than `first` is an
    /// error.
    pub fn retry_backoff(mut self, first: Duration, max: Duration) -> Self {
        self.check(first <= max, || {
            format!("retry_backoff({first:?}, {max:?}): the longest wait is less than the first")
        });
        self.settings.retry_backoff = (first, max);
        self
    }

    /// The pool is broken when `deaths` workers died before they were ready within `window`, and no
    /// worker lives. The time that starts take, and the pauses between them, do not count. Default: 3 in
    /// 10 s. 0 deaths is an error.
    pub fn restart_limit(mut self, deaths: u32, window: Duration) -> Self {
        self.check(deaths > 0, || {
            "restart_limit(0, …): a pool that may not start a worker cannot work".into()
        });
        self.settings.restart_limit = (deaths, window);
        self
    }

    /// At most how many jobs may be accepted and not started: beyond, `submit` waits and `try_submit`
    /// refuses. 0 is an error. By default there is no limit.
    pub fn queue_limit(mut self, jobs: usize) -> Self {
        self.check(jobs > 0, || "queue_limit(0): no job could ever be submitted".into());
        self.settings.queue_limit = Some(jobs);
        self
    }

    /// The longest encoded argument or result, in bytes. By default there is no limit.
    pub fn payload_limit(mut self, bytes: u64) -> Self {
        self.settings.payload_limit = Some(bytes);
        self
    }

    /// How much memory a worker may use, in bytes, together with what its job starts. 0 is an error. By default there is
    /// no limit.
    ///
    /// It is kept by the best means that this machine offers;
    /// [`containment`](ProcessPool::containment) tells by which:
    ///
    /// * By a cgroup with a memory controller, of version 2 or 1. What is in memory counts, page cache and
    ///   shared memory included. A worker that needs more is killed, and the job's
    ///   [`Death`](crate::Death) says so: `oom` is [`Oom::Yes`](crate::Oom::Yes) and `detail` names the limit.
    /// * Else by looking: while jobs run, the pool adds up what the worker and all below it have in memory beyond what
    ///   the worker had when it was ready, and kills it when that is too much; the `Death` reads as above. It looks as
    ///   often as the rest can be filled, every 100 ms at least, and never while no job runs. What was used and given
    ///   back between two looks was not seen. Beside it stands RLIMIT_AS (setrlimit(2)) with room for four times the
    ///   limit, and at least for 1 GiB, in each process: an allocation beyond that fails, which in Rust ends the process by SIGABRT; `detail`
    ///   names the limit then too. Programs may reserve more than they use, but not without end.
    /// * Where /proc does not list the children of processes there is RLIMIT_AS alone, with room for this limit.
    ///
    /// The limit is in force before the initializer and any job.
    pub fn memory_limit(mut self, bytes: u64) -> Self {
        self.check(bytes > 0, || "memory_limit(0): a worker needs some memory".into());
        self.settings.memory_limit = Some(bytes);
        self
    }

    /// How many processes and threads a worker may have, itself and all below it included: a worker without a
    /// job has two threads. Beyond, fork(2) and the start of a thread fail with EAGAIN. Less than 2 is an
    /// error. By default there is no limit.
    ///
    /// It is kept by a cgroup with a pids controller, of version 2 or 1. Where there is none, by RLIMIT_NPROC
    /// (setrlimit(2)), set to what the user has running when the worker starts, and this: that counts all
    /// processes of the user, other workers' included, so it is a bound on a fork bomb rather than an exact limit.
    /// Root is exempt from it; where neither works no worker is started, and the error says so.
    pub fn process_limit(mut self, processes: u64) -> Self {
        self.check(processes >= 2, || {
            format!("process_limit({processes}): a worker without a job has two threads")
        });
        self.settings.process_limit = Some(processes);
        self
    }

    /// Sets a variable in the environment of the workers. Otherwise it is the host's, as it is in
    /// [`build`](Self::build): what the host sets later reaches no worker of this pool, also none that is started
    /// later. Of two values for one variable the later one holds.
    pub fn env(mut self, key: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        let key = key.into();
        let bytes = key.as_encoded_bytes();
        self.check(!bytes.is_empty() && !bytes.contains(&b'=') && !bytes.contains(&0), || {
            format!("env({key:?}, …): not a name for a variable")
        });
        self.env.push((key, value.into()));
        self
    }

    /// Starts the workers with an empty environment, apart from what [`env`](Self::env) sets, before or
    /// after this.
    pub fn env_clear(mut self) -> Self {
        self.env_clear = true;
        self
    }

    /// The working directory of the workers.
    pub fn current_dir(mut self, path: impl Into<PathBuf>) -> Self {
        self.settings.current_dir = Some(path.into());
        self
    }

    /// The stack of the thread that runs jobs, in bytes. Default 8 MiB.
    pub fn stack_size(mut self, bytes: usize) -> Self {
        // glibc's PTHREAD_STACK_MIN; less would be rounded up to it.
        const STACK_MIN: usize = 16 * 1024;
        self.check(bytes >= STACK_MIN, || {
            format!("stack_size({bytes}): at least {STACK_MIN} bytes are needed")
        });
        self.settings.stack_size = bytes;
        self
    }

    /// Where the workers' standard error goes. Default: [`Output::Inherit`].
    pub fn stderr(mut self, output: Output) -> Self {
        self.settings.stderr = output;
        self
    }

    /// Runs another program as the workers: one that calls [`init`](crate::init). Functions travel by
    /// name then, so only [tasks](macro@crate::task) can be called: with
    /// [`call`](ProcessPool::call), or with `submit` where both programs have the task.
    pub fn worker_program(mut self, program: impl Into<PathBuf>) -> Self {
        self.settings.worker_program = Some(program.into());
        self
    }

    /// Makes the pool. No worker is started before the first job.
    ///
    /// # Errors
    /// [`is_setting`](Error::is_setting) if a setting makes no sense; [`is_init_missing`](Error::is_init_missing)
    /// if the program has not called [`init`](crate::init); in a job of a pool that is itself within the jobs of
    /// three others, that this is too deep; that the program has its privileges from its file in a way that its workers
    /// could not know it by (see the crate's page); else what the system refused.
    pub fn build(mut self) -> Result<ProcessPool, Error> {
        if let Some(fault) = self.fault {
            return Err(Error::setting(fault));
        }
        if self.settings.worker_program.is_some()
            && (self.settings.initializer.is_some() || self.settings.preload.is_some())
        {
            return Err(Error::setting(
                "initializer, preload: another program's workers cannot call this program's functions",
            ));
        }
        if self.settings.preload.is_some() && self.settings.start_method != StartMethod::ForkServer
        {
            return Err(Error::setting(
                "preload: there is no fork server to load anything (StartMethod::ForkServer)",
            ));
        }
        if self.settings.worker_program.is_none()
            && privileges::are_raised()
            && !privileges::are_of_a_user()
        {
            return Err(Error::system(RAISED_PRIVILEGES, io::ErrorKind::PermissionDenied));
        }
        self.settings.workers = match self.workers {
            Some(workers) => workers,
            None => thread::available_parallelism().map_or(1, usize::from),
        };
        // Once, and not for each worker: all of them shall have the same, and reading it takes a lock that the
        // host's threads may hold as often as they like.
        if !self.env_clear {
            self.settings.environment = Environment::of_this_process();
        }
        for (key, value) in self.env {
            self.settings.environment.set(key, value);
        }
        ProcessPool::start(self.settings)
    }
}
