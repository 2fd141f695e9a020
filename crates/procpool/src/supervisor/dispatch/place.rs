//! Where a job is, as its cell notes it.

use std::sync::atomic::Ordering;

use procpool_wire::block::TICKETS_MAX;

use crate::cell::JobCell;

/// The place of a job, as its cell notes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Nowhere,
    /// In the queue, with this number.
    Queued(u64),
    /// At the worker of this slot, with this index in the claim table.
    Sent(usize, u32),
    /// Taken off the books before it started: its cell is about to be told, or has been.
    Cancelled,
}

const PLACE_TAG: u32 = 62;
const PLACE_SLOT: u32 = 32;

impl Place {
    pub(super) fn of(cell: &JobCell) -> Place {
        let word = cell.place.load(Ordering::Relaxed);
        let rest = word & ((1 << PLACE_TAG) - 1);
        match word >> PLACE_TAG {
            1 => Place::Queued(rest),
            2 => Place::Sent((rest >> PLACE_SLOT) as usize, rest as u32),
            3 => Place::Cancelled,
            _ => Place::Nowhere,
        }
    }

    pub(super) fn note(self, cell: &JobCell) {
        let word = match self {
            Place::Nowhere => 0,
            Place::Queued(sequence) => 1 << PLACE_TAG | sequence,
            Place::Sent(slot, index) => {
                2 << PLACE_TAG | (slot as u64) << PLACE_SLOT | u64::from(index)
            }
            Place::Cancelled => 3 << PLACE_TAG,
        };
        cell.place.store(word, Ordering::Relaxed);
    }
}

/// More jobs than this are never at one worker; a place in a cell has room for the number.
const _: () = assert!(TICKETS_MAX < 1 << PLACE_SLOT);
