//! Bytes that are passed by descriptor: a memfd that nobody can change any more, mapped read-only.
//!
//! The seals (memfd_create(2), fcntl(2) under *File Sealing*) are what makes a mapping of another process's
//! file a `&[u8]`: without F_SEAL_WRITE the bytes could change under the reader, without F_SEAL_SHRINK a
//! truncation would turn an access into SIGBUS. So they are looked at before anything is mapped.

use std::fs::File;
use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::slice;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use nix::sys::stat::fstat;

use crate::lent;

fn seals() -> SealFlag {
    SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL
}

/// A memfd that is being written.
#[derive(Debug)]
pub struct Unsealed(File);

impl Unsealed {
    /// A new one, empty.
    pub fn create() -> io::Result<Unsealed> {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        // What it is called is shown in /proc/self/maps and /proc/self/fd; it has no other meaning.
        Ok(Unsealed(File::from(memfd_create(c"data-procpool", flags)?)))
    }

    /// Ends the writing for good.
    pub fn seal(self) -> io::Result<Sealed> {
        fcntl(&self.0, FcntlArg::F_ADD_SEALS(seals()))?;
        let len = fstat(&self.0)?.st_size.cast_unsigned();
        Sealed::check(self.0.into(), len)
    }
}

impl Write for Unsealed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A memfd whose content cannot change, or is lent.
#[derive(Debug)]
pub struct Sealed {
    fd: OwnedFd,
    len: usize,
    seals: SealFlag,
}

impl Sealed {
    /// Takes a descriptor that came from elsewhere, with the first `len` bytes. An error if it is not a memfd with
    /// all four seals, or is shorter.
    pub fn check(fd: OwnedFd, len: u64) -> io::Result<Sealed> {
        Sealed::check_for(seals(), fd, len)
    }

    /// As [`check`](Self::check), of a maker who is trusted: it may be memory that is lent, whose maker leaves it
    /// alone until it is told that nobody here has it mapped any more ([`lent`]).
    pub fn check_lent(fd: OwnedFd, len: u64) -> io::Result<Sealed> {
        Sealed::check_for(lent::seals(), fd, len)
    }

    fn check_for(wanted: SealFlag, fd: OwnedFd, len: u64) -> io::Result<Sealed> {
        let invalid = |message| io::Error::new(io::ErrorKind::InvalidData, message);
        // Anything that cannot be sealed refuses the question with EINVAL.
        let bits = fcntl(&fd, FcntlArg::F_GET_SEALS)
            .map_err(|_| invalid("a descriptor that is not sealed memory"))?;
        let sealed = SealFlag::from_bits_truncate(bits);
        // Who cannot write at all cannot write in future either.
        let sealed = match sealed.contains(SealFlag::F_SEAL_WRITE) {
            true => sealed | SealFlag::F_SEAL_FUTURE_WRITE,
            false => sealed,
        };
        if !sealed.contains(wanted) {
            return Err(invalid("memory that is not sealed"));
        }
        let size = fstat(&fd)?.st_size;
        let len = usize::try_from(len).ok().filter(|_| len <= size.cast_unsigned());
        let len = len.ok_or_else(|| invalid("memory that is shorter than it was said to be"))?;
        Ok(Sealed { fd, len, seals: sealed })
    }

    /// True if its maker can still write to it.
    pub fn is_lent(&self) -> bool {
        !self.seals.contains(SealFlag::F_SEAL_WRITE)
    }

    /// Its length, in bytes.
    #[expect(clippy::len_without_is_empty, reason = "nobody asks whether it is empty")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Maps it.
    pub fn map(&self) -> io::Result<SealedMapping> {
        let Some(len) = NonZeroUsize::new(self.len) else {
            return Ok(SealedMapping { start: NonNull::dangling(), len: 0 });
        };
        // Private, since kernels before 6.7 refuse a shared mapping of a file sealed against writing
        // (memfd_create(2)); never written to, it has the file's own pages all the same.
        let flags = MapFlags::MAP_PRIVATE;
        // SAFETY: no address is asked for, so nothing that exists is replaced.
        let start = unsafe { mmap(None, len, ProtFlags::PROT_READ, flags, &self.fd, 0) }?;
        Ok(SealedMapping { start: start.cast(), len: self.len })
    }
}

impl AsFd for Sealed {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The bytes of a [`Sealed`]. They stay when the descriptor is closed.
#[derive(Debug)]
pub struct SealedMapping {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: it is memory that nobody can write to: any thread may read it.
unsafe impl Send for SealedMapping {}
// SAFETY: as above.
unsafe impl Sync for SealedMapping {}

impl Deref for SealedMapping {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        // SAFETY: `start` is the beginning of `len` mapped bytes, which live as long as `self`; or `len` is
        // zero and `start` dangles, as an empty slice's may. The seals that were there when it was mapped
        // stay (F_SEAL_SEAL, and seals are never taken away): nobody can write to or shorten the file. Where
        // it is lent its maker could, and does not before it has been told that this mapping is gone.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl Drop for SealedMapping {
    fn drop(&mut self) {
        if self.len == 0 {
            return;
        }
        // SAFETY: the mapping is ours, of this length, and no reference into it outlives `self`.
        let result = unsafe { munmap(self.start.cast(), self.len) };
        debug_assert!(result.is_ok(), "munmap of our own mapping fails only for wrong arguments");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed(bytes: &[u8]) -> Sealed {
        let mut file = Unsealed::create().unwrap();
        file.write_all(bytes).unwrap();
        file.seal().unwrap()
    }

    #[test]
    fn what_was_written_is_read_after_the_descriptor_is_closed() {
        for len in [0, 1, 4095, 4096, 4097, 1 << 20] {
            let bytes: Vec<u8> = (0..len).map(|n| n as u8).collect();
            let file = sealed(&bytes);
            assert_eq!(file.len(), len);
            let mapping = file.map().unwrap();
            drop(file);
            assert!(*mapping == *bytes, "{len} bytes");
        }
    }

    #[test]
    fn memory_that_is_shorter_than_it_was_said_to_be_is_refused() {
        let fd = || sealed(b"12345678").as_fd().try_clone_to_owned().unwrap();
        assert_eq!(*Sealed::check(fd(), 5).unwrap().map().unwrap(), *b"12345");
        assert!(Sealed::check(fd(), 9).is_err() && Sealed::check(fd(), u64::MAX).is_err());
    }

    #[test]
    fn nobody_can_write_to_it_or_change_its_length() {
        let file = sealed(b"12345678");
        let mut copy = File::from(file.as_fd().try_clone_to_owned().unwrap());
        assert!(copy.write_all(b"x").is_err());
        assert!(copy.set_len(0).is_err());
        assert!(copy.set_len(100).is_err());
    }

    #[test]
    fn a_descriptor_without_each_of_the_seals_is_refused() {
        assert!(Sealed::check(File::open("/dev/null").unwrap().into(), 0).is_err());
        let all = [
            SealFlag::F_SEAL_WRITE,
            SealFlag::F_SEAL_SHRINK,
            SealFlag::F_SEAL_GROW,
            SealFlag::F_SEAL_SEAL,
        ];
        for missing in all {
            let mut file = Unsealed::create().unwrap();
            file.write_all(b"12345678").unwrap();
            fcntl(&file.0, FcntlArg::F_ADD_SEALS(seals() & !missing)).unwrap();
            assert!(Sealed::check(file.0.into(), 8).is_err(), "{missing:?}");
        }
    }
}
