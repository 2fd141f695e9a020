//! Answers requests: turns them into events for the machine, and what follows from those into work for the journal,
//! for pools, and into answers. It knows clients by number only and does no I/O with them, or with anything else.

mod submit;

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::mem;
use std::path::PathBuf;
use std::process;

use crate::command::log_path;
use crate::config::Config;
use crate::engine::Engine;
use crate::job::{Attempt, JobId, JobSpec, Moment, State, Who};
use crate::journal::{Entry, Found, Journal, Kept, Query};
use crate::machine::{Answer, Effects, Event, Machine, Then};
use crate::protocol::{
    Cancelled, LOG_BYTES_MAX, PAGE_MAX, Pong, Refusal, Request, Response, Stream,
};

/// The most jobs that one request may name.
const IDS_MAX: usize = 1000;

/// Who asked, and under which number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Asker {
    /// The connection.
    pub(super) client: u64,
    /// Its request.
    pub(super) number: u64,
    /// The client's process.
    pub(super) pid: u32,
    /// Whether it waits for a job to end.
    pub(super) is_waiting: bool,
}

/// What is to be done with what the journal has kept, or found.
#[derive(Debug)]
pub(super) enum Purpose {
    /// What follows from an event, and the answer to whoever made it happen.
    Then { then: Vec<Then>, answer: Option<(Asker, Response)> },
    /// The answer is what was found.
    Answer(Asker),
    /// Whether a job has ended before; or how it has.
    Wait(Asker, JobId),
    /// Whether a job that cannot be cancelled has ended, or never was.
    Cancelled(Asker, JobId),
    /// How a job ended, for those who wait for that.
    Endings(JobId, Vec<Asker>),
    /// What has to be known before a job can be taken.
    Consider(Box<submit::Candidate>),
}

/// What somebody who waits for a job wants to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    /// Its state.
    State,
    /// How it ended.
    Ending,
}

/// Whether whoever submits a job wants to be told of its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Follow {
    No,
    ToItsEnd,
}

/// See above.
pub(super) struct Desk {
    machine: Machine,
    journal: Journal<Purpose>,
    engine: Engine,
    config: Config,
    logs: PathBuf,
    waiting: HashMap<JobId, Vec<(Asker, Wanted)>>,
    /// Keys of jobs that are not durable yet, and that the journal may not know of.
    fresh_keys: HashSet<String>,
    /// Entries that the journal has not answered yet.
    under_way: usize,
    replies: Vec<(Asker, Response)>,
    is_stopping: bool,
}

impl Desk {
    /// `effects` are what follows from taking up the jobs of an earlier daemon.
    pub(super) fn new(
        machine: Machine,
        effects: Effects,
        journal: Journal<Purpose>,
        engine: Engine,
        config: Config,
        logs: PathBuf,
    ) -> Desk {
        let mut desk = Desk {
            machine,
            journal,
            engine,
            config,
            logs,
            waiting: HashMap::new(),
            fresh_keys: HashSet::new(),
            under_way: 0,
            replies: Vec::new(),
            is_stopping: false,
        };
        desk.keep(effects, None);
        desk
    }

    /// A client has asked for something.
    pub(super) fn request(&mut self, asker: Asker, request: Request) {
        let by = Who::Client(asker.pid);
        match request {
            Request::Ping => {
                let version = env!("CARGO_PKG_VERSION").to_owned();
                self.reply(asker, Response::Pong(Pong { version, pid: process::id() }));
            }
            Request::Submit(spec) => self.submit(asker, spec, Follow::No),
            Request::Run(spec) => self.submit(asker, spec, Follow::ToItsEnd),
            Request::Records(ids) if ids.len() > IDS_MAX => {
                let why = format!("at most {IDS_MAX} jobs at a time");
                self.refuse(asker, Refusal::Invalid(why));
            }
            Request::Records(ids) => self.ask(Query::Records(ids), Purpose::Answer(asker)),
            Request::Page { after, limit } => {
                let limit = limit.clamp(1, PAGE_MAX);
                self.ask(Query::Page { after, limit }, Purpose::Answer(asker));
            }
            Request::Wait(id) => self.wait(asker, id, Wanted::State),
            Request::Result(id) => self.wait(asker, id, Wanted::Ending),
            Request::Log { id, stream, offset } => self.log(asker, id, stream, offset),
            Request::Cancel(id) => self.cancel(asker, id, Event::Cancel { id, by }),
            Request::Abort(id) => self.cancel(asker, id, Event::Abort { id, by }),
            Request::Queues => {
                let queues = self.machine.queues().collect();
                self.reply(asker, Response::Queues(queues));
            }
            Request::Stop => {
                self.reply(asker, Response::Stopping);
                self.stop();
            }
        }
    }

    /// The journal has kept this.
    pub(super) fn kept(&mut self, kept: Kept<Purpose>) {
        self.under_way -= 1;
        let Kept { found, purpose } = kept;
        let mut found = found.into_iter();
        match purpose {
            Purpose::Then { then, answer } => {
                for then in then {
                    self.follow(then, &mut found);
                }
                if let Some((asker, response)) = answer {
                    self.reply(asker, response);
                }
            }
            Purpose::Answer(asker) => {
                let response = match found.next() {
                    Some(Found::Records(records)) => Response::Records(records),
                    Some(Found::Page(records)) => Response::Page(records),
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
            Purpose::Endings(id, askers) => match found.next() {
                Some(Found::Ending(Some((state, ending)))) => {
                    for asker in askers {
                        let ending = Box::new(ending.clone());
                        self.reply(asker, Response::Ending(id, state, ending));
                    }
                }
                _ => askers.into_iter().for_each(|asker| self.refuse(asker, Refusal::NoJob(id))),
            },
            Purpose::Consider(candidate) => self.reconsider(*candidate, found.next()),
        }
    }

    /// An attempt has ended, somehow.
    pub(super) fn ended(&mut self, id: JobId, attempt: Attempt) {
        if let Some(ending) = self.engine.take(id, attempt) {
            self.handle(Event::Ended { id, attempt, ending: Box::new(ending) });
        }
    }

    /// Time has passed.
    pub(super) fn time(&mut self) {
        if self.machine.next_time().is_some_and(|due| due <= Moment::now()) {
            self.handle(Event::Time);
        }
    }

    /// When [`time`](Desk::time) has something to do.
    pub(super) fn next_time(&self) -> Option<Moment> {
        self.machine.next_time()
    }

    /// Nothing is started any more. Once more: what runs is stopped.
    pub(super) fn stop(&mut self) {
        if !mem::replace(&mut self.is_stopping, true) {
            self.handle(Event::Drain);
            return;
        }
        for id in self.machine.running_ids() {
            self.handle(Event::Interrupt { id });
        }
    }

    /// True if it was told to stop and nothing is left to do.
    pub(super) fn is_over(&self) -> bool {
        self.is_stopping
            && self.under_way == 0
            && self.machine.running() == 0
            && self.engine.is_idle()
    }

    /// A client is gone.
    pub(super) fn gone(&mut self, client: u64) {
        self.waiting.retain(|_, waiting| {
            waiting.retain(|(asker, _)| asker.client != client);
            !waiting.is_empty()
        });
    }

    /// What there is to be answered.
    pub(super) fn take_replies(&mut self) -> Vec<(Asker, Response)> {
        mem::take(&mut self.replies)
    }

    /// Ends workers and journal.
    pub(super) fn close(self) {
        self.engine.close();
        self.journal.close();
    }

    fn reply(&mut self, asker: Asker, response: Response) {
        self.replies.push((asker, response));
    }

    fn refuse(&mut self, asker: Asker, refusal: Refusal) {
        self.reply(asker, Response::Refused(refusal));
    }

    fn handle(&mut self, event: Event) -> Answer {
        let mut effects = Effects::default();
        let answer = self.machine.handle(event, Moment::now(), &mut effects);
        self.keep(effects, None);
        answer
    }

    /// Has the journal keep what follows from an event. What is to be done then, and the answer, wait for it.
    fn keep(&mut self, effects: Effects, answer: Option<(Asker, Response)>) {
        let Effects { changes, then } = effects;
        if changes.is_empty() && then.is_empty() && answer.is_none() {
            return;
        }
        let starts = then.iter().filter_map(|then| match then {
            Then::Start { id, .. } => Some(Query::Work(*id)),
            _ => None,
        });
        let queries = starts.collect();
        self.under_way += 1;
        self.journal.push(Entry { changes, queries, purpose: Purpose::Then { then, answer } });
    }

    fn ask(&mut self, query: Query, purpose: Purpose) {
        self.under_way += 1;
        self.journal.push(Entry { changes: Vec::new(), queries: vec![query], purpose });
    }

    fn follow(&mut self, then: Then, found: &mut impl Iterator<Item = Found>) {
        match then {
            Then::Start { attempt, .. } => match found.next() {
                Some(Found::Work(Some((record, work)))) => self.engine.start(attempt, record, work),
                other => unreachable!("a job that starts is kept, and was looked for: {other:?}"),
            },
            Then::Stop { id } => self.engine.stop(id),
            Then::Tell { id, state } => self.tell(id, state),
        }
    }

    fn tell(&mut self, id: JobId, state: State) {
        let mut for_endings = Vec::new();
        for (asker, wanted) in self.waiting.remove(&id).unwrap_or_default() {
            match wanted {
                Wanted::State => self.reply(asker, Response::Ended(id, state)),
                Wanted::Ending => for_endings.push(asker),
            }
        }
        if !for_endings.is_empty() {
            self.ask(Query::Ending(id), Purpose::Endings(id, for_endings));
        }
    }

    fn wait(&mut self, asker: Asker, id: JobId, wanted: Wanted) {
        if self.machine.is_live(id) {
            self.waiting.entry(id).or_default().push((asker, wanted));
        } else {
            // It has ended, and its end may be on its way to the journal; that is read after it.
            let query = match wanted {
                Wanted::State => Query::Record(id),
                Wanted::Ending => Query::Ending(id),
            };
            self.ask(query, Purpose::Wait(asker, id));
        }
    }

    fn cancel(&mut self, asker: Asker, id: JobId, event: Event) {
        let mut effects = Effects::default();
        let answer = self.machine.handle(event, Moment::now(), &mut effects);
        let cancelled = match answer {
            Answer::Cancelled => Cancelled::Unstarted,
            Answer::Running => Cancelled::Running,
            Answer::Nothing | Answer::Born(_) | Answer::NotLive => {
                // Whether it has ended or never was.
                return self.ask(Query::Record(id), Purpose::Cancelled(asker, id));
            }
        };
        self.keep(effects, Some((asker, Response::Cancel(cancelled))));
    }

    /// Reads what a command has said. The file belongs to this user, in a directory of this daemon's.
    fn log(&mut self, asker: Asker, id: JobId, stream: Stream, offset: u64) {
        let read = || -> io::Result<Vec<u8>> {
            let mut file = File::open(log_path(&self.logs, id, stream))?;
            file.seek(SeekFrom::Start(offset))?;
            let mut bytes = Vec::new();
            file.take(LOG_BYTES_MAX.into()).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        match read() {
            Ok(bytes) => self.reply(asker, Response::Log { bytes }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.reply(asker, Response::Log { bytes: Vec::new() });
            }
            Err(error) => {
                self.refuse(asker, Refusal::Invalid(format!("the log cannot be read: {error}")));
            }
        }
    }

    fn submit(&mut self, asker: Asker, spec: JobSpec, follow: Follow) {
        if self.is_stopping {
            return self.refuse(asker, Refusal::Stopping);
        }
        match submit::check(&spec, &self.config, &self.machine) {
            Ok(()) => self.consider(submit::Candidate::new(asker, spec, follow)),
            Err(refusal) => self.refuse(asker, refusal),
        }
    }
}
