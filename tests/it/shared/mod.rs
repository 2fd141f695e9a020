//! `share`, `Shared` and `Bytes`: what travels by descriptor, once to each worker, and what is left of it.

mod bytes;
mod crash;
mod handles;
mod lent;
mod scarce;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use procpool::ProcessPool;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

const MIB: usize = 1 << 20;
/// How long it may take until everybody has let go, on a machine that others use as well.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often a [`Counted`] was decoded in this process, and how many there are.
static DECODED: AtomicU64 = AtomicU64::new(0);
static ALIVE: AtomicU64 = AtomicU64::new(0);

/// A value that counts its decodes and its drops.
#[derive(Debug)]
struct Counted(Vec<u64>);

impl Counted {
    fn new(values: Vec<u64>) -> Counted {
        ALIVE.fetch_add(1, Ordering::Relaxed);
        Counted(values)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        ALIVE.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Serialize for Counted {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Counted {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Counted, D::Error> {
        DECODED.fetch_add(1, Ordering::Relaxed);
        Vec::deserialize(deserializer).map(Counted::new)
    }
}

/// The descriptors of a process that are attachments, and how many there are in all. A worker opens one to
/// watch its host by at some moment of its start, which is left out.
fn attachments_of(pid: u32) -> (usize, usize) {
    let targets: Vec<String> = fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .flatten()
        .filter_map(|entry| Some(fs::read_link(entry.path()).ok()?.to_string_lossy().into_owned()))
        .filter(|target| target != "anon_inode:[pidfd]")
        .collect();
    let data = targets.iter().filter(|target| target.starts_with("/memfd:data-procpool"));
    (data.count(), targets.len())
}

/// Mappings of attachments in a process.
fn mappings_of(pid: u32) -> usize {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    maps.lines().filter(|line| line.contains("/memfd:data-procpool")).count()
}

/// Every worker of the pool has as many descriptors as it had, and nothing attached; so has this process.
struct Baseline {
    workers: BTreeMap<u32, usize>,
    here: usize,
}

impl Baseline {
    fn of(pool: &ProcessPool) -> Baseline {
        pool.warm_up().unwrap();
        let workers = pool.workers().into_iter().map(|w| (w.pid, attachments_of(w.pid).1));
        Baseline { workers: workers.collect(), here: attachments_of(std::process::id()).1 }
    }

    /// Waits until it is so again; workers that have come since are held against any of the old.
    fn wait(&self, pool: &ProcessPool) {
        let seen = RefCell::new(Vec::new());
        let clean = |pid: u32, usual: usize| {
            let (attached, all) = attachments_of(pid);
            let left = (pid, attached, mappings_of(pid), all, usual);
            seen.borrow_mut().push(left);
            attached == 0 && left.2 == 0 && all <= usual
        };
        let most = *self.workers.values().max().unwrap();
        let condition = || {
            seen.borrow_mut().clear();
            let pids = pool.workers().into_iter().map(|worker| worker.pid);
            let workers = pids.map(|pid| (pid, *self.workers.get(&pid).unwrap_or(&most)));
            let all = workers.chain([(std::process::id(), self.here)]);
            all.fold(true, |so_far, (pid, usual)| clean(pid, usual) && so_far)
        };
        let deadline = Instant::now() + PATIENCE;
        while !condition() {
            assert!(
                Instant::now() < deadline,
                "left behind (pid, attachments, mappings, descriptors, usual): {seen:?}"
            );
            // Nobody says when a worker has let go; only how soon it is seen depends on this.
            thread::sleep(Duration::from_millis(2));
        }
    }
}
