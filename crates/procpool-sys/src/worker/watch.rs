//! Waiting for the host's death, without a descriptor that a job would find.

use std::io;
use std::mem::MaybeUninit;
use std::ptr;

use nix::unistd::getppid;

/// Has the kernel send this process `signal` when the thread that spawned it ends (PR_SET_PDEATHSIG(2const)).
/// If that has happened already, nobody sends it: look at the parent afterwards.
pub(super) fn ask_for(signal: i32) -> io::Result<()> {
    // SAFETY: the call takes integers and touches no memory of ours.
    let result = unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, signal) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Blocks until the parent is no longer `host`, or `signal` comes, which [`ask_for`] has asked for.
///
/// This thread blocks the signal and takes it from the kernel's hands: then neither a job that ignores every signal
/// nor one that blocks them in its own thread keeps it away. A change of user or group makes the kernel forget
/// that the signal was asked for (PR_SET_PDEATHSIG(2const)); but the C library interrupts every thread to make the
/// change there too (nptl(7)), this one included, which asks again.
pub(super) fn wait(signal: i32, host: u32) {
    let set = set_of(signal);
    // SAFETY: the set is valid for the call; a null pointer says that the old mask is not wanted.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut()) };
    loop {
        // It fails for numbers alone that are no signals.
        let _ = ask_for(signal);
        if getppid().as_raw() as u32 != host {
            return;
        }
        // SAFETY: the set is valid for the call; a null pointer says that no more is wanted than the number.
        let taken = unsafe { libc::sigwaitinfo(&raw const set, ptr::null_mut()) };
        if taken == signal {
            return;
        }
    }
}

fn set_of(signal: i32) -> libc::sigset_t {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: the pointer is valid for a set.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: the call above has made the set.
    unsafe { libc::sigaddset(set.as_mut_ptr(), signal) };
    // SAFETY: the calls above have made the set.
    unsafe { set.assume_init() }
}
