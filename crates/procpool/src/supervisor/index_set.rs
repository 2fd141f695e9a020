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

    /// The numbers, the smallest first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = usize> {
        self.words.iter().enumerate().flat_map(|(index, word)| {
            let mut left = *word;
            std::iter::from_fn(move || {
                let bit = (left != 0).then(|| left.trailing_zeros() as usize)?;
                left &= left - 1;
                Some(index * 64 + bit)
            })
        })
    }

    /// The next number in the set above `index`, or else the smallest.
    pub(crate) fn next_after(&self, index: usize) -> Option<usize> {
        let from = index + 1;
        let above = self.words.get(from / 64).map_or(0, |word| word & !0 << (from % 64));
        if above != 0 {
            return Some(from / 64 * 64 + above.trailing_zeros() as usize);
        }
        let later = self.words.iter().enumerate().skip(from / 64 + 1).find(|(_, word)| **word != 0);
        later.map(|(at, word)| at * 64 + word.trailing_zeros() as usize).or_else(|| self.first())
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

    #[test]
    fn a_walk_comes_to_each_number_in_turn() {
        let mut set = IndexSet::new(200);
        assert_eq!(set.next_after(7), None);
        let numbers = [0, 1, 62, 63, 64, 127, 128, 199];
        numbers.iter().for_each(|number| set.insert(*number));
        assert_eq!(set.iter().collect::<Vec<_>>(), numbers);
        for (number, next) in numbers.iter().zip(numbers.iter().cycle().skip(1)) {
            assert_eq!(set.next_after(*number), Some(*next));
        }
        assert_eq!(set.next_after(65), Some(127));
    }
}
