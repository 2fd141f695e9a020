//! One client's connection: its greeting, its frames, and what it has not read yet.
//!
//! What a client costs is bounded before it has said who it is, and after: it is not read from while it leaves too
//! much unread, or too much is under way for it.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use interprocess::os::unix::uds_local_socket::Stream;

use crate::protocol::{
    self, GREETING_LEN, HEADER_LEN, ProtocolFault, Request, Response, common_version, greeting,
    parse_body, parse_header, push_frame,
};

/// How long a client may take to greet.
const GREETING_TIME: Duration = Duration::from_secs(5);
/// How much a client may leave unread before its requests wait: some pages of jobs.
const UNREAD_MAX: usize = 1 << 20;
/// How many requests of a client may be under way, those that wait for a job's end apart.
const UNDER_WAY_MAX: usize = 4096;
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
    output: Vec<u8>,
    /// How much of `output` has been written.
    written: usize,
    /// Requests that have not been answered, apart from those that wait.
    pub(super) under_way: usize,
}

#[derive(Debug)]
enum Phase {
    Greeting { until: Instant },
    Open,
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
            output: Vec::new(),
            written: 0,
            under_way: 0,
        }
    }

    /// Until when it must have greeted, if it has not.
    pub(super) fn greeting_until(&self) -> Option<Instant> {
        match self.phase {
            Phase::Greeting { until } => Some(until),
            Phase::Open => None,
        }
    }

    /// True if it may say more.
    pub(super) fn wants_input(&self) -> bool {
        self.unread() < UNREAD_MAX && self.under_way < UNDER_WAY_MAX
    }

    /// True if there is something that it has not taken.
    pub(super) fn wants_output(&self) -> bool {
        self.unread() > 0
    }

    fn unread(&self) -> usize {
        self.output.len() - self.written
    }

    /// Reads what there is, but not for ever. `chunk` is any buffer.
    pub(super) fn read(&mut self, chunk: &mut [u8]) -> Result<Vec<(u64, Request)>, Ended> {
        let mut requests = Vec::new();
        for _ in 0..CHUNKS_IN_TURN {
            if !self.wants_input() || requests.len() >= UNDER_WAY_MAX {
                break;
            }
            match (&self.stream).read(chunk) {
                Ok(0) => return Err(Ended),
                Ok(len) => {
                    self.input.extend_from_slice(&chunk[..len]);
                    self.parse(&mut requests)?;
                    if len < chunk.len() {
                        break;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Err(Ended),
            }
        }
        Ok(requests)
    }

    /// Cuts what has come into requests.
    fn parse(&mut self, requests: &mut Vec<(u64, Request)>) -> Result<(), Ended> {
        let mut at = 0;
        if let Phase::Greeting { .. } = self.phase {
            let Some((theirs, _)) = self.input.split_first_chunk::<GREETING_LEN>() else {
                return Ok(());
            };
            match common_version(theirs) {
                Ok(version) => {
                    self.output.extend_from_slice(&greeting(version));
                    self.phase = Phase::Open;
                }
                Err(fault) => {
                    if let ProtocolFault::Version(..) = fault {
                        // So that it can say why not. Sixteen bytes are taken by any socket that is empty.
                        self.output.extend_from_slice(&greeting(0));
                        self.write()?;
                    }
                    return Err(fault.into());
                }
            }
            at = GREETING_LEN;
        }
        while let Some((header, rest)) = self.input[at..].split_first_chunk::<HEADER_LEN>() {
            let (len, number) = parse_header(header)?;
            let Some(body) = rest.get(..len) else {
                break;
            };
            requests.push((number, parse_body(body)?));
            at += HEADER_LEN + len;
        }
        self.input.drain(..at);
        if self.input.is_empty() && self.input.capacity() > SPARE_MAX {
            self.input = Vec::new();
        }
        Ok(())
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
        Ok(())
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
