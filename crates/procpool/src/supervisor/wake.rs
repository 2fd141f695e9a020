//! What makes the supervisor look: an eventfd, written at most once before it is read. And the attachments
//! that nobody in this process holds any more, noted for it.

use std::mem;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread::{self, Thread};
use std::time::Duration;

use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::attachments::Forgets;

#[derive(Debug)]
pub(super) struct Wake {
    event: EventFd,
    pending: AtomicBool,
    /// The supervisor naps, and is to be woken from that as well.
    napping: AtomicBool,
    supervisor: OnceLock<Thread>,
    /// The numbers of attachments that this pool's workers need not keep. Bounded by those that they have.
    forgotten: Mutex<Vec<u64>>,
}

impl Wake {
    pub(super) fn new() -> nix::Result<Wake> {
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Wake {
            event,
            pending: AtomicBool::new(false),
            napping: AtomicBool::new(false),
            supervisor: OnceLock::new(),
            forgotten: Mutex::default(),
        })
    }

    /// What epoll waits for.
    pub(super) fn event(&self) -> &EventFd {
        &self.event
    }

    pub(super) fn ring(&self) {
        if !self.pending.swap(true, Ordering::SeqCst) {
            // Only an overflow of the counter could fail, and it is read before that.
            let _ = self.event.write(1);
            self.end_nap();
        }
    }

    /// Wakes the supervisor if it naps.
    pub(super) fn end_nap(&self) {
        if self.napping.load(Ordering::SeqCst)
            && let Some(supervisor) = self.supervisor.get()
        {
            supervisor.unpark();
        }
    }

    /// For the supervisor: sleeps for so long, or until somebody rings. True if somebody has.
    pub(super) fn nap(&self, time: Duration) -> bool {
        self.supervisor.get_or_init(thread::current);
        self.napping.store(true, Ordering::SeqCst);
        if !self.pending.load(Ordering::SeqCst) {
            thread::park_timeout(time);
        }
        self.napping.store(false, Ordering::Relaxed);
        self.pending.load(Ordering::Acquire)
    }

    /// The supervisor is looking.
    pub(super) fn heard(&self) {
        let _ = self.event.read();
        self.pending.store(false, Ordering::Release);
    }

    /// The attachments that were noted since the last call.
    pub(super) fn take_forgotten(&self) -> Vec<u64> {
        mem::take(&mut self.forgotten.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Forgets for Wake {
    fn forget(&self, number: u64) {
        self.forgotten.lock().unwrap_or_else(PoisonError::into_inner).push(number);
        self.ring();
    }
}
