//! Values to bytes and back. The only module that knows `bincode`, so that a successor is one file.
//!
//! Decoding is from slices alone: bincode's reader mode trusts lengths it has not seen the bytes for.

mod nested;

use std::fmt;
use std::io;
use std::marker::PhantomData;

use bincode::Options;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Why a value could not be encoded or decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CodecFault {
    /// The encoded form is longer than the limit allows.
    TooLarge {
        /// How long it would be, in bytes.
        len: u64,
        /// The limit, in bytes.
        limit: u64,
    },
    /// The type's own `Serialize` or `Deserialize`, or the format, refused.
    Message(String),
}

impl fmt::Display for CodecFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CodecFault::TooLarge { len, limit } => {
                write!(f, "{len} bytes exceed the limit of {limit}")
            }
            CodecFault::Message(message) => f.write_str(message),
        }
    }
}

/// The options, pinned: fixed-width little-endian integers (the fastest form), no size limit of its
/// own (ours is checked before allocation), and no bytes left over, which catches most types whose
/// encoded form does not describe itself.
fn options() -> impl Options {
    bincode::DefaultOptions::new()
        .with_fixint_encoding()
        .with_little_endian()
        .with_no_limit()
        .reject_trailing_bytes()
}

/// Appends the encoded `value` to `out`. With a `limit`, a longer encoding is refused and nothing is appended.
#[inline]
pub fn encode_into<T: Serialize + ?Sized>(
    value: &T,
    limit: Option<u64>,
    out: &mut Vec<u8>,
) -> Result<(), CodecFault> {
    write_within(limit, out, |writer| {
        options().serialize_into(writer, value).map_err(|error| fault(&error))
    })
}

/// The same for what `write` writes, in whatever format.
#[inline]
pub fn write_within(
    limit: Option<u64>,
    out: &mut Vec<u8>,
    write: impl FnOnce(&mut Bounded<'_>) -> Result<(), CodecFault>,
) -> Result<(), CodecFault> {
    let start = out.len();
    let mut writer = Bounded { out, start, limit, refused: 0 };
    let result = write(&mut writer);
    let refused = writer.refused;
    match (result, limit) {
        (Ok(()), Some(limit)) if refused > 0 => {
            let len = (out.len() - start) as u64 + refused;
            out.truncate(start);
            Err(CodecFault::TooLarge { len, limit })
        }
        (Ok(()), _) => Ok(()),
        (Err(fault), _) => {
            out.truncate(start);
            Err(fault)
        }
    }
}

/// Writes the encoded `value`.
pub fn encode_to<T: Serialize + ?Sized>(
    value: &T,
    writer: impl io::Write,
) -> Result<(), CodecFault> {
    options().serialize_into(writer, value).map_err(|error| fault(&error))
}

/// Decodes a value that must fill `bytes` exactly.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecFault> {
    options().deserialize(bytes).map_err(|error| fault(&error))
}

/// The same, with at most about so many bytes of this thread's stack: a value that is nested deeper is refused
/// instead of overflowing it. Dropping a value takes less stack than decoding it.
pub fn decode_within<T: DeserializeOwned>(
    bytes: &[u8],
    stack_bytes_max: usize,
) -> Result<T, CodecFault> {
    let seed = nested::Stack::from_here(stack_bytes_max).guard(PhantomData::<T>);
    options().deserialize_seed(seed, bytes).map_err(|error| fault(&error))
}

/// Stores what fits and counts the rest: the error can say how long the value is, and the memory it
/// takes to find out stays below the limit.
#[derive(Debug)]
pub struct Bounded<'a> {
    out: &'a mut Vec<u8>,
    start: usize,
    limit: Option<u64>,
    refused: u64,
}

impl io::Write for Bounded<'_> {
    #[inline]
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(limit) = self.limit {
            let used = (self.out.len() - self.start) as u64;
            if self.refused > 0 || used + bytes.len() as u64 > limit {
                self.refused += bytes.len() as u64;
                return Ok(bytes.len());
            }
        }
        self.out.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    /// All is written at once; the provided method would look each time whether it was.
    #[inline]
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write(bytes).map(drop)
    }

    #[inline]
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn fault(error: &bincode::Error) -> CodecFault {
    let hint = match **error {
        bincode::ErrorKind::DeserializeAnyNotSupported
        | bincode::ErrorKind::SequenceMustHaveLength => {
            " (serde's `flatten`, `untagged`, `tag` and `skip_serializing_if` do not round-trip here)"
        }
        _ => "",
    };
    CodecFault::Message(format!("{error}{hint}"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    enum Shape {
        Dot,
        Line { length: u32 },
    }

    /// Goal: a successor of bincode, or another version, cannot change the bytes unnoticed.
    #[test]
    fn the_bytes_of_known_values_do_not_change() {
        let value =
            (1u8, -2i32, 3u64, "é", vec![4u16, 5], Some(true), Shape::Line { length: 6 }, 1.5f64);
        let mut out = Vec::new();
        encode_into(&value, None, &mut out).unwrap();
        let golden: &[u8] = &[
            1, //
            0xfe, 0xff, 0xff, 0xff, //
            3, 0, 0, 0, 0, 0, 0, 0, //
            2, 0, 0, 0, 0, 0, 0, 0, 0xc3, 0xa9, //
            2, 0, 0, 0, 0, 0, 0, 0, 4, 0, 5, 0, //
            1, 1, //
            1, 0, 0, 0, 6, 0, 0, 0, //
            0, 0, 0, 0, 0, 0, 0xf8, 0x3f,
        ];
        assert_eq!(out, golden);
        type Value = (u8, i32, u64, String, Vec<u16>, Option<bool>, Shape, f64);
        let back: Value = decode(golden).unwrap();
        assert_eq!(back.6, Shape::Line { length: 6 });
    }

    #[test]
    fn a_limit_refuses_with_the_true_length_and_appends_nothing() {
        let mut out = vec![7];
        let value = [0u8; 100].as_slice();
        let fault = encode_into(value, Some(50), &mut out).unwrap_err();
        assert_eq!(fault, CodecFault::TooLarge { len: 108, limit: 50 });
        assert_eq!(out, [7]);
        encode_into(value, Some(108), &mut out).unwrap();
        assert_eq!(out.len(), 109);
    }

    /// Goal: a type that contains itself, in each way in which it can, is decoded to some depth, and refused beyond
    /// it instead of overflowing the stack.
    /// Method: a thread with the usual 2 MiB; what encodes as many levels is one piece of bytes, again and again.
    #[test]
    fn what_is_nested_too_deep_is_refused() {
        #[derive(Debug, Deserialize)]
        struct Maybe(#[expect(dead_code, reason = "only decoded")] Option<Box<Maybe>>);
        #[derive(Debug, Deserialize)]
        #[expect(dead_code, reason = "only decoded")]
        struct Fields {
            number: u8,
            inner: Option<Box<Fields>>,
        }
        #[derive(Debug, Deserialize)]
        struct Sequence(#[expect(dead_code, reason = "only decoded")] Vec<Sequence>);
        #[derive(Debug, Deserialize)]
        struct Keyed(#[expect(dead_code, reason = "only decoded")] BTreeMap<u8, Keyed>);
        #[derive(Debug, Deserialize)]
        #[expect(dead_code, reason = "only decoded")]
        enum Choice {
            End,
            Newtype(Box<Choice>),
            Tuple(u8, Box<Choice>),
            Struct { inner: Box<Choice> },
        }
        /// Contains itself without a single byte.
        #[derive(Debug, Deserialize)]
        struct Endless(#[expect(dead_code, reason = "only decoded")] Box<Endless>);

        const STACK: usize = 1 << 20;
        fn check<T: DeserializeOwned>(level: &[u8], end: &[u8]) {
            let bytes = |levels: usize| [level.repeat(levels), end.to_vec()].concat();
            // Deeper than anybody writes by hand, and in a build without optimisation.
            decode_within::<T>(&bytes(200), STACK).map(drop).unwrap();
            match decode_within::<T>(&bytes(1_000_000), STACK) {
                Err(CodecFault::Message(message)) => {
                    assert!(message.contains("nested too deep"), "{message}");
                }
                Err(other) => panic!("{other}"),
                Ok(_) => panic!("decoded"),
            }
        }
        let check_all = || {
            check::<Maybe>(&[1], &[0]);
            check::<Fields>(&[7, 1], &[7, 0]);
            check::<Sequence>(&1_u64.to_le_bytes(), &0_u64.to_le_bytes());
            check::<Keyed>(&[1, 0, 0, 0, 0, 0, 0, 0, 9], &0_u64.to_le_bytes());
            check::<Choice>(&[1, 0, 0, 0], &[0, 0, 0, 0]);
            check::<Choice>(&[2, 0, 0, 0, 7], &[0, 0, 0, 0]);
            check::<Choice>(&[3, 0, 0, 0], &[0, 0, 0, 0]);
            assert!(decode_within::<Endless>(&[], STACK).is_err());
        };
        std::thread::Builder::new().stack_size(2 << 20).spawn(check_all).unwrap().join().unwrap();
    }

    /// Goal: with a limit to the stack values are decoded as without one, and the same bytes are refused.
    #[test]
    fn decoding_within_a_stack_changes_nothing_else() {
        type Value = (
            (i8, u16, u128, f32, char, bool),
            (String, Option<u8>, Option<()>, [u16; 3]),
            Vec<Shape>,
            BTreeMap<String, (u8, Box<[i64]>)>,
        );
        let value: Value = (
            (-1, 2, 3, 4.5, 'é', true),
            ("text".into(), Some(6), None, [7, 8, 9]),
            vec![Shape::Dot, Shape::Line { length: 10 }],
            BTreeMap::from([("key".into(), (11, Box::from([12, -13])))]),
        );
        let mut bytes = Vec::new();
        encode_into(&value, None, &mut bytes).unwrap();
        assert_eq!(decode_within::<Value>(&bytes, 1 << 20).unwrap(), value);
        for end in 0..bytes.len() {
            let fault = |result: Result<Value, CodecFault>| result.unwrap_err().to_string();
            let plain = fault(decode(&bytes[..end]));
            assert_eq!(fault(decode_within(&bytes[..end], 1 << 20)), plain);
        }
        bytes.push(0);
        assert!(decode_within::<Value>(&bytes, 1 << 20).is_err());
        assert!(decode_within::<Vec<u64>>(&(1u64 << 60).to_le_bytes(), 1 << 20).is_err());
    }

    #[test]
    fn bytes_left_over_and_bytes_missing_are_faults() {
        assert!(decode::<u32>(&[1, 0, 0, 0, 9]).is_err());
        assert!(decode::<u32>(&[1, 0, 0]).is_err());
        // A length prefix of 2^60 must not be believed before the bytes are there.
        assert!(decode::<Vec<u64>>(&(1u64 << 60).to_le_bytes()).is_err());
    }
}
