//! What each step between two processes costs by itself, without a second process: values to bytes and back, a job
//! through its ring, its claim, its result through the other ring.
//!
//! `cargo bench -p procpool-wire`. Within one process nothing waits for another's cache, so these are the least that
//! each step can cost; instruction counts of the same program repeat: `valgrind --tool=callgrind`.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use divan::{Bencher, black_box};
use procpool_wire::block::{
    BLOCK_WORDS, Block, Body, JobHeader, Phase, PoolEnd, ResultHeader, Ticket, WorkerEnd,
};
use procpool_wire::codec;
use procpool_wire::elements::{self, Kind};

/// Jobs a round: as many as one worker has in its hands when it is busy with short ones.
const JOBS: u32 = 256;
/// Stack that decoding may take, as the pool's takers have it.
const STACK: usize = 1 << 20;

fn main() {
    divan::main();
}

type Memory = Arc<[AtomicU64]>;

fn ends() -> (PoolEnd<Memory>, WorkerEnd<Memory>) {
    let memory: Memory = (0..BLOCK_WORDS).map(|_| AtomicU64::new(0)).collect();
    (PoolEnd::new(Block::new(Arc::clone(&memory))), WorkerEnd::new(Block::new(memory)))
}

fn encoded<T: serde::Serialize>(value: &T) -> Vec<u8> {
    let mut bytes = Vec::new();
    codec::encode_into(value, None, &mut bytes).expect("the value can be encoded");
    bytes
}

fn element() -> Vec<u8> {
    let mut bytes = Vec::new();
    elements::push(&mut bytes, Kind::Value, &7_u64.to_le_bytes());
    bytes
}

fn job(ticket: Ticket) -> JobHeader {
    JobHeader {
        ticket,
        job: 1,
        attempt: 1,
        first: 0,
        count: 1,
        name_len: 0,
        note_cpu: false,
        run: 4096,
        function: 8192,
    }
}

fn outcome(ticket: Ticket) -> ResultHeader {
    ResultHeader {
        ticket,
        first: 0,
        count: 0,
        started_ns: 1,
        ran_ns: 2,
        last: true,
        given_back: false,
        leaked: false,
        leaving: false,
        child: 0,
        usage: None,
    }
}

mod values {
    use super::*;

    #[divan::bench]
    fn encode_u64(bencher: Bencher) {
        let mut out = Vec::with_capacity(64);
        bencher.bench_local(|| {
            out.clear();
            codec::encode_into(black_box(&7_u64), None, &mut out)
        });
    }

    #[divan::bench]
    fn encode_1000_u64(bencher: Bencher) {
        let (value, mut out) = (vec![7_u64; 1000], Vec::new());
        bencher.bench_local(|| {
            out.clear();
            codec::encode_into(black_box(&value), None, &mut out)
        });
    }

    #[divan::bench]
    fn decode_u64(bencher: Bencher) {
        let bytes = encoded(&7_u64);
        bencher.bench_local(|| codec::decode_within::<u64>(black_box(&bytes), STACK));
    }

    #[divan::bench]
    fn decode_1000_u64_as_a_worker(bencher: Bencher) {
        let bytes = encoded(&vec![7_u64; 1000]);
        bencher.bench_local(|| codec::decode::<Vec<u64>>(black_box(&bytes)));
    }

    /// The same with the guard against values that are nested too deep.
    #[divan::bench]
    fn decode_1000_u64_as_a_taker(bencher: Bencher) {
        let bytes = encoded(&vec![7_u64; 1000]);
        bencher.bench_local(|| codec::decode_within::<Vec<u64>>(black_box(&bytes), STACK));
    }

    #[divan::bench]
    fn decode_1000_pairs_as_a_taker(bencher: Bencher) {
        let bytes = encoded(&vec![(7_u64, 8_u32); 1000]);
        bencher.bench_local(|| codec::decode_within::<Vec<(u64, u32)>>(black_box(&bytes), STACK));
    }
}

mod rings {
    use super::*;

    /// All that happens to a job between the two processes, one at a time.
    #[divan::bench]
    fn one_job_there_and_back(bencher: Bencher) {
        let ((mut pool, mut worker), element) = (ends(), element());
        let (mut body, mut results, mut generation) = (Vec::new(), Vec::new(), 0);
        bencher.bench_local(|| {
            generation += 1;
            let ticket = Ticket { index: 0, generation };
            assert_eq!(pool.send(&job(ticket), &[], Body::Inline, &element), Ok(true));
            black_box(pool.must_wake_for_jobs());
            run_next(&mut worker, &mut body);
            results.clear();
            assert!(matches!(pool.next_results(&mut results), Ok(Some(_))));
        });
    }

    fn run_next(worker: &mut WorkerEnd<Memory>, body: &mut Vec<u8>) {
        let Ok(Some((header, _))) = worker.next_job(body) else {
            panic!("a job was sent");
        };
        assert!(worker.claim(header.ticket, 1));
        worker.begin_element(0, 1);
        worker.set_phase(0, Phase::Run);
        worker.set_phase(0, Phase::Encode);
        worker.set_phase(0, Phase::Send);
        assert!(worker.append(Kind::Value, &[7; 8]));
        worker.publish(&outcome(header.ticket));
        black_box(worker.must_wake_pool());
        worker.set_phase(0, Phase::Idle);
    }

    /// Jobs by the batch, each step by itself: what one costs is a 256th of what is shown.
    #[divan::bench]
    fn send_and_receive_256_jobs(bencher: Bencher) {
        let ((mut pool, mut worker), element) = (ends(), element());
        let (mut generation, mut body) = (0, Vec::new());
        bencher.bench_local(|| {
            generation += 1;
            for index in 0..JOBS {
                let ticket = Ticket { index, generation };
                assert_eq!(pool.send(&job(ticket), &[], Body::Inline, &element), Ok(true));
            }
            black_box(pool.must_wake_for_jobs());
            while let Ok(Some(_)) = worker.next_job(&mut body) {}
        });
    }

    #[divan::bench]
    fn send_receive_and_claim_256_jobs(bencher: Bencher) {
        let ((mut pool, mut worker), element) = (ends(), element());
        let mut generation = 0;
        let mut body = Vec::new();
        bencher.bench_local(|| {
            generation += 1;
            for index in 0..JOBS {
                let ticket = Ticket { index, generation };
                assert_eq!(pool.send(&job(ticket), &[], Body::Inline, &element), Ok(true));
                assert!(matches!(worker.next_job(&mut body), Ok(Some(_))));
                assert!(worker.claim(ticket, 1));
            }
        });
    }

    #[divan::bench]
    fn publish_and_read_256_results(bencher: Bencher) {
        let (mut pool, mut worker) = ends();
        let mut out = Vec::new();
        bencher.bench_local(|| {
            for index in 0..JOBS {
                assert!(worker.append(Kind::Value, &[7; 8]));
                worker.publish(&outcome(Ticket { index, generation: 1 }));
            }
            loop {
                out.clear();
                match pool.next_results(&mut out) {
                    Ok(Some(_)) => {}
                    Ok(None) => break,
                    Err(corrupt) => panic!("{corrupt:?}"),
                }
            }
        });
    }
}
