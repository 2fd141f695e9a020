//! Bytes that are lent by descriptor: a memfd that its maker can fill again and again, and nobody else can
//! ever write to.
//!
//! To find, zero and free pages takes several times as long as to copy bytes into pages that are there. So
//! memory that has gone to another process and come back is worth keeping. What makes that possible is
//! F_SEAL_FUTURE_WRITE (fcntl(2) under *File Sealing*): it refuses every new way to write, and leaves the mapping
//! that the maker already had. Who receives the descriptor can read and nothing else, and has to trust the
//! maker to leave the bytes alone until they are given back.

use std::fs::File;
use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;
use std::slice;

use nix::fcntl::{FallocateFlags, FcntlArg, SealFlag, fallocate, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// What a capacity is a multiple of, and the part of a long one that may go unused: an eighth. So bytes of about
/// the same length find room in each other's memory.
const GRANULE_MIN: usize = 64 * 1024;
const GRANULES: usize = 8;

/// Seals with which nobody but the maker can change the bytes, and nobody at all the length.
pub(crate) fn seals() -> SealFlag {
    SealFlag::F_SEAL_FUTURE_WRITE
        | SealFlag::F_SEAL_SHRINK
        | SealFlag::F_SEAL_GROW
        | SealFlag::F_SEAL_SEAL
}

/// Memory to lend, at its maker's.
#[derive(Debug)]
pub struct Lent {
    file: File,
    start: NonNull<u8>,
    capacity: usize,
    len: usize,
}

// SAFETY: it is memory of this process's own, written through `&mut` and read through `&` alone.
unsafe impl Send for Lent {}
// SAFETY: as above.
unsafe impl Sync for Lent {}

impl Lent {
    /// New memory with these bytes, of which there is one at least.
    pub fn create(bytes: &[u8]) -> io::Result<Lent> {
        let capacity = capacity_for(bytes.len());
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let mut file = File::from(memfd_create(c"data-procpool", flags)?);
        // Every page is found here, where a lack of them is an error: a store into the mapping that finds none
        // is the end of the process, by SIGBUS.
        file.write_all(bytes)?;
        let rest = capacity - bytes.len();
        if rest > 0 {
            fallocate(&file, FallocateFlags::empty(), bytes.len() as i64, rest as i64)?;
        }
        let len = NonZeroUsize::new(capacity).ok_or(io::ErrorKind::InvalidInput)?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // The pages are there, and looked up in one go: one by one, as they are written to, takes several times as
        // long as the next copy into them.
        let flags = MapFlags::MAP_SHARED | MapFlags::MAP_POPULATE;
        // SAFETY: no address is asked for, so nothing that exists is replaced. The file is as long as that.
        let start = unsafe { mmap(None, len, protection, flags, &file, 0) }?;
        let lent = Lent { file, start: start.cast(), capacity, len: bytes.len() };
        fcntl(&lent.file, FcntlArg::F_ADD_SEALS(seals()))?;
        Ok(lent)
    }

    /// The most bytes that it has room for.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Other bytes in place of those that were there. Nobody must still read them: who was lent them has given
    /// them back.
    ///
    /// # Panics
    ///
    /// If there are more bytes than it has room for.
    pub fn fill(&mut self, bytes: &[u8]) {
        assert!(bytes.len() <= self.capacity, "there is room for {} bytes", self.capacity);
        // SAFETY: `start` is the beginning of `capacity` mapped bytes that live as long as `self`, as many as
        // there are here at least, and `&mut self` says that no reference of this process's is into them.
        let here = unsafe { slice::from_raw_parts_mut(self.start.as_ptr(), bytes.len()) };
        here.copy_from_slice(bytes);
        self.len = bytes.len();
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: `start` is the beginning of `len` mapped bytes that live as long as `self`. The seals keep every
        // other process from writing, and this one writes with `&mut self` alone.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

fn capacity_for(len: usize) -> usize {
    let granule = (len.next_power_of_two() / GRANULES).max(GRANULE_MIN);
    len.next_multiple_of(granule)
}

impl AsFd for Lent {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, of this length, and no reference into it outlives `self`.
        let result = unsafe { munmap(self.start.cast(), self.capacity) };
        debug_assert!(result.is_ok(), "munmap of our own mapping fails only for wrong arguments");
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::sealed::Sealed;

    /// Opens it again with the right to write, which a memfd gives to every process of its user.
    fn reopened(lent: &Lent) -> File {
        use std::os::fd::AsRawFd;
        let path = format!("/proc/self/fd/{}", lent.as_fd().as_raw_fd());
        File::options().read(true).write(true).open(path).unwrap()
    }

    #[test]
    fn what_is_filled_in_is_read_through_the_descriptor() {
        for len in [1, 4095, 65_536, 65_537, 1 << 20] {
            let first: Vec<u8> = (0..len).map(|n| n as u8).collect();
            let mut lent = Lent::create(&first).unwrap();
            assert!(lent.capacity() >= len);
            let borrow = |len| {
                let fd = lent.as_fd().try_clone_to_owned().unwrap();
                Sealed::check_lent(fd, len as u64).unwrap().map().unwrap()
            };
            assert!(*borrow(len) == *first && lent.bytes() == first);
            let second = vec![9; len.div_ceil(2)];
            lent.fill(&second);
            let fd = lent.as_fd().try_clone_to_owned().unwrap();
            let mapping = Sealed::check_lent(fd, second.len() as u64).unwrap().map().unwrap();
            assert!(*mapping == *second && lent.bytes() == second);
        }
    }

    /// Goal: who is lent memory can read it and nothing else, also by opening it anew.
    #[test]
    fn nobody_but_its_maker_can_write_to_it() {
        let mut lent = Lent::create(b"12345678").unwrap();
        for copy in [lent.file.try_clone().unwrap(), reopened(&lent)] {
            assert!(copy.write_at(b"x", 0).is_err());
            assert!(copy.set_len(0).is_err() && copy.set_len(1 << 30).is_err());
            let len = NonZeroUsize::new(4096).unwrap();
            let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
            // SAFETY: no address is asked for.
            let mapped = unsafe { mmap(None, len, protection, MapFlags::MAP_SHARED, &copy, 0) };
            assert!(mapped.is_err());
        }
        assert_eq!(lent.bytes(), b"12345678");
        lent.fill(b"abc");
        assert_eq!(lent.bytes(), b"abc");
    }

    /// Goal: what is lent does not pass for memory that cannot change any more.
    #[test]
    fn it_is_not_sealed_memory() {
        let lent = Lent::create(b"12345678").unwrap();
        assert!(Sealed::check(lent.as_fd().try_clone_to_owned().unwrap(), 8).is_err());
        let fd = lent.as_fd().try_clone_to_owned().unwrap();
        assert!(Sealed::check_lent(fd, lent.capacity() as u64 + 1).is_err());
    }
}
