//! A host whose life goes as its first argument says. Its jobs and it speak on standard output, a line at
//! a time, and it goes on when a line comes on standard input.

#![expect(clippy::unwrap_used, reason = "a story that cannot be told fails its test")]

use std::collections::BTreeMap;
use std::fs;
use std::hint;
use std::io::{self, BufRead};
use std::path::Path;
use std::process::{self, Command};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigHandler, SigSet, Signal};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use procpool::{Isolation, JobError, ProcessPool, ProcessPoolBuilder, StartMethod};

/// How its workers come into being.
const METHODS: [&str; 3] = ["executed", "forked", "forked for one job"];

fn main() {
    procpool::init();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let mut arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (method, isolation) = match arguments.pop_if(|last| METHODS.contains(last)) {
        Some("forked") => (StartMethod::ForkServer, Isolation::Reuse),
        Some("forked for one job") => (StartMethod::ForkServer, Isolation::FreshProcess),
        _ => (StartMethod::Spawn, Isolation::Reuse),
    };
    let builder = ProcessPool::builder().start_method(method).isolation(isolation);
    match arguments[..] {
        ["busy", end] => busy(builder, end),
        ["respawn"] => respawn(builder),
        ["inherit"] => inherit(builder),
        ["ignorant"] => {
            ignore(Signal::SIGCHLD);
            rounds(builder);
        }
        ["thief"] => {
            thread::spawn(steal_statuses);
            rounds(builder);
        }
        ["storm"] => storm(builder),
        ["later-variable"] => later_variable(method),
        ["no-descriptors", dir] => no_descriptors(Path::new(dir)),
        ["no-processes"] => no_processes(method),
        ["little-memory", mib] => little_memory(mib.parse().unwrap()),
        ["suspended", milliseconds] => suspended(milliseconds.parse().unwrap()),
        _ => panic!("no such story: {arguments:?}"),
    }
}

/// The next line on standard input; `None` when there will be no more.
fn next_line() -> Option<String> {
    let mut line = String::new();
    let len = io::stdin().lock().read_line(&mut line).unwrap();
    (len > 0).then(|| line.trim().to_owned())
}

// ---- the host's end ------------------------------------------------------------------------------

fn busy(builder: ProcessPoolBuilder, end: &str) {
    let pool = builder.workers(5).grace(Duration::from_millis(200)).build().unwrap();
    let jobs = [spin, spin_with_child, spin_blocking, spin_ignoring, spin_as_another];
    let _futures = jobs.map(|job| pool.submit(job, ()));
    next_line();
    match end {
        "exit" => process::exit(7),
        "panic" => panic!("as the story goes"),
        "forget" => std::mem::forget(pool),
        "pause" => {
            pool.pause();
            println!("paused");
            next_line();
        }
        // Whoever tells this story kills the host meanwhile.
        _ => drop(next_line()),
    }
}

fn spin(_: ()) {
    println!("worker {}", process::id());
    loop {
        hint::spin_loop();
    }
}

#[expect(
    clippy::disallowed_methods,
    clippy::zombie_processes,
    reason = "a job's child that nobody waits for is the point"
)]
fn spin_with_child(_: ()) {
    let child = Command::new("sleep").arg("1000").spawn().unwrap();
    println!("child {}", child.id());
    spin(());
}

fn spin_blocking(_: ()) {
    SigSet::all().thread_block().unwrap();
    spin(());
}

#[expect(unsafe_code, reason = "nix knows no real-time signals")]
fn spin_ignoring(_: ()) {
    for signal in 1..=nix::libc::SIGRTMAX() {
        // SAFETY: to ignore a signal runs no code.
        unsafe { nix::libc::signal(signal, nix::libc::SIG_IGN) };
    }
    spin(());
}

/// A change of user makes the kernel forget who wants to hear of the host's death. Only root can.
fn spin_as_another(_: ()) {
    if nix::unistd::geteuid().is_root() {
        let somebody = nix::unistd::Uid::from_raw(54321);
        nix::unistd::setresuid(somebody, somebody, somebody).unwrap();
    }
    spin(());
}

// ---- another executable --------------------------------------------------------------------------

fn respawn(builder: ProcessPoolBuilder) {
    let pool = builder.workers(1).build().unwrap();
    while let Some(line) = next_line() {
        match line.as_str() {
            "run" => println!("{:?}", pool.submit(|()| 42, ()).result()),
            "crash" => println!("{}", death(pool.submit(abort, ()).result())),
            _ => break,
        }
    }
}

fn abort(_: ()) {
    process::abort();
}

fn death(result: Result<(), JobError>) -> String {
    match result {
        Err(JobError::Died(death)) => format!("{:?}", death.status),
        other => format!("not a death: {other:?}"),
    }
}

// ---- what a worker inherits ----------------------------------------------------------------------

fn inherit(builder: ProcessPoolBuilder) {
    let open: Vec<_> = (0..50).map(|_| nix::unistd::dup(io::stdin()).unwrap()).collect();
    ignore(Signal::SIGCHLD);
    ignore(Signal::SIGINT);
    let mut blocked = SigSet::empty();
    blocked.add(Signal::SIGTERM);
    blocked.add(Signal::SIGUSR1);
    blocked.thread_block().unwrap();
    let (_, hard) = getrlimit(Resource::RLIMIT_CORE).unwrap();
    setrlimit(Resource::RLIMIT_CORE, hard, hard).unwrap();
    let pool = builder.workers(2).build().unwrap();
    // Both workers, so that one could have the other's channel.
    pool.warm_up().unwrap();
    let mut seen = pool.submit(look_around, ()).result().unwrap();
    seen.insert("host oom_score_adj".into(), read("/proc/self/oom_score_adj"));
    println!("{}", serde_json::to_string(&seen).unwrap());
    drop(open);
}

fn read(file: &str) -> String {
    fs::read_to_string(file).unwrap().trim().to_owned()
}

fn look_around(_: ()) -> BTreeMap<String, String> {
    let mut seen = BTreeMap::new();
    let mut see = |key: &str, value: String| seen.insert(key.to_owned(), value);
    let listing = fs::read_dir("/proc/self/fd").unwrap();
    let mut open: Vec<String> = listing
        .flatten()
        .filter_map(|entry| {
            let target = fs::read_link(entry.path()).ok()?;
            // The directory that is being read is not one that the worker keeps.
            let target = target.to_string_lossy().into_owned();
            (!target.ends_with("/fd"))
                .then(|| format!("{} {target}", entry.file_name().to_string_lossy()))
        })
        .collect();
    open.sort();
    see("descriptors", open.join("\n"));
    let status = read("/proc/thread-self/status");
    for line in status.lines() {
        if let Some((key @ ("SigBlk" | "SigIgn" | "Name"), value)) = line.split_once(':') {
            see(key, value.trim().to_owned());
        }
    }
    see("pid", process::id().to_string());
    see("main thread", read("/proc/self/comm"));
    see("group", nix::unistd::getpgrp().to_string());
    let (core, _) = getrlimit(Resource::RLIMIT_CORE).unwrap();
    see("core limit", core.to_string());
    see("oom_score_adj", read("/proc/self/oom_score_adj"));
    let command = fs::read_to_string("/proc/self/cmdline").unwrap();
    see("command", command.replace('\0', "\n").trim().to_owned());
    let variables: Vec<String> =
        std::env::vars().map(|(key, _)| key).filter(|key| key.contains("PROCPOOL")).collect();
    see("variables", variables.join(" "));
    see("word", std::env::var("WORD").unwrap_or_default());
    let mut input = String::new();
    see("input", format!("{:?}", io::stdin().read_line(&mut input).ok()));
    seen
}

// ---- hosts that spoil wait -----------------------------------------------------------------------

#[expect(unsafe_code, reason = "nix cannot know what else a handler would do")]
fn ignore(signal: Signal) {
    // SAFETY: to ignore a signal runs no code.
    unsafe { nix::sys::signal::signal(signal, SigHandler::SigIgn) }.unwrap();
}

/// Good jobs and deaths in turns, then the end of the pool.
fn rounds(builder: ProcessPoolBuilder) {
    let pool = builder.workers(2).build().unwrap();
    for round in 0..5 {
        assert_eq!(pool.submit(|n: i32| n + 1, round).result().unwrap(), round + 1);
        println!("{}", death(pool.submit(abort, ()).result()));
    }
    let result = pool.submit(|n: i32| n + 1, 41).result();
    drop(pool);
    println!("{result:?}");
}

/// What some libraries do: reaps whichever child ends.
fn steal_statuses() {
    loop {
        match waitpid(None::<Pid>, None) {
            // No child now. Asking less often would only steal less.
            Err(Errno::ECHILD) => thread::sleep(Duration::from_micros(200)),
            _ => continue,
        }
    }
}

// ---- a host that is busy elsewhere ---------------------------------------------------------------

/// Spawns workers while eight threads hold the locks of the allocator and of the environment.
fn storm(builder: ProcessPoolBuilder) {
    static OVER: AtomicBool = AtomicBool::new(false);
    let threads: Vec<_> = (0..8).map(|n| thread::spawn(move || hammer(n, &OVER))).collect();
    let pool = builder.workers(2).max_jobs_per_worker(1).build().unwrap();
    let futures: Vec<_> = (0..1_000).map(|n| pool.submit(|n: usize| n, n)).collect();
    for (n, future) in futures.into_iter().enumerate() {
        assert_eq!(future.result().unwrap(), n);
    }
    println!("{}", pool.stats().spawned);
    OVER.store(true, Ordering::Relaxed);
    for thread in threads {
        thread.join().unwrap();
    }
}

#[expect(
    unsafe_code,
    reason = "set_var takes the lock of the environment for writing; no crate here sets priorities"
)]
fn hammer(thread: usize, over: &AtomicBool) {
    // Eight threads that spin leave little to a thousand workers. The kernel gives these what the others leave, and
    // so takes the processor from them while they hold a lock, as often as it can.
    // SAFETY: the call takes integers; on Linux it is about the calling thread alone (setpriority(2)).
    let niced = unsafe { nix::libc::setpriority(nix::libc::PRIO_PROCESS, 0, 19) };
    assert_eq!(niced, 0);
    let key = format!("HAMMER_{thread}");
    while !over.load(Ordering::Relaxed) {
        hint::black_box(vec![thread; 1000]);
        // SAFETY: this program reaches its environment through the standard library alone, which locks it.
        unsafe { std::env::set_var(&key, "x") };
        hint::black_box(std::env::var_os(&key));
    }
}

// ---- a host that changes its environment ---------------------------------------------------------

/// Sets and changes variables after its pool was built, before the first worker and between two workers.
#[expect(unsafe_code, reason = "there is no safe way to set a variable")]
fn later_variable(method: StartMethod) {
    fn words((): ()) -> [Option<String>; 2] {
        ["WORD", "LATER"].map(|name| std::env::var(name).ok())
    }
    let builder = || ProcessPool::builder().start_method(method).workers(1);
    let pool = builder().max_jobs_per_worker(1).build().unwrap();
    for round in 0..2 {
        // SAFETY: this program reaches its environment through the standard library alone, which locks it.
        unsafe { std::env::set_var("WORD", format!("changed {round}")) };
        // SAFETY: as above.
        unsafe { std::env::set_var("LATER", "set") };
        println!("{:?}", pool.submit(words, ()).result().unwrap());
    }
    let pool = builder().build().unwrap();
    println!("{:?}", pool.submit(words, ()).result().unwrap());
}

// ---- a host without memory -----------------------------------------------------------------------

const MIB: u64 = 1 << 20;

/// Asks for a result that is too large for its memory, and once more when it has more.
fn little_memory(mib: u64) {
    let pool = ProcessPool::builder().workers(1).build().unwrap();
    let text = |mib: u64| "x".repeat((mib * MIB) as usize);
    pool.warm_up().unwrap();
    let status = read("/proc/self/status");
    let size = status.lines().find_map(|line| line.strip_prefix("VmSize:")).unwrap();
    let size: u64 = size.trim().trim_end_matches(" kB").parse().unwrap();
    let (soft, hard) = getrlimit(Resource::RLIMIT_AS).unwrap();
    setrlimit(Resource::RLIMIT_AS, size * 1024 + 40 * MIB, hard).unwrap();
    let result = pool.submit(text, mib).result();
    setrlimit(Resource::RLIMIT_AS, soft, hard).unwrap();
    match result {
        Err(JobError::Died(death)) => println!("{}", death.detail.unwrap_or_default()),
        Err(JobError::Decode(error)) => println!("{}", error.message),
        other => println!("{:?}", other.map(|text| text.len())),
    }
    println!("{:?}", pool.submit(text, mib).result().map(|text| text.len()));
}

// ---- a host that is suspended --------------------------------------------------------------------

fn say_that_it_ends(n: i32) -> i32 {
    println!("runs");
    wait_for_a_stopped_parent();
    println!("ends");
    n + 1
}

/// Waits until the host, which is this job's parent, is stopped.
fn wait_for_a_stopped_parent() {
    let parent = format!("/proc/{}/stat", nix::unistd::getppid());
    while !fs::read_to_string(&parent).unwrap().contains(") T ") {
        thread::sleep(Duration::from_millis(1));
    }
}

/// Has a job run with a time limit.
fn suspended(milliseconds: u64) {
    let pool = ProcessPool::builder().workers(1).build().unwrap();
    pool.warm_up().unwrap();
    let limit = Duration::from_millis(milliseconds);
    println!("{:?}", pool.job(say_that_it_ends, 41).timeout(limit).submit().result());
}

// ---- a system that refuses -----------------------------------------------------------------------

/// Waits until the file is there. For a job, which has no other word from a host without descriptors.
fn wait_for(file: &Path) {
    while !file.exists() {
        thread::sleep(Duration::from_millis(2));
    }
}

fn gate(file: String) -> u32 {
    wait_for(Path::new(&file));
    process::id()
}

fn meet((mine, other): (String, String)) -> u32 {
    fs::write(&mine, "").unwrap();
    gate(other)
}

fn no_descriptors(dir: &Path) {
    let file = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    let pool = ProcessPool::builder().workers(2).build().unwrap();
    let unused = ProcessPool::builder()
        .workers(8)
        .start_timeout(Duration::from_millis(200))
        .build()
        .unwrap();
    let pid = pool.submit(|()| process::id(), ()).result().unwrap();

    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, 200, hard).unwrap();
    let mut taken: Vec<_> = std::iter::from_fn(|| nix::unistd::dup(io::stdin()).ok()).collect();
    // Two are free: fewer than a worker needs.
    taken.truncate(taken.len() - 2);

    let first = pool.submit(gate, file("gate"));
    let second = pool.submit(|()| process::id(), ());
    // Time for some attempts at a second worker; less would only make the test weaker.
    assert!(!second.wait_timeout(Duration::from_millis(100)));
    fs::write(file("gate"), "").unwrap();
    assert_eq!((first.result().unwrap(), second.result().unwrap()), (pid, pid));
    println!("goes on");

    let futures: Vec<_> = (0..20).map(|n| unused.submit(|n: i32| n, n)).collect();
    for future in futures {
        match future.result() {
            Err(error @ JobError::Broken(_)) => println!("{error}"),
            other => panic!("{other:?}"),
        }
    }
    drop(unused);
    println!("ended");

    setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
    drop(taken);
    let one = pool.submit(meet, (file("a"), file("b")));
    let other = pool.submit(meet, (file("b"), file("a")));
    assert_ne!(one.result().unwrap(), other.result().unwrap());
    println!("recovered");
}

fn no_processes(method: StartMethod) {
    let pool = loop {
        let settings =
            ProcessPool::builder().workers(1).restart_limit(100, Duration::from_secs(10));
        match settings.start_method(method).build() {
            Ok(pool) => break pool,
            Err(error) => println!("no pool: {error}"),
        }
    };
    println!("{:?}", pool.submit(|()| 42, ()).result());
}
