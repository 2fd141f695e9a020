//! Jobs that have a slot in advance, and wait until it is free: by queue, the more urgent first.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::{Duration, Instant};

use crate::job::{Attempt, JobId, Terms, Work};

/// How long a job waits here at most: beyond, one before it takes longer than was thought, and nobody shall be told for
/// long that it runs when it does not.
pub(super) const LATE: Duration = Duration::from_millis(50);

/// A job that may begin.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) id: JobId,
    pub(crate) attempt: Attempt,
    pub(crate) terms: Terms,
    pub(crate) work: Work,
}

/// See above.
#[derive(Debug, Default)]
pub(super) struct Ready {
    queues: HashMap<String, BTreeMap<(Reverse<i32>, JobId), Prepared>>,
    /// Where each stands.
    places: HashMap<JobId, (String, i32)>,
    /// When each came, and perhaps some that are gone.
    came: VecDeque<(Instant, JobId, Attempt)>,
}

impl Ready {
    pub(super) fn add(&mut self, prepared: Prepared, now: Instant) {
        let Prepared { id, terms, .. } = &prepared;
        let (id, queue, priority) = (*id, terms.queue.clone(), terms.priority());
        self.came.push_back((now, id, prepared.attempt));
        self.places.insert(id, (queue.clone(), priority));
        self.queues.entry(queue).or_default().insert((Reverse(priority), id), prepared);
    }

    /// The most urgent one of a queue stays.
    pub(super) fn first(&self, queue: &str) -> Option<&Prepared> {
        self.queues.get(queue)?.first_key_value().map(|(_, prepared)| prepared)
    }

    /// The most urgent one of a queue is taken out.
    pub(super) fn next(&mut self, queue: &str) -> Option<Prepared> {
        let (_, prepared) = self.queues.get_mut(queue)?.pop_first()?;
        self.places.remove(&prepared.id);
        self.sweep();
        Some(prepared)
    }

    /// Takes one out; answers its attempt.
    pub(super) fn take(&mut self, id: JobId) -> Option<Attempt> {
        let (queue, priority) = self.places.remove(&id)?;
        let prepared = self.queues.get_mut(&queue)?.remove(&(Reverse(priority), id))?;
        self.sweep();
        Some(prepared.attempt)
    }

    /// Takes out those that have waited too long.
    pub(super) fn take_late(&mut self, now: Instant) -> Vec<(JobId, Attempt)> {
        let mut late = Vec::new();
        while self.late_at().is_some_and(|at| at <= now) {
            let Some((_, id, _)) = self.came.front().copied() else {
                break;
            };
            late.extend(self.take(id).map(|attempt| (id, attempt)));
        }
        late
    }

    /// When one will have waited too long.
    pub(super) fn late_at(&self) -> Option<Instant> {
        self.came.front().map(|(came, ..)| *came + LATE)
    }

    /// All of a queue.
    pub(super) fn ids(&self, queue: &str) -> Vec<JobId> {
        self.queues.get(queue).into_iter().flat_map(BTreeMap::keys).map(|(_, id)| *id).collect()
    }

    /// How many there are of a queue.
    pub(super) fn len(&self, queue: &str) -> usize {
        self.queues.get(queue).map_or(0, BTreeMap::len)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// The queues that have any.
    pub(super) fn queues(&self) -> Vec<String> {
        let some = self.queues.iter().filter(|(_, jobs)| !jobs.is_empty());
        some.map(|(queue, _)| queue.clone()).collect()
    }

    /// The first that came is one that is still there.
    fn sweep(&mut self) {
        while let Some((_, id, attempt)) = self.came.front() {
            let is_here = self.places.get(id).is_some_and(|(queue, priority)| {
                let jobs = self.queues.get(queue);
                jobs.and_then(|jobs| jobs.get(&(Reverse(*priority), *id)))
                    .is_some_and(|prepared| prepared.attempt == *attempt)
            });
            if is_here {
                return;
            }
            self.came.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::Command;

    fn prepared(id: u64, priority: i32) -> Prepared {
        let terms = Terms { priority: Some(priority), ..Terms::new("a") };
        let work = Work::Command(Command::here(["true"]).unwrap());
        Prepared { id: JobId(id), attempt: 1, terms, work }
    }

    fn next(ready: &mut Ready) -> Option<u64> {
        ready.next("default").map(|prepared| prepared.id.0)
    }

    #[test]
    fn the_more_urgent_begin_first() {
        let (mut ready, now) = (Ready::default(), Instant::now());
        for (id, priority) in [(1, 0), (2, 0), (3, 5)] {
            ready.add(prepared(id, priority), now);
        }
        assert_eq!(ready.len("default"), 3);
        assert_eq!(
            [next(&mut ready), next(&mut ready), next(&mut ready)],
            [Some(3), Some(1), Some(2)]
        );
        assert!(next(&mut ready).is_none() && ready.is_empty() && ready.late_at().is_none());
    }

    #[test]
    fn who_waits_too_long_is_taken_out() {
        let (mut ready, now) = (Ready::default(), Instant::now());
        ready.add(prepared(1, 0), now);
        ready.add(prepared(2, 0), now + LATE / 2);
        assert_eq!(ready.late_at(), Some(now + LATE));
        assert_eq!(ready.take_late(now), []);
        assert_eq!(ready.take_late(now + LATE), [(JobId(1), 1)]);
        assert_eq!(ready.late_at(), Some(now + LATE / 2 + LATE));
        assert_eq!(ready.take(JobId(1)), None);
        assert_eq!(ready.take(JobId(2)), Some(1));
        assert!(ready.is_empty() && ready.late_at().is_none());
    }
}
