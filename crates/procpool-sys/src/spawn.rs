//! Starting workers and ending them: the pool's side of a child process.
//!
//! A child is started by `posix_spawn` (the path that `Command` takes as long as no closure runs between
//! fork and exec), so nothing of ours runs in a forked copy of a threaded program. Its control channel is
//! its standard input until [`worker::enter`](crate::worker::enter) moves it away.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::image::Image;

/// The variable that tells a process that it is a worker. Removed before any user code runs.
pub const WORKER_VARIABLE: &str = "PROCPOOL_WORKER";

/// What a worker executes.
#[derive(Debug)]
pub enum Program<'a> {
    /// The image that this process runs.
    SameImage(&'a Image),
    /// Another program, which calls `procpool::init()`.
    Other(PathBuf),
}

/// The environment of a worker, as a change to this process's own.
#[derive(Debug, Clone, Default)]
pub struct Environment {
    /// Start from nothing.
    pub clear: bool,
    /// Set these.
    pub set: Vec<(OsString, OsString)>,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It exited with this code.
    Code(i32),
    /// This signal killed it; whether it left a core file.
    Signal(i32, bool),
    /// Somebody else has waited for it, or the host ignores SIGCHLD: the status is lost.
    Unknown,
}

/// A running child that leads a process group of its own. Not reaped before [`Process::reap`], so its
/// id stays its own; dropping it kills and reaps it.
#[derive(Debug)]
pub struct Process {
    child: Child,
    pidfd: OwnedFd,
    state: State,
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    Unreaped,
    Reaped,
}

/// Starts `program` as a worker with `control` as its control channel.
///
/// Call it from a thread that lives as long as the worker shall: the parent-death signal follows the
/// thread, not the process (PR_SET_PDEATHSIG(2const)).
pub fn spawn(
    program: &Program<'_>,
    name: &OsStr,
    environment: &Environment,
    control: OwnedFd,
    stderr: OwnedFd,
) -> io::Result<Process> {
    let mut command = match program {
        Program::SameImage(image) => Command::new(image.path()),
        Program::Other(path) => {
            let mut command = Command::new(path);
            // It may be no worker program at all, and print what nobody asked for. One that is gets the
            // host's standard output with its setup.
            command.stdout(Stdio::null());
            command
        }
    };
    command.arg0(name).process_group(0).stdin(Stdio::from(control)).stderr(Stdio::from(stderr));
    if environment.clear {
        command.env_clear();
    }
    command.envs(environment.set.iter().map(|(key, value)| (key, value)));
    command.env(WORKER_VARIABLE, "1");
    #[expect(clippy::disallowed_methods, reason = "this is the one place that starts workers")]
    let mut child = command.spawn()?;
    match pidfd_open(child.id()) {
        Ok(pidfd) => Ok(Process { child, pidfd, state: State::Unreaped }),
        Err(error) => {
            // Errors of these two mean that it is gone already, which is what is wanted.
            let _ = child.kill();
            let _ = child.wait();
            Err(error)
        }
    }
}

/// A descriptor for the process `pid`, a child or a parent of ours (pidfd_open(2)), close-on-exec.
pub(crate) fn pidfd_open(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: the call takes two integers and touches no memory of ours.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid as libc::pid_t, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

impl Process {
    /// The process id; that of its group as well.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Readable once the process has ended.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Sends SIGTERM to the process and everything in its group.
    pub fn terminate_group(&self) {
        self.signal_group(Signal::SIGTERM);
        // A stopped process acts on SIGTERM only once it continues.
        self.signal_group(Signal::SIGCONT);
    }

    /// Sends SIGKILL to the process and everything in its group.
    pub fn kill_group(&self) {
        self.signal_group(Signal::SIGKILL);
    }

    fn signal_group(&self, signal: Signal) {
        // The id is still ours: the leader is unreaped until `reap`, and a group id is not reused while
        // its leader's process id is taken. An error means that nobody is left in the group.
        if self.state == State::Unreaped {
            let _ = killpg(Pid::from_raw(self.child.id() as i32), signal);
        }
    }

    /// How it ended, if it has. It stays unreaped.
    pub fn exit(&self) -> io::Result<Option<Exit>> {
        let mut info = std::mem::MaybeUninit::<libc::siginfo_t>::zeroed();
        let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
        let fd = self.pidfd.as_raw_fd() as libc::id_t;
        // SAFETY: `info` is a valid place for one siginfo_t, and the descriptor is ours.
        let result = unsafe { libc::waitid(libc::P_PIDFD, fd, info.as_mut_ptr(), options) };
        if result != 0 {
            let error = io::Error::last_os_error();
            return match error.raw_os_error() {
                Some(libc::ECHILD) => Ok(Some(Exit::Unknown)),
                _ => Err(error),
            };
        }
        // SAFETY: all zeroes is a valid siginfo_t, and waitid has filled it if there was something to say.
        let info = unsafe { info.assume_init() };
        // SAFETY: after waitid these fields are the ones that are set; zero means "still running".
        let pid = unsafe { info.si_pid() };
        if pid == 0 {
            return Ok(None);
        }
        // SAFETY: as above.
        let status = unsafe { info.si_status() };
        Ok(Some(match info.si_code {
            libc::CLD_EXITED => Exit::Code(status),
            libc::CLD_DUMPED => Exit::Signal(status, true),
            _ => Exit::Signal(status, false),
        }))
    }

    /// Kills what is left of the group and reaps the leader, in this order: once it is reaped, its id
    /// may belong to a stranger.
    pub fn reap(mut self) {
        self.reap_in_place();
    }

    fn reap_in_place(&mut self) {
        if self.state == State::Unreaped {
            self.kill_group();
            self.state = State::Reaped;
            // An error means that somebody else has reaped it.
            let _ = self.child.wait();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.reap_in_place();
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;
    use crate::channel;

    fn start(program: &str) -> (Process, UnixStream) {
        let (ours, theirs) = channel::pair().unwrap();
        let stderr = std::fs::File::open("/dev/null").unwrap().into();
        let program = Program::Other(program.into());
        let environment = Environment::default();
        let process = spawn(&program, OsStr::new("test"), &environment, theirs, stderr).unwrap();
        (process, ours.into())
    }

    fn wait(process: &Process) -> Exit {
        let mut fds = [PollFd::new(process.pidfd(), PollFlags::POLLIN)];
        assert_eq!(
            poll(&mut fds, PollTimeout::from(10_000u16)).unwrap(),
            1,
            "the child never ended"
        );
        process.exit().unwrap().unwrap()
    }

    #[test]
    fn an_exit_code_is_read_without_reaping() {
        let (process, _control) = start("/bin/false");
        assert_eq!(wait(&process), Exit::Code(1));
        assert_eq!(process.exit().unwrap(), Some(Exit::Code(1)));
        process.reap();
    }

    /// `cat` copies its control channel to standard output, so it lives until that is closed.
    #[test]
    fn a_running_child_has_no_exit_and_dies_of_the_signal_sent() {
        let (process, mut control) = start("/bin/cat");
        control.write_all(b"").unwrap();
        assert_eq!(process.exit().unwrap(), None);
        process.terminate_group();
        assert_eq!(wait(&process), Exit::Signal(libc::SIGTERM, false));
        let mut rest = Vec::new();
        assert_eq!(control.read_to_end(&mut rest).unwrap_or(0), 0);
    }

    #[test]
    fn a_dropped_child_is_dead_and_reaped() {
        let (process, _control) = start("/bin/cat");
        let pid = process.id();
        drop(process);
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    }

    #[test]
    fn a_program_that_does_not_exist_is_an_error() {
        let (_ours, theirs) = channel::pair().unwrap();
        let stderr = std::fs::File::open("/dev/null").unwrap().into();
        let program = Program::Other("/no/such/program".into());
        let error =
            spawn(&program, OsStr::new("x"), &Environment::default(), theirs, stderr).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
