//! What is known of jobs and workers besides results: plain data.

use std::time::Duration;

use crate::job_error::JobError;
use crate::job_id::JobId;
use crate::leaks::Leaked;

/// A job's result with its report.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Outcome<R> {
    /// The value, or how the job ended without one.
    pub result: Result<R, JobError>,
    /// What it took.
    pub report: Report,
}

/// What a job took.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Report {
    /// How often it was started; 0 if it never was.
    pub attempts: u32,
    /// From its submission to the start of its last attempt; to its end if it never started.
    pub queued: Duration,
    /// How long its last attempt ran.
    pub ran: Duration,
    /// CPU time of its last attempt, all threads of the worker. Measured for attempts of 50 ms and more.
    pub cpu: Option<Duration>,
    /// Peak resident set of its worker until then, in bytes. Measured for attempts of 50 ms and more.
    pub peak_rss: Option<u64>,
    /// The process that ran it last.
    pub pid: Option<u32>,
    /// The worker index that ran it last.
    pub worker: Option<usize>,
    /// What its last attempt left behind in its worker, where that was noticed: see
    /// [`leaks`](crate::ProcessPoolBuilder::leaks).
    pub leaked: Option<Box<Leaked>>,
}

/// A report as it is kept for each of a million jobs: half as large.
#[derive(Debug, Clone)]
pub(crate) struct Brief {
    queued_ns: u64,
    ran_ns: u64,
    attempts: u32,
    /// 0 if there is none.
    pid: u32,
    /// `NO_WORKER` if there is none.
    worker: u32,
    rare: Option<Box<Rare>>,
}

const NO_WORKER: u32 = u32::MAX;

/// What few reports have.
#[derive(Debug, Clone)]
struct Rare {
    cpu: Option<Duration>,
    peak_rss: Option<u64>,
    leaked: Option<Box<Leaked>>,
}

impl Brief {
    pub(crate) fn attempts(&self) -> u32 {
        self.attempts
    }

    pub(crate) fn ran(&self) -> Duration {
        Duration::from_nanos(self.ran_ns)
    }
}

impl From<Report> for Brief {
    #[inline]
    fn from(report: Report) -> Brief {
        // 64 bits of nanoseconds last 584 years.
        let nanoseconds = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let Report { cpu, peak_rss, leaked, .. } = report;
        let is_rare = cpu.is_some() || peak_rss.is_some() || leaked.is_some();
        Brief {
            queued_ns: nanoseconds(report.queued),
            ran_ns: nanoseconds(report.ran),
            attempts: report.attempts,
            pid: report.pid.unwrap_or(0),
            worker: report.worker.map_or(NO_WORKER, |worker| worker as u32),
            rare: is_rare.then(|| Box::new(Rare { cpu, peak_rss, leaked })),
        }
    }
}

impl From<Brief> for Report {
    #[inline]
    fn from(brief: Brief) -> Report {
        let (cpu, peak_rss, leaked) = match brief.rare {
            Some(rare) => (rare.cpu, rare.peak_rss, rare.leaked),
            None => (None, None, None),
        };
        Report {
            attempts: brief.attempts,
            queued: Duration::from_nanos(brief.queued_ns),
            ran: Duration::from_nanos(brief.ran_ns),
            cpu,
            peak_rss,
            pid: (brief.pid != 0).then_some(brief.pid),
            worker: (brief.worker != NO_WORKER).then_some(brief.worker as usize),
            leaked,
        }
    }
}

/// What an `on_done` callback is told. The value itself stays for whoever takes it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Done {
    /// Which job.
    pub id: JobId,
    /// How it ended, as far as is known without decoding the value; `None` if there is one.
    pub error: Option<JobError>,
    /// What it took.
    pub report: Report,
}

/// The latest progress that a job has reported.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Progress {
    /// As the job gave it; by convention from 0 to 1.
    pub fraction: f64,
    /// As the job gave it, cut to 256 bytes.
    pub message: String,
}

/// Counts of a pool at one moment: submitted = finished + failed + cancelled + running + queued.
/// Refused jobs are not counted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Workers that live, those that are starting included.
    pub workers: usize,
    /// Workers that are ready and have no job.
    pub idle: usize,
    /// Jobs that have started and not ended. A chunk of a `map` counts as one job.
    pub running: usize,
    /// Jobs that have not started.
    pub queued: usize,
    /// Jobs accepted since the pool was made.
    pub submitted: u64,
    /// Jobs that ended with a value.
    pub finished: u64,
    /// Jobs that ended with an error, cancellation apart.
    pub failed: u64,
    /// Jobs that were cancelled or aborted.
    pub cancelled: u64,
    /// Workers started.
    pub spawned: u64,
    /// Workers that ended without having been told to retire, with or without a job.
    pub deaths: u64,
    /// Processes that have not ended although they were sent SIGKILL, and with which the pool does not count any
    /// more ([`unkillable_after`](crate::ProcessPoolBuilder::unkillable_after)). Each holds its memory and its
    /// descriptors; less one when it ends after all.
    pub abandoned: usize,
}

/// One worker of a pool.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct WorkerInfo {
    /// Its slot: from 0 to the number of workers, and the same for its replacement.
    pub index: usize,
    /// Its process id. A worker can have a child for each job, which is then the process of reports and deaths: see
    /// [`Isolation::FreshProcess`](crate::Isolation::FreshProcess).
    pub pid: u32,
    /// What it is doing.
    pub state: WorkerState,
    /// The job that it has started, if any.
    pub job: Option<JobId>,
    /// Jobs that it has ended.
    pub jobs_done: u64,
}

/// What a worker is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum WorkerState {
    /// It is not ready yet.
    Starting,
    /// It waits for a job.
    Idle,
    /// It has jobs.
    Busy,
    /// It is ending.
    Stopping,
}
