//! Attachments: sealed memory that travels by descriptor, once to each process that needs it.
//!
//! A [`Bytes`](crate::Bytes) of some length and every [`Shared`](crate::Shared) is one. In encoded bytes it
//! is a place in a list; [`session`] makes such lists while a value is encoded, and gives them to what is
//! decoded. The list travels beside the bytes: in a job, in a result, in another attachment. Who holds the
//! list keeps its attachments, so that a job that waits, moves or is retried finds them where it goes.
//!
//! [`carrier`] is one end of a control channel: which attachments the other end has, and what came from it.
//! Nothing here knows pools or workers.
//!
//! What only goes from a pool to its workers, a job's arguments, is *lent*: in [`regions`] that are used again.
//! What a worker sends, and what is shared, is sealed for good.

pub(crate) mod carrier;
pub(crate) mod regions;
pub(crate) mod session;

use std::any::Any;
use std::fmt;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use nix::sys::resource::{Resource, getrlimit};
use procpool_sys::fork;
use procpool_sys::sealed::{Sealed, SealedMapping, Unsealed};

use carrier::Return;
use regions::Region;

/// The part of this process's descriptors that attachments may hold. The rest is the program's own.
const DESCRIPTORS_PART: u64 = 2;
/// What is assumed of the limit on descriptors if the system does not tell: the usual soft limit.
const DESCRIPTORS_ASSUMED: u64 = 1024;

/// Attachments by their places. `None`: one that did not arrive.
pub(crate) type List = Arc<[Option<Arc<Attachment>>]>;

/// A value as its owner or its decoders share it.
pub(crate) type AnyValue = dyn Any + Send + Sync;

/// One piece of sealed memory in this process.
pub(crate) struct Attachment {
    /// What this process calls it.
    number: u64,
    content: Content,
    /// What its content refers to.
    uses: List,
    decoded: Mutex<Decoded>,
    /// Who is to be told when nobody here holds it any more.
    told: Mutex<Vec<Weak<dyn Forgets>>>,
    /// For one that has no descriptor to pass on, or only one that is lent: a copy that is sealed for good.
    copy: OnceLock<Arc<Attachment>>,
    /// Says that this process has it mapped no more. The last field, since it is dropped after the mapping.
    _return: Option<Return>,
}

impl fmt::Debug for Attachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "attachment {} of {} bytes", self.number, self.len())
    }
}

enum Content {
    /// With its descriptor, so that it can be passed on.
    Open { sealed: Sealed, mapping: OnceLock<SealedMapping>, _descriptor: Descriptor },
    /// Its descriptor was given up, since this process has too many, or it was lent.
    Mapped(SealedMapping),
    /// Ours, to lend.
    Region(Arc<Region>),
}

/// The value that an attachment encodes, for as long as there is one.
#[derive(Default)]
struct Decoded {
    value: Option<Weak<AnyValue>>,
    /// In a worker: kept for the next job, until the pool has no further use for it.
    kept: Option<Arc<AnyValue>>,
}

/// Somebody whose other end has attachments of this process.
pub(crate) trait Forgets: Send + Sync {
    /// Nobody holds the attachment of this number any more. Called wherever the last holder lets go, with
    /// whatever locks it holds: to be noted, and acted upon later.
    fn forget(&self, number: u64);
}

/// How many descriptors this process holds for attachments.
pub(crate) fn descriptor_count() -> u64 {
    DESCRIPTORS.load(Ordering::Relaxed) as u64
}

/// The right to hold a descriptor for an attachment.
struct Descriptor;

static DESCRIPTORS: AtomicUsize = AtomicUsize::new(0);

impl Descriptor {
    /// `None` if this process holds too many, also without what it keeps for later.
    fn take() -> Option<Descriptor> {
        Descriptor::take_one().or_else(|| regions::give_back().then(Descriptor::take_one)?)
    }

    fn take_one() -> Option<Descriptor> {
        static LIMIT: OnceLock<usize> = OnceLock::new();
        let limit = *LIMIT.get_or_init(|| {
            let soft = getrlimit(Resource::RLIMIT_NOFILE).map_or(DESCRIPTORS_ASSUMED, |l| l.0);
            usize::try_from(soft / DESCRIPTORS_PART).unwrap_or(usize::MAX)
        });
        let descriptor = Descriptor::force();
        (DESCRIPTORS.load(Ordering::Relaxed) <= limit).then_some(descriptor)
    }

    fn force() -> Descriptor {
        DESCRIPTORS.fetch_add(1, Ordering::Relaxed);
        Descriptor
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        DESCRIPTORS.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Attachment {
    fn new(content: Content, uses: List) -> Arc<Attachment> {
        Attachment::returned(content, uses, None)
    }

    fn returned(content: Content, uses: List, back: Option<Return>) -> Arc<Attachment> {
        static NUMBERS: AtomicU64 = AtomicU64::new(1);
        Arc::new(Attachment {
            number: NUMBERS.fetch_add(1, Ordering::Relaxed),
            content,
            uses,
            decoded: Mutex::default(),
            told: Mutex::default(),
            copy: OnceLock::new(),
            _return: back,
        })
    }

    /// A copy of `bytes` that is lent to workers. `None` if there is none to be had.
    pub(crate) fn lend(bytes: &[u8]) -> Option<Arc<Attachment>> {
        Some(Attachment::new(Content::Region(Region::with(bytes)?), [].into()))
    }

    /// What was written and sealed here.
    pub(crate) fn seal(unsealed: Unsealed, uses: List) -> io::Result<Arc<Attachment>> {
        let sealed = unsealed.seal()?;
        let content =
            Content::Open { sealed, mapping: OnceLock::new(), _descriptor: Descriptor::force() };
        Ok(Attachment::new(content, uses))
    }

    /// A copy of `bytes`. `None` if this process has no descriptor to spare for it.
    pub(crate) fn of_bytes(bytes: &[u8], uses: List) -> Option<Arc<Attachment>> {
        let descriptor = Descriptor::take()?;
        let mut unsealed = Unsealed::create().ok()?;
        unsealed.write_all(bytes).ok()?;
        let sealed = unsealed.seal().ok()?;
        let content = Content::Open { sealed, mapping: OnceLock::new(), _descriptor: descriptor };
        Some(Attachment::new(content, uses))
    }

    /// What came from another process.
    fn received(sealed: Sealed, uses: List) -> io::Result<Arc<Attachment>> {
        // Mapped at once, so that there is no error left to come when somebody reads it.
        let mapping = sealed.map()?;
        let content = match Descriptor::take() {
            Some(descriptor) => {
                Content::Open { sealed, mapping: OnceLock::from(mapping), _descriptor: descriptor }
            }
            None => Content::Mapped(mapping),
        };
        Ok(Attachment::new(content, uses))
    }

    /// What a pool has lent to this process. Its descriptor is not kept: it must not go anywhere else, since the
    /// pool would not know who has it.
    fn borrowed(mapping: SealedMapping, uses: List, back: Return) -> Arc<Attachment> {
        Attachment::returned(Content::Mapped(mapping), uses, Some(back))
    }

    /// Its bytes; an error if this process cannot map any more.
    pub(crate) fn bytes(&self) -> io::Result<&[u8]> {
        match &self.content {
            Content::Mapped(mapping) => Ok(mapping),
            Content::Region(region) => Ok(region.lent().bytes()),
            Content::Open { sealed, mapping, .. } => {
                if let Some(mapping) = mapping.get() {
                    return Ok(mapping);
                }
                let new = sealed.map()?;
                Ok(mapping.get_or_init(|| new))
            }
        }
    }

    pub(crate) fn len(&self) -> usize {
        match &self.content {
            Content::Mapped(mapping) => mapping.len(),
            Content::Region(region) => region.lent().bytes().len(),
            Content::Open { sealed, .. } => sealed.len(),
        }
    }

    pub(crate) fn uses(&self) -> &List {
        &self.uses
    }

    /// The same content with a descriptor to pass on to a worker of ours. `None` if this process has none to
    /// spare.
    pub(crate) fn to_pass_on(self: &Arc<Self>) -> Option<Arc<Attachment>> {
        match &self.content {
            Content::Open { .. } | Content::Region(_) => Some(Arc::clone(self)),
            Content::Mapped(_) => self.sealed_for_good(),
        }
    }

    /// The same content with a descriptor to pass on to anybody.
    pub(crate) fn sealed_for_good(self: &Arc<Self>) -> Option<Arc<Attachment>> {
        let bytes: &[u8] = match &self.content {
            Content::Open { .. } => return Some(Arc::clone(self)),
            Content::Mapped(mapping) => mapping,
            Content::Region(region) => region.lent().bytes(),
        };
        if let Some(copy) = self.copy.get() {
            return Some(Arc::clone(copy));
        }
        let copy = Attachment::of_bytes(bytes, Arc::clone(&self.uses))?;
        Some(Arc::clone(self.copy.get_or_init(|| copy)))
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        match &self.content {
            Content::Open { sealed, .. } => Some(sealed.as_fd()),
            Content::Region(region) => Some(region.lent().as_fd()),
            Content::Mapped(_) => None,
        }
    }

    fn region(&self) -> Option<&Arc<Region>> {
        match &self.content {
            Content::Region(region) => Some(region),
            Content::Open { .. } | Content::Mapped(_) => None,
        }
    }

    fn decoded(&self) -> MutexGuard<'_, Decoded> {
        // Nothing of the user's runs under this lock.
        self.decoded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The value, if somebody in this process has it.
    pub(crate) fn value(&self) -> Option<Arc<AnyValue>> {
        self.decoded().value.as_ref().and_then(Weak::upgrade)
    }

    /// Notes the value; if another thread was faster, its value is answered.
    pub(crate) fn set_value(&self, value: Arc<AnyValue>) -> Arc<AnyValue> {
        let mut decoded = self.decoded();
        if let Some(first) = decoded.value.as_ref().and_then(Weak::upgrade) {
            // Dropped by the caller, without our lock.
            return first;
        }
        decoded.value = Some(Arc::downgrade(&value));
        value
    }

    /// Keeps the value, if there is one, until [`let_go`], and so for what it refers to.
    pub(crate) fn keep_value(&self) {
        let mut decoded = self.decoded();
        if decoded.kept.is_none() {
            decoded.kept = decoded.value.as_ref().and_then(Weak::upgrade);
        }
        drop(decoded);
        self.uses.iter().flatten().for_each(|inner| inner.keep_value());
    }

    /// Sees to it that `who` is told when nobody holds this any more.
    fn tell(&self, who: &Weak<dyn Forgets>) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if !told.iter().any(|other| other.ptr_eq(who)) {
            // A long life sees many pools.
            told.retain(|other| other.strong_count() > 0);
            told.push(Weak::clone(who));
        }
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        let told = self.told.get_mut().unwrap_or_else(PoisonError::into_inner);
        // In a forked child the pools are not ours.
        if told.is_empty() || fork::is_child() {
            return;
        }
        for who in told.iter().filter_map(Weak::upgrade) {
            who.forget(self.number);
        }
    }
}

/// In a worker, of what the pool has no further use for: drops the value, unless a job has kept a handle.
pub(crate) fn let_go(attachment: &Attachment) {
    let value = attachment.decoded().kept.take();
    if let Err(payload) = catch_unwind(AssertUnwindSafe(|| drop(value))) {
        // A panic in a Drop between two jobs is nobody's outcome. The hook has said it on standard error.
        std::mem::forget(payload);
    }
}

/// The attachment of this number, in the list or in what that refers to.
fn find(list: &List, number: u64) -> Option<&Arc<Attachment>> {
    list.iter().flatten().find_map(|attachment| {
        if attachment.number == number { Some(attachment) } else { find(&attachment.uses, number) }
    })
}
