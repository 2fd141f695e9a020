//! What a client and the daemon say to each other.
//!
//! First a greeting of a fixed form, the same in all versions: each side names the versions that it speaks, and
//! the daemon the one that holds, or none. Then frames: a length, the number of the request, and an encoded
//! [`Request`] or [`Response`]. Each request is answered once, in any order, and [`Request::Run`] twice. What either side may send has a
//! limit, and a length is believed only up to it.
//!
//! Version 1 is written in stone from its first release on: a later version may add requests, and answers to
//! those.

use std::fmt;
use std::io::{self, Read};
use std::time::Duration;

use procpool_wire::codec;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::job::{Ending, JobId, JobSpec, Level, Record, State};
use crate::machine::{QueueInfo, QueueOrder};

/// The versions that this program speaks: from, to.
pub const VERSIONS: (u16, u16) = (1, 1);
/// The length of a greeting.
pub const GREETING_LEN: usize = 16;
const MAGIC: [u8; 8] = *b"procpool";

/// Bytes before a frame's body: its length and the request's number.
pub const HEADER_LEN: usize = 12;
/// The longest body. An argument or a result travels in one; longer ones belong into files.
pub const BODY_BYTES_MAX: usize = 16 << 20;
/// The most jobs on a page.
pub const PAGE_MAX: u32 = 1000;
/// How many of the last failures a daemon remembers: more than a screen shows.
pub const FAILURES_MAX: usize = 100;
/// The most bytes of a log in one answer.
pub const LOG_BYTES_MAX: u32 = 256 << 10;

/// What a client wants.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Request {
    /// Whether anybody is there. [`Response::Pong`].
    Ping,
    /// A job. [`Response::Submitted`], once it is kept.
    Submit(JobSpec),
    /// A job, and how it ends. [`Response::Submitted`], and later [`Response::Ending`].
    Run(JobSpec),
    /// What is known of these jobs. [`Response::Records`].
    Records(Vec<JobId>),
    /// Jobs by number, after that one. [`Response::Page`].
    Page {
        /// The last number of the page before.
        after: JobId,
        /// At most so many, and never more than [`PAGE_MAX`].
        limit: u32,
    },
    /// Wait until a job has ended. [`Response::Ended`].
    Wait(JobId),
    /// Wait until a job has ended, and say how. [`Response::Ending`].
    Result(JobId),
    /// A piece of what a command has said. [`Response::Log`].
    Log {
        /// The job.
        id: JobId,
        /// Which stream.
        stream: Stream,
        /// From this byte on.
        offset: u64,
    },
    /// Do not start a job. [`Response::Cancel`].
    Cancel(JobId),
    /// Stop a job, whether it runs or not. [`Response::Cancel`]; it has ended when [`Request::Wait`] says so.
    Abort(JobId),
    /// The queues. [`Response::Queues`].
    Queues,
    /// Start nothing any more, finish what runs, and end. [`Response::Stopping`].
    Stop,
    /// Run a job once more that has ended. [`Response::Done`].
    Retry(JobId),
    /// Forget a job that has ended, and all that it left. [`Response::Done`].
    Forget(JobId),
    /// Set something of a queue. [`Response::Done`].
    Queue {
        /// Its name.
        name: String,
        /// What.
        order: QueueOrder,
    },
    /// Start nothing any more, and take jobs all the same. [`Response::Done`].
    Drain,
    /// Wait until nothing runs, which comes to pass after [`Request::Drain`]. [`Response::Done`].
    Drained,
    /// How the daemon is. [`Response::Health`].
    Health,
    /// A piece of what a command says, as soon as there is one. [`Response::Log`], with no bytes when there will be
    /// none.
    Follow {
        /// The job.
        id: JobId,
        /// Which stream.
        stream: Stream,
        /// From this byte on.
        offset: u64,
    },
    /// How far a running task says that it has come. [`Response::Progress`].
    Progress(JobId),
    /// What runs, and what failed lately. [`Response::Activity`].
    Activity,
}

/// A stream of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// What the daemon answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Response {
    /// It is there.
    Pong(Pong),
    /// The job is kept under this number.
    Submitted(JobId),
    /// In the order of the request; `None` where there is no such job.
    Records(Vec<Option<Record>>),
    /// By number.
    Page(Vec<Record>),
    /// The job has ended like that.
    Ended(JobId, State),
    /// The job has ended like that.
    Ending(JobId, State, Box<Ending>),
    /// What a command has said from there on.
    Log {
        /// The bytes; none if there are none yet.
        #[serde(with = "serde_bytes")]
        bytes: Vec<u8>,
    },
    /// What became of a wish to cancel.
    Cancel(Cancelled),
    /// All of them.
    Queues(Vec<QueueInfo>),
    /// It ends when nothing runs any more.
    Stopping,
    /// It does not do that.
    Refused(Refusal),
    /// It is done, and kept if it is something to keep.
    Done,
    /// How it is.
    Health(Box<Health>),
    /// The latest; none if it has said nothing, or does not run.
    Progress(Option<Progress>),
    /// That.
    Activity(Activity),
}

/// How far a task says that it has come.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// As the task gave it; by convention from 0 to 1.
    pub fraction: f64,
    /// As the task gave it.
    pub message: String,
}

/// What a daemon does, and has done since it was started.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Activity {
    /// Attempts that were started.
    pub started: u64,
    /// Jobs that have ended.
    pub ended: u64,
    /// Those of them that did not succeed, cancelled ones apart.
    pub failed: u64,
    /// The jobs that run, by number.
    pub running: Vec<JobId>,
    /// The last that failed, latest first, at most [`FAILURES_MAX`].
    pub failures: Vec<JobId>,
}

/// Who is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pong {
    /// The program's version.
    pub version: String,
    /// The daemon's process.
    pub pid: u32,
}

/// How a daemon is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// The program's version.
    pub version: String,
    /// The daemon's process.
    pub pid: u32,
    /// What acknowledged means.
    pub level: Level,
    /// How long it has been up.
    pub up: Duration,
    /// Whether it starts jobs.
    pub phase: Phase,
    /// Jobs that have not ended.
    pub jobs: u64,
    /// The most of them.
    pub jobs_max: u64,
    /// Jobs that have ended since it is up, by the word of their state.
    pub ended: Vec<(String, u64)>,
    /// Connections of clients.
    pub clients: u64,
    /// Clients that wait for a job to end, and how often.
    pub waits: u64,
    /// Requests that are not answered yet, since the journal has not kept or read something.
    pub under_way: u64,
    /// The queues.
    pub queues: Vec<QueueInfo>,
}

/// Whether a daemon starts jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// It does.
    Serving,
    /// It starts none any more.
    Draining,
    /// It starts none any more, takes none, and ends when nothing runs.
    Stopping,
}

/// What became of a wish to cancel a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cancelled {
    /// It will never run.
    Unstarted,
    /// It runs: it goes on, or is being stopped if that was asked.
    Running,
    /// It had ended before.
    Ended,
}

/// Why the daemon does not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// Not now: a limit is reached. The text names it.
    Busy(String),
    /// There is no queue of that name.
    NoQueue(String),
    /// There is no job of that number.
    NoJob(JobId),
    /// There is another job with that key.
    KeyTaken(JobId),
    /// The daemon is about to end.
    Stopping,
    /// The request makes no sense. The text says why.
    Invalid(String),
    /// The job has not ended.
    NotEnded(JobId),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Busy(what) => write!(f, "the daemon is busy: {what}"),
            Refusal::NoQueue(name) => write!(f, "there is no queue `{name}`"),
            Refusal::NoJob(id) => write!(f, "there is no job {id}"),
            Refusal::KeyTaken(id) => write!(f, "job {id} has that key, and is another job"),
            Refusal::Stopping => f.write_str("the daemon is about to end"),
            Refusal::Invalid(why) => f.write_str(why),
            Refusal::NotEnded(id) => write!(f, "job {id} has not ended"),
        }
    }
}

/// What can be wrong with what the other side sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProtocolFault {
    /// It is not a procpool daemon, or client.
    NotOurs,
    /// The versions have none in common: the other side's, from and to.
    Version(u16, u16),
    /// A body that claims so many bytes.
    TooLong(u64),
    /// A body that is not what it should be: why.
    Body(String),
}

impl fmt::Display for ProtocolFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ProtocolFault::NotOurs => f.write_str("the other side does not speak this protocol"),
            ProtocolFault::Version(from, to) => write!(
                f,
                "the other side speaks versions {from} to {to} of the protocol, this one {} to {}",
                VERSIONS.0, VERSIONS.1
            ),
            ProtocolFault::TooLong(len) => {
                write!(f, "a message of {len} bytes; {BODY_BYTES_MAX} is the most")
            }
            ProtocolFault::Body(why) => write!(f, "a message that cannot be read: {why}"),
        }
    }
}

impl std::error::Error for ProtocolFault {}

/// A greeting: which versions one speaks, and, from the daemon, which one holds (0: none).
pub fn greeting(chosen: u16) -> [u8; GREETING_LEN] {
    let mut bytes = [0; GREETING_LEN];
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..10].copy_from_slice(&VERSIONS.0.to_le_bytes());
    bytes[10..12].copy_from_slice(&VERSIONS.1.to_le_bytes());
    bytes[12..14].copy_from_slice(&chosen.to_le_bytes());
    bytes
}

/// The highest version that both sides speak.
///
/// # Errors
/// If it is no greeting, or there is no such version.
pub fn common_version(greeting: &[u8; GREETING_LEN]) -> Result<u16, ProtocolFault> {
    if greeting[..8] != MAGIC {
        return Err(ProtocolFault::NotOurs);
    }
    let word = |at: usize| u16::from_le_bytes([greeting[at], greeting[at + 1]]);
    let (from, to) = (word(8), word(10));
    let common = to.min(VERSIONS.1);
    if from <= to && common >= from.max(VERSIONS.0) {
        Ok(common)
    } else {
        Err(ProtocolFault::Version(from, to))
    }
}

/// Appends a frame.
///
/// # Errors
/// If the body is too long; nothing is appended then.
pub fn push_frame<T: Serialize>(
    number: u64,
    body: &T,
    out: &mut Vec<u8>,
) -> Result<(), ProtocolFault> {
    let start = out.len();
    out.extend_from_slice(&[0; HEADER_LEN]);
    let result = codec::encode_into(body, Some(BODY_BYTES_MAX as u64), out);
    if let Err(fault) = result {
        out.truncate(start);
        return Err(match fault {
            codec::CodecFault::TooLarge { len, .. } => ProtocolFault::TooLong(len),
            fault => ProtocolFault::Body(fault.to_string()),
        });
    }
    let len = (out.len() - start - HEADER_LEN) as u32;
    out[start..start + 4].copy_from_slice(&len.to_le_bytes());
    out[start + 4..start + HEADER_LEN].copy_from_slice(&number.to_le_bytes());
    Ok(())
}

/// The length of the body and the number of the request that a header announces.
///
/// # Errors
/// If the length is beyond the limit.
pub fn parse_header(header: &[u8; HEADER_LEN]) -> Result<(usize, u64), ProtocolFault> {
    let (len, number) = header.split_at(4);
    let len = u32::from_le_bytes(len.try_into().expect("four bytes")) as usize;
    if len > BODY_BYTES_MAX {
        return Err(ProtocolFault::TooLong(len as u64));
    }
    Ok((len, u64::from_le_bytes(number.try_into().expect("eight bytes"))))
}

/// Decodes a body. It can be nested as little as the stack of a small thread allows.
///
/// # Errors
/// If it is not a `T`.
pub fn parse_body<T: DeserializeOwned>(body: &[u8]) -> Result<T, ProtocolFault> {
    codec::decode_within(body, 128 << 10).map_err(|fault| ProtocolFault::Body(fault.to_string()))
}

/// Reads one frame, for a side that may wait.
///
/// # Errors
/// What the stream says; `InvalidData` for a length beyond the limit.
pub fn read_frame(stream: &mut impl Read) -> io::Result<(u64, Vec<u8>)> {
    let mut header = [0; HEADER_LEN];
    stream.read_exact(&mut header)?;
    let (len, number) =
        parse_header(&header).map_err(|fault| io::Error::new(io::ErrorKind::InvalidData, fault))?;
    let mut body = Vec::new();
    stream.take(len as u64).read_to_end(&mut body)?;
    if body.len() < len {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok((number, body))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn greeting_of(from: u16, to: u16) -> [u8; GREETING_LEN] {
        let mut bytes = greeting(0);
        bytes[8..10].copy_from_slice(&from.to_le_bytes());
        bytes[10..12].copy_from_slice(&to.to_le_bytes());
        bytes
    }

    /// Goal: two versions work together, or it is known why not.
    /// Covers: F-133
    #[test]
    fn versions_overlap_or_are_told() {
        assert_eq!(common_version(&greeting(0)), Ok(1));
        assert_eq!(common_version(&greeting_of(1, 9)), Ok(1));
        assert_eq!(common_version(&greeting_of(2, 9)), Err(ProtocolFault::Version(2, 9)));
        assert_eq!(common_version(&greeting_of(0, 0)), Err(ProtocolFault::Version(0, 0)));
        assert_eq!(common_version(&greeting_of(1, 0)), Err(ProtocolFault::Version(1, 0)));
        assert_eq!(common_version(b"GET / HTTP/1.1\r\n"), Err(ProtocolFault::NotOurs));
    }

    #[test]
    fn a_frame_comes_back() {
        let mut bytes = Vec::new();
        push_frame(7, &Request::Wait(JobId(3)), &mut bytes).unwrap();
        let (number, body) = read_frame(&mut bytes.as_slice()).unwrap();
        assert_eq!((number, parse_body(&body)), (7, Ok(Request::Wait(JobId(3)))));
        for cut in 0..bytes.len() {
            assert!(read_frame(&mut &bytes[..cut]).is_err(), "cut at {cut}");
        }
    }

    /// Covers: F-140
    #[test]
    fn a_huge_claim_is_refused_by_its_header() {
        let mut header = [0xff; HEADER_LEN];
        assert_eq!(parse_header(&header), Err(ProtocolFault::TooLong(u32::MAX.into())));
        header[..4].copy_from_slice(&(BODY_BYTES_MAX as u32).to_le_bytes());
        assert_eq!(parse_header(&header), Ok((BODY_BYTES_MAX, u64::MAX)));
    }
}
