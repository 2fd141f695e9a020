//! How a batch ends early, and with which exit code it ends.

use super::{Batch, InputState, Stage};
use crate::exit_code;
use crate::halt::When;
use crate::joblog::Counts;
use crate::report;
use crate::work::Work;

impl<W: Work> Batch<'_, W> {
    pub(super) fn halt_if_reached(&mut self) {
        let reached = self
            .options
            .halt
            .and_then(|halt| Some((halt, halt.is_reached(self.tally, self.total)?)));
        let Some((halt, reason)) = reached.filter(|_| self.stage == Stage::Working) else {
            return;
        };
        self.halted = Some(halt);
        let running = self.start_nothing_new();
        let fate = match halt.when {
            When::Soon => "finished",
            When::Now => "stopped",
        };
        report::say(format_args!("halted: {reason}; {running} running jobs are {fate}"));
        if halt.when == When::Now {
            self.stop_running();
        }
    }

    /// Answers how many jobs run.
    fn start_nothing_new(&mut self) -> usize {
        self.stage = Stage::Finishing;
        // Each that will never run ends as an event like any other.
        let cancelled = self.active.values().filter(|job| job.future.cancel()).count();
        self.active.len() - cancelled
    }

    fn stop_running(&mut self) {
        self.stage = Stage::Stopping;
        for active in self.active.values() {
            active.future.abort();
        }
    }

    pub(super) fn interrupt(&mut self) {
        match self.stage {
            Stage::Working => {
                let running = self.start_nothing_new();
                report::say(format_args!(
                    "interrupted: nothing new is started, {running} running jobs are finished; \
                     interrupt again to stop them"
                ));
            }
            Stage::Finishing => {
                report::say("interrupted again: stopping what runs; once more to kill it");
                self.stop_running();
            }
            // The third is the handler's own affair.
            Stage::Stopping => {}
        }
    }

    pub(super) fn exit_code(&self) -> u8 {
        match self.skipped {
            Counts { succeeded: 0, failed: 0 } => {}
            Counts { succeeded, failed: 0 } => {
                report::say(format_args!("skipped {succeeded} jobs that had succeeded"));
            }
            Counts { succeeded, failed } => report::say(format_args!(
                "skipped {succeeded} jobs that had succeeded and {failed} that had failed \
                 (`--resume-failed` runs these again)"
            )),
        }
        let has_more = self.inputs == InputState::Open;
        let was_cut = self.not_run > 0 || has_more || self.stage == Stage::Stopping;
        if let Some(halt) = self.halted {
            if has_more {
                report::say(format_args!("what follows input {} was not run", self.count));
            }
            return if halt.is_success() {
                exit_code::SUCCESS
            } else {
                exit_code::of_failed(self.failed)
            };
        }
        if self.stage != Stage::Working && was_cut {
            if has_more {
                report::say(format_args!(
                    "interrupted: what follows input {} was not run",
                    self.count
                ));
            }
            return exit_code::INTERRUPTED;
        }
        if self.broken.is_some() {
            if has_more {
                report::say(format_args!("what follows input {} was not run", self.count));
            }
            return exit_code::SYSTEM;
        }
        match self.inputs {
            InputState::Failed => exit_code::INPUT,
            _ if self.count == 0 => no_input(),
            _ => exit_code::of_failed(self.failed),
        }
    }
}

/// Says that there is no input; answers the exit code.
pub(crate) fn no_input() -> u8 {
    report::say("there is no input, so there is nothing to do");
    exit_code::NO_INPUT
}
