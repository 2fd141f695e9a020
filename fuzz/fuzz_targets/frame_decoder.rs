//! The frame decoder against arbitrary bytes in arbitrary pieces: it never panics, never holds more than it
//! was given, and where the stream is cut makes no difference.
//!
//! ```text
//! cargo +nightly fuzz run frame_decoder         with cargo-fuzz and its address sanitizer
//! ```
//! Without either, in this directory; the second line is what makes libFuzzer see which code an input reaches:
//! ```text
//! RUSTFLAGS='-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4
//!   -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table' \
//!   cargo run --release --target x86_64-unknown-linux-gnu --bin frame_decoder -- corpus/frame_decoder
//! ```
//! The last word is the directory of the corpus, which must exist. With an explicit target, build scripts
//! are built without the flags.

#![no_main]

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use procpool_wire::frame::{self, Decoder, Frame, FrameFault, FrameKind};

#[derive(Debug, Arbitrary)]
struct Input {
    stream: Vec<Part>,
    /// How long the pieces are in which the stream arrives; the last is what is left.
    pieces: Vec<u8>,
}

/// Random bytes hardly ever begin like a frame, so whole frames are made up as well.
#[derive(Debug, Arbitrary)]
enum Part {
    Bytes(Vec<u8>),
    Frame(Kind, Vec<u8>),
    /// A header whose length has nothing to do with what follows.
    Header(Kind, u64),
}

#[derive(Debug, Clone, Copy, Arbitrary)]
enum Kind {
    Setup,
    Ready,
    StartFailed,
    Bell,
    Payload,
    Bye,
}

impl From<Kind> for FrameKind {
    fn from(kind: Kind) -> FrameKind {
        match kind {
            Kind::Setup => FrameKind::Setup,
            Kind::Ready => FrameKind::Ready,
            Kind::StartFailed => FrameKind::StartFailed,
            Kind::Bell => FrameKind::Bell,
            Kind::Payload => FrameKind::Payload,
            Kind::Bye => FrameKind::Bye,
        }
    }
}

/// What came of a stream: its frames, then either a fault or what is known of an unfinished frame.
#[derive(Debug, PartialEq)]
struct Decoded {
    frames: Vec<Frame>,
    fault: Option<FrameFault>,
    unfinished: Option<(bool, Option<(FrameKind, usize)>)>,
}

fn decode<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Decoded {
    let mut decoder = Decoder::default();
    let mut frames = Vec::new();
    for mut piece in pieces {
        while !piece.is_empty() {
            let before = piece.len();
            match decoder.feed(&mut piece) {
                Ok(frame) => frames.extend(frame),
                Err(fault) => {
                    return Decoded { frames, fault: Some(fault), unfinished: None };
                }
            }
            assert!(piece.len() < before, "the decoder does not get on");
        }
    }
    Decoded {
        frames,
        fault: None,
        unfinished: Some((decoder.is_inside_a_frame(), decoder.partial())),
    }
}

fuzz_target!(|input: Input| {
    let mut stream = Vec::new();
    for part in &input.stream {
        match part {
            Part::Bytes(bytes) => stream.extend(bytes),
            Part::Frame(kind, body) => stream.extend(frame::frame((*kind).into(), body)),
            Part::Header(kind, len) => stream.extend(frame::header((*kind).into(), *len)),
        }
    }
    let whole = decode([stream.as_slice()].into_iter());

    let mut rest = stream.as_slice();
    let mut pieces = Vec::new();
    for len in &input.pieces {
        let (piece, later) = rest.split_at(usize::from(*len).min(rest.len()));
        pieces.push(piece);
        rest = later;
    }
    pieces.push(rest);
    assert_eq!(decode(pieces.into_iter()), whole);
    assert_eq!(decode(stream.chunks(1)), whole);

    // Nothing is made up: the frames, written again, are the stream they came from.
    let written: Vec<u8> =
        whole.frames.iter().flat_map(|frame| frame::frame(frame.kind, &frame.body)).collect();
    assert!(stream.starts_with(&written));
    if let Some((_, Some((_, held)))) = whole.unfinished {
        assert!(written.len() + frame::HEADER_LEN + held <= stream.len());
    }
});
