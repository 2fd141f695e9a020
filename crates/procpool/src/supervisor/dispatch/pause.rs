//! A pause, as the dispatch knows it: nothing is handed out, and no job's time runs.

use super::Dispatch;

/// Whether jobs run. At most one change is under way at a time, so that who asked for it can wait for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pace {
    Going,
    /// The supervisor was asked to stop the workers.
    Pausing,
    Paused {
        since: u64,
    },
    /// The supervisor was asked to let them go on.
    Unpausing {
        since: u64,
    },
    /// The pool has ended.
    Ended,
}

impl Dispatch {
    /// The workers are stopped.
    pub(crate) fn note_paused(&mut self, now: u64) {
        if self.pace == Pace::Pausing {
            self.pace = Pace::Paused { since: now };
        }
    }

    /// The workers go on, asked or because the pool ends. What they run has so much more time, and nobody has noted
    /// until when: the supervisor is to look at once.
    pub(crate) fn note_unpaused(&mut self, now: u64) {
        let (Pace::Paused { since } | Pace::Unpausing { since }) = self.pace else {
            return;
        };
        self.pace = Pace::Going;
        for channel in self.channels.iter_mut().flatten() {
            channel.note_pause(now.saturating_sub(since));
        }
        self.look_at = self.look_at.min(now);
    }
}
