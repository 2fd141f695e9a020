//! Room on the disk: what is kept free for the ends of jobs, and whether there is room for new ones.
//!
//! A job that was taken can always be ended: a file of some MiB, the ballast, is given up when the disk is full, and
//! what it leaves is enough to record ends. Meanwhile no job is taken; when there is room again the ballast is
//! put back.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::statvfs::statvfs;

/// Room for thousands of ends: the log up to its checkpoint is smaller.
const BALLAST_BYTES: i64 = 24 << 20;
/// What is left on a disk when no job is taken any more: some batches of jobs that were being taken.
const RESERVE_BYTES: u64 = 4 << 20;
/// How long what the system said about the disk is believed.
const LOOK: Duration = Duration::from_millis(10);
/// How long until the ballast is tried to be put back.
const TRY: Duration = Duration::from_millis(100);

/// The room of one directory, shared by those who take jobs and those who write.
#[derive(Debug, Clone)]
pub struct Space(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// `None`: nothing is written there.
    dir: Option<PathBuf>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    ballast: Ballast,
    /// What is left of what was free when it was looked at, and when that was.
    free: Option<(u64, Instant)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ballast {
    /// It is there.
    Aboard,
    /// It was given up, and is tried again then.
    Dropped { again: Instant },
}

impl Space {
    /// That of this directory, with its ballast if there is room for it.
    pub(super) fn of(dir: &Path) -> Result<Space, io::Error> {
        let ballast = if load(dir)? { Ballast::Aboard } else { dropped() };
        Ok(Space::new(Some(dir.to_owned()), ballast))
    }

    /// That of a store in memory.
    pub(super) fn unbounded() -> Space {
        Space::new(None, Ballast::Aboard)
    }

    fn new(dir: Option<PathBuf>, ballast: Ballast) -> Space {
        Space(Arc::new(Inner { dir, state: Mutex::new(State { ballast, free: None }) }))
    }

    /// Whether there is room for a job of that many bytes, which counts as taken then.
    pub fn take(&self, bytes: u64) -> bool {
        let Some(dir) = &self.0.dir else {
            return true;
        };
        // Here too: as long as no job is taken there may be nothing to write.
        if self.restore().is_err() || self.state().ballast != Ballast::Aboard {
            return false;
        }
        let mut state = self.state();
        let (free, at) = match state.free {
            Some((free, at)) if at.elapsed() < LOOK => (free, at),
            _ => match statvfs(dir) {
                Ok(stat) => (stat.blocks_available() * stat.fragment_size(), Instant::now()),
                // The write will tell.
                Err(_) => return true,
            },
        };
        // In the log, and then in its place; its record besides.
        let cost = 2 * bytes + 1024;
        let has_room = free >= RESERVE_BYTES + cost;
        state.free = Some((if has_room { free - cost } else { free }, at));
        has_room
    }

    /// Gives up the ballast. False if there is none.
    pub(super) fn drop_ballast(&self) -> Result<bool, io::Error> {
        let mut state = self.state();
        match (&self.0.dir, state.ballast) {
            (Some(dir), Ballast::Aboard) => {
                fs::remove_file(path(dir))?;
                state.ballast = dropped();
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// Puts the ballast back if it was given up and there is room for it. Called now and then.
    pub(super) fn restore(&self) -> Result<(), io::Error> {
        let mut state = self.state();
        let (Some(dir), Ballast::Dropped { again }) = (&self.0.dir, state.ballast) else {
            return Ok(());
        };
        if Instant::now() >= again {
            state.ballast = if load(dir)? { Ballast::Aboard } else { dropped() };
        }
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn dropped() -> Ballast {
    Ballast::Dropped { again: Instant::now() + TRY }
}

fn path(dir: &Path) -> PathBuf {
    dir.join("ballast")
}

/// Makes the file of full length, if there is room for it and for what jobs need besides.
fn load(dir: &Path) -> Result<bool, io::Error> {
    let path = path(dir);
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
    let file = match file {
        Ok(file) => file,
        Err(error) if is_full(&error) => return Ok(false),
        Err(error) => return Err(error),
    };
    match fallocate(&file, FallocateFlags::empty(), 0, BALLAST_BYTES).map_err(io::Error::from) {
        Ok(()) => Ok(true),
        // A file system that cannot keep room: its writes can fail with any room there is.
        Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(true),
        Err(error) if is_full(&error) => {
            // What it got of it.
            fs::remove_file(&path)?;
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// Whether there was no room, on the disk or within a quota.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
