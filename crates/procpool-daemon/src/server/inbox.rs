//! Where other threads leave word for the loop.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, PoisonError};

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::desk::Purpose;
use crate::error::Error;
use crate::job::{Attempt, JobId};
use crate::journal::Kept;
use crate::store::StoreError;

/// A word for the loop.
#[derive(Debug)]
pub(super) enum Message {
    /// What the journal has made durable.
    Kept(Vec<Kept<Purpose>>),
    /// The journal has failed.
    JournalFailed(StoreError),
    /// An attempt has ended.
    Ended(JobId, Attempt),
}

/// The words, and the bell that is rung when there are some. What bounds them is what is under way.
#[derive(Debug)]
pub(super) struct Inbox {
    messages: Mutex<Vec<Message>>,
    bell: EventFd,
}

impl Inbox {
    pub(super) fn new() -> Result<Inbox, Error> {
        let bell = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).map_err(
            |error| Error::system("cannot make an eventfd", std::io::Error::from(error)),
        )?;
        Ok(Inbox { messages: Mutex::default(), bell })
    }

    pub(super) fn push(&self, message: Message) {
        let mut messages = self.messages.lock().unwrap_or_else(PoisonError::into_inner);
        let is_first = messages.is_empty();
        messages.push(message);
        drop(messages);
        if is_first {
            // It fails when it has been rung 2^64 times and nobody has looked.
            let _ = self.bell.write(1);
        }
    }

    pub(super) fn take(&self) -> Vec<Message> {
        // Silent before it is empty: what comes in between rings again.
        let _ = self.bell.read();
        std::mem::take(&mut *self.messages.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl AsFd for Inbox {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}
