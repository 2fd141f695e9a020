//! Forking workers off a process that was made for it: a fork server.
//!
//! The new process is the host's direct child (`CLONE_PARENT`), so the host watches, signals and reaps it
//! like one that it has spawned itself. It goes on with a copy of all memory and with the descriptors of the
//! server. `fork` of the C library cannot do that, so this module makes the system call itself and puts right
//! in the child what the library would: the thread's id that it keeps, and the list of robust mutexes. Nothing
//! else of it needs repair, because a fork server has one thread, which is here and holds no lock.

use std::ffi::c_void;
use std::fs;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::ptr;
use std::sync::atomic::AtomicU64;
use std::thread;
use std::time::{Duration, Instant};

use nix::unistd::{Pid, dup2_stderr, setpgid};

use crate::fork as watch;
use crate::held::thread_count;
use crate::spawn::CLONE_INTO_CGROUP;
use crate::worker::{self, Birthplace};

/// The signal that a fork server's children send on their death is that of the server itself, SIGCHLD
/// (clone(2), `CLONE_PARENT`); the system call wants zero here.
const EXIT_SIGNAL: u64 = 0;
/// How long a thread that was joined may take to vanish: the kernel wakes whoever joins a moment before.
const VANISHING: Duration = Duration::from_millis(200);
/// How long is between two looks whether it has: many times as long as it takes as a rule.
const BETWEEN_LOOKS: Duration = Duration::from_millis(1);

/// On which side of a fork we are.
#[derive(Debug)]
pub enum Side {
    /// In the server: the id of the new worker.
    Server(u32),
    /// In the new worker: where it was born.
    Worker(Birthplace),
}

/// What a forked worker needs to know of the server that it comes from.
#[derive(Debug)]
pub struct Forker {
    /// Where the C library keeps the main thread's id.
    tid: *mut libc::c_int,
    robust: Option<RobustList>,
}

#[derive(Debug, Clone, Copy)]
struct RobustList {
    head: *mut c_void,
    len: libc::size_t,
}

impl Forker {
    /// Looks up what belongs to the calling thread, the only one there is.
    pub fn of_this_thread() -> Forker {
        let mut tid: *mut libc::c_int = ptr::null_mut();
        // Without this question (prctl(2): CONFIG_CHECKPOINT_RESTORE) the id in the child stays the server's;
        // nothing uses it but robust and error-checking mutexes that the main thread locks.
        // SAFETY: `tid` is a valid place for one pointer.
        let result = unsafe { libc::prctl(libc::PR_GET_TID_ADDRESS, &raw mut tid) };
        if result != 0 {
            tid = ptr::null_mut();
        }
        let mut robust = RobustList { head: ptr::null_mut(), len: 0 };
        let (head, len) = (&raw mut robust.head, &raw mut robust.len);
        // SAFETY: both are valid places for the answer; 0 is the calling thread.
        let result = unsafe { libc::syscall(libc::SYS_get_robust_list, 0, head, len) };
        Forker { tid, robust: (result == 0).then_some(robust) }
    }

    /// Forks a worker off this process. `birth` is where the kernel notes its id, as a C int, before it runs.
    ///
    /// In the worker: it leads a process group of its own, and is no fork of a host ([`fork`](crate::fork)). It is
    /// born in the cgroup (version 2) whose directory is given, if that can be, else in this process's.
    ///
    /// # Errors
    /// If this process has more than one thread, or with what the system says.
    pub fn fork(&self, birth: &AtomicU64, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Side> {
        if thread_count()? > 1 {
            return Err(io::Error::new(io::ErrorKind::Deadlock, "a fork server has one thread"));
        }
        match self.clone_process(birth, cgroup)? {
            (0, birthplace) => {
                self.mend();
                Ok(Side::Worker(birthplace))
            }
            (pid, _) => Ok(Side::Server(pid as u32)),
        }
    }

    fn clone_process(
        &self,
        birth: &AtomicU64,
        cgroup: Option<BorrowedFd<'_>>,
    ) -> io::Result<(i64, Birthplace)> {
        let flags = libc::CLONE_PARENT | libc::CLONE_PARENT_SETTID | self.tid_flags();
        if let Some(cgroup) = cgroup {
            match self.clone3(flags as u64, EXIT_SIGNAL, birth, Some(cgroup)) {
                Ok(pid) => return Ok((pid, Birthplace::Cgroup)),
                Err(error) if is_shortage(&error) => return Err(error),
                // Not into that cgroup, for whatever reason: the worker moves there itself.
                Err(_) => {}
            }
        }
        Ok((self.clone_here(flags, EXIT_SIGNAL, birth)?, Birthplace::Elsewhere))
    }

    /// Forks a child of this process, beside it in its cgroup. 0 in the child, which must be [mended](Self::mend_child).
    /// `signal` is what it sends this process when it ends.
    pub(crate) fn clone_child(&self, signal: libc::c_int) -> io::Result<i64> {
        // Nobody reads it: the flag that has the kernel write there is not set.
        let nowhere = AtomicU64::new(0);
        self.clone_here(self.tid_flags(), signal as u64, &nowhere)
    }

    fn tid_flags(&self) -> libc::c_int {
        if self.tid.is_null() { 0 } else { libc::CLONE_CHILD_SETTID | libc::CLONE_CHILD_CLEARTID }
    }

    fn clone_here(
        &self,
        flags: libc::c_int,
        exit_signal: u64,
        birth: &AtomicU64,
    ) -> io::Result<i64> {
        match self.clone3(flags as u64, exit_signal, birth, None) {
            // Sandboxes forbid clone3, since a filter cannot look at its arguments, and allow the older call, which has
            // the signal among the flags.
            Err(error) if is_refusal(&error) => {
                self.clone_the_old_way(flags | exit_signal as libc::c_int, birth)
            }
            result => result,
        }
    }

    fn clone3(
        &self,
        flags: u64,
        exit_signal: u64,
        birth: &AtomicU64,
        cgroup: Option<BorrowedFd<'_>>,
    ) -> io::Result<i64> {
        // SAFETY: all zeroes is a valid value of this structure of numbers.
        let mut args: libc::clone_args = unsafe { mem::zeroed() };
        args.flags = flags;
        if let Some(cgroup) = cgroup {
            args.flags |= CLONE_INTO_CGROUP;
            args.cgroup = cgroup.as_raw_fd() as u64;
        }
        args.exit_signal = exit_signal;
        args.parent_tid = birth.as_ptr() as u64;
        args.child_tid = self.tid as u64;
        let (args, len) = (&raw const args, size_of::<libc::clone_args>());
        // SAFETY: without CLONE_VM and a stack of its own the child goes on here with copies of everything.
        // This process has one thread, so no lock is held by a thread that the child lacks; `fork` has looked.
        // The kernel writes ids to `birth`, a word that is made for it, and to where the C library keeps its.
        let result = unsafe { libc::syscall(libc::SYS_clone3, args, len) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
    }

    fn clone_the_old_way(&self, flags: libc::c_int, birth: &AtomicU64) -> io::Result<i64> {
        let none = ptr::null_mut::<c_void>();
        let (flags, birth, tid) = (flags as libc::c_long, birth.as_ptr(), self.tid);
        // The order of the arguments is the machine's own (clone(2)); no thread-local storage is set.
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as for clone3.
        let result = unsafe { libc::syscall(libc::SYS_clone, flags, none, birth, tid, none) };
        #[cfg(not(target_arch = "x86_64"))]
        // SAFETY: as for clone3.
        let result = unsafe { libc::syscall(libc::SYS_clone, flags, none, birth, none, tid) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
    }

    /// Puts right in the child what a plain copy of the server gets wrong.
    fn mend(&self) {
        self.mend_child();
        worker::answer_for_nobody();
        // The host does so too: whoever comes first, no signal for one group ever reaches the other.
        let _ = setpgid(Pid::from_raw(0), Pid::from_raw(0));
    }

    /// The same in a child of a worker, which stays in the worker's group.
    pub(crate) fn mend_child(&self) {
        if let Some(RobustList { head, len }) = self.robust {
            // The kernel has forgotten it for the child. An error would leave it forgotten.
            // SAFETY: the copy of the list that this very thread had registered in the server.
            unsafe { libc::syscall(libc::SYS_set_robust_list, head, len) };
        }
        watch::settle();
    }
}

/// What a call that is forbidden, or unknown, looks like.
fn is_refusal(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM))
}

/// What any such call would find just so.
fn is_shortage(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::ENOMEM))
}

/// The names of this process's threads but the calling one, once those that have been joined are gone.
pub fn other_threads() -> io::Result<Vec<String>> {
    let began = Instant::now();
    // Nothing tells when a joined thread has gone for good. A thread that stays costs this time once.
    while thread_count()? > 1 && began.elapsed() < VANISHING {
        thread::sleep(BETWEEN_LOOKS);
    }
    let own = nix::unistd::gettid().to_string();
    let others = fs::read_dir("/proc/self/task")?.flatten().filter(|task| task.file_name() != *own);
    let name =
        |task: fs::DirEntry| fs::read_to_string(task.path().join("comm")).unwrap_or_default();
    Ok(others.map(|task| name(task).trim().to_owned()).collect())
}

/// Gives this process a standard error.
pub fn set_stderr(fd: OwnedFd) -> io::Result<()> {
    Ok(dup2_stderr(fd)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The harness has threads of its own, which is what must not be forked.
    #[test]
    fn a_process_with_threads_is_not_forked() {
        let birth = AtomicU64::new(7);
        let error = Forker::of_this_thread().fork(&birth, None).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Deadlock);
        assert!(!other_threads().unwrap().is_empty());
    }
}
