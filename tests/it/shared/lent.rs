//! Memory in which arguments are lent to workers and which is used again: each job sees its own bytes as long as
//! it looks, whoever holds what, and whoever dies.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::AsRawFd;
use std::sync::Mutex;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{MsgFlags, send};
use nix::unistd::Pid;
use procpool::{Bytes, JobError, ProcessPool};
use procpool_wire::attach::Forget;
use procpool_wire::codec;
use procpool_wire::frame::{self, FrameKind};

use super::{Baseline, MIB};
use crate::crash::channel::control_channel;
use crate::support::{Meeting, meet, test};

/// Jobs after which memory that can be used again has been: it comes back while others are lent.
const JOBS_MAX: u64 = 200;
/// Jobs among which memory would be that is used again too early: the first of them would be lent it.
const JOBS_AFTER: u64 = 20;

fn filled(seed: u64) -> Vec<u8> {
    (0..MIB as u64).map(|n| (n.wrapping_mul(seed + 3) >> 3) as u8).collect()
}

/// The files in which attachments are that a process has mapped.
fn inodes_here() -> Vec<u64> {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let lines = maps.lines().filter(|line| line.contains("/memfd:data-procpool"));
    lines.map(|line| line.split_whitespace().nth(4).unwrap().parse().unwrap()).collect()
}

/// Whether the argument is what it should be, and the files that the worker has mapped.
fn look((seed, bytes): (u64, Bytes)) -> (bool, Vec<u64>) {
    (*bytes == *filled(seed), inodes_here())
}

/// Runs so many jobs, until one of them is lent one of these files. True if one is.
fn is_lent_again(pool: &ProcessPool, first: &BTreeSet<u64>, jobs: u64) -> bool {
    for seed in 0..jobs {
        let (whole, inodes) =
            pool.submit(look, (seed, Bytes::from(filled(seed)))).result().unwrap();
        assert!(whole, "job {seed}");
        if inodes.iter().any(|inode| first.contains(inode)) {
            return true;
        }
    }
    false
}

/// Goal: what one job was lent is lent to others after it, and each sees its own bytes; a pool that is idle keeps
/// none of it.
#[test]
fn memory_that_was_lent_is_lent_again() {
    test(|| {
        let pool = ProcessPool::builder().workers(2).build().unwrap();
        let baseline = Baseline::of(&pool);
        let (whole, first) = pool.submit(look, (1, Bytes::from(filled(1)))).result().unwrap();
        assert!(whole && !first.is_empty());
        assert!(is_lent_again(&pool, &first.into_iter().collect(), JOBS_MAX));
        baseline.wait(&pool);
    });
}

/// Goal: whoever holds on to an argument, in the worker or in the host, holds on to its bytes, whatever comes
/// after it.
#[test]
fn who_keeps_an_argument_keeps_its_bytes() {
    static KEPT: Mutex<Vec<Bytes>> = Mutex::new(Vec::new());
    fn keep(bytes: Bytes) {
        KEPT.lock().unwrap().push(bytes);
    }
    fn kept(forget: u64) -> Vec<bool> {
        let mut kept = KEPT.lock().unwrap();
        let whole = kept.iter().zip(10..).map(|(bytes, seed)| **bytes == *filled(seed)).collect();
        if forget > 0 {
            kept.clear();
        }
        whole
    }
    test(|| {
        let pool = ProcessPool::builder().workers(1).build().unwrap();
        let baseline = Baseline::of(&pool);
        for seed in 10..13 {
            pool.submit(keep, Bytes::from(filled(seed))).result().unwrap();
        }
        let here = Bytes::from(filled(20));
        let back = pool.submit(|bytes: Bytes| bytes, here.clone()).result().unwrap();
        assert!(back == here);
        is_lent_again(&pool, &BTreeSet::new(), JOBS_AFTER);
        assert_eq!(pool.submit(kept, 0).result().unwrap(), [true; 3]);
        assert!(*back == *filled(20) && *here == *filled(20));
        // What went there and came back is one piece of memory, not copies.
        let again = pool.submit(|bytes: Bytes| bytes, here.clone()).result().unwrap();
        assert_eq!(again.as_ptr(), back.as_ptr());
        drop((here, back, again));
        assert_eq!(pool.submit(kept, 1).result().unwrap(), [true; 3]);
        baseline.wait(&pool);
    });
}

/// Goal: memory that a worker had when it died is lent to nobody again: what the worker has left running may have
/// it mapped.
#[test]
fn what_a_dead_worker_was_lent_is_not_lent_again() {
    fn wait_there((path, _bytes): (String, Bytes)) {
        let inodes: Vec<String> = inodes_here().iter().map(u64::to_string).collect();
        meet(&path, &inodes.join(" "));
        std::thread::sleep(Duration::from_secs(3600));
    }
    test(|| {
        let meeting = Meeting::new();
        let pool = ProcessPool::builder().workers(1).build().unwrap();
        let baseline = Baseline::of(&pool);
        let job = pool.submit(wait_there, (meeting.path(), Bytes::from(filled(1))));
        let guest = meeting.next();
        let had: BTreeSet<u64> =
            guest.word.split_whitespace().map(|inode| inode.parse().unwrap()).collect();
        assert!(!had.is_empty());
        drop(guest);
        // Those that wait behind it were lent to the same worker, and go to the next.
        let behind: Vec<_> =
            (0..4).map(|seed| pool.submit(look, (seed, Bytes::from(filled(seed))))).collect();
        kill(Pid::from_raw(pool.workers()[0].pid.cast_signed()), Signal::SIGKILL).unwrap();
        assert!(matches!(job.result(), Err(JobError::Died(_))));
        for future in behind {
            assert!(future.result().unwrap().0);
        }
        assert!(!is_lent_again(&pool, &had, JOBS_AFTER));
        baseline.wait(&pool);
    });
}

/// Goal: arguments that are no `Bytes` take the same way, whole, alone and in chunks, when they are moved, and when they
/// are tried again.
#[test]
fn long_arguments_of_any_kind_are_lent() {
    fn sum((numbers, text): (Vec<u64>, String)) -> (u64, usize, usize) {
        (numbers.iter().sum(), text.len(), inodes_here().len())
    }
    fn second_time((numbers, text): (Vec<u64>, String)) -> (u64, usize, usize) {
        if procpool::context().unwrap().attempt() == 1 {
            std::process::abort();
        }
        sum((numbers, text))
    }
    test(|| {
        let pool = ProcessPool::builder().workers(2).retries(1).build().unwrap();
        let baseline = Baseline::of(&pool);
        let argument = |n: u64| (vec![n; 100_000], "x".repeat(n as usize));
        let expected = |n: u64| (n * 100_000, n as usize);
        for f in [sum, second_time] {
            let futures: Vec<_> = (0..8).map(|n| pool.submit(f, argument(n))).collect();
            for (n, future) in (0..).zip(futures) {
                let (sum, len, mapped) = future.result().unwrap();
                assert_eq!((sum, len), expected(n));
                assert!(mapped > 0, "it was not lent");
            }
        }
        for chunk in [1, 3] {
            let results = pool.map(sum, (0..8).map(argument)).chunk_size(chunk);
            for (n, result) in (0..).zip(results) {
                let (sum, len, _) = result.unwrap();
                assert_eq!((sum, len), expected(n));
            }
        }
        baseline.wait(&pool);
    });
}

/// Goal: a worker that says of what it was lent that it has given it back, and of what it was never lent, changes nothing
/// for anybody else.
#[test]
fn a_worker_that_lies_about_what_it_gave_back_changes_nothing() {
    fn lie(bytes: Bytes) -> Bytes {
        let mut body = Vec::new();
        codec::encode_into(&Forget((0..1000).collect()), None, &mut body).unwrap();
        let channel = control_channel();
        let frame = frame::frame(FrameKind::Returned, &body);
        assert_eq!(send(channel.as_raw_fd(), &frame, MsgFlags::empty()).unwrap(), frame.len());
        // Not ours to close.
        std::mem::forget(channel);
        bytes
    }
    test(|| {
        let pool = ProcessPool::builder().workers(2).build().unwrap();
        let baseline = Baseline::of(&pool);
        let held: Vec<Bytes> = (0..4).map(|seed| Bytes::from(filled(seed))).collect();
        for _ in 0..4 {
            for (seed, bytes) in (0..).zip(&held) {
                let back = pool.submit(lie, bytes.clone()).result().unwrap();
                assert!(*back == *filled(seed));
                let (whole, _) = pool.submit(look, (seed, bytes.clone())).result().unwrap();
                assert!(whole);
            }
        }
        is_lent_again(&pool, &BTreeSet::new(), JOBS_AFTER);
        assert!((0..).zip(&held).all(|(seed, bytes)| **bytes == *filled(seed)));
        drop(held);
        baseline.wait(&pool);
    });
}
