//! The pool's end of one worker: the shared memory, the control channel, and the jobs that are there.

mod attaching;
mod pause;
mod standing;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use interprocess::os::unix::uds_local_socket::Stream;
use procpool_sys::channel::{self, Received};
use procpool_sys::limits::current_cpu;
use procpool_sys::mapping::Mapping;
use procpool_wire::block::{
    BlackBox, Block, Body, Claim, Phase, PoolEnd, ResultHeader, TICKETS_MAX, Ticket,
};
use procpool_wire::elements::{self, Kind};
use procpool_wire::frame::{self, Decoder, Frame, FrameKind};

use super::entry::{Completion, Entry, Next, Recorded, StopReason, Streamed};
use crate::attachments::List;
use crate::attachments::carrier::{AttachFrame, Carrier};
use crate::cell::JobCell;
use crate::job_error::EndedBy;
use crate::report::Progress;
use crate::worker::leaked_of;

use attaching::{Flushed, is_of_attachments};
use pause::Paused;
use standing::AtHand;

/// How much work a worker shall have in its hands: long beside the time until the supervisor looks
/// again, short beside what a person would notice.
const WINDOW_NS: u64 = 500_000;
/// Jobs that take longer than this are handed out one at a time: the gap between two costs little.
const LONG_JOB_NS: u64 = 10_000_000;
/// What is assumed of the first job.
const AVERAGE_FIRST_NS: u64 = WINDOW_NS;
/// Weight of the last job in the running average: 1/8.
const AVERAGE_SHIFT: u32 = 3;
/// Records read before others get their turn.
const RECORDS_AT_ONCE: usize = 256;

/// The detail of a death for which something else can hardly be the cause.
const SCRIBBLED: &str = "the worker scribbled over the shared memory";

/// The slot of a process that fills none, or not yet.
const NO_SLOT: usize = usize::MAX;

/// A job at a worker.
struct Sent {
    entry: Entry,
    ticket: Ticket,
    stopping: Option<StopReason>,
    payload: Delivery,
}

/// How often arguments that are too long for the shared memory were sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Delivery {
    Once,
    /// The memory that they are in did not arrive, so they came over the socket as well.
    Twice,
}

/// Bytes that wait to be written to the control channel.
enum Outgoing {
    Frame(Vec<u8>, usize),
    Payload(Arc<Streamed>, usize),
    Attach(AttachFrame),
}

/// Whether new jobs may be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Intake {
    Open,
    /// It is being stopped or retired.
    Shut,
    /// The worker takes none any more, of its own accord: never opened again.
    Leaving,
}

pub(crate) struct PoolChannel {
    pub(crate) slot: usize,
    pub(crate) pid: u32,
    end: PoolEnd<Mapping>,
    stream: Stream,
    decoder: Decoder,
    outgoing: VecDeque<Outgoing>,
    carrier: Carrier,
    sent: Vec<Option<Sent>>,
    free: Vec<u32>,
    /// Tickets in the order in which they were sent; those whose job has left are skipped.
    order: VecDeque<Ticket>,
    generation: u32,
    in_flight: usize,
    average_ns: u64,
    /// Jobs that the average is of, as far as that matters.
    measured: u32,
    at_hand: AtHand,
    /// How soon after its start one of the jobs since the worker was last without can reach a limit.
    first_look: Option<Duration>,
    paused: Option<Paused>,
    pub(crate) intake: Intake,
    /// Jobs that may still be sent to this worker.
    quota: Option<u64>,
    pub(crate) jobs_done: u64,
    /// A result whose bytes are still to come on the control channel.
    awaiting: Option<(ResultHeader, Kind, u64)>,
    /// How the worker broke the rules.
    pub(crate) fault: Option<String>,
    body: Vec<u8>,
}

/// What reading from a worker has brought.
#[derive(Default)]
pub(crate) struct Harvest {
    pub(crate) completions: Vec<Completion>,
    pub(crate) requeue: Vec<Entry>,
    /// The job that was asked to stop has returned.
    pub(crate) returned: bool,
    /// More is waiting.
    pub(crate) more: bool,
    /// Anything came at all.
    pub(crate) any: bool,
}

impl Harvest {
    /// Hands over the jobs that have ended, in most cases all at once.
    pub(crate) fn move_completions(self, to: &mut Vec<Completion>) {
        if to.is_empty() {
            *to = self.completions;
        } else {
            to.extend(self.completions);
        }
    }

    fn take(&mut self, next: Next) {
        match next {
            Next::Complete(completion) => self.completions.push(completion),
            // A job that has come back has killed nobody, so there is no retry among these.
            Next::Requeue(entry) | Next::Retry(entry) => self.requeue.push(entry),
        }
    }
}

/// What the end of a control channel means.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Link {
    Open,
    Closed,
}

impl PoolChannel {
    pub(crate) fn new(memory: Mapping, fd: OwnedFd, quota: Option<u64>) -> PoolChannel {
        let end = PoolEnd::new(Block::new(memory));
        end.want_bell(true);
        PoolChannel {
            slot: NO_SLOT,
            pid: 0,
            end,
            stream: Stream::from(UnixStream::from(fd)),
            decoder: Decoder::default(),
            outgoing: VecDeque::new(),
            carrier: Carrier::default(),
            sent: Vec::new(),
            free: Vec::new(),
            order: VecDeque::new(),
            generation: 0,
            in_flight: 0,
            average_ns: AVERAGE_FIRST_NS,
            measured: 0,
            at_hand: AtHand::Usual,
            first_look: None,
            paused: None,
            intake: Intake::Open,
            quota,
            jobs_done: 0,
            awaiting: None,
            fault: None,
            body: Vec::new(),
        }
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// How long jobs have been taking here.
    pub(crate) fn average_ns(&self) -> u64 {
        self.average_ns
    }

    /// Changes with each job that is sent.
    pub(crate) fn generation(&self) -> u32 {
        self.generation
    }

    /// True if the worker has run all the jobs it shall, and has none.
    pub(crate) fn is_spent(&self) -> bool {
        (self.quota == Some(0) || self.intake == Intake::Leaving) && self.in_flight == 0
    }

    /// True if the worker has run as many jobs as it was told to, and so exits by itself.
    pub(crate) fn has_had_all(&self) -> bool {
        self.quota == Some(0) && self.in_flight == 0
    }

    /// How many more jobs the worker should get now, so that it neither runs dry nor hoards.
    pub(crate) fn room(&self) -> usize {
        if self.intake != Intake::Open {
            return 0;
        }
        let window = match self.average_ns {
            average if average > LONG_JOB_NS || self.at_hand == AtHand::Long => 1,
            average => (2 + (WINDOW_NS / average.max(1)) as usize).min(TICKETS_MAX),
        };
        let quota =
            self.quota.map_or(usize::MAX, |quota| usize::try_from(quota).unwrap_or(usize::MAX));
        window.saturating_sub(self.in_flight).min(quota)
    }

    /// Hands a job to the worker. It comes back if the shared memory is full. Call [`wake`](Self::wake)
    /// after the last of several.
    pub(crate) fn send(&mut self, entry: Entry) -> Result<Ticket, Entry> {
        let index = match self.free.pop() {
            Some(index) => index,
            None if self.sent.len() < TICKETS_MAX => {
                self.sent.push(None);
                self.sent.len() as u32 - 1
            }
            None => return Err(entry),
        };
        // Never zero, which is the generation of a word that was never used.
        self.generation = self.generation.wrapping_add(1).max(1);
        let ticket = Ticket { index, generation: self.generation };
        let (header, elements) = entry.to_send(ticket);
        let name = match &entry.target {
            super::entry::WireTarget::Offset(..) => &[],
            super::entry::WireTarget::Named(named) => named.0.as_bytes(),
        };
        let streamed = entry.streamed();
        let sent = match &streamed {
            None => self.end.send(&header, name, Body::Inline, elements),
            Some((streamed, from)) => {
                let len = streamed.bytes().len() - from;
                self.end.send(&header, name, Body::Streamed(len as u64), &[])
            }
        };
        if sent != Ok(true) {
            if sent.is_err() {
                self.set_fault(SCRIBBLED);
            }
            self.free.push(index);
            return Err(entry);
        }
        if let Some((streamed, from)) = streamed {
            self.send_streamed(streamed, from);
        }
        if let Some(after) = entry.first_look() {
            self.first_look = Some(self.first_look.map_or(after, |first| first.min(after)));
        }
        let sent = Sent { entry, ticket, stopping: None, payload: Delivery::Once };
        self.sent[index as usize] = Some(sent);
        self.order.push_back(ticket);
        self.in_flight += 1;
        if let Some(quota) = &mut self.quota {
            *quota -= 1;
        }
        Ok(ticket)
    }

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

    /// Reads results from the shared memory, up to a batch.
    pub(crate) fn read_results(&mut self, harvest: &mut Harvest) {
        self.read_some_results(harvest, RECORDS_AT_ONCE);
    }

    /// The same, up to so many.
    pub(crate) fn read_some_results(&mut self, harvest: &mut Harvest, records: usize) {
        for _ in 0..records {
            if self.awaiting.is_some() || self.fault.is_some() {
                harvest.more = false;
                return;
            }
            let mut body = std::mem::take(&mut self.body);
            body.clear();
            let next = self.end.next_results(&mut body);
            match next {
                Ok(None) => {
                    self.body = body;
                    harvest.more = false;
                    return;
                }
                Ok(Some((header, Body::Inline))) => {
                    harvest.any = true;
                    self.take_record(&header, Recorded::Elements(&body), None, harvest);
                }
                Ok(Some((header, Body::Streamed(len)))) => {
                    harvest.any = true;
                    let word = body.first_chunk().map_or(0, |head| u64::from_le_bytes(*head));
                    match elements::parse_header(word) {
                        Some((kind, _)) => self.awaiting = Some((header, kind, len)),
                        None => self.set_fault(SCRIBBLED),
                    }
                }
                Err(_corrupt) => self.set_fault(SCRIBBLED),
            }
            self.body = body;
        }
        harvest.more = true;
    }

    fn take_record(
        &mut self,
        header: &ResultHeader,
        recorded: Recorded<'_>,
        attachments: Option<List>,
        harvest: &mut Harvest,
    ) {
        let index = header.ticket.index as usize;
        let claimed = self.end.block().claim(header.ticket) == Some(Claim::Claimed);
        let slot = self.sent.get_mut(index);
        let Some(sent) =
            slot.and_then(Option::as_mut).filter(|sent| claimed && sent.ticket == header.ticket)
        else {
            return self.set_fault("the worker sent a result for a job that it had not started");
        };
        let entry = &mut sent.entry;
        let ends = header.count == entry.remaining();
        if header.first != entry.done() || header.count > entry.remaining() || header.last && !ends
        {
            return self.set_fault("the worker sent results out of order");
        }
        let elements = u64::from(header.count.max(1));
        let each = (header.ran_ns / elements).saturating_mul(u64::from(entry.remaining().max(1)));
        // The first ones count for as much as those to come would: nothing was known before them.
        let shift = self.measured.min(AVERAGE_SHIFT);
        self.measured = shift + 1;
        self.average_ns = self.average_ns - (self.average_ns >> shift) + (each >> shift);
        self.at_hand = AtHand::Usual;
        if header.leaving {
            self.intake = Intake::Leaving;
        }
        let leaked = header.leaked.then(|| self.end.block().leak(header.ticket)).flatten();
        let leaked = leaked.map(|bytes| Box::new(leaked_of(&bytes)));
        // The usual case, without a copy in between.
        if entry.is_single() && header.count == 1 && sent.stopping.is_none() {
            let report = entry.report(self.pid, self.slot, header, leaked);
            let sent = self.remove(index);
            return match sent.entry.complete_single(recorded, attachments, report) {
                Some(completion) => harvest.completions.push(completion),
                None => self.set_fault(SCRIBBLED),
            };
        }
        entry.note_run(self.pid, self.slot, header, leaked);
        match recorded.elements() {
            Some(elements) => self.take_elements(index, header, &elements, attachments, harvest),
            None => self.set_fault("no memory for the worker's result"),
        }
    }

    fn take_elements(
        &mut self,
        index: usize,
        header: &ResultHeader,
        recorded: &[u8],
        attachments: Option<List>,
        harvest: &mut Harvest,
    ) {
        let sent = self.sent[index].as_mut().expect("the caller has looked at this job");
        match sent.stopping {
            None => {
                if !sent.entry.record(header.count, recorded, attachments) {
                    return self.set_fault(SCRIBBLED);
                }
                if header.last {
                    let sent = self.remove(index);
                    harvest.take(sent.entry.next());
                }
            }
            Some(reason) if header.last || header.given_back => {
                self.take_stopped(index, header, recorded, reason, harvest);
            }
            // It has not seen the request yet.
            Some(_) => {
                if !sent.entry.record(header.count, recorded, attachments) {
                    self.set_fault(SCRIBBLED);
                }
            }
        }
    }

    /// The last record of a job that was asked to stop: the last element in it is the one that was asked.
    fn take_stopped(
        &mut self,
        index: usize,
        header: &ResultHeader,
        recorded: &[u8],
        reason: StopReason,
        harvest: &mut Harvest,
    ) {
        let sent = self.sent[index].as_mut().expect("the caller has looked at this job");
        let before = header.count.saturating_sub(1);
        let Some(rest) = elements::skip(recorded, before as usize) else {
            return self.set_fault(SCRIBBLED);
        };
        if before > 0 && !sent.entry.record(before, &recorded[..recorded.len() - rest.len()], None)
        {
            return self.set_fault(SCRIBBLED);
        }
        harvest.returned = true;
        let entry = self.remove(index).entry;
        harvest.take(match header.count {
            // The request came between two elements.
            0 => entry.stopped_between(reason),
            _ => entry.stopped(reason, EndedBy::Itself),
        });
    }

    /// Takes a job off the books.
    fn remove(&mut self, index: usize) -> Sent {
        let sent = self.sent[index].take().expect("the caller has looked at this job");
        self.free.push(index as u32);
        self.in_flight -= 1;
        self.jobs_done += 1;
        if let Some((fraction, message)) = self.end.block().progress(sent.ticket) {
            sent.entry.cell.set_progress(Progress { fraction, message });
        }
        if self.in_flight == 0 {
            self.order.clear();
            self.first_look = None;
        }
        while let Some(first) = self.order.front()
            && self.sent[first.index as usize].as_ref().is_none_or(|sent| sent.ticket != *first)
        {
            self.order.pop_front();
        }
        sent
    }

    fn set_fault(&mut self, fault: &str) {
        self.fault.get_or_insert_with(|| fault.to_owned());
    }

    /// Takes back the job of a ticket, if the worker has not started it.
    pub(crate) fn revoke(&mut self, ticket: Ticket) -> Option<Entry> {
        let sent = self.sent.get(ticket.index as usize)?.as_ref()?;
        if sent.ticket != ticket || !self.end.revoke(ticket) {
            return None;
        }
        let sent = self.remove(ticket.index as usize);
        // It was not one of this worker's jobs after all.
        self.jobs_done -= 1;
        if let Some(quota) = &mut self.quota {
            *quota += 1;
        }
        Some(sent.entry)
    }

    /// Takes back up to `count` jobs that the worker has not started, the last ones first.
    pub(crate) fn revoke_last(&mut self, count: usize) -> Vec<Entry> {
        let tickets: Vec<Ticket> = self.order.iter().rev().copied().collect();
        tickets.into_iter().filter_map(|ticket| self.revoke(ticket)).take(count).collect()
    }

    /// Takes back the jobs of lower priority that the worker has not started.
    pub(crate) fn revoke_below(&mut self, priority: i32) -> Vec<Entry> {
        let lower = |ticket: &Ticket| {
            self.sent[ticket.index as usize]
                .as_ref()
                .is_some_and(|sent| sent.ticket == *ticket && sent.entry.cell.priority < priority)
        };
        let tickets: Vec<Ticket> = self.order.iter().copied().filter(lower).collect();
        tickets.into_iter().filter_map(|ticket| self.revoke(ticket)).collect()
    }

    /// The jobs behind the worker's first, which counts as started: it is, or will be in microseconds.
    fn behind(&self) -> impl Iterator<Item = &Sent> {
        let in_order = self.order.iter().filter_map(|ticket| {
            let sent = self.sent[ticket.index as usize].as_ref()?;
            (sent.ticket == *ticket).then_some(sent)
        });
        in_order.skip(1).filter(|sent| self.claim(sent.ticket) == Some(Claim::Sent))
    }

    /// The highest priority among the jobs that wait behind another one.
    pub(crate) fn highest_behind(&self) -> Option<i32> {
        self.behind().map(|sent| sent.entry.cell.priority).max()
    }

    /// Takes back the jobs of higher priority that wait behind another one.
    pub(crate) fn revoke_above(&mut self, priority: i32) -> Vec<Entry> {
        let higher = |sent: &&Sent| sent.entry.cell.priority > priority;
        let tickets: Vec<Ticket> = self.behind().filter(higher).map(|sent| sent.ticket).collect();
        tickets.into_iter().filter_map(|ticket| self.revoke(ticket)).collect()
    }

    /// The job of a ticket.
    pub(crate) fn cell_of(&self, ticket: Ticket) -> Option<&JobCell> {
        let sent = self.sent.get(ticket.index as usize)?.as_ref()?;
        Some(&sent.entry.cell)
    }

    /// The ticket at this index, if it is this job's.
    pub(crate) fn ticket_of(&self, index: u32, cell: &Arc<JobCell>) -> Option<Ticket> {
        let sent = self.sent.get(index as usize)?.as_ref()?;
        Arc::ptr_eq(&sent.entry.cell, cell).then_some(sent.ticket)
    }

    /// The claim of a ticket.
    pub(crate) fn claim(&self, ticket: Ticket) -> Option<Claim> {
        self.end.block().claim(ticket)
    }

    /// The job that the worker has started and not ended.
    pub(crate) fn running(&self) -> Option<(Ticket, &Entry, Option<StopReason>, BlackBox)> {
        let black_box = self.end.block().black_box();
        let sent = self.sent.get(black_box.ticket.index as usize)?.as_ref()?;
        (sent.ticket == black_box.ticket && self.claim(sent.ticket) == Some(Claim::Claimed))
            .then_some((sent.ticket, &sent.entry, sent.stopping, black_box))
    }

    /// How many of the worker's jobs have started.
    pub(crate) fn claimed(&self) -> usize {
        self.sent
            .iter()
            .flatten()
            .filter(|sent| self.claim(sent.ticket) == Some(Claim::Claimed))
            .count()
    }

    /// No job here can reach a limit sooner after its start than this.
    pub(crate) fn first_look_ns(&self) -> Option<u64> {
        self.first_look.map(|after| u64::try_from(after.as_nanos()).unwrap_or(u64::MAX))
    }

    /// What CPU time the worker had used when it began the current element of a job that has a limit on it.
    pub(crate) fn cpu_at_start(&self, ticket: Ticket) -> Option<u64> {
        self.end.block().cpu_at_start(ticket)
    }

    /// Marks a started job as being stopped, and tells it so.
    pub(crate) fn stop(&mut self, ticket: Ticket, reason: StopReason) {
        if let Some(sent) = self.sent.get_mut(ticket.index as usize).and_then(Option::as_mut) {
            // The first reason stands, but an abort overtakes a timeout that has not ended it.
            if sent.stopping.is_none() || reason == StopReason::Abort {
                sent.stopping = Some(reason);
            }
            self.end.block().ask_to_stop(ticket);
        }
    }

    /// After a fork server's death: its last child, the `number`th, if that was born.
    pub(crate) fn newborn(&self, number: u64) -> Option<u32> {
        self.end.block().newborn(number)
    }

    /// The process at the other end is there, and fills this slot; it shall run on this CPU, if it does not know.
    pub(crate) fn move_in(&mut self, slot: usize, pid: u32, cpu: Option<u32>) {
        (self.slot, self.pid) = (slot, pid);
        self.end.block().set_slot(slot as u32, cpu);
    }

    /// The progress that the job of a ticket has reported.
    pub(crate) fn progress(&self, ticket: Ticket) -> Option<Progress> {
        let (fraction, message) = self.end.block().progress(ticket)?;
        Some(Progress { fraction, message })
    }

    /// After the worker's death: the record of the panic that ended it.
    pub(crate) fn fatal_panic(&self, ticket: Ticket) -> Option<Vec<u8>> {
        self.end.block().fatal_panic(ticket)
    }

    /// After the worker's death, with every published result read: takes up what it had finished but
    /// not published, and gives up all its jobs, in the order in which they were sent. With each, what
    /// became of it.
    pub(crate) fn bury(mut self) -> Vec<(Entry, Ticket, Fate)> {
        let black_box = self.end.block().black_box();
        let mut recovered = Vec::new();
        let count = if self.awaiting.is_none() { self.end.recover(&mut recovered) } else { 0 };
        let mut fates = Vec::new();
        let order: Vec<Ticket> = self.order.iter().copied().collect();
        for ticket in order {
            let Some(sent) = self.sent[ticket.index as usize].take_if(|sent| sent.ticket == ticket)
            else {
                continue;
            };
            let Sent { mut entry, stopping, .. } = sent;
            if self.end.revoke(ticket) {
                fates.push((entry, ticket, Fate::NotStarted));
                continue;
            }
            let current = black_box.ticket == ticket;
            if current && count > 0 {
                let header = ResultHeader {
                    ticket,
                    first: entry.done(),
                    count,
                    started_ns: black_box.started_ns,
                    ran_ns: 0,
                    last: false,
                    given_back: false,
                    leaked: false,
                    leaving: false,
                    usage: None,
                };
                // What does not fit the job is not recovered; the worker may have scribbled anything.
                if entry.record(count, &recovered, None) {
                    entry.note_run(self.pid, self.slot, &header, None);
                }
            }
            let fate = if entry.remaining() == 0 {
                Fate::Finished
            } else if current && entry.done() > 0 && between_elements(&black_box, &entry) {
                // Elements were run, and the next one was not begun: nobody is to blame.
                Fate::NotStarted
            } else {
                Fate::Culprit { black_box, stopping }
            };
            fates.push((entry, ticket, fate));
        }
        fates
    }
}

/// True if the element after the last one with an outcome was not begun.
fn between_elements(black_box: &BlackBox, entry: &Entry) -> bool {
    black_box.element + 1 == entry.done() && matches!(black_box.phase, Phase::Send | Phase::Drop)
}

/// What became of a job whose worker has died.
pub(crate) enum Fate {
    /// It can run elsewhere.
    NotStarted,
    /// All its elements have outcomes.
    Finished,
    /// It was running.
    Culprit { black_box: BlackBox, stopping: Option<StopReason> },
}
