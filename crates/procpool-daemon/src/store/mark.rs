//! How far the journal had come: a number beside it, so that an end that is missing is seen.
//!
//! SQLite ends its log at the first frame whose checksum does not hold. That is right for what was being written when
//! the power went, and silent about what was damaged later: commits that were acknowledged would be gone as if they
//! had never been. So each commit has a number, in the journal and, once it is done, in this file. A journal
//! that does not reach the number here has lost something.
//!
//! The file is not synced with each commit, which would halve their rate. A number in it is never ahead of what it
//! counts: after a crash of the daemon it is exact, and after one of the machine at most behind. Two slots are written in turn,
//! each within one sector, so that one of them holds whatever happens to the other.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use super::StoreError;

/// A sector of any disk.
const SLOT_LEN: usize = 512;
const RECORD_LEN: usize = 64;
const MAGIC: [u8; 8] = *b"PPmark\0\x01";

/// What a slot says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reached {
    /// The number of the last commit.
    pub(super) commits: u64,
    /// That of the last one that outlives a crash of the machine.
    pub(super) durable: u64,
}

/// The file.
#[derive(Debug)]
pub(super) struct Mark {
    file: File,
    /// Counts what was written; says which slot is next.
    serial: u64,
    boot: [u8; 16],
}

/// What there is of a file.
#[derive(Debug)]
pub(super) enum Found {
    Nothing,
    /// Neither slot holds.
    Nonsense,
    Says(Mark, Reached),
}

impl Mark {
    /// The file, and what it says.
    pub(super) fn open(path: &Path) -> Result<Found, StoreError> {
        let file = match OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
            Err(error) => return Err(error.into()),
        };
        let boot = boot_id();
        let mut best: Option<(u64, Reached)> = None;
        for slot in 0..2 {
            let mut bytes = [0; RECORD_LEN];
            match file.read_exact_at(&mut bytes, slot * SLOT_LEN as u64) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => continue,
                Err(error) => return Err(error.into()),
            }
            let read = parse(&bytes, &boot);
            best = best.into_iter().chain(read).max_by_key(|(serial, _)| *serial);
        }
        Ok(match best {
            Some((serial, reached)) => Found::Says(Mark { file, serial, boot }, reached),
            None => Found::Nonsense,
        })
    }

    /// Makes the file; it is durable then, its name apart.
    pub(super) fn create(path: &Path, reached: Reached) -> Result<Mark, StoreError> {
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(true).mode(0o600);
        let file = file.open(path)?;
        let mut mark = Mark { file, serial: 0, boot: boot_id() };
        // Both slots, so that no later write needs room.
        mark.write(reached)?;
        mark.write(reached)?;
        mark.sync()?;
        Ok(mark)
    }

    /// Says something else.
    pub(super) fn write(&mut self, reached: Reached) -> Result<(), StoreError> {
        let serial = self.serial + 1;
        let mut slot = [0; SLOT_LEN];
        slot[..RECORD_LEN].copy_from_slice(&form(serial, &reached, &self.boot));
        self.file.write_all_at(&slot, (serial % 2) * SLOT_LEN as u64)?;
        self.serial = serial;
        Ok(())
    }

    /// Makes it durable.
    pub(super) fn sync(&self) -> Result<(), StoreError> {
        Ok(self.file.sync_data()?)
    }
}

fn form(serial: u64, reached: &Reached, boot: &[u8; 16]) -> [u8; RECORD_LEN] {
    let mut bytes = [0; RECORD_LEN];
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..16].copy_from_slice(&serial.to_le_bytes());
    bytes[16..24].copy_from_slice(&reached.commits.to_le_bytes());
    bytes[24..32].copy_from_slice(&reached.durable.to_le_bytes());
    bytes[32..48].copy_from_slice(boot);
    let sum = crc32fast::hash(&bytes[..RECORD_LEN - 4]);
    bytes[RECORD_LEN - 4..].copy_from_slice(&sum.to_le_bytes());
    bytes
}

/// What a slot says, as far as it counts: what was not durable before another start of the machine does not.
fn parse(bytes: &[u8; RECORD_LEN], boot: &[u8; 16]) -> Option<(u64, Reached)> {
    let sum = crc32fast::hash(&bytes[..RECORD_LEN - 4]);
    if bytes[..8] != MAGIC || bytes[RECORD_LEN - 4..] != sum.to_le_bytes() {
        return None;
    }
    let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
    let durable = word(24);
    let is_this_boot = bytes[32..48] == *boot && *boot != [0; 16];
    let commits = if is_this_boot { word(16) } else { durable };
    Some((word(8), Reached { commits, durable }))
}

/// What tells one start of the machine from another; zeros where there is no such thing.
pub(super) fn boot_id() -> [u8; 16] {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    u128::from_str_radix(&digits, 16).map(u128::to_be_bytes).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const REACHED: Reached = Reached { commits: 7, durable: 5 };

    #[test]
    fn a_slot_that_does_not_hold_is_not_believed() {
        let bytes = form(3, &REACHED, &[1; 16]);
        assert_eq!(parse(&bytes, &[1; 16]), Some((3, REACHED)));
        for bit in 0..RECORD_LEN * 8 {
            let mut bytes = bytes;
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(parse(&bytes, &[1; 16]), None, "bit {bit}");
        }
    }

    #[test]
    fn after_another_start_of_the_machine_only_the_durable_counts() {
        let bytes = form(3, &REACHED, &[1; 16]);
        let expected = Reached { commits: 5, ..REACHED };
        assert_eq!(parse(&bytes, &[2; 16]), Some((3, expected)));
        let unknown = form(3, &REACHED, &[0; 16]);
        assert_eq!(parse(&unknown, &[0; 16]), Some((3, expected)));
    }
}
