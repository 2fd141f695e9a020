//! How a journal is judged when it is opened: it is as it was left, or it is refused and left alone.
//!
//! | there is | it is |
//! |---|---|
//! | neither journal nor mark | made |
//! | a journal without a job, and no mark | gone on with: a crash came in between |
//! | a mark, and no journal, or one that does not reach it | damaged: acknowledged jobs are gone |
//! | a journal with jobs, and no mark | damaged: it is not known what is gone |
//! | a later version, or another program's database | refused |
//! | any other journal | looked through, page by page and record by record |

use std::fs::{self, File};
use std::io;
use std::path::Path;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};

use super::StoreError;
use super::mark::{Found, Mark, Reached};
use super::seal;
use super::sqlite::{self, Tally, fault};
use crate::config::Level;
use crate::job::JobId;

/// The layout of the tables below. Raised with every change to them or to what is encoded in them.
const SCHEMA_VERSION: i64 = 1;
/// `PRAGMA application_id`: "PPjq".
const APPLICATION_ID: i64 = 0x5050_6a71;
/// Memory for pages, in KiB (negative: see the manual of SQLite).
const CACHE_KIB: i64 = -16 * 1024;

const SCHEMA: &str = "
    CREATE TABLE job (
        id INTEGER PRIMARY KEY,
        state INTEGER NOT NULL,
        key TEXT,
        terms BLOB NOT NULL,
        life BLOB NOT NULL
    ) STRICT;
    CREATE TABLE work (id INTEGER PRIMARY KEY, work BLOB NOT NULL) STRICT;
    CREATE TABLE ending (
        id INTEGER PRIMARY KEY,
        at INTEGER NOT NULL,
        bytes INTEGER NOT NULL,
        ending BLOB NOT NULL
    ) STRICT;
    CREATE TABLE queue (name TEXT PRIMARY KEY, setting BLOB NOT NULL) STRICT;
    CREATE TABLE tally (one INTEGER PRIMARY KEY CHECK (one = 1), tally BLOB NOT NULL) STRICT;
    CREATE UNIQUE INDEX job_key ON job (key) WHERE key IS NOT NULL;
    CREATE INDEX job_expired ON job (id) WHERE state = 11;
    CREATE INDEX ending_at ON ending (at);
";

/// The header of a database's file, in bytes (SQLite's "Database File Format", 1.3).
const HEADER_LEN: u64 = 100;

/// A journal that can be gone on with.
pub(super) struct Opened {
    pub(super) connection: Connection,
    pub(super) tally: Tally,
    pub(super) mark: Mark,
}

/// Opens the journal of a directory, or makes it.
pub(super) fn open(dir: &Path, level: Level) -> Result<Opened, StoreError> {
    let path = dir.join("journal.sqlite");
    let mark_path = dir.join("journal.mark");
    let mark = Mark::open(&mark_path)?;
    let len = match fs::metadata(&path) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        Err(error) => return Err(error.into()),
    };
    if len == 0 {
        if let Found::Says(_, Reached { commits, .. }) = mark {
            return Err(StoreError::Damaged(format!("it is gone, with {commits} commits")));
        }
        make_file(dir, &path)?;
    } else if len < HEADER_LEN {
        // SQLite would take a file of one byte for a new one, and make it so.
        return Err(StoreError::Damaged(format!("{len} bytes of it are left")));
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(&path, flags).map_err(fault)?;
    // What is refused is left as it is: SQLite would move a log into its file, and remove it, as it closes.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).map_err(fault)?;
    judge(&connection)?;
    configure(&connection, level)?;
    let tally = sqlite::tally(&connection)?;
    let (mut mark, reached) = match mark {
        Found::Says(mark, reached) => (mark, reached),
        // Nothing was acknowledged yet, and whoever made it did not come further.
        Found::Nothing | Found::Nonsense if tally.next == JobId(1) => {
            return begin(dir, connection, tally, &mark_path);
        }
        Found::Nothing => {
            return Err(StoreError::Damaged(format!("`{}` is missing", mark_path.display())));
        }
        Found::Nonsense => {
            let what = format!("`{}` says nothing that holds", mark_path.display());
            return Err(StoreError::Damaged(what));
        }
    };
    if tally.commits < reached.commits {
        let (has, had) = (tally.commits, reached.commits);
        let what = format!("it ends with commit {has}, and commit {had} was acknowledged");
        return Err(StoreError::Damaged(what));
    }
    look_through(&connection)?;
    let durable = reached.durable;
    mark.write(Reached { commits: tally.commits, durable })?;
    Ok(Opened { connection, tally, mark })
}

/// An error if it is not ours, or not of this version.
fn judge(connection: &Connection) -> Result<(), StoreError> {
    // Nobody else opens it, and no index of the log in shared memory is needed then.
    connection.pragma_update(None, "locking_mode", "EXCLUSIVE").map_err(fault)?;
    let pragma = |name: &str| {
        connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0)).map_err(fault)
    };
    let version = pragma("user_version")?;
    let is_ours = pragma("application_id")? == APPLICATION_ID;
    match (version, is_ours) {
        (_, false) => Err(StoreError::Damaged("it is the database of another program".into())),
        (SCHEMA_VERSION, true) => Ok(()),
        (found, true) if found > SCHEMA_VERSION => {
            Err(StoreError::Newer { found, known: SCHEMA_VERSION })
        }
        (found, true) => Err(StoreError::Damaged(format!("it has version {found}"))),
    }
}

/// Makes a journal under another name, so that there is a whole one or none whenever the power goes.
fn make_file(dir: &Path, path: &Path) -> Result<(), StoreError> {
    let new = dir.join("journal.new");
    for left in [new.clone(), dir.join("journal.new-wal"), dir.join("journal.new-journal")] {
        match fs::remove_file(left) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
    }
    let connection = Connection::open(&new).map_err(fault)?;
    connection.pragma_update(None, "locking_mode", "EXCLUSIVE").map_err(fault)?;
    configure(&connection, Level::Machine)?;
    make(&connection)?;
    sqlite::checkpoint(&connection, "TRUNCATE")?;
    connection.close().map_err(|(_, error)| fault(error))?;
    fs::rename(new, path)?;
    Ok(File::open(dir)?.sync_all()?)
}

pub(super) fn configure(connection: &Connection, level: Level) -> Result<(), StoreError> {
    let set = |name: &str, value: &dyn rusqlite::ToSql| {
        connection.pragma_update(None, name, value).map_err(fault)
    };
    set("journal_mode", &"WAL")?;
    set("synchronous", &if level == Level::Machine { "FULL" } else { "NORMAL" })?;
    set("wal_autocheckpoint", &0)?;
    set("cache_size", &CACHE_KIB)
}

/// Makes the tables.
pub(super) fn make(connection: &Connection) -> Result<Tally, StoreError> {
    let tally = Tally { commits: 1, next: JobId(1), live: 0, expired: 0, left: 0 };
    let transaction = connection.unchecked_transaction().map_err(fault)?;
    transaction.execute_batch(SCHEMA).map_err(fault)?;
    transaction.pragma_update(None, "application_id", APPLICATION_ID).map_err(fault)?;
    transaction.pragma_update(None, "user_version", SCHEMA_VERSION).map_err(fault)?;
    sqlite::put(&transaction, &tally)?;
    transaction.commit().map_err(fault)?;
    Ok(tally)
}

/// Makes the mark of a journal without jobs. The names of both are durable before there is one.
fn begin(
    dir: &Path,
    connection: Connection,
    tally: Tally,
    mark_path: &Path,
) -> Result<Opened, StoreError> {
    let reached = Reached { commits: tally.commits, durable: tally.commits };
    let mark = Mark::create(mark_path, reached)?;
    File::open(dir)?.sync_all()?;
    Ok(Opened { connection, tally, mark })
}

/// Every page is where it belongs, and every record has its checksum.
fn look_through(connection: &Connection) -> Result<(), StoreError> {
    let check: String =
        connection.pragma_query_value(None, "integrity_check", |row| row.get(0)).map_err(fault)?;
    if check != "ok" {
        return Err(StoreError::Damaged(check));
    }
    for sql in [
        "SELECT id, terms, life FROM job",
        "SELECT id, work FROM work",
        "SELECT id, ending FROM ending",
    ] {
        let mut statement = connection.prepare(sql).map_err(fault)?;
        let columns = statement.column_count();
        let mut rows = statement.query([]).map_err(fault)?;
        while let Some(row) = rows.next().map_err(fault)? {
            let id = JobId(row.get::<_, i64>(0).map_err(fault)? as u64);
            for column in 1..columns {
                let bytes = row.get_ref(column).map_err(fault)?;
                seal::check(id, bytes.as_blob().map_err(|error| fault(error.into()))?)?;
            }
        }
    }
    Ok(())
}
