//! One end of a control channel, as far as attachments go: what the other end has of ours, and what came
//! from it. The same for pool and worker.
//!
//! Descriptors arrive with the first byte of the frame that they were sent with, and a read ends with the
//! message that had some. So there is one batch of them for each `Attach` frame, in order, and none is left
//! once a frame is complete. What came is looked at before it is used: a worker's word is worth nothing.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::mem;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use procpool_sys::channel::FDS_MAX;
use procpool_sys::sealed::Sealed;
use procpool_wire::attach::{Attach, Carried, Forget, Name, PayloadAt, Record, USES_MAX, Uses};
use procpool_wire::codec;
use procpool_wire::frame::{self, FrameKind};

use super::regions::Region;
use super::{Attachment, Forgets, List, find};

/// A number that no attachment has.
const NOBODY: u64 = 0;

/// Without hash maps: a fork server has one, and the thread that makes the first has its keys from then on, as have
/// all workers that are forked off it and run their jobs there.
#[derive(Default)]
pub(crate) struct Carrier {
    /// Ours that the other end has.
    known: BTreeSet<u64>,
    /// Ours that the other end may have mapped.
    leases: Leases,
    /// At a worker's end: theirs that this process has mapped no more. Only a worker may be lent anything.
    returns: Option<Arc<Returns>>,
    /// Who is told when one of them is held by nobody any more.
    who: Option<Weak<dyn Forgets>>,
    batches: VecDeque<Batch>,
    /// Theirs, by their numbers. `None`: lost on the way.
    arrived: BTreeMap<u64, Option<Arc<Attachment>>>,
    /// What the next payload refers to.
    uses: Option<Vec<Name>>,
}

/// Regions that were lent, by the numbers of their attachments. Whoever is at the other end has said of none of
/// them that it has given it back, so none of them is used again if that end is gone.
#[derive(Default)]
struct Leases(BTreeMap<u64, Arc<Region>>);

impl Drop for Leases {
    fn drop(&mut self) {
        self.0.values().for_each(|region| region.spoil());
    }
}

/// What a worker has to say that it has given back.
type Returns = Mutex<Vec<u64>>;

/// At its end one attachment has been given back.
pub(super) struct Return {
    /// Those of the channel that it came over: a forked worker has attachments of its server's, which are not
    /// its own to give back.
    returns: Arc<Returns>,
    number: u64,
}

impl Drop for Return {
    fn drop(&mut self) {
        self.returns.lock().unwrap_or_else(PoisonError::into_inner).push(self.number);
    }
}

/// Descriptors that came with one message.
struct Batch {
    fds: Vec<OwnedFd>,
    /// There were more.
    lost: bool,
}

/// An `Attach` frame to be sent, with what must live until then.
pub(crate) struct AttachFrame {
    bytes: Vec<u8>,
    records: Vec<Record>,
    attachments: Vec<Arc<Attachment>>,
}

impl AttachFrame {
    fn new(records: Vec<Record>, attachments: Vec<Arc<Attachment>>) -> AttachFrame {
        let attach = Attach { carried: Carried::Yes, records };
        AttachFrame {
            bytes: frame_of(FrameKind::Attach, &attach),
            records: attach.records,
            attachments,
        }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(crate) fn fds(&self) -> Vec<BorrowedFd<'_>> {
        self.attachments.iter().filter_map(|attachment| attachment.fd()).collect()
    }

    /// The descriptors are on their way; what is left is bytes.
    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

fn frame_of<T: serde::Serialize>(kind: FrameKind, body: &T) -> Vec<u8> {
    let mut bytes = Vec::new();
    // Numbers always encode.
    let _ = codec::encode_into(body, None, &mut bytes);
    frame::frame(kind, &bytes)
}

// ---- sending ---------------------------------------------------------------------------------------

impl Carrier {
    /// A worker's end.
    pub(crate) fn of_worker() -> Carrier {
        Carrier { returns: Some(Arc::default()), ..Carrier::default() }
    }

    /// Has `who` told of what the other end need not keep.
    pub(crate) fn set_who(&mut self, who: Weak<dyn Forgets>) {
        self.who = Some(who);
    }

    /// The frames that bring what `list` has and the other end has not. Those that `theirs` has came from
    /// there.
    pub(crate) fn attach(&mut self, list: &List, theirs: Option<&List>) -> Vec<AttachFrame> {
        let mut wanted = Vec::new();
        for attachment in list.iter().flatten() {
            if theirs.is_none_or(|theirs| find(theirs, attachment.number).is_none()) {
                self.want(attachment, &mut wanted);
            }
        }
        let mut frames = Vec::new();
        let (mut records, mut attachments, mut uses) = (Vec::new(), Vec::new(), 0);
        for (record, attachment) in wanted {
            if records.len() == FDS_MAX || uses + record.uses.len() > USES_MAX {
                frames.push(AttachFrame::new(
                    std::mem::take(&mut records),
                    std::mem::take(&mut attachments),
                ));
                uses = 0;
            }
            uses += record.uses.len();
            records.push(record);
            attachments.push(attachment);
        }
        if !records.is_empty() {
            frames.push(AttachFrame::new(records, attachments));
        }
        frames
    }

    /// Puts the attachment behind those that it refers to.
    fn want(
        &mut self,
        attachment: &Arc<Attachment>,
        wanted: &mut Vec<(Record, Arc<Attachment>)>,
    ) -> u64 {
        // Without a descriptor to pass on it does not arrive, and what refers to it says so.
        let Some(attachment) = attachment.to_pass_on() else {
            return NOBODY;
        };
        let number = attachment.number;
        if self.known.insert(number) {
            let uses = attachment.uses.iter();
            let uses = uses.map(|inner| inner.as_ref().map_or(NOBODY, |i| self.want(i, wanted)));
            let uses = uses.collect();
            if let Some(who) = &self.who {
                attachment.tell(who);
            }
            if let Some(region) = attachment.region() {
                self.leases.0.insert(number, Arc::clone(region));
            }
            let len = attachment.len() as u64;
            wanted.push((Record { number, len, uses }, attachment));
        }
        number
    }

    /// What the places of `list` are called where `attach` has brought them.
    pub(crate) fn numbers(list: &List) -> Vec<u64> {
        let number = |attachment: &Option<Arc<Attachment>>| {
            attachment.as_ref().and_then(Attachment::to_pass_on).map_or(NOBODY, |a| a.number)
        };
        list.iter().map(number).collect()
    }

    /// The frame that says what the places of `list` stand for.
    pub(crate) fn uses_frame(list: &List, theirs: Option<(&Carrier, &List)>) -> Vec<u8> {
        let name = |attachment: &Option<Arc<Attachment>>| match attachment {
            None => Name::Mine(NOBODY),
            Some(ours) => match theirs {
                Some((carrier, list)) if find(list, ours.number).is_some() => {
                    Name::Yours(carrier.their_number(ours.number))
                }
                _ => Name::Mine(ours.number),
            },
        };
        frame_of(FrameKind::Uses, &Uses(list.iter().map(name).collect()))
    }

    fn their_number(&self, ours: u64) -> u64 {
        let mut arrived = self.arrived.iter();
        let found = arrived.find(|(_, a)| a.as_ref().is_some_and(|a| a.number == ours));
        found.map_or(NOBODY, |(theirs, _)| *theirs)
    }

    /// The frame to send in place of one whose descriptors the kernel would not pass on. What came in them
    /// is lost, and will be attached again when it is used next.
    pub(crate) fn refused(&mut self, frame: AttachFrame) -> Vec<u8> {
        for record in &frame.records {
            self.not_arrived(record.number);
        }
        frame_of(FrameKind::Attach, &Attach { carried: Carried::Refused, records: frame.records })
    }

    /// It is attached again when it is used next.
    fn not_arrived(&mut self, number: u64) {
        self.known.remove(&number);
        self.leases.0.remove(&number);
    }

    /// The frame that tells the pool what is not mapped here any more; `None` if there is nothing new.
    pub(crate) fn returned_frame(&self) -> Option<Vec<u8>> {
        let mut returns = self.returns.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner);
        let numbers = mem::take(&mut *returns);
        (!numbers.is_empty()).then(|| frame_of(FrameKind::Returned, &Forget(numbers)))
    }

    /// The frame that says where a payload is that was attached.
    pub(crate) fn payload_frame(attachment: &Attachment, from: usize) -> Vec<u8> {
        let at = PayloadAt { number: attachment.number, from: from as u64 };
        frame_of(FrameKind::PayloadAt, &at)
    }

    /// The other end has nothing of ours any more: in a worker, after each payload.
    pub(crate) fn is_not_known(&mut self) {
        self.known.clear();
    }

    /// The frame that tells the other end which of ours it need not keep; `None` if it has none of them.
    pub(crate) fn forget(&mut self, numbers: &[u64]) -> Option<Vec<u8>> {
        let numbers: Vec<u64> =
            numbers.iter().copied().filter(|number| self.known.remove(number)).collect();
        (!numbers.is_empty()).then(|| frame_of(FrameKind::Forget, &Forget(numbers)))
    }

    /// The frame that tells the other end which of its own were lost on the way.
    pub(crate) fn lost_frame(numbers: Vec<u64>) -> Vec<u8> {
        frame_of(FrameKind::Forget, &Forget(numbers))
    }
}

// ---- receiving -------------------------------------------------------------------------------------

impl Carrier {
    /// Takes the descriptors that came with a read.
    pub(crate) fn take_descriptors(&mut self, fds: Vec<OwnedFd>, lost: bool) {
        if !fds.is_empty() || lost {
            self.batches.push_back(Batch { fds, lost });
        }
    }

    /// The descriptors that came with the first frame, which has its own way with them.
    pub(crate) fn first_descriptors(&mut self) -> Vec<OwnedFd> {
        self.batches.pop_front().map(|batch| batch.fds).unwrap_or_default()
    }

    /// False if descriptors are left that no frame has announced. To be asked after each read.
    pub(crate) fn is_settled(&self, is_inside_a_frame: bool) -> bool {
        self.batches.len() <= usize::from(is_inside_a_frame)
    }

    /// Takes the body of an `Attach` frame; answers the numbers of those that were lost on the way.
    pub(crate) fn take_attach(&mut self, body: &[u8]) -> Result<Vec<u64>, String> {
        let Attach { carried, records } =
            codec::decode(body).map_err(|fault| format!("an attachment's frame: {fault}"))?;
        let batch = match carried {
            Carried::Refused => Batch { fds: Vec::new(), lost: true },
            Carried::Yes => self.batches.pop_front().ok_or("attachments without descriptors")?,
        };
        let (announced, came) = (records.len(), batch.fds.len());
        if came > announced || came < announced && !batch.lost {
            return Err(format!("{came} descriptors where {announced} were announced"));
        }
        let mut lost = Vec::new();
        let mut fds = batch.fds.into_iter();
        for Record { number, len, uses } in records {
            let uses =
                uses.iter().map(|inner| self.arrived.get(inner).cloned().flatten()).collect();
            let attachment = match fds.next() {
                None => None,
                // Where there is no room for another mapping it is as good as lost.
                Some(fd) => self.receive(fd, number, len, uses)?,
            };
            if attachment.is_none() {
                lost.push(number);
            }
            self.arrived.insert(number, attachment);
        }
        Ok(lost)
    }

    fn receive(
        &self,
        fd: OwnedFd,
        number: u64,
        len: u64,
        uses: List,
    ) -> Result<Option<Arc<Attachment>>, String> {
        let refused = |error: io::Error| error.to_string();
        let Some(returns) = &self.returns else {
            let sealed = Sealed::check(fd, len).map_err(refused)?;
            return Ok(Attachment::received(sealed, uses).ok());
        };
        let sealed = Sealed::check_lent(fd, len).map_err(refused)?;
        if !sealed.is_lent() {
            return Ok(Attachment::received(sealed, uses).ok());
        }
        let Ok(mapping) = sealed.map() else {
            return Ok(None);
        };
        // Not before it is mapped: one that is lost is not given back, since the pool attaches it anew.
        let back = Return { returns: Arc::clone(returns), number };
        Ok(Some(Attachment::borrowed(mapping, uses, back)))
    }

    /// Takes the body of a `Uses` frame.
    pub(crate) fn take_uses(&mut self, body: &[u8]) -> Result<(), String> {
        let Uses(names) =
            codec::decode(body).map_err(|fault| format!("an attachment's use: {fault}"))?;
        if names.len() > USES_MAX {
            return Err(format!("{} uses of attachments in one payload", names.len()));
        }
        self.uses = Some(names);
        Ok(())
    }

    /// Takes the body of a `Forget` frame from a worker: what it could not keep is attached anew when it is
    /// used next.
    pub(crate) fn take_lost(&mut self, body: &[u8]) -> Result<(), String> {
        let Forget(numbers) =
            codec::decode(body).map_err(|fault| format!("a lost attachment: {fault}"))?;
        numbers.into_iter().for_each(|number| self.not_arrived(number));
        Ok(())
    }

    /// Takes the body of a `Returned` frame: what the worker has mapped no more can be used again. One that says so
    /// of what it has mapped will see what other jobs are given; it can change nothing.
    pub(crate) fn take_returned(&mut self, body: &[u8]) -> Result<(), String> {
        let Forget(numbers) =
            codec::decode(body).map_err(|fault| format!("a returned attachment: {fault}"))?;
        for number in numbers {
            self.leases.0.remove(&number);
        }
        Ok(())
    }

    /// The payload that a frame says is attached; `None` if that has not arrived.
    pub(crate) fn payload_at(
        &self,
        body: &[u8],
    ) -> Result<Option<(Arc<Attachment>, usize)>, String> {
        let PayloadAt { number, from } =
            codec::decode(body).map_err(|fault| format!("a payload's place: {fault}"))?;
        let attachment = self.arrived.get(&number).cloned().flatten();
        Ok(attachment.map(|attachment| (attachment, from as usize)))
    }

    /// Takes the body of a `Forget` frame from a pool: gives back what need not be kept.
    pub(crate) fn take_forgotten(&mut self, body: &[u8]) -> Vec<Arc<Attachment>> {
        let Forget(numbers) = codec::decode(body).unwrap_or(Forget(Vec::new()));
        numbers.iter().filter_map(|number| self.arrived.remove(number).flatten()).collect()
    }

    /// What the payload that has just come refers to; those by our own numbers are among `ours`.
    pub(crate) fn take_list(&mut self, ours: Option<&List>) -> Option<List> {
        let names = self.uses.take()?;
        let resolve = |name| match name {
            Name::Mine(number) => self.arrived.get(&number).cloned().flatten(),
            Name::Yours(number) => ours.and_then(|list| find(list, number)).cloned(),
        };
        Some(names.into_iter().map(resolve).collect())
    }

    /// What came under these numbers; `None` as long as one of them has not come.
    pub(crate) fn arrived(&self, numbers: &[u64]) -> Option<List> {
        let of = |number: &u64| match *number {
            NOBODY => Some(None),
            number => self.arrived.get(&number).cloned(),
        };
        numbers.iter().map(of).collect()
    }

    /// How many came and are kept.
    pub(crate) fn arrived_count(&self) -> usize {
        self.arrived.len()
    }

    /// The length of all that came.
    pub(crate) fn arrived_bytes(&self) -> u64 {
        self.arrived.values().flatten().map(|attachment| attachment.len() as u64).sum()
    }

    /// In a pool, after each payload: what came for it is its own now.
    pub(crate) fn clear_arrived(&mut self) {
        self.arrived.clear();
    }
}
