//! Both ends of a block in one process.

use std::sync::Arc;

use super::*;
use crate::elements::{self, Kind};
use crate::ring::Corrupt;

#[derive(Debug, Clone)]
struct Memory(Arc<Vec<AtomicU64>>);

impl AsRef<[AtomicU64]> for Memory {
    fn as_ref(&self) -> &[AtomicU64] {
        &self.0
    }
}

fn ends() -> (PoolEnd<Memory>, WorkerEnd<Memory>) {
    let memory = Memory(Arc::new((0..BLOCK_WORDS).map(|_| AtomicU64::new(0)).collect()));
    (PoolEnd::new(Block::new(memory.clone())), WorkerEnd::new(Block::new(memory)))
}

fn job(index: u32) -> JobHeader {
    let ticket = Ticket { index, generation: 1 };
    JobHeader {
        ticket,
        job: 17,
        attempt: 2,
        first: 3,
        count: 1,
        name_len: 0,
        note_cpu: false,
        run: 5,
        function: 6,
    }
}

fn result(ticket: Ticket) -> ResultHeader {
    ResultHeader {
        ticket,
        first: 0,
        count: 0,
        started_ns: 7,
        ran_ns: 8,
        last: true,
        given_back: false,
        leaked: false,
        leaving: false,
        child: 0,
        usage: None,
    }
}

fn element(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    elements::push(&mut out, Kind::Value, bytes);
    out
}

/// A job and its result cross the block.
fn cross(pool: &mut PoolEnd<Memory>, worker: &mut WorkerEnd<Memory>) {
    assert_eq!(pool.send(&job(0), &[], Body::Inline, &element(b"argument")), Ok(true));
    let mut body = Vec::new();
    assert_eq!(worker.next_job(&mut body), Ok(Some((job(0), Body::Inline))));
    assert_eq!(body, element(b"argument"));
    assert!(worker.claim(job(0).ticket, 7));
    assert_eq!(pool.block().claim(job(0).ticket), Some(Claim::Claimed));
    assert!(worker.append(Kind::Value, b"a result of some length"));
    worker.publish(&result(job(0).ticket));
    let mut out = Vec::new();
    let (header, _) = pool.next_results(&mut out).unwrap().unwrap();
    assert_eq!((header.count, header.last, header.ran_ns), (1, true, 8));
    assert_eq!(out, element(b"a result of some length"));
    assert_eq!(pool.next_results(&mut out), Ok(None));
}

#[test]
fn a_job_and_its_result_cross_the_block() {
    let (mut pool, mut worker) = ends();
    cross(&mut pool, &mut worker);
}

/// Goal: a block that was used, or scribbled over as a whole, says nothing of that to those who have it next.
#[test]
fn a_renewed_block_is_as_good_as_new() {
    let (mut pool, mut worker) = ends();
    cross(&mut pool, &mut worker);
    let words = Arc::clone(&pool.block().memory.0);
    let ticket = job(0).ticket;
    let scribble = |with: u64| words.iter().for_each(|word| word.store(with, Ordering::Relaxed));
    for with in [None, Some(u64::MAX), Some(1), Some(ticket.word())] {
        with.into_iter().for_each(scribble);
        pool.block().renew();
        let block = Block::new(Memory(Arc::clone(&words)));
        (pool, worker) = (PoolEnd::new(block.clone()), WorkerEnd::new(block.clone()));
        assert_eq!(worker.next_job(&mut Vec::new()), Ok(None));
        assert_eq!(pool.next_results(&mut Vec::new()), Ok(None));
        assert_eq!(pool.recover(&mut Vec::new()), 0);
        assert_eq!((block.claim(ticket), block.fatal_panic(ticket)), (None, None));
        assert_eq!((block.progress(ticket), block.leak(ticket)), (None, None));
        assert!(!block.is_asked_to_stop(ticket));
        assert_eq!((block.black_box().phase, block.slot(), block.cpu()), (Phase::Idle, 0, None));
        cross(&mut pool, &mut worker);
    }
}

/// Goal: cancel and start exclude each other, in both orders.
#[test]
fn either_the_worker_claims_or_the_pool_revokes() {
    let (mut pool, worker) = ends();
    let (first, second) = (job(0), job(1));
    pool.send(&first, &[], Body::Inline, &[]).unwrap();
    pool.send(&second, &[], Body::Inline, &[]).unwrap();
    assert!(worker.claim(first.ticket, 0));
    assert!(!pool.revoke(first.ticket));
    assert!(pool.revoke(second.ticket));
    assert!(!worker.claim(second.ticket, 0));
    let reused = Ticket { index: 1, generation: 2 };
    pool.send(&JobHeader { ticket: reused, ..second }, &[], Body::Inline, &[]).unwrap();
    assert!(!worker.claim(second.ticket, 0), "an old ticket must not claim the new job");
    assert!(worker.claim(reused, 0));
}

/// Goal: a death between appending and publishing loses nothing, one after publishing repeats nothing.
#[test]
fn unpublished_results_are_recovered_exactly_once() {
    let (mut pool, mut worker) = ends();
    let mut out = Vec::new();
    assert_eq!(pool.recover(&mut out), 0);
    assert!(worker.append(Kind::Value, b"one") && worker.append(Kind::Value, b"two"));
    assert_eq!(pool.recover(&mut out), 2);
    assert_eq!(out, [element(b"one"), element(b"two")].concat());
    out.clear();
    worker.publish(&result(job(0).ticket));
    pool.next_results(&mut out).unwrap().unwrap();
    assert_eq!(pool.recover(&mut out), 0);
}

#[test]
fn a_full_ring_refuses_and_accepts_again_after_reading() {
    let (mut pool, mut worker) = ends();
    let big = vec![0; INLINE_WORDS_MAX * WORD - 2 * WORD];
    let mut published = 0;
    while worker.append(Kind::Value, &big) {
        worker.publish(&result(job(0).ticket));
        published += 1;
    }
    assert!(published > 10);
    assert!(pool.next_results(&mut Vec::new()).unwrap().is_some());
    assert!(worker.append(Kind::Value, &big));
}

#[test]
fn scribbled_positions_and_lengths_are_corrupt_not_a_panic() {
    for offset in [RESULTS_TAIL, JOBS_HEAD] {
        let (mut pool, _worker) = ends();
        pool.block().word(offset).store(u64::MAX / 3, Ordering::Relaxed);
        let sent = pool.send(&job(0), &[], Body::Inline, &[]);
        let read = pool.next_results(&mut Vec::new());
        assert!(sent == Err(Corrupt) || read == Err(Corrupt));
    }
    let (mut pool, mut worker) = ends();
    worker.append(Kind::Value, b"x");
    worker.publish(&result(job(0).ticket));
    pool.block().word(RESULTS).store(u64::MAX, Ordering::Relaxed);
    assert_eq!(pool.next_results(&mut Vec::new()), Err(Corrupt));
}

#[test]
fn progress_is_read_whole_or_not_at_all() {
    let (pool, worker) = ends();
    let ticket = job(0).ticket;
    assert_eq!(pool.block().progress(ticket), None);
    worker.block().set_progress(ticket, 0.5, "half — done");
    assert_eq!(pool.block().progress(ticket), Some((0.5, "half — done".into())));
    assert_eq!(pool.block().progress(Ticket { index: 0, generation: 2 }), None);
    worker.block().set_progress(ticket, 1.0, &"é".repeat(1000));
    let (_, text) = pool.block().progress(ticket).unwrap();
    assert_eq!(text, "é".repeat(PROGRESS_TEXT_MAX / 2));
}

/// Goal: a job whose CPU time is limited says so, beside a name of any length, and its start is told from
/// that of the job before it.
#[test]
fn cpu_time_at_the_start_of_a_job_is_the_jobs_own() {
    let (mut pool, mut worker) = ends();
    let mut out = Vec::new();
    for (note_cpu, name) in [(true, "n".repeat(1000)), (false, "n".into()), (true, String::new())] {
        let sent = JobHeader { note_cpu, name_len: name.len() as u32, ..job(0) };
        assert_eq!(pool.send(&sent, name.as_bytes(), Body::Inline, &element(b"")), Ok(true));
        assert_eq!(worker.next_job(&mut out).unwrap().unwrap().0, sent);
    }
    let (first, second) = (job(0).ticket, job(1).ticket);
    assert_eq!(pool.block().cpu_at_start(first), None);
    worker.block().set_cpu_at_start(first, 500);
    assert_eq!(pool.block().cpu_at_start(first), Some(500));
    assert_eq!(pool.block().cpu_at_start(second), None);
    worker.block().set_cpu_at_start(second, 700);
    assert_eq!(pool.block().cpu_at_start(first), None);
}

/// Goal: each end learns that the other looks on the same CPU, also after it has moved; before anybody looks, neither.
#[test]
fn the_ends_know_when_they_share_a_cpu() {
    let (mut pool, mut worker) = ends();
    assert!(!pool.shares_cpu(0));
    assert!(worker.shares_cpu(0));
    assert!(pool.shares_cpu(0));
    assert!(!worker.shares_cpu(1));
    assert!(!pool.shares_cpu(0));
    assert!(pool.shares_cpu(1) && worker.shares_cpu(1));
}
