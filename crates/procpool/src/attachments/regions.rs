//! Regions: memory in which the arguments of jobs are lent to workers, used again and again.
//!
//! A region belongs to whoever holds it: the attachment that it contains, and each worker's channel that it was
//! sent on, until that worker has said that it has it mapped no more. The last of them puts it among those that
//! are kept, or gives it back to the system: if nobody will use it soon, or if a worker had it and is dead, since
//! then nobody has said that it is mapped no more, by a child of the worker's for example.

use std::mem;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use procpool_sys::lent::Lent;
use procpool_sys::{clock, fork};

use super::Descriptor;

/// What is kept for later, in bytes: a few arguments as long as they commonly are at most.
const KEPT_BYTES_MAX: usize = 64 << 20;
/// And how many, since each takes a descriptor.
const KEPT_MAX: usize = 32;
/// Longer arguments are not lent: to keep one would be to keep no other.
const REGION_BYTES_MAX: usize = KEPT_BYTES_MAX / 2;
/// How many times as long as what goes into it a region may be: more would be kept from those that need it.
const ROOM_MAX: usize = 2;
/// What nobody has used for so long is given back: a second of large jobs pays for the pages many times over.
const KEPT_NS: u64 = 1_000_000_000;

/// One region, with content that does not change as long as anybody holds it.
pub(crate) struct Region {
    /// There until it is dropped.
    memory: Option<Memory>,
    spoiled: AtomicBool,
    store: &'static Store,
}

struct Memory {
    lent: Lent,
    _descriptor: Descriptor,
}

/// What is kept.
struct Kept {
    /// The pools that there are. Without any nothing is kept.
    pools: usize,
    /// The one that was put back last is the last.
    free: Vec<Memory>,
}

/// Where it is kept: one place for all pools of the process.
struct Store {
    kept: Mutex<Kept>,
    /// When all that is kept is to be given back. `u64::MAX`: nothing is kept.
    due_ns: AtomicU64,
}

static STORE: Store = Store::new();

impl Store {
    const fn new() -> Store {
        let kept = Kept { pools: 0, free: Vec::new() };
        Store { kept: Mutex::new(kept), due_ns: AtomicU64::new(u64::MAX) }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps it; answers what there is no room for now.
    fn put(&self, memory: Memory) -> Vec<Memory> {
        let mut kept = self.kept();
        if kept.pools == 0 {
            return vec![memory];
        }
        kept.free.push(memory);
        self.due_ns.store(clock::monotonic_ns() + KEPT_NS, Ordering::Relaxed);
        let mut over = Vec::new();
        while kept.bytes() > KEPT_BYTES_MAX || kept.free.len() > KEPT_MAX {
            over.push(kept.free.remove(0));
        }
        over
    }

    /// Gives back all that is kept. True if there was something.
    fn give_back(&self) -> bool {
        let mut kept = self.kept();
        let free = mem::take(&mut kept.free);
        self.due_ns.store(u64::MAX, Ordering::Relaxed);
        drop(kept);
        !free.is_empty()
    }
}

impl Kept {
    fn bytes(&self) -> usize {
        self.free.iter().map(|memory| memory.lent.capacity()).sum()
    }

    /// The smallest with room for so many bytes, if that is not far too large for them.
    fn take(&mut self, len: usize) -> Option<Memory> {
        let fits = |capacity: usize| capacity >= len && capacity / ROOM_MAX <= len.max(1 << 16);
        let capacities = self.free.iter().map(|memory| memory.lent.capacity()).enumerate();
        let (index, _) = capacities.filter(|(_, c)| fits(*c)).min_by_key(|(_, c)| *c)?;
        Some(self.free.remove(index))
    }
}

impl Region {
    /// A region with these bytes. `None` if they are not to be lent, or there is no memory or no descriptor for it.
    pub(crate) fn with(bytes: &[u8]) -> Option<Arc<Region>> {
        Region::kept_in(&STORE, bytes)
    }

    fn kept_in(store: &'static Store, bytes: &[u8]) -> Option<Arc<Region>> {
        // In a forked child another thread of the host's may have held the lock for good.
        if bytes.is_empty() || bytes.len() > REGION_BYTES_MAX || fork::is_child() {
            return None;
        }
        let old = store.kept().take(bytes.len());
        let memory = match old {
            Some(mut memory) => {
                memory.lent.fill(bytes);
                memory
            }
            None => {
                let descriptor = Descriptor::take()?;
                Memory { lent: Lent::create(bytes).ok()?, _descriptor: descriptor }
            }
        };
        Some(Arc::new(Region { memory: Some(memory), spoiled: AtomicBool::new(false), store }))
    }

    pub(crate) fn lent(&self) -> &Lent {
        &self.memory.as_ref().expect("it is there until it is dropped").lent
    }

    /// It is not to be used again.
    pub(crate) fn spoil(&self) {
        self.spoiled.store(true, Ordering::Relaxed);
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        let memory = self.memory.take();
        // In a forked child the host's memory is not ours to use again.
        if *self.spoiled.get_mut() || fork::is_child() {
            return;
        }
        // What is given back is so without the lock.
        let _over = memory.map(|memory| self.store.put(memory));
    }
}

/// Each pool has one as long as it lives.
pub(crate) struct Keeper(&'static Store);

impl Keeper {
    pub(crate) fn new() -> Keeper {
        Keeper::of(&STORE)
    }

    fn of(store: &'static Store) -> Keeper {
        store.kept().pools += 1;
        Keeper(store)
    }

    /// When there is something to give back.
    pub(crate) fn due(&self) -> Option<u64> {
        let due = self.0.due_ns.load(Ordering::Relaxed);
        (due != u64::MAX).then_some(due)
    }

    /// Gives back what nobody has used for a while.
    pub(crate) fn tidy(&self, now_ns: u64) {
        if self.0.due_ns.load(Ordering::Relaxed) <= now_ns {
            self.0.give_back();
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        if fork::is_child() {
            return;
        }
        let mut kept = self.0.kept();
        kept.pools -= 1;
        let is_last = kept.pools == 0;
        drop(kept);
        if is_last {
            self.0.give_back();
        }
    }
}

/// Gives back all that is kept. True if there was something.
pub(super) fn give_back() -> bool {
    STORE.give_back()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_are_used_again_unless_somebody_may_still_read_them() {
        const LEN: usize = 3 << 20;
        // Its own: other tests use the process's meanwhile.
        static STORE: Store = Store::new();
        let region = |bytes: &[u8]| Region::kept_in(&STORE, bytes);
        let keeper = Keeper::of(&STORE);
        let address = |region: &Arc<Region>| region.lent().bytes().as_ptr();
        let first = region(&[1; LEN]).unwrap();
        let at = address(&first);
        // A worker has it: the attachment's end is not its end.
        let lease = Arc::clone(&first);
        drop(first);
        let second = region(&[2; LEN]).unwrap();
        assert_ne!(address(&second), at);
        assert!(lease.lent().bytes() == [1; LEN]);
        drop(lease);
        let third = region(&[3; LEN - 1000]).unwrap();
        assert_eq!(address(&third), at);
        assert!(third.lent().bytes() == [3; LEN - 1000]);
        // One much too large is left alone, and so is one that is too small.
        drop(third);
        for len in [1000, LEN + (1 << 20)] {
            assert_ne!(address(&region(&vec![4; len]).unwrap()), at);
        }
        // One whose reader has died is not used again.
        let fourth = region(&[5; LEN]).unwrap();
        assert_eq!(address(&fourth), at);
        fourth.spoil();
        let kept_before = STORE.kept().free.len();
        drop(fourth);
        assert_eq!(STORE.kept().free.len(), kept_before);
        // What is kept has a limit, and an end.
        drop(second);
        let many: Vec<_> = (0..6).map(|_| region(&[6; 16 << 20]).unwrap()).collect();
        drop(many);
        assert!(STORE.kept().bytes() <= KEPT_BYTES_MAX && !STORE.kept().free.is_empty());
        assert!(region(&vec![7; REGION_BYTES_MAX + 1]).is_none());
        keeper.tidy(keeper.due().unwrap() - 1);
        assert!(!STORE.kept().free.is_empty());
        keeper.tidy(keeper.due().unwrap());
        assert!(STORE.kept().free.is_empty() && keeper.due().is_none());
        drop(region(&[8; LEN]));
        drop(keeper);
        assert!(STORE.kept().free.is_empty());
        drop(region(&[9; LEN]));
        assert!(STORE.kept().free.is_empty());
    }
}
