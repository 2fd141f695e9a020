//! Answers requests: turns them into events for the machine, and what follows from those into work for the journal,
//! for pools, and into answers. It knows clients by number only and does no I/O with them, or with anything else.

pub(super) mod followers;
mod history;
mod kept;
mod logs;
mod operate;
mod retire;
mod submit;
#[cfg(test)]
mod tests;
mod waits;
mod works;

use std::collections::{BTreeMap, HashSet};
use std::mem;
use std::path::PathBuf;
use std::process;
use std::time::{Duration, Instant};

use self::history::History;
use self::retire::Retire;
use crate::command::log_path;
use crate::config::Config;
use crate::engine::Engine;
use crate::error::Error;
use crate::job::{Attempt, JobId, Moment, Record, State, Terms, Who, Work};
use crate::journal::{Entry, Journal, Query, Urgency};
use crate::machine::{Answer, Because, Effects, Event, Machine, QueueInfo, Then};
use crate::protocol::{Health, PAGE_MAX, Phase, Pong, Refusal, Request, Response, Stream};
use crate::store::{Space, StoreError};
use followers::{Follower, Followers};
use waits::Waits;
use works::Works;

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
    /// What the request costs while it is under way; `None` if it waits for a job to end.
    pub(super) cost: Option<usize>,
}

/// What is to be done with what the journal has kept, or found.
#[derive(Debug)]
pub(super) enum Purpose {
    /// What follows from an event, and the answer to whoever made it happen.
    Then { then: Vec<Then>, known: Vec<(Terms, Work)>, answer: Option<(Asker, Response)> },
    /// The answer is what was found.
    Answer(Asker),
    /// Whether a job has ended before; or how it has.
    Wait(Asker, JobId),
    /// Whether a job that cannot be cancelled has ended, or never was.
    Cancelled(Asker, JobId),
    /// What has to be known before a job can be taken.
    Consider(Box<submit::Candidate>),
    /// A job that is to be run once more, if it has ended.
    Retry(Asker, JobId),
    /// A job that is to be forgotten, if it has ended.
    Forget(Asker, JobId),
    /// A job is forgotten.
    Forgotten(Asker, JobId),
    /// What has been kept long enough.
    Retire,
    /// What these jobs had left is gone.
    Expired(Vec<JobId>),
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
    waits: Waits,
    works: Works,
    followers: Followers,
    /// Those who wait until nothing runs.
    drained: Vec<Asker>,
    /// Jobs that the journal is about to forget, or to let go of: whoever has found one just before does not take it up.
    forgetting: HashSet<JobId>,
    /// How many jobs have ended, by the word of their state.
    ended: BTreeMap<&'static str, u64>,
    since: Instant,
    history: History,
    /// Keys of jobs that are not durable yet, and that the journal may not know of.
    fresh_keys: HashSet<String>,
    /// Entries that the journal has not answered yet.
    under_way: usize,
    replies: Vec<(Asker, Response)>,
    phase: Phase,
    /// When what still runs is interrupted.
    give_up_at: Option<Instant>,
    /// Why no job can begin any more.
    failure: Option<StoreError>,
    space: Space,
    retire: Retire,
}

/// What the desk has on the disk.
pub(super) struct OnDisk {
    pub(super) journal: Journal<Purpose>,
    pub(super) space: Space,
    pub(super) logs: PathBuf,
}

impl Desk {
    /// `effects` are what follows from taking up the jobs of an earlier daemon.
    pub(super) fn new(
        machine: Machine,
        effects: Effects,
        disk: OnDisk,
        engine: Engine,
        config: Config,
        followers: Followers,
    ) -> Desk {
        let OnDisk { journal, space, logs } = disk;
        let mut desk = Desk {
            machine,
            journal,
            engine,
            config,
            logs,
            waits: Waits::default(),
            works: Works::default(),
            followers,
            drained: Vec::new(),
            forgetting: HashSet::new(),
            ended: BTreeMap::new(),
            since: Instant::now(),
            history: History::default(),
            fresh_keys: HashSet::new(),
            under_way: 0,
            replies: Vec::new(),
            phase: Phase::Serving,
            give_up_at: None,
            failure: None,
            space,
            retire: Retire::At(Instant::now()),
        };
        desk.keep(effects, None);
        desk.size_pools();
        desk
    }

    /// A client, one of so many, has asked for something.
    pub(super) fn request(&mut self, asker: Asker, request: Request, clients: usize) {
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
            Request::Log { id, stream, offset } => {
                let response = self.log(id, stream, offset);
                self.reply(asker, response);
            }
            Request::Follow { id, stream, offset } => {
                self.log_or_wait(id, Follower { asker, stream, offset });
            }
            Request::Cancel(id) => {
                let taken_back = self.engine.take_back(id);
                self.cancel(asker, id, Event::Cancel { id, taken_back, by });
            }
            Request::Abort(id) => {
                let taken_back = self.engine.take_back(id);
                self.cancel(asker, id, Event::Abort { id, taken_back, by });
            }
            Request::Queues => {
                let queues = self.queues();
                self.reply(asker, Response::Queues(queues));
            }
            Request::Stop => {
                self.reply(asker, Response::Stopping);
                self.stop();
            }
            Request::Retry(id) if self.machine.is_live(id) => {
                self.refuse(asker, Refusal::NotEnded(id));
            }
            Request::Retry(id) => self.ask(Query::Work(id), Purpose::Retry(asker, id)),
            Request::Forget(id) if self.machine.is_live(id) => {
                self.refuse(asker, Refusal::NotEnded(id));
            }
            Request::Forget(id) => self.ask(Query::Record(id), Purpose::Forget(asker, id)),
            Request::Queue { name, order } => self.queue(asker, name, order),
            Request::Drain => {
                self.drain();
                self.reply(asker, Response::Done);
            }
            Request::Drained => self.drained.push(asker),
            Request::Health => {
                let health = self.health(clients);
                self.reply(asker, Response::Health(Box::new(health)));
            }
            Request::Progress(id) => {
                let progress = self.engine.progress(id);
                self.reply(asker, Response::Progress(progress));
            }
            Request::Activity => {
                let activity = self.history.activity(self.engine.running());
                self.reply(asker, Response::Activity(activity));
            }
        }
    }

    /// An attempt has ended, somehow.
    pub(super) fn ended(&mut self, id: JobId, attempt: Attempt) {
        if let Some(ending) = self.engine.take(id, attempt) {
            self.begin();
            self.handle(Event::Ended { id, attempt, ending: Box::new(ending) });
        }
    }

    /// Time has passed.
    pub(super) fn time(&mut self) {
        if self.give_up_at.is_some_and(|at| at <= Instant::now()) {
            self.give_up();
        }
        if self.machine.next_time().is_some_and(|due| due <= Moment::now()) {
            self.handle(Event::Time);
        }
        for (id, attempt) in self.engine.take_back_late() {
            self.handle(Event::TakenBack { id, attempt, because: Because::Late });
        }
        self.retire();
    }

    /// When [`time`](Desk::time) has something to do.
    pub(super) fn next_time(&self) -> Option<Moment> {
        self.machine.next_time()
    }

    /// Nothing is started any more.
    fn drain(&mut self) {
        if self.phase == Phase::Serving {
            self.phase = Phase::Draining;
            self.handle(Event::Drain);
            let queues: Vec<QueueInfo> = self.machine.queues().collect();
            for queue in queues {
                self.take_back_all(&queue.name);
            }
        }
    }

    /// Nothing is started or taken any more. Once more: what runs is stopped.
    pub(super) fn stop(&mut self) {
        if self.phase != Phase::Stopping {
            self.drain();
            self.phase = Phase::Stopping;
            self.give_up_at = Some(Instant::now() + self.drain_limit());
            return;
        }
        self.give_up();
    }

    /// What still runs is interrupted.
    fn give_up(&mut self) {
        self.give_up_at = None;
        for id in self.machine.running_ids() {
            self.handle(Event::Interrupt { id });
        }
    }

    /// How long what runs may take once nothing else is started.
    pub(super) fn drain_limit(&self) -> Duration {
        Duration::from_secs(self.config.limits.drain_seconds)
    }

    /// When [`time`](Desk::time) ends a drain, or takes back what has waited too long for its slot.
    pub(super) fn next_instant(&self) -> Option<Instant> {
        [self.give_up_at, self.engine.late_at()].into_iter().flatten().min()
    }

    /// True if it was told to stop.
    pub(super) fn is_stopping(&self) -> bool {
        self.phase == Phase::Stopping
    }

    /// Other settings hold from now on. What acknowledged means, and where figures are to be had, needs another
    /// daemon.
    pub(super) fn configure(&mut self, config: Config) -> Result<(), Error> {
        if config.level != self.config.level || config.metrics != self.config.metrics {
            return Err(Error::setting("`level` and `metrics` need a daemon that is started anew"));
        }
        let queues = config.all_queues();
        let slots = queues.iter().map(|(name, queue)| (name.clone(), queue.slots())).collect();
        self.engine.configure(queues, config.limits.log_bytes);
        self.config = config;
        self.handle(Event::Configured(slots));
        self.size_pools();
        Ok(())
    }

    /// True if it was told to stop and nothing is left to do.
    pub(super) fn is_over(&self) -> bool {
        self.phase == Phase::Stopping && self.under_way == 0 && self.is_quiet()
    }

    fn is_quiet(&self) -> bool {
        self.machine.running() == 0 && self.engine.is_idle()
    }

    /// A client is gone.
    pub(super) fn gone(&mut self, client: u64) {
        self.waits.gone(client);
        let logs = &self.logs;
        self.followers.gone(client, |id| log_path(logs, id, Stream::Stdout));
        self.drained.retain(|asker| asker.client != client);
    }

    /// How often a client waits for something.
    pub(super) fn waits_of(&self, client: u64) -> usize {
        self.waits.of(client)
    }

    /// How the daemon is, with so many clients.
    pub(super) fn health(&self, clients: usize) -> Health {
        let ended = self.ended.iter().map(|(word, count)| ((*word).to_owned(), *count));
        Health {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: process::id(),
            level: self.config.level,
            up: self.since.elapsed(),
            phase: self.phase,
            jobs: self.machine.len() as u64,
            jobs_max: self.config.limits.jobs as u64,
            ended: ended.collect(),
            clients: clients as u64,
            waits: self.waits.len() as u64,
            under_way: self.under_way as u64,
            queues: self.queues(),
        }
    }

    /// The queues as they are. What has a slot in advance waits.
    fn queues(&self) -> Vec<QueueInfo> {
        let queues = self.machine.queues().map(|queue| {
            let prepared = self.engine.prepared(&queue.name) as u64;
            let running = queue.running.saturating_sub(prepared);
            let queued = queue.queued + queue.running - running;
            QueueInfo { queued, running, ..queue }
        });
        queues.collect()
    }

    /// A record as clients see it: what has a slot in advance waits until it begins. Of what had begun when the record was
    /// read the end is not durable, or came with it: it is told after this.
    fn shown(&self, mut record: Record) -> Record {
        if let State::Running(attempt) = record.life.state()
            && !self.engine.has_begun(record.id, attempt)
        {
            record.life.take_back();
        }
        record
    }

    /// What there is to be answered.
    pub(super) fn take_replies(&mut self) -> Vec<(Asker, Response)> {
        if !self.drained.is_empty() && self.is_quiet() {
            let drained = mem::take(&mut self.drained);
            self.replies.extend(drained.into_iter().map(|asker| (asker, Response::Done)));
        }
        mem::take(&mut self.replies)
    }

    /// Hands over what the journal is to keep and to find.
    pub(super) fn flush(&mut self) {
        self.journal.flush();
    }

    /// Ends workers and journal.
    pub(super) fn close(self) -> Result<(), StoreError> {
        self.engine.close();
        self.journal.close()
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
        let starts: Vec<JobId> = then
            .iter()
            .filter_map(|then| match then {
                Then::Start { id, .. } => Some(*id),
                _ => None,
            })
            .collect();
        // Those that have just been taken are at hand, unless others have to be looked for first.
        let known: Vec<_> = starts.iter().map_while(|id| self.works.take(*id)).collect();
        let queries = starts[known.len()..].iter().map(|id| Query::Work(*id)).collect();
        self.under_way += 1;
        let is_answer = answer.is_some() && then.is_empty();
        let urgency = if is_answer { Urgency::Answer } else { Urgency::Now };
        let purpose = Purpose::Then { then, known, answer };
        self.journal.push(Entry { changes, queries, purpose, urgency });
    }

    fn ask(&mut self, query: Query, purpose: Purpose) {
        self.under_way += 1;
        let (changes, queries) = (Vec::new(), vec![query]);
        self.journal.push(Entry { changes, queries, purpose, urgency: Urgency::Now });
    }

    /// Why no job can begin any more.
    pub(super) fn take_failure(&mut self) -> Option<StoreError> {
        self.failure.take()
    }

    fn wait(&mut self, asker: Asker, id: JobId, wanted: Wanted) {
        if self.machine.is_live(id) {
            if let Err(too_many) = self.waits.add(asker, id, wanted) {
                self.refuse(asker, too_many.into());
            }
        } else {
            // It has ended, and its end may be on its way to the journal; that is read after it.
            let query = match wanted {
                Wanted::State => Query::Record(id),
                Wanted::Ending => Query::Ending(id),
            };
            self.ask(query, Purpose::Wait(asker, id));
        }
    }

    /// Gives the pools as many workers as their queues have slots.
    fn size_pools(&mut self) {
        for queue in self.machine.queues() {
            self.engine.size(&queue.name, usize::try_from(queue.slots).unwrap_or(usize::MAX));
        }
    }

    /// What tells of logs that become longer.
    pub(super) fn followers(&self) -> &Followers {
        &self.followers
    }
}
