//! The worker's end of the control channel. It blocks: a worker has nothing else to do.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use interprocess::os::unix::uds_local_socket::Stream;
use procpool_sys::{channel, worker};
use procpool_wire::codec;
use procpool_wire::frame::{self, Decoder, FrameKind};
use procpool_wire::handshake::Setup;

/// Bytes read at a time: a socket's buffer is a few of these.
const READ_MAX: usize = 64 * 1024;

pub(super) struct WorkerChannel {
    stream: Stream,
    decoder: Decoder,
    buffer: Vec<u8>,
    /// Arguments that have arrived before their jobs were looked at.
    payloads: VecDeque<Vec<u8>>,
}

/// What the pool wants.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Word {
    /// Look at the shared memory.
    Look,
    /// Exit.
    Bye,
}

impl WorkerChannel {
    pub(super) fn new(fd: OwnedFd) -> io::Result<WorkerChannel> {
        let stream = Stream::from(UnixStream::from(fd));
        Ok(WorkerChannel {
            stream,
            decoder: Decoder::default(),
            buffer: vec![0; READ_MAX],
            payloads: VecDeque::new(),
        })
    }

    /// Waits for the first frame, which has descriptors beside it: the shared memory, and a standard output
    /// if this process was started without one.
    pub(super) fn receive_setup(&mut self) -> io::Result<(Setup, Vec<OwnedFd>)> {
        let mut received = Vec::new();
        loop {
            let (len, fds) = channel::receive_with_fds(self.stream.as_fd(), &mut self.buffer)?;
            received.extend(fds);
            if len == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let mut bytes = &self.buffer[..len];
            let frame = self
                .decoder
                .feed(&mut bytes)
                .map_err(|fault| io::Error::other(fault.to_string()))?;
            if let Some(frame) = frame {
                if frame.kind != FrameKind::Setup {
                    return Err(io::Error::other("the first frame is not a setup"));
                }
                let setup = codec::decode(&frame.body)
                    .map_err(|fault| io::Error::other(fault.to_string()))?;
                return Ok((setup, received));
            }
        }
    }

    /// Waits for the pool's next word. Without a pool there is nothing to live for.
    pub(super) fn next_word(&mut self) -> Word {
        loop {
            let len = match self.stream.read(&mut self.buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Ok(0) | Err(_) => worker::kill_group(),
                Ok(len) => len,
            };
            let mut word = None;
            let mut bytes = &self.buffer[..len];
            while !bytes.is_empty() {
                match self.decoder.feed(&mut bytes) {
                    Ok(None) => {}
                    Ok(Some(frame)) => match frame.kind {
                        FrameKind::Bye => word = Some(Word::Bye),
                        FrameKind::Payload => {
                            self.payloads.push_back(frame.body);
                            word = word.or(Some(Word::Look));
                        }
                        _ => word = word.or(Some(Word::Look)),
                    },
                    // Only a job that writes to our end of the channel's peer could do this.
                    Err(_) => worker::kill_group(),
                }
            }
            if let Some(word) = word {
                return word;
            }
        }
    }

    /// The next argument that did not fit into the shared memory.
    pub(super) fn next_payload(&mut self) -> Vec<u8> {
        loop {
            if let Some(payload) = self.payloads.pop_front() {
                return payload;
            }
            self.next_word();
        }
    }

    pub(super) fn send(&mut self, kind: FrameKind, body: &[u8]) {
        let header = frame::header(kind, body.len() as u64);
        let result = match body {
            [] => self.stream.write_all(&header),
            // One write for a short frame.
            body if body.len() <= READ_MAX => self.stream.write_all(&[&header, body].concat()),
            body => self.stream.write_all(&header).and_then(|()| self.stream.write_all(body)),
        };
        if result.is_err() {
            // The pool is gone, or a job has closed the channel: either way this worker is of no use.
            worker::kill_group();
        }
    }
}
