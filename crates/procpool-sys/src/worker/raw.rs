//! System calls without the C library's functions for them.
//!
//! For processes that live for a tenth of a millisecond: each part of the library's text that one enters costs it a page
//! fault, which maps 64 KiB and is 2 % of such a life. All of these enter one part.

use std::mem;
use std::ptr;

use libc::{c_int, c_long, c_ulong, syscall};

/// The size of the kernel's set of signals, in bytes. The C library's is larger.
const KERNEL_SIGSET_LEN: usize = 8;

pub(crate) fn process_id() -> u32 {
    // SAFETY: the call takes nothing, and cannot fail.
    unsafe { syscall(libc::SYS_getpid) as u32 }
}

pub(crate) fn parent_id() -> u32 {
    // SAFETY: as above.
    unsafe { syscall(libc::SYS_getppid) as u32 }
}

/// False where that is forbidden.
pub(crate) fn become_subreaper() -> bool {
    let (option, on) = (c_long::from(libc::PR_SET_CHILD_SUBREAPER), 1 as c_ulong);
    // SAFETY: the call takes integers.
    unsafe { syscall(libc::SYS_prctl, option, on, 0 as c_ulong, 0 as c_ulong, 0 as c_ulong) == 0 }
}

/// Asks for a signal when the parent dies. False where that is forbidden.
pub(crate) fn ask_for_death_signal(signal: c_int) -> bool {
    let (option, signal) = (c_long::from(libc::PR_SET_PDEATHSIG), signal as c_ulong);
    // SAFETY: the call takes integers.
    unsafe {
        syscall(libc::SYS_prctl, option, signal, 0 as c_ulong, 0 as c_ulong, 0 as c_ulong) == 0
    }
}

/// Has the calling thread hear every signal.
pub(crate) fn clear_signal_mask() {
    let none = 0u64;
    let (how, old) = (c_long::from(libc::SIG_SETMASK), ptr::null_mut::<u64>());
    // SAFETY: the set is valid for the call and as long as it says; a null pointer says that the old one is not wanted.
    unsafe { syscall(libc::SYS_rt_sigprocmask, how, &raw const none, old, KERNEL_SIGSET_LEN) };
}

/// A place for what [`wait`] has to say.
pub(crate) fn no_info() -> libc::siginfo_t {
    // SAFETY: all zeroes is a valid value of this structure of numbers.
    unsafe { mem::zeroed() }
}

/// waitid(2) for `id`. False on an error, ECHILD among others.
pub(crate) fn wait(
    kind: libc::idtype_t,
    id: u32,
    info: &mut libc::siginfo_t,
    options: c_int,
) -> bool {
    let (kind, id, options) = (kind as c_long, c_long::from(id), c_long::from(options));
    let no_usage = ptr::null_mut::<libc::rusage>();
    // SAFETY: `info` is a valid place for one siginfo_t; a null pointer says that the usage is not wanted.
    unsafe { syscall(libc::SYS_waitid, kind, id, &raw mut *info, options, no_usage) == 0 }
}

/// Whether this process surely has one thread: there the call has no effect, elsewhere it is an error (unshare(2),
/// CLONE_THREAD).
pub(crate) fn is_alone() -> bool {
    // SAFETY: see above.
    unsafe { syscall(libc::SYS_unshare, c_long::from(libc::CLONE_THREAD)) == 0 }
}

/// Ends all threads, and runs nothing of this process's before.
pub(crate) fn exit(code: c_int) -> ! {
    // SAFETY: the call takes an integer, and does not return.
    unsafe { syscall(libc::SYS_exit_group, c_long::from(code)) };
    unreachable!("exit_group returns to nobody")
}
