//! Descriptors for processes that need not be children of ours.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// A descriptor for the process `pid` (pidfd_open(2), Linux 5.3), close-on-exec. The id may have passed to
/// another process by then: look at what it is now, after this call.
pub fn open(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: the call takes two integers and touches no memory of ours.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid as libc::pid_t, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Sends SIGKILL to the process. One that has ended is no error.
pub fn kill(pidfd: BorrowedFd<'_>) -> io::Result<()> {
    signal(pidfd, libc::SIGKILL)
}

/// Sends SIGSTOP to the process. One that has ended is no error.
pub fn stop(pidfd: BorrowedFd<'_>) -> io::Result<()> {
    signal(pidfd, libc::SIGSTOP)
}

/// Sends SIGCONT to the process. One that has ended is no error.
pub fn resume(pidfd: BorrowedFd<'_>) -> io::Result<()> {
    signal(pidfd, libc::SIGCONT)
}

/// To every process in the group that the process leads, and to no other group that has its id later
/// (PIDFD_SIGNAL_PROCESS_GROUP in linux/pidfd.h, Linux 6.9).
const WHOLE_GROUP: libc::c_uint = 1 << 2;

/// Sends a signal to the group that the process leads, or led. One in which nobody is left is no error.
pub(crate) fn signal_group(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    send(pidfd, signal, WHOLE_GROUP)
}

fn signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    send(pidfd, signal, 0)
}

fn send(pidfd: BorrowedFd<'_>, signal: i32, flags: libc::c_uint) -> io::Result<()> {
    let info = std::ptr::null::<libc::siginfo_t>();
    let fd = pidfd.as_raw_fd();
    // SAFETY: a descriptor, integers, and a null pointer that stands for what kill(2) would say.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, signal, info, flags) };
    match io::Error::last_os_error() {
        _ if result == 0 => Ok(()),
        error if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
        error => Err(error),
    }
}
