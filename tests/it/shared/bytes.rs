//! `Bytes`: all sizes, both directions, without copies, and nothing left.

use std::collections::BTreeMap;
use std::fs;

use procpool::{Bytes, JobError, ProcessPool, Shared, ThreadPool};

use super::{Baseline, MIB, attachments_of, mappings_of};
use crate::support::{Meeting, meet, resident, test, wait_until};

/// Where bytes begin to travel by descriptor, as the documentation says.
const ATTACH_FROM: usize = 64 * 1024;

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n as u32).wrapping_mul(0x9e37_79b1).to_le_bytes()[3]).collect()
}

/// Goal: bytes of any length arrive as they were, there and back, at every edge: of the ring, of the control
/// channel, of a descriptor.
/// Covers: F-57
#[test]
fn bytes_of_all_lengths_go_there_and_back() {
    test(|| {
        let pool = ProcessPool::builder().workers(1).build().unwrap();
        let baseline = Baseline::of(&pool);
        let edges = [16 * 1024, ATTACH_FROM];
        let around = edges.iter().flat_map(|edge| [edge - 17, edge - 1, *edge, edge + 1]);
        for len in [0, 1, 7, 8, 4095, 4096].into_iter().chain(around).chain([MIB + 3, 16 * MIB]) {
            let bytes = Bytes::from(pattern(len));
            let twice = |bytes: Bytes| (bytes.len(), bytes.clone(), Bytes::from(&bytes[..]));
            let (there, same, copy) = pool.submit(twice, bytes.clone()).result().unwrap();
            assert_eq!(there, len);
            assert!(same == bytes && copy == bytes, "{len} bytes");
        }
        baseline.wait(&pool);
    });
}

/// Goal: long bytes are mapped, not copied: a job of 64 MiB does not make the worker's own memory grow, and
/// the pages are those of one file on both sides.
#[test]
fn long_bytes_are_mapped_and_not_copied() {
    /// Private memory of this process, in bytes.
    fn private() -> usize {
        let rollup = fs::read_to_string("/proc/self/smaps_rollup").unwrap();
        let line = rollup.lines().find_map(|line| line.strip_prefix("Anonymous:")).unwrap();
        1024 * line.split_whitespace().next().unwrap().parse::<usize>().unwrap()
    }
    fn grown(bytes: Bytes) -> (usize, usize, usize) {
        let before = private();
        let sum = bytes.iter().map(|byte| *byte as usize).sum();
        (sum, private().saturating_sub(before), mappings_of(std::process::id()))
    }
    test(|| {
        let pool = ProcessPool::builder().workers(1).build().unwrap();
        let bytes = Bytes::from(vec![1; 64 * MIB]);
        let (sum, grown, mappings) = pool.submit(grown, bytes.clone()).result().unwrap();
        assert_eq!((sum, mappings), (64 * MIB, 1));
        assert!(grown < MIB, "{grown}");
        // A second job with the same bytes has the same mapping.
        let (_, _, mappings) = pool.submit(self::grown_again, bytes).result().unwrap();
        assert_eq!(mappings, 1);
    });
}

fn grown_again(bytes: Bytes) -> (usize, usize, usize) {
    (bytes.len(), 0, mappings_of(std::process::id()))
}

/// Goal: bytes that came are passed on as they are: what goes from a job's argument to its result, and from
/// there to the next job, is one file all the way.
#[test]
fn bytes_that_came_are_passed_on_without_a_copy() {
    /// The inodes of the attachments that a process has.
    fn inodes(pid: u32) -> Vec<String> {
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
        let lines = maps.lines().filter(|line| line.contains("/memfd:data-procpool"));
        lines.map(|line| line.split_whitespace().nth(4).unwrap().to_owned()).collect()
    }
    fn made(len: usize) -> (Bytes, u32) {
        (Bytes::from(pattern(len)), std::process::id())
    }
    test(|| {
        let pool = ProcessPool::builder().workers(1).build().unwrap();
        let baseline = Baseline::of(&pool);
        let (bytes, _) = pool.submit(made, MIB).result().unwrap();
        let here = inodes(std::process::id());
        assert_eq!(here.len(), 1);
        let look = |bytes: Bytes| (inodes(std::process::id()), bytes);
        let (there, back) = pool.submit(look, bytes.clone()).result().unwrap();
        assert_eq!(there, here);
        assert!(back == bytes && *back == *pattern(MIB));
        assert_eq!(inodes(std::process::id()), here, "what came back is what went");
        drop((bytes, back));
        baseline.wait(&pool);
    });
}

/// Goal: bytes are data like any other: in lists, structs and maps, as elements, inside a shared value, on
/// threads.
#[test]
fn bytes_travel_inside_other_data() {
    test(|| {
        let pool = ProcessPool::builder().workers(2).build().unwrap();
        let baseline = Baseline::of(&pool);
        let many: Vec<Bytes> =
            (0..20).map(|n| Bytes::from(vec![n; (n as usize) * 10_000])).collect();
        let lengths = |many: Vec<Bytes>| many.iter().map(|b| b.len()).sum::<usize>();
        assert_eq!(pool.submit(lengths, many.clone()).result().unwrap(), 1_900_000);
        let back = pool.submit(|many: Vec<Bytes>| many, many.clone()).result().unwrap();
        assert_eq!(back, many);
        let by_name =
            BTreeMap::from([("a".to_owned(), Some(many[19].clone())), ("b".into(), None)]);
        let same = |map: BTreeMap<String, Option<Bytes>>| map;
        assert_eq!(pool.submit(same, by_name.clone()).result().unwrap(), by_name);
        for chunk in [1, 7] {
            let items = many.clone().into_iter();
            let doubled = |bytes: Bytes| Bytes::from([&bytes[..], &bytes[..]].concat());
            for (bytes, result) in many.iter().zip(pool.map(doubled, items).chunk_size(chunk)) {
                assert_eq!(result.unwrap().len(), 2 * bytes.len());
            }
        }
        let shared = pool.share(many[19].clone());
        let of_shared = |shared: Shared<Bytes>| shared.iter().map(|b| *b as usize).sum::<usize>();
        assert_eq!(pool.submit(of_shared, shared).result().unwrap(), 19 * 190_000);
        let threads = ThreadPool::new().unwrap();
        let address = |bytes: Bytes| bytes.as_ptr() as usize;
        let there = threads.submit(address, many[19].clone()).result().unwrap();
        assert_eq!(there, many[19].as_ptr() as usize);
        drop((many, back, by_name));
        baseline.wait(&pool);
    });
}

/// Goal: a thousand results that nobody takes leave nothing: no descriptor, no memory, no file.
/// Covers: F-60
#[test]
fn a_thousand_dropped_results_of_1_mib_leave_nothing() {
    test(|| {
        let pool = ProcessPool::builder().workers(2).build().unwrap();
        let baseline = Baseline::of(&pool);
        let shm = || fs::read_dir("/dev/shm").map_or(0, Iterator::count);
        let (shm_before, rss_before) = (shm(), resident());
        for _ in 0..10 {
            let futures: Vec<_> =
                (0..100u8).map(|n| pool.submit(|n: u8| Bytes::from(vec![n; MIB]), n)).collect();
            // Half of them are there when they are dropped, and half are to come.
            futures[50].wait();
            drop(futures);
        }
        pool.submit(|()| (), ()).result().unwrap();
        baseline.wait(&pool);
        assert_eq!(shm(), shm_before);
        wait_until("the memory is given back", || resident() < rss_before + 64 * MIB as u64);
    });
}

/// Goal: results that wait to be taken do not use up the descriptors: beyond half of them, they are mapped
/// and their descriptors closed, and everything still arrives.
#[test]
fn more_waiting_results_than_descriptors() {
    test(|| {
        let (soft, _) =
            nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).unwrap();
        // Where the limit is huge there is nothing to see.
        let count = soft.min(1024) as usize + 100;
        let pool = ProcessPool::builder().workers(2).build().unwrap();
        let baseline = Baseline::of(&pool);
        let make = |n: u32| Bytes::from(vec![n as u8; ATTACH_FROM]);
        let futures: Vec<_> = (0..count as u32).map(|n| pool.submit(make, n)).collect();
        futures.iter().for_each(|future| future.wait());
        assert!(attachments_of(std::process::id()).0 as u64 <= soft / 2 + 1);
        let all: Vec<Bytes> = futures.into_iter().map(|future| future.result().unwrap()).collect();
        for (n, bytes) in all.iter().enumerate() {
            assert!(bytes.len() == ATTACH_FROM && bytes[0] == n as u8);
        }
        // And as arguments: those without a descriptor are copied.
        let sum = |all: Vec<Bytes>| all.iter().map(|bytes| bytes.len()).sum::<usize>();
        let total = pool.submit(sum, all.clone()).result().unwrap();
        assert_eq!(total, count * ATTACH_FROM);
        drop(all);
        baseline.wait(&pool);
    });
}

/// Goal: what is attached counts towards the limit, exactly, in both directions.
/// Covers: F-52
#[test]
fn attached_bytes_count_towards_the_payload_limit() {
    /// The reference that stands for attached bytes: which kind, and its place.
    const REFERENCE: usize = 8;
    test(|| {
        // So much is attached in either direction.
        let limit = 4 * MIB;
        let pool = ProcessPool::builder().workers(1).payload_limit(limit as u64).build().unwrap();
        let send = |len: usize| {
            pool.submit(|bytes: Bytes| bytes.len(), Bytes::from(vec![1; len])).result()
        };
        let fetch = |len: usize| {
            pool.submit(|len: usize| Bytes::from(vec![1; len]), len).result().map(|b| b.len())
        };
        let most = limit - REFERENCE;
        for transfer in [&send as &dyn Fn(usize) -> Result<usize, JobError>, &fetch] {
            assert_eq!(transfer(most).unwrap(), most);
            for too_long in [most + 1, 20 * limit] {
                match transfer(too_long) {
                    Err(JobError::TooLarge { len, limit: said }) => {
                        assert_eq!((len as usize, said as usize), (too_long + REFERENCE, limit));
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
        // Together, too: twice the same bytes are twice as long.
        let half = Bytes::from(vec![1; limit / 2]);
        let both = pool.submit(|(a, _): (Bytes, Bytes)| a.len(), (half.clone(), half)).result();
        assert!(matches!(both, Err(JobError::TooLarge { .. })), "{both:?}");
        assert_eq!(send(1).unwrap(), 1);
    });
}

/// Goal: jobs with bytes can be cancelled, stopped and moved like any other, and what they had attached goes.
#[test]
fn cancelled_and_aborted_jobs_let_their_bytes_go() {
    fn wait_there((path, bytes): (String, Bytes)) -> usize {
        meet(&path, "");
        bytes.len()
    }
    test(|| {
        let meeting = Meeting::new();
        let pool = ProcessPool::builder().workers(1).build().unwrap();
        let baseline = Baseline::of(&pool);
        let bytes = || Bytes::from(pattern(MIB));
        let first = pool.submit(wait_there, (meeting.path(), bytes()));
        let guest = meeting.next();
        let behind: Vec<_> =
            (0..5).map(|_| pool.submit(wait_there, (meeting.path(), bytes()))).collect();
        for job in &behind[1..] {
            assert!(job.cancel());
        }
        guest.go();
        assert_eq!(first.result().unwrap(), MIB);
        let guest = meeting.next();
        behind[0].abort();
        behind.into_iter().for_each(|job| assert!(job.result().is_err()));
        drop(guest);
        assert_eq!(pool.submit(|bytes: Bytes| bytes.len(), bytes()).result().unwrap(), MIB);
        baseline.wait(&pool);
    });
}
