//! The control channel: what is written to it, and what comes of it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use procpool_sys::channel::{self, Received};
use procpool_sys::limits::current_cpu;
use procpool_wire::frame::{self, Frame, FrameKind};

use super::attaching::{Flushed, is_of_attachments};
use super::{Harvest, PoolChannel};
use crate::attachments::carrier::AttachFrame;
use crate::supervisor::entry::{Recorded, Streamed};

/// What the end of a control channel means.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Link {
    Open,
    Closed,
}

/// Bytes that wait to be written to the control channel.
pub(super) enum Outgoing {
    Frame(Vec<u8>, usize),
    Payload(Arc<Streamed>, usize),
    Attach(AttachFrame),
}

impl PoolChannel {
    /// Wakes the worker if it sleeps and has been sent something.
    pub(crate) fn wake(&mut self) {
        if self.end.must_wake_for_jobs() {
            self.ring_bell();
        }
        self.flush();
    }

    /// Wakes the worker if it waits for room for its results.
    pub(crate) fn wake_for_room(&mut self) {
        if self.end.must_wake_for_room() {
            self.ring_bell();
        }
        self.flush();
    }

    fn ring_bell(&mut self) {
        if self.outgoing.is_empty() {
            self.outgoing.push_back(Outgoing::Frame(frame::header(FrameKind::Bell, 0).to_vec(), 0));
        }
    }

    /// Queues a frame.
    pub(crate) fn send_frame(&mut self, kind: FrameKind) {
        self.outgoing.push_back(Outgoing::Frame(frame::header(kind, 0).to_vec(), 0));
        self.flush();
    }

    /// Sends the first frame, with the descriptor of the shared memory beside it, and of the standard
    /// output that the worker shall have if it was started without.
    pub(crate) fn send_setup(&mut self, body: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.send_frame_with(FrameKind::Setup, body, fds)
    }

    /// Sends a frame with descriptors beside its first byte.
    pub(crate) fn send_frame_with(
        &mut self,
        kind: FrameKind,
        body: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        let bytes = frame::frame(kind, body);
        let sent = channel::send_with_fds(self.stream.as_fd(), &bytes, fds)?;
        self.outgoing.push_back(Outgoing::Frame(bytes, sent));
        self.flush();
        Ok(())
    }

    /// Writes what can be written now.
    pub(crate) fn flush(&mut self) {
        while let Some(outgoing) = self.outgoing.front_mut() {
            let (bytes, at) = match outgoing {
                Outgoing::Frame(bytes, at) => (bytes.as_slice(), at),
                Outgoing::Payload(streamed, at) => (streamed.bytes(), at),
                Outgoing::Attach(_) => match self.flush_attach() {
                    Flushed::On => continue,
                    Flushed::Full => return,
                },
            };
            if *at == bytes.len() {
                self.outgoing.pop_front();
                continue;
            }
            match channel::send_now(&self.stream, &bytes[*at..]) {
                Ok(written) => *at += written,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // The worker is gone; its pidfd tells the rest.
                Err(_) => self.outgoing.clear(),
            }
        }
    }

    /// True if something waits for room in the control channel.
    pub(crate) fn wants_to_write(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Asks for a bell with the next result, or not.
    pub(crate) fn want_bell(&self, want: bool) {
        self.end.want_bell(want);
    }

    /// True if the worker was last on the CPU of this thread, which looks for its results.
    pub(crate) fn shares_cpu(&mut self) -> bool {
        current_cpu().is_some_and(|cpu| self.end.shares_cpu(cpu))
    }

    /// Reads frames until none is there. The kinds that concern the worker's start are handed to `start`.
    pub(crate) fn read_frames(
        &mut self,
        buffer: &mut [u8],
        harvest: &mut Harvest,
        mut start: impl FnMut(Frame),
    ) -> Link {
        loop {
            let mut bytes = match channel::receive_with_fds(self.stream.as_fd(), buffer) {
                Ok(Received { len: 0, .. }) => return Link::Closed,
                Ok(Received { len, fds, fds_lost }) => {
                    self.carrier.take_descriptors(fds, fds_lost);
                    &buffer[..len]
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Link::Open,
                Err(_) => return Link::Closed,
            };
            while !bytes.is_empty() && self.fault.is_none() {
                match self.decoder.feed(&mut bytes) {
                    Ok(None) => {}
                    Ok(Some(Frame { kind: FrameKind::Bell, .. })) => {}
                    Ok(Some(Frame { kind: FrameKind::Payload, body })) => {
                        self.take_payload(body, harvest)
                    }
                    Ok(Some(frame)) if is_of_attachments(frame.kind) => {
                        self.take_attachments(&frame)
                    }
                    Ok(Some(frame)) => start(frame),
                    Err(fault) => self.set_fault(&fault.to_string()),
                }
            }
            self.check_descriptors();
            if self.fault.is_some() {
                return Link::Open;
            }
        }
    }

    fn take_payload(&mut self, body: Vec<u8>, harvest: &mut Harvest) {
        // The announcement precedes the payload in the shared memory, and may not have been read yet.
        while self.awaiting.is_none() && self.fault.is_none() {
            self.read_results(harvest);
            if !harvest.more {
                break;
            }
        }
        match self.awaiting.take() {
            Some((header, kind, len)) if len == body.len() as u64 => {
                let attachments = self.attachments_of(&header);
                harvest.any = true;
                self.take_record(&header, Recorded::Streamed(kind, body), attachments, harvest);
            }
            _ => self.set_fault("the worker sent a payload that it had not announced"),
        }
    }
}
