//! Whether a worker gets on with its jobs, for those who wait there behind another.

use super::{Intake, PoolChannel};
use crate::supervisor::dispatch::SHORT_NS;

/// What the job at hand has shown itself to be.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum AtHand {
    /// As those before it, as far as is known.
    Usual,
    /// It takes long, whatever those before it took.
    Long,
}

impl PoolChannel {
    /// True if its jobs are short, as far as is known, and it can have any number of them.
    #[inline]
    pub(in crate::supervisor) fn is_brisk(&self) -> bool {
        self.average_ns <= SHORT_NS
            && self.at_hand == AtHand::Usual
            && self.intake == Intake::Open
            && self.quota.is_none()
    }

    /// It was found at a job that takes long; until that ends, it is not brisk.
    pub(in crate::supervisor) fn set_long(&mut self) {
        self.at_hand = AtHand::Long;
    }

    /// The thread that runs its jobs, as the worker says.
    pub(in crate::supervisor) fn thread(&self) -> u32 {
        self.end.block().thread()
    }
}
