//! How a job ended without a value.

use std::fmt;
use std::panic::Location;
use std::sync::Arc;
use std::time::Duration;

use crate::Error;
use crate::job_id::JobId;
use crate::leaks::Leaked;

/// How a job ended without a value.
///
/// Its text is one line that a person can act on; control characters that a job smuggled into a panic
/// message or its stderr are escaped.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum JobError {
    /// The job panicked. Its worker lives on, unless the panic aborted the process.
    Panicked(Panic),
    /// The job's worker process died under it.
    Died(Death),
    /// A time limit was reached.
    TimedOut(Timeout),
    /// The job was cancelled or aborted.
    Cancelled {
        /// True if it had started, and so may have had effects.
        started: bool,
    },
    /// With retries: the job has killed every worker that it was given to.
    Quarantined {
        /// How many workers it killed.
        attempts: u32,
        /// How the last of them died.
        last: Box<JobError>,
    },
    /// The argument (on the caller's side) or the result (on the worker's) could not be encoded.
    /// In the second case the job did run.
    Encode(CodecError),
    /// The argument (on the worker's side) or the result (on the caller's) could not be decoded.
    /// In the second case the job did run. A result that is nested so deep that decoding it takes more than
    /// 1 MiB of the taker's stack, half of what threads have by default, is refused.
    Decode(CodecError),
    /// The argument or the result is longer than `payload_limit` allows.
    TooLarge {
        /// Its encoded length, in bytes.
        len: u64,
        /// The limit, in bytes.
        limit: u64,
    },
    /// The function cannot be named to a worker: it is outside the program's main image, or it is not a
    /// registered task where only those can be called. The text names it.
    Unregistered(String),
    /// The job has left something behind in its worker, and the pool's [`leaks`](
    /// crate::ProcessPoolBuilder::leaks) are [`Leaks::Error`](crate::Leaks::Error). It did run; its value is
    /// lost.
    Leaked(Leaked),
    /// The pool was shut down before the job was submitted.
    Closed,
    /// Workers cannot be started: the first cause.
    Broken(Error),
}

/// A panic in a job.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Panic {
    /// The panic's message; a placeholder if its payload was not text.
    pub message: String,
    /// Where, as `file:line:column`. `None` if the job has replaced the panic hook.
    pub location: Option<String>,
    /// A backtrace, if `RUST_BACKTRACE` asks for one in the worker.
    pub backtrace: Option<String>,
    /// True if the panic ended the process: under `panic = "abort"`, or a panic while panicking.
    pub aborted: bool,
    pub(crate) label: Label,
}

/// The death of a worker under a job.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Death {
    /// How the process ended.
    pub status: Status,
    /// What it was doing for the job.
    pub phase: Phase,
    /// Whether the kernel killed it for want of memory.
    pub oom: Oom,
    /// The process.
    pub pid: u32,
    /// Which attempt this was, from 1.
    pub attempt: u32,
    /// The last lines that the worker wrote to its stderr; a few KiB at most. Earlier jobs of that worker can have
    /// written some of them, in their own processes too if it forked one for each.
    pub stderr_tail: String,
    /// What else is known: the worker broke the protocol, or closed its control channel.
    pub detail: Option<String>,
    pub(crate) label: Label,
    pub(crate) worker: usize,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Status {
    /// With this exit code.
    Exit(i32),
    /// By this signal; whether it left a core file.
    Signal(i32, bool),
    /// The status was lost: the host ignores SIGCHLD, or other code in it has waited for the process.
    Unknown,
}

/// What a worker does with a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Starting up.
    Start,
    /// Waiting for a job.
    Idle,
    /// Decoding the argument.
    Decode,
    /// In the job's function.
    Run,
    /// Encoding the result.
    Encode,
    /// Handing the result over.
    Send,
}

/// Whether the kernel's out-of-memory killer ended a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Oom {
    /// It did.
    Yes,
    /// It did not.
    No,
    /// It was killed by SIGKILL, and nothing says by whom.
    Unknown,
}

/// A time limit that was reached.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Timeout {
    /// Which limit.
    pub limit: Limit,
    /// How long it was.
    pub after: Duration,
    /// How the job came to an end.
    pub ended_by: EndedBy,
    pub(crate) label: Label,
}

/// Which time limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Limit {
    /// The job's own, from its start.
    Job,
    /// On the CPU time of the job.
    Cpu,
    /// On a whole `map`.
    Map,
}

/// How a job that reached its time limit came to an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum EndedBy {
    /// It had not started.
    NotStarted,
    /// It saw the stop flag and returned, or happened to.
    Itself,
    /// SIGTERM ended it. On a [`ThreadPool`](crate::ThreadPool) nothing can: there it means that the
    /// flag was raised and the thread goes on.
    Term,
    /// SIGKILL ended it.
    Kill,
}

/// A value that could not be encoded or decoded.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct CodecError {
    /// In which process.
    pub side: Side,
    /// The Rust type.
    pub type_name: String,
    /// What its `Serialize` or `Deserialize`, or the format, said.
    pub message: String,
}

/// In which process something happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The one that submitted the job.
    Caller,
    /// The one that ran it.
    Worker,
}

/// Which job a message is about: number, name, and where it was submitted.
#[derive(Clone)]
pub(crate) struct Label {
    pub(crate) id: JobId,
    pub(crate) name: Option<Arc<str>>,
    pub(crate) origin: &'static Location<'static>,
}

impl fmt::Debug for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Label({self})")
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "job {}", self.id)?;
        if let Some(name) = &self.name {
            write!(f, " `{}`", Escaped(name))?;
        }
        write!(f, " ({}:{})", self.origin.file(), self.origin.line())
    }
}

/// How much of a stderr tail stands in a message of one line.
const TAIL_IN_MESSAGE: usize = 300;

impl fmt::Display for JobError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            JobError::Panicked(panic) => panic.fmt(f),
            JobError::Died(death) => death.fmt(f),
            JobError::TimedOut(timeout) => timeout.fmt(f),
            JobError::Cancelled { started: false } => f.write_str("cancelled before it started"),
            JobError::Cancelled { started: true } => f.write_str("stopped while it ran"),
            JobError::Quarantined { attempts, last } => match &**last {
                JobError::Died(death) => {
                    write!(
                        f,
                        "{} given up: it killed {attempts} workers; last {}",
                        death.label,
                        Verdict(death)
                    )
                }
                last => write!(f, "given up: it killed {attempts} workers; last {last}"),
            },
            JobError::Encode(error) => {
                let what = if error.side == Side::Caller { "argument" } else { "result" };
                write!(f, "cannot encode the {what}: {error}")
            }
            JobError::Decode(error) => {
                let what = if error.side == Side::Caller { "result" } else { "argument" };
                write!(f, "cannot decode the {what}: {error}")
            }
            JobError::TooLarge { len, limit } => {
                write!(f, "{len} bytes are more than `payload_limit` allows, which is {limit}")
            }
            JobError::Unregistered(what) => {
                write!(f, "{} cannot be called in a worker", Escaped(what))
            }
            JobError::Leaked(leaked) => write!(f, "left behind in its worker: {leaked}"),
            JobError::Closed => f.write_str("the pool was shut down before the job was submitted"),
            JobError::Broken(error) => {
                write!(f, "the pool is broken: {}", Escaped(&error.to_string()))
            }
        }
    }
}

impl std::error::Error for JobError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            JobError::Quarantined { last, .. } => Some(last),
            JobError::Broken(error) => Some(error),
            _ => None,
        }
    }
}

impl fmt::Display for Panic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} panicked", self.label)?;
        if let Some(location) = &self.location {
            write!(f, " at {}", Escaped(location))?;
        }
        write!(f, ": {}", Escaped(&self.message))?;
        if self.aborted { f.write_str(" (and its worker aborted)") } else { Ok(()) }
    }
}

impl fmt::Display for Death {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.label, Verdict(self))
    }
}

/// A death without the job that it is about.
struct Verdict<'a>(&'a Death);

impl fmt::Display for Verdict<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Death { status, phase, pid, attempt, worker, .. } = self.0;
        write!(f, "died: {status} in worker {worker} (pid {pid}) {phase}, attempt {attempt}")?;
        if let Some(detail) = &self.0.detail {
            write!(f, "; {}", Escaped(detail))?;
        }
        match (self.0.oom, status) {
            (Oom::Yes, _) => f.write_str("; out of memory")?,
            (Oom::Unknown, Status::Signal(..)) => {
                f.write_str("; nothing says who killed it, perhaps the kernel for want of memory")?;
            }
            (Oom::No | Oom::Unknown, _) => {}
        }
        let tail = self.0.stderr_tail.trim();
        if tail.contains("overflowed its stack") {
            f.write_str("; it overflowed its stack (see `stack_size`)")?;
        }
        if tail.is_empty() {
            return Ok(());
        }
        let start = tail.ceil_char_boundary(tail.len().saturating_sub(TAIL_IN_MESSAGE));
        let cut = if start > 0 { "…" } else { "" };
        write!(f, "; last stderr: \"{cut}{}\"", Escaped(&tail[start..]))
    }
}

impl fmt::Display for Timeout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let limit = match self.limit {
            Limit::Job => "time",
            Limit::Cpu => "CPU time",
            Limit::Map => "whole map's time",
        };
        let how = match self.ended_by {
            EndedBy::NotStarted => "it had not started",
            EndedBy::Itself => "it returned when asked to stop",
            EndedBy::Term => "ended by SIGTERM",
            EndedBy::Kill => "ended by SIGKILL",
        };
        write!(f, "{} exceeded its {limit} limit of {:?}; {how}", self.label, self.after)
    }
}

impl fmt::Display for CodecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.type_name, Escaped(&self.message))
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Status::Exit(code) => write!(f, "exit code {code}"),
            Status::Signal(number, core) => {
                match nix::sys::signal::Signal::try_from(*number) {
                    Ok(signal) => f.write_str(signal.as_str())?,
                    Err(_) => write!(f, "signal {number}")?,
                }
                if *core { f.write_str(" (core dumped)") } else { Ok(()) }
            }
            Status::Unknown => f.write_str("an unknown status"),
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Phase::Start => "while starting",
            Phase::Idle => "while idle",
            Phase::Decode => "while decoding the argument",
            Phase::Run => "while running",
            Phase::Encode => "while encoding the result",
            Phase::Send => "while sending the result",
        })
    }
}

/// Text from a worker, made safe for a terminal: control characters are escaped, the rest stays.
pub(crate) struct Escaped<'a>(pub(crate) &'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The direction marks can make a line read as something else; they are escaped too.
        let is_unsafe = |c: char| {
            c.is_control()
                || matches!(c, '\u{200e}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
        };
        for c in self.0.chars() {
            if is_unsafe(c) {
                write!(f, "{}", c.escape_default())?;
            } else {
                write!(f, "{c}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn label() -> Label {
        Label { id: JobId::from_number(17), name: None, origin: Location::caller() }
    }

    fn death(stderr_tail: &str) -> Death {
        Death {
            status: Status::Signal(11, false),
            phase: Phase::Run,
            oom: Oom::No,
            pid: 4711,
            attempt: 1,
            stderr_tail: stderr_tail.into(),
            detail: None,
            label: label(),
            worker: 3,
        }
    }

    #[test]
    fn a_death_reads_as_one_line_that_names_everything() {
        let text = JobError::Died(death("first\nlast words\n")).to_string();
        assert!(text.starts_with("job 17 (crates/procpool/src/job_error.rs:"), "{text}");
        let rest = "died: SIGSEGV in worker 3 (pid 4711) while running, attempt 1; last stderr: \"first\\nlast words\"";
        assert!(text.ends_with(rest), "{text}");
    }

    #[test]
    fn a_job_that_is_given_up_is_named_first() {
        let last = Box::new(JobError::Died(Death { attempt: 3, ..death("") }));
        let text = JobError::Quarantined { attempts: 3, last }.to_string();
        assert!(text.starts_with("job 17 (crates/procpool/src/job_error.rs:"), "{text}");
        let rest = "given up: it killed 3 workers; last died: SIGSEGV in worker 3 (pid 4711) while running, attempt 3";
        assert!(text.ends_with(rest), "{text}");
    }

    /// Goal: a SIGKILL that nobody owns up to tells where to look.
    #[test]
    fn a_kill_by_nobody_names_the_usual_suspect() {
        let death = Death { status: Status::Signal(9, false), oom: Oom::Unknown, ..death("") };
        assert!(death.to_string().ends_with("perhaps the kernel for want of memory"), "{death}");
    }

    #[test]
    fn control_characters_are_escaped_and_long_tails_cut() {
        let text = death(&format!("{}\u{1b}]0;pwn\u{7}é\u{202e}", "é".repeat(500))).to_string();
        assert!(!text.chars().any(char::is_control), "{text:?}");
        assert!(text.contains("\\u{1b}]0;pwn\\u{7}é\\u{202e}"), "{text}");
        assert!(text.contains("\"…é"), "{text}");
    }

    #[test]
    fn a_name_stands_in_the_label() {
        let label = Label { name: Some("nightly\nbuild".into()), ..label() };
        let text = Timeout {
            limit: Limit::Job,
            after: Duration::from_millis(300),
            ended_by: EndedBy::Kill,
            label,
        };
        assert!(text.to_string().starts_with("job 17 `nightly\\nbuild` ("), "{text}");
    }
}
