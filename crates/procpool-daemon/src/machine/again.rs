//! Whether a job is tried again, and when.

use std::time::Duration;

use procpool::executor::Verdict;

use crate::job::{CommandEnd, Ending, Outcome};

/// The pause before the first retry; twice as long before each further one.
const BACKOFF_FIRST: Duration = Duration::from_millis(100);
/// The longest one: a job that fails for want of something else is tried again soon after that is back.
const BACKOFF_MAX: Duration = Duration::from_secs(60);
/// How often a job that no worker could be started for is tried once more: for 25 seconds, in which a program that is
/// being replaced is back, and after which whoever waits is told what is wrong.
pub(super) const UNSTARTED_MAX: u32 = 8;

/// How long a job waits before it is tried once more, after so many attempts.
pub(super) fn backoff(attempts: u32) -> Duration {
    let doublings = attempts.saturating_sub(1).min(16);
    (BACKOFF_FIRST * (1 << doublings)).min(BACKOFF_MAX)
}

/// Whether another attempt may end otherwise. What a task says is its value, and a limit that was reached will be
/// reached again.
pub(super) fn may_help(outcome: &Outcome) -> bool {
    match outcome {
        Outcome::Command(CommandEnd::Exit(code)) => *code != 0,
        Outcome::Command(CommandEnd::Signal(..)) => true,
        Outcome::Error(verdict) => matches!(verdict, Verdict::Died { .. }),
        Outcome::Command(CommandEnd::NotStarted(_))
        | Outcome::Json(_)
        | Outcome::Binary(_)
        | Outcome::Nothing => false,
    }
}

/// Whether an attempt came to nothing before the job was sent: no worker could be started for it.
pub(super) fn never_ran(ending: &Ending) -> bool {
    matches!(ending.outcome, Outcome::Error(Verdict::Broken(_))) && ending.pid.is_none()
}

pub(super) fn unstarted(ending: &Ending) -> String {
    match &ending.outcome {
        Outcome::Error(Verdict::Broken(why)) => format!("no worker could be started: {why}"),
        _ => "no worker could be started".into(),
    }
}

/// The end of a job that has killed its last worker.
pub(super) fn quarantined(ending: Ending, deaths: u32) -> Ending {
    match ending.outcome {
        Outcome::Error(last) => {
            let last = Box::new(last);
            let outcome = Outcome::Error(Verdict::Quarantined { attempts: deaths, last });
            Ending { outcome, ..ending }
        }
        _ => ending,
    }
}
