//! The signals that a batch obeys: SIGINT and SIGTERM, of which the first two are events and the third ends the program;
//! and those of job control, SIGTSTP (Ctrl-Z) and SIGCONT (`fg`), which stop the jobs and the clocks with the program.

use std::fs;
use std::os::fd::AsFd;
use std::process;
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
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

/// Leaves SIGHUP alone if it is ignored, as under nohup(1): a handler for it would replace that. Call it before there is
/// a second thread; each inherits the mask.
pub(crate) fn respect_nohup() {
    if is_ignored(Signal::SIGHUP) {
        // The call fails for invalid arguments alone.
        let _ = SigSet::from(Signal::SIGHUP).thread_block();
    }
}

/// Lets a write beyond the limit to a file's size (`ulimit -f`) fail, as on a full disk, and not end the program. Call it before
/// there is a second thread. Jobs hear the signal as always.
pub(crate) fn outlive_file_size_limit() {
    // As above.
    let _ = SigSet::from(Signal::SIGXFSZ).thread_block();
}

/// Whether this program was started with the signal ignored.
fn is_ignored(signal: Signal) -> bool {
    // Read once: nothing here has a signal ignored later that anyone asks for.
    static IGNORED: OnceLock<u64> = OnceLock::new();
    let mask = IGNORED.get_or_init(|| {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        status
            .lines()
            .find_map(|line| line.strip_prefix("SigIgn:"))
            .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
            .unwrap_or(0)
    });
    mask & (1 << (signal as i32 - 1)) != 0
}

/// The channel of a batch's events. Each of the first two signals to end is one of them.
///
/// The third ends the program from the thread that waits for signals: the batch may be blocked in a write to a pipe
/// that nobody reads. The workers and all that is in their groups are killed as the program ends.
///
/// All that is obeyed is blocked in every thread, so call it before there is a second one: of what is to be done a
/// handler could do nothing. Workers do not inherit that.
pub(crate) fn events(spill: Option<Spill>) -> anyhow::Result<Events> {
    let (sender, receiver) = mpsc::channel();
    let jobs = Jobs::default();
    let obeyed = obeyed();
    obeyed.thread_block().context("cannot block signals")?;
    let signals = SignalFd::with_flags(&obeyed, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .context("cannot wait for signals")?;
    let watch =
        Watch { signals, jobs: jobs.clone(), events: sender.clone(), spill, interruptions: 0 };
    thread::Builder::new()
        .name("signals".into())
        .spawn(move || watch.obey())
        .context("cannot start the thread that waits for signals")?;
    Ok(Events { sender, receiver, jobs })
}

/// The signals that a batch obeys.
fn obeyed() -> SigSet {
    let mut signals = SigSet::from(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    if !is_ignored(Signal::SIGHUP) {
        signals.add(Signal::SIGHUP);
    }
    // A shell without job control has its children ignore it.
    if !is_ignored(Signal::SIGTSTP) {
        signals.add(Signal::SIGTSTP);
        signals.add(Signal::SIGCONT);
    }
    signals
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

/// What the thread knows that waits for signals. Not the batch: that may be blocked in a write, and after Ctrl-Z a shell
/// waits until every program of a pipeline has stopped.
struct Watch {
    signals: SignalFd,
    jobs: Jobs,
    events: Sender<Event>,
    spill: Option<Spill>,
    /// How often the batch was to end.
    interruptions: u32,
}

impl Watch {
    fn obey(mut self) {
        loop {
            let mut fds = [PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
            // An error is an interruption.
            let _ = poll(&mut fds, PollTimeout::NONE);
            let came = take(&self.signals);
            self.interrupt(came.interruptions);
            if came.job_control == Some(Signal::SIGTSTP) {
                self.suspend();
            }
        }
    }

    fn interrupt(&mut self, times: u32) {
        for _ in 0..times {
            self.interruptions += 1;
            if self.interruptions < 3 {
                // The batch is over if nobody receives it.
                let _ = self.events.send(Event::Interrupted);
                continue;
            }
            progress::clear();
            report::say("interrupted three times: killed what was running");
            if let Some(spill) = &self.spill {
                spill.remove();
            }
            process::exit(exit_code::INTERRUPTED.into());
        }
    }

    fn suspend(&mut self) {
        let begun = Instant::now();
        let pool = self.jobs.pool();
        if let Some(pool) = &pool {
            pool.pause();
        }
        // The bar is off the screen meanwhile, and nobody brings it back before the end.
        let interruptions = progress::beside(|| stop(&self.signals));
        // The batch is over if nobody receives it.
        let _ = self.events.send(Event::WentOn(begun.elapsed()));
        if let Some(pool) = pool {
            pool.resume();
        }
        self.interrupt(interruptions);
    }
}

/// What signals have said.
#[derive(Debug, Default)]
struct Came {
    interruptions: u32,
    /// The last of SIGTSTP and SIGCONT, each of which discards the other.
    job_control: Option<Signal>,
}

/// Takes all signals that have come.
fn take(signals: &SignalFd) -> Came {
    let mut came = Came::default();
    while let Ok(Some(info)) = signals.read_signal() {
        match Signal::try_from(info.ssi_signo as i32) {
            Ok(signal @ (Signal::SIGTSTP | Signal::SIGCONT)) => came.job_control = Some(signal),
            _ => came.interruptions += 1,
        }
    }
    came
}

/// Stops this program until SIGCONT, unless that has come already. Answers how often it was interrupted meanwhile.
fn stop(signals: &SignalFd) -> u32 {
    let before = take(signals);
    if before.job_control == Some(Signal::SIGCONT) {
        return before.interruptions;
    }
    // By the signal's own default action: the shell tells it from others.
    let stop = SigSet::from(Signal::SIGTSTP);
    let _ = stop.thread_unblock();
    let _ = raise(Signal::SIGTSTP);
    let _ = stop.thread_block();
    let mut after = take(signals);
    let mut interruptions = before.interruptions + after.interruptions;
    // The kernel does not let it stop a program that no shell could continue. Who sent it can.
    if after.job_control != Some(Signal::SIGCONT) {
        let _ = raise(Signal::SIGSTOP);
        after = take(signals);
        interruptions += after.interruptions;
    }
    interruptions
}
