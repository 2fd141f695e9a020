//! The signals that a batch obeys: SIGINT and SIGTERM, of which the first two are events and the third ends the program;
//! and those of job control, SIGTSTP (Ctrl-Z) and SIGCONT (`fg`), which stop the jobs and the clocks with the program.

use std::fs;
use std::os::fd::AsFd;
use std::process;
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::Instant;

use anyhow::Context;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, raise};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use procpool::ProcessPool;

use crate::batch::{Event, Events};
use crate::exit_code;
use crate::progress;
use crate::report;
use crate::spill::Spill;

/// Leaves SIGHUP alone if it is ignored, as under nohup(1): the handler for the other two would replace
/// that. Call it before there is a second thread; each inherits the mask.
pub(crate) fn respect_nohup() {
    if is_ignored(Signal::SIGHUP) {
        // The call fails for invalid arguments alone.
        let _ = SigSet::from(Signal::SIGHUP).thread_block();
    }
}

fn is_ignored(signal: Signal) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    ignored.is_some_and(|mask| mask & (1 << (signal as i32 - 1)) != 0)
}

/// The channel of a batch's events. Each of the first two signals is one of them.
///
/// The third ends the program from the handler's thread: the batch may be blocked in a write to a pipe
/// that nobody reads. The workers and all that is in their groups are killed as the program ends.
///
/// Call it before there is a second thread.
pub(crate) fn events(spill: Option<Spill>) -> anyhow::Result<Events> {
    let (sender, receiver) = mpsc::channel();
    let jobs = Jobs::default();
    // A shell without job control has its children ignore it.
    if !is_ignored(Signal::SIGTSTP) {
        obey_job_control(jobs.clone(), sender.clone()).context("cannot wait for SIGTSTP")?;
    }
    let events = sender.clone();
    let mut count = 0;
    let on_signal = move || {
        count += 1;
        if count < 3 {
            // The batch is over if nobody receives it.
            let _ = events.send(Event::Interrupted);
            return;
        }
        progress::clear();
        report::say("interrupted three times: killed what was running");
        if let Some(spill) = &spill {
            spill.remove();
        }
        process::exit(exit_code::INTERRUPTED.into());
    };
    ctrlc::set_handler(on_signal).context("cannot handle SIGINT and SIGTERM")?;
    Ok(Events { sender, receiver, jobs })
}

/// What Ctrl-Z stops, besides the program: nothing, until there is a pool.
#[derive(Debug, Clone, Default)]
pub(crate) struct Jobs(Arc<Mutex<Weak<ProcessPool>>>);

impl Jobs {
    pub(crate) fn are_in(&self, pool: &Arc<ProcessPool>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(pool);
    }

    fn pool(&self) -> Option<Arc<ProcessPool>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).upgrade()
    }
}

/// Starts the thread that waits for SIGTSTP. Not the batch: that may be blocked in a write, and a shell waits until
/// every program of a pipeline has stopped.
///
/// Both signals are blocked in every thread: a handler could do nothing of what is to be done.
fn obey_job_control(jobs: Jobs, events: Sender<Event>) -> anyhow::Result<()> {
    let mut mask = SigSet::from(Signal::SIGTSTP);
    mask.add(Signal::SIGCONT);
    mask.thread_block()?;
    let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    let obey = move || {
        loop {
            let mut fds = [PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
            // An error is an interruption.
            let _ = poll(&mut fds, PollTimeout::NONE);
            if takes(&signals, Signal::SIGTSTP) {
                suspend(&jobs, &events, &signals);
            }
        }
    };
    thread::Builder::new().name("job control".into()).spawn(obey)?;
    Ok(())
}

/// Takes all signals that have come; true if this one is the last of them. (One of the two discards the other.)
fn takes(signals: &SignalFd, wanted: Signal) -> bool {
    let mut last = None;
    while let Ok(Some(info)) = signals.read_signal() {
        last = Some(info.ssi_signo);
    }
    last == Some(wanted as u32)
}

fn suspend(jobs: &Jobs, events: &Sender<Event>, signals: &SignalFd) {
    let begun = Instant::now();
    let pool = jobs.pool();
    if let Some(pool) = &pool {
        pool.pause();
    }
    // The bar is off the screen meanwhile, and nobody brings it back before the end.
    progress::beside(|| stop(signals));
    // The batch is over if nobody receives it.
    let _ = events.send(Event::WentOn(begun.elapsed()));
    if let Some(pool) = pool {
        pool.resume();
    }
}

/// Stops this program until SIGCONT, unless that has come already.
fn stop(signals: &SignalFd) {
    if takes(signals, Signal::SIGCONT) {
        return;
    }
    // By the signal's own default action: the shell tells it from others.
    let stop = SigSet::from(Signal::SIGTSTP);
    let _ = stop.thread_unblock();
    let _ = raise(Signal::SIGTSTP);
    let _ = stop.thread_block();
    // The kernel does not let it stop a program that no shell could continue. Who sent it can.
    if !takes(signals, Signal::SIGCONT) {
        let _ = raise(Signal::SIGSTOP);
        takes(signals, Signal::SIGCONT);
    }
}
