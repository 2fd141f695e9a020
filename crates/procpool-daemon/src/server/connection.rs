//! One client's connection: its greeting, its frames, and what it has not read yet.
//!
//! What a client costs is bounded before it has said who it is, and after: its requests stay where they are while it
//! leaves too much unread, or too much is under way for it.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use interprocess::os::unix::uds_local_socket::Stream;

use crate::protocol::{
    self, GREETING_LEN, HEADER_LEN, LOG_BYTES_MAX, PAGE_MAX, ProtocolFault, Request, Response,
    common_version, greeting, parse_body, parse_header, push_frame,
};

/// How long a client may take to greet.
const GREETING_TIME: Duration = Duration::from_secs(5);
/// How long it may take over a frame that it has begun: the longest one takes some milliseconds.
const FRAME_TIME: Duration = Duration::from_secs(10);
/// How much a client may leave unread before its requests wait: some pages of jobs.
const UNREAD_MAX: usize = 1 << 20;
/// How much it may leave unread at all. Ends of jobs come unasked; whoever takes none of them is let go, and can
/// ask again. More than the longest answer.
const UNREAD_END: usize = 64 << 20;
/// How many requests of a client may be under way, those that wait for a job's end apart.
const UNDER_WAY_MAX: usize = 4096;
/// How many bytes they may have, with those of their answers.
const UNDER_WAY_BYTES_MAX: usize = 4 << 20;
/// About how long a job is on a page.
const RECORD_BYTES: usize = 256;
/// How much is read at a time.
pub(super) const CHUNK: usize = 64 << 10;
/// How many chunks are read before other clients get their turn.
const CHUNKS_IN_TURN: usize = 8;
/// How much of a buffer is kept when it is empty.
const SPARE_MAX: usize = 64 << 10;

/// A connection.
#[derive(Debug)]
pub(super) struct Connection {
    stream: Stream,
    /// The client's process.
    pub(super) pid: u32,
    phase: Phase,
    input: Vec<u8>,
    /// Since when there has been a part of a frame in `input`, and no whole one.
    begun: Option<Instant>,
    output: Vec<u8>,
    /// How much of `output` has been written.
    written: usize,
    under_way: UnderWay,
}

/// Requests that have not been answered, apart from those that wait for a job's end.
#[derive(Debug, Default)]
struct UnderWay {
    requests: usize,
    bytes: usize,
}

#[derive(Debug)]
enum Phase {
    Greeting { until: Instant },
    Open,
}

/// A request, as it came.
#[derive(Debug)]
pub(super) struct Asked {
    /// Its number.
    pub(super) number: u64,
    /// How many bytes it has, or its answer.
    pub(super) cost: usize,
    pub(super) request: Request,
}

/// The connection is to be closed: the client has closed it, or it broke, or the client does not keep to the
/// protocol, about which nobody else has to be told.
#[derive(Debug)]
pub(super) struct Ended;

impl From<ProtocolFault> for Ended {
    fn from(_: ProtocolFault) -> Ended {
        Ended
    }
}

impl Connection {
    pub(super) fn new(stream: Stream, pid: u32) -> Connection {
        Connection {
            stream,
            pid,
            phase: Phase::Greeting { until: Instant::now() + GREETING_TIME },
            input: Vec::new(),
            begun: None,
            output: Vec::new(),
            written: 0,
            under_way: UnderWay::default(),
        }
    }

    /// True if it has said who it is.
    pub(super) fn has_greeted(&self) -> bool {
        matches!(self.phase, Phase::Open)
    }

    /// Until when it must have greeted, or ended the frame that it has begun.
    pub(super) fn late_at(&self) -> Option<Instant> {
        match self.phase {
            Phase::Greeting { until } => Some(until),
            // While it is not read from, it cannot go on.
            Phase::Open if self.wants_input() => self.begun.map(|begun| begun + FRAME_TIME),
            Phase::Open => None,
        }
    }

    /// The part of a frame that there is: how long, and since when.
    pub(super) fn gathered(&self) -> Option<(usize, Instant)> {
        self.begun.map(|begun| (self.input.len(), begun))
    }

    /// True if something is being done for it.
    pub(super) fn is_busy(&self) -> bool {
        self.under_way.requests > 0
    }

    /// True if it may say more.
    pub(super) fn wants_input(&self) -> bool {
        self.unread() < UNREAD_MAX
            && self.under_way.requests < UNDER_WAY_MAX
            && self.under_way.bytes < UNDER_WAY_BYTES_MAX
    }

    /// True if there is something that it has not taken.
    pub(super) fn wants_output(&self) -> bool {
        self.unread() > 0
    }

    /// How much there is of that.
    pub(super) fn unread(&self) -> usize {
        self.output.len() - self.written
    }

    /// Reads what there is, but not for ever, up to the end of its greeting or a request. `chunk` is any buffer.
    pub(super) fn read(&mut self, chunk: &mut [u8]) -> Result<(), Ended> {
        for _ in 0..CHUNKS_IN_TURN {
            match (&self.stream).read(chunk) {
                Ok(0) => return Err(Ended),
                Ok(len) => {
                    self.input.extend_from_slice(&chunk[..len]);
                    if len < chunk.len() {
                        break;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Err(Ended),
            }
        }
        match self.phase {
            Phase::Greeting { .. } => self.greet(),
            Phase::Open => Ok(()),
        }
    }

    fn greet(&mut self) -> Result<(), Ended> {
        let Some((theirs, rest)) = self.input.split_first_chunk::<GREETING_LEN>() else {
            return Ok(());
        };
        match common_version(theirs) {
            Ok(version) => {
                self.output.extend_from_slice(&greeting(version));
                self.input = rest.to_vec();
                self.phase = Phase::Open;
                Ok(())
            }
            Err(fault) => {
                if let ProtocolFault::Version(..) = fault {
                    // So that it can say why not. Sixteen bytes are taken by any socket that is empty.
                    self.output.extend_from_slice(&greeting(0));
                    self.write()?;
                }
                Err(fault.into())
            }
        }
    }

    /// Cuts what has come into requests, as many as may be under way.
    pub(super) fn requests(&mut self) -> Result<Vec<Asked>, Ended> {
        let mut requests = Vec::new();
        if !self.has_greeted() {
            return Ok(requests);
        }
        let mut at = 0;
        while self.wants_input()
            && let Some((header, rest)) = self.input[at..].split_first_chunk::<HEADER_LEN>()
        {
            let (len, number) = parse_header(header)?;
            let Some(body) = rest.get(..len) else {
                break;
            };
            let request = parse_body(body)?;
            let cost = len.max(answer_bytes(&request));
            if !is_wait(&request) {
                self.under_way.requests += 1;
                self.under_way.bytes += cost;
            }
            requests.push(Asked { number, cost, request });
            at += HEADER_LEN + len;
        }
        self.input.drain(..at);
        if self.input.is_empty() && self.input.capacity() > SPARE_MAX {
            self.input = Vec::new();
        }
        if self.input.is_empty() {
            self.begun = None;
        } else if at > 0 || self.begun.is_none() {
            self.begun = Some(Instant::now());
        }
        Ok(requests)
    }

    /// A request of that cost is answered.
    pub(super) fn answered(&mut self, cost: usize) {
        self.under_way.requests -= 1;
        self.under_way.bytes -= cost;
    }

    /// Puts an answer behind what it has not read yet.
    pub(super) fn push(&mut self, number: u64, response: &Response) {
        if let Err(fault) = push_frame(number, response, &mut self.output) {
            let refusal = protocol::Refusal::Invalid(format!("the answer is {fault}"));
            push_frame(number, &Response::Refused(refusal), &mut self.output)
                .expect("a refusal is short");
        }
    }

    /// Writes what it takes.
    pub(super) fn write(&mut self) -> Result<(), Ended> {
        while self.unread() > 0 {
            match (&self.stream).write(&self.output[self.written..]) {
                Ok(0) => return Err(Ended),
                Ok(len) => self.written += len,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Err(Ended),
            }
        }
        if self.unread() == 0 {
            self.written = 0;
            self.output.clear();
            if self.output.capacity() > SPARE_MAX {
                self.output = Vec::new();
            }
        } else if self.written > UNREAD_MAX {
            self.output.drain(..self.written);
            self.written = 0;
        }
        if self.unread() > UNREAD_END { Err(Ended) } else { Ok(()) }
    }
}

/// Whether a request is answered when a job has ended, and not before.
pub(super) fn is_wait(request: &Request) -> bool {
    matches!(request, Request::Wait(_) | Request::Result(_))
}

/// About how many bytes the answer to a request has, where they are many.
fn answer_bytes(request: &Request) -> usize {
    match request {
        Request::Page { limit, .. } => (*limit).min(PAGE_MAX) as usize * RECORD_BYTES,
        Request::Records(ids) => ids.len() * RECORD_BYTES,
        Request::Log { .. } | Request::Follow { .. } => LOG_BYTES_MAX as usize,
        _ => HEADER_LEN,
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// Whether accepting failed because of the other side alone.
pub(super) fn is_passing(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::Interrupted)
}
