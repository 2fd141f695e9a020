//! Cgroups (cgroups(7)): one directory for each pool, below the host's own, and one for each worker.
//!
//! Files only: a worker's birth in its cgroup is `procpool_sys::spawn`'s. Nothing is made before the first
//! worker. What cannot be made is not tried again by the same pool, and the reason is kept for
//! `capabilities()`.
//!
//! * The tree: a cgroup of version 2 for each worker, which every process below the worker is in as well,
//!   whatever it does, and which `cgroup.kill` ends. It needs no controller.
//! * Memory and number of processes, only if a limit is set: in the same directory if the host's cgroup
//!   hands the controller of version 2 down, else in a directory of the version 1 hierarchy that has it.
//!   There the worker moves itself, before anything of the user's runs in it.
//!
//! The host's own cgroup is not changed but for the pool's directory in it. [`place`] finds it, [`dir`] makes
//! and removes directories.

mod dir;
mod place;

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use procpool_sys::{clock, pidfd};

use super::containment::machine_oom_kills;
use crate::containment::{Capabilities, Capability, Containment, Memory, Processes, Tree};
use crate::tree;
use dir::PoolDir;
use place::{Hierarchy, is_shortage};

/// How long the end of a pool waits for killed processes to leave their cgroups, whose directories could
/// not be removed otherwise.
const EMPTYING: Duration = Duration::from_secs(2);
/// How long is between two attempts: a process takes about so long to be gone after it was killed.
const EMPTYING_LOOKS: Duration = Duration::from_millis(1);
/// How long processes are killed one by one where there is no `cgroup.kill`. They cannot fork once they were
/// sent SIGKILL, so it takes a few rounds.
const KILLING: Duration = Duration::from_millis(200);
/// More than a `cgroup.events` is long: two short lines.
const EVENTS_LEN_MAX: usize = 256;

/// What each worker may use.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Limits {
    /// In bytes.
    pub(crate) memory: Option<u64>,
    pub(crate) processes: Option<u64>,
}

/// How soon one worker follows another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turnover {
    Rare,
    EachJob,
}

/// A pool's cgroups.
#[derive(Debug)]
pub(crate) struct Cgroups {
    limits: Limits,
    unified: Place,
    /// Version 1, where version 2 has no such controller for us.
    memory: Place,
    processes: Place,
    /// Groups of workers that have left them empty, for the next ones: at hand sooner than new ones. None if there
    /// are limits: what the dead have used could be counted against the living.
    free: Vec<Group>,
    turnover: Turnover,
    /// Directories that could not be removed yet.
    leaving: Vec<PathBuf>,
    next: u64,
    /// The machine's count of kills for want of memory when it was first asked for.
    machine_oom_kills: Option<Option<u64>>,
}

/// What is known of a hierarchy.
#[derive(Debug)]
enum Place {
    Unasked,
    Ready(PoolDir),
    /// Nothing can be made there: why; and what was made before, until the pool ends.
    Refused(String, Option<PoolDir>),
}

impl Place {
    /// The pool's directory there, made now if nobody has asked before.
    ///
    /// # Errors
    /// If nothing can be made there, or [`is_shortage`]: then it may be another time.
    fn ask(&mut self, hierarchy: Hierarchy) -> io::Result<&mut PoolDir> {
        if let Place::Unasked = self {
            match place::own_cgroup(hierarchy).and_then(|own| PoolDir::make(&own)) {
                Ok(dir) => *self = Place::Ready(dir),
                Err(error) if is_shortage(&error) => return Err(error),
                Err(error) => *self = Place::Refused(error.to_string(), None),
            }
        }
        match self {
            Place::Ready(dir) => Ok(dir),
            Place::Refused(reason, _) => Err(io::Error::other(reason.clone())),
            Place::Unasked => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// A failure there: passed on if it may go well next time, else the reason why not to try again.
    fn failed(&mut self, what: &str, error: io::Error) -> io::Result<()> {
        if is_shortage(&error) {
            return Err(error);
        }
        self.refuse(format!("{what}: {error}"));
        Ok(())
    }

    fn enable(&self, controller: &str) -> bool {
        matches!(self, Place::Ready(dir) if dir.enable(controller))
    }

    fn refuse(&mut self, reason: String) {
        let before = std::mem::replace(self, Place::Unasked);
        let dir = match before {
            Place::Ready(dir) => Some(dir),
            Place::Refused(_, dir) => dir,
            Place::Unasked => None,
        };
        *self = Place::Refused(reason, dir);
    }
}

/// One worker's cgroups: at least one.
#[derive(Debug)]
pub(crate) struct Group {
    /// Version 2: everything below the worker is in it, from its birth.
    tree: Option<Dir>,
    memory: Keeper,
    processes: Keeper,
    used: Use,
    /// The memory controller's count of kills when the worker was started.
    oom_kills_before: u64,
}

/// Whether a pool that ends leaves processes that cannot be killed. It does not wait for them then; when they have
/// ended their cgroups are given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Left {
    Nobody,
    Somebody,
}

/// Whether another worker can be born in a cgroup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    /// Nothing in it was killed by `cgroup.kill`.
    Fresh,
    /// It was killed, or may have been.
    Killed,
}

/// What keeps a limit.
#[derive(Debug)]
enum Keeper {
    /// No cgroup.
    Nobody,
    /// The tree's cgroup.
    Tree,
    /// One of version 1, which the worker moves to.
    Own(Dir),
}

impl Keeper {
    fn own(&self) -> Option<&Dir> {
        match self {
            Keeper::Own(dir) => Some(dir),
            Keeper::Nobody | Keeper::Tree => None,
        }
    }
}

#[derive(Debug)]
struct Dir {
    path: PathBuf,
    /// `cgroup.kill`, open: a kill must not fail for want of a descriptor.
    kill: Option<File>,
    /// Open where there is a worker for each job, which costs less than to open them for each.
    held: Option<Held>,
}

#[derive(Debug)]
struct Held {
    dir: File,
    events: File,
}

impl Held {
    fn open(path: &Path) -> io::Result<Held> {
        Ok(Held { dir: File::open(path)?, events: File::open(path.join("cgroup.events"))? })
    }
}

impl Dir {
    fn make(pool: &Path, name: &str) -> io::Result<Dir> {
        let path = pool.join(name);
        match fs::create_dir(&path) {
            // It was made for a worker that could not be started.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            result => result?,
        }
        let kill = match File::options().write(true).open(path.join("cgroup.kill")) {
            Ok(file) => Some(file),
            Err(error) if is_shortage(&error) => return Err(error),
            Err(_) => None,
        };
        Ok(Dir { path, kill, held: None })
    }

    /// Whether any process is in it or below; `None` if that cannot be told.
    fn is_populated(&self) -> Option<bool> {
        let mut buffer = [0; EVENTS_LEN_MAX];
        let len = match &self.held {
            Some(held) => held.events.read_at(&mut buffer, 0),
            None => File::open(self.path.join("cgroup.events"))
                .and_then(|events| events.read_at(&mut buffer, 0)),
        };
        let text = std::str::from_utf8(&buffer[..len.ok()?]).ok()?;
        counter(text, "populated").map(|populated| populated != 0)
    }

    fn write(&self, file: &str, value: impl ToString) -> io::Result<()> {
        fs::write(self.path.join(file), value.to_string())
    }
}

impl Cgroups {
    pub(crate) fn new(limits: Limits, turnover: Turnover) -> Cgroups {
        Cgroups {
            limits,
            turnover,
            unified: Place::Unasked,
            memory: Place::Unasked,
            processes: Place::Unasked,
            free: Vec::new(),
            leaving: Vec::new(),
            next: 0,
            machine_oom_kills: None,
        }
    }

    pub(crate) fn limits(&self) -> Limits {
        self.limits
    }

    /// The machine's count of kills for want of memory, from before the first worker: read once, since the
    /// file is slow to make.
    pub(crate) fn machine_oom_kills(&mut self) -> Option<u64> {
        *self.machine_oom_kills.get_or_insert_with(machine_oom_kills)
    }

    /// Cgroups for a new worker, as far as they can be made.
    ///
    /// # Errors
    /// Only what may go well next time.
    pub(crate) fn take(&mut self) -> io::Result<Option<Group>> {
        if matches!(self.unified, Place::Ready(_))
            && let Some(group) = self.free.pop()
        {
            return Ok(Some(group));
        }
        self.remove_leaving();
        let name = format!("w{}", self.next);
        let tree = make(&mut self.unified, Hierarchy::Unified, &name)?;
        let mut group = Group {
            tree,
            memory: Keeper::Nobody,
            processes: Keeper::Nobody,
            used: Use::Fresh,
            oom_kills_before: 0,
        };
        if let Some(bytes) = self.limits.memory {
            group.memory = match &group.tree {
                Some(dir) if self.unified.enable("memory") && limit_memory_v2(dir, bytes) => {
                    Keeper::Tree
                }
                _ => {
                    keeper_v1(&mut self.memory, "memory", &name, |dir| limit_memory_v1(dir, bytes))?
                }
            };
        }
        if let Some(count) = self.limits.processes {
            let limit = |dir: &Dir| dir.write("pids.max", count);
            group.processes = match &group.tree {
                Some(dir) if self.unified.enable("pids") && limit(dir).is_ok() => Keeper::Tree,
                _ => keeper_v1(&mut self.processes, "pids", &name, limit)?,
            };
        }
        group.oom_kills_before = group.oom_kills().unwrap_or(0);
        self.next += 1;
        Ok((!group.dirs().is_empty()).then_some(group))
    }

    /// The file that kills all workers' cgroups, those of version 2, if there are any.
    pub(crate) fn kill_file_of_all(&mut self) -> Option<Vec<u8>> {
        let kill = self.unified.ask(Hierarchy::Unified).ok()?.path().join("cgroup.kill");
        kill.exists().then(|| kill.into_os_string().into_encoded_bytes())
    }

    /// Takes back the cgroups of a worker that was killed with all that was in them, and reaped. Those that were
    /// killed are not used again: a process that is born in a cgroup which was killed once is killed as well, at any later
    /// time (seen on Linux 6.18; cgroup_post_fork compares counts of kills of two different cgroups).
    pub(crate) fn give_back(&mut self, mut group: Group) {
        let has_limits = self.limits.memory.is_some() || self.limits.processes.is_some();
        if let (Some(tree), Use::Fresh, false) = (&group.tree, group.used, has_limits) {
            // What pools in the worker have left.
            dir::remove_below(&tree.path, tree.held.as_ref().map(|held| &held.dir));
            if self.turnover == Turnover::EachJob {
                group.hold_open();
            }
            self.free.push(group);
            return;
        }
        self.leaving.extend(group.dirs().into_iter().map(|dir| dir.path.clone()));
        self.remove_leaving();
    }

    /// One in which nobody can be born was given back: somebody has killed it, and may have killed all.
    pub(crate) fn distrust_free(&mut self) {
        let free = std::mem::take(&mut self.free);
        self.leaving.extend(free.iter().flat_map(Group::dirs).map(|dir| dir.path.clone()));
        self.remove_leaving();
    }

    fn remove_leaving(&mut self) {
        self.leaving.retain(|path| !dir::remove(path));
    }

    /// Removes all directories. Waits a while for those that are killed to be gone. Afterwards none is made.
    pub(crate) fn close(&mut self, left: Left) {
        self.free.clear();
        self.leaving.clear();
        for place in [&mut self.unified, &mut self.memory, &mut self.processes] {
            place.refuse("the pool has ended".into());
            // With everything below it.
            if let Place::Refused(_, dir) = place {
                self.leaving.extend(dir.take().map(PoolDir::into_path));
            }
        }
        let deadline = clock::monotonic_ns() + EMPTYING.as_nanos() as u64;
        loop {
            self.remove_leaving();
            let is_vain = left == Left::Somebody || clock::monotonic_ns() >= deadline;
            if self.leaving.is_empty() || is_vain {
                return;
            }
            // The pool has no worker any more: nobody waits for this thread but whoever ends the pool.
            thread::sleep(EMPTYING_LOOKS);
        }
    }

    pub(crate) fn containment(&mut self) -> Containment {
        let tree = match self.unified.ask(Hierarchy::Unified) {
            Ok(_) => Tree::Cgroup,
            Err(_) => Tree::ProcessGroup,
        };
        let memory = match self.limits.memory {
            None => Memory::Unlimited,
            Some(_) => match self.memory_controller() {
                Capability::Present(_) => Memory::Cgroup,
                Capability::Missing(_) if tree::can_list_children() => Memory::Watched,
                Capability::Missing(_) => Memory::AddressSpace,
            },
        };
        let processes = match self.limits.processes {
            None => Processes::Unlimited,
            Some(_) => match self.pids_controller() {
                Capability::Present(_) => Processes::Cgroup,
                Capability::Missing(_) => Processes::User,
            },
        };
        Containment { tree, memory, processes }
    }

    pub(crate) fn capabilities(&mut self) -> Capabilities {
        let (cgroup, cgroup_kill) = match self.unified.ask(Hierarchy::Unified) {
            Ok(dir) => {
                let kill = dir.path().join("cgroup.kill");
                let kill = fs::metadata(kill).map_err(|error| format!("cgroup.kill: {error}"));
                (Capability::Present("version 2".into()), Capability::of(kill))
            }
            Err(reason) => (
                Capability::Missing(reason.to_string()),
                Capability::Missing("there is no cgroup to kill".into()),
            ),
        };
        let (memory, pids) = (self.memory_controller(), self.pids_controller());
        Capabilities::probe(cgroup, cgroup_kill, memory, pids)
    }

    fn memory_controller(&mut self) -> Capability {
        controller(&mut self.unified, &mut self.memory, "memory")
    }

    fn pids_controller(&mut self) -> Capability {
        controller(&mut self.unified, &mut self.processes, "pids")
    }
}

fn make(place: &mut Place, hierarchy: Hierarchy, name: &str) -> io::Result<Option<Dir>> {
    let dir = match place.ask(hierarchy) {
        Ok(dir) => dir,
        Err(error) if is_shortage(&error) => return Err(error),
        Err(_) => return Ok(None),
    };
    match Dir::make(dir.path(), name) {
        Ok(dir) => Ok(Some(dir)),
        Err(error) => place.failed("cannot make a cgroup", error).map(|()| None),
    }
}

/// A cgroup of version 1 with a limit.
fn keeper_v1(
    place: &mut Place,
    controller: &'static str,
    name: &str,
    limit: impl FnOnce(&Dir) -> io::Result<()>,
) -> io::Result<Keeper> {
    let Some(dir) = make(place, Hierarchy::Controller(controller), name)? else {
        return Ok(Keeper::Nobody);
    };
    match limit(&dir) {
        Ok(()) => Ok(Keeper::Own(dir)),
        Err(error) => {
            dir::remove(&dir.path);
            place.failed("cannot set the limit", error).map(|()| Keeper::Nobody)
        }
    }
}

/// Which version has the controller for us.
fn controller(unified: &mut Place, version_1: &mut Place, name: &'static str) -> Capability {
    if let Ok(dir) = unified.ask(Hierarchy::Unified)
        && dir.has_controller(name)
    {
        return Capability::Present("version 2".into());
    }
    match version_1.ask(Hierarchy::Controller(name)) {
        Ok(_) => Capability::Present("version 1".into()),
        Err(reason) => Capability::Missing(reason.to_string()),
    }
}

/// True if the controller of version 2 now keeps the limit.
fn limit_memory_v2(dir: &Dir, bytes: u64) -> bool {
    // A worker without the processes that its job started is of no use, nor they without it.
    let _ = dir.write("memory.oom.group", 1);
    // Without swap accounting the file is not there. With it, swapping would only delay the verdict.
    let _ = dir.write("memory.swap.max", 0);
    dir.write("memory.max", bytes).is_ok()
}

fn limit_memory_v1(dir: &Dir, bytes: u64) -> io::Result<()> {
    dir.write("memory.limit_in_bytes", bytes)?;
    // Memory and swap together; the file is there only with swap accounting.
    let _ = dir.write("memory.memsw.limit_in_bytes", bytes);
    Ok(())
}

impl Group {
    fn dirs(&self) -> Vec<&Dir> {
        [self.tree.as_ref(), self.memory.own(), self.processes.own()]
            .into_iter()
            .flatten()
            .collect()
    }

    /// Its directories.
    pub(crate) fn paths(&self) -> Vec<Vec<u8>> {
        self.dirs().into_iter().map(|dir| dir.path.as_os_str().as_bytes().to_vec()).collect()
    }

    /// The directory in which the worker can be born (CLONE_INTO_CGROUP).
    pub(crate) fn birth_dir(&self) -> io::Result<Option<OwnedFd>> {
        let open = |dir: &Dir| match &dir.held {
            Some(held) => held.dir.try_clone(),
            None => File::open(&dir.path),
        };
        Ok(self.tree.as_ref().map(open).transpose()?.map(OwnedFd::from))
    }

    /// For the next worker. Without it each of its uses opens what it needs.
    fn hold_open(&mut self) {
        if let Some(dir) = &mut self.tree
            && dir.held.is_none()
        {
            dir.held = Held::open(&dir.path).ok();
        }
    }

    /// The file by which the worker ends its own tree, for when the host dies.
    pub(crate) fn kill_file(&self) -> Option<Vec<u8>> {
        let dir = self.tree.as_ref()?;
        dir.kill.as_ref()?;
        Some(dir.path.join("cgroup.kill").as_os_str().as_bytes().to_vec())
    }

    pub(crate) fn keeps_memory(&self) -> bool {
        !matches!(self.memory, Keeper::Nobody)
    }

    pub(crate) fn keeps_processes(&self) -> bool {
        !matches!(self.processes, Keeper::Nobody)
    }

    /// The worker has ended: kills what it has left, if it has left anything.
    pub(crate) fn kill_remains(&mut self) {
        if self.tree.as_ref().and_then(Dir::is_populated) != Some(false) {
            self.kill();
        }
    }

    /// True if everything that was in it has ended by itself, as far as it was looked at ([`kill_remains`](Self::kill_remains)),
    /// and another worker can be born in it.
    pub(crate) fn is_fresh(&self) -> bool {
        self.tree.is_some() && self.used == Use::Fresh
    }

    /// Others than the pool may have killed it: whoever may write to its `cgroup.kill`, and the worker itself in need. It is
    /// not used again.
    pub(crate) fn distrust(&mut self) {
        self.used = Use::Killed;
    }

    /// Kills everything in it, so that nothing of it can fork any more. True if that is certain.
    pub(crate) fn kill(&mut self) -> bool {
        self.used = Use::Killed;
        if let Some(kill) = self.tree.as_ref().and_then(|dir| dir.kill.as_ref())
            && (&mut &*kill).write_all(b"1").is_ok()
        {
            return true;
        }
        // Before Linux 5.14, or without version 2.
        self.dirs().first().is_some_and(|dir| kill_members(&dir.path))
    }

    /// How often the kernel has killed in it for want of memory, since the worker was started.
    pub(crate) fn oom_killed(&self) -> Option<bool> {
        self.oom_kills().map(|kills| kills > self.oom_kills_before)
    }

    fn oom_kills(&self) -> Option<u64> {
        let file = match (&self.memory, &self.tree) {
            (Keeper::Own(dir), _) => dir.path.join("memory.oom_control"),
            (Keeper::Tree, Some(dir)) => dir.path.join("memory.events"),
            _ => return None,
        };
        counter(&fs::read_to_string(file).ok()?, "oom_kill")
    }
}

/// The number beside a name, in files that have a pair on each line.
pub(crate) fn counter(text: &str, name: &str) -> Option<u64> {
    let mut pairs = text.lines().filter_map(|line| line.split_once(' '));
    pairs.find(|(key, _)| *key == name)?.1.trim().parse().ok()
}

/// Kills the processes of a cgroup one by one until a look finds none that was not killed before.
fn kill_members(dir: &Path) -> bool {
    let deadline = clock::monotonic_ns() + KILLING.as_nanos() as u64;
    let mut doomed = Vec::new();
    loop {
        let list = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
        let members: Vec<u32> = list.lines().filter_map(|pid| pid.parse().ok()).collect();
        let new: Vec<u32> = members.into_iter().filter(|pid| !doomed.contains(pid)).collect();
        if new.is_empty() {
            return true;
        }
        for pid in new {
            // A member that ends between the two lines and whose id passes to a stranger in that instant
            // would be seen in another cgroup.
            if let Ok(pidfd) = pidfd::open(pid)
                && is_in(pid, dir)
            {
                let _ = pidfd::kill(pidfd.as_fd());
            }
            doomed.push(pid);
        }
        if clock::monotonic_ns() >= deadline {
            return false;
        }
    }
}

fn is_in(pid: u32, dir: &Path) -> bool {
    let Some(name) = dir.file_name() else { return false };
    let parent = dir.parent().and_then(Path::file_name).unwrap_or_default();
    let tail = Path::new(parent).join(name);
    let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    cgroups.lines().any(|line| Path::new(line).ends_with(&tail))
}
