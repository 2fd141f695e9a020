//! The thread that writes. It takes changes in order, makes many of them durable at once, and only then lets
//! anybody know.
//!
//! While one batch is being written the next one gathers, and a thousand changes share one `fdatasync`. A lone change is
//! written at once. Clients that ask, wait and ask again would come in two groups, each of which waits for the commit of the
//! other: so those that have just been answered are waited for, for less than a commit takes, while nothing but
//! answers to others like them is held up. After the first error nothing is written any more, and what waits is told
//! to nobody: the daemon ends, and what was not acknowledged may or may not be there.

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::job::{Ending, JobId, Moment, Record, State, Work};
use crate::store::{Change, Store, StoreError};

/// The most changes in one transaction: beyond, they are cheaper by little, and the first one waits for the last.
const BATCH_CHANGES_MAX: usize = 256;
/// How long a batch gathers at most. Only a queue that never runs dry gets that far, or a disk that is slow.
const BATCH_TIME_MAX: Duration = Duration::from_millis(2);

/// What is to be read once the changes before it are durable.
#[derive(Debug, Clone)]
pub(crate) enum Query {
    Record(JobId),
    Records(Vec<JobId>),
    States(Vec<JobId>),
    Page {
        after: JobId,
        limit: u32,
    },
    Work(JobId),
    Ending(JobId),
    Key(String),
    /// See [`Store::stale`].
    Stale {
        before: Moment,
        bytes: u64,
        limit: u32,
    },
}

/// What was read.
#[derive(Debug)]
pub(crate) enum Found {
    Record(Option<Record>),
    Records(Vec<Option<Record>>),
    States(Vec<(JobId, Option<State>)>),
    Page(Vec<Record>),
    Work(Option<(Record, Work)>),
    Ending(Option<(State, Ending)>),
    /// The job with that key, and what it was to do.
    Key(Option<(Record, Work)>),
    Stale(Vec<Record>),
}

/// Changes, what to read then, and what that is for.
#[derive(Debug)]
pub(crate) struct Entry<T> {
    pub(crate) changes: Vec<Change>,
    pub(crate) queries: Vec<Query>,
    pub(crate) purpose: T,
    pub(crate) urgency: Urgency,
}

/// What waits for an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Urgency {
    /// A client alone, which may ask again when it has its answer.
    Answer,
    /// More than that.
    Now,
}

/// The changes are durable.
#[derive(Debug)]
pub(crate) struct Kept<T> {
    pub(crate) found: Vec<Found>,
    pub(crate) purpose: T,
}

/// The thread's handle.
#[derive(Debug)]
pub(crate) struct Journal<T> {
    /// What is handed over with the next [`flush`](Journal::flush).
    entries: Vec<Entry<T>>,
    sender: Sender<Vec<Entry<T>>>,
    thread: JoinHandle<Result<(), StoreError>>,
}

impl<T: Send + 'static> Journal<T> {
    /// Starts the thread. It gives `deliver` what is durable, in the order in which it came, or the error after
    /// which nothing comes any more.
    pub(crate) fn start(
        mut store: Box<dyn Store>,
        deliver: impl Fn(Result<Vec<Kept<T>>, StoreError>) + Send + 'static,
    ) -> io::Result<Journal<T>> {
        // Its bound is what the loop lets clients have under way.
        let (sender, receiver) = mpsc::channel();
        let run = move || {
            let mut inbound = Inbound::new(receiver);
            while let Some(batch) = inbound.gather() {
                let answers = answers(&batch);
                let since = Instant::now();
                let result = write(&mut *store, batch);
                let took = since.elapsed();
                let is_lost = result.is_err();
                deliver(result);
                if is_lost {
                    // That was told.
                    return Ok(());
                }
                inbound.await_again(answers, took);
            }
            store.close()
        };
        let thread = thread::Builder::new().name("procpool-journal".into()).spawn(run)?;
        Ok(Journal { entries: Vec::new(), sender, thread })
    }

    /// Adds an entry to those that are handed over next.
    pub(crate) fn push(&mut self, entry: Entry<T>) {
        self.entries.push(entry);
    }

    /// Hands over what was pushed. All at once: handed over one by one, the first would be written alone while the others
    /// come. Without the thread nobody is answered, which is as it shall be.
    pub(crate) fn flush(&mut self) {
        if !self.entries.is_empty() {
            let _ = self.sender.send(mem::take(&mut self.entries));
        }
    }

    /// Writes what is left, and ends the thread.
    pub(crate) fn close(mut self) -> Result<(), StoreError> {
        self.flush();
        drop(self.sender);
        // Its panic has ended the process.
        self.thread.join().unwrap_or(Ok(()))
    }
}

/// What has come for the journal.
struct Inbound<T> {
    receiver: Receiver<Vec<Entry<T>>>,
    waiting: VecDeque<Entry<T>>,
    /// How many have just been answered that may ask again, and until when they are waited for.
    company: usize,
    until: Instant,
}

impl<T> Inbound<T> {
    fn new(receiver: Receiver<Vec<Entry<T>>>) -> Inbound<T> {
        Inbound { receiver, waiting: VecDeque::new(), company: 0, until: Instant::now() }
    }

    /// So many have been answered, for whom a commit was made that took so long.
    fn await_again(&mut self, answers: usize, took: Duration) {
        self.company = answers;
        self.until = Instant::now() + (took / 2).min(BATCH_TIME_MAX);
    }

    /// The next batch; `None` when there will be none any more.
    fn gather(&mut self) -> Option<Vec<Entry<T>>> {
        self.waiting.extend(self.receiver.try_iter().flatten());
        let expected = (self.waiting.len() + self.company).min(BATCH_CHANGES_MAX);
        if self.waiting.is_empty() {
            self.waiting.extend(self.receiver.recv().ok()?);
        }
        while self.waiting.len() < expected && answers(&self.waiting) == self.waiting.len() {
            let left = self.until.saturating_duration_since(Instant::now());
            match self.receiver.recv_timeout(left) {
                Ok(entries) => self.waiting.extend(entries),
                Err(_) => break,
            }
        }
        let since = Instant::now();
        let mut changes = 0;
        let mut batch = Vec::new();
        while changes < BATCH_CHANGES_MAX && since.elapsed() < BATCH_TIME_MAX {
            let Some(entry) = self.waiting.pop_front() else {
                let Ok(entries) = self.receiver.try_recv() else {
                    break;
                };
                self.waiting.extend(entries);
                continue;
            };
            changes += entry.changes.len();
            batch.push(entry);
        }
        Some(batch)
    }
}

/// How many of these nothing waits for but a client.
fn answers<'e, T: 'e>(entries: impl IntoIterator<Item = &'e Entry<T>>) -> usize {
    entries.into_iter().filter(|entry| entry.urgency == Urgency::Answer).count()
}

fn write<T>(store: &mut dyn Store, mut batch: Vec<Entry<T>>) -> Result<Vec<Kept<T>>, StoreError> {
    let changes: Vec<Change> =
        batch.iter_mut().flat_map(|entry| mem::take(&mut entry.changes)).collect();
    if !changes.is_empty() {
        store.commit(&changes)?;
    }
    let read = |entry: Entry<T>| {
        let found = entry.queries.into_iter().map(|query| read(store, query));
        Ok(Kept { found: found.collect::<Result<_, StoreError>>()?, purpose: entry.purpose })
    };
    batch.into_iter().map(read).collect()
}

fn read(store: &mut dyn Store, query: Query) -> Result<Found, StoreError> {
    Ok(match query {
        Query::Record(id) => Found::Record(store.record(id)?),
        Query::Records(ids) => {
            let records = ids.into_iter().map(|id| store.record(id));
            Found::Records(records.collect::<Result<_, _>>()?)
        }
        Query::States(ids) => {
            let states = ids.into_iter().map(|id| Ok((id, store.state(id)?)));
            Found::States(states.collect::<Result<_, StoreError>>()?)
        }
        Query::Page { after, limit } => Found::Page(store.page(after, limit)?),
        Query::Work(id) => Found::Work(store.work(id)?),
        Query::Ending(id) => Found::Ending(store.ending(id)?),
        Query::Key(key) => Found::Key(match store.by_key(&key)? {
            Some(id) => store.work(id)?,
            None => None,
        }),
        Query::Stale { before, bytes, limit } => Found::Stale(store.stale(before, bytes, limit)?),
    })
}
