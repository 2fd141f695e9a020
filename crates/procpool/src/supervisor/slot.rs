//! One slot's life as one enum.

/// The place that a worker fills. Whether a serving worker is idle or busy is for the dispatch to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Slot {
    /// No worker.
    Empty,
    /// A worker that is not ready.
    Starting {
        /// When it is killed if it is not ready by then.
        give_up_at: u64,
    },
    /// A worker that takes jobs.
    Serving,
    /// A worker that takes no jobs now.
    Stopping(Stage),
    /// No worker, and none is started: too many that were abandoned still live.
    Lost,
}

/// What a process is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// To be the worker of this slot.
    Slot(usize),
    /// To be ready in this place.
    Spare(usize),
    /// To fork others.
    Server,
    /// For nothing any more: it was given up before it was there.
    Nowhere,
}

/// How far the stopping of a worker, or of its job, has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Its job was asked to stop; if it returns, the worker stays.
    Asked {
        /// When SIGTERM follows.
        terminate_at: u64,
        /// When SIGKILL follows.
        kill_at: u64,
    },
    /// It was sent SIGTERM.
    Terminated {
        /// When SIGKILL follows.
        kill_at: u64,
    },
    /// It was told to exit.
    Leaving {
        /// When SIGKILL follows.
        kill_at: u64,
    },
    /// It was sent SIGKILL.
    Killed {
        /// When it is abandoned if it has not ended by then.
        abandon_at: u64,
    },
}

impl Slot {
    /// A worker that is starting has so much longer.
    pub(crate) fn wait_longer(&mut self, by: u64) {
        if let Slot::Starting { give_up_at } = self {
            *give_up_at = give_up_at.saturating_add(by);
        }
    }

    /// True if no process is here.
    pub(crate) fn is_vacant(&self) -> bool {
        matches!(self, Slot::Empty | Slot::Lost)
    }

    /// True if a process is here that was sent SIGKILL.
    pub(crate) fn is_killed(&self) -> bool {
        matches!(self, Slot::Stopping(Stage::Killed { .. }))
    }

    /// When something is due.
    pub(crate) fn deadline(&self) -> Option<u64> {
        match self {
            Slot::Empty | Slot::Serving | Slot::Lost => None,
            Slot::Starting { give_up_at } => Some(*give_up_at),
            Slot::Stopping(Stage::Asked { terminate_at, .. }) => Some(*terminate_at),
            Slot::Stopping(Stage::Terminated { kill_at } | Stage::Leaving { kill_at }) => {
                Some(*kill_at)
            }
            Slot::Stopping(Stage::Killed { abandon_at }) => Some(*abandon_at),
        }
    }
}
