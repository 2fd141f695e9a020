//! Where a batch takes its inputs from, one for each time that it asks.

use std::sync::mpsc::{self, Sender};
use std::thread;

use anyhow::Context;

use crate::batch::Event;
use crate::input::Inputs;

/// The inputs that are still to come. Each comes as an event, and after the last one an event that says so.
pub(crate) enum Feed {
    /// No wait for the next one is possible.
    AtHand(Inputs),
    /// From a thread, one for each unit sent to it.
    Thread(Sender<()>),
    /// The word that there are no more is on its way.
    Ended,
}

impl Feed {
    /// Starts the thread that reads an input each time it is asked to. It may be blocked in a read for ever, so nobody
    /// joins it.
    pub(crate) fn read(mut inputs: Inputs, events: Sender<Event>) -> anyhow::Result<Feed> {
        let (wanted, asked) = mpsc::channel();
        let read = move || {
            for () in asked {
                let event = next_of(&mut inputs);
                let is_last = matches!(event, Event::NoMoreInputs(_));
                // The batch is over if nobody receives it.
                if events.send(event).is_err() || is_last {
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
                let event = next_of(inputs);
                if matches!(event, Event::NoMoreInputs(_)) {
                    *self = Feed::Ended;
                }
                // Who asks holds the receiver.
                let _ = events.send(event);
            }
            // The reader has gone only if it has said that there are no more inputs.
            Feed::Thread(wanted) => drop(wanted.send(())),
            Feed::Ended => {}
        }
    }
}

fn next_of(inputs: &mut Inputs) -> Event {
    match inputs.next() {
        Some(Ok(input)) => Event::Input(input),
        Some(Err(error)) => Event::NoMoreInputs(Some(error)),
        None => Event::NoMoreInputs(None),
    }
}
