//! What every test stands on: one at a time, a watchdog, a leak check, and words from jobs.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use procpool::ProcessPool;

/// How long a test may take. Generous beside the second or less that each takes, because these machines
/// are shared; a hang still fails within it, with the state of every thread and child printed.
const WATCHDOG: Duration = Duration::from_secs(60);
/// How long processes that were killed may take to be gone.
const DYING: Duration = Duration::from_secs(10);
/// How long a wait for something that says no word may take. Half of what a test may: twenty programs that start at
/// once, on a machine that writes back what was built, take more than `DYING`.
const IN_VAIN: Duration = Duration::from_secs(30);

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Runs a test's body: alone, under the watchdog, with the leak check at the end.
pub(crate) fn test(body: impl FnOnce()) {
    test_within(WATCHDOG, body);
}

/// The same, for a body that may take longer.
pub(crate) fn test_within(limit: Duration, body: impl FnOnce()) {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    // Orphans come to us, where they are seen, and not to an unknown process 1.
    nix::sys::prctl::set_child_subreaper(true).unwrap();
    let (finished, watch) = mpsc::channel::<()>();
    let watchdog = thread::Builder::new()
        .name("watchdog".into())
        .spawn(move || {
            if watch.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
                // Not `eprintln`, which libtest would keep, and lose as the process aborts.
                let _ =
                    writeln!(io::stderr(), "the test hangs: not done after {limit:?}\n{}", state());
                process::abort();
            }
        })
        .unwrap();
    let before = Held::now();
    let result = catch_unwind(AssertUnwindSafe(body));
    // A test that has failed has left what it was about to end.
    let leaks = if result.is_ok() { before.leaks() } else { Vec::new() };
    if result.is_err() || !leaks.is_empty() {
        end_children();
    }
    drop(finished);
    watchdog.join().unwrap();
    if let Err(panic) = result {
        resume_unwind(panic);
    }
    assert!(leaks.is_empty(), "left behind: {leaks:#?}");
}

/// Ends all that a test has left running, so that it is not taken for what the next one left.
fn end_children() {
    let deadline = Instant::now() + DYING;
    // Whoever dies leaves us its own children.
    while !children().is_empty() && Instant::now() < deadline {
        for pid in children() {
            let _ = kill(Pid::from_raw(pid as i32), Signal::SIGKILL);
        }
        while let Ok(status) = waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG)) {
            if status == WaitStatus::StillAlive {
                break;
            }
        }
        // They have no word to say; and this can only make a failing test slower.
        thread::sleep(Duration::from_millis(2));
    }
}

/// What this process holds: descriptors and threads.
struct Held {
    descriptors: BTreeMap<i32, String>,
    threads: Vec<String>,
}

impl Held {
    fn now() -> Held {
        Held { descriptors: descriptors(), threads: pool_threads() }
    }

    fn leaks(&self) -> Vec<String> {
        let mut leaks = Vec::new();
        let deadline = Instant::now() + DYING;
        // First: a callback may be letting go of the rest. A joined thread's entry in /proc can outlive the join by a
        // moment.
        while pool_threads().len() > self.threads.len() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(2));
        }
        // Reaps orphans of workers that became ours. A worker itself is reaped by its pool.
        while !children().is_empty() {
            match waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) if Instant::now() > deadline => {
                    leaks
                        .extend(children().iter().map(|pid| format!("process {}", describe(*pid))));
                    break;
                }
                // A killed process needs a moment to die, and has no word to say; this wait can only make
                // a failing test slower.
                Ok(WaitStatus::StillAlive) => thread::sleep(Duration::from_millis(2)),
                _ => {}
            }
        }
        for (fd, target) in descriptors() {
            if self.descriptors.get(&fd) != Some(&target) {
                leaks.push(format!("descriptor {fd} -> {target}"));
            }
        }
        leaks.extend(cgroups().iter().map(|dir| format!("cgroup {}", dir.display())));
        let threads = pool_threads();
        if threads.len() > self.threads.len() {
            leaks.push(format!("threads {threads:?} where there were {:?}", self.threads));
        }
        leaks
    }
}

/// The directories of this process's pools among the cgroups of all hierarchies.
pub(crate) fn cgroups() -> Vec<PathBuf> {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let own = own.lines().filter_map(|line| line.splitn(3, ':').nth(2));
    let own: Vec<&str> = own.map(|path| path.trim_start_matches('/')).collect();
    let roots =
        ["", "unified", "memory", "pids"].map(|root| Path::new("/sys/fs/cgroup").join(root));
    let dirs = roots.iter().flat_map(|root| own.iter().map(|path| root.join(path)));
    let mark = format!("-{}-", process::id());
    let entries = dirs.filter_map(|dir| fs::read_dir(dir).ok()).flatten().flatten();
    let is_ours = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.starts_with("procpool-") && name.contains(&mark)
    };
    entries.map(|entry| entry.path()).filter(is_ours).collect()
}

fn descriptors() -> BTreeMap<i32, String> {
    let Ok(entries) = fs::read_dir("/proc/self/fd") else {
        return BTreeMap::new();
    };
    let open = entries.flatten().filter_map(|entry| {
        let fd = entry.file_name().to_str()?.parse().ok()?;
        let target = fs::read_link(entry.path()).ok()?.to_string_lossy().into_owned();
        // The directory that is being read.
        (!target.ends_with("/fd")).then_some((fd, target))
    });
    open.collect()
}

/// The threads of pools; those of libtest come and go.
pub(crate) fn pool_threads() -> Vec<String> {
    let names = tasks(process::id())
        .into_iter()
        .filter_map(|task| fs::read_to_string(task.join("comm")).ok());
    names.map(|name| name.trim().to_owned()).filter(|name| is_pool_thread(name)).collect()
}

fn is_pool_thread(name: &str) -> bool {
    name.starts_with("procpool") || name.starts_with("ThreadPool")
}

fn tasks(pid: u32) -> Vec<PathBuf> {
    fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect()
}

/// The children of this process.
pub(crate) fn children() -> Vec<u32> {
    children_of(process::id())
}

/// The children of any process.
pub(crate) fn children_of(pid: u32) -> Vec<u32> {
    let lists =
        tasks(pid).into_iter().filter_map(|task| fs::read_to_string(task.join("children")).ok());
    lists
        .flat_map(|list| {
            list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()
        })
        .collect()
}

/// The processes of the only pool that are ready without a slot: children that are neither workers nor the fork server.
pub(crate) fn spare_pids(pool: &ProcessPool) -> Vec<u32> {
    let workers: Vec<u32> = pool.workers().iter().map(|worker| worker.pid).collect();
    let is_spare = |pid: &u32| {
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        command.starts_with(b"procpool-worker") && !workers.contains(pid)
    };
    children().into_iter().filter(is_spare).collect()
}

/// A line about a process: pid, state, command.
pub(crate) fn describe(pid: u32) -> String {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let command =
        fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default().replace('\0', " ");
    format!("{} ({command})", stat.split_whitespace().take(5).collect::<Vec<_>>().join(" "))
}

/// True if the process exists and is not a zombie.
pub(crate) fn is_alive(pid: u32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return false;
    };
    !stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with(['Z', 'X']))
}

/// Waits until a process that was killed, or whose parent was, is gone.
pub(crate) fn wait_gone(pid: u32) {
    let deadline = Instant::now() + DYING;
    while is_alive(pid) {
        assert!(Instant::now() < deadline, "still alive: {}", describe(pid));
        // A process of which we are not the parent has no other way to tell us.
        thread::sleep(Duration::from_millis(2));
    }
}

/// Waits for something that has no word to say when it happens: what a pool tells about itself.
pub(crate) fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + IN_VAIN;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        // Only how soon it is seen depends on this.
        thread::sleep(Duration::from_millis(2));
    }
}

/// The state of every thread and child, for a test that hangs.
pub(crate) fn state() -> String {
    let mut text = String::new();
    let mut pids = vec![process::id()];
    while let Some(pid) = pids.pop() {
        text.push_str(&format!("process {}\n", describe(pid)));
        for task in tasks(pid) {
            let read = |file: &str| {
                fs::read_to_string(task.join(file)).unwrap_or_default().trim().to_owned()
            };
            let (name, wchan, syscall) = (read("comm"), read("wchan"), read("syscall"));
            text.push_str(&format!("  thread {name}: wchan {wchan}, syscall {syscall}\n"));
        }
        pids.extend(children_of(pid));
    }
    text
}

/// The resident set of this process, in bytes.
pub(crate) fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    1024 * line.split_whitespace().next().unwrap().parse::<u64>().unwrap()
}

/// Random numbers (SplitMix64). The seed is printed; `PROCPOOL_SEED` repeats a run.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new() -> Random {
        let seed = std::env::var("PROCPOOL_SEED").ok().map_or_else(
            || {
                let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
                now.as_nanos() as u64
            },
            |seed| seed.parse().unwrap(),
        );
        println!("PROCPOOL_SEED={seed}");
        Random(seed)
    }

    pub(crate) fn of_seed(seed: u64) -> Random {
        Random(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// Another sequence, for another thread.
    pub(crate) fn split(&mut self) -> Random {
        Random(self.next())
    }
}

/// A directory of the test's own, removed at its end.
pub(crate) struct TempDir(PathBuf);

impl TempDir {
    pub(crate) fn new() -> TempDir {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name =
            format!("procpool-test-{}-{}", process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        TempDir(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Where jobs report and wait: a job calls [`meet`] with the path, the test receives it with
/// [`next`](Meeting::next) and lets it go on.
pub(crate) struct Meeting {
    _dir: TempDir,
    path: String,
    listener: UnixListener,
}

/// A job that waits at a meeting. Dropping it lets the job go on.
pub(crate) struct Guest {
    pub(crate) word: String,
    stream: UnixStream,
}

impl Meeting {
    pub(crate) fn new() -> Meeting {
        let dir = TempDir::new();
        let path = dir.path().join("meeting");
        let listener = UnixListener::bind(&path).unwrap();
        Meeting { path: path.to_str().unwrap().to_owned(), _dir: dir, listener }
    }

    /// What to give to jobs.
    pub(crate) fn path(&self) -> String {
        self.path.clone()
    }

    /// The next job that comes; waits for it. The watchdog ends a wait in vain.
    pub(crate) fn next(&self) -> Guest {
        let (mut stream, _) = self.listener.accept().unwrap();
        let mut word = String::new();
        let mut byte = [0];
        while stream.read(&mut byte).unwrap() == 1 && byte[0] != b'\n' {
            word.push(byte[0] as char);
        }
        Guest { word, stream }
    }
}

impl Guest {
    /// Lets the job go on.
    pub(crate) fn go(mut self) {
        let _ = self.stream.write_all(b"\n");
    }
}

/// For a job: says `word` at the meeting and waits until the test lets it go on.
pub(crate) fn meet(path: &str, word: &str) {
    let mut stream = UnixStream::connect(path).unwrap();
    stream.write_all(format!("{word}\n").as_bytes()).unwrap();
    let _ = stream.read(&mut [0]);
}

/// For a job: says `word` at the meeting and goes on.
pub(crate) fn say(path: &str, word: &str) {
    let mut stream = UnixStream::connect(path).unwrap();
    stream.write_all(format!("{word}\n").as_bytes()).unwrap();
}
