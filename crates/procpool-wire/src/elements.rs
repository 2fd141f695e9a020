//! Arguments or results laid out one after another in a byte buffer.
//!
//! Each element is a header word (kind in the top byte, length in bytes below it) and its bytes, padded
//! with zeros to a multiple of eight, so that a buffer of elements is a whole number of words and can be
//! copied into a [`ring`](crate::ring) word by word. One job is a buffer of one element, a chunk of a
//! `map` a buffer of many.

/// Bytes in a word.
pub const WORD: usize = 8;
const KIND_SHIFT: u32 = 56;
const LEN_MASK: u64 = (1 << KIND_SHIFT) - 1;

/// What one element is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// An encoded value: an argument, or a result.
    Value = 1,
    /// The job panicked: an encoded [`PanicRecord`](crate::handshake::PanicRecord).
    Panicked = 2,
    /// The argument could not be decoded: the message, as UTF-8.
    DecodeFault = 3,
    /// The result could not be encoded: the message, as UTF-8.
    EncodeFault = 4,
    /// The result is longer than the limit: its length, as a little-endian `u64`.
    TooLarge = 5,
    /// The worker program knows no task of this name: the name, as UTF-8.
    Unregistered = 6,
    /// The job left something behind: an encoded [`LeakRecord`](crate::limits::LeakRecord).
    Leaked = 7,
}

impl Kind {
    #[inline]
    fn from_byte(byte: u8) -> Option<Kind> {
        Some(match byte {
            1 => Kind::Value,
            2 => Kind::Panicked,
            3 => Kind::DecodeFault,
            4 => Kind::EncodeFault,
            5 => Kind::TooLarge,
            6 => Kind::Unregistered,
            7 => Kind::Leaked,
            _ => return None,
        })
    }
}

/// The header word of an element of `len` bytes.
#[inline]
pub fn header(kind: Kind, len: usize) -> u64 {
    ((kind as u64) << KIND_SHIFT) | len as u64
}

/// Kind and length out of a header word; `None` if no such kind exists.
#[inline]
pub fn parse_header(word: u64) -> Option<(Kind, u64)> {
    Some((Kind::from_byte((word >> KIND_SHIFT) as u8)?, word & LEN_MASK))
}

/// How many bytes an element of `len` bytes takes, header and padding included.
#[inline]
pub fn padded(len: usize) -> usize {
    WORD + len.div_ceil(WORD) * WORD
}

/// Appends one element whose bytes `write` produces.
#[inline]
pub fn push_with<E>(
    out: &mut Vec<u8>,
    kind: Kind,
    write: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
) -> Result<(), E> {
    let start = out.len();
    out.extend_from_slice(&[0; WORD]);
    if let Err(error) = write(out) {
        out.truncate(start);
        return Err(error);
    }
    let len = out.len() - start - WORD;
    out[start..start + WORD].copy_from_slice(&header(kind, len).to_le_bytes());
    out.resize(start + padded(len), 0);
    Ok(())
}

/// Appends one element.
#[inline]
pub fn push(out: &mut Vec<u8>, kind: Kind, bytes: &[u8]) {
    let result: Result<(), std::convert::Infallible> = push_with(out, kind, |out| {
        out.extend_from_slice(bytes);
        Ok(())
    });
    match result {
        Ok(()) => {}
        Err(never) => match never {},
    }
}

/// Takes the first element off `bytes`: its kind, its bytes, and where the next one begins.
/// `None` if `bytes` does not begin with a whole element.
#[inline]
pub fn split_first(bytes: &[u8]) -> Option<(Kind, &[u8], &[u8])> {
    let (head, rest) = bytes.split_first_chunk::<WORD>()?;
    let (kind, len) = parse_header(u64::from_le_bytes(*head))?;
    let len = usize::try_from(len).ok().filter(|len| *len <= rest.len())?;
    let next = padded(len) - WORD;
    Some((kind, &rest[..len], rest.get(next..)?))
}

/// The part of `bytes` after its first `count` elements, or `None` if there are not so many.
#[inline]
pub fn skip(mut bytes: &[u8], count: usize) -> Option<&[u8]> {
    for _ in 0..count {
        bytes = split_first(bytes)?.2;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_come_back_in_order_whatever_their_lengths() {
        let mut out = Vec::new();
        for len in 0..20usize {
            push(&mut out, Kind::Value, &vec![len as u8; len]);
        }
        assert_eq!(out.len() % WORD, 0);
        let mut rest = out.as_slice();
        for len in 0..20usize {
            let (kind, bytes, next) = split_first(rest).unwrap();
            assert_eq!((kind, bytes), (Kind::Value, vec![len as u8; len].as_slice()));
            rest = next;
        }
        assert!(rest.is_empty());
        assert!(skip(&out, 20).unwrap().is_empty());
        assert!(skip(&out, 21).is_none());
    }

    #[test]
    fn a_cut_buffer_or_a_false_length_is_refused() {
        let mut out = Vec::new();
        push(&mut out, Kind::Value, b"hello, world");
        for cut in 0..out.len() {
            assert!(split_first(&out[..cut]).is_none(), "cut at {cut}");
        }
        assert!(split_first(&[0xff; 24]).is_none());
        assert!(split_first(&header(Kind::Value, usize::MAX >> 8).to_le_bytes()).is_none());
    }

    #[test]
    fn a_failed_write_leaves_no_trace() {
        let mut out = vec![1, 2, 3, 4, 5, 6, 7, 8];
        let result = push_with(&mut out, Kind::Value, |out| {
            out.push(9);
            Err("no")
        });
        assert_eq!(result, Err("no"));
        assert_eq!(out, [1, 2, 3, 4, 5, 6, 7, 8]);
    }
}
