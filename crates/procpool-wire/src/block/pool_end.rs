//! The pool's end of a block: puts jobs in, takes results out, and believes nothing.

use std::sync::atomic::{AtomicU64, Ordering, fence};

use super::{
    Block, Body, CHILD_SHIFT, CLAIMS, Claim, FLAG_GIVEN_BACK, FLAG_LAST, FLAG_LEAKED, FLAG_LEAVING,
    FLAG_STREAMED, FLAG_USAGE, INLINE_WORDS_MAX, JobHeader, NAME_LEN_BITS, PENDING, PENDING_AT,
    POOL_CPU, POOL_SLEEPS, RECORD_HEADER, RING_WORDS, ResultHeader, TICKETS_MAX, Ticket, Usage,
    WORKER_CPU, WORKER_SLEEPS, claim_word,
};
use crate::elements::{self, WORD};
use crate::ring::Corrupt;

/// The pool's end of a block.
#[derive(Debug)]
pub struct PoolEnd<M> {
    block: Block<M>,
    jobs_tail: u64,
    /// Words that are free for jobs, as far as is known: the worker's position is looked at only when they do not
    /// suffice, since each look at it fetches a line that the worker writes with each job.
    jobs_room: usize,
    results_head: u64,
    /// Words of results that wait, as far as is known: whole records.
    results_waiting: usize,
    /// What was told last of where this end looks for results.
    told_cpu: u64,
}

impl<M: AsRef<[AtomicU64]>> PoolEnd<M> {
    /// The memory must be zeroed.
    pub fn new(block: Block<M>) -> PoolEnd<M> {
        PoolEnd {
            block,
            jobs_tail: 0,
            jobs_room: 0,
            results_head: 0,
            results_waiting: 0,
            told_cpu: 0,
        }
    }

    /// What both sides share.
    pub fn block(&self) -> &Block<M> {
        &self.block
    }

    /// Puts a job into the ring, or answers false if it does not fit now. `name` and `elements` are
    /// whole numbers of words; streamed elements are not given here.
    #[inline]
    pub fn send(
        &mut self,
        job: &JobHeader,
        name: &[u8],
        body: Body,
        elements: &[u8],
    ) -> Result<bool, Corrupt> {
        debug_assert!(elements.len() <= INLINE_WORDS_MAX * WORD);
        let name_words = name.len().div_ceil(WORD);
        let words = RECORD_HEADER + name_words + elements.len() / WORD;
        let ring = self.block.jobs();
        if self.jobs_room < words {
            self.jobs_room = ring.free(self.jobs_tail)?;
            if self.jobs_room < words {
                return Ok(false);
            }
        }
        self.block
            .word(CLAIMS + job.ticket.index as usize % TICKETS_MAX)
            .store(claim_word(job.ticket, Claim::Sent), Ordering::Relaxed);
        let streamed = match body {
            Body::Inline => 0,
            Body::Streamed(len) => len,
        };
        let at = self.jobs_tail;
        ring.put(at, words as u64);
        ring.put(at + 1, job.ticket.word());
        ring.put(at + 2, job.job);
        ring.put(at + 3, u64::from(job.first) << 32 | u64::from(job.attempt));
        debug_assert_eq!(job.name_len >> NAME_LEN_BITS, 0);
        let name_len = u64::from(job.note_cpu) << NAME_LEN_BITS | u64::from(job.name_len);
        ring.put(at + 4, name_len << 32 | u64::from(job.count));
        ring.put(at + 5, job.run);
        ring.put(at + 6, job.function);
        ring.put(at + 7, streamed);
        if name_words > 0 {
            let mut padded = name.to_vec();
            padded.resize(name_words * WORD, 0);
            ring.put_bytes(at + RECORD_HEADER as u64, &padded);
        }
        ring.put_bytes(at + (RECORD_HEADER + name_words) as u64, elements);
        self.jobs_tail += words as u64;
        self.jobs_room -= words;
        ring.publish(self.jobs_tail);
        Ok(true)
    }

    /// True if the worker sleeps and must be sent a bell; asking takes the request away. Call after `send`.
    #[inline]
    pub fn must_wake_for_jobs(&self) -> bool {
        self.block.jobs().publish_in_order(self.jobs_tail);
        self.worker_sleeps()
    }

    /// The same, after `next_results`: the worker may wait for room.
    #[inline]
    pub fn must_wake_for_room(&self) -> bool {
        self.block.results().release_in_order(self.results_head);
        self.worker_sleeps()
    }

    #[inline]
    fn worker_sleeps(&self) -> bool {
        self.block.word(WORKER_SLEEPS).load(Ordering::SeqCst) != 0
            && self.block.word(WORKER_SLEEPS).swap(0, Ordering::Relaxed) != 0
    }

    /// The pool is about to sleep (or not): does it want a bell with the next result? After asking for
    /// one, look once more for results.
    #[inline]
    pub fn want_bell(&self, want: bool) {
        self.block.word(POOL_SLEEPS).store(u64::from(want), Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Whoever looks for results does so on this CPU. True if the worker looked for jobs there too: then it cannot run
    /// while somebody here spins.
    #[inline]
    pub fn shares_cpu(&mut self, cpu: u32) -> bool {
        self.block.meet(POOL_CPU, WORKER_CPU, &mut self.told_cpu, cpu)
    }

    /// Takes a sent job back. False: the worker has started it.
    pub fn revoke(&self, ticket: Ticket) -> bool {
        self.block.change_claim(ticket, Claim::Revoked)
    }

    /// Takes the next record of results, if one is there. Its elements are appended to `out`, unless they
    /// are streamed: then [`Body::Streamed`] says how many bytes follow, and one header word is in `out`.
    #[inline]
    pub fn next_results(
        &mut self,
        out: &mut Vec<u8>,
    ) -> Result<Option<(ResultHeader, Body)>, Corrupt> {
        let ring = self.block.results();
        if self.results_waiting == 0 {
            self.results_waiting = ring.waiting(self.results_head)?;
            if self.results_waiting == 0 {
                return Ok(None);
            }
        }
        let waiting = self.results_waiting;
        if waiting < RECORD_HEADER {
            return Err(Corrupt);
        }
        let at = self.results_head;
        let words = ring.get(at) as usize;
        if words < RECORD_HEADER || words > waiting {
            return Err(Corrupt);
        }
        let flags = ring.get(at + 5);
        let header = ResultHeader {
            ticket: Ticket::from_word(ring.get(at + 1)),
            first: (ring.get(at + 2) >> 32) as u32,
            count: ring.get(at + 2) as u32,
            started_ns: ring.get(at + 3),
            ran_ns: ring.get(at + 4),
            last: flags & FLAG_LAST != 0,
            given_back: flags & FLAG_GIVEN_BACK != 0,
            leaked: flags & FLAG_LEAKED != 0,
            leaving: flags & FLAG_LEAVING != 0,
            child: (flags >> CHILD_SHIFT) as u32,
            usage: (flags & FLAG_USAGE != 0)
                .then(|| Usage { cpu_ns: ring.get(at + 6), peak_rss: ring.get(at + 7) }),
        };
        ring.get_bytes(at + RECORD_HEADER as u64, words - RECORD_HEADER, out);
        let body = if flags & FLAG_STREAMED != 0 {
            let word = ring.get(at + RECORD_HEADER as u64);
            match (words == RECORD_HEADER + 1, elements::parse_header(word)) {
                (true, Some((_, len))) => Body::Streamed(len),
                _ => return Err(Corrupt),
            }
        } else {
            Body::Inline
        };
        self.results_head += words as u64;
        self.results_waiting -= words;
        ring.release(self.results_head);
        Ok(Some((header, body)))
    }

    /// After the worker's death and the last published record: results that it had finished but not
    /// published. Their elements are appended to `out`; answers how many there are.
    pub fn recover(&mut self, out: &mut Vec<u8>) -> u32 {
        let pending = self.block.word(PENDING).load(Ordering::Acquire);
        let (count, words) = ((pending >> 32) as u32, pending as u32 as usize);
        let published = self.block.word(PENDING_AT).load(Ordering::Relaxed) != self.results_head;
        if count == 0 || published || words > RING_WORDS - RECORD_HEADER {
            return 0;
        }
        let start = out.len();
        self.block.results().get_bytes(self.results_head + RECORD_HEADER as u64, words, out);
        match elements::skip(&out[start..], count as usize) {
            Some([]) => count,
            _ => {
                out.truncate(start);
                0
            }
        }
    }
}
