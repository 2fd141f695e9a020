//! What the supervisor shares with the handles of its pool: the lock over jobs, and ways to wake and to wait.

use std::hint;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};

use procpool_sys::image::Image;

use super::callbacks::CallbackThreads;
use super::cgroup::Cgroups;
use super::dispatch::Dispatch;
use super::entry::Completion;
use super::wake::Wake;
use crate::builder::Settings;
use crate::cell::Callbacks;
use crate::events::Hub;

/// How often a thread looks for the dispatch's lock before it sleeps, and how often it pauses between two looks: together
/// some 20 µs.
const LOCK_LOOKS: u32 = 100;
const LOCK_PAUSES: u32 = 16;

/// What the supervisor shares with the handles of a pool.
pub(crate) struct Inner {
    pub(crate) settings: Settings,
    pub(crate) image: &'static Image,
    dispatch: Mutex<Dispatch>,
    /// A caller that waits is reading results.
    pub(super) lookout: AtomicBool,
    /// How often callers have read results.
    pub(super) helped: AtomicU64,
    /// A caller has given up looking, and sleeps.
    pub(super) left: AtomicBool,
    /// How long to look for results before sleeping; 0 on a single processor.
    pub(super) spin_ns: u64,
    /// There may be room in the queue.
    pub(crate) room: Condvar,
    /// A worker became ready, or the pool broke or ended.
    pub(crate) changed: Condvar,
    pub(super) wake: Arc<Wake>,
    cgroups: Mutex<Cgroups>,
    ended: Mutex<bool>,
    ended_changed: Condvar,
    pub(crate) callbacks: CallbackThreads,
    /// Where what happens is told.
    pub(crate) hub: Arc<Hub>,
}

impl Inner {
    pub(super) fn new(
        settings: Settings,
        image: &'static Image,
        dispatch: Dispatch,
        spin_ns: u64,
        wake: Arc<Wake>,
        cgroups: Cgroups,
    ) -> Inner {
        Inner {
            settings,
            image,
            dispatch: Mutex::new(dispatch),
            lookout: AtomicBool::new(false),
            helped: AtomicU64::new(0),
            left: AtomicBool::new(false),
            spin_ns,
            room: Condvar::new(),
            changed: Condvar::new(),
            wake,
            cgroups: Mutex::new(cgroups),
            ended: Mutex::new(false),
            ended_changed: Condvar::new(),
            callbacks: CallbackThreads::default(),
            hub: Hub::new(),
        }
    }

    #[inline]
    pub(crate) fn dispatch(&self) -> MutexGuard<'_, Dispatch> {
        self.dispatch_now().unwrap_or_else(|| self.dispatch_soon())
    }

    /// The same, unless somebody is at it.
    #[inline]
    pub(crate) fn dispatch_now(&self) -> Option<MutexGuard<'_, Dispatch>> {
        match self.dispatch.try_lock() {
            Ok(dispatch) => Some(dispatch),
            // Nothing of the user's runs under this lock, and the supervisor must outlive a bug of ours.
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// It is held for microseconds at most, and a thread that sleeps for it costs both sides more than that: so it is
    /// looked for about as long as a wake-up takes, which is longer than the standard library does.
    #[cold]
    fn dispatch_soon(&self) -> MutexGuard<'_, Dispatch> {
        if self.spin_ns > 0 {
            for _ in 0..LOCK_LOOKS {
                for _ in 0..LOCK_PAUSES {
                    hint::spin_loop();
                }
                if let Some(dispatch) = self.dispatch_now() {
                    return dispatch;
                }
            }
        }
        self.dispatch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Never together with the dispatch's lock: to make and to remove a cgroup takes its time.
    pub(crate) fn cgroups(&self) -> MutexGuard<'_, Cgroups> {
        self.cgroups.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the supervisor look at what is asked of it.
    pub(crate) fn wake(&self) {
        self.wake.ring();
    }

    /// Waits until no worker is left.
    pub(crate) fn wait_ended(&self) {
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        while !*ended {
            ended = self.ended_changed.wait(ended).unwrap_or_else(PoisonError::into_inner);
        }
    }

    pub(super) fn set_ended(&self) {
        *self.ended.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.ended_changed.notify_all();
    }

    /// Tells jobs' cells that they have ended. Holds no lock; callbacks run elsewhere.
    pub(super) fn complete(&self, completions: Vec<Completion>) {
        for Completion { cell, ended } in completions {
            self.callbacks.run(cell.complete(ended));
        }
    }

    /// The same on the thread of a caller who has come for something else: no code of others runs on it.
    pub(super) fn complete_as_guest(&self, completions: Vec<Completion>) {
        for Completion { cell, ended } in completions {
            self.callbacks.run(cell.complete_as_guest(ended));
        }
    }

    /// The same on a caller's thread; callbacks run on it.
    pub(crate) fn complete_here(&self, completions: Vec<Completion>) {
        self.hub.tell_ends(&completions);
        let callbacks: Vec<Callbacks> = completions
            .into_iter()
            .map(|Completion { cell, ended }| cell.complete(ended))
            .collect();
        callbacks.into_iter().for_each(Callbacks::run);
    }
}
