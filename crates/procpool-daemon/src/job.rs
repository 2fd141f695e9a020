//! What the daemon knows of a job: what was asked for, where it stands, how it came there, how it ended.
//!
//! Plain data, as it travels and as it is kept. What makes the transitions is [`machine`](crate::machine).

use std::fmt;
use std::time::{Duration, SystemTime};

use procpool::executor::Verdict;
use serde::{Deserialize, Serialize};

/// The number of a job. Never given twice by one state directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct JobId(pub u64);

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A moment, in milliseconds since 1970. By the wall clock: it must mean the same after a restart.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Moment(pub u64);

impl Moment {
    /// The present one.
    pub fn now() -> Moment {
        let since = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        Moment(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }

    /// So much later.
    pub fn after(self, span: Duration) -> Moment {
        Moment(self.0.saturating_add(u64::try_from(span.as_millis()).unwrap_or(u64::MAX)))
    }

    /// How long from `earlier` until this; nothing if the clock was set back between them.
    pub fn since(self, earlier: Moment) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

/// What an acknowledged job survives.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// A crash of the machine, or of its power: each batch is on the disk.
    #[default]
    Machine,
    /// A crash of the daemon: each batch is with the system.
    Process,
    /// Nothing.
    Memory,
}

/// What a client asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobSpec {
    /// How it is to be run.
    pub terms: Terms,
    /// What is to be run.
    pub work: Work,
}

/// How a job is to be run: as it was asked for, and what holds where nothing was said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// The queue's name.
    pub queue: String,
    /// For lists: the command's beginning, or the task's name, unless the client has a better one.
    pub title: String,
    /// Higher first.
    pub priority: Option<i32>,
    /// How often it may be run again, also after the daemon was killed while it ran. With 0 it is started at
    /// most once.
    pub retries: Option<u32>,
    /// The time limit of each attempt.
    pub timeout: Option<Duration>,
    /// The limit on the CPU time of each attempt of a task.
    pub cpu_timeout: Option<Duration>,
    /// What holds where one of the four above is `None`. The daemon sets it when it takes the job, to what the queue's
    /// configuration says then, and it stays so.
    pub defaults: Defaults,
    /// Not before this.
    pub not_before: Option<Moment>,
    /// Only if these have succeeded.
    pub after: Vec<JobId>,
    /// The same key and the same spec are the same job.
    pub key: Option<String>,
}

/// What holds for a job that says nothing of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Defaults {
    /// See [`Terms`].
    pub priority: i32,
    /// See [`Terms`].
    pub retries: u32,
    /// See [`Terms`]; without a limit if `None`.
    pub timeout: Option<Duration>,
    /// See [`Terms`]; without a limit if `None`.
    pub cpu_timeout: Option<Duration>,
}

impl Terms {
    /// Of a job in the queue `default` about which nothing else is said.
    pub fn new(title: impl Into<String>) -> Terms {
        Terms {
            queue: DEFAULT_QUEUE.into(),
            title: title.into(),
            priority: None,
            retries: None,
            timeout: None,
            cpu_timeout: None,
            defaults: Defaults::default(),
            not_before: None,
            after: Vec::new(),
            key: None,
        }
    }

    /// The priority that holds.
    pub fn priority(&self) -> i32 {
        self.priority.unwrap_or(self.defaults.priority)
    }

    /// The retries that hold.
    pub fn retries(&self) -> u32 {
        self.retries.unwrap_or(self.defaults.retries)
    }

    /// The time limit that holds, if any does.
    pub fn timeout(&self) -> Option<Duration> {
        self.timeout.or(self.defaults.timeout)
    }

    /// The limit on CPU time that holds, if any does.
    pub fn cpu_timeout(&self) -> Option<Duration> {
        self.cpu_timeout.or(self.defaults.cpu_timeout)
    }
}

/// The queue that is there without any configuration.
pub const DEFAULT_QUEUE: &str = "default";

/// What is to be run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Work {
    /// A command, by the built-in task of the daemon's own program.
    Command(Command),
    /// A task of the queue's worker program.
    Task(TaskWork),
}

impl Work {
    /// How many bytes it has, about.
    pub fn bytes(&self) -> u64 {
        let len = match self {
            Work::Command(Command { words, dir, env }) => {
                let words: usize = words.iter().map(|word| word.len()).sum();
                let env: usize = env.iter().map(|(name, value)| name.len() + value.len()).sum();
                words + dir.len() + env
            }
            Work::Task(TaskWork { task, argument, .. }) => task.len() + argument.len(),
        };
        len as u64
    }
}

/// A command line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// The program and its arguments, bytes as the system has them.
    pub words: Vec<serde_bytes::ByteBuf>,
    /// Where it runs.
    pub dir: serde_bytes::ByteBuf,
    /// What is added to the daemon's environment.
    pub env: Vec<(serde_bytes::ByteBuf, serde_bytes::ByteBuf)>,
}

/// A call of a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskWork {
    /// The task's name.
    pub task: String,
    /// The caller's fingerprint of it if the argument is in the library's own form; `None` means JSON.
    pub fingerprint: Option<u64>,
    /// The argument.
    #[serde(with = "serde_bytes")]
    pub argument: Vec<u8>,
}

/// A run of a job, from 1.
pub type Attempt = u32;

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// It waits for a moment, or for other jobs.
    Scheduled,
    /// It waits for a slot.
    Queued,
    /// It has been given to a worker, or is about to be.
    Running(Attempt),
    /// It ended with a value; a command: with exit code 0.
    Succeeded,
    /// A command ended with another exit code, or the job could not be run.
    Failed,
    /// Its task panicked.
    Panicked,
    /// A signal killed the command, or the worker died under it.
    Died,
    /// Its time limit was reached.
    TimedOut,
    /// It was cancelled, or stopped, or a job that it depends on did not succeed.
    Cancelled,
    /// The daemon ended while it ran.
    Interrupted {
        /// Whether it may have had effects.
        may_have_run: bool,
    },
    /// It has killed every worker it was given to, as often as it may.
    Quarantined,
    /// It has ended, and what it left was kept as long as was asked.
    Expired,
}

impl State {
    /// True if nothing will change any more, apart from expiry.
    pub fn is_terminal(self) -> bool {
        !matches!(self, State::Scheduled | State::Queued | State::Running(_))
    }

    /// The state in a word.
    pub fn word(self) -> &'static str {
        match self {
            State::Scheduled => "scheduled",
            State::Queued => "queued",
            State::Running(_) => "running",
            State::Succeeded => "succeeded",
            State::Failed => "failed",
            State::Panicked => "panicked",
            State::Died => "died",
            State::TimedOut => "timed_out",
            State::Cancelled => "cancelled",
            State::Interrupted { .. } => "interrupted",
            State::Quarantined => "quarantined",
            State::Expired => "expired",
        }
    }
}

/// Who made something happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Who {
    /// The daemon itself.
    Daemon,
    /// A client: its process, as the kernel knows it.
    Client(u32),
}

/// One step of a job's life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// When.
    pub at: Moment,
    /// What it became.
    pub state: State,
    /// By whom.
    pub who: Who,
    /// Why, if that is not plain.
    pub why: Option<Box<str>>,
}

/// What has become of a job so far.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Life {
    /// How often it was started.
    pub attempts: Attempt,
    /// How many workers it has killed.
    pub deaths: u32,
    /// Never empty. The last step is where it stands.
    pub history: Vec<Step>,
}

impl Life {
    /// Of a job that has just been submitted.
    pub fn born(step: Step) -> Life {
        Life { attempts: 0, deaths: 0, history: vec![step] }
    }

    /// The job was given a slot, and has not begun: all is as it was before.
    pub(crate) fn take_back(&mut self) {
        self.history.pop();
        self.attempts -= 1;
    }

    /// Where the job stands.
    pub fn state(&self) -> State {
        self.history.last().expect("a job is born with a step").state
    }

    /// From its submission to the start of its last attempt; to its latest step if it was never started.
    pub fn queued(&self) -> Duration {
        let is_start = |step: &&Step| matches!(step.state, State::Running(_));
        let until = self.history.iter().rev().find(is_start).or(self.history.last());
        until.map_or(Duration::ZERO, |step| step.at.since(self.history[0].at))
    }
}

/// All that is known of a job but its work and its ending: what lists show.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The job.
    pub id: JobId,
    /// As it was asked for.
    pub terms: Terms,
    /// What has become of it.
    pub life: Life,
}

/// How a job ended: kept with the step that made it so.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ending {
    /// What came of it.
    pub outcome: Outcome,
    /// How often it was started.
    pub attempts: Attempt,
    /// From its submission to the start of its last attempt; to its end if it was never started.
    pub queued: Duration,
    /// How long the last attempt ran.
    pub ran: Duration,
    /// The CPU time of that, if it was measured.
    pub cpu: Option<Duration>,
    /// The peak resident set of its worker, in bytes, if it was measured.
    pub peak_rss: Option<u64>,
    /// The worker's process.
    pub pid: Option<u32>,
}

/// What came of a job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Outcome {
    /// A task's result, of one that was called with JSON.
    Json(String),
    /// A task's result, of one that was called with the library's own form.
    Binary(serde_bytes::ByteBuf),
    /// A command was run.
    Command(CommandEnd),
    /// There is no value.
    Error(Verdict),
    /// It was not run to its end by this daemon; the record says why.
    Nothing,
}

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum CommandEnd {
    /// With this exit code.
    Exit(i32),
    /// By this signal; whether it left a core file.
    Signal(i32, bool),
    /// It could not be started: why.
    NotStarted(String),
}

impl Ending {
    /// Of a job that this daemon did not run to its end.
    pub fn nothing() -> Ending {
        Ending {
            outcome: Outcome::Nothing,
            attempts: 0,
            queued: Duration::ZERO,
            ran: Duration::ZERO,
            cpu: None,
            peak_rss: None,
            pid: None,
        }
    }
}

impl Outcome {
    /// How many bytes it has, about.
    pub(crate) fn bytes(&self) -> u64 {
        match self {
            Outcome::Json(text) => text.len() as u64,
            Outcome::Binary(bytes) => bytes.len() as u64,
            Outcome::Command(_) | Outcome::Error(_) | Outcome::Nothing => 0,
        }
    }

    /// The state that a job with this outcome ends in, retries apart.
    pub fn state(&self) -> State {
        match self {
            Outcome::Json(_) | Outcome::Binary(_) | Outcome::Command(CommandEnd::Exit(0)) => {
                State::Succeeded
            }
            Outcome::Command(CommandEnd::Exit(_) | CommandEnd::NotStarted(_)) => State::Failed,
            Outcome::Command(CommandEnd::Signal(..)) => State::Died,
            Outcome::Error(verdict) => match verdict {
                Verdict::Panicked { .. } => State::Panicked,
                Verdict::Died { .. } => State::Died,
                Verdict::TimedOut { .. } => State::TimedOut,
                Verdict::Cancelled { .. } => State::Cancelled,
                Verdict::Quarantined { .. } => State::Quarantined,
                _ => State::Failed,
            },
            Outcome::Nothing => State::Cancelled,
        }
    }
}
