//! What holds a pool's workers, and what this machine allows: [`Containment`] and [`Capabilities`].

use std::fmt;
use std::fs;

use procpool_sys::{mapping, pidfd, spawn};

use crate::tree;

/// What holds the workers of a pool. From [`ProcessPool::containment`](crate::ProcessPool::containment).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Containment {
    /// How the processes that jobs start are found when their worker is stopped.
    pub tree: Tree,
    /// How [`memory_limit`](crate::ProcessPoolBuilder::memory_limit) is kept.
    pub memory: Memory,
    /// How [`process_limit`](crate::ProcessPoolBuilder::process_limit) is kept.
    pub processes: Processes,
}

/// How the processes that a job starts are found when its worker is stopped or has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Tree {
    /// Each worker has a cgroup of its own: nothing that a job starts can leave it, daemons included
    /// (cgroups(7)).
    Cgroup,
    /// A process between pool and worker adopts all orphans and kills them. No pool of this version works
    /// so: where there is no cgroup it is [`ProcessGroup`](Tree::ProcessGroup). The worker itself adopts its
    /// orphans there, but one that crashes adopts nobody any more.
    Subreaper,
    /// No cgroup can be made here. While a worker lives, everything below it is found and killed, daemons
    /// included. When it has died by itself its process group is killed, and what still holds its standard
    /// error: a daemon that has let go of that escapes.
    ProcessGroup,
}

/// How the memory of a worker is limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Memory {
    /// It is not.
    Unlimited,
    /// By its cgroup: all that the worker and the processes below it have in memory counts, and the kernel
    /// kills when it is too much.
    Cgroup,
    /// By RLIMIT_AS alone (setrlimit(2)), where the kernel lists no children of processes: what each process asks for
    /// counts, whether or not it is used, and allocations fail when it is too much, which in Rust ends the process by
    /// SIGABRT.
    AddressSpace,
    /// By looking: while jobs run, the pool adds up what the worker and all below it have in memory, as often as the
    /// rest of the limit can be filled, and kills the worker when it is too much. What the worker has when it becomes
    /// ready does not count; what its processes share counts for each. RLIMIT_AS is set beside it, to four times the
    /// limit and at least 1 GiB for each process, for what is filled faster than anybody looks: an allocation beyond
    /// that fails.
    Watched,
}

/// How the number of processes of a worker is limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Processes {
    /// It is not.
    Unlimited,
    /// By its cgroup: fork(2) fails with EAGAIN.
    Cgroup,
    /// By RLIMIT_NPROC (setrlimit(2)), which counts all processes and threads of the user.
    User,
}

/// What this machine and this process's place on it allow. From
/// [`ProcessPool::capabilities`](crate::ProcessPool::capabilities); its text is one line for each.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capabilities {
    /// Descriptors for processes (pidfd_open(2)). No pool works without them.
    pub pidfd: Capability,
    /// Anonymous shared memory (memfd_create(2)). No pool works without it.
    pub memfd: Capability,
    /// The start of a process inside a cgroup (CLONE_INTO_CGROUP, clone(2)). Without it a worker is moved
    /// to its cgroup before it runs anything of the user's.
    pub clone_into_cgroup: Capability,
    /// A cgroup for each worker: [`Tree::Cgroup`].
    pub cgroup: Capability,
    /// The file `cgroup.kill`, which ends a cgroup at a stroke. Without it its processes are killed one by
    /// one until none is left.
    pub cgroup_kill: Capability,
    /// A memory controller: [`Memory::Cgroup`].
    pub memory_controller: Capability,
    /// A controller of the number of processes: [`Processes::Cgroup`].
    pub pids_controller: Capability,
    /// The list of a process's children in /proc, without which trees cannot be walked.
    pub children_list: Capability,
}

/// Whether something is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Capability {
    /// It is; in which form, where there are several.
    Present(String),
    /// It is not, and why.
    Missing(String),
}

impl Capability {
    /// True if it is there.
    pub fn is_present(&self) -> bool {
        matches!(self, Capability::Present(_))
    }

    pub(crate) fn of<T>(result: Result<T, impl fmt::Display>) -> Capability {
        match result {
            Ok(_) => Capability::Present(String::new()),
            Err(error) => Capability::Missing(error.to_string()),
        }
    }
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Capability::Present(how) if how.is_empty() => f.write_str("yes"),
            Capability::Present(how) => write!(f, "yes: {how}"),
            Capability::Missing(why) => write!(f, "no: {why}"),
        }
    }
}

impl Capabilities {
    /// Those that are asked of the kernel; the others are the cgroups' affair.
    pub(crate) fn probe(
        cgroup: Capability,
        cgroup_kill: Capability,
        memory_controller: Capability,
        pids_controller: Capability,
    ) -> Capabilities {
        let children_list = if tree::can_list_children() {
            Capability::Present(String::new())
        } else {
            match fs::metadata("/proc/self") {
                Ok(_) => {
                    Capability::Missing("the kernel has no /proc/PID/task/TID/children".into())
                }
                Err(error) => Capability::Missing(format!("/proc: {error}")),
            }
        };
        Capabilities {
            pidfd: Capability::of(pidfd::open(std::process::id())),
            memfd: Capability::of(mapping::create(1)),
            clone_into_cgroup: Capability::of(spawn::probe_clone_into_cgroup()),
            cgroup,
            cgroup_kill,
            memory_controller,
            pids_controller,
            children_list,
        }
    }
}

impl fmt::Display for Capabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines = [
            ("pidfd", &self.pidfd),
            ("memfd", &self.memfd),
            ("clone into cgroup", &self.clone_into_cgroup),
            ("cgroup", &self.cgroup),
            ("cgroup.kill", &self.cgroup_kill),
            ("memory controller", &self.memory_controller),
            ("pids controller", &self.pids_controller),
            ("list of children", &self.children_list),
        ];
        for (index, (name, capability)) in lines.into_iter().enumerate() {
            let end = if index + 1 < lines.len() { "\n" } else { "" };
            write!(f, "{name}: {capability}{end}")?;
        }
        Ok(())
    }
}
