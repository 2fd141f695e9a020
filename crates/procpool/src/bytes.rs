//! [`Bytes`]: bytes that are passed on, not copied.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::Deref;
use std::sync::{Arc, OnceLock};

use serde::de::{Deserializer, Error as _, SeqAccess, Visitor};
use serde::ser::Serializer;
use serde::{Deserialize, Serialize};

use crate::attachments::Attachment;
use crate::attachments::session::{self, Reach};

/// Bytes of this length and more are passed by descriptor. Below it, making and mapping a memfd costs more
/// than the copies that it saves.
const ATTACH_FROM: usize = 64 * 1024;
/// The same for those that a job has made. Their memory is sealed for good, so it is new each time: up to 8 MiB the socket
/// takes half the time. But who reads it does nothing else meanwhile, and other workers wait for that thread: this many bytes
/// take it 0.3 ms.
const ATTACH_NEW_FROM: usize = 1024 * 1024;

/// Bytes that are cheap to clone and to send: they travel as they are, without an encoding of each byte.
///
/// From 64 KiB on, or 1 MiB if a job has made them, they travel by descriptor: copied once into sealed memory the first time
/// they are sent (memfd_create(2)), then mapped by whoever receives them, in arguments and in results. Clones share the
/// memory; a result is passed on without another copy, and an argument goes back so. While they wait or are held, each such
/// `Bytes` takes a descriptor of this process; once half of its descriptors are taken, further ones are
/// copied into the message instead, or mapped and their descriptor closed.
///
/// The length counts towards [`payload_limit`](crate::ProcessPoolBuilder::payload_limit). Formats other than
/// procpool's own, such as JSON, get the bytes themselves.
///
/// ```
/// use procpool::Bytes;
///
/// fn count(data: Bytes) -> usize {
///     data.iter().filter(|byte| **byte == b'\n').count()
/// }
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # procpool::init();
/// let pool = procpool::ProcessPool::new()?;
/// let data = Bytes::from(vec![b'\n'; 1 << 20]);
/// assert_eq!(pool.submit(count, data).result()?, 1 << 20);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Bytes(Arc<Inner>);

struct Inner {
    source: Source,
    /// What is sent, made the first time.
    attachment: OnceLock<Arc<Attachment>>,
}

enum Source {
    Heap(Vec<u8>),
    Received(Arc<Attachment>),
}

impl Bytes {
    fn new(source: Source) -> Bytes {
        Bytes(Arc::new(Inner { source, attachment: OnceLock::new() }))
    }

    /// The bytes with a descriptor that may go where they go; `None` if this process has none to spare.
    fn attachment(&self) -> Option<Arc<Attachment>> {
        let reach = session::reach();
        let attachment = match &self.0.source {
            Source::Received(attachment) => attachment,
            Source::Heap(bytes) => match self.0.attachment.get() {
                Some(attachment) => attachment,
                None => {
                    let lent = match reach {
                        Reach::Workers => Attachment::lend(bytes),
                        Reach::Anywhere => None,
                    };
                    let new = lent.or_else(|| Attachment::of_bytes(bytes, [].into()))?;
                    self.0.attachment.get_or_init(|| new)
                }
            },
        };
        match reach {
            Reach::Workers => attachment.to_pass_on(),
            // It goes back to where it came from.
            Reach::Anywhere if session::is_given(attachment) => Some(Arc::clone(attachment)),
            Reach::Anywhere => attachment.sealed_for_good(),
        }
    }

    /// From which length on they are attached to what is being encoded.
    fn attach_from(&self) -> usize {
        match (session::reach(), &self.0.source) {
            (Reach::Anywhere, Source::Heap(_)) => ATTACH_NEW_FROM,
            (Reach::Workers, _) | (_, Source::Received(_)) => ATTACH_FROM,
        }
    }

    /// The place in the list of what is being encoded, if these bytes are to be attached and can be.
    fn place(&self) -> Option<u32> {
        if self.len() < ATTACH_FROM || !session::is_open() || self.len() < self.attach_from() {
            return None;
        }
        let place = session::place_of(&self.attachment()?)?;
        session::count_bytes(self.len());
        Some(place)
    }
}

impl Deref for Bytes {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        match &self.0.source {
            Source::Heap(bytes) => bytes,
            // It was mapped when it was received.
            Source::Received(attachment) => attachment.bytes().unwrap_or_default(),
        }
    }
}

impl AsRef<[u8]> for Bytes {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Bytes {
        Bytes::new(Source::Heap(bytes))
    }
}

impl From<&[u8]> for Bytes {
    fn from(bytes: &[u8]) -> Bytes {
        Bytes::from(bytes.to_vec())
    }
}

impl Default for Bytes {
    fn default() -> Bytes {
        Bytes::from(Vec::new())
    }
}

impl PartialEq for Bytes {
    fn eq(&self, other: &Bytes) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || **self == **other
    }
}

impl Eq for Bytes {}

impl PartialEq<[u8]> for Bytes {
    fn eq(&self, other: &[u8]) -> bool {
        **self == *other
    }
}

impl Hash for Bytes {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (**self).hash(state);
    }
}

impl fmt::Debug for Bytes {
    /// The length and the first bytes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 16;
        let (shown, rest) = self.split_at(self.len().min(SHOWN));
        let more = if rest.is_empty() { "" } else { "…" };
        write!(f, "Bytes({} bytes: {}{more})", self.len(), shown.escape_ascii())
    }
}

/// As it is encoded.
#[derive(Serialize)]
enum Sent<'a> {
    Inline(Raw<'a>),
    Attached(u32),
}

struct Raw<'a>(&'a [u8]);

impl Serialize for Raw<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0)
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            return Raw(self).serialize(serializer);
        }
        match self.place() {
            Some(place) => Sent::Attached(place).serialize(serializer),
            None => Sent::Inline(Raw(self)).serialize(serializer),
        }
    }
}

#[derive(Deserialize)]
enum Came {
    Inline(Owned),
    Attached(u32),
}

struct Owned(Vec<u8>);

impl<'de> Deserialize<'de> for Owned {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Owned, D::Error> {
        deserializer.deserialize_byte_buf(OwnedVisitor).map(Owned)
    }
}

struct OwnedVisitor;

impl<'de> Visitor<'de> for OwnedVisitor {
    type Value = Vec<u8>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("bytes")
    }

    fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
        Ok(bytes.to_vec())
    }

    fn visit_byte_buf<E>(self, bytes: Vec<u8>) -> Result<Vec<u8>, E> {
        Ok(bytes)
    }

    fn visit_seq<S: SeqAccess<'de>>(self, mut seq: S) -> Result<Vec<u8>, S::Error> {
        let mut bytes = Vec::new();
        while let Some(byte) = seq.next_element()? {
            bytes.push(byte);
        }
        Ok(bytes)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
        if deserializer.is_human_readable() {
            return Owned::deserialize(deserializer).map(|bytes| Bytes::from(bytes.0));
        }
        match Came::deserialize(deserializer)? {
            Came::Inline(bytes) => Ok(Bytes::from(bytes.0)),
            Came::Attached(place) => {
                let attachment = session::attachment_at(place).map_err(D::Error::custom)?;
                attachment.bytes().map_err(D::Error::custom)?;
                Ok(Bytes::new(Source::Received(attachment)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attachments::session::{Collected, collect_for, with_source};
    use procpool_wire::codec;

    fn encode_for(reach: Reach, bytes: &Bytes) -> (Vec<u8>, Collected) {
        let (mut out, mut collected) = (Vec::new(), Collected::default());
        collect_for(reach, &mut collected, || codec::encode_into(bytes, None, &mut out)).unwrap();
        (out, collected)
    }

    fn encode(bytes: &Bytes) -> (Vec<u8>, Collected) {
        encode_for(Reach::Workers, bytes)
    }

    #[test]
    fn only_long_bytes_in_a_job_are_attached() {
        let (argument, result) = (Reach::Workers, Reach::Anywhere);
        for (reach, len, attached) in [
            (argument, 0, false),
            (argument, 1, false),
            (argument, ATTACH_FROM - 1, false),
            (argument, ATTACH_FROM, true),
            (result, ATTACH_NEW_FROM - 1, false),
            (result, ATTACH_NEW_FROM, true),
        ] {
            let bytes = Bytes::from(vec![7; len]);
            let (out, collected) = encode_for(reach, &bytes);
            assert_eq!(!collected.is_empty(), attached, "{len} bytes, {reach:?}");
            assert_eq!(out.len() < 16, attached || len < 4, "{len} bytes");
            let list = collected.into_list();
            let back: Bytes = with_source(Some(&list), || codec::decode(&out)).unwrap();
            assert_eq!(back, bytes);
            // Outside of a job there is no list.
            let mut out = Vec::new();
            codec::encode_into(&bytes, None, &mut out).unwrap();
            assert_eq!(codec::decode::<Bytes>(&out).unwrap(), bytes);
            let json = serde_json::to_string(&bytes).unwrap();
            assert_eq!(serde_json::from_str::<Bytes>(&json).unwrap(), bytes);
        }
    }

    #[test]
    fn bytes_that_are_sent_twice_or_received_and_sent_are_one_attachment() {
        let bytes = Bytes::from(vec![7; ATTACH_FROM]);
        let ((out, first), (_, second)) = (encode(&bytes), encode(&bytes.clone()));
        let (first, second) = (first.into_list(), second.into_list());
        let same = |a: &Option<Arc<Attachment>>, b: &Option<Arc<Attachment>>| {
            Arc::ptr_eq(a.as_ref().unwrap(), b.as_ref().unwrap())
        };
        assert!(same(&first[0], &second[0]));
        let back: Bytes = with_source(Some(&first), || codec::decode(&out)).unwrap();
        assert!(same(&first[0], &encode(&back).1.into_list()[0]));
        // What a job was given it gives back as that, however short.
        let given = with_source(Some(&first), || encode_for(Reach::Anywhere, &back));
        assert!(same(&first[0], &given.1.into_list()[0]));
    }

    #[test]
    fn a_place_that_is_not_there_is_an_error() {
        let (out, _) = encode(&Bytes::from(vec![7; ATTACH_FROM]));
        assert!(codec::decode::<Bytes>(&out).is_err());
        for list in [vec![], vec![None]] {
            let list = list.into();
            assert!(with_source(Some(&list), || codec::decode::<Bytes>(&out)).is_err());
        }
    }
}
