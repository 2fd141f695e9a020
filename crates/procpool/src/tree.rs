//! The processes below a worker, found in /proc and killed one by one: what there is where no cgroup holds
//! them; and stopped and continued, whatever holds them. Used by the pool on its workers, and by a worker on itself.
//!
//! A process is only ever signalled through a pidfd, and only after it was seen, with the pidfd already
//! open, to be what it was taken for: an id alone may have passed to a stranger.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use nix::unistd::getpgrp;
use procpool_sys::{clock, pidfd};

/// Rounds without anything new until a tree counts as cleared. The lists of children can miss one while
/// others of the same parent end (proc_pid_children(5)), but hardly twice.
const QUIET_ROUNDS: u32 = 2;

/// One process, and not another that has its id later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Found {
    pub(crate) pid: u32,
    /// In clock ticks since boot.
    started: u64,
}

/// What /proc/PID/stat tells of a process.
struct Stat {
    is_alive: bool,
    is_stopped: bool,
    parent: u32,
    group: i32,
    started: u64,
}

impl Stat {
    /// `None` if there is no such process.
    fn of(pid: u32) -> Option<Stat> {
        let text = fs::read(format!("/proc/{pid}/stat")).ok()?;
        // The name before it, in parentheses, may hold anything.
        let rest = text.rsplitn(2, |byte| *byte == b')').next()?;
        let rest = std::str::from_utf8(rest).ok()?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        let state = *fields.first()?;
        Some(Stat {
            is_alive: !matches!(state, "Z" | "X"),
            is_stopped: matches!(state, "T" | "t"),
            parent: fields.get(1)?.parse().ok()?,
            group: fields.get(2)?.parse().ok()?,
            started: fields.get(19)?.parse().ok()?,
        })
    }
}

/// Kills every process below `root`, which must adopt its orphans; not `root` itself. Tries for so long at
/// most, and returns those that it could not kill or that came too late.
///
/// A process that was sent SIGKILL cannot fork any more, so rounds find ever less, unless `root` itself
/// goes on forking.
pub(crate) fn kill_below(root: u32, within: Duration) -> Vec<Found> {
    let deadline = clock::monotonic_ns().saturating_add(within.as_nanos() as u64);
    let mut doomed = BTreeSet::new();
    let mut quiet = 0;
    loop {
        let mut left = Vec::new();
        let mut parents = vec![root];
        while let Some(parent) = parents.pop() {
            for pid in children_of(parent) {
                parents.push(pid);
                let is_child = |stat: &Stat| stat.parent == parent;
                match kill_if(pid, &doomed, is_child) {
                    Kill::Sent(found) => drop(doomed.insert(found)),
                    Kill::Refused(found) => left.push(found),
                    Kill::NotNeeded => continue,
                }
                quiet = 0;
            }
        }
        quiet += 1;
        if quiet > QUIET_ROUNDS || clock::monotonic_ns() >= deadline {
            return left;
        }
    }
}

/// The processes below a worker at some moment, held by descriptors, so that they can be killed when the
/// worker has died and nothing shows any more that they were its.
#[derive(Debug, Default)]
pub(crate) struct Census(Vec<(Found, OwnedFd)>);

/// The most that a census holds: each costs a descriptor of the host until the worker is reaped.
const CENSUS_MAX: usize = 256;

impl Census {
    /// Those below `root`, which must adopt its orphans.
    pub(crate) fn below(root: u32) -> Census {
        let mut census = Vec::new();
        let mut parents = vec![root];
        while let Some(parent) = parents.pop() {
            for pid in children_of(parent) {
                parents.push(pid);
                let pidfd = pidfd::open(pid);
                if let (Ok(pidfd), Some(stat)) = (pidfd, Stat::of(pid))
                    && stat.is_alive
                    && stat.parent == parent
                    && census.len() < CENSUS_MAX
                {
                    census.push((Found { pid, started: stat.started }, pidfd));
                }
            }
        }
        Census(census)
    }

    /// Kills them, and what is below them now. Returns those that could not be killed.
    pub(crate) fn kill(self, within: Duration) -> Vec<Found> {
        let mut left = Vec::new();
        for (found, pidfd) in self.0 {
            // The descriptor is of a process that may be gone; the id is then not looked at further.
            if Stat::of(found.pid).is_some_and(|stat| stat.started == found.started) {
                left.extend(kill_below(found.pid, within));
            }
            if pidfd::kill(pidfd.as_fd()).is_err() {
                left.push(found);
            }
        }
        left
    }
}

/// Processes that were stopped, in the order in which they were.
#[derive(Debug, Default)]
pub(crate) struct Stopped(Vec<Found>);

impl Stopped {
    /// Stops `root`, which must adopt its orphans, and every process below it. Tries for so long at most; who cannot be
    /// stopped goes on, and so does what it starts later. Who was stopped already is not ours to continue.
    ///
    /// From the top down: whoever is stopped starts no more, so a look that finds nobody new is the last. `wait_still` waits
    /// until the root has stopped, which it has not by having been sent the signal.
    pub(crate) fn from(root: u32, within: Duration, wait_still: impl FnOnce()) -> Stopped {
        let deadline = clock::monotonic_ns().saturating_add(within.as_nanos() as u64);
        let mut stopped = Stopped::default();
        let mut seen = BTreeSet::new();
        stopped.stop(root, &mut seen, |_| true);
        wait_still();
        loop {
            let before = seen.len();
            let mut parents = vec![root];
            while let Some(parent) = parents.pop() {
                for pid in children_of(parent) {
                    parents.push(pid);
                    stopped.stop(pid, &mut seen, |stat| stat.parent == parent);
                }
            }
            if seen.len() == before || clock::monotonic_ns() >= deadline {
                return stopped;
            }
        }
    }

    fn stop(&mut self, pid: u32, seen: &mut BTreeSet<Found>, is_meant: impl Fn(&Stat) -> bool) {
        let pidfd = pidfd::open(pid);
        let Some(stat) = Stat::of(pid) else { return };
        let found = Found { pid, started: stat.started };
        if stat.is_alive
            && is_meant(&stat)
            && seen.insert(found)
            && !stat.is_stopped
            && pidfd.and_then(|pidfd| pidfd::stop(pidfd.as_fd())).is_ok()
        {
            self.0.push(found);
        }
    }

    /// True if nobody was stopped.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Continues them, from the bottom up: no parent goes on before its children, and so none sees one stopped.
    pub(crate) fn go_on(self) {
        for found in self.0.into_iter().rev() {
            let pidfd = pidfd::open(found.pid);
            if Stat::of(found.pid).is_some_and(|stat| stat.started == found.started) {
                // It fails for what has made itself another user's, which then could not be stopped either.
                let _ = pidfd.and_then(|pidfd| pidfd::resume(pidfd.as_fd()));
            }
        }
    }
}

/// Kills every process that can still write to the pipe whose inode this is: what a dead worker has left
/// behind and what has kept its standard error. Returns those that it could not kill.
///
/// Spared is what is in this process's own group: a forked copy of the host, which may hold a copy of the
/// descriptor and is nobody's child but the host's.
pub(crate) fn kill_writers(pipe: u64) -> Vec<Found> {
    let target = format!("pipe:[{pipe}]");
    let own_group = getpgrp().as_raw();
    let mut left = Vec::new();
    for pid in processes() {
        if pid == std::process::id() || !writes_to(pid, &target) {
            continue;
        }
        let is_left = |stat: &Stat| stat.group != own_group && writes_to(pid, &target);
        if let Kill::Refused(found) = kill_if(pid, &BTreeSet::new(), is_left) {
            left.push(found);
        }
    }
    left
}

enum Kill {
    Sent(Found),
    Refused(Found),
    /// It is not what it was taken for, or dead or doomed already.
    NotNeeded,
}

fn kill_if(pid: u32, doomed: &BTreeSet<Found>, is_meant: impl Fn(&Stat) -> bool) -> Kill {
    let pidfd = pidfd::open(pid);
    let Some(stat) = Stat::of(pid) else {
        return Kill::NotNeeded;
    };
    let found = Found { pid, started: stat.started };
    if !stat.is_alive || doomed.contains(&found) || !is_meant(&stat) {
        return Kill::NotNeeded;
    }
    match pidfd.and_then(|pidfd| pidfd::kill(pidfd.as_fd())) {
        Ok(()) => Kill::Sent(found),
        Err(_) => Kill::Refused(found),
    }
}

/// The children of all threads of a process (proc_pid_children(5)). Empty where the kernel was built
/// without the list.
fn children_of(pid: u32) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"));
    let lists = tasks
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    lists.flat_map(|list| numbers(&list)).collect()
}

/// How many bytes of a process and of all below it are in memory (proc_pid_statm(5)). What several of them share
/// counts for each. 0 if there is no such process.
pub(crate) fn resident(root: u32) -> u64 {
    let mut pages = 0;
    let mut parents = vec![root];
    while let Some(pid) = parents.pop() {
        let statm = fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
        pages += statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0);
        parents.extend(children_of(pid));
    }
    pages * procpool_sys::held::page_bytes()
}

/// Whether the kernel lists the children of processes.
pub(crate) fn can_list_children() -> bool {
    Path::new("/proc/thread-self/children").exists()
}

fn numbers(list: &str) -> Vec<u32> {
    list.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

fn processes() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Whether a descriptor of the process is the writing end of the pipe. The host has the reading one.
fn writes_to(pid: u32, target: &str) -> bool {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let mut held =
        entries.filter(|fd| fs::read_link(fd.path()).is_ok_and(|link| link == Path::new(target)));
    held.any(|fd| {
        let info = Path::new("/proc").join(pid.to_string()).join("fdinfo").join(fd.file_name());
        let text = fs::read_to_string(info).unwrap_or_default();
        // Octal, as open(2)'s flags: the last digit tells reading (0), writing (1), both (2).
        let flags = text.lines().find_map(|line| line.strip_prefix("flags:"));
        flags.is_some_and(|flags| flags.trim().ends_with(['1', '2']))
    })
}
