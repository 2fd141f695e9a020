//! The memory that a pool shares with one worker.
//!
//! ```text
//! black box   what the worker is doing: ticket, phase, element, since when; what it has not published yet
//! control     what the pool asks: stop this ticket; which slot it is; a fork server notes its last child, a worker its thread,
//!             the child that runs its job, and how that ended
//! positions   of the two rings; who sleeps and wants a bell; on which CPU each end looks for what comes
//! progress    the latest progress report of a job
//! panic       the record of a panic that the process did not survive
//! claims      one word a ticket: Sent, Claimed, Revoked
//! jobs        ring, pool to worker
//! results     ring, worker to pool
//! ```
//!
//! It outlives the worker: after any death the pool reads from it which job ran, in which phase, and
//! takes up results that the worker had finished but not published. Every line below that the worker
//! writes is alone on its cache lines.
//!
//! **The claim rule.** A sent job has one word in the claim table. The worker changes it from `Sent` to
//! `Claimed` as it starts the job, or the pool from `Sent` to `Revoked`: one compare-exchange either
//! way, so exactly one of them succeeds. The word holds the ticket's generation, so a word that was
//! reused cannot be mistaken for the old one.

mod pool_end;
mod worker_end;

use std::sync::atomic::{AtomicU64, Ordering, fence};

use crate::elements::WORD;
use crate::ring::Ring;

pub use pool_end::PoolEnd;
pub use worker_end::WorkerEnd;

/// Jobs that can be in one worker's hands at a time. At 0.3 µs a job the supervisor can stay away for
/// 0.6 ms before a worker runs dry.
pub const TICKETS_MAX: usize = 2048;
/// Words in each ring: 256 KiB.
pub const RING_WORDS: usize = 32 * 1024;
/// The most words that the elements of one record may take; longer ones travel on the control channel.
pub const INLINE_WORDS_MAX: usize = 2 * 1024;
/// Bytes kept of a progress message; what is longer is cut.
pub const PROGRESS_TEXT_MAX: usize = 32 * WORD;
/// Bytes kept of an encoded panic record.
pub const PANIC_BYTES_MAX: usize = 512 * WORD;
/// Bytes kept of an encoded record of what a job left.
pub const LEAK_BYTES_MAX: usize = 256 * WORD;

const RECORD_HEADER: usize = 8;
/// Bits of a name's length in the header of a job; the one above them says whether CPU time is noted.
const NAME_LEN_BITS: u32 = 31;

// Word offsets. Lines of eight words that one side writes and the other reads are kept apart.
const POSITION: usize = 0;
const TICKET: usize = 1;
const STARTED: usize = 2;
const PENDING: usize = 3;
const COOPERATIVE: usize = 4;
const PANIC_TICKET: usize = 5;
const PANIC_LEN: usize = 6;
const PENDING_AT: usize = 7;
const STOP: usize = 8;
const SLOT: usize = 9;
const BIRTH_NUMBER: usize = 10;
const BIRTH: usize = 11;
const THREAD: usize = 12;
const CHILD: usize = 13;
const CHILD_END: usize = 14;
const JOBS_TAIL: usize = 16;
const JOBS_HEAD: usize = 24;
const RESULTS_TAIL: usize = 32;
const RESULTS_HEAD: usize = 40;
const WORKER_SLEEPS: usize = 48;
const WORKER_CPU: usize = 49;
const POOL_SLEEPS: usize = 56;
const POOL_CPU: usize = 57;
const PROGRESS_SEQUENCE: usize = 64;
const PROGRESS_TICKET: usize = 65;
const PROGRESS_FRACTION: usize = 66;
const PROGRESS_LEN: usize = 67;
const CPU_TICKET: usize = 68;
const CPU_STARTED: usize = 69;
const LEAK_TICKET: usize = 70;
const LEAK_LEN: usize = 71;
const PROGRESS_TEXT: usize = 72;
const PANIC_BYTES: usize = PROGRESS_TEXT + PROGRESS_TEXT_MAX / WORD;
const LEAK_BYTES: usize = PANIC_BYTES + PANIC_BYTES_MAX / WORD;
const CLAIMS: usize = LEAK_BYTES + LEAK_BYTES_MAX / WORD;
const JOBS: usize = CLAIMS + TICKETS_MAX;
const RESULTS: usize = JOBS + RING_WORDS;
/// Words in a block.
pub const BLOCK_WORDS: usize = RESULTS + RING_WORDS;

/// The place of a sent job in the claim table. Generations count up and are never zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ticket {
    /// Which word of the claim table.
    pub index: u32,
    /// Which use of that word.
    pub generation: u32,
}

impl Ticket {
    #[inline]
    fn word(self) -> u64 {
        u64::from(self.index) << 32 | u64::from(self.generation)
    }

    #[inline]
    fn from_word(word: u64) -> Ticket {
        Ticket { index: (word >> 32) as u32, generation: word as u32 }
    }
}

/// The state of a sent job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Claim {
    /// Handed to the worker, not started.
    Sent = 1,
    /// Started by the worker.
    Claimed = 2,
    /// Taken back by the pool; the worker will skip it.
    Revoked = 3,
}

#[inline]
fn claim_word(ticket: Ticket, claim: Claim) -> u64 {
    u64::from(ticket.generation) << 8 | claim as u64
}

/// What a worker is doing with its current job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// Between jobs.
    Idle = 0,
    /// Decoding the argument.
    Decode = 1,
    /// In the user's function.
    Run = 2,
    /// Encoding the result.
    Encode = 3,
    /// Handing the result over.
    Send = 4,
    /// The result is recorded and is being dropped.
    Drop = 5,
}

/// The black box, read at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlackBox {
    /// The job that was claimed last.
    pub ticket: Ticket,
    /// What the worker was doing with it.
    pub phase: Phase,
    /// Which element of the job, counted from 0.
    pub element: u32,
    /// When that element was begun, in nanoseconds of the monotonic clock.
    pub started_ns: u64,
    /// True if that job has asked for its context, and so may see the stop flag.
    pub cooperative: bool,
}

/// The header of a job in the ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JobHeader {
    /// Its place in the claim table.
    pub ticket: Ticket,
    /// The pool's number for it.
    pub job: u64,
    /// Which attempt this is, from 1.
    pub attempt: u32,
    /// The number of the first element in this record: those before it are done.
    pub first: u32,
    /// How many elements follow.
    pub count: u32,
    /// Bytes of the task's name that precede the elements; 0 if the job is called by offset. Below 2^31.
    pub name_len: u32,
    /// True if the worker shall note its CPU time before each element.
    pub note_cpu: bool,
    /// The trampoline's offset; for a named task, how it is called.
    pub run: u64,
    /// The function's offset; for a named task in binary form, its fingerprint.
    pub function: u64,
}

/// Where the elements of a job are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body {
    /// In the ring, behind the header.
    Inline,
    /// In the next payload frame on the control channel: this many bytes.
    Streamed(u64),
}

/// The header of a record of results in the ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResultHeader {
    /// The job.
    pub ticket: Ticket,
    /// The number of the first element in this record.
    pub first: u32,
    /// How many results follow.
    pub count: u32,
    /// When the first of them was begun, in nanoseconds of the monotonic clock.
    pub started_ns: u64,
    /// From then to the end of the last of them, in nanoseconds.
    pub ran_ns: u64,
    /// True if the job ends with this record.
    pub last: bool,
    /// True if the worker was asked to stop and leaves the elements after this record alone.
    pub given_back: bool,
    /// True if the job has left something behind: [`Block::leak`] says what.
    pub leaked: bool,
    /// True if the worker takes no further job, and waits to be told to exit.
    pub leaving: bool,
    /// The child that ran the job; 0 if it was the worker itself.
    pub child: u32,
    /// Measured for long jobs only.
    pub usage: Option<Usage>,
}

/// How a child ended in which a worker has run a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChildEnd {
    /// It exited with this code.
    Code(i32),
    /// This signal killed it; whether it left a core file.
    Signal(i32, bool),
}

const CHILD_EXITED: u64 = 1;
const CHILD_KILLED: u64 = 2;
const CHILD_DUMPED: u64 = 3;

/// What a job used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// CPU time of all the worker's threads meanwhile, in nanoseconds.
    pub cpu_ns: u64,
    /// The worker's peak resident set so far, in bytes.
    pub peak_rss: u64,
}

/// One block of shared words. `M` keeps the memory alive.
#[derive(Debug, Clone)]
pub struct Block<M> {
    memory: M,
}

impl<M: AsRef<[AtomicU64]>> Block<M> {
    /// The memory must be [`BLOCK_WORDS`] long and, on the pool's side, zeroed.
    pub fn new(memory: M) -> Block<M> {
        assert!(memory.as_ref().len() >= BLOCK_WORDS, "the memory is shorter than a block");
        Block { memory }
    }

    /// Makes it as good as new for another pair of ends. What is in the rings can stay: nobody reads beyond their
    /// positions.
    pub fn renew(&self) {
        self.memory.as_ref()[..JOBS].iter().for_each(|word| word.store(0, Ordering::Relaxed));
    }

    #[inline]
    fn word(&self, offset: usize) -> &AtomicU64 {
        &self.memory.as_ref()[offset]
    }

    #[inline]
    fn jobs(&self) -> Ring<'_> {
        let words = &self.memory.as_ref()[JOBS..JOBS + RING_WORDS];
        Ring::new(words, self.word(JOBS_TAIL), self.word(JOBS_HEAD))
    }

    #[inline]
    fn results(&self) -> Ring<'_> {
        let words = &self.memory.as_ref()[RESULTS..RESULTS + RING_WORDS];
        Ring::new(words, self.word(RESULTS_TAIL), self.word(RESULTS_HEAD))
    }

    /// The claim of `ticket`, or `None` if its word says something else by now.
    #[inline]
    pub fn claim(&self, ticket: Ticket) -> Option<Claim> {
        let word = self.word(CLAIMS + ticket.index as usize % TICKETS_MAX).load(Ordering::Acquire);
        [Claim::Sent, Claim::Claimed, Claim::Revoked]
            .into_iter()
            .find(|claim| claim_word(ticket, *claim) == word)
    }

    #[inline]
    fn change_claim(&self, ticket: Ticket, to: Claim) -> bool {
        self.word(CLAIMS + ticket.index as usize % TICKETS_MAX)
            .compare_exchange(
                claim_word(ticket, Claim::Sent),
                claim_word(ticket, to),
                Ordering::AcqRel,
                Ordering::Acquire,
            )
            .is_ok()
    }

    /// The black box as it is now.
    pub fn black_box(&self) -> BlackBox {
        let position = self.word(POSITION).load(Ordering::Acquire);
        let ticket = self.word(TICKET).load(Ordering::Relaxed);
        BlackBox {
            ticket: Ticket::from_word(ticket),
            phase: match position as u8 {
                1 => Phase::Decode,
                2 => Phase::Run,
                3 => Phase::Encode,
                4 => Phase::Send,
                5 => Phase::Drop,
                _ => Phase::Idle,
            },
            element: (position >> 32) as u32,
            started_ns: self.word(STARTED).load(Ordering::Relaxed),
            cooperative: self.word(COOPERATIVE).load(Ordering::Relaxed) == ticket,
        }
    }

    /// Worker: `ticket` has taken its context and may look at the stop flag.
    pub fn set_cooperative(&self, ticket: Ticket) {
        self.word(COOPERATIVE).store(ticket.word(), Ordering::Relaxed);
    }

    /// Pool: the slot that the worker fills, and the CPU that it shall run on, if it was not told at its start.
    /// Said before its first job is sent.
    pub fn set_slot(&self, slot: u32, cpu: Option<u32>) {
        let cpu = cpu.map_or(0, |cpu| u64::from(cpu) + 1);
        self.word(SLOT).store(cpu << 32 | u64::from(slot), Ordering::Relaxed);
    }

    /// The slot that the worker fills. It is there once a job is.
    #[inline]
    pub fn slot(&self) -> u32 {
        self.word(SLOT).load(Ordering::Relaxed) as u32
    }

    /// Worker: the thread that runs jobs, by the kernel's number.
    pub fn set_thread(&self, thread: u32) {
        self.word(THREAD).store(u64::from(thread), Ordering::Relaxed);
    }

    /// The same, on the pool's side; 0 before it was said.
    pub fn thread(&self) -> u32 {
        self.word(THREAD).load(Ordering::Relaxed) as u32
    }

    /// In a worker's child: its process id, before it claims its job.
    pub fn set_child(&self, pid: u32) {
        self.word(CHILD).store(u64::from(pid), Ordering::Relaxed);
    }

    /// The child that runs the worker's job, or ran the last one; 0 if the worker runs its jobs itself.
    pub fn child(&self) -> u32 {
        self.word(CHILD).load(Ordering::Relaxed) as u32
    }

    /// Worker: its child has ended like this, and so it ends as well.
    pub fn set_child_end(&self, end: ChildEnd) {
        let (value, how) = match end {
            ChildEnd::Code(code) => (code, CHILD_EXITED),
            ChildEnd::Signal(signal, false) => (signal, CHILD_KILLED),
            ChildEnd::Signal(signal, true) => (signal, CHILD_DUMPED),
        };
        self.word(CHILD_END).store(u64::from(value as u32) << 32 | how, Ordering::Release);
    }

    /// The same, on the pool's side; `None` if the worker had no word on a child's end.
    pub fn child_end(&self) -> Option<ChildEnd> {
        let word = self.word(CHILD_END).load(Ordering::Acquire);
        let value = (word >> 32) as i32;
        match word & u64::from(u32::MAX) {
            CHILD_EXITED => Some(ChildEnd::Code(value)),
            CHILD_KILLED => Some(ChildEnd::Signal(value, false)),
            CHILD_DUMPED => Some(ChildEnd::Signal(value, true)),
            _ => None,
        }
    }

    /// Tells at `ours` that this end looks for what comes on this CPU, unless it was `told` so. True if the other end said
    /// the same at `theirs`.
    fn meet(&self, ours: usize, theirs: usize, told: &mut u64, cpu: u32) -> bool {
        let word = u64::from(cpu) + 1;
        if *told != word {
            *told = word;
            self.word(ours).store(word, Ordering::Relaxed);
        }
        self.word(theirs).load(Ordering::Relaxed) == word
    }

    /// The CPU that was told with the slot.
    pub fn cpu(&self) -> Option<u32> {
        let cpu = self.word(SLOT).load(Ordering::Relaxed) >> 32;
        (cpu as u32).checked_sub(1)
    }

    /// Fork server: the word in which the kernel shall note the id of its next child, the `number`th, before that
    /// runs. So the pool learns of one whose birth the server does not live to tell.
    pub fn next_birth(&self, number: u64) -> &AtomicU64 {
        self.word(BIRTH).store(0, Ordering::Release);
        self.word(BIRTH_NUMBER).store(number, Ordering::Release);
        self.word(BIRTH)
    }

    /// Pool, after a fork server's death: the id of its `number`th child, if it was born.
    pub fn newborn(&self, number: u64) -> Option<u32> {
        let begun = self.word(BIRTH_NUMBER).load(Ordering::Acquire) == number;
        // The kernel writes half a word, as a C int.
        let [a, b, c, d, ..] = self.word(BIRTH).load(Ordering::Acquire).to_ne_bytes();
        let pid = u32::from_ne_bytes([a, b, c, d]);
        (begun && pid != 0).then_some(pid)
    }

    /// Pool: ask the job of `ticket` to stop.
    pub fn ask_to_stop(&self, ticket: Ticket) {
        self.word(STOP).store(ticket.word(), Ordering::Release);
    }

    /// True if the job of `ticket` was asked to stop.
    #[inline]
    pub fn is_asked_to_stop(&self, ticket: Ticket) -> bool {
        self.word(STOP).load(Ordering::Acquire) == ticket.word()
    }

    /// Worker: what CPU time it had used, in nanoseconds, when it began the current element of `ticket`.
    pub fn set_cpu_at_start(&self, ticket: Ticket, cpu_ns: u64) {
        self.word(CPU_STARTED).store(cpu_ns, Ordering::Relaxed);
        self.word(CPU_TICKET).store(ticket.word(), Ordering::Release);
    }

    /// The same, on the pool's side; `None` if no element of `ticket` was begun, or nobody asked.
    pub fn cpu_at_start(&self, ticket: Ticket) -> Option<u64> {
        (self.word(CPU_TICKET).load(Ordering::Acquire) == ticket.word())
            .then(|| self.word(CPU_STARTED).load(Ordering::Relaxed))
    }

    /// Worker: records a progress report. Callers on several threads must take turns.
    pub fn set_progress(&self, ticket: Ticket, fraction: f64, message: &str) {
        let sequence = self.word(PROGRESS_SEQUENCE).load(Ordering::Relaxed) | 1;
        self.word(PROGRESS_SEQUENCE).store(sequence, Ordering::Relaxed);
        fence(Ordering::Release);
        self.word(PROGRESS_TICKET).store(ticket.word(), Ordering::Relaxed);
        self.word(PROGRESS_FRACTION).store(fraction.to_bits(), Ordering::Relaxed);
        let bytes = &message.as_bytes()[..message.floor_char_boundary(PROGRESS_TEXT_MAX)];
        self.word(PROGRESS_LEN).store(bytes.len() as u64, Ordering::Relaxed);
        self.put_bytes(PROGRESS_TEXT, bytes);
        self.word(PROGRESS_SEQUENCE).store(sequence + 1, Ordering::Release);
    }

    /// The latest progress report of `ticket`: fraction and message.
    #[inline]
    pub fn progress(&self, ticket: Ticket) -> Option<(f64, String)> {
        // A worker killed while it wrote leaves an odd number for ever, so the reader gives up early.
        const TRIES: usize = 100;
        for _ in 0..TRIES {
            let before = self.word(PROGRESS_SEQUENCE).load(Ordering::Acquire);
            if before == 0 || self.word(PROGRESS_TICKET).load(Ordering::Relaxed) != ticket.word() {
                return None;
            }
            let fraction = f64::from_bits(self.word(PROGRESS_FRACTION).load(Ordering::Relaxed));
            let len = self.word(PROGRESS_LEN).load(Ordering::Relaxed) as usize;
            let bytes = self.get_bytes(PROGRESS_TEXT, len.min(PROGRESS_TEXT_MAX));
            fence(Ordering::Acquire);
            if before.is_multiple_of(2)
                && before == self.word(PROGRESS_SEQUENCE).load(Ordering::Relaxed)
            {
                return Some((fraction, String::from_utf8_lossy(&bytes).into_owned()));
            }
            std::hint::spin_loop();
        }
        None
    }

    /// Worker: records a panic that the process is not going to survive, as an encoded record.
    pub fn set_fatal_panic(&self, ticket: Ticket, record: &[u8]) {
        self.word(PANIC_TICKET).store(0, Ordering::Relaxed);
        let len = record.len().min(PANIC_BYTES_MAX);
        self.word(PANIC_LEN).store(len as u64, Ordering::Relaxed);
        self.put_bytes(PANIC_BYTES, &record[..len]);
        self.word(PANIC_TICKET).store(ticket.word(), Ordering::Release);
    }

    /// The encoded record of the panic that ended the process during `ticket`, if one did.
    pub fn fatal_panic(&self, ticket: Ticket) -> Option<Vec<u8>> {
        (self.word(PANIC_TICKET).load(Ordering::Acquire) == ticket.word()).then(|| {
            let len = self.word(PANIC_LEN).load(Ordering::Relaxed) as usize;
            self.get_bytes(PANIC_BYTES, len.min(PANIC_BYTES_MAX))
        })
    }

    /// Worker: what a job has left behind, as an encoded record.
    pub fn set_leak(&self, ticket: Ticket, record: &[u8]) {
        let len = record.len().min(LEAK_BYTES_MAX);
        self.word(LEAK_LEN).store(len as u64, Ordering::Relaxed);
        self.put_bytes(LEAK_BYTES, &record[..len]);
        self.word(LEAK_TICKET).store(ticket.word(), Ordering::Release);
    }

    /// The encoded record of what the job of `ticket` has left behind, if that was the last one that did.
    pub fn leak(&self, ticket: Ticket) -> Option<Vec<u8>> {
        (self.word(LEAK_TICKET).load(Ordering::Acquire) == ticket.word()).then(|| {
            let len = self.word(LEAK_LEN).load(Ordering::Relaxed) as usize;
            self.get_bytes(LEAK_BYTES, len.min(LEAK_BYTES_MAX))
        })
    }

    fn put_bytes(&self, offset: usize, bytes: &[u8]) {
        for (index, chunk) in bytes.chunks(WORD).enumerate() {
            let mut word = [0; WORD];
            word[..chunk.len()].copy_from_slice(chunk);
            self.word(offset + index).store(u64::from_le_bytes(word), Ordering::Relaxed);
        }
    }

    fn get_bytes(&self, offset: usize, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len.next_multiple_of(WORD));
        for index in 0..len.div_ceil(WORD) {
            bytes.extend_from_slice(
                &self.word(offset + index).load(Ordering::Relaxed).to_le_bytes(),
            );
        }
        bytes.truncate(len);
        bytes
    }
}

const FLAG_LAST: u64 = 1;
const FLAG_USAGE: u64 = 2;
const FLAG_STREAMED: u64 = 4;
const FLAG_GIVEN_BACK: u64 = 8;
const FLAG_LEAKED: u64 = 16;
const FLAG_LEAVING: u64 = 32;
/// The child that ran the job is in the upper half of the word of flags.
const CHILD_SHIFT: u32 = 32;

#[cfg(test)]
mod tests;
