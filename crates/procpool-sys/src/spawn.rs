//! Starting workers and ending them: the pool's side of a child process.
//!
//! A child is started by `posix_spawn` (`plain.rs`), or inside a cgroup by a call of the same shape (`born.rs`),
//! so nothing but a few system calls runs in a copy of a threaded program. Its control channel is its standard
//! input until [`worker::enter`](crate::worker::enter) moves it away.
//!
//! Not by `Command`: it takes the lock of this process's environment for each start, and a host whose threads
//! write variables all the time would starve the one that starts workers.

mod born;
mod environment;
mod plain;

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Pid, setpgid};

use crate::image::Image;
use crate::pidfd;
pub(crate) use born::CLONE_INTO_CGROUP;
use born::{Failure, Plan};
pub use environment::Environment;

/// The variable that tells a process that it is a worker. Removed before any user code runs.
pub const WORKER_VARIABLE: &str = "PROCPOOL_WORKER";
/// What it says to a process that is born in a cgroup.
pub(crate) const BORN_IN_CGROUP: &str = "in-cgroup";
/// What it says to others.
pub(crate) const BORN_ELSEWHERE: &str = "1";
/// The variable that has the dynamic linker bind all functions before it runs a program (ld.so(8)).
pub(crate) const BIND_NOW: &str = "LD_BIND_NOW";
/// What it is set to by us. Any text will do; this one is removed before any user code runs.
pub(crate) const BIND_NOW_FOR_NOW: &str = "procpool";

/// What a worker executes.
#[derive(Debug)]
pub enum Program<'a> {
    /// The image that this process runs.
    SameImage(&'a Image),
    /// Another program, which calls `procpool::init()`.
    Other(PathBuf),
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

/// How far apart the looks are whether a process has stopped: about the time of a wake-up.
const STOP_LOOKS_APART: Duration = Duration::from_micros(50);

/// How long an orphan that was killed may take to die before it is left unreaped: one that the kernel lets die does so
/// within a millisecond.
const DYING_MAX: Duration = Duration::from_millis(100);

/// A running child that leads a process group of its own. Not reaped before [`Process::reap`], so its
/// id stays its own; dropping it kills and reaps it.
#[derive(Debug)]
pub struct Process {
    id: u32,
    pidfd: OwnedFd,
    state: State,
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    Unreaped,
    Reaped,
}

/// Where a process began its life.
#[derive(Debug)]
pub enum Birth {
    /// In the cgroup that was given: nothing of it can be outside.
    InCgroup,
    /// In this process's cgroup. If another was given, why not there.
    InHostCgroup(Option<io::Error>),
}

/// Starts `program` as a worker with `control` as its control channel, in the cgroup (version 2) whose
/// directory is given, if that can be; [`Birth`] tells.
///
/// Call it from a thread that lives as long as the worker shall: the parent-death signal follows the
/// thread, not the process (PR_SET_PDEATHSIG(2const)).
pub fn spawn(
    program: &Program<'_>,
    name: &OsStr,
    environment: &Environment,
    control: OwnedFd,
    stderr: OwnedFd,
    cgroup: Option<BorrowedFd<'_>>,
) -> io::Result<(Process, Birth)> {
    let (path, stdout) = match program {
        Program::SameImage(image) => (PathBuf::from(image.path()), None),
        Program::Other(path) => {
            // It may be no worker program at all, and print what nobody asked for. One that is gets the
            // host's standard output with its setup.
            let null = File::options().write(true).open("/dev/null")?;
            (environment.find(path)?, Some(null.into()))
        }
    };
    let streams = [Some(control), stdout, Some(stderr)];
    let plan = Plan::new(path.into(), vec![name.to_owned()], environment.clone(), streams)?;
    let Some(cgroup) = cgroup else {
        return Ok((plan.start()?, Birth::InHostCgroup(None)));
    };
    match plan.start_in(cgroup) {
        Ok((id, pidfd)) => Ok((Process { id, pidfd, state: State::Unreaped }, Birth::InCgroup)),
        Err(Failure::Start(error)) => Err(error),
        // The system is short of something: another call would find it just so.
        Err(Failure::Clone(error))
            if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::ENOMEM | libc::EMFILE)) =>
        {
            Err(error)
        }
        Err(Failure::Clone(error)) => Ok((plan.start()?, Birth::InHostCgroup(Some(error)))),
    }
}

/// Names the call that something forbids here (a sandbox, an old kernel): the bare error would not tell.
/// EPERM and ENOSYS are what such refusals look like; an exec has other errors.
pub(crate) fn refused(call: &str, error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(libc::ENOSYS | libc::EPERM) => {
            io::Error::new(error.kind(), format!("{call} is refused: {error}"))
        }
        _ => error,
    }
}

/// Whether processes can be born in a cgroup here; the error says why not.
pub fn probe_clone_into_cgroup() -> io::Result<()> {
    born::probe()
}

impl Process {
    /// Takes charge of a child of this process that somebody else has made: a fork server says that it has this
    /// id. It shall lead a process group, and is helped to if it has not come to that yet.
    ///
    /// # Errors
    /// If this process has no such child, which then is left alone.
    pub fn adopt(id: u32) -> io::Result<Process> {
        let pidfd = pidfd::open(id).map_err(|error| refused("pidfd_open", error))?;
        // A stranger is not ours to signal. An unreaped child of ours is, and its id is its own until we reap it.
        if exit_of(&pidfd)?.is_some_and(|exit| exit == Exit::Unknown) {
            return Err(io::Error::from_raw_os_error(libc::ECHILD));
        }
        let pid = Pid::from_raw(id as i32);
        // An error means that it has done so itself and gone on, or is gone.
        let _ = setpgid(pid, pid);
        Ok(Process { id, pidfd, state: State::Unreaped })
    }

    /// The process id; that of its group as well.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Readable once the process has ended.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Stops the process by SIGSTOP, and looks until all its threads stand still, at most for `patience`. The signal is
    /// some thread's to take: until that one gets a processor the others go on. One that waits in the kernel for what
    /// does not come does not stop.
    pub fn stop(&self, patience: Duration) {
        if pidfd::stop(self.pidfd()).is_ok() {
            self.wait_still(patience);
        }
    }

    /// Looks until all threads of the process, which was sent SIGSTOP, stand still, at most for `patience`.
    pub fn wait_still(&self, patience: Duration) {
        let deadline = Instant::now() + patience;
        // With all of them stopped, or none left, there is something to say (`task_stopped_code` in the kernel).
        while matches!(news_of(&self.pidfd, libc::WSTOPPED | libc::WEXITED), Ok(None))
            && Instant::now() < deadline
        {
            // It is the process that needs the processor, and it has no other way to tell.
            thread::sleep(STOP_LOOKS_APART);
        }
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
        if self.state == State::Unreaped
            && pidfd::signal_group(self.pidfd(), signal as i32).is_err()
        {
            self.signal_group_by_id(signal);
        }
    }

    /// Before Linux 6.9. The id is still ours if the leader is unreaped: a group's id is not used again while it
    /// is some process's. If somebody else has reaped it (`waitpid(-1)`, SIGCHLD ignored) the number may be a
    /// stranger's by now, and the rest of the group is left to whoever looks for the worker's tree.
    fn signal_group_by_id(&self, signal: Signal) {
        if self.is_ours() {
            // An error means that nobody is left in the group.
            let _ = killpg(Pid::from_raw(self.id as i32), signal);
        }
    }

    /// False if somebody else has reaped it: its id may be a stranger's by now.
    pub fn is_ours(&self) -> bool {
        !matches!(self.exit(), Ok(Some(Exit::Unknown)))
    }

    /// How it ended, if it has. It stays unreaped.
    pub fn exit(&self) -> io::Result<Option<Exit>> {
        exit_of(&self.pidfd)
    }

    /// Kills what is left of the group and reaps the leader, in this order: once it is reaped, its id
    /// may belong to a stranger. With the leader those of the group who have become our children by its death: a host that
    /// is process 1, or a subreaper (PR_SET_CHILD_SUBREAPER(2const)), gets them, and does not know of them.
    pub fn reap(mut self) {
        self.reap_in_place();
    }

    fn reap_in_place(&mut self) {
        if self.state == State::Unreaped {
            self.kill_group();
            self.state = State::Reaped;
            if wait_by(&self.pidfd, libc::WEXITED | libc::WNOWAIT) {
                self.reap_group();
            }
        }
    }

    /// The leader, which has ended and is ours, and whoever of its group was killed and is ours by now.
    fn reap_group(&self) {
        let deadline = Instant::now() + DYING_MAX;
        loop {
            let mut info = std::mem::MaybeUninit::<libc::siginfo_t>::zeroed();
            let (place, options) = (info.as_mut_ptr(), libc::WEXITED | libc::WNOHANG);
            // SAFETY: `info` is a valid place for one siginfo_t. The group's id is its own while one of it is unreaped.
            let result = unsafe { libc::waitid(libc::P_PGID, self.id, place, options) };
            if result != 0 {
                // None is left.
                return;
            }
            // SAFETY: all zeroes is a valid value of this structure of numbers.
            let info = unsafe { info.assume_init_ref() };
            // SAFETY: waitid has said who, or nobody, in this field.
            if unsafe { info.si_pid() } == 0 {
                if Instant::now() >= deadline {
                    return;
                }
                // It was killed, and has no way to tell when it is dead. That holds up the supervisor in a host that
                // adopts orphans only, after a kill, and no longer than said above.
                thread::sleep(STOP_LOOKS_APART);
            }
        }
    }
}

/// Waits for the end of a child of ours. False if it is not ours any more.
fn wait_by(pidfd: &OwnedFd, options: i32) -> bool {
    let mut info = std::mem::MaybeUninit::<libc::siginfo_t>::zeroed();
    let fd = pidfd.as_raw_fd() as libc::id_t;
    loop {
        // SAFETY: `info` is a valid place for one siginfo_t, and the descriptor is ours.
        let result = unsafe { libc::waitid(libc::P_PIDFD, fd, info.as_mut_ptr(), options) };
        if result == 0 {
            return true;
        }
        // Any other error means that somebody else has reaped it.
        if io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            return false;
        }
    }
}

/// How the child behind a pidfd ended, if it has; [`Exit::Unknown`] if it is no child of ours, or not any more.
fn exit_of(pidfd: &OwnedFd) -> io::Result<Option<Exit>> {
    let info = match news_of(pidfd, libc::WEXITED) {
        Ok(Some(info)) => info,
        Ok(None) => return Ok(None),
        Err(error) if error.raw_os_error() == Some(libc::ECHILD) => return Ok(Some(Exit::Unknown)),
        Err(error) => return Err(error),
    };
    Ok(Some(Exit::of(&info)))
}

impl Exit {
    /// What waitid(2) has said of the end of a child.
    pub(crate) fn of(info: &libc::siginfo_t) -> Exit {
        // SAFETY: waitid has said something, so this field is set.
        let status = unsafe { info.si_status() };
        match info.si_code {
            libc::CLD_EXITED => Exit::Code(status),
            libc::CLD_DUMPED => Exit::Signal(status, true),
            _ => Exit::Signal(status, false),
        }
    }
}

/// What waitid(2) has to say at once of the child behind a pidfd, of the kinds asked for. It is left to be said again.
fn news_of(pidfd: &OwnedFd, kinds: i32) -> io::Result<Option<libc::siginfo_t>> {
    let mut info = std::mem::MaybeUninit::<libc::siginfo_t>::zeroed();
    let options = kinds | libc::WNOHANG | libc::WNOWAIT;
    let fd = pidfd.as_raw_fd() as libc::id_t;
    // SAFETY: `info` is a valid place for one siginfo_t, and the descriptor is ours.
    let result = unsafe { libc::waitid(libc::P_PIDFD, fd, info.as_mut_ptr(), options) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: all zeroes is a valid siginfo_t, and waitid has filled it if there was something to say.
    let info = unsafe { info.assume_init() };
    // SAFETY: after waitid this field is set; zero means that there is nothing to say.
    let pid = unsafe { info.si_pid() };
    Ok((pid != 0).then_some(info))
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
        let (process, birth, control) = start_in(program, None);
        assert!(matches!(birth, Birth::InHostCgroup(None)));
        (process, control)
    }

    fn start_in(program: &str, cgroup: Option<BorrowedFd<'_>>) -> (Process, Birth, UnixStream) {
        let (ours, theirs) = channel::pair().unwrap();
        let stderr = std::fs::File::open("/dev/null").unwrap().into();
        let program = Program::Other(program.into());
        let environment = Environment::default();
        let (process, birth) =
            spawn(&program, OsStr::new("test"), &environment, theirs, stderr, cgroup).unwrap();
        (process, birth, ours.into())
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

    #[test]
    fn only_a_child_is_adopted() {
        let error = Process::adopt(1).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ECHILD));
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

    /// Goal: the rest of a group is reached though somebody else has reaped its leader, and by the leader's
    /// descriptor alone: its number may be a stranger's by then.
    /// Covers: F-95
    #[test]
    fn a_group_is_known_by_its_leader_and_not_by_its_number() {
        let (process, mut control) = start("/bin/sh");
        control.write_all(b"sleep 1000 &\n").unwrap();
        let list = format!("/proc/{0}/task/{0}/children", process.id());
        let member = loop {
            let children = std::fs::read_to_string(&list).unwrap();
            match children.split_whitespace().next() {
                Some(pid) => break pidfd::open(pid.parse().unwrap()).unwrap(),
                None => std::thread::yield_now(),
            }
        };
        let has_ended = |limit: PollTimeout| {
            let mut fds = [PollFd::new(member.as_fd(), PollFlags::POLLIN)];
            poll(&mut fds, limit).unwrap() == 1
        };
        pidfd::kill(process.pidfd()).unwrap();
        wait(&process);
        assert!(wait_by(&process.pidfd, libc::WEXITED));
        assert_eq!(process.exit().unwrap(), Some(Exit::Unknown));
        // By number nobody is reached any more, whoever has it. More time could only make this stronger.
        process.signal_group_by_id(Signal::SIGKILL);
        assert!(!has_ended(PollTimeout::from(20u16)));
        match pidfd::signal_group(process.pidfd(), libc::SIGKILL) {
            Ok(()) => assert!(has_ended(PollTimeout::from(10_000u16))),
            Err(error) => {
                eprintln!("skipped: no signals by a group's descriptor here: {error}");
                pidfd::kill(member.as_fd()).unwrap();
            }
        }
    }

    #[test]
    fn a_program_that_does_not_exist_is_an_error() {
        let (_ours, theirs) = channel::pair().unwrap();
        let stderr = std::fs::File::open("/dev/null").unwrap().into();
        let program = Program::Other("/no/such/program".into());
        let error = spawn(&program, OsStr::new("x"), &Environment::default(), theirs, stderr, None)
            .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    /// A version 2 cgroup for a test, if this machine allows one.
    struct TestCgroup(PathBuf);

    impl TestCgroup {
        fn new(name: &str) -> Option<TestCgroup> {
            let root = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
                .into_iter()
                .find(|root| PathBuf::from(root).join("cgroup.subtree_control").exists())?;
            let path = PathBuf::from(root).join(format!("{name}-{}", std::process::id()));
            std::fs::create_dir(&path).ok()?;
            Some(TestCgroup(path))
        }

        fn open(&self) -> OwnedFd {
            std::fs::File::open(&self.0).unwrap().into()
        }
    }

    impl Drop for TestCgroup {
        fn drop(&mut self) {
            std::fs::remove_dir(&self.0).unwrap();
        }
    }

    /// Goal: a worker never runs a single instruction outside of its cgroup, and is otherwise as any other:
    /// streams, group, signal mask, name, environment, exit code.
    /// Method: a shell that looks around and says what it sees.
    #[test]
    fn a_child_is_born_in_its_cgroup_and_else_as_any_other() {
        let Some(cgroup) = TestCgroup::new("procpool-sys-born") else {
            eprintln!("skipped: no cgroup can be made here");
            return;
        };
        let dir = cgroup.open();
        let (process, birth, _control) = start_in("/bin/true", Some(dir.as_fd()));
        assert!(matches!(birth, Birth::InCgroup), "{birth:?}");
        assert_eq!(wait(&process), Exit::Code(0));
        process.reap();

        let (process, birth, mut control) = start_in("/bin/cat", Some(dir.as_fd()));
        assert!(matches!(birth, Birth::InCgroup), "{birth:?}");
        let proc =
            |file: &str| std::fs::read_to_string(format!("/proc/{}/{file}", process.id())).unwrap();
        // The parent goes on when the child lets go of its memory, a moment before the new one is complete.
        while proc("cmdline").is_empty() {
            std::thread::yield_now();
        }
        let name = cgroup.0.file_name().unwrap().to_str().unwrap().to_owned();
        assert!(proc("cgroup").contains(&name), "{}", proc("cgroup"));
        assert_eq!(proc("cmdline"), "test\0");
        assert!(proc("environ").contains("PROCPOOL_WORKER=in-cgroup\0"));
        let own = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let mask = |status: &str| {
            status.lines().find(|line| line.starts_with("SigBlk")).unwrap().to_owned()
        };
        assert_eq!(mask(&proc("status")), mask(&own));
        assert_eq!(proc("stat").split_whitespace().nth(4).unwrap(), process.id().to_string());
        for (fd, target) in [(1, "/dev/null"), (2, "/dev/null")] {
            let link = std::fs::read_link(format!("/proc/{}/fd/{fd}", process.id())).unwrap();
            assert_eq!(link, PathBuf::from(target));
        }
        control.write_all(b"x").unwrap();
        process.terminate_group();
        assert_eq!(wait(&process), Exit::Signal(libc::SIGTERM, false));
        process.reap();
    }

    /// Goal: an error of the exec comes back from the child, which is reaped; this thread's signal mask and
    /// stack are as they were.
    #[test]
    fn a_program_that_cannot_be_executed_in_a_cgroup_is_an_error() {
        let Some(cgroup) = TestCgroup::new("procpool-sys-unborn") else {
            eprintln!("skipped: no cgroup can be made here");
            return;
        };
        let dir = cgroup.open();
        for (path, expected) in [("/no/such/program", libc::ENOENT), ("/dev/null", libc::EACCES)] {
            let (_ours, theirs) = channel::pair().unwrap();
            let stderr = std::fs::File::open("/dev/null").unwrap().into();
            let program = Program::Other(path.into());
            let environment = Environment::default();
            let name = OsStr::new("x");
            let error =
                spawn(&program, name, &environment, theirs, stderr, Some(dir.as_fd())).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(expected));
        }
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        assert!(status.contains("SigBlk:\t0000000000000000"), "{status}");
    }

    /// Goal: where the kernel refuses the birth, the worker is started all the same, and it is told why it
    /// is not in the cgroup.
    #[test]
    fn a_child_that_cannot_be_born_in_a_cgroup_is_started_outside() {
        let no_cgroup = std::fs::File::open("/proc/self").unwrap();
        let (process, birth, _control) = start_in("/bin/true", Some(no_cgroup.as_fd()));
        assert!(matches!(birth, Birth::InHostCgroup(Some(_))), "{birth:?}");
        assert_eq!(wait(&process), Exit::Code(0));
    }
}
