//! [`Shared`]: one value for many jobs, sent once to each worker.

use std::any::type_name;
use std::fmt;
use std::io::{BufWriter, Write};
use std::ops::Deref;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use procpool_sys::sealed::Unsealed;
use procpool_wire::codec::{self, CodecFault};
use serde::de::{Deserializer, Error as _};
use serde::ser::{Error as _, Serializer};
use serde::{Deserialize, Serialize};

use crate::attachments::session::{self, Collected};
use crate::attachments::{AnyValue, Attachment};
use crate::executor::{Data, STACK_BYTES_MAX, panic_text};
use crate::nesting;

/// Bytes collected before they are written to sealed memory: system calls are saved from here on, and more
/// would not stay in the processor's cache.
const WRITE_AT_ONCE: usize = 64 * 1024;

/// A value that many jobs use: encoded once, sent once to each worker that needs it, decoded there once.
///
/// Made by [`ProcessPool::share`](crate::ProcessPool::share). A handle travels in arguments and results as
/// a few bytes, alone or inside a tuple or struct of your own, to workers of any pool of this process and
/// on to pools that jobs have. In a worker it is decoded before the first job that uses it, and that
/// value is there for the following ones: jobs see the same `T`, so one with interior mutability shows
/// what earlier jobs in the same worker did to it.
///
/// The value is let go when the last handle and the jobs that use it are gone: the encoded form at once,
/// a worker's value as soon as the worker is idle.
///
/// Serialized anywhere but in a job's argument or result, to JSON for example, it is an error: what stands
/// there would mean nothing.
///
/// ```
/// use procpool::{ProcessPool, Shared};
///
/// fn lookup((table, index): (Shared<Vec<u64>>, usize)) -> u64 {
///     table[index]
/// }
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # procpool::init();
/// let pool = ProcessPool::new()?;
/// let table = pool.share(vec![2, 3, 5, 7]);
/// let jobs = (0..table.len()).map(|index| (table.clone(), index));
/// let found: Result<Vec<u64>, _> = pool.map(lookup, jobs).collect();
/// assert_eq!(found?, *table);
/// # Ok(())
/// # }
/// ```
pub struct Shared<T> {
    value: Arc<T>,
    /// The encoded form, or why there is none: every job that uses it ends so.
    encoded: Result<Arc<Attachment>, Arc<CodecFault>>,
}

impl<T: Data + Sync> Shared<T> {
    pub(crate) fn new(value: T, limit: Option<u64>) -> Shared<T> {
        let value = Arc::new(value);
        let encode = || encode(&*value, limit);
        let encoded = catch_unwind(AssertUnwindSafe(encode))
            .unwrap_or_else(|payload| Err(CodecFault::Message(panic_text(payload))));
        if let Ok(attachment) = &encoded {
            attachment.set_value(Arc::clone(&value) as Arc<AnyValue>);
        }
        Shared { value, encoded: encoded.map_err(Arc::new) }
    }

    /// The value that an attachment encodes: the one that somebody in this process has, or a new one.
    fn decode(attachment: Arc<Attachment>) -> Result<Shared<T>, String> {
        let value = match attachment.value() {
            Some(value) => value,
            None => {
                let bytes = attachment.bytes().map_err(|error| error.to_string())?;
                // In the host it has come with a result.
                let decode = || {
                    if nesting::is_worker() {
                        codec::decode::<T>(bytes)
                    } else {
                        codec::decode_within::<T>(bytes, STACK_BYTES_MAX)
                    }
                };
                let value = session::with_source(Some(attachment.uses()), decode)
                    .map_err(|fault| fault.to_string())?;
                attachment.set_value(Arc::new(value))
            }
        };
        let value = value.downcast::<T>().map_err(|_| {
            format!("the shared value is of another type than {}", type_name::<T>())
        })?;
        Ok(Shared { value, encoded: Ok(attachment) })
    }
}

/// Writes `value` to sealed memory, without a copy in between.
fn encode<T: Serialize>(value: &T, limit: Option<u64>) -> Result<Arc<Attachment>, CodecFault> {
    let system = |error: std::io::Error| {
        CodecFault::Message(format!("cannot make memory for a shared value: {error}"))
    };
    let unsealed = Unsealed::create().map_err(system)?;
    let mut collected = Collected::default();
    let mut writer = BufWriter::with_capacity(WRITE_AT_ONCE, unsealed);
    session::collect(&mut collected, || codec::encode_to(value, &mut writer))?;
    writer.flush().map_err(system)?;
    let unsealed = writer.into_inner().map_err(|error| system(error.into_error()))?;
    let bytes = collected.bytes();
    let attachment = Attachment::seal(unsealed, collected.into_list()).map_err(system)?;
    let len = attachment.len() as u64 + bytes;
    match limit {
        Some(limit) if len > limit => Err(CodecFault::TooLarge { len, limit }),
        _ => Ok(attachment),
    }
}

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Shared<T> {
        Shared { value: Arc::clone(&self.value), encoded: self.encoded.clone() }
    }
}

impl<T> Deref for Shared<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T: fmt::Debug> fmt::Debug for Shared<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Shared").field(&self.value).finish()
    }
}

impl<T> Serialize for Shared<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() || !session::is_open() {
            return Err(S::Error::custom(
                "a Shared<T> can be sent only in the argument or result of a job of a process pool",
            ));
        }
        let attachment = match &self.encoded {
            Ok(attachment) => attachment,
            Err(fault) => return Err(S::Error::custom(format!("the shared value: {fault}"))),
        };
        let attachment = attachment.to_pass_on().ok_or_else(|| {
            S::Error::custom("there is no descriptor left to pass the shared value on with")
        })?;
        let place = session::place_of(&attachment)
            .ok_or_else(|| S::Error::custom("one value refers to too many attachments"))?;
        place.serialize(serializer)
    }
}

impl<'de, T: Data + Sync> Deserialize<'de> for Shared<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Shared<T>, D::Error> {
        if deserializer.is_human_readable() {
            return Err(D::Error::custom("a Shared<T> comes only with a job of a process pool"));
        }
        let place = u32::deserialize(deserializer)?;
        let attachment = session::attachment_at(place).map_err(D::Error::custom)?;
        Shared::decode(attachment).map_err(D::Error::custom)
    }
}
