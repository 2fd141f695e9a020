//! Outcomes other than a value, as a worker records them and as the pool reads them.

use procpool_wire::codec::{self, CodecFault};
use procpool_wire::elements::Kind;
use procpool_wire::handshake::PanicRecord;
use procpool_wire::limits::LeakRecord;

use crate::job_error::{CodecError, JobError, Label, Panic, Side};
use crate::leaks::Leaked;

/// The element that records a codec's fault with a value of the named type.
pub(super) fn codec_fault(kind: Kind, type_name: &str, fault: CodecFault) -> (Kind, Vec<u8>) {
    match fault {
        CodecFault::TooLarge { len, .. } => (Kind::TooLarge, len.to_le_bytes().to_vec()),
        CodecFault::Message(message) => (kind, encode(&(type_name, message))),
    }
}

/// The bytes that record a panic.
pub(super) fn panic(record: &PanicRecord) -> Vec<u8> {
    encode(record)
}

fn encode<T: serde::Serialize>(value: &T) -> Vec<u8> {
    let mut bytes = Vec::new();
    // Strings always encode.
    let _ = codec::encode_into(value, None, &mut bytes);
    bytes
}

/// What a recorded fault means to the caller. The bytes may be hostile: what does not decode is shown as text.
pub(crate) fn recorded_error(
    kind: Kind,
    bytes: &[u8],
    label: &Label,
    limit: Option<u64>,
) -> JobError {
    let codec_error = || {
        let (type_name, message) = codec::decode::<(String, String)>(bytes).unwrap_or_default();
        CodecError { side: Side::Worker, type_name, message }
    };
    match kind {
        Kind::DecodeFault => JobError::Decode(codec_error()),
        Kind::EncodeFault | Kind::Value => JobError::Encode(codec_error()),
        Kind::TooLarge => JobError::TooLarge {
            len: bytes.try_into().map_or(0, u64::from_le_bytes),
            limit: limit.unwrap_or(u64::MAX),
        },
        Kind::Unregistered => JobError::Unregistered(String::from_utf8_lossy(bytes).into_owned()),
        Kind::Panicked => JobError::Panicked(panic_of(bytes, label, false)),
        Kind::Leaked => JobError::Leaked(leaked_of(bytes)),
    }
}

/// What was left behind, as these bytes record it.
pub(crate) fn leaked_of(bytes: &[u8]) -> Leaked {
    Leaked::of(codec::decode::<LeakRecord>(bytes).unwrap_or_default())
}

/// The panic that these bytes record.
pub(crate) fn panic_of(bytes: &[u8], label: &Label, aborted: bool) -> Panic {
    let record = codec::decode::<PanicRecord>(bytes).unwrap_or_else(|_| PanicRecord {
        message: String::from_utf8_lossy(bytes).into_owned(),
        ..PanicRecord::default()
    });
    let PanicRecord { message, location, backtrace } = record;
    Panic { message, location, backtrace, aborted, label: label.clone() }
}
