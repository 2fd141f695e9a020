//! A worker's tree, from its birth in a cgroup to the end of what it left; and what its end says of memory.

use std::io;
use std::mem;
use std::os::fd::OwnedFd;
use std::time::Duration;

use nix::libc;
use procpool_sys::spawn::Exit;
use procpool_wire::handshake::Contained;

use super::cgroup::{Group, Limits, counter};
use super::memory::MemoryWatch;
use super::slot::Slot;
use super::{Inner, Supervisor, Worker};
use crate::job_error::Oom;
use crate::proc_file;
use crate::tree::{self, Census};

/// How long the supervisor walks the tree of a worker without a cgroup before it kills the worker all the
/// same. Trees of a few processes take a millisecond; other workers wait meanwhile.
const WALK_MAX: Duration = Duration::from_millis(250);
/// How long it waits before that for the worker to stand still: as long as a busy machine may leave it without a
/// processor.
const STOP_MAX: Duration = Duration::from_millis(100);
/// At most so many survivors are named.
const NAMED_MAX: usize = 8;

/// Who wants to know why a worker has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asks {
    /// The job that it ran.
    Job,
    /// It ran none. The machine's counter is not looked at for that: it is slow to make, and jobs wait for the next worker.
    Nobody,
}

/// What holds a worker's tree. By default nothing does.
#[derive(Default)]
pub(super) struct Hold {
    /// Where there is none its processes have to be looked for.
    group: Option<Group>,
    limits: Limits,
    /// The watch over its memory, if there is a limit that no cgroup keeps.
    pub(super) watch: Option<MemoryWatch>,
    /// The machine's count of kills for want of memory, at some time before the worker was started.
    machine_oom_kills: Option<u64>,
}

impl Hold {
    /// What holds the next worker, before it is started.
    ///
    /// # Errors
    /// Only what may go well next time.
    pub(super) fn prepare(supervisor: &Supervisor) -> io::Result<Hold> {
        let mut cgroups = supervisor.inner.cgroups();
        let group = cgroups.take()?;
        let machine_oom_kills = cgroups.machine_oom_kills();
        let limits = cgroups.limits();
        let unkept = limits.memory.filter(|_| !group.as_ref().is_some_and(Group::keeps_memory));
        let watch = unkept.filter(|_| tree::can_list_children()).map(MemoryWatch::new);
        Ok(Hold { group, limits, watch, machine_oom_kills })
    }

    /// The cgroup to be born in.
    pub(super) fn birth_dir(&self) -> io::Result<Option<OwnedFd>> {
        self.group.as_ref().map_or(Ok(None), Group::birth_dir)
    }

    /// What the worker is told of it.
    pub(super) fn contained(&self) -> Contained {
        let group = self.group.as_ref();
        Contained {
            cgroups: group.map_or_else(Vec::new, Group::paths),
            kill_file: group.and_then(Group::kill_file),
            address_space: match self.watch {
                Some(watch) => Some(watch.address_space()),
                None => self.limits.memory.filter(|_| !group.is_some_and(Group::keeps_memory)),
            },
            processes: self.limits.processes.filter(|_| !group.is_some_and(Group::keeps_processes)),
        }
    }

    /// Whether all that is left of the worker when it has ended is known, and ended, without asking who has its pipe.
    pub(super) fn has_cgroup(&self) -> bool {
        self.group.is_some()
    }

    /// True if the worker, which has ended, is known to have left nothing: nobody was there to be killed.
    pub(super) fn is_empty(&self) -> bool {
        self.group.as_ref().is_some_and(Group::is_fresh)
    }

    /// The worker could not be started.
    pub(super) fn let_go(self, inner: &Inner) {
        if let Some(group) = self.group {
            inner.cgroups().give_back(group);
        }
    }

    /// The worker, whose end in `state` was this, was reaped. A SIGKILL can have been its cgroup's.
    pub(super) fn let_go_after(mut self, exit: Exit, state: Slot, inner: &Inner) {
        if let (Some(group), Exit::Signal(libc::SIGKILL, _)) = (&mut self.group, exit) {
            group.distrust();
            if let Slot::Starting { .. } = state {
                inner.cgroups().distrust_free();
            }
        }
        self.let_go(inner);
    }

    /// Whether the worker was killed for want of memory.
    fn oom(&self, exit: Exit, asks: Asks) -> Oom {
        if self.watch.is_some_and(|watch| watch.found.is_some()) {
            return Oom::Yes;
        }
        let Exit::Signal(libc::SIGKILL, _) = exit else {
            return if exit == Exit::Unknown { Oom::Unknown } else { Oom::No };
        };
        match self.group.as_ref().and_then(Group::oom_killed) {
            Some(true) => Oom::Yes,
            Some(false) => Oom::No,
            // The machine's counter does not say whom it was. If it stands still it was nobody.
            None if asks == Asks::Job && machine_oom_kills() == self.machine_oom_kills => Oom::No,
            None => Oom::Unknown,
        }
    }

    /// Which limit an end has to do with, if any.
    fn limit_hit(&self, exit: Exit, oom: Oom, tail: &str) -> Option<String> {
        let limit = format!("memory limit of {}", Bytes(self.limits.memory?));
        if let Some(found) = self.watch.and_then(|watch| watch.found) {
            let found = Bytes(found >> 20 << 20);
            return Some(format!("killed at the {limit}: more than {found} were in use"));
        }
        match exit {
            _ if oom == Oom::Yes => Some(format!("killed at the {limit}")),
            // What Rust's allocator says before it aborts.
            Exit::Signal(libc::SIGABRT, _)
                if tail.contains("memory allocation of")
                    && !self.group.as_ref().is_some_and(Group::keeps_memory) =>
            {
                Some(format!("an allocation failed at the {limit} (RLIMIT_AS)"))
            }
            _ => None,
        }
    }
}

impl Worker {
    /// Sends SIGTERM to the worker's group, which may end the worker and leave the rest of its tree to be
    /// found.
    pub(super) fn terminate(&mut self) {
        if self.hold.group.is_none() && self.process.is_ours() {
            self.census = Census::below(self.process.id());
        }
        self.process.terminate_group();
    }

    /// Kills the worker and everything below it.
    pub(super) fn kill_tree(&mut self) {
        if let Some(group) = &mut self.hold.group {
            self.process.kill_group();
            group.kill();
            return;
        }
        // Not the worker first: it adopts the orphans below it, and without it nobody could tell them from
        // the orphans of others. It is stopped so that its job does not go on starting some, and does not see their
        // end and return, as if nothing had been.
        self.process.stop(STOP_MAX);
        if self.process.is_ours() {
            self.survivors = tree::kill_below(self.process.id(), WALK_MAX);
        }
        self.process.kill_group();
    }

    /// The worker has ended: kills what is left of its tree.
    pub(super) fn kill_remains(&mut self) {
        self.process.kill_group();
        match &mut self.hold.group {
            Some(group) => group.kill_remains(),
            None => {
                self.survivors.extend(mem::take(&mut self.census).kill(WALK_MAX));
                if self.tap.has_writers() {
                    self.survivors.extend(tree::kill_writers(self.tap.inode()));
                }
            }
        }
    }

    /// Whether it ran out of memory, and what else is to be said of its end besides its status. `fault` is
    /// why the pool has killed it, if it has.
    pub(super) fn verdict(
        &self,
        exit: Exit,
        fault: Option<String>,
        tail: &str,
        asks: Asks,
    ) -> (Oom, Option<String>) {
        let oom = if fault.is_some() { Oom::No } else { self.hold.oom(exit, asks) };
        let limit = self.hold.limit_hit(exit, oom, tail);
        let parts: Vec<String> =
            [fault, limit, survived(&self.survivors)].into_iter().flatten().collect();
        (oom, (!parts.is_empty()).then(|| parts.join("; ")))
    }
}

/// Names those that could not be killed.
fn survived(survivors: &[tree::Found]) -> Option<String> {
    if survivors.is_empty() {
        return None;
    }
    let pids: Vec<String> =
        survivors.iter().take(NAMED_MAX).map(|found| found.pid.to_string()).collect();
    let more = if survivors.len() > NAMED_MAX { ", …" } else { "" };
    Some(format!(
        "{} processes that it left could not be killed: {}{more}",
        survivors.len(),
        pids.join(", ")
    ))
}

/// How often the kernel has killed for want of memory since it was started (proc_vmstat(5)).
pub(super) fn machine_oom_kills() -> Option<u64> {
    counter(&proc_file::read_text("/proc/vmstat").ok()?, "oom_kill")
}

/// Bytes in the largest unit that divides them.
struct Bytes(u64);

impl std::fmt::Display for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let units = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
        let fits = |(shift, _): &(u32, &str)| self.0 > 0 && self.0.trailing_zeros() >= *shift;
        match units.into_iter().find(fits) {
            Some((shift, unit)) => write!(f, "{} {unit}", self.0 >> shift),
            None => write!(f, "{} bytes", self.0),
        }
    }
}
