//! A set of small numbers: slots.

/// Numbers below a fixed bound.
#[derive(Debug)]
pub(crate) struct IndexSet {
    words: Vec<u64>,
    len: usize,
}

impl IndexSet {
    /// An empty set of numbers below `bound`.
    pub(crate) fn new(bound: usize) -> IndexSet {
        IndexSet { words: vec![0; bound.div_ceil(64)], len: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(crate) fn contains(&self, index: usize) -> bool {
        self.words[index / 64] & 1 << (index % 64) != 0
    }

    pub(crate) fn insert(&mut self, index: usize) {
        let (word, bit) = (&mut self.words[index / 64], 1 << (index % 64));
        self.len += usize::from(*word & bit == 0);
        *word |= bit;
    }

    pub(crate) fn remove(&mut self, index: usize) {
        let (word, bit) = (&mut self.words[index / 64], 1 << (index % 64));
        self.len -= usize::from(*word & bit != 0);
        *word &= !bit;
    }

    /// The smallest number in the set.
    pub(crate) fn first(&self) -> Option<usize> {
        let (index, word) = self.words.iter().enumerate().find(|(_, word)| **word != 0)?;
        Some(index * 64 + word.trailing_zeros() as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_counts_each_number_once_and_finds_the_smallest() {
        let mut set = IndexSet::new(130);
        for index in [129, 64, 64, 3] {
            set.insert(index);
        }
        assert_eq!((set.len(), set.first()), (3, Some(3)));
        assert!(set.contains(64) && !set.contains(65));
        set.remove(3);
        set.remove(3);
        assert_eq!((set.len(), set.first()), (2, Some(64)));
        set.remove(64);
        set.remove(129);
        assert!(set.is_empty() && set.first().is_none());
    }
}
