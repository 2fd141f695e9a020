//! What a process is held to by the kernel: resource limits, the out-of-memory score, its CPUs.

use std::fs;
use std::io;

use nix::sched::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::Pid;

/// The limits of getrlimit(2) that a pool sets for its workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limited {
    /// RLIMIT_NOFILE: one more than the highest descriptor.
    OpenFiles,
    /// RLIMIT_FSIZE, in bytes.
    FileSize,
    /// RLIMIT_STACK, in bytes.
    Stack,
}

/// Holds this process, and what it starts, to `value`: the soft and the hard limit, so that a job without
/// privileges cannot raise it again. A value above the hard limit needs CAP_SYS_RESOURCE (setrlimit(2)).
pub fn hold_to(limited: Limited, value: u64) -> io::Result<()> {
    let resource = match limited {
        Limited::OpenFiles => Resource::RLIMIT_NOFILE,
        Limited::FileSize => Resource::RLIMIT_FSIZE,
        Limited::Stack => Resource::RLIMIT_STACK,
    };
    Ok(setrlimit(resource, value, value)?)
}

/// Sets how large a core file of this process may be, in bytes. The hard limit is raised if it is lower, and
/// stays as it is if it is not: a job that wants a core of itself may have one.
pub fn set_core_size(bytes: u64) -> io::Result<()> {
    let (_soft, hard) = getrlimit(Resource::RLIMIT_CORE)?;
    Ok(setrlimit(Resource::RLIMIT_CORE, bytes, hard.max(bytes))?)
}

/// Sets how likely the kernel's out-of-memory killer finds this process: -1000 (never) to 1000
/// (proc_pid_oom_score_adj(5)). Less than what the process was once given needs CAP_SYS_RESOURCE.
pub fn set_oom_score_adj(score: i32) -> io::Result<()> {
    fs::write("/proc/self/oom_score_adj", score.to_string())
}

/// The CPU that this thread runs on at this moment, if the kernel tells (sched_getcpu(3): without a system call).
#[inline]
pub fn current_cpu() -> Option<u32> {
    sched_getcpu().ok().and_then(|cpu| cpu.try_into().ok())
}

/// The CPUs that this thread may run on, in order (sched_getaffinity(2)).
pub fn usable_cpus() -> io::Result<Vec<u32>> {
    let set = sched_getaffinity(Pid::from_raw(0))?;
    let is_usable = |cpu: &usize| set.is_set(*cpu).unwrap_or(false);
    Ok((0..CpuSet::count()).filter(is_usable).map(|cpu| cpu as u32).collect())
}

/// How many CPUs there are, whether this process may use them or not.
pub fn online_cpus() -> u64 {
    // SAFETY: the call takes an integer and touches no memory of ours.
    let count = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) };
    u64::try_from(count).unwrap_or(1).max(1)
}

/// Makes this thread, and those that it starts, run on this CPU only.
pub fn pin_to(cpu: u32) -> io::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu as usize)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pinned_thread_has_one_cpu() {
        // A thread of its own: the affinity is the thread's, and this process has other tests.
        let check = || {
            let first = *usable_cpus().unwrap().last().unwrap();
            pin_to(first).unwrap();
            assert_eq!(usable_cpus().unwrap(), [first]);
        };
        std::thread::spawn(check).join().unwrap();
    }

    #[test]
    fn a_limit_that_the_kernel_refuses_is_an_error() {
        // More than fs.nr_open is refused whoever asks (setrlimit(2)).
        let error = hold_to(Limited::OpenFiles, u64::MAX / 2).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EPERM));
    }
}
