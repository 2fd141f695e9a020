//! The pool's end of one worker: the shared memory, the control channel, and the jobs that are there.

mod attaching;
mod burial;
mod frames;
mod pause;
mod results;
mod revoking;
mod standing;

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use interprocess::os::unix::uds_local_socket::Stream;
use procpool_sys::mapping::Mapping;
use procpool_sys::spawn::Exit;
use procpool_wire::block::{
    BlackBox, Block, Body, ChildEnd, Claim, PoolEnd, ResultHeader, TICKETS_MAX, Ticket,
};
use procpool_wire::elements::Kind;
use procpool_wire::frame::Decoder;
use procpool_wire::handshake::Runs;

use super::entry::{Entry, EntryBox, StopReason};
use crate::attachments::carrier::Carrier;
use crate::cell::JobCell;
use crate::report::Progress;

pub(crate) use burial::Fate;
pub(crate) use frames::Link;
use frames::Outgoing;
use pause::Paused;
pub(crate) use results::Harvest;
use standing::AtHand;

/// How much work a worker shall have in its hands: long beside the time until the supervisor looks
/// again, short beside what a person would notice.
const WINDOW_NS: u64 = 500_000;
/// Jobs that take longer than this are handed out one at a time: the gap between two costs little.
const LONG_JOB_NS: u64 = 10_000_000;
/// What a process of its own costs a job, about, beyond what the job says that it took.
const CHILD_NS: u64 = 100_000;
/// What is assumed of the first job.
const AVERAGE_FIRST_NS: u64 = WINDOW_NS;

/// The detail of a death for which something else can hardly be the cause.
const SCRIBBLED: &str = "the worker scribbled over the shared memory";

/// The slot of a process that fills none, or not yet.
const NO_SLOT: usize = usize::MAX;

/// A job at a worker.
struct Sent {
    entry: EntryBox,
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
    runs: Runs,
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

impl PoolChannel {
    pub(crate) fn new(memory: Mapping, fd: OwnedFd, quota: Option<u64>, runs: Runs) -> PoolChannel {
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
            runs,
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
    pub(crate) fn send(&mut self, entry: EntryBox) -> Result<Ticket, EntryBox> {
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
            .then_some((sent.ticket, &*sent.entry, sent.stopping, black_box))
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

    /// Whether the worker has a child for each of its jobs.
    pub(crate) fn forks_children(&self) -> bool {
        self.runs == Runs::InChildren
    }

    /// The process that runs the job at hand.
    pub(crate) fn pid_of_job(&self) -> u32 {
        match (self.runs, self.end.block().child()) {
            (Runs::Here, _) | (_, 0) => self.pid,
            (Runs::InChildren, child) => child,
        }
    }

    /// After the worker's death: how the child ended for which it died.
    pub(crate) fn child_exit(&self) -> Option<Exit> {
        let end = self.end.block().child_end().filter(|_| self.runs == Runs::InChildren)?;
        Some(match end {
            ChildEnd::Code(code) => Exit::Code(code),
            ChildEnd::Signal(signal, core) => Exit::Signal(signal, core),
        })
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
}
