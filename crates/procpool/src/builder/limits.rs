//! The settings that hold workers to something.

use std::time::Duration;

use super::ProcessPoolBuilder;
use crate::leaks::Leaks;

/// The fewest descriptors with which a worker can do its own work: its standard three, its channel, its
/// image, its host's pidfd, and a few for a moment.
const OPEN_FILES_MIN: u64 = 16;
/// The smallest stack with which programs start: the kernel lets arguments and environment take 128 KiB of
/// it in any case (execve(2)), and as much again is for the program.
const STACK_LIMIT_MIN: u64 = 256 * 1024;
/// The range of /proc/PID/oom_score_adj (proc_pid_oom_score_adj(5)).
const OOM_SCORE_RANGE: std::ops::RangeInclusive<i32> = -1000..=1000;

/// # Limits
///
/// They are set in each worker before any user code runs, hold for the programs that jobs start too, and
/// cannot be raised again by jobs without privileges. A limit that the kernel refuses (one above the host's
/// own hard limit needs CAP_SYS_RESOURCE, setrlimit(2)) breaks the start of the worker, and is named.
impl ProcessPoolBuilder {
    /// How many descriptors a worker may have open (RLIMIT_NOFILE). By default as many as the host. Less
    /// than 16 is an error: a worker has some of its own. A job that reaches the limit sees EMFILE from the
    /// call that would open one more, and goes on.
    pub fn open_files_limit(mut self, descriptors: u64) -> Self {
        self.check(descriptors >= OPEN_FILES_MIN, || {
            format!(
                "open_files_limit({descriptors}): a worker needs {OPEN_FILES_MIN} for its own work"
            )
        });
        self.settings.limits.open_files = Some(descriptors);
        self
    }

    /// How long a file may become that a worker writes, in bytes (RLIMIT_FSIZE). By default as the host has
    /// it. A job that writes beyond it dies of SIGXFSZ, and the [`Death`](crate::Death) names the limit; one
    /// that ignores the signal sees EFBIG. Files in memory (memfd, tmpfs) count as well, pipes and sockets
    /// do not. A standard output that is a long file already is beyond the limit from the start.
    pub fn file_size_limit(mut self, bytes: u64) -> Self {
        self.settings.limits.file_size = Some(bytes);
        self
    }

    /// How long a core file of a worker may be, in bytes (RLIMIT_CORE). Default 0: a crashing job leaves
    /// none, whatever the host's limit is. Only this limit can be raised again by a job, up to the host's
    /// own hard limit.
    pub fn core_size_limit(mut self, bytes: u64) -> Self {
        self.settings.limits.core_size = bytes;
        self
    }

    /// The stack of the main thread of the programs that jobs start, in bytes (RLIMIT_STACK); it bounds
    /// the length of their arguments too. By default as the host has it. Less than 256 KiB is an error.
    /// Jobs themselves run on a thread whose stack is [`stack_size`](Self::stack_size).
    pub fn stack_limit(mut self, bytes: u64) -> Self {
        self.check(bytes >= STACK_LIMIT_MIN, || {
            format!("stack_limit({bytes}): programs need at least {STACK_LIMIT_MIN} bytes to start")
        });
        self.settings.limits.stack = Some(bytes);
        self
    }

    /// How likely the kernel's out-of-memory killer finds a worker, from -1000 (never) to 1000
    /// (proc_pid_oom_score_adj(5)). Default: 500 above the host's, so that a lack of memory costs a job and
    /// not the program. Other values are an error; one below the host's own needs CAP_SYS_RESOURCE.
    pub fn oom_score_adj(mut self, score: i32) -> Self {
        self.check(OOM_SCORE_RANGE.contains(&score), || {
            format!("oom_score_adj({score}): the range is -1000 to 1000")
        });
        self.settings.limits.oom_score_adj = Some(score);
        self
    }

    /// The limit on the CPU time of each attempt of a job; in a chunk of a `map`, of each element. By default
    /// there is none. What the worker had used before does not count; all threads of the worker do, and
    /// programs that the job has started and waited for (of these the last 20 ms may be missed). A job that
    /// has used it up is stopped as after [`job_timeout`](Self::job_timeout), and ends as
    /// [`TimedOut`](crate::JobError::TimedOut) with [`Limit::Cpu`](crate::Limit::Cpu). That is noticed after
    /// 1 % of the limit more, on each CPU: never less than 1 ms, never more than 50 ms. Unlike RLIMIT_CPU
    /// (setrlimit(2)), which counts whole seconds from the worker's start.
    pub fn cpu_timeout(mut self, limit: Duration) -> Self {
        self.settings.cpu_timeout = Some(limit);
        self
    }

    /// Whether each worker runs on one CPU only: worker 0 on the first that the host may use, worker 1 on
    /// the second, and so on, from the first again when there are no more (sched_setaffinity(2)). Default
    /// false: the kernel places them. To pin pays where jobs keep much in a CPU's own caches and nothing
    /// else runs on the machine. Do not where jobs have threads of their own, which would share that CPU,
    /// where there are more workers than CPUs, or where other programs are busy: a pinned worker waits
    /// behind them while other CPUs idle. On a host that may use one CPU it changes nothing.
    pub fn pin_cpus(mut self, pin: bool) -> Self {
        self.settings.pin_cpus = pin;
        self
    }
}

/// # Workers that leave
///
/// A worker that leaves is told so once it has no job, and gets none afterwards: none is lost to it. Its
/// departure is neither a failure nor a death, and does not count against
/// [`restart_limit`](Self::restart_limit). Jobs that need a worker start another.
impl ProcessPoolBuilder {
    /// Lets a worker leave that has had no job for this long; the next job that needs one starts it anew.
    /// By default idle workers stay. 0 is an error. [`warm_up`](crate::ProcessPool::warm_up) holds all of
    /// them until it returns; then their time begins to run.
    pub fn idle_timeout(mut self, timeout: Duration) -> Self {
        self.check(!timeout.is_zero(), || {
            "idle_timeout(0): a worker would leave before its first job".into()
        });
        self.settings.idle_timeout = Some(timeout);
        self
    }

    /// Lets a worker leave after a job that finds its resident set larger than this, in bytes
    /// (proc_pid_statm(5)): what jobs and their libraries have leaked goes with it. By default nobody looks.
    /// It is looked at between jobs only, at most every 5 ms, and after a chunk of a `map`; no job is ever
    /// stopped for it. A worker that is larger than this when it starts leaves after each job.
    pub fn max_rss_per_worker(mut self, bytes: u64) -> Self {
        self.check(bytes > 0, || "max_rss_per_worker(0): every process is larger".into());
        self.settings.limits.rss = Some(bytes);
        self
    }

    /// What is done about what a job leaves behind in its worker. Default: [`Leaks::Retire`].
    ///
    /// A worker looks after each job that took more than 100 µs, panicked or not (what a shorter one leaves
    /// is found after the next longer one, and told of that one), for:
    ///
    /// * *threads* that had not ended 20 ms later;
    /// * *child processes*, dead or alive, for which the job has not waited;
    /// * *descriptors*, more than 16 beyond those that were open before the first job: a connection or a
    ///   file that is kept for the next job is no leak.
    ///
    /// What the initializer has left belongs to the worker. So do, under `Retire`, the threads of the first
    /// job that leaves some, if all of them wait for something: that is how libraries keep theirs, such as
    /// rayon's pool or an asynchronous runtime, and a worker that left for them would start them anew for
    /// each job. They stand in the report of that job; later ones make the worker leave. `Error` makes no
    /// such exception: start what is to stay in the initializer.
    ///
    /// In a chunk of a `map` the worker leaves after the chunk. With
    /// [`Isolation::FreshProcess`](crate::Isolation::FreshProcess) every worker leaves after its job, with all
    /// that the job has left, so nobody looks under `Retire`.
    pub fn leaks(mut self, leaks: Leaks) -> Self {
        self.settings.limits.leaks = leaks.policy();
        self
    }
}
