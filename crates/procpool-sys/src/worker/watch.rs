//! Waiting for the host's death, without a descriptor that a job would find.

use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicI32, Ordering};

use nix::unistd::{getppid, gettid};

/// The thread that has come to [`wait`] and has the signal blocked; 0 while there is none.
static WAITER: AtomicI32 = AtomicI32::new(0);

/// Has the kernel send this process `signal` when the thread that spawned it ends (PR_SET_PDEATHSIG(2const)).
/// If that has happened already, nobody sends it: look at the parent afterwards.
pub(super) fn ask_for(signal: i32) -> io::Result<()> {
    // SAFETY: the call takes integers and touches no memory of ours.
    let result = unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, signal) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Blocks until the parent is no longer `host`, or `signal` comes, which [`ask_for`] has asked for in another thread.
/// This one asks for SIGCONT: a stopped process acts on nothing else.
///
/// This thread blocks both and takes them from the kernel's hands: then neither a job that ignores every signal
/// nor one that blocks them in its own thread keeps them away. A change of user or group makes the kernel forget
/// that a signal was asked for (PR_SET_PDEATHSIG(2const)); but the C library interrupts every thread to make the
/// change there too (nptl(7)), this one included, which asks again.
pub(super) fn wait(signal: i32, host: u32) {
    let set = set_of([signal, libc::SIGCONT]);
    // SAFETY: the set is valid for the call; a null pointer says that the old mask is not wanted.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut()) };
    WAITER.store(gettid().as_raw(), Ordering::Release);
    loop {
        // It fails for numbers alone that are no signals.
        let _ = ask_for(libc::SIGCONT);
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

/// Gives the signal that has come in another thread to the one in [`wait`]. False if none is there yet.
/// Async-signal-safe.
pub(super) fn hand_over(signal: i32) -> bool {
    let waiter = WAITER.load(Ordering::Acquire);
    if waiter == 0 {
        return false;
    }
    // The thread waits for as long as the process lives, so its id is its own.
    // SAFETY: the call takes integers and touches no memory of ours. A bare system call is async-signal-safe.
    unsafe { libc::syscall(libc::SYS_tkill, waiter, signal) == 0 }
}

fn set_of(signals: [i32; 2]) -> libc::sigset_t {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: the pointer is valid for a set.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    for signal in signals {
        // SAFETY: the call above has made the set.
        unsafe { libc::sigaddset(set.as_mut_ptr(), signal) };
    }
    // SAFETY: the calls above have made the set.
    unsafe { set.assume_init() }
}
