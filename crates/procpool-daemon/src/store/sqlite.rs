//! The store on SQLite: one file and its write-ahead log, opened by nobody else.
//!
//! One table with a row for each job: its state for the indexes, and three columns of encoded bytes, each with a
//! checksum, since SQLite has none in its pages: its terms, which never change; its life, which each step rewrites;
//! what it is to do and how it ended stand in tables of their own, so that a step does not move them.

use std::io;
use std::path::Path;

use procpool_wire::codec;
use rusqlite::{Connection, OptionalExtension, TransactionBehavior, params};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Change, Store, StoreError};
use crate::config::Level;
use crate::job::{Ending, JobId, Life, Record, State, Terms, Work};
use crate::machine::QueueSetting;

/// The layout of the tables below. Raised with every change to them or to what is encoded in them.
const SCHEMA_VERSION: i64 = 1;
/// In the checksum of what belongs to no job.
const NO_JOB: JobId = JobId(0);
/// `PRAGMA application_id`: "PPjq".
const APPLICATION_ID: i64 = 0x5050_6a71;
/// Pages of the write-ahead log before its content moves into the file: 16 MiB, so that a checkpoint costs each
/// commit little, and a restart has little to read again.
const CHECKPOINT_PAGES: i64 = 4096;
/// Memory for pages, in KiB (negative: see the manual of SQLite).
const CACHE_KIB: i64 = -16 * 1024;

const SCHEMA: &str = "
    CREATE TABLE job (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        state INTEGER NOT NULL,
        key TEXT,
        terms BLOB NOT NULL,
        life BLOB NOT NULL
    ) STRICT;
    CREATE TABLE work (id INTEGER PRIMARY KEY, work BLOB NOT NULL) STRICT;
    CREATE TABLE ending (id INTEGER PRIMARY KEY, ending BLOB NOT NULL) STRICT;
    CREATE TABLE queue (name TEXT PRIMARY KEY, setting BLOB NOT NULL) STRICT;
    CREATE UNIQUE INDEX job_key ON job (key) WHERE key IS NOT NULL;
    CREATE INDEX job_live ON job (id) WHERE state < 3;
";

/// The numbers in the column `state`. Those below 3 are of jobs that have not ended, as the index says.
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

/// The store.
#[derive(Debug)]
pub struct SqliteStore {
    connection: Connection,
}

impl SqliteStore {
    /// Opens the file, or makes it. `None` keeps everything in memory.
    ///
    /// # Errors
    /// If it cannot be opened, is damaged, or was written by a later version. It is left as it is then.
    pub fn open(path: Option<&Path>, level: Level) -> Result<SqliteStore, StoreError> {
        let connection = match path {
            Some(path) if level != Level::Memory => Connection::open(path),
            _ => Connection::open_in_memory(),
        };
        let connection = connection.map_err(fault)?;
        let store = SqliteStore { connection };
        store.prepare(level)?;
        Ok(store)
    }

    fn prepare(&self, level: Level) -> Result<(), StoreError> {
        let connection = &self.connection;
        let pragma = |name: &str| {
            connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0)).map_err(fault)
        };
        let set = |name: &str, value: &dyn rusqlite::ToSql| {
            connection.pragma_update(None, name, value).map_err(fault)
        };
        // Nobody else opens it, and no index of the log in shared memory is needed then.
        set("locking_mode", &"EXCLUSIVE")?;
        let found = pragma("user_version")?;
        if found > SCHEMA_VERSION {
            return Err(StoreError::Newer { found, known: SCHEMA_VERSION });
        }
        if found != 0 && pragma("application_id")? != APPLICATION_ID {
            return Err(StoreError::Damaged("it is the database of another program".into()));
        }
        set("journal_mode", &"WAL")?;
        set("synchronous", &if level == Level::Machine { "FULL" } else { "NORMAL" })?;
        set("wal_autocheckpoint", &CHECKPOINT_PAGES)?;
        set("cache_size", &CACHE_KIB)?;
        if found == 0 {
            let make = format!(
                "BEGIN IMMEDIATE; {SCHEMA} PRAGMA application_id = {APPLICATION_ID}; \
                 PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
            );
            return connection.execute_batch(&make).map_err(fault);
        }
        let check: String =
            connection.pragma_query_value(None, "quick_check", |row| row.get(0)).map_err(fault)?;
        if check == "ok" { Ok(()) } else { Err(StoreError::Damaged(check)) }
    }

    fn blob<T: DeserializeOwned>(&self, sql: &str, id: JobId) -> Result<Option<T>, StoreError> {
        let mut statement = self.connection.prepare_cached(sql).map_err(fault)?;
        let row = statement
            .query_row([id.0 as i64], |row| Ok(open(id, row.get_ref(0)?.as_blob()?)))
            .optional();
        row.map_err(fault)?.transpose()
    }
}

impl Store for SqliteStore {
    fn commit(&mut self, changes: &[Change]) -> Result<(), StoreError> {
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(fault)?;
        for change in changes {
            write(&transaction, change)?;
        }
        transaction.commit().map_err(fault)
    }

    fn live(&mut self, take: &mut dyn FnMut(Record)) -> Result<(), StoreError> {
        let sql = "SELECT id, terms, life FROM job INDEXED BY job_live WHERE state < 3 ORDER BY id";
        let mut statement = self.connection.prepare(sql).map_err(fault)?;
        let mut rows = statement.query([]).map_err(fault)?;
        while let Some(row) = rows.next().map_err(fault)? {
            take(record(row).map_err(fault)??);
        }
        Ok(())
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
        let sql = "SELECT seq FROM sqlite_sequence WHERE name = 'job'";
        let last: Option<i64> =
            self.connection.query_row(sql, [], |row| row.get(0)).optional().map_err(fault)?;
        Ok(JobId(last.map_or(1, |last| last as u64 + 1)))
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
        let mut statement = self.connection.prepare_cached(sql).map_err(fault)?;
        let mut rows = statement.query(params![after.0 as i64, limit]).map_err(fault)?;
        let mut page = Vec::new();
        while let Some(row) = rows.next().map_err(fault)? {
            page.push(record(row).map_err(fault)??);
        }
        Ok(page)
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
}

fn write(connection: &Connection, change: &Change) -> Result<(), StoreError> {
    let run = |sql: &str, values: &[&dyn rusqlite::ToSql]| {
        let mut statement = connection.prepare_cached(sql).map_err(fault)?;
        match statement.execute(values).map_err(fault)? {
            1 => Ok(()),
            _ => Err(StoreError::Damaged("a job is not there that was kept".into())),
        }
    };
    match change {
        Change::Insert { record: Record { id, terms, life }, work } => {
            let row = id.0 as i64;
            run(
                "INSERT INTO job (id, state, key, terms, life) VALUES (?1, ?2, ?3, ?4, ?5)",
                &[&row, &number(life.state()), &terms.key, &seal(*id, terms), &seal(*id, life)],
            )?;
            run("INSERT INTO work (id, work) VALUES (?1, ?2)", &[&row, &seal(*id, work)])
        }
        Change::Step { id, life } => update(&run, *id, life),
        Change::End { id, life, ending } => {
            update(&run, *id, life)?;
            let sql = "INSERT OR REPLACE INTO ending (id, ending) VALUES (?1, ?2)";
            run(sql, &[&(id.0 as i64), &seal(*id, ending)])
        }
        Change::Queue { name, setting } => {
            let sql = "INSERT OR REPLACE INTO queue (name, setting) VALUES (?1, ?2)";
            run(sql, &[name, &seal(NO_JOB, setting)])
        }
        Change::Forget { id } => {
            for table in ["job", "work", "ending"] {
                let sql = format!("DELETE FROM {table} WHERE id = ?1");
                let mut statement = connection.prepare_cached(&sql).map_err(fault)?;
                statement.execute([id.0 as i64]).map_err(fault)?;
            }
            Ok(())
        }
    }
}

type Run<'a> = dyn Fn(&str, &[&dyn rusqlite::ToSql]) -> Result<(), StoreError> + 'a;

fn update(run: &Run<'_>, id: JobId, life: &Life) -> Result<(), StoreError> {
    let values: [&dyn rusqlite::ToSql; 3] =
        [&(id.0 as i64), &number(life.state()), &seal(id, life)];
    run("UPDATE job SET state = ?2, life = ?3 WHERE id = ?1", &values)
}

/// A row of `id, terms, life`.
fn record(row: &rusqlite::Row<'_>) -> rusqlite::Result<Result<Record, StoreError>> {
    let id = JobId(row.get::<_, i64>(0)? as u64);
    let terms = open::<Terms>(id, row.get_ref(1)?.as_blob()?);
    let life = open::<Life>(id, row.get_ref(2)?.as_blob()?);
    Ok(terms.and_then(|terms| Ok(Record { id, terms, life: life? })))
}

/// Encoded, with a checksum in front over the bytes and whose they are.
fn seal<T: Serialize>(id: JobId, value: &T) -> Vec<u8> {
    let mut bytes = vec![0; 4];
    codec::encode_into(value, None, &mut bytes).expect("plain data can be encoded");
    let sum = checksum(id, &bytes[4..]);
    bytes[..4].copy_from_slice(&sum.to_le_bytes());
    bytes
}

fn open<T: DeserializeOwned>(id: JobId, bytes: &[u8]) -> Result<T, StoreError> {
    let damaged = |what: &str| StoreError::Damaged(format!("the record of job {id} {what}"));
    let (sum, bytes) = bytes.split_at_checked(4).ok_or_else(|| damaged("is cut off"))?;
    if sum != checksum(id, bytes).to_le_bytes() {
        return Err(damaged("does not have its checksum"));
    }
    codec::decode(bytes).map_err(|fault| damaged(&format!("cannot be read: {fault}")))
}

fn checksum(id: JobId, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&id.0.to_le_bytes());
    hasher.update(bytes);
    hasher.finalize()
}

fn fault(error: rusqlite::Error) -> StoreError {
    use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
    match error.sqlite_error_code() {
        Some(DatabaseCorrupt | NotADatabase) => StoreError::Damaged(error.to_string()),
        _ => StoreError::Io(io::Error::other(error)),
    }
}
