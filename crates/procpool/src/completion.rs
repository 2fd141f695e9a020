//! Waiting for many jobs: [`as_completed`] and [`wait`].

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::cell::{Group, deadline_after};
use crate::future::JobFuture;

/// Yields the futures as their jobs end: those that have ended already first, then in the order in which
/// they end. Each exactly once, whatever the outcome. Futures of different executors may be mixed.
pub fn as_completed<R: Send + 'static>(
    futures: impl IntoIterator<Item = JobFuture<R>>,
) -> AsCompleted<R> {
    let group = Arc::new(Group::default());
    let futures: Vec<_> = futures.into_iter().map(Some).collect();
    for (index, future) in futures.iter().enumerate() {
        if let Some(future) = future {
            future.cell().add_group(&group, index);
        }
    }
    AsCompleted { left: futures.len(), futures, first: 0, group, deadline: None }
}

/// The iterator of [`as_completed`]. Dropping it cancels nothing.
#[must_use = "an iterator does nothing until it is iterated"]
pub struct AsCompleted<R> {
    futures: Vec<Option<JobFuture<R>>>,
    /// Before this one all were yielded.
    first: usize,
    left: usize,
    group: Arc<Group>,
    deadline: Option<Instant>,
}

impl<R> AsCompleted<R> {
    /// Limits the whole iteration to `timeout` from this call; past it `next` gives `None`, although
    /// what has ended by then still comes. What is left is in [`into_pending`](AsCompleted::into_pending).
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.deadline = deadline_after(timeout);
        self
    }

    /// The futures that were not yielded, in the order given.
    pub fn into_pending(mut self) -> Vec<JobFuture<R>> {
        self.leave();
        std::mem::take(&mut self.futures).into_iter().flatten().collect()
    }

    fn leave(&self) {
        for future in self.futures.iter().flatten() {
            future.cell().remove_group(&self.group);
        }
    }
}

impl<R> Iterator for AsCompleted<R> {
    type Item = JobFuture<R>;

    fn next(&mut self) -> Option<JobFuture<R>> {
        if self.left == 0 {
            return None;
        }
        while self.futures[self.first].is_none() {
            self.first += 1;
        }
        let pending = || self.futures[self.first].as_ref().map(JobFuture::cell);
        let index = self.group.pop(self.deadline, pending)?;
        self.left -= 1;
        self.futures[index].take()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (if self.deadline.is_some() { 0 } else { self.left }, Some(self.left))
    }
}

impl<R> Drop for AsCompleted<R> {
    fn drop(&mut self) {
        self.leave();
    }
}

impl<R> fmt::Debug for AsCompleted<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AsCompleted").field("left", &self.left).finish_non_exhaustive()
    }
}

/// When [`wait`] returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Until {
    /// When one job has ended, with whatever outcome.
    FirstDone,
    /// When one has failed; cancelled is not failed. Without a failure, when all have ended.
    FirstError,
    /// When all have ended.
    AllDone,
}

/// What [`wait`] found: each future is in one of the two, in the order given.
#[derive(Debug)]
#[non_exhaustive]
pub struct Waited<R> {
    /// Those whose jobs have ended.
    pub done: Vec<JobFuture<R>>,
    /// The others.
    pub pending: Vec<JobFuture<R>>,
}

/// Waits until enough jobs have ended, or for `timeout`. Nothing is cancelled; no futures at all are done
/// at once. Futures of different executors may be mixed.
pub fn wait<R: Send + 'static>(
    futures: impl IntoIterator<Item = JobFuture<R>>,
    until: Until,
    timeout: Option<Duration>,
) -> Waited<R> {
    let deadline = timeout.and_then(deadline_after);
    let futures: Vec<_> = futures.into_iter().collect();
    let group = Arc::new(Group::default());
    for (index, future) in futures.iter().enumerate() {
        future.cell().add_group(&group, index);
    }
    let mut first = futures.iter();
    for _ in 0..futures.len() {
        // What has ended is not passed again.
        let pending = || {
            let rest = first.as_slice();
            let ended = rest.iter().take_while(|future| future.is_done()).count();
            first = rest[ended..].iter();
            first.as_slice().first().map(JobFuture::cell)
        };
        let Some(index) = group.pop(deadline, pending) else {
            break;
        };
        let enough = match until {
            Until::FirstDone => true,
            Until::FirstError => futures[index].cell().is_failed(),
            Until::AllDone => false,
        };
        if enough {
            break;
        }
    }
    for future in &futures {
        future.cell().remove_group(&group);
    }
    let (done, pending) = futures.into_iter().partition(JobFuture::is_done);
    Waited { done, pending }
}
