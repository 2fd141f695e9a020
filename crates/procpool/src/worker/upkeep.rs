//! What a worker looks at after a job, to see whether it is still fit for another: what the job has left
//! behind, and how large the process has become.
//!
//! Short jobs pay nothing: what they leave is found after the next that is not short.

use std::collections::BTreeSet;
use std::io;
use std::thread;
use std::time::Duration;

use procpool_sys::{clock, held};
use procpool_wire::codec;
use procpool_wire::limits::{LeakPolicy, LeakRecord, WorkerLimits};

use crate::attachments;

/// Only jobs that take longer are looked at: the look costs about 4 µs.
const LOOK_FROM_NS: u64 = 100_000;
/// The resident set is read at most so often, at about 5 µs.
const RSS_LOOKS_APART_NS: u64 = 5_000_000;
/// So many descriptors more than before the first job are no leak: a connection that is kept, a file that
/// a library opens once.
const DESCRIPTORS_KEPT_MAX: u64 = 16;
/// A thread that was joined can be there for a moment longer, and one of a library's needs a moment to go
/// to sleep when it has nothing to do. Both are given so long, and longer looks mean nothing was lost but
/// this time.
const SETTLE_MAX: Duration = Duration::from_millis(20);
/// The first of those looks comes after this, each further one after twice the time.
const SETTLE_FIRST: Duration = Duration::from_micros(50);

/// Whether the worker takes another job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Course {
    Stays,
    Leaves,
}

pub(super) struct Upkeep {
    policy: LeakPolicy,
    rss_max: Option<u64>,
    /// An outcome at this time or later is looked at: `u64::MAX` if none ever is.
    due_ns: u64,
    rss_due_ns: u64,
    course: Course,
    before: Before,
}

/// The descriptors that are open. Those of attachments are the pool's affair: it sends them ahead of their
/// jobs, and says when they need not be kept.
fn open_descriptors() -> io::Result<u64> {
    Ok(held::descriptor_count()?.saturating_sub(attachments::descriptor_count()))
}

/// What there was before the first job, and what was accepted since.
#[derive(Default)]
struct Before {
    threads: BTreeSet<u32>,
    children: BTreeSet<u32>,
    descriptors: u64,
    runtime: Runtime,
}

/// Threads of a library's that the first job that needs them starts, and that wait for the next.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Runtime {
    #[default]
    Unseen,
    /// They were taken for such, and belong to the worker.
    Accepted,
}

/// What follows for the outcome of the job that was looked at.
pub(super) enum Finding {
    Clean,
    /// It left something, which its report shall say: this, encoded.
    Noted(Vec<u8>),
    /// It left something, and that is its outcome: this, encoded.
    Fault(Vec<u8>),
}

impl Upkeep {
    /// Call when nothing of a job's is there yet, the initializer's work done.
    pub(super) fn new(limits: &WorkerLimits) -> Upkeep {
        let before = match limits.leaks {
            LeakPolicy::Ignore => Before::default(),
            _ => Before {
                threads: held::threads().unwrap_or_default(),
                children: held::children().unwrap_or_default(),
                descriptors: open_descriptors().unwrap_or(u64::MAX),
                runtime: Runtime::Unseen,
            },
        };
        Upkeep {
            policy: limits.leaks,
            rss_max: limits.rss,
            due_ns: u64::MAX,
            rss_due_ns: limits.rss.map_or(u64::MAX, |_| 0),
            course: Course::Stays,
            before,
        }
    }

    /// An element of a job begins now.
    #[inline]
    pub(super) fn begin(&mut self, now_ns: u64) {
        let leaks_due = match self.policy {
            LeakPolicy::Ignore => u64::MAX,
            LeakPolicy::Retire | LeakPolicy::Error => now_ns + LOOK_FROM_NS,
        };
        self.due_ns = leaks_due.min(self.rss_due_ns);
    }

    /// True if an element that ends now is looked at.
    #[inline]
    pub(super) fn is_due(&self, now_ns: u64) -> bool {
        now_ns >= self.due_ns
    }

    /// True if the worker shall take no further job.
    #[inline]
    pub(super) fn leaves(&self) -> bool {
        self.course == Course::Leaves
    }

    /// The worker shall take no further job.
    pub(super) fn leave(&mut self) {
        self.course = Course::Leaves;
    }

    /// Looks at what an element that took until `now_ns` has left.
    #[cold]
    pub(super) fn look(&mut self, started_ns: u64, now_ns: u64) -> Finding {
        let finding = match self.policy {
            LeakPolicy::Ignore => Finding::Clean,
            _ if now_ns - started_ns < LOOK_FROM_NS => Finding::Clean,
            LeakPolicy::Retire | LeakPolicy::Error => self.look_for_leaks(),
        };
        if let Some(max) = self.rss_max
            && now_ns >= self.rss_due_ns
        {
            self.rss_due_ns = now_ns + RSS_LOOKS_APART_NS;
            if held::resident_bytes().is_ok_and(|bytes| bytes > max) {
                self.course = Course::Leaves;
            }
        }
        finding
    }

    fn look_for_leaks(&mut self) -> Finding {
        let (threads, runs) = self.left_threads();
        let processes = self.left_processes();
        let open = open_descriptors().unwrap_or(0);
        let descriptors = match open.saturating_sub(self.before.descriptors) {
            kept if kept <= DESCRIPTORS_KEPT_MAX => 0,
            left => left,
        };
        if threads.is_empty() && processes.is_empty() && descriptors == 0 {
            return Finding::Clean;
        }
        let record = LeakRecord {
            threads: threads.len() as u32,
            descriptors: u32::try_from(descriptors).unwrap_or(u32::MAX),
            processes: processes
                .iter()
                .take(LeakRecord::PROCESSES_MAX)
                .map(|pid| (*pid, held::name_of(*pid)))
                .collect(),
        };
        let mut bytes = Vec::new();
        // The type is ours and always encodes.
        let _ = codec::encode_into(&record, None, &mut bytes);
        if self.policy == LeakPolicy::Error {
            self.course = Course::Leaves;
            return Finding::Fault(bytes);
        }
        let is_runtime = processes.is_empty()
            && descriptors == 0
            && runs == Runs::No
            && self.before.runtime == Runtime::Unseen;
        if is_runtime {
            // Threads that wait are how a library keeps its own: rayon's pool, a runtime's. To retire the
            // worker for them would be to retire each worker after its first job, for ever.
            self.before.runtime = Runtime::Accepted;
            self.before.threads.extend(threads);
        } else {
            self.course = Course::Leaves;
        }
        Finding::Noted(bytes)
    }

    /// The threads that were not there before, and whether any of them has something to do.
    fn left_threads(&self) -> (Vec<u32>, Runs) {
        let before = self.before.threads.len() as u64;
        let more = || held::thread_count().is_ok_and(|count| count > before);
        if !more() {
            return (Vec::new(), Runs::No);
        }
        let begun = clock::monotonic_ns();
        let mut pause = SETTLE_FIRST;
        loop {
            let threads = held::threads().unwrap_or_default();
            let left: Vec<u32> = threads.difference(&self.before.threads).copied().collect();
            if left.is_empty() {
                return (left, Runs::No);
            }
            let waited = Duration::from_nanos(clock::monotonic_ns() - begun);
            if waited >= SETTLE_MAX {
                let rest = left.iter().all(|thread| held::is_resting(*thread));
                return (left, if rest { Runs::No } else { Runs::Yes });
            }
            // For what has no word to say when it is done.
            thread::sleep(pause);
            pause *= 2;
        }
    }

    fn left_processes(&self) -> Vec<u32> {
        if !held::has_children() {
            return Vec::new();
        }
        let children = held::children().unwrap_or_default();
        children.difference(&self.before.children).copied().collect()
    }
}

/// Whether a thread that was left has something to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Runs {
    Yes,
    No,
}
