//! Who reads a log as it is written: each asks for what comes after a place, and is answered when there is something, or
//! when there will be nothing. The kernel tells of new bytes (see inotify(7)); nobody looks for them in vain.

use std::collections::HashMap;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};

use super::Asker;
use crate::job::JobId;
use crate::protocol::Stream;

/// A place in a log, and who waits for what comes after it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Follower {
    pub(super) asker: Asker,
    pub(super) stream: Stream,
    pub(super) offset: u64,
}

/// See above. What bounds them is what a client may have under way.
#[derive(Debug)]
pub(in crate::server) struct Followers {
    kernel: Inotify,
    jobs: HashMap<JobId, Vec<Follower>>,
    /// The directories that are watched, and for how many followers.
    watched: HashMap<PathBuf, (WatchDescriptor, usize)>,
}

impl Followers {
    pub(in crate::server) fn new() -> nix::Result<Followers> {
        let kernel = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        Ok(Followers { kernel, jobs: HashMap::new(), watched: HashMap::new() })
    }

    /// Takes somebody in who waits for the log at `path`, which may not be there yet.
    pub(super) fn add(
        &mut self,
        id: JobId,
        path: &Path,
        follower: Follower,
    ) -> std::io::Result<()> {
        let dir = path.parent().expect("a log is in a directory");
        match self.watched.get_mut(dir) {
            Some((_, count)) => *count += 1,
            None => {
                fs::create_dir_all(dir)?;
                let flags = AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_ONLYDIR;
                let watch = self.kernel.add_watch(dir, flags)?;
                self.watched.insert(dir.to_owned(), (watch, 1));
            }
        }
        self.jobs.entry(id).or_default().push(follower);
        Ok(())
    }

    /// Those who wait for a log of this job, which they do no longer. `path` is any of its logs.
    pub(super) fn take(&mut self, id: JobId, path: &Path) -> Vec<Follower> {
        let followers = self.jobs.remove(&id).unwrap_or_default();
        if let Some(dir) = path.parent() {
            self.release(dir, followers.len());
        }
        followers
    }

    /// Somebody waits no longer.
    pub(super) fn withdraw(&mut self, id: JobId, path: &Path, asker: Asker) {
        let Some(followers) = self.jobs.get_mut(&id) else {
            return;
        };
        let before = followers.len();
        followers.retain(|follower| follower.asker != asker);
        let gone = before - followers.len();
        if followers.is_empty() {
            self.jobs.remove(&id);
        }
        if let Some(dir) = path.parent() {
            self.release(dir, gone);
        }
    }

    /// A client is gone. `path` finds a log of a job.
    pub(super) fn gone(&mut self, client: u64, path: impl Fn(JobId) -> PathBuf) {
        let mut released = Vec::new();
        self.jobs.retain(|id, followers| {
            let before = followers.len();
            followers.retain(|follower| follower.asker.client != client);
            if followers.len() < before {
                released.push((*id, before - followers.len()));
            }
            !followers.is_empty()
        });
        for (id, count) in released {
            if let Some(dir) = path(id).parent() {
                self.release(dir, count);
            }
        }
    }

    fn release(&mut self, dir: &Path, followers: usize) {
        let Some((watch, count)) = self.watched.get_mut(dir) else {
            return;
        };
        *count = count.saturating_sub(followers);
        if *count == 0 {
            // It fails if the directory is gone, and its watch with it.
            let _ = self.kernel.rm_watch(*watch);
            self.watched.remove(dir);
        }
    }

    /// The jobs that have said something, of which somebody waits for that.
    pub(super) fn heard(&mut self) -> Vec<JobId> {
        let mut jobs = Vec::new();
        while let Ok(events) = self.kernel.read_events() {
            for event in events {
                if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
                    // Whose it was is lost: all are looked at.
                    jobs.extend(self.jobs.keys().copied());
                }
                let name = event.name.as_ref().and_then(|name| name.to_str());
                let number = name.and_then(|name| name.split_once('.')?.0.parse().ok());
                jobs.extend(number.map(JobId).filter(|id| self.jobs.contains_key(id)));
            }
        }
        jobs.sort_unstable();
        jobs.dedup();
        jobs
    }
}

impl AsFd for Followers {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.kernel.as_fd()
    }
}
