//! Programs that run with more privileges than whoever started them: set-user-id, set-group-id, file capabilities.
//!
//! Such a program must not become a worker for anyone who asks: a worker calls whatever function of the image the
//! other end of its channel names, and whoever runs the program can set the variable and make the channel. What
//! nobody can forge is in the socket: as whom it was made (SO_PEERCRED, unix(7)).

use std::io;
use std::os::fd::AsFd;

use nix::sys::socket::{getsockopt, sockopt};
use nix::unistd::{geteuid, getuid};

/// Whether this process has privileges from its file (AT_SECURE, getauxval(3)).
pub fn are_raised() -> bool {
    // SAFETY: reads a number that the kernel has put beside the arguments.
    unsafe { libc::getauxval(libc::AT_SECURE) != 0 }
}

/// Whether a worker that is started as this process was could tell its host from whoever started that. With a set
/// user id it can, as long as that is in force: only its owner's processes make sockets as that user. A group or
/// capabilities do not show in a socket.
pub fn are_of_a_user() -> bool {
    geteuid() != getuid()
}

/// In a process that is asked to be a worker: fails unless the channel was made by a process that has the
/// privileges which this one has.
pub(crate) fn check_host(channel: impl AsFd) -> io::Result<()> {
    if !are_raised() {
        return Ok(());
    }
    let made_by = getsockopt(&channel, sockopt::PeerCredentials)?;
    if are_of_a_user() && made_by.uid() == geteuid().as_raw() {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::PermissionDenied,
        "this program has raised privileges (set-user-id, set-group-id or file capabilities), \
         and the process that started it as a worker has not",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_has_no_raised_privileges() {
        assert!(!are_raised() && !are_of_a_user());
        // No socket at all: nothing is asked of it.
        check_host(std::io::stdin()).unwrap();
    }
}
