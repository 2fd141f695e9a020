//! The list of attachments of what is being encoded, or decoded, on this thread.
//!
//! serde hands a `Serialize` nothing but the serializer, so the list is the thread's. It is there only
//! between [`collect`] and its end: a `Shared` that is serialized anywhere else is refused.

use std::cell::{Cell, RefCell};
use std::sync::Arc;

use procpool_wire::attach::USES_MAX;
use procpool_wire::codec::{self, CodecFault};
use serde::Serialize;

use super::{Attachment, List, find};

/// The attachments of an encoded value, by their places, while it is made.
#[derive(Default)]
pub(crate) struct Collected {
    items: Vec<Arc<Attachment>>,
    /// The length of all `Bytes`, as often as they occur.
    bytes: u64,
}

/// Where what is encoded goes, which says what memory its attachments may be in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    /// To workers of a pool of this process, as a job's argument: it can be lent.
    Workers,
    /// Anywhere: it has to be sealed for good.
    Anywhere,
}

/// Whether attachments are collected on this thread. Apart from the list, so that the many values without
/// attachments cost a store before and a look after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Closed,
    /// And none has come yet.
    Open,
    Used,
}

thread_local! {
    static MODE: Cell<Mode> = const { Cell::new(Mode::Closed) };
    static REACH: Cell<Reach> = const { Cell::new(Reach::Anywhere) };
    static COLLECTED: RefCell<Collected> = RefCell::default();
    static SOURCE: RefCell<Option<List>> = const { RefCell::new(None) };
}

impl Collected {
    pub(crate) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// The length of all `Bytes` in it.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn into_list(self) -> List {
        self.items.into_iter().map(Some).collect()
    }
}

/// What the thread was doing before; put back at the end, also by a panic.
struct Before {
    mode: Mode,
    reach: Reach,
    /// A `Serialize` may itself submit: then the list in the making is put aside.
    collected: Option<Collected>,
}

impl Drop for Before {
    #[inline]
    fn drop(&mut self) {
        REACH.set(self.reach);
        if MODE.replace(self.mode) == Mode::Used || self.collected.is_some() {
            self.put_list_back();
        }
    }
}

impl Before {
    #[cold]
    fn put_list_back(&mut self) {
        let before = self.collected.take().unwrap_or_default();
        // Dropped after the borrow has ended.
        let _left = COLLECTED.replace(before);
    }
}

/// Runs `encode`. The attachments that it refers to go into `into`, behind those that are there.
#[inline]
pub(crate) fn collect<R>(into: &mut Collected, encode: impl FnOnce() -> R) -> R {
    collect_for(Reach::Anywhere, into, encode)
}

/// As [`collect`], for those who are known.
#[inline]
pub(crate) fn collect_for<R>(reach: Reach, into: &mut Collected, encode: impl FnOnce() -> R) -> R {
    let start = if into.is_empty() { Mode::Open } else { Mode::Used };
    let mode = MODE.replace(start);
    let mut before = Before { mode, reach: REACH.replace(reach), collected: None };
    if mode == Mode::Used || start == Mode::Used {
        before.collected = Some(COLLECTED.replace(std::mem::take(into)));
    }
    let result = encode();
    if MODE.get() == Mode::Used {
        *into = COLLECTED.take();
    }
    result
}

/// Goes on with attachments that were collected before: their places stay. Nothing else may be there yet.
pub(crate) fn adopt(collected: Collected) {
    if !collected.is_empty() && MODE.get() != Mode::Closed {
        COLLECTED.replace(collected);
        MODE.set(Mode::Used);
    }
}

/// True if attachments are being collected.
pub(crate) fn is_open() -> bool {
    MODE.get() != Mode::Closed
}

/// Where what is being encoded goes.
pub(crate) fn reach() -> Reach {
    REACH.get()
}

/// True if the job that is running was given the attachment.
pub(crate) fn is_given(attachment: &Attachment) -> bool {
    SOURCE.with_borrow(|source| {
        source.as_ref().is_some_and(|list| find(list, attachment.number).is_some())
    })
}

/// Where the attachment stands in the list; `None` if that is full, or not there.
pub(crate) fn place_of(attachment: &Arc<Attachment>) -> Option<u32> {
    if MODE.get() == Mode::Closed {
        return None;
    }
    COLLECTED.with_borrow_mut(|collected| {
        let known = collected.items.iter().position(|other| other.number == attachment.number);
        let place = known.unwrap_or(collected.items.len());
        if place == USES_MAX {
            return None;
        }
        if known.is_none() {
            collected.items.push(Arc::clone(attachment));
        }
        MODE.set(Mode::Used);
        Some(place as u32)
    })
}

/// Counts the length of a `Bytes` that is attached.
pub(crate) fn count_bytes(len: usize) {
    COLLECTED.with_borrow_mut(|collected| collected.bytes += len as u64);
}

/// The length of all attached `Bytes` so far.
pub(crate) fn attached_bytes() -> u64 {
    if MODE.get() == Mode::Used { COLLECTED.with_borrow(|collected| collected.bytes) } else { 0 }
}

/// As [`codec::encode_into`]; what is attached counts towards the limit.
#[inline]
pub(crate) fn encode_into<T: Serialize + ?Sized>(
    value: &T,
    limit: Option<u64>,
    out: &mut Vec<u8>,
) -> Result<(), CodecFault> {
    let Some(limit) = limit else {
        return codec::encode_into(value, None, out);
    };
    let (start, before) = (out.len(), attached_bytes());
    codec::encode_into(value, Some(limit), out)?;
    let len = (out.len() - start) as u64 + (attached_bytes() - before);
    if len > limit {
        out.truncate(start);
        return Err(CodecFault::TooLarge { len, limit });
    }
    Ok(())
}

/// Runs `decode` with the attachments that the encoded bytes refer to.
#[inline]
pub(crate) fn with_source<R>(list: Option<&List>, decode: impl FnOnce() -> R) -> R {
    struct Restore(Option<List>);
    impl Drop for Restore {
        fn drop(&mut self) {
            let _ours = SOURCE.replace(self.0.take());
        }
    }
    let Some(list) = list else {
        return decode();
    };
    let _restore = Restore(SOURCE.replace(Some(Arc::clone(list))));
    decode()
}

/// The attachment of this place in what is being decoded.
pub(crate) fn attachment_at(place: u32) -> Result<Arc<Attachment>, &'static str> {
    SOURCE.with_borrow(|source| {
        let list = source.as_ref().ok_or("it refers to an attachment, and there is none")?;
        match list.get(place as usize) {
            Some(Some(attachment)) => Ok(Arc::clone(attachment)),
            Some(None) => {
                Err("it refers to an attachment that did not arrive: no descriptor was left, \
                 or its sender has never had it")
            }
            None => Err("it refers to an attachment that it does not have"),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attachment() -> Arc<Attachment> {
        Attachment::of_bytes(b"12345678", [].into()).unwrap()
    }

    #[test]
    fn a_list_inside_a_list_is_another_one() {
        let (outer, inner) = (attachment(), attachment());
        let mut collected = Collected::default();
        collect(&mut collected, || {
            assert_eq!(place_of(&outer), Some(0));
            let mut within = Collected::default();
            collect(&mut within, || assert_eq!(place_of(&inner), Some(0)));
            assert_eq!(within.items.len(), 1);
            assert_eq!(place_of(&outer), Some(0));
            assert_eq!(place_of(&inner), Some(1));
        });
        assert_eq!(collected.items.len(), 2);
        assert_eq!(place_of(&outer), None);
        collect(&mut collected, || assert_eq!(place_of(&attachment()), Some(2)));
        assert_eq!(collected.items.len(), 3);
    }

    #[test]
    fn a_panic_leaves_nothing_open() {
        let one = attachment();
        let result = std::panic::catch_unwind(|| {
            collect(&mut Collected::default(), || {
                place_of(&one);
                panic!("as a Serialize may");
            })
        });
        assert!(result.is_err());
        assert!(!is_open());
        assert_eq!(Arc::strong_count(&one), 1);
        collect(&mut Collected::default(), || assert_eq!(attached_bytes(), 0));
    }

    #[test]
    fn places_are_limited() {
        let mut collected = Collected::default();
        let one = attachment();
        collected.items = vec![one; USES_MAX];
        collect(&mut collected, || assert_eq!(place_of(&attachment()), None));
    }
}
