//! The pool's end of a worker, as far as attachments go. What a worker attaches is looked at like all that
//! comes from there.

use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Weak};

use procpool_sys::channel;
use procpool_wire::attach::{Again, USES_MAX};
use procpool_wire::block::{ResultHeader, Ticket};
use procpool_wire::codec;
use procpool_wire::frame::{self, Frame, FrameKind};

use super::{Delivery, Outgoing, PoolChannel};
use crate::attachments::carrier::Carrier;
use crate::attachments::{Forgets, List};
use crate::supervisor::entry::Streamed;

/// What became of a frame.
pub(super) enum Flushed {
    /// It is sent, or has become one that needs no descriptors.
    On,
    /// There is no room for it now.
    Full,
}

/// True for frames that this file is about.
pub(super) fn is_of_attachments(kind: FrameKind) -> bool {
    use FrameKind::{Again, Attach, Forget, Returned, Uses};
    matches!(kind, Attach | Uses | Forget | Returned | Again)
}

impl PoolChannel {
    /// Has `who` told of attachments that the worker need not keep.
    pub(crate) fn set_who_forgets(&mut self, who: Weak<dyn Forgets>) {
        self.carrier.set_who(who);
    }

    /// Queues what the worker does not have of `list`.
    pub(crate) fn attach(&mut self, list: &List) {
        let frames = self.carrier.attach(list, None);
        self.outgoing.extend(frames.into_iter().map(Outgoing::Attach));
    }

    /// Queues arguments that do not fit into the shared memory, from there on, behind what they refer to.
    pub(super) fn send_streamed(&mut self, streamed: Arc<Streamed>, from: usize) {
        if let Some(lent) = streamed.lent() {
            self.attach(&[Some(Arc::clone(lent))].into());
        }
        if let Some(list) = &streamed.attachments {
            self.attach(list);
            self.outgoing.push_back(Outgoing::Frame(Carrier::uses_frame(list, None), 0));
        }
        match streamed.lent() {
            Some(lent) => {
                let frame = Carrier::payload_frame(lent, from);
                self.outgoing.push_back(Outgoing::Frame(frame, 0));
            }
            None => self.stream_payload(FrameKind::Payload, streamed, from),
        }
    }

    fn stream_payload(&mut self, kind: FrameKind, streamed: Arc<Streamed>, from: usize) {
        let head = frame::header(kind, (streamed.bytes().len() - from) as u64);
        self.outgoing.push_back(Outgoing::Frame(head.to_vec(), 0));
        self.outgoing.push_back(Outgoing::Payload(streamed, from));
    }

    /// The memory that a job's arguments are in has not arrived: they are sent through the socket, once.
    fn send_again(&mut self, body: &[u8]) -> Result<(), String> {
        let Again { index, generation } =
            codec::decode(body).map_err(|fault| format!("a missing payload: {fault}"))?;
        let sent = self.sent.get_mut(index as usize).and_then(Option::as_mut);
        // It has claimed the job before it asks, so the job is there.
        let sent = sent.filter(|sent| sent.ticket == Ticket { index, generation });
        let sent = sent.filter(|sent| sent.payload == Delivery::Once);
        let sent = sent.ok_or("a payload that is not missing")?;
        let (streamed, from) = sent.entry.streamed().ok_or("a payload that was not attached")?;
        sent.payload = Delivery::Twice;
        self.stream_payload(FrameKind::PayloadAgain, streamed, from);
        self.flush();
        Ok(())
    }

    /// Tells the worker which attachments it need not keep, if it has some of them.
    pub(crate) fn forget(&mut self, numbers: &[u64]) {
        if let Some(frame) = self.carrier.forget(numbers) {
            self.outgoing.push_back(Outgoing::Frame(frame, 0));
            self.flush();
        }
    }

    /// Sends the first outgoing frame, which has descriptors.
    pub(super) fn flush_attach(&mut self) -> Flushed {
        let Some(Outgoing::Attach(frame)) = self.outgoing.pop_front() else {
            return Flushed::On;
        };
        let sent = channel::send_with_fds(self.stream.as_fd(), frame.bytes(), &frame.fds());
        let rest = match sent {
            Ok(sent) => Outgoing::Frame(frame.into_bytes(), sent),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Outgoing::Attach(frame),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.outgoing.push_front(Outgoing::Attach(frame));
                return Flushed::Full;
            }
            Err(error) if is_hangup(&error) => {
                // The worker is gone; its pidfd tells the rest.
                self.outgoing.clear();
                return Flushed::On;
            }
            // Too many descriptors on their way (ETOOMANYREFS, unix(7)), or no memory: the job that needs
            // them learns that they have not come.
            Err(_) => Outgoing::Frame(self.carrier.refused(frame), 0),
        };
        self.outgoing.push_front(rest);
        Flushed::On
    }

    pub(super) fn take_attachments(&mut self, frame: &Frame) {
        let taken = match frame.kind {
            FrameKind::Attach => self.carrier.take_attach(&frame.body).map(drop),
            FrameKind::Uses => self.carrier.take_uses(&frame.body),
            FrameKind::Returned => self.carrier.take_returned(&frame.body),
            FrameKind::Again => self.send_again(&frame.body),
            _ => self.carrier.take_lost(&frame.body),
        };
        if let Err(fault) = taken {
            self.set_fault(&format!("the worker attached what cannot be: {fault}"));
        } else if self.carrier.arrived_count() > USES_MAX {
            self.set_fault("the worker attached more than one result can use");
        }
    }

    pub(super) fn check_descriptors(&mut self) {
        if !self.carrier.is_settled(self.decoder.is_inside_a_frame()) {
            self.set_fault("the worker sent descriptors that it had not announced");
        }
    }

    /// What the payload of this result refers to.
    pub(super) fn attachments_of(&mut self, header: &ResultHeader) -> Option<List> {
        let sent = self.sent.get(header.ticket.index as usize).and_then(Option::as_ref);
        let entry = sent.map(|sent| &sent.entry);
        let list = self.carrier.take_list(entry.and_then(|entry| entry.attachments()));
        let len = self.carrier.arrived_bytes();
        self.carrier.clear_arrived();
        // A worker that keeps the rules has counted them itself.
        if let Some(limit) = entry.and_then(|entry| entry.payload_limit())
            && len > limit
        {
            self.set_fault("the worker attached more than the payload limit allows");
        }
        list
    }
}

fn is_hangup(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}
