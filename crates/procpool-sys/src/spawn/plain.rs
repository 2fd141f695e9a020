//! Starting a program beside this process, in the same cgroup: posix_spawn(3).

use std::io;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::spawn::{PosixSpawnAttr, PosixSpawnFileActions, PosixSpawnFlags, posix_spawn};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

use super::born::Plan;
use super::{BORN_ELSEWHERE, Process, State, refused};
use crate::pidfd;

impl Plan {
    /// Starts it as a child that leads a process group of its own.
    pub(super) fn start(&self) -> io::Result<Process> {
        let mut actions = PosixSpawnFileActions::init()?;
        for (place, fd) in (0..).zip(&self.streams) {
            if let Some(fd) = fd {
                actions.add_dup2(fd.as_raw_fd(), place)?;
            }
        }
        let mut attributes = PosixSpawnAttr::init()?;
        attributes.set_pgroup(Pid::from_raw(0))?;
        // The standard library has it ignored in the host, which a program would inherit.
        attributes.set_sigdefault(&SigSet::from(Signal::SIGPIPE))?;
        attributes.set_flags(
            PosixSpawnFlags::POSIX_SPAWN_SETPGROUP | PosixSpawnFlags::POSIX_SPAWN_SETSIGDEF,
        )?;
        let environment = self.environment_of(BORN_ELSEWHERE);
        let pid =
            posix_spawn(self.path.as_c_str(), &actions, &attributes, &self.arguments, &environment)
                .map_err(|errno| refused("clone", errno.into()))?;
        let id = pid.as_raw() as u32;
        match pidfd::open(id).map_err(|error| refused("pidfd_open", error)) {
            Ok(pidfd) => Ok(Process { id, pidfd, state: State::Unreaped }),
            Err(error) => {
                end(pid);
                Err(error)
            }
        }
    }
}

/// Kills and reaps a child for which there is no pidfd.
fn end(pid: Pid) {
    // An error means that somebody else has reaped it, or that the host ignores the deaths of children: then the
    // number may be a stranger's by now.
    let unreaped = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    if waitid(Id::Pid(pid), unreaped).is_ok() {
        let _ = kill(pid, Signal::SIGKILL);
        while waitid(Id::Pid(pid), WaitPidFlag::WEXITED) == Err(Errno::EINTR) {}
    }
}
