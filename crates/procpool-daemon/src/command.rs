//! Commands as jobs: the built-in task, as it runs in a worker of the daemon's own program.
//!
//! The command inherits the worker's process group, so what stops the worker's group stops the command and what
//! it has started. SIGTERM to the group is how a job is asked to stop: the worker outlives it for as long as the
//! command needs to clean up. What the command says goes into files, which outlive both: [`scribe`].

mod scribe;

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::getpgrp;
use serde::{Deserialize, Serialize};

use scribe::Scribe;

use crate::job::{Command, CommandEnd, JobId};
use crate::protocol::Stream;

/// What every worker knows.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Setup {
    /// The directory for what commands say.
    pub(crate) logs: OsString,
    /// How much of each stream is kept.
    pub(crate) log_bytes: u64,
}

/// One attempt of one job.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) id: JobId,
    pub(crate) command: Command,
}

static SETUP: OnceLock<Setup> = OnceLock::new();
/// Whether a command runs in this worker.
static IS_RUNNING: AtomicBool = AtomicBool::new(false);

/// The file for a stream of a job. A thousand jobs share a directory: none gets too long for tools.
pub(crate) fn log_path(logs: &Path, id: JobId, stream: Stream) -> PathBuf {
    let extension = match stream {
        Stream::Stdout => "out",
        Stream::Stderr => "err",
    };
    logs.join((id.0 / 1000).to_string()).join(format!("{id}.{extension}"))
}

/// The worker's initializer.
pub(crate) fn prepare(setup: Setup) -> Result<(), String> {
    if SETUP.set(setup).is_err() {
        return Err("a worker is prepared once".into());
    }
    ctrlc::set_handler(on_stop).map_err(|error| format!("cannot handle signals: {error}"))
}

/// On SIGTERM, which the whole group has been sent. The command acts on it as it likes; without one, the worker
/// ends as if it had no handler.
fn on_stop() {
    if !IS_RUNNING.load(Ordering::SeqCst) {
        // It fails if there is no such group, and then there is nothing to kill.
        let _ = killpg(getpgrp(), Signal::SIGKILL);
    }
}

/// The job.
pub(crate) fn run(order: Order) -> CommandEnd {
    let setup = SETUP.get().expect("the initializer has run");
    let words = &order.command.words;
    let program = words.first().map_or(OsStr::new(""), |word| OsStr::from_bytes(word));
    IS_RUNNING.store(true, Ordering::SeqCst);
    let logs = Path::new(&setup.logs);
    let result = start(program, &order)
        .and_then(|child| Scribe::follow(child, logs, order.id, setup.log_bytes));
    IS_RUNNING.store(false, Ordering::SeqCst);
    match result {
        Ok(status) => end(status),
        Err(error) => {
            CommandEnd::NotStarted(format!("cannot start `{}`: {error}", program.display()))
        }
    }
}

fn start(program: &OsStr, order: &Order) -> io::Result<Child> {
    let os = |bytes: &[u8]| OsStr::from_bytes(bytes).to_owned();
    let Command { words, dir, env } = &order.command;
    let mut command = std::process::Command::new(program);
    command.args(words.iter().skip(1).map(|word| os(word)));
    command.envs(env.iter().map(|(name, value)| (os(name), os(value))));
    command.current_dir(os(dir));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    #[expect(
        clippy::disallowed_methods,
        reason = "a command is no worker: it shall inherit the group of the worker it runs in"
    )]
    command.spawn()
}

fn end(status: ExitStatus) -> CommandEnd {
    match (status.code(), status.signal()) {
        (Some(code), _) => CommandEnd::Exit(code),
        (None, Some(signal)) => CommandEnd::Signal(signal, status.core_dumped()),
        (None, None) => unreachable!("it has ended, so it has exited or was killed"),
    }
}
