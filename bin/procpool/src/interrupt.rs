//! SIGINT and SIGTERM: the first two are events for the batch, the third ends the program.

use std::fs;
use std::process;
use std::sync::mpsc;

use anyhow::Context;
use nix::sys::signal::{SigSet, Signal};

use crate::batch::{Event, Events};
use crate::exit_code;
use crate::progress;
use crate::report;
use crate::spill::Spill;

/// Leaves SIGHUP alone if it is ignored, as under nohup(1): the handler for the other two would replace
/// that. Call it before there is a second thread; each inherits the mask.
pub(crate) fn respect_nohup() {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    if ignored.is_some_and(|mask| mask & (1 << (Signal::SIGHUP as i32 - 1)) != 0) {
        // The call fails for invalid arguments alone.
        let _ = SigSet::from(Signal::SIGHUP).thread_block();
    }
}

/// The channel of a batch's events. Each of the first two signals is one of them.
///
/// The third ends the program from the handler's thread: the batch may be blocked in a write to a pipe
/// that nobody reads. The workers and all that is in their groups are killed as the program ends.
pub(crate) fn events(spill: Option<Spill>) -> anyhow::Result<Events> {
    let (sender, receiver) = mpsc::channel();
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
    Ok(Events { sender, receiver })
}
