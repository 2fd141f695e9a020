//! The program `procpool`, from the outside: what a shell sees.

mod call;
mod commands;
mod disk;
mod inputs;
mod joblog;
mod options;
mod outputs;
mod parallel;
mod reports;
mod signals;
mod terminal;
mod usage;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::ops::RangeInclusive;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::thread;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::{Guest, TempDir};

const PROCPOOL: &str = env!("CARGO_BIN_EXE_procpool-dup");
const GUEST: &str = env!("CARGO_BIN_EXE_guest");
const TASKS: &str = env!("CARGO_BIN_EXE_worker-tasks");

/// What the shell sees of a program that has ended.
#[derive(Debug)]
struct Finished {
    /// The exit code, or 128 and the number of the signal.
    code: i32,
    stdout: Vec<u8>,
    stderr: String,
}

impl Finished {
    fn out(&self) -> &str {
        str::from_utf8(&self.stdout).unwrap()
    }

    /// The lines of standard output, sorted: without `-k` jobs end in any order.
    fn sorted(&self) -> Vec<&str> {
        let mut lines: Vec<&str> = self.out().lines().collect();
        lines.sort_unstable();
        lines
    }

    /// Asserts that it says this one line on standard error.
    fn says(&self, line: &str) {
        let found = self.stderr.lines().any(|each| each == line);
        assert!(found, "{line:?} is not in {self:#?}");
    }

    /// Asserts that a line of standard error begins and contains this.
    fn complains(&self, start: &str, part: &str) {
        let found = self.stderr.lines().any(|line| line.starts_with(start) && line.contains(part));
        assert!(found, "{start:?} … {part:?} is not in {self:#?}");
    }

    /// Asserts that it says of each of these inputs that it was not run. How many of them had been read is
    /// a matter of luck: those that had not are told by the number of the last that had.
    fn accounts_for(&self, numbers: RangeInclusive<u64>, name: impl Fn(u64) -> String) {
        let says = |line: &str| self.stderr.lines().any(|each| each.ends_with(line));
        for number in numbers {
            if says(&format!("what follows input {} was not run", number - 1)) {
                return;
            }
            let line = format!("procpool: {}: not run", name(number));
            assert!(says(&line), "{line:?} is not in {self:#?}");
        }
    }
}

/// A program under way. Its temporary directory is its own, and empty when it has ended.
struct Started {
    child: Child,
    stderr: BufReader<ChildStderr>,
    /// What of standard error was read.
    said: String,
    dir: TempDir,
}

/// The process that a guest is.
fn pid(guest: &Guest) -> u32 {
    guest.word.split(' ').nth(1).unwrap().parse().unwrap()
}

/// Runs `procpool` with these arguments and this on standard input.
fn procpool<S: AsRef<OsStr>>(args: &[S], input: &[u8]) -> Finished {
    procpool_in(Path::new("."), args, input)
}

/// The same in another directory.
fn procpool_in<S: AsRef<OsStr>>(here: &Path, args: &[S], input: &[u8]) -> Finished {
    let dir = TempDir::new();
    let file = dir.path().join("input");
    fs::write(&file, input).unwrap();
    let mut command = Command::new(PROCPOOL);
    command.args(args).current_dir(here).stdin(File::open(&file).unwrap()).stdout(Stdio::piped());
    start_command(command).finish()
}

fn start<S: AsRef<OsStr>>(args: &[S], stdin: Stdio) -> Started {
    start_to(args, stdin, Stdio::piped())
}

fn start_to<S: AsRef<OsStr>>(args: &[S], stdin: Stdio, stdout: Stdio) -> Started {
    let mut command = Command::new(PROCPOOL);
    command.args(args).stdin(stdin).stdout(stdout);
    start_command(command)
}

fn start_command(mut command: Command) -> Started {
    let dir = TempDir::new();
    command.env("TMPDIR", dir.path()).stderr(Stdio::piped());
    #[expect(clippy::disallowed_methods, reason = "the program is no worker of a pool of ours")]
    let mut child = command.spawn().unwrap();
    let stderr = BufReader::new(child.stderr.take().unwrap());
    Started { child, stderr, said: String::new(), dir }
}

impl Started {
    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    /// Reads standard error up to the line that contains `part`.
    fn wait_to_say(&mut self, part: &str) {
        loop {
            let start = self.said.len();
            let len = self.stderr.read_line(&mut self.said).unwrap();
            assert!(len > 0, "{part:?} is not in {:?}", self.said);
            if self.said[start..].contains(part) {
                return;
            }
        }
    }

    /// Waits for its end. The watchdog ends a wait in vain.
    fn finish(self) -> Finished {
        let (finished, dir) = self.end();
        let left: Vec<_> = fs::read_dir(dir.path()).unwrap().flatten().collect();
        assert!(left.is_empty(), "left behind: {left:?}");
        finished
    }

    /// The same for a program that is killed, and so cannot remove what it has made.
    fn end(mut self) -> (Finished, TempDir) {
        drop(self.child.stdin.take());
        let mut stdout = Vec::new();
        thread::scope(|scope| {
            let rest = scope.spawn(|| {
                self.stderr.read_to_string(&mut self.said).unwrap();
            });
            if let Some(mut pipe) = self.child.stdout.take() {
                pipe.read_to_end(&mut stdout).unwrap();
            }
            rest.join().unwrap();
        });
        let status = self.child.wait().unwrap();
        let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap());
        let finished = Finished { code, stdout, stderr: self.said };
        (finished, self.dir)
    }
}
