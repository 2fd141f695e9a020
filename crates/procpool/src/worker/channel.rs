//! The worker's end of the control channel. It blocks: a worker has nothing else to do.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::mem;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use interprocess::os::unix::uds_local_socket::Stream;
use procpool_sys::channel;
use procpool_wire::attach::Again;
use procpool_wire::block::Ticket;
use procpool_wire::codec;
use procpool_wire::frame::{self, Decoder, Frame, FrameKind, HEADER_LEN};
use procpool_wire::handshake::Setup;

use super::contained;
use crate::attachments::carrier::Carrier;
use crate::attachments::{self, Attachment, List};

/// Bytes read at a time until more come: memory that is not touched costs a new process nothing.
const READ_FIRST: usize = 4 * 1024;
/// Bytes read at a time: a socket's buffer is a few of these.
const READ_MAX: usize = 64 * 1024;

pub(super) struct WorkerChannel {
    stream: Stream,
    decoder: Decoder,
    buffer: Vec<u8>,
    /// Arguments that have arrived before their jobs were looked at.
    payloads: VecDeque<Payload>,
    /// Arguments that were asked for again.
    again: Option<Vec<u8>>,
    carrier: Carrier,
}

/// Arguments that did not fit into the shared memory.
pub(super) struct Payload {
    pub(super) place: Place,
    /// What they refer to.
    pub(super) attachments: Option<List>,
}

/// Where such arguments are.
pub(super) enum Place {
    Here(Vec<u8>),
    /// In memory that the pool has lent, from there on.
    Lent(Arc<Attachment>, usize),
    /// In memory that did not arrive.
    Lost,
}

impl Place {
    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Place::Here(bytes) => bytes,
            // It was mapped when it came.
            Place::Lent(attachment, from) => {
                attachment.bytes().unwrap_or_default().get(*from..).unwrap_or_default()
            }
            Place::Lost => &[],
        }
    }
}

/// What the pool wants.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Word {
    /// Look at the shared memory.
    Look,
    /// Exit.
    Bye,
}

/// What the pool wants of a fork server.
#[derive(Debug)]
pub(super) enum Request {
    /// Fork a worker with these descriptors.
    Fork(Vec<OwnedFd>),
    /// Exit.
    Bye,
}

impl WorkerChannel {
    pub(super) fn new(fd: OwnedFd) -> io::Result<WorkerChannel> {
        let stream = Stream::from(UnixStream::from(fd));
        Ok(WorkerChannel {
            stream,
            decoder: Decoder::default(),
            buffer: vec![0; READ_FIRST],
            payloads: VecDeque::new(),
            again: None,
            carrier: Carrier::of_worker(),
        })
    }

    /// Waits for the first frame, which has descriptors beside it: the shared memory, and a standard output
    /// if this process was started without one.
    pub(super) fn receive_setup(&mut self) -> io::Result<(Setup, Vec<OwnedFd>)> {
        let mut setup = None;
        while setup.is_none() {
            self.read(|channel, frame| {
                if frame.kind == FrameKind::Setup && setup.is_none() {
                    setup = Some((frame.body, channel.carrier.first_descriptors()));
                    return Ok(());
                }
                channel.take(frame).map(drop)
            })?;
        }
        let (body, fds) = setup.expect("the loop ends with one");
        let setup = codec::decode(&body).map_err(|fault| io::Error::other(fault.to_string()))?;
        Ok((setup, fds))
    }

    /// Reads once, and hands on each frame that is complete.
    fn read(
        &mut self,
        mut take: impl FnMut(&mut WorkerChannel, Frame) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut buffer = mem::take(&mut self.buffer);
        let received = loop {
            match channel::receive_with_fds(self.stream.as_fd(), &mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                received => break received?,
            }
        };
        if received.len == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.carrier.take_descriptors(received.fds, received.fds_lost);
        let mut bytes = &buffer[..received.len];
        while !bytes.is_empty() {
            let frame = self
                .decoder
                .feed(&mut bytes)
                .map_err(|fault| io::Error::other(fault.to_string()))?;
            if let Some(frame) = frame {
                take(self, frame)?;
            }
        }
        if received.len == buffer.len() && received.len < READ_MAX {
            buffer = vec![0; READ_MAX];
        }
        self.buffer = buffer;
        Ok(())
    }

    /// Takes a frame from the pool, and answers what it wants with it.
    fn take(&mut self, frame: Frame) -> io::Result<Word> {
        match frame.kind {
            FrameKind::Bye => return Ok(Word::Bye),
            FrameKind::Payload => {
                let attachments = self.carrier.take_list(None);
                self.payloads.push_back(Payload { place: Place::Here(frame.body), attachments });
            }
            FrameKind::PayloadAt => {
                let place = self.carrier.payload_at(&frame.body).map_err(io::Error::other)?;
                let place = place.map_or(Place::Lost, |(lent, from)| Place::Lent(lent, from));
                let attachments = self.carrier.take_list(None);
                self.payloads.push_back(Payload { place, attachments });
            }
            FrameKind::PayloadAgain => self.again = Some(frame.body),
            FrameKind::Attach => {
                let lost = self.carrier.take_attach(&frame.body).map_err(io::Error::other)?;
                if !lost.is_empty() {
                    self.stream.write_all(&Carrier::lost_frame(lost))?;
                }
            }
            FrameKind::Uses => self.carrier.take_uses(&frame.body).map_err(io::Error::other)?,
            FrameKind::Forget => {
                for attachment in self.carrier.take_forgotten(&frame.body) {
                    attachments::let_go(&attachment);
                }
            }
            _ => {}
        }
        Ok(Word::Look)
    }

    /// Waits for the pool's next word. Without a pool there is nothing to live for.
    pub(super) fn next_word(&mut self) -> Word {
        let mut word = None;
        while word.is_none() {
            self.give_back();
            let read = self.read(|channel, frame| {
                let new = channel.take(frame)?;
                if word != Some(Word::Bye) {
                    word = Some(new);
                }
                Ok(())
            });
            // The pool is gone, or a job that writes to our end of the channel's peer has ruined it.
            if read.is_err() {
                contained::kill_self();
            }
        }
        word.expect("the loop ends with one")
    }

    /// Closes this copy of a channel, and leaves what came over it as it is: dropping values writes to memory that
    /// a forked worker shares with its server.
    pub(super) fn abandon(self) {
        let WorkerChannel { stream, decoder, buffer, payloads, again, carrier } = self;
        mem::forget((decoder, buffer, payloads, again, carrier));
        drop(stream);
    }

    /// Waits for the pool's next word to a fork server.
    pub(super) fn next_request(&mut self) -> Request {
        let mut fds = Vec::new();
        loop {
            // A frame's header at a time, so that the descriptors of one request never come with another's.
            let piece = &mut self.buffer[..HEADER_LEN];
            let len = match channel::receive_with_fds(self.stream.as_fd(), piece) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Ok(received) if received.len > 0 => {
                    fds.extend(received.fds);
                    received.len
                }
                // The host may end before it is dead enough for the kernel to tell us.
                _ => contained::follow_host(),
            };
            match self.decoder.feed(&mut &self.buffer[..len]) {
                Ok(None) => {}
                Ok(Some(frame)) if frame.kind == FrameKind::Fork => return Request::Fork(fds),
                Ok(Some(frame)) if frame.kind == FrameKind::Bye => return Request::Bye,
                // The pool sends nothing else.
                Ok(Some(_)) | Err(_) => contained::kill_self(),
            }
        }
    }

    /// The next argument that did not fit into the shared memory.
    pub(super) fn next_payload(&mut self) -> Payload {
        loop {
            if let Some(payload) = self.payloads.pop_front() {
                return payload;
            }
            self.next_word();
        }
    }

    /// The arguments of this job, whose memory did not arrive.
    pub(super) fn payload_again(&mut self, ticket: Ticket) -> Vec<u8> {
        let mut body = Vec::new();
        let again = Again { index: ticket.index, generation: ticket.generation };
        // Numbers always encode.
        let _ = codec::encode_into(&again, None, &mut body);
        self.send(FrameKind::Again, &body);
        loop {
            if let Some(bytes) = self.again.take() {
                return bytes;
            }
            self.next_word();
        }
    }

    /// Tells the pool what of its memory is not mapped here any more.
    fn give_back(&mut self) {
        if let Some(frame) = self.carrier.returned_frame() {
            self.write(&frame);
        }
    }

    /// What came under these numbers; waits for it.
    pub(super) fn arrived(&mut self, numbers: &[u64]) -> List {
        loop {
            if let Some(list) = self.carrier.arrived(numbers) {
                return list;
            }
            if self.next_word() == Word::Bye {
                std::process::exit(0);
            }
        }
    }

    /// Sends what a result refers to, and is not the pool's own, `theirs`. An error if the kernel would not
    /// pass on its descriptors: then the pool has nothing of it.
    pub(super) fn send_attachments(
        &mut self,
        list: &List,
        theirs: Option<&List>,
    ) -> io::Result<()> {
        let frames = self.carrier.attach(list, theirs);
        // The pool keeps nothing of ours beyond the next payload.
        self.carrier.is_not_known();
        for frame in frames {
            let sent = channel::send_with_fds(self.stream.as_fd(), frame.bytes(), &frame.fds())?;
            self.write(&frame.bytes()[sent..]);
        }
        let theirs = theirs.map(|theirs| (&self.carrier, theirs));
        self.write(&Carrier::uses_frame(list, theirs));
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) {
        if self.stream.write_all(bytes).is_err() {
            // The pool is gone, or a job has closed the channel: either way this worker is of no use.
            contained::kill_self();
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
            contained::kill_self();
        }
    }
}
