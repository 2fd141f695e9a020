//! The worker's end of a block: takes jobs out, puts results in, and says what it is doing.

use std::sync::atomic::{AtomicU64, Ordering, fence};

use super::{
    Block, Body, CHILD_SHIFT, CLAIMS, Claim, FLAG_GIVEN_BACK, FLAG_LAST, FLAG_LEAKED, FLAG_LEAVING,
    FLAG_STREAMED, FLAG_USAGE, JobHeader, NAME_LEN_BITS, PENDING, PENDING_AT, POOL_CPU,
    POOL_SLEEPS, POSITION, Phase, RECORD_HEADER, ResultHeader, STARTED, TICKET, TICKETS_MAX,
    Ticket, WORKER_CPU, WORKER_SLEEPS, claim_word,
};
use crate::elements::{self, Kind, WORD};
use crate::ring::Corrupt;

/// The worker's end of a block.
#[derive(Debug)]
pub struct WorkerEnd<M> {
    block: Block<M>,
    jobs_head: u64,
    /// Words of jobs that wait, as far as is known: whole records. The pool's position is looked at only when there are
    /// none, since each look at it fetches a line that the pool writes with each job.
    jobs_waiting: usize,
    results_tail: u64,
    /// Words that are free for results, as far as is known.
    results_room: usize,
    /// Words and elements written behind the next header, not yet published.
    pending_words: usize,
    pending_count: u32,
    /// What was told last of where this end looks for jobs.
    told_cpu: u64,
}

impl<M: AsRef<[AtomicU64]>> WorkerEnd<M> {
    /// The worker's end of the block that the pool made.
    pub fn new(block: Block<M>) -> WorkerEnd<M> {
        WorkerEnd {
            block,
            jobs_head: 0,
            jobs_waiting: 0,
            results_tail: 0,
            results_room: 0,
            pending_words: 0,
            pending_count: 0,
            told_cpu: 0,
        }
    }

    /// What both sides share.
    pub fn block(&self) -> &Block<M> {
        &self.block
    }

    /// True if a job waits in the ring.
    #[inline]
    pub fn has_job(&self) -> bool {
        self.jobs_waiting > 0 || self.block.jobs().waiting(self.jobs_head) != Ok(0)
    }

    /// Takes the next job out of the ring: its header and where its elements are. Its name and inline
    /// elements replace the content of `out`.
    #[inline]
    pub fn next_job(&mut self, out: &mut Vec<u8>) -> Result<Option<(JobHeader, Body)>, Corrupt> {
        let ring = self.block.jobs();
        if self.jobs_waiting == 0 {
            self.jobs_waiting = ring.waiting(self.jobs_head)?;
            if self.jobs_waiting == 0 {
                return Ok(None);
            }
        }
        let waiting = self.jobs_waiting;
        let at = self.jobs_head;
        let words = ring.get(at) as usize;
        if words < RECORD_HEADER || words > waiting {
            return Err(Corrupt);
        }
        let (attempt, first) = (ring.get(at + 3) as u32, (ring.get(at + 3) >> 32) as u32);
        let (count, name_len) = (ring.get(at + 4) as u32, (ring.get(at + 4) >> 32) as u32);
        let note_cpu = name_len >> NAME_LEN_BITS != 0;
        let name_len = name_len & ((1 << NAME_LEN_BITS) - 1);
        let header = JobHeader {
            ticket: Ticket::from_word(ring.get(at + 1)),
            job: ring.get(at + 2),
            attempt,
            first,
            count,
            name_len,
            note_cpu,
            run: ring.get(at + 5),
            function: ring.get(at + 6),
        };
        let body = match ring.get(at + 7) {
            0 => Body::Inline,
            len => Body::Streamed(len),
        };
        out.clear();
        ring.get_bytes(at + RECORD_HEADER as u64, words - RECORD_HEADER, out);
        self.jobs_head += words as u64;
        self.jobs_waiting -= words;
        ring.release(self.jobs_head);
        Ok(Some((header, body)))
    }

    /// Starts a job, unless the pool has taken it back.
    #[inline]
    pub fn claim(&self, ticket: Ticket, now_ns: u64) -> bool {
        // The black box names the job before the claim makes it ours: a death right after the claim
        // then finds the right name.
        self.block.word(TICKET).store(ticket.word(), Ordering::Relaxed);
        self.block.word(STARTED).store(now_ns, Ordering::Relaxed);
        self.block.word(POSITION).store(Phase::Idle as u64, Ordering::Release);
        self.block.change_claim(ticket, Claim::Claimed)
    }

    /// After a claim that failed: true unless the word says what neither side would have written.
    pub fn was_revoked(&self, ticket: Ticket) -> bool {
        let word =
            self.block.word(CLAIMS + ticket.index as usize % TICKETS_MAX).load(Ordering::Acquire);
        word == claim_word(ticket, Claim::Revoked) || word >> 8 != u64::from(ticket.generation)
    }

    /// Moves on to `element`, which starts with decoding.
    #[inline]
    pub fn begin_element(&self, element: u32, now_ns: u64) {
        self.block.word(STARTED).store(now_ns, Ordering::Relaxed);
        self.set_phase(element, Phase::Decode);
    }

    /// Says what is being done with `element`.
    #[inline]
    pub fn set_phase(&self, element: u32, phase: Phase) {
        self.block.word(POSITION).store(u64::from(element) << 32 | phase as u64, Ordering::Release);
    }

    /// Goes on where another process, a child that had a copy of this end, has published its last result.
    pub fn resume_results(&mut self) {
        self.results_tail = self.block.results().published();
        self.results_room = 0;
        (self.pending_words, self.pending_count) = (0, 0);
    }

    /// Results written and not yet published.
    pub fn pending_count(&self) -> u32 {
        self.pending_count
    }

    /// Writes one result behind the others of this job, so that it survives the worker, without
    /// publishing it. False if the ring has no room now.
    #[inline]
    pub fn append(&mut self, kind: Kind, bytes: &[u8]) -> bool {
        let words = elements::padded(bytes.len()) / WORD;
        if !self.has_room(words) {
            return false;
        }
        if self.pending_count == 0 {
            // What is pending is told from what was published by where it begins, so that publishing
            // needs no second store and a death at any point neither loses nor repeats a result.
            self.block.word(PENDING).store(0, Ordering::Release);
            self.block.word(PENDING_AT).store(self.results_tail, Ordering::Release);
        }
        let ring = self.block.results();
        let at = self.results_tail + (RECORD_HEADER + self.pending_words) as u64;
        ring.put(at, elements::header(kind, bytes.len()));
        let (whole, rest) = bytes.as_chunks::<WORD>();
        for (index, word) in whole.iter().enumerate() {
            ring.put(at + 1 + index as u64, u64::from_le_bytes(*word));
        }
        if !rest.is_empty() {
            let mut word = [0; WORD];
            word[..rest.len()].copy_from_slice(rest);
            ring.put(at + 1 + whole.len() as u64, u64::from_le_bytes(word));
        }
        self.pending_words += words;
        self.pending_count += 1;
        let pending = u64::from(self.pending_count) << 32 | self.pending_words as u64;
        self.block.word(PENDING).store(pending, Ordering::Release);
        true
    }

    /// Publishes what was appended, under this header; `count` is filled in here.
    #[inline]
    pub fn publish(&mut self, header: &ResultHeader) {
        self.write_record(header, self.pending_words, self.pending_count, 0);
    }

    /// Announces one result of `len` bytes that follows in a payload frame. Nothing may be pending.
    /// False if the ring has no room now.
    pub fn announce(&mut self, header: &ResultHeader, kind: Kind, len: usize) -> bool {
        debug_assert_eq!(self.pending_count, 0);
        if !self.has_room(1) {
            return false;
        }
        self.block
            .results()
            .put(self.results_tail + RECORD_HEADER as u64, elements::header(kind, len));
        self.write_record(header, 1, 1, FLAG_STREAMED);
        true
    }

    /// True if a record with `words` more words of elements than are pending fits into the ring.
    #[inline]
    pub fn has_room(&mut self, words: usize) -> bool {
        let need = RECORD_HEADER + self.pending_words + words;
        if self.results_room < need {
            self.results_room = self.block.results().free(self.results_tail).unwrap_or(0);
        }
        self.results_room >= need
    }

    /// True if the pool's position in the ring of results cannot be: waiting for room would never end.
    pub fn is_corrupt(&self) -> bool {
        self.block.results().free(self.results_tail).is_err()
    }

    /// True if the pool has not read every result that was published.
    pub fn has_unread_results(&self) -> bool {
        let ring = self.block.results();
        ring.free(self.results_tail) != Ok(ring.capacity())
    }

    #[inline]
    fn write_record(&mut self, header: &ResultHeader, words: usize, count: u32, flags: u64) {
        let ring = self.block.results();
        let at = self.results_tail;
        let words = RECORD_HEADER + words;
        let mut flags = flags
            | u64::from(header.child) << CHILD_SHIFT
            | if header.last { FLAG_LAST } else { 0 }
            | if header.given_back { FLAG_GIVEN_BACK } else { 0 }
            | if header.leaked { FLAG_LEAKED } else { 0 }
            | if header.leaving { FLAG_LEAVING } else { 0 };
        if let Some(usage) = header.usage {
            flags |= FLAG_USAGE;
            ring.put(at + 6, usage.cpu_ns);
            ring.put(at + 7, usage.peak_rss);
        }
        ring.put(at, words as u64);
        ring.put(at + 1, header.ticket.word());
        ring.put(at + 2, u64::from(header.first) << 32 | u64::from(count));
        ring.put(at + 3, header.started_ns);
        ring.put(at + 4, header.ran_ns);
        ring.put(at + 5, flags);
        (self.pending_words, self.pending_count) = (0, 0);
        self.results_tail += words as u64;
        // Whoever has written behind this header has asked for room for it as well.
        self.results_room = self.results_room.saturating_sub(words);
        self.block.results().publish_in_order(self.results_tail);
    }

    /// True if the pool sleeps and must be sent a bell; asking takes the request away. Call after publishing.
    #[inline]
    pub fn must_wake_pool(&self) -> bool {
        self.block.word(POOL_SLEEPS).load(Ordering::SeqCst) != 0
            && self.block.word(POOL_SLEEPS).swap(0, Ordering::Relaxed) != 0
    }

    /// The worker is about to sleep (or not): does it want a bell with the next job? After asking for
    /// one, look once more for jobs.
    #[inline]
    pub fn want_bell(&self, want: bool) {
        self.block.word(WORKER_SLEEPS).store(u64::from(want), Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// The worker looks for jobs on this CPU. True if the pool looked for results there too: then nobody there can
    /// send one while the worker spins.
    #[inline]
    pub fn shares_cpu(&mut self, cpu: u32) -> bool {
        self.block.meet(WORKER_CPU, POOL_CPU, &mut self.told_cpu, cpu)
    }
}
