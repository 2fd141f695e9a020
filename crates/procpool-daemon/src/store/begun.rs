//! Which attempts a worker may have had: a cell for each, in a file beside the journal.
//!
//! The journal says that a job runs before any worker has it, and of short jobs well before. After a crash of the daemon
//! this file says which of them had been given away: the others wait again, as if nothing had been. A cell is written
//! before its job is given away and free again once the journal has kept how the attempt ended, so that it is
//! never a cell that is missing.
//!
//! The file is never synced: what is written outlives the process, which is all that it is for. After a crash of the
//! machine it counts for nothing, and any job that ran may have been begun. The same holds if it is missing, or a bit
//! of it has flipped.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::StoreError;
use super::mark::boot_id;
use crate::job::{Attempt, JobId};

const MAGIC: [u8; 8] = *b"PPbegun\x01";
const HEADER_LEN: usize = 64;
const CELL_LEN: usize = 16;
/// How many attempts can be under way: as many as the largest queue has slots. Beyond, the next one waits.
const CELLS: usize = 4096;

/// The file.
#[derive(Debug)]
pub struct Begun {
    place: Place,
    /// Where each attempt stands that may be under way.
    cells: HashMap<JobId, (usize, Attempt)>,
    free: Vec<usize>,
}

#[derive(Debug)]
enum Place {
    /// There is nothing to be remembered.
    Nowhere,
    /// What is there says nothing that holds. It stays until the first attempt is noted: what ran before has been
    /// dealt with then.
    Unknown(PathBuf),
    File(File),
}

impl Begun {
    /// What an earlier daemon has left in this directory.
    ///
    /// # Errors
    /// If it is there and cannot be read.
    pub fn open(dir: &Path) -> Result<Begun, StoreError> {
        let path = dir.join("begun");
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error.into()),
        };
        let Some(cells) = parse(&bytes, &boot_id()) else {
            return Ok(Begun { place: Place::Unknown(path), cells: HashMap::new(), free: free() });
        };
        let file = OpenOptions::new().write(true).open(&path)?;
        let free = free().into_iter().filter(|cell| !cells.iter().any(|(_, (at, _))| at == cell));
        let free = free.collect();
        Ok(Begun { place: Place::File(file), cells: cells.into_iter().collect(), free })
    }

    /// For jobs that do not outlive the process.
    pub fn nowhere() -> Begun {
        Begun { place: Place::Nowhere, cells: HashMap::new(), free: free() }
    }

    /// Whether a worker may have had an attempt that an earlier daemon has left.
    pub fn may_have(&self, id: JobId, attempt: Attempt) -> bool {
        self.has(id, attempt) || matches!(self.place, Place::Unknown(_))
    }

    /// Whether an attempt was noted that is not over.
    pub fn has(&self, id: JobId, attempt: Attempt) -> bool {
        self.cells.get(&id).is_some_and(|(_, noted)| *noted == attempt)
    }

    /// Frees all cells but those of these attempts. Each of these is [`over`](Begun::over) at some time.
    pub fn keep_only(&mut self, is_under_way: impl Fn(JobId, Attempt) -> bool) {
        let free = &mut self.free;
        self.cells.retain(|id, (cell, attempt)| {
            let keeps = is_under_way(*id, *attempt);
            if !keeps {
                free.push(*cell);
            }
            keeps
        });
    }

    /// Notes an attempt before a worker has it. False if there is no cell for it now.
    ///
    /// # Errors
    /// If it cannot be written: it must not begin then.
    pub fn note(&mut self, id: JobId, attempt: Attempt) -> Result<bool, StoreError> {
        let Some(cell) = self.free.pop() else {
            return Ok(false);
        };
        if let Err(error) = self.write(cell, id, attempt) {
            self.free.push(cell);
            return Err(error);
        }
        self.cells.insert(id, (cell, attempt));
        Ok(true)
    }

    /// The journal has kept how an attempt ended.
    pub fn over(&mut self, id: JobId, attempt: Attempt) {
        if let Some((cell, noted)) = self.cells.get(&id).copied()
            && noted == attempt
        {
            self.cells.remove(&id);
            self.free.push(cell);
        }
    }

    fn write(&mut self, cell: usize, id: JobId, attempt: Attempt) -> Result<(), StoreError> {
        if let Place::Unknown(path) = &self.place {
            self.place = Place::File(make(path)?);
        }
        if let Place::File(file) = &self.place {
            let place = (HEADER_LEN + cell * CELL_LEN) as u64;
            file.write_all_at(&form(id, attempt), place)?;
        }
        Ok(())
    }
}

/// The lowest is taken first.
fn free() -> Vec<usize> {
    (0..CELLS).rev().collect()
}

/// Makes the file in place of whatever was there. All of its room is taken, so that no later write needs any.
fn make(path: &Path) -> Result<File, StoreError> {
    let new = path.with_extension("new");
    let mut bytes = vec![0; HEADER_LEN + CELLS * CELL_LEN];
    bytes[..HEADER_LEN].copy_from_slice(&header(&boot_id()));
    let mut options = OpenOptions::new();
    let file = options.write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all_at(&bytes, 0)?;
    fs::rename(new, path)?;
    Ok(file)
}

fn header(boot: &[u8; 16]) -> [u8; HEADER_LEN] {
    let mut bytes = [0; HEADER_LEN];
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..24].copy_from_slice(boot);
    let sum = crc32fast::hash(&bytes[..HEADER_LEN - 4]);
    bytes[HEADER_LEN - 4..].copy_from_slice(&sum.to_le_bytes());
    bytes
}

fn form(id: JobId, attempt: Attempt) -> [u8; CELL_LEN] {
    let mut bytes = [0; CELL_LEN];
    bytes[..8].copy_from_slice(&id.0.to_le_bytes());
    bytes[8..12].copy_from_slice(&attempt.to_le_bytes());
    let sum = crc32fast::hash(&bytes[..12]);
    bytes[12..].copy_from_slice(&sum.to_le_bytes());
    bytes
}

type Cell = (JobId, (usize, Attempt));

/// The cells that have been written since this start of the machine; `None` if that is not known of all.
fn parse(bytes: &[u8], boot: &[u8; 16]) -> Option<Vec<Cell>> {
    let (start, rest) = bytes.split_at_checked(HEADER_LEN)?;
    if *boot == [0; 16] || start != header(boot) || rest.len() != CELLS * CELL_LEN {
        return None;
    }
    let mut cells: HashMap<JobId, (usize, Attempt)> = HashMap::new();
    for (index, cell) in rest.chunks_exact(CELL_LEN).enumerate() {
        if cell.iter().all(|byte| *byte == 0) {
            continue;
        }
        let (id, rest) = cell.split_first_chunk()?;
        let (attempt, _) = rest.split_first_chunk()?;
        let (id, attempt) = (JobId(u64::from_le_bytes(*id)), Attempt::from_le_bytes(*attempt));
        if form(id, attempt) != cell {
            return None;
        }
        // A cell that was freed still says what was there: the last attempt of a job is the one that counts.
        let found = cells.entry(id).or_insert((index, attempt));
        if found.1 < attempt {
            *found = (index, attempt);
        }
    }
    Some(cells.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Dir(PathBuf);

    impl Dir {
        fn new(name: &str) -> Dir {
            let dir = std::env::temp_dir().join(format!("begun-{name}-{}", std::process::id()));
            fs::create_dir(&dir).unwrap();
            Dir(dir)
        }

        fn file(&self) -> PathBuf {
            self.0.join("begun")
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    #[test]
    fn what_was_noted_is_known_to_the_next() {
        let dir = Dir::new("next");
        let mut begun = Begun::open(&dir.0).unwrap();
        assert!(begun.may_have(JobId(7), 1), "nothing is known yet");
        assert!(begun.note(JobId(7), 1).unwrap());
        assert!(begun.note(JobId(8), 3).unwrap());
        begun.over(JobId(7), 1);
        assert!(begun.note(JobId(9), 1).unwrap());
        let mut next = Begun::open(&dir.0).unwrap();
        // The cell of 7 is taken by 9.
        let known = [(7, 1), (8, 3), (8, 2), (8, 4), (9, 1)];
        let may = known.map(|(id, attempt)| next.may_have(JobId(id), attempt));
        assert_eq!(may, [false, true, false, false, true]);
        // What an earlier daemon has left stays until it is over.
        next.keep_only(|id, _| id == JobId(8));
        for id in 10..10 + CELLS as u64 - 1 {
            assert!(next.note(JobId(id), 1).unwrap());
        }
        assert!(!next.note(JobId(5), 1).unwrap(), "all cells are taken");
        assert!(Begun::open(&dir.0).unwrap().may_have(JobId(8), 3));
        next.over(JobId(8), 2);
        assert!(!next.note(JobId(5), 1).unwrap(), "another attempt is over");
        next.over(JobId(8), 3);
        assert!(next.note(JobId(5), 1).unwrap());
        assert!(!Begun::open(&dir.0).unwrap().may_have(JobId(8), 3));
    }

    #[test]
    fn a_later_attempt_counts_for_its_job() {
        let dir = Dir::new("later");
        let mut begun = Begun::open(&dir.0).unwrap();
        begun.note(JobId(1), 1).unwrap();
        begun.note(JobId(2), 1).unwrap();
        begun.over(JobId(2), 1);
        begun.over(JobId(1), 1);
        // It is given the cell of the first, or of the second: either way the second attempt is found.
        begun.note(JobId(2), 2).unwrap();
        let next = Begun::open(&dir.0).unwrap();
        assert!(next.may_have(JobId(2), 2));
    }

    #[test]
    fn after_damage_or_another_boot_anything_may_have_begun() {
        let dir = Dir::new("damage");
        let mut begun = Begun::open(&dir.0).unwrap();
        begun.note(JobId(7), 1).unwrap();
        let good = fs::read(dir.file()).unwrap();
        let knows = |bytes: &[u8]| {
            fs::write(dir.file(), bytes).unwrap();
            !Begun::open(&dir.0).unwrap().may_have(JobId(99), 1)
        };
        assert!(knows(&good));
        for bit in 0..(HEADER_LEN + CELL_LEN) * 8 {
            let mut bytes = good.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(!knows(&bytes), "bit {bit}");
        }
        assert!(!knows(&good[..good.len() - 1]));
        assert!(!knows(&[]));
        assert!(parse(&good, &boot_id()).is_some());
        assert!(parse(&good, &[9; 16]).is_none(), "another start of the machine");
        let mut unknown = good.clone();
        unknown[..HEADER_LEN].copy_from_slice(&header(&[0; 16]));
        assert!(parse(&unknown, &[0; 16]).is_none(), "nobody knows which start");
        fs::remove_file(dir.file()).unwrap();
        assert!(Begun::open(&dir.0).unwrap().may_have(JobId(99), 1));
    }
}
