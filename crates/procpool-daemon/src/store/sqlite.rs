//! The store on SQLite: one file and its write-ahead log, opened by nobody else.
//!
//! One table with a row for each job: its state for the indexes, and two columns of encoded bytes, sealed (`seal.rs`):
//! its terms, which never change, and its life, which each step rewrites. What it is to do and how it ended stand
//! in tables of their own, so that a step does not move them. One row, the tally, counts commits and jobs: with the
//! mark (`mark.rs`) beside the file it shows what is missing. How a file is judged when it is opened says
//! `check.rs`.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use rusqlite::{Connection, OptionalExtension, TransactionBehavior, params};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::mark::{Mark, Reached};
use super::seal::{open, seal};
use super::space::Space;
use super::{Change, Store, StoreError, check};
use crate::config::Level;
use crate::job::{Ending, JobId, Life, Moment, Record, State, Terms, Work};
use crate::machine::QueueSetting;

/// Frames of the write-ahead log before its content moves into the file: 16 MiB, so that a checkpoint costs each
/// commit little, and a restart has little to read again.
const CHECKPOINT_FRAMES: i32 = 4096;
/// The length of such a log, with some more for the last commit of it.
const LOG_LEN: u64 = (CHECKPOINT_FRAMES as u64 + 256) * 4120;
/// Statements that are kept ready: all there are.
const STATEMENTS: usize = 32;
/// The most jobs of which, once they have expired, it is still known that they were there.
const EXPIRED_MAX: u64 = 100_000;

/// What has been counted since the journal was made. It changes with each commit, in the same transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Tally {
    pub(super) commits: u64,
    /// The number of the next job.
    pub(super) next: JobId,
    /// Jobs that have not ended.
    pub(super) live: u64,
    /// Jobs that have expired and are not forgotten.
    pub(super) expired: u64,
    /// The bytes of work and endings of all that have ended.
    pub(super) left: u64,
}

/// In the checksum of what belongs to no job: there is none of that number.
pub(super) const NO_JOB: JobId = JobId(0);

/// The store.
#[derive(Debug)]
pub struct SqliteStore {
    connection: Connection,
    tally: Tally,
    level: Level,
    /// None of a store in memory.
    mark: Option<Mark>,
    /// The last commit that was synced.
    durable: u64,
    space: Space,
    /// How long the log is, in frames.
    frames: Arc<AtomicI32>,
    checkpoint_frames: i32,
}

impl SqliteStore {
    /// Opens what is in this directory, or makes it. Nothing is written there if `level` says so.
    ///
    /// # Errors
    /// If it cannot be opened, is damaged, or was written by a later version. It is left as it is then.
    pub fn open(dir: &Path, level: Level) -> Result<SqliteStore, StoreError> {
        if level == Level::Memory {
            let connection = Connection::open_in_memory().map_err(fault)?;
            check::configure(&connection, level)?;
            let tally = check::make(&connection)?;
            return Ok(SqliteStore::new(connection, tally, level, None, Space::unbounded()));
        }
        let check::Opened { connection, tally, mark } = check::open(dir, level)?;
        let space = Space::of(dir)?;
        Ok(SqliteStore::new(connection, tally, level, Some(mark), space))
    }

    fn new(
        mut connection: Connection,
        tally: Tally,
        level: Level,
        mark: Option<Mark>,
        space: Space,
    ) -> SqliteStore {
        let frames = Arc::new(AtomicI32::new(0));
        let counted = Arc::clone(&frames);
        // Instead of SQLite's own checkpoints, whose errors nobody would see.
        let count = move |_: &mut _, frames| {
            counted.store(frames, Ordering::Relaxed);
            Ok(())
        };
        connection.wal_hook(Some(count)).expect("a hook can be set");
        connection.set_prepared_statement_cache_capacity(STATEMENTS);
        SqliteStore {
            connection,
            tally,
            level,
            mark,
            durable: tally.commits,
            space,
            frames,
            checkpoint_frames: CHECKPOINT_FRAMES,
        }
    }

    /// Moves the log into the file whenever it has so many frames of about 4 KiB, instead of 4096: for small disks.
    #[must_use]
    pub fn checkpoint_after(mut self, frames: u16) -> SqliteStore {
        self.checkpoint_frames = frames.into();
        self
    }

    /// Makes the log of the store in this directory as long as it gets between two checkpoints. Otherwise it grows with
    /// each commit until the first one, and a sync of a file that grows takes several times as long.
    ///
    /// # Errors
    /// If it cannot be written; where there is no room it stays as it is.
    pub fn reserve_log(&self, dir: &Path) -> Result<(), StoreError> {
        if self.mark.is_none() {
            return Ok(());
        }
        // What follows the frames of a log is no frame of it, whatever it is.
        let mut log = OpenOptions::new().append(true).open(dir.join("journal.sqlite-wal"))?;
        let len = log.metadata()?.len();
        // In one call: those who try a fault at each write of a journal shall come to the others.
        let zeros = vec![0; LOG_LEN.saturating_sub(len) as usize];
        match log.write_all(&zeros).and_then(|()| log.sync_data()).map_err(StoreError::from) {
            Err(StoreError::Full) => Ok(log.set_len(len)?),
            other => other,
        }
    }

    /// The room that there is for jobs.
    pub fn space(&self) -> &Space {
        &self.space
    }

    /// One commit.
    fn keep(&mut self, changes: &[Change]) -> Result<(), StoreError> {
        let mut tally = self.tally;
        tally.commits += 1;
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(fault)?;
        for change in changes {
            write(&transaction, change, &mut tally)?;
        }
        while tally.expired > EXPIRED_MAX {
            let sql = "DELETE FROM job WHERE id = (SELECT min(id) FROM job INDEXED BY job_expired \
                       WHERE state = 11)";
            run(&transaction, sql, &[])?;
            tally.expired -= 1;
        }
        put(&transaction, &tally)?;
        transaction.commit().map_err(fault)?;
        self.tally = tally;
        if self.level == Level::Machine {
            self.durable = tally.commits;
        }
        Ok(())
    }

    /// Moves the log into the file once it is long.
    fn checkpoint(&mut self) -> Result<(), StoreError> {
        if self.frames.load(Ordering::Relaxed) < self.checkpoint_frames {
            return Ok(());
        }
        match checkpoint(&self.connection, "PASSIVE") {
            Ok(()) => {}
            // The log goes on growing, for which there may be room.
            Err(StoreError::Full) => return Ok(()),
            Err(error) => return Err(error),
        }
        self.frames.store(0, Ordering::Relaxed);
        self.durable = self.tally.commits;
        self.note()?;
        self.mark.as_ref().map_or(Ok(()), Mark::sync)
    }

    fn note(&mut self) -> Result<(), StoreError> {
        let reached = Reached { commits: self.tally.commits, durable: self.durable };
        match self.mark.as_mut().map_or(Ok(()), |mark| mark.write(reached)) {
            // A file system that writes nothing in place. The mark stays behind, which it may.
            Err(StoreError::Full) => Ok(()),
            other => other,
        }
    }

    fn blob<T: DeserializeOwned>(&self, sql: &str, id: JobId) -> Result<Option<T>, StoreError> {
        let mut statement = self.connection.prepare_cached(sql).map_err(fault)?;
        let row = statement
            .query_row([id.0 as i64], |row| Ok(open(id, row.get_ref(0)?.as_blob()?)))
            .optional();
        row.map_err(fault)?.transpose()
    }

    fn records(
        &self,
        sql: &str,
        values: &[&dyn rusqlite::ToSql],
    ) -> Result<Vec<Record>, StoreError> {
        let mut statement = self.connection.prepare_cached(sql).map_err(fault)?;
        let mut rows = statement.query(values).map_err(fault)?;
        let mut records = Vec::new();
        while let Some(row) = rows.next().map_err(fault)? {
            records.push(record(row).map_err(fault)??);
        }
        Ok(records)
    }
}

impl Store for SqliteStore {
    fn commit(&mut self, changes: &[Change]) -> Result<(), StoreError> {
        match self.keep(changes) {
            Err(StoreError::Full) if self.space.drop_ballast()? => self.keep(changes)?,
            other => other?,
        }
        self.note()?;
        self.checkpoint()?;
        Ok(self.space.restore()?)
    }

    fn live(&mut self, take: &mut dyn FnMut(Record)) -> Result<(), StoreError> {
        // Without an index, which would cost each job more than it saves: all has just been read to be checked.
        let sql = "SELECT id, terms, life, state FROM job WHERE state < 3 ORDER BY id";
        let mut statement = self.connection.prepare(sql).map_err(fault)?;
        let mut rows = statement.query([]).map_err(fault)?;
        let mut count = 0;
        while let Some(row) = rows.next().map_err(fault)? {
            let record = record(row).map_err(fault)??;
            let state = record.life.state();
            if row.get::<_, i64>(3).map_err(fault)? != number(state) || record.id >= self.tally.next
            {
                let what = format!("job {} stands elsewhere than its record says", record.id);
                return Err(StoreError::Damaged(what));
            }
            take(record);
            count += 1;
        }
        if count == self.tally.live {
            Ok(())
        } else {
            let what =
                format!("it has {count} jobs that have not ended instead of {}", self.tally.live);
            Err(StoreError::Damaged(what))
        }
    }

    fn queues(&mut self) -> Result<Vec<(String, QueueSetting)>, StoreError> {
        let mut statement =
            self.connection.prepare("SELECT name, setting FROM queue").map_err(fault)?;
        let mut rows = statement.query([]).map_err(fault)?;
        let mut queues = Vec::new();
        while let Some(row) = rows.next().map_err(fault)? {
            let name = row.get(0).map_err(fault)?;
            let blob =
                row.get_ref(1).map_err(fault)?.as_blob().map_err(|error| fault(error.into()))?;
            queues.push((name, open(NO_JOB, blob)?));
        }
        Ok(queues)
    }

    fn next_id(&mut self) -> Result<JobId, StoreError> {
        Ok(self.tally.next)
    }

    fn record(&mut self, id: JobId) -> Result<Option<Record>, StoreError> {
        let sql = "SELECT id, terms, life FROM job WHERE id = ?1";
        let mut statement = self.connection.prepare_cached(sql).map_err(fault)?;
        let found = statement.query_row([id.0 as i64], record).optional().map_err(fault)?;
        found.transpose()
    }

    fn state(&mut self, id: JobId) -> Result<Option<State>, StoreError> {
        Ok(self.record(id)?.map(|record| record.life.state()))
    }

    fn page(&mut self, after: JobId, limit: u32) -> Result<Vec<Record>, StoreError> {
        let sql = "SELECT id, terms, life FROM job WHERE id > ?1 ORDER BY id LIMIT ?2";
        self.records(sql, params![after.0 as i64, limit])
    }

    fn work(&mut self, id: JobId) -> Result<Option<(Record, Work)>, StoreError> {
        let Some(record) = self.record(id)? else {
            return Ok(None);
        };
        let work = self.blob("SELECT work FROM work WHERE id = ?1", id)?;
        Ok(work.map(|work| (record, work)))
    }

    fn ending(&mut self, id: JobId) -> Result<Option<(State, Ending)>, StoreError> {
        let Some(state) = self.state(id)? else {
            return Ok(None);
        };
        if state == State::Expired {
            return Ok(Some((state, Ending::nothing())));
        }
        let ending = self.blob("SELECT ending FROM ending WHERE id = ?1", id)?;
        Ok(ending.map(|ending| (state, ending)))
    }

    fn by_key(&mut self, key: &str) -> Result<Option<JobId>, StoreError> {
        let mut statement =
            self.connection.prepare_cached("SELECT id FROM job WHERE key = ?1").map_err(fault)?;
        let id: Option<i64> =
            statement.query_row([key], |row| row.get(0)).optional().map_err(fault)?;
        Ok(id.map(|id| JobId(id as u64)))
    }

    fn stale(&mut self, before: Moment, bytes: u64, limit: u32) -> Result<Vec<Record>, StoreError> {
        let mut left = self.tally.left;
        let mut ids = Vec::new();
        {
            let sql = "SELECT id, at, bytes FROM ending ORDER BY at LIMIT ?1";
            let mut statement = self.connection.prepare_cached(sql).map_err(fault)?;
            let mut rows = statement.query([limit]).map_err(fault)?;
            while let Some(row) = rows.next().map_err(fault)? {
                let (id, at, len): (i64, i64, i64) = (
                    row.get(0).map_err(fault)?,
                    row.get(1).map_err(fault)?,
                    row.get(2).map_err(fault)?,
                );
                if at as u64 >= before.0 && left <= bytes {
                    break;
                }
                left = left.saturating_sub(len as u64);
                ids.push(JobId(id as u64));
            }
        }
        let records = ids.into_iter().map(|id| self.record(id));
        let records: Vec<Option<Record>> = records.collect::<Result<_, _>>()?;
        Ok(records.into_iter().flatten().collect())
    }

    fn close(mut self: Box<Self>) -> Result<(), StoreError> {
        if self.mark.is_none() {
            return Ok(());
        }
        checkpoint(&self.connection, "TRUNCATE")?;
        self.durable = self.tally.commits;
        let SqliteStore { connection, tally, durable, mark, .. } = *self;
        connection.close().map_err(|(_, error)| fault(error))?;
        let mut mark = mark.expect("it is no store in memory");
        mark.write(Reached { commits: tally.commits, durable })?;
        mark.sync()
    }
}

/// Moves all of the log into the file, and syncs both.
pub(super) fn checkpoint(connection: &Connection, mode: &str) -> Result<(), StoreError> {
    let sql = format!("PRAGMA wal_checkpoint({mode})");
    let busy: i64 = connection.query_row(&sql, [], |row| row.get(0)).map_err(fault)?;
    assert_eq!(busy, 0, "nobody else has it open");
    Ok(())
}

fn run(
    connection: &Connection,
    sql: &str,
    values: &[&dyn rusqlite::ToSql],
) -> Result<(), StoreError> {
    let mut statement = connection.prepare_cached(sql).map_err(fault)?;
    match statement.execute(values).map_err(fault)? {
        1 => Ok(()),
        _ => Err(StoreError::Damaged("a job is not there that was kept".into())),
    }
}

fn write(connection: &Connection, change: &Change, tally: &mut Tally) -> Result<(), StoreError> {
    match change {
        Change::Insert { record: Record { id, terms, life }, work } => {
            let row = id.0 as i64;
            tally.next = tally.next.max(JobId(id.0 + 1));
            tally.live += 1;
            run(
                connection,
                "INSERT INTO job (id, state, key, terms, life) VALUES (?1, ?2, ?3, ?4, ?5)",
                &[&row, &number(life.state()), &terms.key, &seal(*id, terms), &seal(*id, life)],
            )?;
            let sql = "INSERT INTO work (id, work) VALUES (?1, ?2)";
            run(connection, sql, &[&row, &seal(*id, work)])
        }
        Change::Step { id, life } => {
            if has_ended_before(life) {
                tally.live += 1;
                remove_ending(connection, *id, tally)?;
            }
            update(connection, *id, life)
        }
        Change::Back { id, life } => update(connection, *id, life),
        Change::End { id, life, ending } => {
            update(connection, *id, life)?;
            let at = life.history.last().map_or(0, |step| step.at.0 as i64);
            let sql = "INSERT INTO ending (id, at, bytes, ending) \
                       SELECT id, ?2, length(work) + length(?3), ?3 FROM work WHERE id = ?1 \
                       RETURNING bytes";
            tally.live -= 1;
            tally.left += bytes(connection, sql, params![id.0 as i64, at, seal(*id, ending)])?;
            Ok(())
        }
        Change::Expire { id, life } => {
            update(connection, *id, life)?;
            let row = id.0 as i64;
            run(connection, "UPDATE job SET key = NULL WHERE id = ?1", &[&row])?;
            tally.expired += 1;
            remove_ending(connection, *id, tally)?;
            remove_work(connection, *id)
        }
        Change::Queue { name, setting } => {
            let sql = "INSERT OR REPLACE INTO queue (name, setting) VALUES (?1, ?2)";
            run(connection, sql, &[name, &seal(NO_JOB, setting)])
        }
        Change::Forget { id } => {
            let sql = "DELETE FROM job WHERE id = ?1 AND state >= 3 RETURNING state";
            let mut statement = connection.prepare_cached(sql).map_err(fault)?;
            let state = statement.query_row([id.0 as i64], |row| row.get::<_, i64>(0)).optional();
            match state.map_err(fault)? {
                None => Ok(()),
                Some(11) => {
                    tally.expired -= 1;
                    Ok(())
                }
                Some(_) => {
                    remove_ending(connection, *id, tally)?;
                    remove_work(connection, *id)
                }
            }
        }
    }
}

/// True of a job that is taken up again.
fn has_ended_before(life: &Life) -> bool {
    life.history.iter().rev().nth(1).is_some_and(|step| step.state.is_terminal())
}

fn remove_work(connection: &Connection, id: JobId) -> Result<(), StoreError> {
    run(connection, "DELETE FROM work WHERE id = ?1", &[&(id.0 as i64)])
}

fn remove_ending(connection: &Connection, id: JobId, tally: &mut Tally) -> Result<(), StoreError> {
    let sql = "DELETE FROM ending WHERE id = ?1 RETURNING bytes";
    tally.left = tally.left.saturating_sub(bytes(connection, sql, params![id.0 as i64])?);
    Ok(())
}

/// Runs a statement about one row, which returns a number.
fn bytes(
    connection: &Connection,
    sql: &str,
    values: &[&dyn rusqlite::ToSql],
) -> Result<u64, StoreError> {
    let mut statement = connection.prepare_cached(sql).map_err(fault)?;
    let found = statement.query_row(values, |row| row.get::<_, i64>(0)).optional();
    let missing = || StoreError::Damaged("a job is not there that was kept".into());
    Ok(found.map_err(fault)?.ok_or_else(missing)? as u64)
}

pub(super) fn put(connection: &Connection, tally: &Tally) -> Result<(), StoreError> {
    let sql = "INSERT OR REPLACE INTO tally (one, tally) VALUES (1, ?1)";
    run(connection, sql, &[&seal(NO_JOB, tally)])
}

/// The tally of a journal.
pub(super) fn tally(connection: &Connection) -> Result<Tally, StoreError> {
    let read = |row: &rusqlite::Row<'_>| Ok(open(NO_JOB, row.get_ref(0)?.as_blob()?));
    let row = connection.query_row("SELECT tally FROM tally", [], read).optional();
    row.map_err(fault)?.unwrap_or_else(|| Err(StoreError::Damaged("it has no tally".into())))
}

fn update(connection: &Connection, id: JobId, life: &Life) -> Result<(), StoreError> {
    let values: [&dyn rusqlite::ToSql; 3] =
        [&(id.0 as i64), &number(life.state()), &seal(id, life)];
    run(connection, "UPDATE job SET state = ?2, life = ?3 WHERE id = ?1", &values)
}

/// The numbers in the column `state`. Those below 3 are of jobs that have not ended.
fn number(state: State) -> i64 {
    match state {
        State::Scheduled => 0,
        State::Queued => 1,
        State::Running(_) => 2,
        State::Succeeded => 3,
        State::Failed => 4,
        State::Panicked => 5,
        State::Died => 6,
        State::TimedOut => 7,
        State::Cancelled => 8,
        State::Interrupted { .. } => 9,
        State::Quarantined => 10,
        State::Expired => 11,
    }
}

/// A row of `id, terms, life`.
fn record(row: &rusqlite::Row<'_>) -> rusqlite::Result<Result<Record, StoreError>> {
    let id = JobId(row.get::<_, i64>(0)? as u64);
    let terms = open::<Terms>(id, row.get_ref(1)?.as_blob()?);
    let life = open::<Life>(id, row.get_ref(2)?.as_blob()?);
    Ok(terms.and_then(|terms| Ok(Record { id, terms, life: life? })))
}

pub(super) fn fault(error: rusqlite::Error) -> StoreError {
    use rusqlite::ErrorCode::{DatabaseCorrupt, DiskFull, NotADatabase};
    match error.sqlite_error_code() {
        Some(DatabaseCorrupt | NotADatabase) => StoreError::Damaged(error.to_string()),
        Some(DiskFull) => StoreError::Full,
        Some(_) => StoreError::Io(io::Error::other(error)),
        // A column of another kind than it was made with, or the like.
        None => StoreError::Damaged(error.to_string()),
    }
}
