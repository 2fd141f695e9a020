//! Jobs that close, hold, or write into what connects their worker with the pool. It costs them that
//! worker, and nobody anything else.

use std::fs;
use std::io::Write;
use std::os::fd::FromRawFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};

use procpool::{JobError, Phase, ProcessPool, Status};
use procpool_wire::block::{self, BLOCK_WORDS, Block, ResultHeader, Ticket, WorkerEnd};
use procpool_wire::elements::Kind;
use procpool_wire::frame::{self, FrameKind};
use serde::{Deserialize, Serialize};

use super::{died, hang, resident};
use crate::support::{Meeting, Random, meet, test};

const KILLED: Status = Status::Signal(libc::SIGKILL, false);
const MIB: usize = 1 << 20;

/// For a job: its worker's end of the control channel, found where any code could find it.
#[expect(unsafe_code, reason = "a job that takes what is not its own")]
pub(crate) fn control_channel() -> UnixStream {
    let is_socket = |path: &std::path::Path| {
        fs::read_link(path).is_ok_and(|target| target.to_string_lossy().starts_with("socket:"))
    };
    let fd = fs::read_dir("/proc/self/fd")
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| is_socket(path))
        .and_then(|path| path.file_name()?.to_str()?.parse().ok())
        .expect("a worker has a control channel");
    // SAFETY: the descriptor is open; that somebody else owns it is the point, and the process ends
    // before this one is closed.
    unsafe { UnixStream::from_raw_fd(fd) }
}

/// For a job: the memory that its worker shares with the pool.
#[derive(Clone, Copy)]
struct Shared(&'static [AtomicU64]);

impl AsRef<[AtomicU64]> for Shared {
    fn as_ref(&self) -> &[AtomicU64] {
        self.0
    }
}

#[expect(unsafe_code, reason = "a job that takes what is not its own")]
fn shared_memory() -> Shared {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let line = maps.lines().find(|line| line.contains("/memfd:procpool"));
    let start = line.and_then(|line| line.split('-').next()).unwrap();
    let start = usize::from_str_radix(start, 16).unwrap() as *const AtomicU64;
    // SAFETY: the mapping is that long, and stays for as long as the worker lives.
    Shared(unsafe { std::slice::from_raw_parts(start, BLOCK_WORDS) })
}

/// Runs `job` beside another, in a pool of two: the job's outcome, after a check that the other worker
/// and the pool are as they were.
fn beside_another<A: procpool::Data, R: procpool::Data>(
    job: fn(A) -> R,
    argument: A,
) -> Result<R, JobError> {
    let meeting = Meeting::new();
    let pool = ProcessPool::builder().workers(2).build().unwrap();
    let sibling = pool.submit(|path: String| meet(&path, ""), meeting.path());
    let guest = meeting.next();
    let pid = pool.workers()[0].pid;
    let result = pool.submit(job, argument).result();
    guest.go();
    let outcome = sibling.outcome();
    outcome.result.unwrap();
    assert_eq!((outcome.report.pid, outcome.report.attempts), (Some(pid), 1));
    for future in [0; 4].map(|_| pool.submit(|()| (), ())) {
        future.result().unwrap();
    }
    result
}

/// Goal: a child that has inherited the control channel, and the worker's standard error, does not hide
/// the worker's death.
/// Covers: F-19
#[test]
fn a_forked_child_that_holds_the_channel_delays_no_death() {
    #[expect(unsafe_code, reason = "`Command` would close the descriptors")]
    fn fork_and_abort(_: ()) {
        // SAFETY: the child calls pause alone, which is async-signal-safe.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0);
        if pid == 0 {
            loop {
                // SAFETY: touches no memory.
                unsafe { libc::pause() };
            }
        }
        std::process::abort();
    }
    test(|| {
        let death = died(beside_another(fork_and_abort, ()));
        assert_eq!(death.status, Status::Signal(libc::SIGABRT, false));
        assert_eq!(death.phase, Phase::Run);
    });
}

#[expect(unsafe_code, reason = "nothing safe closes the descriptors of others")]
fn close_all() {
    // SAFETY: none, on purpose: the descriptors have owners.
    unsafe { libc::close_range(3, libc::c_uint::MAX, 0) };
}

/// Goal: a job that closes the control channel under its worker and goes on is ended, and told why.
/// Covers: F-22
#[test]
fn a_job_that_closes_all_descriptors_dies_with_the_reason() {
    test(|| {
        let job = |()| {
            close_all();
            hang();
        };
        let death = died::<()>(beside_another(job, ()));
        let detail = death.detail.as_deref().unwrap_or_default();
        assert!(detail.contains("closed its control channel"), "{:?}", death.detail);
        assert_eq!(death.status, KILLED);
    });
}

/// Goal: the same job, if it returns at once, has a result or the reason, and no other outcome.
/// Covers: F-22
#[test]
fn a_job_that_closes_all_descriptors_and_returns_has_an_outcome() {
    test(|| {
        for _ in 0..10 {
            let job = |n: u64| {
                close_all();
                n + 1
            };
            match beside_another(job, 1) {
                Ok(value) => assert_eq!(value, 2),
                error => drop(died(error)),
            }
        }
    });
}

/// What a job writes into the control channel.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
enum Words {
    Garbage(u64),
    OtherVersion,
    TooLong,
    Ready,
    StartFailed,
    Setup,
    Bye,
    UnannouncedPayload,
}

fn write_words(words: Words) {
    let bytes = match words {
        Words::Garbage(seed) => seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes().repeat(8),
        Words::OtherVersion => {
            let mut bytes = frame::frame(FrameKind::Bell, &[]);
            bytes[4] = 77;
            bytes
        }
        Words::TooLong => frame::header(FrameKind::Ready, u64::MAX).to_vec(),
        Words::Ready => frame::frame(FrameKind::Ready, &[]),
        Words::StartFailed => frame::frame(FrameKind::StartFailed, b"nonsense"),
        Words::Setup => frame::frame(FrameKind::Setup, b"nonsense"),
        Words::Bye => frame::frame(FrameKind::Bye, &[]),
        Words::UnannouncedPayload => frame::frame(FrameKind::Payload, b"nonsense"),
    };
    control_channel().write_all(&bytes).unwrap();
    hang();
}

/// Goal: what a worker has no business to say is a breach of the protocol: that worker is killed, and its
/// job told so, be it garbage or a well-formed frame at the wrong time.
/// Covers: F-24
#[test]
fn a_job_that_writes_into_the_control_channel_dies_with_the_reason() {
    test(|| {
        let mut random = Random::new();
        let garbage = [0; 20].map(|_| Words::Garbage(random.next()));
        let frames = [
            Words::OtherVersion,
            Words::TooLong,
            Words::Ready,
            Words::StartFailed,
            Words::Setup,
            Words::Bye,
            Words::UnannouncedPayload,
        ];
        for words in garbage.into_iter().chain(frames) {
            println!("{words:?}");
            let death = died(beside_another(write_words, words));
            assert!(death.detail.is_some(), "{words:?}: {death:?}");
            assert_eq!((death.status, death.phase), (KILLED, Phase::Run), "{words:?}");
        }
    });
}

/// Goal: a frame that is cut off by the worker's death is no result, and no reason to wait for the rest.
/// Covers: F-55
#[test]
fn a_frame_cut_off_by_a_death_is_that_death() {
    test(|| {
        for len in [1, 15, 16, 17, 100] {
            let job = |len: usize| {
                let mut bytes = frame::header(FrameKind::Payload, 1 << 20).to_vec();
                bytes.resize(len.max(16), 0);
                control_channel().write_all(&bytes[..len]).unwrap();
                std::process::exit(0);
            };
            let death = died::<()>(beside_another(job, len));
            // From the sixteenth byte on it is a payload that nobody has announced, but that is known
            // only when it is whole.
            assert_eq!((death.status, death.detail), (Status::Exit(0), None), "{len}");
        }
    });
}

/// Which job a forged result is for.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
enum Forgery {
    Unknown,
    NotStarted,
    OutOfOrder,
    TooMany,
}

fn header(ticket: Ticket) -> ResultHeader {
    ResultHeader {
        ticket,
        first: 0,
        count: 0,
        started_ns: 0,
        ran_ns: 0,
        last: true,
        given_back: false,
        leaked: false,
        leaving: false,
        child: 0,
        usage: None,
    }
}

/// The first job of its worker, so that the ring of results is at its beginning.
fn forge(forgery: Forgery) {
    let block = Block::new(shared_memory());
    let own = block.black_box().ticket;
    let other = |index, generation| Ticket { index, generation };
    let mut end = WorkerEnd::new(block);
    assert!(end.append(Kind::Value, &[]));
    let header = match forgery {
        Forgery::Unknown => header(other(999, 1)),
        Forgery::NotStarted => header(other(own.index + 1, own.generation + 1)),
        Forgery::OutOfOrder => ResultHeader { first: 5, ..header(own) },
        Forgery::TooMany => {
            assert!(end.append(Kind::Value, &[]));
            header(own)
        }
    };
    end.publish(&header);
    let bell = frame::frame(FrameKind::Bell, &[]);
    control_channel().write_all(&bell).unwrap();
    hang();
}

/// Goal: a result for a job that is not running is not believed: the worker is killed, its job told why,
/// and the job that the result was for runs elsewhere.
/// Covers: F-46
#[test]
fn a_result_for_another_job_is_not_believed() {
    test(|| {
        let forgeries =
            [Forgery::Unknown, Forgery::NotStarted, Forgery::OutOfOrder, Forgery::TooMany];
        for forgery in forgeries {
            println!("{forgery:?}");
            let pool = ProcessPool::builder().workers(1).build().unwrap();
            let job = |(path, forgery): (String, Forgery)| {
                meet(&path, "");
                forge(forgery);
            };
            let meeting = Meeting::new();
            let forger = pool.submit(job, (meeting.path(), forgery));
            let guest = meeting.next();
            let behind: Vec<_> = (0..3_u64).map(|n| pool.submit(|n| n + 1, n)).collect();
            guest.go();
            let death = died(forger.result());
            assert!(death.detail.is_some(), "{forgery:?}: {death:?}");
            assert_eq!(death.status, KILLED, "{forgery:?}");
            for (n, future) in (0..).zip(behind) {
                let outcome = future.outcome();
                assert_eq!(outcome.result.unwrap(), n + 1, "{forgery:?}");
                assert_eq!(outcome.report.attempts, 1, "{forgery:?}");
            }
        }
    });
}

/// Goal: a second result for a job that has one is not believed either, and does not touch the first.
/// Covers: F-46
#[test]
fn a_second_result_for_a_job_is_not_believed() {
    fn answer_twice(_: ()) -> u64 {
        let block = Block::new(shared_memory());
        let own = block.black_box().ticket;
        let mut end = WorkerEnd::new(block);
        for value in [1_u64, 2] {
            assert!(end.append(Kind::Value, &value.to_le_bytes()));
            end.publish(&header(own));
        }
        let bell = frame::frame(FrameKind::Bell, &[]);
        control_channel().write_all(&bell).unwrap();
        hang();
    }
    test(|| {
        let pool = ProcessPool::builder().workers(1).build().unwrap();
        // The first job of its worker, so that the ring of results is at its beginning.
        let forged = pool.submit(answer_twice, ());
        let behind: Vec<_> = (0..3_u64).map(|n| pool.submit(|n| n + 1, n)).collect();
        assert_eq!(forged.result().unwrap(), 1);
        for (n, future) in (0..).zip(behind) {
            let outcome = future.outcome();
            assert_eq!((outcome.result.unwrap(), outcome.report.attempts), (n + 1, 1));
        }
        assert_eq!((pool.stats().deaths, pool.stats().spawned), (1, 2));
    });
}

/// Goal: the announcement of gigabytes, with nothing behind it, takes no memory, and no longer than its job may.
/// Covers: F-53
#[test]
fn a_huge_length_with_silence_behind_it_costs_no_memory() {
    fn announce(len: u64) {
        let block = Block::new(shared_memory());
        let ticket = block.black_box().ticket;
        let mut end = WorkerEnd::new(block);
        assert!(end.announce(&header(ticket), Kind::Value, len as usize));
        let head = frame::header(FrameKind::Payload, len);
        control_channel().write_all(&head).unwrap();
        hang();
    }
    test(|| {
        let pool = ProcessPool::builder().workers(1).build().unwrap();
        pool.submit(|()| (), ()).result().unwrap();
        for len in [u64::from(u32::MAX), 1 << 40, 1 << 62] {
            let pool = ProcessPool::builder().workers(1).build().unwrap();
            pool.warm_up().unwrap();
            let before = resident();
            let limit = std::time::Duration::from_millis(100);
            let result = pool.job(announce, len).timeout(limit).submit().result();
            let grown = resident().saturating_sub(before);
            println!("{len}: {grown} bytes more, {result:?}");
            assert!(matches!(result, Err(JobError::TimedOut(_) | JobError::Died(_))), "{result:?}");
            assert!(grown < MIB as u64, "{len}: {grown} bytes more");
            pool.submit(|()| (), ()).result().unwrap();
        }
    });
}

/// Goal: a worker that dies half-way through sending a large result is a death while sending, and the
/// half that had come is freed.
/// Covers: F-40
#[test]
fn half_a_result_is_a_death_while_sending_and_is_freed() {
    const LEN: usize = 64 * MIB;
    const ROUNDS: u64 = 8;
    fn send_half(_: ()) {
        let block = Block::new(shared_memory());
        let ticket = block.black_box().ticket;
        let mut end = WorkerEnd::new(block);
        end.set_phase(0, block::Phase::Send);
        assert!(end.announce(&header(ticket), Kind::Value, LEN));
        let mut channel = control_channel();
        let head = frame::header(FrameKind::Payload, LEN as u64);
        channel.write_all(&head).unwrap();
        channel.write_all(&vec![0; LEN / 2]).unwrap();
        std::process::abort();
    }
    test(|| {
        let before = resident();
        for _ in 0..ROUNDS {
            let death = died(beside_another(send_half, ()));
            assert_eq!(death.phase, Phase::Send);
            assert_eq!(death.status, Status::Signal(libc::SIGABRT, false));
        }
        let grown = resident().saturating_sub(before);
        // The allocator may keep some; each round kept would be far more.
        assert!(grown < ROUNDS / 2 * (LEN as u64) / 2, "{grown} bytes more");
    });
}

/// Goal: the pool treats the shared memory as hostile: whatever a job writes there, the pool lives, every
/// job has an outcome, and the other worker is not touched.
/// Covers: F-56
#[test]
fn random_writes_to_the_shared_memory_cost_at_most_that_worker() {
    /// Bits and words in the part that steers, and in the rings.
    fn scribble((seed, writes): (u64, usize)) -> u64 {
        let mut random = Random::of_seed(seed);
        let memory = shared_memory().0;
        for _ in 0..writes {
            let limit = if random.below(2) == 0 { 72 } else { BLOCK_WORDS as u64 };
            let word = &memory[random.below(limit) as usize];
            let value = match random.below(3) {
                0 => random.next(),
                1 => word.load(Ordering::Relaxed) ^ (1 << random.below(64)),
                _ => random.below(4),
            };
            word.store(value, Ordering::Relaxed);
        }
        seed
    }
    test(|| {
        let mut random = Random::new();
        for round in 0..60 {
            let job = (random.next(), 1 << (round % 10));
            println!("{job:?}");
            match beside_another(scribble, job) {
                // It may have hit nothing that matters, or a result that is data like any other.
                Ok(_) | Err(JobError::Decode(_) | JobError::Encode(_)) => {}
                Err(JobError::Died(_) | JobError::Panicked(_) | JobError::TooLarge { .. }) => {}
                Err(error) => panic!("{job:?}: {error}"),
            }
        }
        let everything = |()| {
            shared_memory().0.iter().for_each(|word| word.store(u64::MAX, Ordering::Relaxed));
        };
        let death = died(beside_another(everything, ()));
        println!("{death:?}");
    });
}
