//! Telling a stack overflow from other bad accesses.
//!
//! The standard library does so from the start of `main` on. A worker of a test program lives before
//! `main`, because libtest owns that, so this module does it there, in the same words.

use std::io;
use std::mem::{MaybeUninit, zeroed};
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};

use libc::{c_int, c_void, siginfo_t};

/// The stack on which the handler runs: it makes two system calls.
const HANDLER_STACK: usize = 64 * 1024;
/// What counts as the guard of a stack that has none of its own: the main thread's. The kernel lets nothing be
/// mapped within a megabyte below it (`stack_guard_gap`), and code touches each page on its way down.
const MAIN_GUARD: usize = 64 * 1024;
const MESSAGE: &[u8] = b"\nthread 'procpool' has overflowed its stack\nfatal runtime error: stack overflow, aborting\n";

/// The addresses below the watched thread's stack.
static GUARD_START: AtomicUsize = AtomicUsize::new(0);
static GUARD_END: AtomicUsize = AtomicUsize::new(0);

/// Makes an overflow of the calling thread's stack end the process with a message and SIGABRT, as in any
/// Rust program, unless somebody else has seen to that already. For one thread of a process, the last that asked.
pub fn report_overflow() -> io::Result<()> {
    let mut before = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: no action is set; `before` is a valid place for the current one.
    check(unsafe { libc::sigaction(libc::SIGSEGV, ptr::null(), before.as_mut_ptr()) })?;
    // A fork server may have installed ours for its own thread, of which a worker has a copy.
    let ours = handler as *const () as usize;
    // SAFETY: all zeroes is a valid sigaction, and the call has filled it.
    if ![libc::SIG_DFL, ours].contains(&unsafe { before.assume_init() }.sa_sigaction) {
        return Ok(());
    }
    let (start, guard) = stack_of_this_thread()?;
    // Since glibc 2.27 the guard lies below the stack, before that inside of it (pthread_attr_getguardsize(3)).
    GUARD_START.store(start - guard.max(MAIN_GUARD), Ordering::Relaxed);
    GUARD_END.store(start + guard, Ordering::Relaxed);

    let memory: &'static mut [u8] = Box::leak(vec![0; HANDLER_STACK].into_boxed_slice());
    let stack =
        libc::stack_t { ss_sp: memory.as_mut_ptr().cast(), ss_flags: 0, ss_size: HANDLER_STACK };
    // SAFETY: the memory is leaked, so it is there for as long as the thread.
    check(unsafe { libc::sigaltstack(&raw const stack, ptr::null_mut()) })?;
    for signal in [libc::SIGSEGV, libc::SIGBUS] {
        // SAFETY: all zeroes is a valid sigaction.
        let mut action: libc::sigaction = unsafe { zeroed() };
        action.sa_sigaction = ours;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        // SAFETY: the handler calls only async-signal-safe functions: write, abort, sigaction.
        check(unsafe { libc::sigaction(signal, &raw const action, ptr::null_mut()) })?;
    }
    Ok(())
}

/// Lowest address and guard size of the calling thread's stack.
fn stack_of_this_thread() -> io::Result<(usize, usize)> {
    let mut attributes = MaybeUninit::<libc::pthread_attr_t>::zeroed();
    // SAFETY: always the calling thread's own id.
    let thread = unsafe { libc::pthread_self() };
    // SAFETY: `attributes` is a valid place for the answer.
    check_code(unsafe { libc::pthread_getattr_np(thread, attributes.as_mut_ptr()) })?;
    let (mut start, mut size, mut guard) = (ptr::null_mut::<c_void>(), 0, 0);
    // SAFETY: the attributes were filled in above; the places are valid.
    let stack =
        unsafe { libc::pthread_attr_getstack(attributes.as_ptr(), &raw mut start, &raw mut size) };
    // SAFETY: as above.
    let guard_result =
        unsafe { libc::pthread_attr_getguardsize(attributes.as_ptr(), &raw mut guard) };
    // SAFETY: destroyed once, and not used afterwards.
    unsafe { libc::pthread_attr_destroy(attributes.as_mut_ptr()) };
    check_code(stack)?;
    check_code(guard_result)?;
    Ok((start as usize, guard))
}

extern "C" fn handler(signal: c_int, info: *mut siginfo_t, _context: *mut c_void) {
    // SAFETY: the kernel passes a valid siginfo_t to a handler with SA_SIGINFO.
    let info = unsafe { &*info };
    // SAFETY: for SIGSEGV and SIGBUS the address is the field that is set.
    let address = unsafe { info.si_addr() } as usize;
    if (GUARD_START.load(Ordering::Relaxed)..GUARD_END.load(Ordering::Relaxed)).contains(&address) {
        // SAFETY: writes a constant; async-signal-safe (signal-safety(7)).
        unsafe { libc::write(2, MESSAGE.as_ptr().cast(), MESSAGE.len()) };
        // SAFETY: async-signal-safe; does not return.
        unsafe { libc::abort() };
    }
    // Some other bad access: it happens again when this returns, and then kills the process as it should.
    // SAFETY: all zeroes is the default action.
    let action: libc::sigaction = unsafe { zeroed() };
    // SAFETY: sets the default action, which runs no code; async-signal-safe.
    unsafe { libc::sigaction(signal, &raw const action, ptr::null_mut()) };
}

fn check(result: c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn check_code(code: c_int) -> io::Result<()> {
    if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(code)) }
}
