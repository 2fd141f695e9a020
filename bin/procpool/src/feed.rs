//! Where a batch takes its inputs from, one for each time that it asks.

use std::sync::mpsc::{self, Sender};
use std::thread;

use anyhow::Context;

use crate::batch::Event;
use crate::input::Inputs;
use crate::joblog::{Counts, Finished};

/// So many at the most are passed over before it is told: a progress bar shows them.
const SKIPPED_AT_ONCE: u64 = 1000;

/// The inputs that are still to come. Each comes as an event, and after the last one an event that says so.
pub(crate) enum Feed {
    /// No wait for the next one is possible.
    AtHand(Unfinished),
    /// From a thread, one for each unit sent to it.
    Thread(Sender<()>),
    /// The word that there are no more is on its way.
    Ended,
}

impl Feed {
    /// Starts the thread that reads an input each time it is asked to. It may be blocked in a read for ever, so nobody
    /// joins it.
    pub(crate) fn read(mut inputs: Unfinished, events: Sender<Event>) -> anyhow::Result<Feed> {
        let (wanted, asked) = mpsc::channel();
        let read = move || {
            for () in asked {
                if inputs.send_next(&events) == More::No {
                    return;
                }
            }
        };
        thread::Builder::new()
            .name("inputs".into())
            .spawn(read)
            .context("cannot start the thread that reads inputs")?;
        Ok(Feed::Thread(wanted))
    }

    /// Asks for the next input.
    pub(crate) fn ask(&mut self, events: &Sender<Event>) {
        match self {
            Feed::AtHand(inputs) => {
                if inputs.send_next(events) == More::No {
                    *self = Feed::Ended;
                }
            }
            // The reader has gone only if it has said that there are no more inputs.
            Feed::Thread(wanted) => drop(wanted.send(())),
            Feed::Ended => {}
        }
    }
}

/// Inputs without those that an earlier batch has finished.
pub(crate) struct Unfinished {
    pub(crate) inputs: Inputs,
    pub(crate) finished: Finished,
}

/// Whether it is worth asking again.
#[derive(Debug, PartialEq, Eq)]
enum More {
    Perhaps,
    No,
}

impl Unfinished {
    /// Sends the next one that is to be run, and before it how many are not.
    fn send_next(&mut self, events: &Sender<Event>) -> More {
        let mut skipped = Counts::default();
        let next = loop {
            let next = self.inputs.next();
            let is_finished = match &next {
                Some(Ok(input)) => self.finished.take(input, &mut skipped),
                _ => false,
            };
            let is_told = skipped.sum() > 0 && (!is_finished || skipped.sum() == SKIPPED_AT_ONCE);
            if is_told && events.send(Event::Skipped(std::mem::take(&mut skipped))).is_err() {
                return More::No;
            }
            if !is_finished {
                break next;
            }
        };
        let (event, more) = match next {
            Some(Ok(input)) => (Event::Input(input), More::Perhaps),
            Some(Err(error)) => (Event::NoMoreInputs(Some(error)), More::No),
            None => (Event::NoMoreInputs(None), More::No),
        };
        // The batch is over if nobody receives it.
        events.send(event).map_or(More::No, |()| more)
    }
}
