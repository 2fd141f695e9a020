//! What stands beside descriptors on a control channel.
//!
//! Sealed memory is called by a number that its sender chose. It is attached once to a channel, and then
//! used by any number of payloads: in the encoded bytes a reference is a place in the list of the
//! [`Uses`] frame before the payload. What it contains may refer to other sealed memory in the same way.

use serde::{Deserialize, Serialize};

/// The most references in one payload, or in one piece of sealed memory: their list then fits the longest
/// body of a frame that is not a payload, many times over.
pub const USES_MAX: usize = 4096;

/// The body of an `Attach` frame.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attach {
    /// Whether the descriptors are there, one for each record.
    pub carried: Carried,
    /// What they are, in their order.
    pub records: Vec<Record>,
}

/// Whether descriptors came with a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Carried {
    /// One for each record.
    Yes,
    /// None: the kernel would not pass them on.
    Refused,
}

/// One piece of sealed memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// What the sender calls it.
    pub number: u64,
    /// How many bytes of it there are to read.
    pub len: u64,
    /// What its content refers to, by the sender's numbers. Attached before.
    pub uses: Vec<u64>,
}

/// The body of a `Uses` frame: what the places in the next payload stand for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Uses(pub Vec<Name>);

/// What one piece of sealed memory is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Name {
    /// By the number of the one who sends this.
    Mine(u64),
    /// By the number of the one who receives this, and had attached it before.
    Yours(u64),
}

/// The body of a `Forget` or a `Returned` frame: the pool's numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forget(pub Vec<u64>);

/// The body of a `PayloadAt` frame: where a payload is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PayloadAt {
    /// Which sealed memory it is in, by the pool's number.
    pub number: u64,
    /// Where in it the payload begins. It ends where that ends.
    pub from: u64,
}

/// The body of an `Again` frame: whose payload it is that did not arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Again {
    /// The job's ticket: its place in the claim table.
    pub index: u32,
    /// The generation of that place.
    pub generation: u32,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec;
    use crate::frame::SMALL_BODY_MAX;

    #[test]
    fn the_longest_list_fits_a_frame() {
        let mut body = Vec::new();
        codec::encode_into(&Uses(vec![Name::Yours(u64::MAX); USES_MAX]), None, &mut body).unwrap();
        assert!((body.len() as u64) < SMALL_BODY_MAX);
        let record = Record { number: 1, len: u64::MAX, uses: vec![u64::MAX; USES_MAX] };
        let attach = Attach { carried: Carried::Yes, records: vec![record] };
        body.clear();
        codec::encode_into(&attach, None, &mut body).unwrap();
        assert!((body.len() as u64) < SMALL_BODY_MAX);
        assert_eq!(codec::decode::<Attach>(&body).unwrap(), attach);
    }
}
