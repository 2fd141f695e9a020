//! A queue of words in shared memory, with one writer and one reader in different processes.
//!
//! Positions count words since the beginning and never wrap (at a word a nanosecond, 64 bits last 584
//! years); their remainder is the place in memory. Every word is an atomic, so a peer that writes where
//! it should not can make the content wrong but never the access undefined. The reader copies a record
//! out before it looks at it.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::elements::WORD;

/// The bytes of one ring as atomic words, with the two positions beside it.
#[derive(Debug, Clone, Copy)]
pub struct Ring<'m> {
    words: &'m [AtomicU64],
    tail: &'m AtomicU64,
    head: &'m AtomicU64,
}

/// The peer broke the rules of the ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Corrupt;

impl<'m> Ring<'m> {
    /// `words` must be a power of two long. `tail` is where the writer will write next, `head` where
    /// the reader will read next.
    #[inline]
    pub fn new(words: &'m [AtomicU64], tail: &'m AtomicU64, head: &'m AtomicU64) -> Ring<'m> {
        assert!(words.len().is_power_of_two(), "the mask needs a power of two");
        Ring { words, tail, head }
    }

    /// Words in the ring.
    #[inline]
    pub fn capacity(&self) -> usize {
        self.words.len()
    }

    /// The word at `position`.
    #[inline]
    pub fn get(&self, position: u64) -> u64 {
        self.words[position as usize & (self.words.len() - 1)].load(Ordering::Relaxed)
    }

    /// Sets the word at `position`.
    #[inline]
    pub fn put(&self, position: u64, word: u64) {
        self.words[position as usize & (self.words.len() - 1)].store(word, Ordering::Relaxed);
    }

    /// Copies `bytes`, a whole number of words, to `position`.
    #[inline]
    pub fn put_bytes(&self, position: u64, bytes: &[u8]) {
        debug_assert!(bytes.len().is_multiple_of(WORD));
        for (index, word) in bytes.chunks_exact(WORD).enumerate() {
            let word = u64::from_le_bytes(word.try_into().expect("chunks of one word"));
            self.put(position + index as u64, word);
        }
    }

    /// Appends `count` words from `position` to `out`.
    #[inline]
    pub fn get_bytes(&self, position: u64, count: usize, out: &mut Vec<u8>) {
        out.reserve(count * WORD);
        for index in 0..count as u64 {
            out.extend_from_slice(&self.get(position + index).to_le_bytes());
        }
    }

    /// For the writer, which is at `tail`: how many words are free. The reader's position is checked.
    #[inline]
    pub fn free(&self, tail: u64) -> Result<usize, Corrupt> {
        let used = tail.wrapping_sub(self.head.load(Ordering::Acquire));
        if used > self.words.len() as u64 {
            Err(Corrupt)
        } else {
            Ok(self.words.len() - used as usize)
        }
    }

    /// For the reader, which is at `head`: how many words wait. The writer's position is checked.
    #[inline]
    pub fn waiting(&self, head: u64) -> Result<usize, Corrupt> {
        let waiting = self.tail.load(Ordering::Acquire).wrapping_sub(head);
        if waiting > self.words.len() as u64 { Err(Corrupt) } else { Ok(waiting as usize) }
    }

    /// Where the writer is, as it says itself.
    pub fn published(&self) -> u64 {
        self.tail.load(Ordering::Acquire)
    }

    /// For the writer: everything before `tail` may be read.
    #[inline]
    pub fn publish(&self, tail: u64) {
        self.tail.store(tail, Ordering::Release);
    }

    /// As [`publish`](Self::publish), and in one order with what sequentially consistent loads of the writer see
    /// after it, and with the fences of others: a store and a fence in one instruction, at half the price.
    #[inline]
    pub fn publish_in_order(&self, tail: u64) {
        self.tail.swap(tail, Ordering::SeqCst);
    }

    /// The same for [`release`](Self::release).
    #[inline]
    pub fn release_in_order(&self, head: u64) {
        self.head.swap(head, Ordering::SeqCst);
    }

    /// For the reader: everything before `head` may be overwritten.
    #[inline]
    pub fn release(&self, head: u64) {
        self.head.store(head, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: words come out as they went in, at every offset, across the end of the memory.
    #[test]
    fn bytes_survive_the_wrap_at_every_offset() {
        let words: Vec<AtomicU64> = (0..8).map(|_| AtomicU64::new(0)).collect();
        let (tail, head) = (AtomicU64::new(0), AtomicU64::new(0));
        let ring = Ring::new(&words, &tail, &head);
        for start in 0..20u64 {
            ring.release(start);
            ring.publish(start);
            let bytes: Vec<u8> = (0..40).map(|i| (start as u8).wrapping_mul(3) + i).collect();
            assert_eq!(ring.free(start), Ok(8));
            ring.put_bytes(start, &bytes);
            ring.publish(start + 5);
            assert_eq!(ring.waiting(start), Ok(5));
            assert_eq!(ring.free(start + 5), Ok(3));
            let mut out = Vec::new();
            ring.get_bytes(start, 5, &mut out);
            assert_eq!(out, bytes);
        }
    }

    #[test]
    fn a_position_that_cannot_be_is_corrupt() {
        let words: Vec<AtomicU64> = (0..8).map(|_| AtomicU64::new(0)).collect();
        let (tail, head) = (AtomicU64::new(9), AtomicU64::new(1));
        let ring = Ring::new(&words, &tail, &head);
        assert_eq!(ring.waiting(0), Err(Corrupt));
        assert_eq!(ring.waiting(10), Err(Corrupt));
        assert_eq!(ring.free(0), Err(Corrupt));
        assert_eq!(ring.free(10), Err(Corrupt));
    }
}
