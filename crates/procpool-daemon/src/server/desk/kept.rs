//! What is done when the journal has kept what an event has changed, or found what was asked of it: jobs begin and are
//! stopped, and who waits is answered.

use std::fs;

use procpool::executor::Verdict;

use super::{Desk, Purpose, Wanted};
use crate::command::log_path;
use crate::engine::Prepared;
use crate::job::{Ending, JobId, Outcome, State, Terms, Work};
use crate::journal::{Found, Kept, Query};
use crate::machine::{Because, Event, Then};
use crate::protocol::{Cancelled, Refusal, Response, Stream};

impl Desk {
    /// The journal has kept this.
    pub(in crate::server) fn kept(&mut self, kept: Kept<Purpose>) {
        self.under_way -= 1;
        let Kept { found, purpose } = kept;
        let mut found = found.into_iter();
        match purpose {
            Purpose::Then { then, known, answer } => {
                let mut works = found.map(|found| match found {
                    Found::Work(Some((record, work))) => (record.terms, work),
                    other => {
                        unreachable!("a job that starts is kept, and was looked for: {other:?}")
                    }
                });
                let mut works = known.into_iter().chain(&mut works);
                for then in then {
                    self.follow(then, &mut works);
                }
                if let Some((asker, response)) = answer {
                    self.reply(asker, response);
                }
                self.begin();
            }
            Purpose::Answer(asker) => {
                let response = match found.next() {
                    Some(Found::Records(records)) => {
                        let records = records.into_iter().map(|record| Some(self.shown(record?)));
                        Response::Records(records.collect())
                    }
                    Some(Found::Page(records)) => Response::Page(
                        records.into_iter().map(|record| self.shown(record)).collect(),
                    ),
                    other => unreachable!("nobody asks for {other:?} to answer with it"),
                };
                self.reply(asker, response);
            }
            Purpose::Wait(asker, id) => {
                let response = match found.next() {
                    Some(Found::Record(Some(record))) => Response::Ended(id, record.life.state()),
                    Some(Found::Ending(Some((state, ending)))) => {
                        Response::Ending(id, state, Box::new(ending))
                    }
                    _ => Response::Refused(Refusal::NoJob(id)),
                };
                self.reply(asker, response);
            }
            Purpose::Cancelled(asker, id) => {
                let response = match found.next() {
                    Some(Found::Record(Some(_))) => Response::Cancel(Cancelled::Ended),
                    _ => Response::Refused(Refusal::NoJob(id)),
                };
                self.reply(asker, response);
            }
            Purpose::Consider(candidate) => self.reconsider(*candidate, found.next()),
            Purpose::Retry(asker, id) => match found.next() {
                Some(Found::Work(Some((record, _)))) => self.retry(asker, record),
                _ => self.refuse(asker, Refusal::NoJob(id)),
            },
            Purpose::Forget(asker, id) => match found.next() {
                Some(Found::Record(Some(_))) => self.forget(asker, id),
                _ => self.refuse(asker, Refusal::NoJob(id)),
            },
            Purpose::Forgotten(asker, id) => {
                self.forgetting.remove(&id);
                for stream in [Stream::Stdout, Stream::Stderr] {
                    // Most jobs have said nothing, and so have no file.
                    let _ = fs::remove_file(log_path(&self.logs, id, stream));
                }
                self.reply(asker, Response::Done);
            }
            Purpose::Retire => {
                if let Some(Found::Stale(records)) = found.next() {
                    self.expire(records);
                }
            }
            Purpose::Expired(ids) => {
                for id in ids {
                    self.forgetting.remove(&id);
                }
            }
        }
    }

    /// Does what is to be done. `works` are those of the jobs that start.
    fn follow(&mut self, then: Then, works: &mut impl Iterator<Item = (Terms, Work)>) {
        match then {
            Then::Start { id, attempt } => {
                let (terms, work) = works.next().expect("there is one for each that starts");
                if self.machine.starts(&terms.queue) {
                    self.engine.prepare(Prepared { id, attempt, terms, work });
                } else {
                    self.handle(Event::TakenBack { id, attempt, because: Because::Closed });
                }
            }
            Then::Over { id, attempt } => self.engine.over(id, attempt),
            Then::Stop { id } => match self.engine.take_back(id) {
                None => self.engine.stop(id),
                Some(attempt) => {
                    let outcome = Outcome::Error(Verdict::Cancelled { started: false });
                    let ending = Box::new(Ending { outcome, ..Ending::nothing() });
                    self.handle(Event::Ended { id, attempt, ending });
                }
            },
            Then::Tell { id, state } => self.tell(id, state),
        }
    }

    /// Begins what has a slot now.
    pub(super) fn begin(&mut self) {
        if self.failure.is_none() {
            match self.engine.begin() {
                Ok(count) => self.history.count_started(count),
                Err(error) => self.failure = Some(error),
            }
        }
    }

    /// What of a queue has a slot and has not begun waits again.
    pub(super) fn take_back_all(&mut self, queue: &str) {
        for (id, attempt) in self.engine.take_back_all(queue) {
            self.handle(Event::TakenBack { id, attempt, because: Because::Closed });
        }
    }

    fn tell(&mut self, id: JobId, state: State) {
        *self.ended.entry(state.word()).or_default() += 1;
        self.works.take(id);
        self.serve_followers(id);
        self.history.note_ended(id, state);
        for (asker, wanted) in self.waits.take(id) {
            match wanted {
                Wanted::State => self.reply(asker, Response::Ended(id, state)),
                // For each by itself: it can be long, and is not to be there as often as it is wanted.
                Wanted::Ending => self.ask(Query::Ending(id), Purpose::Wait(asker, id)),
            }
        }
    }
}
