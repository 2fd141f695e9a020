//! Frames on the control channel: a 16-byte header, then the body.
//!
//! ```text
//! 0        4         5      6        8              16
//! | "pPoL" | version | kind | 0, 0   | body length  | body …
//! ```
//!
//! The version stands in every header, at a fixed place, so that programs of different versions can
//! tell each other so before either believes a body. The memory for a body grows as its bytes arrive:
//! a length alone never makes the reader allocate.

use std::fmt;

/// The version of everything in this crate that crosses a process boundary.
pub const PROTOCOL_VERSION: u8 = 1;
const MAGIC: [u8; 4] = *b"pPoL";
/// Bytes in a frame's header.
pub const HEADER_LEN: usize = 16;
/// The longest body of every frame but a setup or a payload: a handshake, a failure text or
/// a list of numbers is short.
pub const SMALL_BODY_MAX: u64 = 1 << 20;

/// What a frame is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameKind {
    /// Pool to worker, first: a [`Setup`](crate::handshake::Setup).
    Setup = 1,
    /// Worker to pool: it is ready for jobs.
    Ready = 2,
    /// Worker to pool: it cannot start; a [`StartFault`](crate::handshake::StartFault).
    StartFailed = 3,
    /// Either way: look at the shared memory. No body.
    Bell = 4,
    /// Either way: the bytes of an element too long for the shared memory.
    Payload = 5,
    /// Pool to worker: finish and exit. No body.
    Bye = 6,
    /// Either way: sealed memory, its descriptors beside this frame; an [`Attach`](crate::attach::Attach).
    Attach = 7,
    /// Either way: which sealed memory the next payload refers to; a [`Uses`](crate::attach::Uses).
    Uses = 8,
    /// Either way: sealed memory that need not be kept (pool to worker), or that could not be (worker to
    /// pool); a [`Forget`](crate::attach::Forget).
    Forget = 9,
    /// Pool to fork server: fork a worker with the descriptors that come beside this: its control channel, its standard
    /// error, and the directory of the cgroup that it shall be born in, if there is one. No body.
    Fork = 10,
    /// Fork server to pool: what came of the oldest request; a [`Forked`](crate::handshake::Forked).
    Forked = 11,
    /// Pool to worker: a payload that is in sealed memory; a [`PayloadAt`](crate::attach::PayloadAt).
    PayloadAt = 12,
    /// Worker to pool: sealed memory that it has mapped no more; a [`Forget`](crate::attach::Forget).
    Returned = 13,
    /// Worker to pool: the memory that a payload is in did not arrive; an [`Again`](crate::attach::Again).
    Again = 14,
    /// Pool to worker: that payload's bytes.
    PayloadAgain = 15,
}

impl FrameKind {
    fn from_byte(byte: u8) -> Option<FrameKind> {
        Some(match byte {
            1 => FrameKind::Setup,
            2 => FrameKind::Ready,
            3 => FrameKind::StartFailed,
            4 => FrameKind::Bell,
            5 => FrameKind::Payload,
            6 => FrameKind::Bye,
            7 => FrameKind::Attach,
            8 => FrameKind::Uses,
            9 => FrameKind::Forget,
            10 => FrameKind::Fork,
            11 => FrameKind::Forked,
            12 => FrameKind::PayloadAt,
            13 => FrameKind::Returned,
            14 => FrameKind::Again,
            15 => FrameKind::PayloadAgain,
            _ => return None,
        })
    }

    fn body_max(self) -> u64 {
        match self {
            FrameKind::Setup | FrameKind::Payload | FrameKind::PayloadAgain => u64::MAX,
            FrameKind::Ready
            | FrameKind::StartFailed
            | FrameKind::Forked
            | FrameKind::Attach
            | FrameKind::Uses
            | FrameKind::Forget
            | FrameKind::PayloadAt
            | FrameKind::Returned
            | FrameKind::Again => SMALL_BODY_MAX,
            FrameKind::Bell | FrameKind::Bye | FrameKind::Fork => 0,
        }
    }
}

/// The header of a frame with a body of `len` bytes.
pub fn header(kind: FrameKind, len: u64) -> [u8; HEADER_LEN] {
    let mut bytes = [0; HEADER_LEN];
    bytes[..4].copy_from_slice(&MAGIC);
    bytes[4] = PROTOCOL_VERSION;
    bytes[5] = kind as u8;
    bytes[8..].copy_from_slice(&len.to_le_bytes());
    bytes
}

/// A whole frame.
pub fn frame(kind: FrameKind, body: &[u8]) -> Vec<u8> {
    let mut bytes = header(kind, body.len() as u64).to_vec();
    bytes.extend_from_slice(body);
    bytes
}

/// What is wrong with a byte stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FrameFault {
    /// These bytes are not the header of a frame.
    NotAFrame([u8; HEADER_LEN]),
    /// The other side speaks another version of the protocol.
    Version(u8),
    /// A frame of this kind may not be so long.
    TooLong(FrameKind, u64),
    /// There is no memory for a frame of this kind and length.
    NoMemory(FrameKind, u64),
}

impl fmt::Display for FrameFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FrameFault::NotAFrame(bytes) => {
                f.write_str("bytes that are no frame on the control channel:")?;
                bytes.iter().try_for_each(|byte| write!(f, " {byte:02x}"))
            }
            FrameFault::Version(theirs) => {
                write!(f, "protocol version {theirs} where {PROTOCOL_VERSION} was expected")
            }
            FrameFault::TooLong(kind, len) => {
                write!(f, "a {kind:?} frame that claims {len} bytes on the control channel")
            }
            FrameFault::NoMemory(kind, len) => {
                write!(f, "no memory for a {kind:?} frame of {len} bytes")
            }
        }
    }
}

/// A frame as it came off the stream.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame {
    /// What it is for.
    pub kind: FrameKind,
    /// Its body, complete.
    pub body: Vec<u8>,
}

/// Cuts a byte stream into frames, however the bytes arrive.
#[derive(Debug, Default)]
pub struct Decoder {
    header: [u8; HEADER_LEN],
    header_filled: usize,
    /// What is known once the header is complete: the kind and how many bytes of body are missing.
    current: Option<(FrameKind, u64)>,
    body: Vec<u8>,
}

impl Decoder {
    /// Takes bytes off the front of `input`, up to the end of one frame. Call again while `input` is
    /// not empty. After a fault the stream is lost.
    pub fn feed(&mut self, input: &mut &[u8]) -> Result<Option<Frame>, FrameFault> {
        let (kind, missing) = match self.current {
            Some(current) => current,
            None => {
                let take = (HEADER_LEN - self.header_filled).min(input.len());
                let (now, later) = input.split_at(take);
                self.header[self.header_filled..][..take].copy_from_slice(now);
                self.header_filled += take;
                *input = later;
                if self.header_filled < HEADER_LEN {
                    return Ok(None);
                }
                parse_header(&self.header)?
            }
        };
        let take = usize::try_from(missing).unwrap_or(usize::MAX).min(input.len());
        let (now, later) = input.split_at(take);
        // The other side chooses how much comes, so that there is no memory for it must not be fatal. What is
        // reserved follows what has come, never what is claimed.
        if self.body.try_reserve(take).is_err() {
            return Err(FrameFault::NoMemory(kind, self.body.len() as u64 + missing));
        }
        self.body.extend_from_slice(now);
        *input = later;
        let missing = missing - take as u64;
        if missing > 0 {
            self.current = Some((kind, missing));
            return Ok(None);
        }
        self.current = None;
        self.header_filled = 0;
        Ok(Some(Frame { kind, body: std::mem::take(&mut self.body) }))
    }

    /// True in the middle of a frame: an end of the stream here cuts it off.
    pub fn is_inside_a_frame(&self) -> bool {
        self.header_filled > 0
    }

    /// The kind of the frame whose body is arriving, and how many bytes of it are here.
    pub fn partial(&self) -> Option<(FrameKind, usize)> {
        self.current.map(|(kind, _)| (kind, self.body.len()))
    }
}

fn parse_header(bytes: &[u8; HEADER_LEN]) -> Result<(FrameKind, u64), FrameFault> {
    if bytes[..4] != MAGIC || bytes[6..8] != [0, 0] {
        return Err(FrameFault::NotAFrame(*bytes));
    }
    if bytes[4] != PROTOCOL_VERSION {
        return Err(FrameFault::Version(bytes[4]));
    }
    let kind = FrameKind::from_byte(bytes[5]).ok_or(FrameFault::NotAFrame(*bytes))?;
    let len = u64::from_le_bytes(bytes[8..].try_into().expect("the last eight of sixteen bytes"));
    if len > kind.body_max() {
        return Err(FrameFault::TooLong(kind, len));
    }
    Ok((kind, len))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decode_all(decoder: &mut Decoder, mut input: &[u8]) -> Result<Vec<Frame>, FrameFault> {
        let mut frames = Vec::new();
        while !input.is_empty() {
            frames.extend(decoder.feed(&mut input)?);
        }
        Ok(frames)
    }

    fn sample() -> Vec<Frame> {
        [
            (FrameKind::Setup, vec![1; 40]),
            (FrameKind::Bell, vec![]),
            (FrameKind::Payload, (0..100).collect()),
            (FrameKind::StartFailed, b"no".to_vec()),
            (FrameKind::Bye, vec![]),
        ]
        .map(|(kind, body)| Frame { kind, body })
        .into()
    }

    fn bytes_of(frames: &[Frame]) -> Vec<u8> {
        frames.iter().flat_map(|f| frame(f.kind, &f.body)).collect()
    }

    /// Goal: the decoder's answer does not depend on where the stream is cut.
    /// Covers: F-55
    #[test]
    fn every_split_in_two_gives_the_same_frames() {
        let bytes = bytes_of(&sample());
        for cut in 0..=bytes.len() {
            let mut decoder = Decoder::default();
            let mut frames = decode_all(&mut decoder, &bytes[..cut]).unwrap();
            frames.extend(decode_all(&mut decoder, &bytes[cut..]).unwrap());
            assert_eq!(frames, sample(), "cut at {cut}");
            assert!(!decoder.is_inside_a_frame());
        }
    }

    /// Goal: a stream that ends early is never taken for a whole one.
    /// Covers: F-55
    #[test]
    fn every_truncation_is_noticed() {
        let bytes = bytes_of(&sample());
        let mut ends = vec![0];
        for frame in sample() {
            ends.push(ends.last().unwrap() + HEADER_LEN + frame.body.len());
        }
        for cut in 0..bytes.len() {
            let mut decoder = Decoder::default();
            let frames = decode_all(&mut decoder, &bytes[..cut]).unwrap();
            let whole = ends.iter().filter(|end| **end <= cut).count() - 1;
            assert_eq!(frames.len(), whole, "cut at {cut}");
            assert_eq!(decoder.is_inside_a_frame(), !ends.contains(&cut), "cut at {cut}");
        }
    }

    /// Covers: F-53
    #[test]
    fn a_huge_claimed_length_allocates_nothing() {
        let mut decoder = Decoder::default();
        let claim = header(FrameKind::Payload, u64::MAX);
        assert_eq!(decoder.feed(&mut claim.as_slice()), Ok(None));
        assert_eq!(decoder.body.capacity(), 0);
        let claim = header(FrameKind::Ready, SMALL_BODY_MAX + 1);
        let fault = Decoder::default().feed(&mut claim.as_slice()).unwrap_err();
        assert_eq!(fault, FrameFault::TooLong(FrameKind::Ready, SMALL_BODY_MAX + 1));
    }

    #[test]
    fn another_version_is_told_from_garbage() {
        let mut bytes = header(FrameKind::Bell, 0);
        bytes[4] = 9;
        assert_eq!(Decoder::default().feed(&mut bytes.as_slice()), Err(FrameFault::Version(9)));
        bytes[0] = b'x';
        assert_eq!(
            Decoder::default().feed(&mut bytes.as_slice()),
            Err(FrameFault::NotAFrame(bytes))
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(10_000))]

        /// Goal: bytes delivered in any pieces give the frames that were sent.
        /// Covers: F-55
        #[test]
        fn any_pieces_give_the_same_frames(cuts in prop::collection::vec(0usize..400, 0..40)) {
            let bytes = bytes_of(&sample());
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let mut decoder = Decoder::default();
            let mut frames = Vec::new();
            for pair in cuts.windows(2) {
                frames.extend(decode_all(&mut decoder, &bytes[pair[0]..pair[1]]).unwrap());
            }
            prop_assert_eq!(frames, sample());
        }

        /// Goal: no bytes make the decoder panic or hold more memory than it was given.
        /// Covers: F-24
        #[test]
        fn random_bytes_are_refused_or_wait_for_more(bytes in prop::collection::vec(any::<u8>(), 0..500)) {
            let mut decoder = Decoder::default();
            let _ = decode_all(&mut decoder, &bytes);
            prop_assert!(decoder.body.len() <= bytes.len());
        }

        /// Goal: each single flipped bit of a header is refused, or changes only kind or length.
        /// Covers: F-56
        #[test]
        fn a_flipped_header_bit_never_passes_for_the_same_frame(bit in 0usize..HEADER_LEN * 8) {
            let mut bytes = frame(FrameKind::StartFailed, b"12345678");
            bytes[bit / 8] ^= 1 << (bit % 8);
            let frames = decode_all(&mut Decoder::default(), &bytes);
            prop_assert_ne!(frames, Ok(vec![Frame { kind: FrameKind::StartFailed, body: b"12345678".to_vec() }]));
        }
    }
}
