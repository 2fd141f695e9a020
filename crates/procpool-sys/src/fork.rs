//! Telling a forked child from the process that it was forked from, at the price of a load.
//!
//! A child of a raw fork has copies of all handles and none of the threads that serve them. It must not
//! wait for those threads, nor touch what it shares with its parent.

use std::io;
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous};

/// A page that the kernel zeroes in every child (madvise(2), `MADV_WIPEONFORK`).
struct Page(NonNull<AtomicU64>);

// SAFETY: the page is never unmapped, and is read and written through an atomic alone.
unsafe impl Send for Page {}
// SAFETY: as above.
unsafe impl Sync for Page {}

static PAGE: OnceLock<Page> = OnceLock::new();

impl Page {
    fn map() -> io::Result<Page> {
        let len = NonZeroUsize::new(4096).expect("a page is not empty");
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: no address is asked for, so nothing that exists is replaced.
        let start = unsafe { mmap_anonymous(None, len, protection, MapFlags::MAP_PRIVATE) }?;
        // SAFETY: the page is ours, private and anonymous, which is what this advice is for.
        unsafe { madvise(start, len.get(), MmapAdvise::MADV_WIPEONFORK) }?;
        let page = Page(start.cast());
        page.word().store(1, Ordering::Relaxed);
        Ok(page)
    }

    fn word(&self) -> &AtomicU64 {
        // SAFETY: the page is mapped for good, aligned, and holds nothing but this word.
        unsafe { self.0.as_ref() }
    }
}

/// Starts to watch. A process forked from this one after now is a child.
pub fn watch() -> io::Result<()> {
    if PAGE.get().is_none() {
        let page = Page::map()?;
        // Two threads may both have made a page; one of them is kept, and either will do.
        let _ = PAGE.set(page);
    }
    Ok(())
}

/// In a forked child that is a process in its own right from now on, not the copy of a host.
pub fn settle() {
    if let Some(page) = PAGE.get() {
        page.word().store(1, Ordering::Relaxed);
    }
}

/// True in a process forked from one that watches.
#[inline]
pub fn is_child() -> bool {
    PAGE.get().is_some_and(|page| page.word().load(Ordering::Relaxed) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forked_child_knows_that_it_is_one() {
        watch().unwrap();
        assert!(!is_child());
        // SAFETY: the child calls `_exit` and nothing else that could need a lock.
        match unsafe { libc::fork() } {
            0 => {
                let code = i32::from(!is_child());
                // SAFETY: ends the child without running anything.
                unsafe { libc::_exit(code) }
            }
            child => {
                let mut status = -1;
                // SAFETY: waits for the child just made; `status` is a valid place for the answer.
                let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
                assert_eq!((waited, status), (child, 0));
            }
        }
        assert!(!is_child());
    }
}
