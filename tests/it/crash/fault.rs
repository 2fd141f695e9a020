//! Everything that can go wrong in a job, and every place where it can.

use std::hint::black_box;
use std::panic::panic_any;
use std::{process, thread};

use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Fault {
    Segfault,
    Abort,
    ExitZero,
    ExitThree,
    /// `_exit`, which runs nothing on its way out.
    BareExit,
    StackOverflow,
    PanicString,
    PanicStr,
    /// With a payload that is not text.
    PanicNumber,
    /// With a payload whose Drop panics (rust-lang/rust#86027).
    PanicBomb,
    /// A panic while panicking, which aborts.
    PanicTwice,
    /// From a thread that the job has started.
    ExitElsewhere,
}

/// Where it goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Place {
    Decode,
    Run,
    Encode,
    DropArgument,
    DropResult,
}

impl Fault {
    pub(crate) const ALL: [Fault; 12] = [
        Fault::Segfault,
        Fault::Abort,
        Fault::ExitZero,
        Fault::ExitThree,
        Fault::BareExit,
        Fault::StackOverflow,
        Fault::PanicString,
        Fault::PanicStr,
        Fault::PanicNumber,
        Fault::PanicBomb,
        Fault::PanicTwice,
        Fault::ExitElsewhere,
    ];

    /// Does it.
    #[expect(unsafe_code, reason = "a real fault takes a real bad write")]
    pub(crate) fn strike(self) {
        match self {
            Fault::Segfault => {
                // In the first page, which is never mapped; not null, which debug builds check for.
                let address = black_box(16_usize) as *mut u8;
                // SAFETY: none, on purpose: the write ends the process.
                unsafe { address.write_volatile(1) };
            }
            Fault::Abort => process::abort(),
            Fault::ExitZero => process::exit(0),
            Fault::ExitThree => process::exit(3),
            // SAFETY: ends the process and touches no memory.
            Fault::BareExit => unsafe { libc::_exit(0) },
            Fault::StackOverflow => drop(black_box(overflow(0))),
            Fault::PanicString => panic!("a message made of {} parts", black_box(3)), // PanicString
            Fault::PanicStr => panic!("a literal message"),                           // PanicStr
            Fault::PanicNumber => panic_any(42_u64),                                  // PanicNumber
            Fault::PanicBomb => panic_any(Bomb("the payload's own panic")),           // PanicBomb
            Fault::PanicTwice => {
                let _dropped_while_unwinding = Bomb("the second panic");
                panic!("the first panic"); // PanicTwice
            }
            Fault::ExitElsewhere => {
                let _ = thread::spawn(|| process::exit(7)).join();
            }
        }
    }

    /// Where this file's panic of this name stands: `file:line:column`.
    pub(crate) fn location(self) -> String {
        let mark = format!("// {self:?}");
        let mut lines = (1..).zip(include_str!("fault.rs").lines());
        let (line, text) = lines.find(|(_, text)| text.ends_with(&mark)).unwrap();
        let arm = text.find("=> ").map_or(0, |arrow| arrow + 3);
        let column = arm + text[arm..].find("panic").unwrap() + 1;
        format!("{}:{line}:{column}", file!())
    }
}

impl Place {
    pub(crate) const ALL: [Place; 5] =
        [Place::Decode, Place::Run, Place::Encode, Place::DropArgument, Place::DropResult];
}

struct Bomb(&'static str);

impl Drop for Bomb {
    fn drop(&mut self) {
        panic!("{}", self.0);
    }
}

/// Recurses until the stack ends, with frames that cannot be optimised away.
fn overflow(depth: u64) -> u64 {
    let frame = black_box([depth; 512]);
    if depth == u64::MAX { 0 } else { overflow(depth + 1) + frame[0] }
}

/// Bytes that are encoded and decoded in one piece, so that megabytes of them take no time.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Blob(pub(crate) Vec<u8>);

impl Serialize for Blob {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Blob, D::Error> {
        struct Bytes;
        impl Visitor<'_> for Bytes {
            type Value = Blob;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("bytes")
            }
            fn visit_byte_buf<E: de::Error>(self, bytes: Vec<u8>) -> Result<Blob, E> {
                Ok(Blob(bytes))
            }
        }
        deserializer.deserialize_byte_buf(Bytes)
    }
}

/// Types that are harmless in the test's process, where they are encoded, decoded and dropped as well.
fn strike_in_a_job(fault: Fault) {
    if procpool::context().is_some() {
        fault.strike();
    }
}

/// What the job is to do, and the argument that goes wrong itself if it shall.
#[derive(Debug, Serialize)]
pub(crate) struct Argument {
    pub(crate) fault: Fault,
    pub(crate) place: Place,
    pub(crate) load: Blob,
    pub(crate) result_len: usize,
}

impl<'de> Deserialize<'de> for Argument {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Argument, D::Error> {
        let (fault, place, load, result_len) = Deserialize::deserialize(deserializer)?;
        if place == Place::Decode {
            strike_in_a_job(fault);
        }
        Ok(Argument { fault, place, load, result_len })
    }
}

impl Drop for Argument {
    fn drop(&mut self) {
        if self.place == Place::DropArgument {
            strike_in_a_job(self.fault);
        }
    }
}

/// The result, which goes wrong itself if it shall.
#[derive(Debug, Deserialize)]
pub(crate) struct Answer {
    fault: Fault,
    place: Place,
    pub(crate) load: Blob,
    pub(crate) argument_len: usize,
}

impl Serialize for Answer {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.place == Place::Encode {
            strike_in_a_job(self.fault);
        }
        (self.fault, self.place, &self.load, self.argument_len).serialize(serializer)
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if self.place == Place::DropResult {
            strike_in_a_job(self.fault);
        }
    }
}

/// The job.
pub(crate) fn job(argument: Argument) -> Answer {
    if argument.place == Place::Run {
        argument.fault.strike();
    }
    Answer {
        fault: argument.fault,
        place: argument.place,
        load: Blob(vec![7; argument.result_len]),
        argument_len: argument.load.0.len(),
    }
}
