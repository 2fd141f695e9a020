//! Arguments and results of all sizes, on the way when things go wrong.

use procpool::{JobError, Phase, ProcessPool, Status};
use serde::ser::SerializeSeq;
use serde::{Deserialize, Serialize, Serializer};

use super::died;
use super::fault::{Blob, Fault};
use crate::support::{Meeting, meet, resident, test};

const MIB: usize = 1 << 20;

/// Goal: a result that fails half-way through its encoding is a death while encoding.
/// Covers: F-40
#[test]
fn a_result_that_aborts_at_half_of_64_mib_is_a_death_while_encoding() {
    #[derive(Debug, Deserialize)]
    struct Half(#[expect(dead_code, reason = "it never arrives")] Vec<Blob>);
    impl Serialize for Half {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            let mut seq = serializer.serialize_seq(Some(64))?;
            for part in 0..64 {
                if part == 32 {
                    Fault::Abort.strike();
                }
                seq.serialize_element(&Blob(vec![0; MIB]))?;
            }
            seq.end()
        }
    }
    test(|| {
        let pool = ProcessPool::builder().workers(1).build().unwrap();
        let job = |()| Half(Vec::new());
        for _ in 0..3 {
            let death = died(pool.submit(job, ()).result());
            assert_eq!(death.phase, Phase::Encode);
            assert_eq!(death.status, Status::Signal(libc::SIGABRT, false));
        }
        pool.submit(|()| (), ()).result().unwrap();
    });
}

/// Goal: a worker that ends while the pool is writing a large argument to it blocks nobody, and the job
/// whose argument that was runs elsewhere, whole.
/// Covers: F-41
#[test]
fn a_worker_that_exits_before_it_reads_64_mib_costs_only_its_own_job() {
    test(|| {
        let meeting = Meeting::new();
        let pool = ProcessPool::builder().workers(1).build().unwrap();
        let exit = |path: String| {
            meet(&path, "");
            Fault::BareExit.strike();
        };
        for _ in 0..3 {
            let culprit = pool.submit(exit, meeting.path());
            let guest = meeting.next();
            // The worker is busy, so this one is on its way behind the first.
            let len = |blob: Blob| blob.0.iter().filter(|byte| **byte == 7).count();
            let large = pool.submit(len, Blob(vec![7; 64 * MIB]));
            let small = pool.submit(|n: u64| n, 5);
            guest.go();
            assert_eq!(died(culprit.result()).status, Status::Exit(0));
            let outcome = large.outcome();
            assert_eq!(outcome.result.unwrap(), 64 * MIB);
            assert_eq!(outcome.report.attempts, 1);
            assert_eq!(small.result().unwrap(), 5);
        }
    });
}

/// Goal: large arguments and large results on the same channel at the same time do not wait for each
/// other.
/// Method: one worker, several jobs: while the first's result comes, the next one's argument goes.
/// Covers: F-42
#[test]
fn large_data_goes_both_ways_at_the_same_time() {
    test(|| {
        let pool = ProcessPool::builder().workers(1).build().unwrap();
        let submit = |n: u8| pool.submit(|blob: Blob| blob, Blob(vec![n; 32 * MIB]));
        let futures: Vec<_> = (0..4).map(submit).collect();
        for (n, future) in (0..).zip(futures) {
            let blob = future.result().unwrap();
            assert!(blob.0 == vec![n; 32 * MIB], "job {n}");
        }
    });
}

/// Goal: a limit refuses what is longer by one byte, and lets pass what is as long, in both directions;
/// neither costs a worker.
/// Covers: F-52, F-57
#[test]
fn payloads_up_to_the_limit_pass_and_longer_ones_are_refused() {
    /// Bytes of the length that stands before a blob.
    const LENGTH: usize = 8;
    test(|| {
        // Below and above what fits into the shared memory.
        for limit in [1_000, 100_000] {
            let pool =
                ProcessPool::builder().workers(1).payload_limit(limit as u64).build().unwrap();
            let send = |len: usize| {
                let future = pool.submit(|blob: Blob| blob.0.len(), Blob(vec![1; len]));
                future.result()
            };
            let receive = |len: usize| {
                let future = pool.submit(|len: usize| Blob(vec![1; len]), len);
                future.result().map(|blob| blob.0.len())
            };
            let directions: [&dyn Fn(usize) -> Result<usize, JobError>; 2] = [&send, &receive];
            for direction in directions {
                for len in [0, 1, limit - LENGTH - 1, limit - LENGTH] {
                    assert_eq!(direction(len).unwrap(), len);
                }
                for over in [1, limit] {
                    match direction(limit - LENGTH + over) {
                        Err(JobError::TooLarge { len, limit: told, .. }) => {
                            assert_eq!((len, told), ((limit + over) as u64, limit as u64));
                        }
                        other => panic!("{other:?}"),
                    }
                }
            }
            assert_eq!((pool.stats().spawned, pool.stats().deaths), (1, 0));
        }
    });
}

/// So many parts of 1 MiB when it is encoded, as if they were all there. Refuses to be kept: who had stored what was written
/// would have grown by it.
#[derive(Debug, Deserialize)]
struct Claim(u64);

impl Serialize for Claim {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let before = resident();
        let part = "x".repeat(MIB);
        let mut seq = serializer.serialize_seq(Some(self.0 as usize))?;
        for _ in 0..self.0 {
            seq.serialize_element(&part)?;
        }
        let grown = resident().saturating_sub(before);
        assert!(grown < 16 * MIB as u64, "{grown} bytes more");
        seq.end()
    }
}

#[procpool::task]
fn claim(mib: u64) -> Claim {
    Claim(mib)
}

/// Goal: a value beyond the limit takes no memory to be refused, however large it claims to be: an argument, a result, and
/// a result as JSON.
/// Covers: F-52
#[test]
fn a_value_beyond_the_limit_is_refused_before_it_takes_memory() {
    test(|| {
        let pool = ProcessPool::builder().workers(1).payload_limit(MIB as u64).build().unwrap();
        let refused = |result: Result<(), JobError>, mib: u64| match result {
            Err(JobError::TooLarge { len, .. }) => assert!(len >= mib << 20, "{len}"),
            other => panic!("{other:?}"),
        };
        refused(pool.submit(|_: Claim| (), Claim(3 << 10)).result(), 3 << 10);
        refused(pool.submit(claim, 3 << 10).result().map(drop), 3 << 10);
        // JSON looks at each byte, which takes its time.
        let call = |mib: u64| pool.call("it::crash::payload::claim", mib.to_string()).result();
        refused(call(64).map(drop), 64);
        assert!(call(0).is_ok());
        assert_eq!((pool.stats().spawned, pool.stats().deaths), (1, 0));
    });
}

/// Goal: nothing changes for a payload where it no longer fits into the shared memory.
#[test]
fn payloads_around_the_size_of_the_shared_memory_arrive_whole() {
    test(|| {
        let pool = ProcessPool::builder().workers(2).build().unwrap();
        for edge in [16 * 1024, 64 * 1024, 256 * 1024] {
            let sizes = edge - 20..edge + 20;
            let submit = |len: usize| {
                let bytes: Vec<u8> = (0..len).map(|n| n as u8).collect();
                let future = pool.submit(|blob: Blob| blob, Blob(bytes.clone()));
                (bytes, future)
            };
            let futures: Vec<_> = sizes.map(submit).collect();
            for (bytes, future) in futures {
                assert!(future.result().unwrap().0 == bytes, "{} bytes", bytes.len());
            }
        }
    });
}
