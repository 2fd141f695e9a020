//! Journals made by hand, without a daemon: what is put in, what is read again.

use std::fs;
use std::path::Path;
use std::time::Duration;

use procpool_daemon::config::Level;
use procpool_daemon::job::{
    CommandEnd, Ending, JobId, Life, Moment, Outcome, Record, State, Step, TaskWork, Terms, Who,
    Work,
};
use procpool_daemon::store::sqlite::SqliteStore;
use procpool_daemon::store::{Change, Store, StoreError};

/// The files of a journal: itself, its log, its mark.
pub(super) const FILES: [&str; 3] = ["journal.sqlite", "journal.sqlite-wal", "journal.mark"];

/// How long the log gets before its content moves: some commits, so that a small journal has seen that.
pub(super) const FRAMES: u16 = 40;

/// All that can be known of a job.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Known {
    pub(super) record: Record,
    pub(super) work: Option<Work>,
    pub(super) ending: Option<Ending>,
}

/// A moment that is the same in every run.
fn at(id: u64) -> Moment {
    Moment(1_700_000_000_000 + id)
}

fn step(id: u64, state: State) -> Step {
    Step { at: at(id), state, who: Who::Client(7), why: Some("a reason".into()) }
}

/// A new job, queued. Each has a key, and work of some length.
pub(super) fn insert(id: u64, len: usize) -> Change {
    let terms = Terms {
        retries: Some(2),
        timeout: Some(Duration::from_secs(9)),
        key: Some(format!("key {id}")),
        ..Terms::new(format!("job {id}"))
    };
    let argument = vec![id as u8; len];
    let work = Work::Task(TaskWork { task: "a::task".into(), fingerprint: Some(id), argument });
    let life = Life::born(step(id, State::Queued));
    Change::Insert { record: Record { id: JobId(id), terms, life }, work }
}

fn life(id: u64, states: &[State]) -> Life {
    let history = states.iter().map(|state| step(id, *state)).collect();
    Life { attempts: 1, deaths: 0, history }
}

pub(super) fn started(id: u64) -> Change {
    Change::Step { id: JobId(id), life: life(id, &[State::Queued, State::Running(1)]) }
}

pub(super) fn ended(id: u64) -> Change {
    let ending = Ending {
        outcome: Outcome::Command(CommandEnd::Exit(0)),
        attempts: 1,
        queued: Duration::from_millis(2),
        ran: Duration::from_millis(5),
        cpu: Some(Duration::from_millis(3)),
        peak_rss: Some(1 << 20),
        pid: Some(4321),
    };
    let life = life(id, &[State::Queued, State::Running(1), State::Succeeded]);
    Change::End { id: JobId(id), life, ending: Box::new(ending) }
}

/// The commits of a small journal: some jobs wait, some run, some have ended.
pub(super) fn commits(jobs: u64) -> Vec<Vec<Change>> {
    let mut commits = Vec::new();
    for id in 1..=jobs {
        commits.push(vec![insert(id, 40 * id as usize % 300)]);
        match id % 3 {
            0 => commits.push(vec![started(id)]),
            1 => commits.extend([vec![started(id)], vec![ended(id)]]),
            _ => {}
        }
    }
    commits
}

pub(super) fn open(dir: &Path) -> Result<SqliteStore, StoreError> {
    SqliteStore::open(dir, Level::Machine)
}

/// Everything in a journal, read in every way there is.
pub(super) fn read(dir: &Path) -> Result<Vec<Known>, StoreError> {
    read_from(&mut open(dir)?)
}

pub(super) fn read_from(store: &mut SqliteStore) -> Result<Vec<Known>, StoreError> {
    let mut live = Vec::new();
    store.live(&mut |record| live.push(record))?;
    let mut jobs = Vec::new();
    for record in store.page(JobId(0), 100_000)? {
        let id = record.id;
        assert_eq!(store.record(id)?.as_ref(), Some(&record));
        let is_live = !record.life.state().is_terminal();
        assert_eq!(live.contains(&record), is_live, "{record:?}");
        let work = store.work(id)?.map(|(_, work)| work);
        let ending = store.ending(id)?.map(|(_, ending)| ending);
        if let Some(key) = &record.terms.key
            && record.life.state() != State::Expired
        {
            assert_eq!(store.by_key(key)?, Some(id));
        }
        jobs.push(Known { record, work, ending });
    }
    let next = store.next_id()?;
    assert!(jobs.iter().all(|known| known.record.id < next));
    Ok(jobs)
}

/// The bytes of a journal's files; `None` for one that is not there.
pub(super) fn bytes(dir: &Path) -> [Option<Vec<u8>>; 3] {
    FILES.map(|name| fs::read(dir.join(name)).ok())
}

/// Puts files as they were.
pub(super) fn lay(dir: &Path, files: &[Option<Vec<u8>>; 3]) {
    for (name, bytes) in FILES.iter().zip(files) {
        let path = dir.join(name);
        match bytes {
            Some(bytes) => fs::write(path, bytes).unwrap(),
            None => {
                let _ = fs::remove_file(path);
            }
        }
    }
}
