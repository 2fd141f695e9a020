//! What a worker does to itself as it starts: the child's side, before any user code runs.

pub(crate) mod raw;
mod watch;

use std::env;
use std::ffi::{CStr, CString};
use std::fs;
use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::process;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{
    SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal, kill, sigaction, sigprocmask,
};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, dup2_stdin, dup2_stdout, getpgrp, getpid, getppid, setpgid};

use crate::privileges;
use crate::spawn::{BIND_NOW, BIND_NOW_FOR_NOW, BORN_IN_CGROUP, WORKER_VARIABLE};

/// How much more likely the kernel's out-of-memory killer shall find a worker than its host: half the
/// scale. A worker is the better victim: it costs one job.
const OOM_SCORE_ABOVE_HOST: i32 = 500;
/// The highest value that /proc/self/oom_score_adj takes (proc_pid_oom_score_adj(5)).
const OOM_SCORE_MAX: i32 = 1000;

/// Where a worker process began its life, as it knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Birthplace {
    /// In the cgroup of version 2 that was made for it.
    Cgroup,
    /// In its parent's cgroups.
    Elsewhere,
}

/// True if this process was started as a worker and [`enter`] has not been called.
pub fn is_worker() -> bool {
    env::var_os(WORKER_VARIABLE).is_some()
}

/// Makes this process a worker and answers its control channel, and where it was born.
///
/// Afterwards: descriptors 0 (`/dev/null`), 1, 2 and the channel are all there are; the signal mask is
/// empty and nothing is ignored but SIGPIPE, as Rust programs expect; no core is dumped; the process
/// leads its group. Must be called before the process has a second thread.
///
/// # Errors
/// Among others if this program has privileges that whoever asks it to be a worker has not.
pub fn enter() -> io::Result<(OwnedFd, Birthplace)> {
    let birthplace = match env::var_os(WORKER_VARIABLE) {
        Some(text) if text == BORN_IN_CGROUP => Birthplace::Cgroup,
        _ => Birthplace::Elsewhere,
    };
    // SAFETY: the process has one thread: this is the first line of main, or before it.
    unsafe { env::remove_var(WORKER_VARIABLE) };
    if env::var_os(BIND_NOW).is_some_and(|text| text == BIND_NOW_FOR_NOW) {
        // SAFETY: as above.
        unsafe { env::remove_var(BIND_NOW) };
    }
    privileges::check_host(io::stdin())?;
    close_from_three()?;
    let stdin = io::stdin();
    let control = duplicate(&stdin)?;
    let null = open("/dev/null", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    dup2_stdin(&null)?;
    reset_signals()?;
    if getpgrp() != getpid() {
        setpgid(Pid::from_raw(0), Pid::from_raw(0))?;
    }
    let (_soft, hard) = getrlimit(Resource::RLIMIT_CORE)?;
    setrlimit(Resource::RLIMIT_CORE, 0, hard)?;
    raise_oom_score();
    Ok((control, birthplace))
}

/// Gives this process a standard output.
pub fn set_stdout(fd: impl AsFd) -> io::Result<()> {
    Ok(dup2_stdout(fd)?)
}

/// Closes what the host passed on without meaning to: each of its descriptors that is not close-on-exec.
fn close_from_three() -> io::Result<()> {
    // SAFETY: nothing in this process owns a descriptor yet but the standard three: see `enter`.
    let result = unsafe { libc::close_range(3, libc::c_uint::MAX, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn duplicate(fd: &impl AsFd) -> io::Result<OwnedFd> {
    let fd = fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(3))?;
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Empties the signal mask, and lets no signal be ignored but SIGPIPE: both are inherited over fork and exec, and
/// a job expects neither.
pub fn reset_signals() -> io::Result<()> {
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    let ignore = SigAction::new(SigHandler::SigIgn, SaFlags::empty(), SigSet::empty());
    for signal in Signal::iterator() {
        if matches!(signal, Signal::SIGKILL | Signal::SIGSTOP) {
            continue;
        }
        // Only what is ignored is set: a handler is the standard library's own, for stack overflows.
        // SAFETY: the default action runs no code of ours.
        let before = unsafe { sigaction(signal, &default) }?;
        let wanted = match (signal, before.handler()) {
            (Signal::SIGPIPE, _) => &ignore,
            (_, SigHandler::SigIgn | SigHandler::SigDfl) => continue,
            _ => &before,
        };
        // SAFETY: either ignoring, which runs no code, or what was installed before.
        unsafe { sigaction(signal, wanted) }?;
    }
    for signal in INTERNAL_SIGNALS {
        reset_internal_signal(signal)?;
    }
    Ok(())
}

/// The C library's own signals, SIGCANCEL and SIGSETXID. Its `posix_spawn` has the child ignore them, and
/// its `sigaction` refuses to speak of them.
const INTERNAL_SIGNALS: [i32; 2] = [32, 33];

/// What rt_sigaction(2) takes: handler, flags, restorer, mask, each a word wide.
type KernelAction = [u64; 4];

fn reset_internal_signal(signal: i32) -> io::Result<()> {
    let mask_len = size_of::<u64>();
    let mut action: KernelAction = [0; 4];
    let (none, out) = (std::ptr::null::<KernelAction>(), &raw mut action);
    // SAFETY: asks for the action only, and `action` is a valid place for one.
    let result = unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, none, out, mask_len) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    if action[0] != libc::SIG_IGN as u64 {
        return Ok(());
    }
    let default: KernelAction = [0; 4];
    let (default, none) = (&raw const default, std::ptr::null_mut::<KernelAction>());
    // SAFETY: the default action runs no code of ours, and `default` is a valid action: all zeroes.
    let result = unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, default, none, mask_len) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn raise_oom_score() {
    const FILE: &str = "/proc/self/oom_score_adj";
    // Without /proc, or where a sandbox forbids it, the score stays: it is a preference, not a promise.
    if let Some(score) =
        fs::read_to_string(FILE).ok().and_then(|text| text.trim().parse::<i32>().ok())
    {
        let _ = fs::write(FILE, (score + OOM_SCORE_ABOVE_HOST).min(OOM_SCORE_MAX).to_string());
    }
}

/// The file that kills this worker's cgroup, for when the host has died. Without one the thread that waits for
/// that walks the tree.
static KILL_FILE: OnceLock<CString> = OnceLock::new();

/// Ties this process to its host: when the thread that spawned it ends, by whatever means, this process
/// and everything below it are killed. Fails if the host is gone already. `cgroup_kill` is the file that
/// kills the worker's cgroup, if it has one. Orphans below this process come to it from now on.
///
/// The parent-death signal is not SIGKILL, because that would leave the tree behind: it is a real-time
/// signal whose handler kills cgroup and group. Without a cgroup it leaves both to the thread in
/// [`wait_for_host_death`], which can walk the tree: a handler cannot, and to kill the worker first would
/// be to lose the tree. A job that blocks or ignores every signal is left to that thread too.
///
/// A stopped worker acts on nothing before it is continued. So that thread has the kernel send SIGCONT, which
/// whoever else continues the worker may send as well: the handler looks whether the host is gone. And if its death
/// orphans the worker's group (setpgid(2)) while something in it is stopped, the kernel sends SIGHUP, which must not end
/// the worker before it has ended its tree: the handler does what the default would as long as the host lives.
pub fn die_with(host: u32, cgroup_kill: Option<&[u8]>) -> io::Result<()> {
    // So that all that a job starts, daemons included, can be found below the worker while it lives. A
    // forked worker has not inherited it. It cannot fail (PR_SET_CHILD_SUBREAPER(2const)); where a sandbox forbids it, less can be found.
    let _ = nix::sys::prctl::set_child_subreaper(true);
    if let Some(path) = cgroup_kill {
        // A process becomes a worker once.
        let _ = KILL_FILE.set(CString::new(path)?);
    }
    HOST.store(host, Ordering::Relaxed);
    WORKER.store(process::id(), Ordering::Relaxed);
    let signal = host_died_signal();
    handle(signal, host_died)?;
    handle(libc::SIGCONT, continued)?;
    handle(libc::SIGHUP, hung_up)?;
    watch::ask_for(signal)?;
    // The host may have died before the line above; then nobody will send the signal.
    if getppid().as_raw() as u32 == host { Ok(()) } else { Err(io::ErrorKind::NotConnected.into()) }
}

/// For a worker whose jobs run in children: has all signals blocked but those that [`die_with`] handles for a host's death
/// and for its being continued. Answers the former.
pub(crate) fn leave_signals_to_children() -> io::Result<i32> {
    let died = host_died_signal();
    let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: the pointer is valid for a set.
    unsafe { libc::sigfillset(set.as_mut_ptr()) };
    for signal in [died, libc::SIGCONT] {
        // SAFETY: the call above has made the set.
        unsafe { libc::sigdelset(set.as_mut_ptr(), signal) };
    }
    // SAFETY: the set is valid for the call; a null pointer says that the old mask is not wanted.
    let result =
        unsafe { libc::sigprocmask(libc::SIG_SETMASK, set.as_ptr(), std::ptr::null_mut()) };
    if result == 0 { Ok(died) } else { Err(io::Error::last_os_error()) }
}

/// Hears every signal again.
pub fn hear_all_signals() {
    raw::clear_signal_mask();
}

/// In a new child of a worker: what [`die_with`] has done for the worker, whose handlers and files it has; then it hears
/// every signal. `signal` is that of the host's death. Answers the child's id.
pub(crate) fn become_child(worker: u32, signal: i32) -> u32 {
    let id = raw::process_id();
    IS_CHILD.store(true, Ordering::Relaxed);
    // As there.
    raw::become_subreaper();
    HOST.store(worker, Ordering::Relaxed);
    WORKER.store(id, Ordering::Relaxed);
    // It fails for numbers alone that are no signals.
    raw::ask_for_death_signal(signal);
    if raw::parent_id() != worker {
        kill_self();
    }
    hear_all_signals();
    id
}

/// High among the real-time signals, which few programs use, and below the last two, which debuggers
/// and test tools like.
fn host_died_signal() -> i32 {
    libc::SIGRTMAX() - 2
}

fn handle(signal: i32, handler: extern "C" fn(libc::c_int)) -> io::Result<()> {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: all zeroes is a valid sigaction: the default action, no flags, an empty mask.
    let action = unsafe { action.assume_init_mut() };
    action.sa_sigaction = handler as *const () as usize;
    action.sa_flags = libc::SA_RESTART | libc::SA_ONSTACK;
    // SAFETY: the handlers load words and make system calls that are async-signal-safe.
    let result = unsafe { libc::sigaction(signal, action, std::ptr::null_mut()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Whom handlers ask about: the host, and the worker, which a forked child of it is not.
static HOST: AtomicU32 = AtomicU32::new(0);
static WORKER: AtomicU32 = AtomicU32::new(0);

/// Async-signal-safe.
fn has_lost_host() -> bool {
    getpid().as_raw() as u32 == WORKER.load(Ordering::Relaxed)
        && getppid().as_raw() as u32 != HOST.load(Ordering::Relaxed)
}

extern "C" fn continued(_: libc::c_int) {
    if has_lost_host() {
        host_died(host_died_signal());
    }
}

extern "C" fn hung_up(signal: libc::c_int) {
    if has_lost_host() {
        return host_died(host_died_signal());
    }
    // SAFETY: the call takes integers, and the default action runs no code of ours.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
    // SAFETY: the call takes integers and touches no memory of ours. The process ends of it, in this thread once the
    // handler has returned.
    unsafe { libc::kill(getpid().as_raw(), signal) };
}

/// The file that kills the cgroups of all workers that were forked off this process.
static SERVED: OnceLock<CString> = OnceLock::new();
/// False in the workers, which have a copy of the above.
static ANSWERS: AtomicBool = AtomicBool::new(false);
/// True in a worker's child, whose "host" is its worker. If that is dead the pool ends what it has left; if the pool is gone
/// too, the fork server does.
static IS_CHILD: AtomicBool = AtomicBool::new(false);

/// For a fork server: when the host dies, all that `kill_file` kills goes with this process. A forked worker whose job
/// blocks or ignores every signal then needs no thread to see to it.
pub fn answer_for(kill_file: &[u8]) -> io::Result<()> {
    // A process becomes a fork server once.
    let _ = SERVED.set(CString::new(kill_file)?);
    ANSWERS.store(true, Ordering::Relaxed);
    Ok(())
}

/// Whether this process, or the fork server of which it is a copy, answers for forked workers.
pub fn is_answered_for() -> bool {
    SERVED.get().is_some()
}

/// In a forked worker.
pub(crate) fn answer_for_nobody() {
    ANSWERS.store(false, Ordering::Relaxed);
}

extern "C" fn host_died(signal: libc::c_int) {
    kill_served();
    if !is_in_cgroup() && watch::hand_over(signal) {
        return;
    }
    if !IS_CHILD.load(Ordering::Relaxed) {
        kill_cgroup();
    }
    // SAFETY: the call takes integers and touches no memory of ours. Async-signal-safe (signal-safety(7)).
    unsafe { libc::kill(0, libc::SIGKILL) };
}

/// Kills every process in this worker's cgroup, this one included, if it has one. Async-signal-safe.
fn kill_cgroup() {
    if let Some(path) = KILL_FILE.get() {
        write_to(path);
    }
}

/// Kills the workers that this process answers for. Async-signal-safe.
fn kill_served() {
    if ANSWERS.load(Ordering::Relaxed)
        && let Some(path) = SERVED.get()
    {
        write_to(path);
    }
}

/// Async-signal-safe.
fn write_to(path: &CStr) {
    // SAFETY: the path is a text that ends with a zero and is never freed. Async-signal-safe.
    let fd = unsafe { libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC) };
    if fd >= 0 {
        // SAFETY: one byte of a constant, to a descriptor that is ours. Async-signal-safe.
        unsafe { libc::write(fd, c"1".as_ptr().cast(), 1) };
    }
}

/// Whether a cgroup of its own holds this worker and all below it.
pub fn is_in_cgroup() -> bool {
    KILL_FILE.get().is_some()
}

/// Kills this process, what it answers for, and everything in its group: the host is gone.
pub fn follow_host() -> ! {
    kill_served();
    kill_self()
}

/// Kills this process and everything in its cgroup and group.
pub fn kill_self() -> ! {
    kill_cgroup();
    // An error is impossible: we are in our own group.
    let _ = kill(Pid::from_raw(0), Signal::SIGKILL);
    std::process::abort()
}

/// Blocks until the process `host`, our parent, is gone. Takes the signal of [`die_with`] to itself.
///
/// It waits neither for the channel's end, since a poll would hold the channel open after a job has closed it, nor
/// by a pidfd, which would be one more descriptor for every job to find.
pub fn wait_for_host_death(host: u32) {
    watch::wait(host_died_signal(), host);
}

/// For the thread that runs jobs: has it told of the host's death by the signal of [`die_with`], since the thread in
/// [`wait_for_host_death`] has another. The kernel keeps one for each thread (`pdeath_signal` of its task).
pub fn hear_of_host_death() -> io::Result<()> {
    watch::ask_for(host_died_signal())
}

/// Names this thread for `ps` and `top`; the kernel keeps 15 bytes.
pub fn set_thread_name(name: &str) {
    if let Ok(name) = CString::new(name) {
        // The name is a courtesy: nothing depends on it.
        let _ = nix::sys::prctl::set_name(&name);
    }
}
