//! Jobs with attachments that crash, are killed, moved, retried; values whose decoding goes wrong; and workers
//! that attach what cannot be.

use std::fs::File;
use std::io::{IoSlice, Write};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::unistd::Pid;
use procpool::{Bytes, Death, JobError, Phase, ProcessPool, Shared};
use procpool_wire::attach::{Again, Attach, Carried, Name, Record, USES_MAX, Uses};
use procpool_wire::codec;
use procpool_wire::frame::{self, FrameKind};
use serde::{Deserialize, Deserializer, Serialize};

use super::{Baseline, Counted, MIB};
use crate::crash::channel::control_channel;
use crate::support::{Meeting, meet, test};

fn died<R: std::fmt::Debug>(result: Result<R, JobError>) -> Death {
    match result {
        Err(JobError::Died(death)) => death,
        other => panic!("Died was expected, got {other:?}"),
    }
}

/// Goal: a job that is tried again has its attachments at the next worker, too.
#[test]
fn a_retried_job_has_its_attachments_again() {
    fn second_time((shared, bytes): (Shared<Counted>, Bytes)) -> (u64, usize) {
        if procpool::context().unwrap().attempt() < 3 {
            std::process::abort();
        }
        (shared.0.iter().sum(), bytes.len())
    }
    test(|| {
        let pool = ProcessPool::builder().workers(1).retries(2).build().unwrap();
        let baseline = Baseline::of(&pool);
        let shared = pool.share(Counted::new(vec![1, 2, 3]));
        let argument = (shared.clone(), Bytes::from(vec![1; MIB]));
        assert_eq!(pool.submit(second_time, argument).result().unwrap(), (6, MIB));
        // In a chunk, too: what it had before the death is not lost, and the rest has what it needs.
        let one_dies = |(shared, n): (Shared<Counted>, u64)| {
            if n == 5 && procpool::context().unwrap().attempt() == 1 {
                std::process::abort();
            }
            (n + shared.0[0], Bytes::from(vec![n as u8; 100_000]))
        };
        let items = (0..10).map(|n| (shared.clone(), n));
        for (n, result) in (0..).zip(pool.map(one_dies, items).chunk_size(10)) {
            let (sum, bytes) = result.unwrap();
            assert!(sum == n + 1 && bytes.len() == 100_000 && bytes[0] == n as u8);
        }
        drop(shared);
        baseline.wait(&pool);
    });
}

/// Goal: a worker that is killed with attachments on their way, before it has read them or after, costs its
/// running job; the others run elsewhere, whole, and nothing stays.
#[test]
fn a_worker_killed_with_attachments_under_way_costs_its_own_job() {
    fn wait_there((path, shared, bytes): (String, Shared<Counted>, Bytes)) -> usize {
        meet(&path, "");
        shared.0.len() + bytes.len()
    }
    fn length((shared, bytes): (Shared<Counted>, Bytes)) -> usize {
        shared.0.len() + bytes.len()
    }
    test(|| {
        let meeting = Meeting::new();
        let pool = ProcessPool::builder().workers(1).build().unwrap();
        let baseline = Baseline::of(&pool);
        for _ in 0..3 {
            let shared = pool.share(Counted::new(vec![1; 10]));
            let bytes = || Bytes::from(vec![1; MIB]);
            let first = pool.submit(wait_there, (meeting.path(), shared.clone(), bytes()));
            let guest = meeting.next();
            let behind: Vec<_> =
                (0..5).map(|_| pool.submit(length, (shared.clone(), bytes()))).collect();
            kill(Pid::from_raw(pool.workers()[0].pid as i32), Signal::SIGKILL).unwrap();
            died(first.result());
            drop(guest);
            for job in behind {
                let outcome = job.outcome();
                assert_eq!(outcome.result.unwrap(), 10 + MIB);
                assert_eq!(outcome.report.attempts, 1);
            }
        }
        baseline.wait(&pool);
    });
}

/// Goal: a value whose decoding fails, panics or crashes costs each job that uses it, in the way in which any
/// argument would, and no other.
#[test]
fn a_value_that_cannot_be_decoded_costs_the_jobs_that_use_it() {
    #[derive(Debug, Serialize)]
    struct Bad(u8);
    impl<'de> Deserialize<'de> for Bad {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Bad, D::Error> {
            match u8::deserialize(deserializer)? {
                0 => Err(serde::de::Error::custom("not today")),
                1 => panic!("not today"),
                _ => std::process::abort(),
            }
        }
    }
    test(|| {
        let pool = ProcessPool::builder().workers(1).build().unwrap();
        let baseline = Baseline::of(&pool);
        for kind in [0, 1, 2, 0] {
            let shared = pool.share(Bad(kind));
            for _ in 0..2 {
                match (kind, pool.submit(|_: Shared<Bad>| (), shared.clone()).result()) {
                    (0, Err(JobError::Decode(fault))) => {
                        assert!(fault.message.contains("not today"))
                    }
                    (1, Err(JobError::Panicked(panic))) => assert_eq!(panic.message, "not today"),
                    (2, Err(JobError::Died(death))) => assert_eq!(death.phase, Phase::Decode),
                    (_, other) => panic!("{kind}: {other:?}"),
                }
            }
            assert_eq!(pool.submit(|n: u64| n, 5).result().unwrap(), 5);
        }
        baseline.wait(&pool);
    });
}

/// Goal: a job whose result is half-way attached when it crashes leaves nothing at the pool.
#[test]
fn a_result_that_crashes_behind_its_attachments_leaves_nothing() {
    struct Half(Bytes);
    impl Serialize for Half {
        fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            self.0.serialize(serializer)?;
            std::process::abort();
        }
    }
    impl<'de> Deserialize<'de> for Half {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Half, D::Error> {
            Bytes::deserialize(deserializer).map(Half)
        }
    }
    test(|| {
        let pool = ProcessPool::builder().workers(1).build().unwrap();
        let baseline = Baseline::of(&pool);
        for _ in 0..3 {
            let half = pool.submit(|len: usize| Half(Bytes::from(vec![1; len])), MIB);
            assert_eq!(died(half.result().map(|half| half.0)).phase, Phase::Encode);
        }
        baseline.wait(&pool);
    });
}

// ---- hostile workers -----------------------------------------------------------------------------

fn frame_of<T: Serialize>(kind: FrameKind, body: &T) -> Vec<u8> {
    let mut bytes = Vec::new();
    codec::encode_into(body, None, &mut bytes).unwrap();
    frame::frame(kind, &bytes)
}

fn unsealed() -> OwnedFd {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let mut file = File::from(memfd_create(c"hostile", flags).unwrap());
    file.write_all(&[1; 4096]).unwrap();
    file.into()
}

/// For a job: writes to the pool what a worker never would, and waits for what comes of it.
fn attach_what_cannot_be(case: usize) {
    let record = || Record { number: 1, len: 0, uses: Vec::new() };
    let one = || Attach { carried: Carried::Yes, records: vec![record()] };
    let null = || OwnedFd::from(File::open("/dev/null").unwrap());
    let (bytes, fds) = match case {
        0 => (frame_of(FrameKind::Attach, &one()), vec![]),
        1 => (frame_of(FrameKind::Attach, &one()), vec![null()]),
        2 => (frame_of(FrameKind::Attach, &one()), vec![unsealed()]),
        3 => (frame_of(FrameKind::Attach, &one()), vec![unsealed(), unsealed()]),
        4 => (frame::frame(FrameKind::Bell, &[]), vec![null()]),
        5 => (frame::frame(FrameKind::Attach, b"garbage"), vec![null()]),
        6 => {
            let uses = Uses(vec![Name::Yours(1); USES_MAX + 1]);
            (frame_of(FrameKind::Uses, &uses), vec![])
        }
        7 => (frame::frame(FrameKind::Returned, b"garbage"), vec![]),
        8 => (frame_of(FrameKind::Again, &Again { index: 0, generation: 1 }), vec![]),
        _ => {
            let records =
                (0..=USES_MAX as u64).map(|number| Record { number, len: 0, uses: Vec::new() });
            let refused = Attach { carried: Carried::Refused, records: records.collect() };
            (frame_of(FrameKind::Attach, &refused), vec![])
        }
    };
    let channel = control_channel();
    let raw: Vec<i32> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let rights = if raw.is_empty() { &[][..] } else { &rights[..] };
    let (fd, flags) = (channel.as_raw_fd(), MsgFlags::empty());
    sendmsg::<()>(fd, &[IoSlice::new(&bytes)], rights, flags, None).unwrap();
    // Not ours to close.
    std::mem::forget(channel);
    loop {
        nix::unistd::pause();
    }
}

/// Goal: attachments that a worker's rules would never make cost that worker, whose death says what they
/// were, and the pool nothing.
#[test]
fn a_worker_that_attaches_what_cannot_be_is_ended() {
    test(|| {
        let pool = ProcessPool::builder().workers(1).build().unwrap();
        let baseline = Baseline::of(&pool);
        let cases = [
            "attachments without descriptors",
            "a descriptor that is not sealed memory",
            "memory that is not sealed",
            "2 descriptors where 1 were announced",
            "descriptors that it had not announced",
            "an attachment's frame",
            "4097 uses of attachments in one payload",
            "a returned attachment",
            "a payload that is not missing",
            "more than one result can use",
        ];
        for (case, expected) in cases.into_iter().enumerate() {
            let death = died(pool.submit(attach_what_cannot_be, case).result());
            let detail = death.detail.unwrap_or_default();
            assert!(detail.contains(expected), "{case}: {detail}");
            assert_eq!(pool.submit(|n: u64| n, 5).result().unwrap(), 5);
        }
        baseline.wait(&pool);
    });
}

/// Goal: a result that refers to something that it does not have is an error of decoding, and no more.
#[test]
fn a_result_that_refers_to_nothing_is_a_decode_error() {
    /// Encodes like a reference, and is none.
    #[derive(Debug)]
    struct Forged(#[expect(dead_code, reason = "it never arrives")] Shared<u64>);
    impl<'de> Deserialize<'de> for Forged {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Forged, D::Error> {
            Shared::deserialize(deserializer).map(Forged)
        }
    }
    impl Serialize for Forged {
        fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            7u32.serialize(serializer)
        }
    }
    test(|| {
        let pool = ProcessPool::builder().workers(1).build().unwrap();
        let keep = |shared: Shared<u64>| Forged(shared);
        let error = pool.submit(keep, pool.share(5)).result().unwrap_err();
        assert!(matches!(error, JobError::Decode(_)), "{error}");
        assert!(error.to_string().contains("an attachment, and there is none"), "{error}");
    });
}
