//! Programs that run beside the tests: hosts of pools of their own.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::support::TempDir;

pub(crate) const HOST: &str = env!("CARGO_BIN_EXE_life-host");
/// The last word to a host: how its workers come into being.
pub(crate) const METHODS: [&str; 2] = ["executed", "forked"];

/// A program with its standard streams. Dropping it kills it.
pub(crate) struct Fixture {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    errors: PathBuf,
    _dir: TempDir,
}

/// What a program left.
#[derive(Debug)]
pub(crate) struct Left {
    pub(crate) status: ExitStatus,
    pub(crate) output: String,
    pub(crate) errors: String,
}

impl Fixture {
    /// Tells a story of the host.
    pub(crate) fn host(story: &[&str]) -> Fixture {
        Fixture::start(Command::new(HOST).args(story))
    }

    #[expect(clippy::disallowed_methods, reason = "a host is not a worker")]
    pub(crate) fn start(command: &mut Command) -> Fixture {
        let dir = TempDir::new();
        let errors = dir.path().join("stderr");
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(&errors).unwrap())
            .spawn()
            .unwrap();
        Fixture {
            input: child.stdin.take(),
            output: BufReader::new(child.stdout.take().unwrap()),
            child,
            errors,
            _dir: dir,
        }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// The next line that it or one of its jobs says.
    pub(crate) fn hear(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        assert!(line.ends_with('\n'), "it says no more: {}", self.errors());
        line.truncate(line.len() - 1);
        line
    }

    pub(crate) fn say(&mut self, line: &str) {
        let input = self.input.as_mut().unwrap();
        input.write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
    }

    /// Waits for its end, and for that of everything that could speak on its standard output.
    pub(crate) fn end(mut self) -> Left {
        self.input = None;
        let mut output = String::new();
        self.output.read_to_string(&mut output).unwrap();
        let status = self.child.wait().unwrap();
        Left { status, output, errors: self.errors() }
    }

    fn errors(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.errors).unwrap()).into_owned()
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        // Both fail only if it was waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A process that is watched, from while it lives: its id could be another's later.
pub(crate) struct Watched {
    pub(crate) pid: u32,
    pidfd: OwnedFd,
}

impl Watched {
    #[expect(unsafe_code, reason = "nix has no wrapper for pidfd_open")]
    pub(crate) fn new(pid: u32) -> Watched {
        // SAFETY: the call takes two integers and touches no memory of ours.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        assert!(fd >= 0, "process {pid}: {}", io::Error::last_os_error());
        // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
        let pidfd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
        Watched { pid, pidfd }
    }

    /// True if the process ends before the time is over.
    pub(crate) fn ends_within(&self, limit: Duration) -> bool {
        let mut fds = [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::try_from(limit).unwrap()).unwrap() == 1
    }
}

/// True if the machine has this program; says so if not.
pub(crate) fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).any(|dir| dir.join(program).exists());
    if !found {
        println!("skipped: {program} is not installed");
    }
    found
}
