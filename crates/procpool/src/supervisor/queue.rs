//! Jobs that wait: higher priority first, in order of their numbers among equals.

use std::cmp::Reverse;
use std::collections::{BTreeMap, VecDeque};

/// A queue whose items can be taken back out of the middle by their number.
#[derive(Debug)]
pub(crate) struct Queue<T> {
    /// By priority; in each, by sequence. `None` is a gap that a removed item left.
    lanes: BTreeMap<Reverse<i32>, VecDeque<(u64, Option<T>)>>,
    len: usize,
}

impl<T> Default for Queue<T> {
    fn default() -> Queue<T> {
        Queue { lanes: BTreeMap::new(), len: 0 }
    }
}

impl<T> Queue<T> {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Puts an item where its priority and number say: a new one at or near the end, one that was out at a
    /// worker back where it was.
    pub(crate) fn insert(&mut self, priority: i32, sequence: u64, item: T) {
        let lane = self.lanes.entry(Reverse(priority)).or_default();
        match lane.back() {
            Some((last, _)) if *last > sequence => {
                match lane.binary_search_by_key(&sequence, |(s, _)| *s) {
                    Ok(gap) => lane[gap].1 = Some(item),
                    Err(at) => lane.insert(at, (sequence, Some(item))),
                }
            }
            _ => lane.push_back((sequence, Some(item))),
        }
        self.len += 1;
    }

    /// The priority of the first item.
    pub(crate) fn first_priority(&mut self) -> Option<i32> {
        while let Some(mut lane) = self.lanes.first_entry() {
            while let Some((_, item)) = lane.get().front() {
                if item.is_some() {
                    return Some(lane.key().0);
                }
                lane.get_mut().pop_front();
            }
            lane.remove();
        }
        None
    }

    /// Takes the first item.
    pub(crate) fn pop(&mut self) -> Option<T> {
        while let Some(mut lane) = self.lanes.first_entry() {
            while let Some((_, item)) = lane.get_mut().pop_front() {
                if let Some(item) = item {
                    self.len -= 1;
                    return Some(item);
                }
            }
            lane.remove();
        }
        None
    }

    /// Takes the item with this priority and number.
    pub(crate) fn remove(&mut self, priority: i32, sequence: u64) -> Option<T> {
        let lane = self.lanes.get_mut(&Reverse(priority))?;
        let at = lane.binary_search_by_key(&sequence, |(s, _)| *s).ok()?;
        let item = lane[at].1.take()?;
        self.len -= 1;
        // Gaps at the end go at once, so that cancelling everything leaves nothing; those before it go
        // when they come to the front.
        while matches!(lane.back(), Some((_, None))) {
            lane.pop_back();
        }
        if lane.is_empty() {
            self.lanes.remove(&Reverse(priority));
        }
        Some(item)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn higher_priority_first_then_order_of_submission() {
        let mut queue = Queue::default();
        for (number, (item, priority)) in
            (1..).zip([("a", 0), ("b", 5), ("c", 0), ("d", -1), ("e", 5)])
        {
            queue.insert(priority, number, item);
        }
        let order: Vec<_> = std::iter::from_fn(|| queue.pop()).collect();
        assert_eq!(order, ["b", "e", "a", "c", "d"]);
        assert!(queue.is_empty());
    }

    proptest! {
        /// Goal: whatever is taken out and put back, the order is that of priority and number.
        #[test]
        fn what_comes_back_stands_where_it_was(
            priorities in prop::collection::vec(-2..3i32, 1..40),
            takes in prop::collection::vec((0..4u8, any::<prop::sample::Index>()), 0..60),
        ) {
            let mut queue = Queue::default();
            let mut model: Vec<(Reverse<i32>, u64)> = Vec::new();
            let mut out: Vec<(Reverse<i32>, u64)> = Vec::new();
            for (number, priority) in (1..).zip(priorities) {
                queue.insert(priority, number, (Reverse(priority), number));
                model.push((Reverse(priority), number));
            }
            for (what, index) in takes {
                model.sort();
                match what {
                    0 => {
                        let popped = queue.pop();
                        prop_assert_eq!(popped, model.first().copied());
                        if let Some(item) = popped {
                            model.remove(0);
                            out.push(item);
                        }
                    }
                    1 if !model.is_empty() => {
                        let item = model.swap_remove(index.index(model.len()));
                        prop_assert_eq!(queue.remove(item.0.0, item.1), Some(item));
                        prop_assert_eq!(queue.remove(item.0.0, item.1), None);
                    }
                    _ if !out.is_empty() => {
                        let item = out.swap_remove(index.index(out.len()));
                        queue.insert(item.0.0, item.1, item);
                        model.push(item);
                    }
                    _ => {}
                }
                prop_assert_eq!(queue.len(), model.len());
            }
            model.sort();
            let rest: Vec<_> = std::iter::from_fn(|| queue.pop()).collect();
            prop_assert_eq!(rest, model);
        }
    }
}
