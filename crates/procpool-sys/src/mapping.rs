//! Zeroed memory shared between a pool and a worker: a memfd of fixed size, mapped by both.

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::slice;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use nix::sys::stat::fstat;

use crate::spawn::refused;

/// A mapping of a memfd as atomic words. Clones share it; the last one unmaps.
#[derive(Debug, Clone)]
pub struct Mapping(Arc<Region>);

#[derive(Debug)]
struct Region {
    start: NonNull<AtomicU64>,
    words: usize,
}

// SAFETY: a region is memory that any thread may read and write through its atomics.
unsafe impl Send for Region {}
// SAFETY: as above; there is no access but through `&[AtomicU64]`.
unsafe impl Sync for Region {}

/// Makes a mapping of `words` zeroed words, and the descriptor by which a worker attaches to it.
///
/// The size is sealed: a worker that truncates the file would otherwise kill the pool's process with
/// SIGBUS at its next access.
pub fn create(words: usize) -> io::Result<(Mapping, OwnedFd)> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let fd =
        memfd_create(c"procpool", flags).map_err(|errno| refused("memfd_create", errno.into()))?;
    let file = File::from(fd);
    file.set_len((words * size_of::<AtomicU64>()) as u64)?;
    fcntl(
        &file,
        FcntlArg::F_ADD_SEALS(
            SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL,
        ),
    )?;
    let mapping = attach(file.as_fd(), words)?;
    Ok((mapping, file.into()))
}

/// Maps what [`create`] made in another process.
pub fn attach(fd: BorrowedFd<'_>, words: usize) -> io::Result<Mapping> {
    let len = words * size_of::<AtomicU64>();
    let size = fstat(fd)?.st_size;
    if u64::try_from(size).is_ok_and(|size| size < len as u64) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the shared memory is too short"));
    }
    let len = NonZeroUsize::new(len).ok_or(io::ErrorKind::InvalidInput)?;
    let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: no address is asked for, so nothing that exists is replaced. The file is at least `len`
    // long and its size is sealed, so the pages stay.
    let start = unsafe { mmap(None, len, protection, MapFlags::MAP_SHARED, fd, 0) }?;
    Ok(Mapping(Arc::new(Region { start: start.cast(), words })))
}

impl Mapping {
    /// True if there is no clone of this one.
    pub fn is_sole(&mut self) -> bool {
        Arc::get_mut(&mut self.0).is_some()
    }
}

impl AsRef<[AtomicU64]> for Mapping {
    #[inline]
    fn as_ref(&self) -> &[AtomicU64] {
        // SAFETY: `start` is the page-aligned beginning of `words` mapped words that live as long as the
        // region, which `self` keeps. Every process reads and writes them through atomics alone.
        unsafe { slice::from_raw_parts(self.0.start.as_ptr(), self.0.words) }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, of this length, and no reference into it outlives the region.
        let result = unsafe { munmap(self.start.cast(), self.words * size_of::<AtomicU64>()) };
        debug_assert!(result.is_ok(), "munmap of our own mapping fails only for wrong arguments");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;

    #[test]
    fn both_mappings_see_the_same_words() {
        let (here, fd) = create(1000).unwrap();
        let there = attach(fd.as_fd(), 1000).unwrap();
        here.as_ref()[999].store(42, Ordering::Relaxed);
        assert_eq!(there.as_ref()[999].load(Ordering::Relaxed), 42);
        assert_eq!(there.as_ref()[0].load(Ordering::Relaxed), 0);
    }

    #[test]
    fn nobody_can_shrink_it() {
        let (_mapping, fd) = create(1000).unwrap();
        assert!(File::from(fd.try_clone().unwrap()).set_len(0).is_err());
        assert!(attach(fd.as_fd(), 1_000_000).is_err());
    }
}
