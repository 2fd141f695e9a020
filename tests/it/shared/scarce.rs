//! Descriptors that run out, here or in a worker, and system calls that will not pass them on.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::process::Command;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use procpool::{Bytes, CodecError, JobError, ProcessPool, Side};

use super::{Baseline, MIB};
use crate::life::fixture::{Fixture, is_installed};
use crate::support::{TempDir, test};

/// As long as it lives, this process can open nothing.
struct NoDescriptors {
    soft: u64,
    hard: u64,
}

impl NoDescriptors {
    fn new() -> NoDescriptors {
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        let first_free = File::open("/dev/null").unwrap().as_raw_fd();
        setrlimit(Resource::RLIMIT_NOFILE, first_free as u64, hard).unwrap();
        assert!(File::open("/dev/null").is_err());
        NoDescriptors { soft, hard }
    }
}

impl Drop for NoDescriptors {
    fn drop(&mut self) {
        setrlimit(Resource::RLIMIT_NOFILE, self.soft, self.hard).unwrap();
    }
}

fn decode_fault<R: std::fmt::Debug>(result: Result<R, JobError>) -> CodecError {
    match result {
        Err(JobError::Decode(fault)) => fault,
        other => panic!("Decode was expected, got {other:?}"),
    }
}

/// Goal: a worker without descriptors costs the jobs whose attachments could not arrive, which say so; once it
/// has some again, the next job is given what was lost.
/// Covers: F-59
#[test]
fn a_worker_without_descriptors_costs_the_jobs_that_need_one() {
    fn take_all(_: ()) {
        std::mem::forget(NoDescriptors::new());
    }
    fn give_back(_: ()) {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    }
    test(|| {
        let pool = ProcessPool::builder().workers(1).build().unwrap();
        let baseline = Baseline::of(&pool);
        let pid = pool.workers()[0].pid;
        pool.submit(take_all, ()).result().unwrap();
        let shared = pool.share(vec![1u64, 2, 3]);
        let bytes = Bytes::from(vec![5; MIB]);
        let length = |shared: procpool::Shared<Vec<u64>>| shared.len();
        for _ in 0..2 {
            let fault = decode_fault(pool.submit(length, shared.clone()).result());
            assert_eq!(fault.side, Side::Worker);
            assert!(fault.message.contains("did not arrive"), "{}", fault.message);
            decode_fault(pool.submit(|bytes: Bytes| bytes.len(), bytes.clone()).result());
        }
        // A long argument comes over the socket instead, also when others come before it is asked for again.
        let total = |numbers: Vec<u64>| numbers.iter().sum::<u64>();
        let long = (0..5).map(|n| pool.submit(total, vec![n; 100_000]));
        for (n, future) in (0..).zip(long.collect::<Vec<_>>()) {
            assert_eq!(future.result().unwrap(), n * 100_000);
        }
        // What needs no descriptor works as ever, and a result goes as a copy.
        let make = |len: usize| Bytes::from(vec![1; len]);
        assert_eq!(pool.submit(make, MIB).result().unwrap().len(), MIB);
        pool.submit(give_back, ()).result().unwrap();
        assert_eq!(pool.submit(length, shared.clone()).result().unwrap(), 3);
        assert_eq!(pool.submit(|b: Bytes| b.len(), bytes.clone()).result().unwrap(), MIB);
        assert_eq!(pool.workers()[0].pid, pid);
        drop((shared, bytes));
        baseline.wait(&pool);
    });
}

/// Goal: a host without descriptors sends copies; a result that needs one is an error of its own job, and
/// nothing of it stays.
/// Covers: F-59, F-85
#[test]
fn a_host_without_descriptors_sends_copies_and_says_what_it_cannot_take() {
    test(|| {
        let pool = ProcessPool::builder().workers(1).build().unwrap();
        let baseline = Baseline::of(&pool);
        let make = |len: usize| Bytes::from(vec![1; len]);
        {
            let _none = NoDescriptors::new();
            let sum = |bytes: Bytes| bytes.iter().map(|byte| *byte as usize).sum::<usize>();
            let bytes = Bytes::from(vec![2; MIB]);
            assert_eq!(pool.submit(sum, bytes).result().unwrap(), 2 * MIB);
            let total = |numbers: Vec<u64>| numbers.iter().sum::<u64>();
            assert_eq!(pool.submit(total, vec![3; 100_000]).result().unwrap(), 300_000);
            let fault = decode_fault(pool.submit(make, MIB).result());
            assert_eq!(fault.side, Side::Caller);
            assert!(fault.message.contains("did not arrive"), "{}", fault.message);
            let shared = pool.share(5u64);
            assert_eq!(*shared, 5);
            let error = pool.submit(|n: procpool::Shared<u64>| *n, shared).result().unwrap_err();
            assert!(matches!(error, JobError::Encode(_)), "{error}");
            assert_eq!(pool.submit(|n: u64| n, 5).result().unwrap(), 5);
        }
        assert_eq!(pool.submit(make, MIB).result().unwrap().len(), MIB);
        baseline.wait(&pool);
    });
}

/// Goal: a system call that fails, while descriptors are passed, costs jobs that say so, and leaves no
/// descriptor; every other job has its result.
/// Method: strace has it fail in the host; the program checks each outcome, and at the end that no descriptor is
/// left. strace's log proves that it failed.
/// Covers: F-59
#[test]
fn a_system_call_that_will_not_pass_descriptors_costs_single_jobs() {
    const HOST: &str = env!("CARGO_BIN_EXE_shared-host");
    if !is_installed("strace") {
        return;
    }
    // The first messages of the supervisor's thread set its two workers up.
    let cases = [
        ("sendmsg:error=ETOOMANYREFS:when=3+2", "some are lost"),
        ("recvmsg:error=ENOMEM:when=60", "some are lost"),
        // Memory that cannot be lent is sealed for good instead.
        ("fallocate:error=ENOSPC:when=2+2", "none is lost"),
    ];
    for (inject, expected) in cases {
        test(|| {
            let dir = TempDir::new();
            let log = dir.path().join("log");
            let mut strace = Command::new("strace");
            strace.args([
                "-f",
                "-qq",
                "-b",
                "execve",
                "-e",
                "trace=sendmsg,recvmsg,fallocate",
                "-e",
            ]);
            strace.arg(format!("inject={inject}")).arg("-o").arg(&log).args([HOST, expected]);
            let left = Fixture::start(&mut strace).end();
            println!("{inject}: {}", left.output);
            let log = fs::read_to_string(&log).unwrap();
            assert!(log.contains("(INJECTED)"), "{inject}");
            assert!(left.status.success(), "{left:?}");
            assert_eq!(left.output.lines().last(), Some("all is well"));
        });
    }
}
