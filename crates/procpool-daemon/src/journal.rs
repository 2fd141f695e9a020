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

/// How much of what jobs were to do, and of how they ended, is read before it is handed over: one of the longest, or many.
const READ_BYTES_MAX: u64 = 16 << 20;

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

impl Found {
    /// How many bytes it has, about, where they can be many. Clients have what records cost under way.
    fn bytes(&self) -> u64 {
        match self {
            Found::Work(Some((_, work))) | Found::Key(Some((_, work))) => work.bytes(),
            Found::Ending(Some((_, ending))) => ending.outcome.bytes(),
            _ => 0,
        }
    }
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
                let result = write(&mut *store, batch, &mut inbound);
                inbound.await_again(answers, since.elapsed());
                let is_lost = result.is_err();
                deliver(result);
                if is_lost {
                    // That was told.
                    return Ok(());
                }
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
    /// How many are waited for, those that are here included, and until when.
    expected: usize,
    until: Instant,
}

impl<T> Inbound<T> {
    fn new(receiver: Receiver<Vec<Entry<T>>>) -> Inbound<T> {
        Inbound { receiver, waiting: VecDeque::new(), expected: 0, until: Instant::now() }
    }

    /// So many are about to be answered, for whom a commit was made that took so long.
    fn await_again(&mut self, answers: usize, took: Duration) {
        self.waiting.extend(self.receiver.try_iter().flatten());
        self.expected = (self.waiting.len() + answers).min(BATCH_CHANGES_MAX);
        self.until = Instant::now() + (took / 2).min(BATCH_TIME_MAX);
    }

    /// These come first. Their changes are durable.
    fn put_back(&mut self, unread: Vec<Entry<T>>) {
        for entry in unread.into_iter().rev() {
            self.waiting.push_front(entry);
        }
    }

    /// The next batch; `None` when there will be none any more.
    fn gather(&mut self) -> Option<Vec<Entry<T>>> {
        if self.waiting.is_empty() {
            self.waiting.extend(self.receiver.recv().ok()?);
        }
        while self.waiting.len() < self.expected && answers(&self.waiting) == self.waiting.len() {
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

/// Keeps a batch, and reads for as much of it as is handed over at a time. What is left is put back.
fn write<T>(
    store: &mut dyn Store,
    mut batch: Vec<Entry<T>>,
    inbound: &mut Inbound<T>,
) -> Result<Vec<Kept<T>>, StoreError> {
    let changes: Vec<Change> =
        batch.iter_mut().flat_map(|entry| mem::take(&mut entry.changes)).collect();
    if !changes.is_empty() {
        store.commit(&changes)?;
    }
    let mut bytes = 0;
    let mut kept = Vec::with_capacity(batch.len());
    let mut entries = batch.into_iter();
    while bytes < READ_BYTES_MAX
        && let Some(Entry { queries, purpose, .. }) = entries.next()
    {
        let found = queries.into_iter().map(|query| read(store, query));
        let found: Vec<Found> = found.collect::<Result<_, StoreError>>()?;
        bytes += found.iter().map(Found::bytes).sum::<u64>();
        kept.push(Kept { found, purpose });
    }
    inbound.put_back(entries.collect());
    Ok(kept)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(urgency: Urgency) -> Entry<()> {
        Entry { changes: Vec::new(), queries: Vec::new(), purpose: (), urgency }
    }

    /// One waits, and three are about to be answered, who are waited for as long as it takes.
    fn inbound() -> (Sender<Vec<Entry<()>>>, Inbound<()>) {
        let (sender, receiver) = mpsc::channel();
        let mut inbound = Inbound::new(receiver);
        sender.send(vec![entry(Urgency::Answer)]).unwrap();
        inbound.await_again(3, Duration::ZERO);
        inbound.until += Duration::from_secs(60);
        (sender, inbound)
    }

    #[test]
    fn who_was_just_answered_is_waited_for() {
        let (sender, mut inbound) = inbound();
        let others = thread::spawn(move || {
            for _ in 0..3 {
                sender.send(vec![entry(Urgency::Answer)]).unwrap();
            }
            sender
        });
        assert_eq!(inbound.gather().unwrap().len(), 4);
        let sender = others.join().unwrap();
        // Not for longer than was said, and nobody who was not answered.
        inbound.await_again(3, Duration::ZERO);
        sender.send(vec![entry(Urgency::Answer)]).unwrap();
        assert_eq!(inbound.gather().unwrap().len(), 1);
        inbound.await_again(0, Duration::from_secs(60));
        sender.send(vec![entry(Urgency::Answer)]).unwrap();
        assert_eq!(inbound.gather().unwrap().len(), 1);
    }

    #[test]
    fn nothing_else_is_held_up() {
        let (sender, mut inbound) = inbound();
        let since = Instant::now();
        sender.send(vec![entry(Urgency::Now)]).unwrap();
        assert_eq!(inbound.gather().unwrap().len(), 2);
        assert!(since.elapsed() < Duration::from_secs(30));
        // What was not read comes first.
        inbound.put_back(vec![entry(Urgency::Now)]);
        sender.send(vec![entry(Urgency::Answer)]).unwrap();
        let batch = inbound.gather().unwrap();
        assert_eq!((batch.len(), batch[0].urgency), (2, Urgency::Now));
        drop(sender);
        assert!(inbound.gather().is_none());
    }
}
