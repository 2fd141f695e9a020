//! A command as a job: what the worker does with it.
//!
//! The command inherits the worker's process group, so whatever stops the worker's group stops the
//! command and what it has started. SIGTERM to the group is how the pool asks a job to stop: the worker
//! outlives it for as long as the command needs to clean up, and keeps what the command still says in
//! files, which outlive the worker.

use std::ffi::OsString;
use std::io::{self, PipeReader, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::{TimeVal, TimeValLike};
use rustix::process::{Pid, PidfdFlags, Resource, Rlimit, pidfd_open, prlimit};
use serde::{Deserialize, Serialize};
use signal_hook::consts::SIGTERM;
use signal_hook::flag;
use signal_hook::low_level::pipe;

use crate::capture::{Capture, Captured};
use crate::input::Input;
use crate::lines::{LineStream, StdoutFailed, Streaming};
use crate::spill::{self, Stream};
use crate::template::{Place, Template};

/// How long after a command's end its output may stay open. A process that it left in the background
/// then holds it, and is not waited for.
const LEFT_OPEN: Duration = Duration::from_millis(200);

/// What every worker of a batch knows.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Setup {
    pub(crate) template: Template,
    /// The directory for long output.
    pub(crate) spill: OsString,
    /// Output is passed on as it comes, and not kept.
    pub(crate) streaming: Option<Streaming>,
    /// The CPU time that each process of a command may use, in seconds.
    pub(crate) cpu_seconds: Option<u64>,
}

/// One attempt of one job.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) number: u64,
    pub(crate) input: Input,
}

/// What became of a command.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Ran {
    pub(crate) ended: Ended,
    pub(crate) stdout: Captured,
    pub(crate) stderr: Captured,
    /// Its CPU time, with that of its own children that it has waited for.
    pub(crate) cpu: Duration,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Ended {
    /// With this exit code.
    Exit(i32),
    /// By this signal; whether it left a core file.
    Signal(i32, bool),
    /// It could not be started.
    NotStarted(String),
    /// Its output could not be kept, so it was killed.
    OutputLost(String),
    /// Its output could not be passed on to standard output for this reason (errno), so it was killed.
    StdoutFailed(i32),
}

static WORKER: OnceLock<Worker> = OnceLock::new();

struct Worker {
    setup: Setup,
    /// No command runs, so that SIGTERM ends the worker as if it had no handler.
    is_idle: Arc<AtomicBool>,
    /// Readable after SIGTERM, which the whole group has been sent: the command acts on it as it likes.
    stop_asked: PipeReader,
}

/// The worker's initializer.
pub(crate) fn prepare(setup: Setup) -> Result<(), String> {
    let (stop_asked, ask) = io::pipe().map_err(|error| format!("cannot make a pipe: {error}"))?;
    let is_idle = Arc::new(AtomicBool::new(true));
    // In this order they are done. The pipe holds more requests than anyone sends.
    flag::register_conditional_default(SIGTERM, Arc::clone(&is_idle))
        .and_then(|_| pipe::register(SIGTERM, ask))
        .map_err(|error| format!("cannot handle signals: {error}"))?;
    let worker = Worker { setup, is_idle, stop_asked };
    WORKER.set(worker).map_err(|_| "a worker is prepared once".into())
}

/// Tells the signal handler that a command runs, until it is dropped.
struct Running<'a>(&'a Worker);

impl Running<'_> {
    fn begin(worker: &Worker) -> Running<'_> {
        worker.is_idle.store(false, Ordering::SeqCst);
        Running(worker)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.is_idle.store(true, Ordering::SeqCst);
    }
}

/// The job.
pub(crate) fn run_command(order: Order) -> Ran {
    let worker = WORKER.get().expect("the initializer has run");
    // Workers are numbered from 0 as slots are from 1.
    let slot = procpool::worker_index().map_or(1, |index| index + 1);
    let place = Place { number: order.number, slot };
    let words = worker.setup.template.fill(&order.input, place);
    let _running = Running::begin(worker);
    let cpu_before = children_cpu();
    let started = start(&words).and_then(|mut child| {
        limit_cpu(&child, worker.setup.cpu_seconds).inspect_err(|_| {
            // Without its limit it must not run. Errors mean that it has ended already.
            let _ = child.kill();
            let _ = child.wait();
        })?;
        Ok(child)
    });
    let mut child = match started {
        Ok(child) => child,
        Err(error) => return not_started(&words, &error),
    };
    let dir = PathBuf::from(&worker.setup.spill);
    let lines = |to: Stream| {
        let tag = match worker.setup.streaming? {
            Streaming::Tagged => order.input.tag(),
            Streaming::Untagged => Vec::new(),
        };
        Some(LineStream::new(to, tag, &dir))
    };
    let result = Attempt::new(&mut child, &dir, order.number, lines)
        .and_then(|attempt| attempt.follow(&mut child, &worker.stop_asked));
    let ran = result.unwrap_or_else(|error| {
        // Nobody reads its output any more, so it must not go on. Errors mean that it has ended already.
        let _ = child.kill();
        let _ = child.wait();
        let stdout_failed = error.get_ref().and_then(|error| error.downcast_ref::<StdoutFailed>());
        Ran {
            ended: match stdout_failed {
                Some(StdoutFailed(errno)) => Ended::StdoutFailed(*errno),
                None => Ended::OutputLost(format!("its output cannot be kept: {error}")),
            },
            // What was kept.
            stdout: Captured::Spilled,
            stderr: Captured::Spilled,
            cpu: Duration::ZERO,
        }
    });
    Ran { cpu: children_cpu().saturating_sub(cpu_before), ..ran }
}

/// The CPU time of all children that this worker has waited for.
fn children_cpu() -> Duration {
    let Ok(usage) = getrusage(UsageWho::RUSAGE_CHILDREN) else {
        // It fails for invalid arguments alone.
        return Duration::ZERO;
    };
    let micros = |time: TimeVal| u64::try_from(time.num_microseconds()).unwrap_or(0);
    Duration::from_micros(micros(usage.user_time()) + micros(usage.system_time()))
}

fn start(words: &[OsString]) -> io::Result<Child> {
    let (program, arguments) = words.split_first().expect("a command has a first word");
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    #[expect(
        clippy::disallowed_methods,
        reason = "a command is no worker: it shall inherit the group of the worker it runs in"
    )]
    command.spawn()
}

/// Sets RLIMIT_CPU (setrlimit(2)) for a command that has just been started: what it has used by then counts. At the
/// limit it is sent SIGXCPU, and if it ignores that, SIGKILL a second later.
fn limit_cpu(child: &Child, seconds: Option<u64>) -> io::Result<()> {
    let Some(seconds) = seconds else {
        return Ok(());
    };
    let limit = Rlimit { current: Some(seconds), maximum: Some(seconds.saturating_add(1)) };
    prlimit(Some(Pid::from_child(child)), Resource::Cpu, limit)?;
    Ok(())
}

fn not_started(words: &[OsString], error: &io::Error) -> Ran {
    let message = format!("cannot start `{}`: {error}", words[0].display());
    Ran {
        ended: Ended::NotStarted(message),
        stdout: Captured::Inline(Vec::new()),
        stderr: Captured::Inline(Vec::new()),
        cpu: Duration::ZERO,
    }
}

/// A command under way, and its output so far.
struct Attempt {
    ended: OwnedFd,
    stdout: Capture,
    stderr: Capture,
    status: Option<(ExitStatus, Instant)>,
}

impl Attempt {
    fn new(
        child: &mut Child,
        dir: &Path,
        number: u64,
        lines: impl Fn(Stream) -> Option<LineStream>,
    ) -> io::Result<Attempt> {
        let stdout = child.stdout.take().expect("it is piped").into();
        let stderr = child.stderr.take().expect("it is piped").into();
        // The id is the child's: it has not been waited for.
        let capture =
            |pipe, stream| Capture::new(pipe, spill::file(dir, number, stream), lines(stream));
        let pidfd = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
        Ok(Attempt {
            ended: pidfd,
            stdout: capture(stdout, Stream::Stdout)?,
            stderr: capture(stderr, Stream::Stderr)?,
            status: None,
        })
    }

    /// Reads the output until the command has ended and all is read.
    fn follow(mut self, child: &mut Child, stop_asked: &PipeReader) -> io::Result<Ran> {
        while !self.is_over() {
            self.wait(child, stop_asked)?;
        }
        let (status, _) = self.status.expect("it is over");
        let ended = match (status.code(), status.signal()) {
            (Some(code), _) => Ended::Exit(code),
            (None, Some(signal)) => Ended::Signal(signal, status.core_dumped()),
            (None, None) => unreachable!("it has ended, so it has exited or was killed"),
        };
        // The request may have reached the command and not yet our handler. The pool drops the value of a
        // job that it has asked to stop; the files it does not touch.
        if procpool::context().is_some_and(|context| context.is_cancelled()) {
            self.stdout.spill()?;
            self.stderr.spill()?;
        }
        let (stdout, stderr) = (self.stdout.finish()?, self.stderr.finish()?);
        Ok(Ran { ended, stdout, stderr, cpu: Duration::ZERO })
    }

    fn is_over(&self) -> bool {
        let is_open = self.stdout.open().is_some() || self.stderr.open().is_some();
        self.status.is_some_and(|(_, ended_at)| !is_open || ended_at.elapsed() >= LEFT_OPEN)
    }

    /// Waits until something happens, and takes note of it.
    fn wait(&mut self, child: &mut Child, stop_asked: &PipeReader) -> io::Result<()> {
        let mut fds = Vec::with_capacity(4);
        fds.push(PollFd::new(stop_asked.as_fd(), PollFlags::POLLIN));
        for fd in [self.stdout.open(), self.stderr.open()].into_iter().flatten() {
            fds.push(PollFd::new(fd, PollFlags::POLLIN));
        }
        let timeout = match self.status {
            None => {
                fds.push(PollFd::new(self.ended.as_fd(), PollFlags::POLLIN));
                PollTimeout::NONE
            }
            Some((_, ended_at)) => {
                let left = LEFT_OPEN.saturating_sub(ended_at.elapsed()).as_millis() + 1;
                PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO)
            }
        };
        match poll(&mut fds, timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let is_stopping = fds[0].any() == Some(true);
        let has_ended = self.status.is_none() && fds.last().and_then(PollFd::any) == Some(true);
        self.stdout.read()?;
        self.stderr.read()?;
        if is_stopping {
            let _ = (&mut &*stop_asked).read(&mut [0])?;
            // SIGKILL may be next; what is in a file by then is not lost.
            self.stdout.spill()?;
            self.stderr.spill()?;
        }
        if has_ended {
            self.status = Some((child.wait()?, Instant::now()));
        }
        Ok(())
    }
}
