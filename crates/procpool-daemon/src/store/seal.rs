//! Encoded records with a checksum: SQLite has none in its pages.

use procpool_wire::codec;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::StoreError;
use crate::job::JobId;

const SUM_LEN: usize = 4;

/// Encoded, with a checksum in front over the bytes and whose they are.
pub(super) fn seal<T: Serialize>(id: JobId, value: &T) -> Vec<u8> {
    let mut bytes = vec![0; SUM_LEN];
    codec::encode_into(value, None, &mut bytes).expect("plain data can be encoded");
    let sum = checksum(id, &bytes[SUM_LEN..]);
    bytes[..SUM_LEN].copy_from_slice(&sum.to_le_bytes());
    bytes
}

/// What was sealed for this job.
pub(super) fn open<T: DeserializeOwned>(id: JobId, bytes: &[u8]) -> Result<T, StoreError> {
    codec::decode(check(id, bytes)?)
        .map_err(|fault| damaged(id, &format!("cannot be read: {fault}")))
}

/// The bytes without their checksum, which holds.
pub(super) fn check(id: JobId, bytes: &[u8]) -> Result<&[u8], StoreError> {
    let (sum, bytes) = bytes.split_at_checked(SUM_LEN).ok_or_else(|| damaged(id, "is cut off"))?;
    if sum == checksum(id, bytes).to_le_bytes() {
        Ok(bytes)
    } else {
        Err(damaged(id, "does not have its checksum"))
    }
}

fn damaged(id: JobId, what: &str) -> StoreError {
    StoreError::Damaged(format!("the record of job {id} {what}"))
}

fn checksum(id: JobId, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&id.0.to_le_bytes());
    hasher.update(bytes);
    hasher.finalize()
}
