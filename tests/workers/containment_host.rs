//! Hosts whose jobs start processes of their own, for `it/containment`: one story each, told by the argument.

#![expect(
    clippy::unwrap_used,
    reason = "clippy's own exception for tests does not cover programs that are tests"
)]

use std::hint;
use std::io::{self, BufRead, Read, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{self, Command};
use std::time::Duration;

use nix::sys::signal::{SigHandler, Signal};
use procpool::{ProcessPool, Shutdown};

fn main() {
    procpool::init();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["tree", end, stderr, meeting] => tree(end, stderr, meeting),
        ["allocate"] => allocate(),
        ["watched"] => watched(),
        ["processes", limit] => processes(limit.parse().unwrap()),
        ["say"] => say(),
        ["large"] => large(),
        ["first"] => first(),
        ["reuse"] => reuse(),
        ["reused"] => reused(),
        _ => panic!("no such story: {arguments:?}"),
    }
}

/// The next line on standard input; `None` when there will be no more.
fn next_line() -> Option<String> {
    let mut line = String::new();
    let len = io::stdin().lock().read_line(&mut line).unwrap();
    (len > 0).then(|| line.trim().to_owned())
}

// ---- trees ---------------------------------------------------------------------------------------

/// A job that starts processes which no process group holds, and the end of it.
fn tree(end: &str, stderr: &str, meeting: &str) {
    let pool = ProcessPool::builder()
        .workers(1)
        .grace(Duration::from_millis(100))
        .max_jobs_per_worker(if end == "retire" { 1 } else { u64::MAX })
        .build()
        .unwrap();
    println!("{:?}", pool.containment().tree);
    let argument = (end.to_owned(), stderr.to_owned(), meeting.to_owned());
    let job = pool.job(grow, argument);
    let job = if end == "timeout" { job.timeout(Duration::from_millis(300)) } else { job };
    let future = job.submit();
    match end {
        "abort" => {
            next_line();
            future.abort();
        }
        "shutdown" => {
            next_line();
            pool.shutdown(Shutdown::Abort);
        }
        // Whoever tells this story kills the host meanwhile.
        "wait" => drop(next_line()),
        _ => {}
    }
    println!("{:?}", future.result().map_err(|error| error.to_string()));
    if end == "retire" {
        // So that the worker's end is behind us.
        println!("{:?}", pool.submit(|()| (), ()).result());
    }
    next_line();
}

/// Starts a child in a session of its own and a daemon, says who they are, and ends as it is told.
fn grow((end, stderr, meeting): (String, String, String)) {
    let session =
        started(&format!("setsid sh -c 'echo $$; exec sleep 1000 >/dev/null {stderr}' &"));
    // Forked twice: its parent is gone when it begins.
    let daemon =
        started(&format!("(setsid sh -c 'echo $$; exec sleep 1000 >/dev/null {stderr}' &) & wait"));
    meet(&meeting, &format!("{} {session} {daemon}", process::id()));
    match end.as_str() {
        "crash" => process::abort(),
        "exit" => process::exit(3),
        "retire" => {}
        _ => loop {
            hint::spin_loop();
        },
    }
}

/// The process that the shell's line leaves behind; its last words close the pipe.
fn started(line: &str) -> u32 {
    let output = Command::new("sh").args(["-c", line]).stderr(process::Stdio::inherit()).output();
    String::from_utf8(output.unwrap().stdout).unwrap().trim().parse().unwrap()
}

/// Says `word` at the meeting and waits until the test lets it go on.
fn meet(path: &str, word: &str) {
    let mut stream = UnixStream::connect(path).unwrap();
    stream.write_all(format!("{word}\n").as_bytes()).unwrap();
    let _ = stream.read(&mut [0]);
}

// ---- limits where there is no cgroup -------------------------------------------------------------

fn allocate() {
    let pool = ProcessPool::builder().workers(1).memory_limit(64 << 20).build().unwrap();
    println!("{:?}", pool.containment().memory);
    let fill = |mebibytes: usize| hint::black_box(vec![1_u8; mebibytes << 20]).len();
    println!("{:?}", pool.submit(fill, 16).result().map_err(|error| error.to_string()));
    println!("{:?}", pool.submit(fill, 2048).result().map_err(|error| error.to_string()));
    println!("{:?}", pool.submit(fill, 16).result().map_err(|error| error.to_string()));
}

/// Jobs within and beyond a limit that is kept by looking. Those that are beyond it stay there.
fn watched() {
    let pool = ProcessPool::builder().workers(1).memory_limit(64 << 20).build().unwrap();
    println!("{:?}", pool.containment().memory);
    let reserve =
        |mebibytes: usize| hint::black_box(Vec::<u8>::with_capacity(mebibytes << 20)).capacity();
    println!("{:?}", pool.submit(reserve, 200).result().map_err(|error| error.to_string()));
    let hold = |mebibytes: usize| -> usize {
        let filled = hint::black_box(vec![1_u8; mebibytes << 20]);
        std::thread::park();
        filled.len()
    };
    println!("{:?}", pool.submit(hold, 100).result().map_err(|error| error.to_string()));
    // Three processes, each of which is within the limit.
    let family = |()| {
        let line = "(head -c 30000000 /dev/zero; sleep 1000) | tail -n 1 &";
        Command::new("sh").args(["-c", &format!("{} wait", line.repeat(3))]).status().unwrap();
    };
    println!("{:?}", pool.submit(family, ()).result().map_err(|error| error.to_string()));
    println!("{:?}", pool.submit(|()| 42, ()).result().map_err(|error| error.to_string()));
    // Nobody looks while there is nothing to look at: how often the supervisor wakes.
    let supervisor = supervisor().unwrap();
    let before = switches(&supervisor);
    std::thread::sleep(Duration::from_millis(500));
    println!("{}", switches(&supervisor) - before);
}

/// The supervisor's directory in /proc.
fn supervisor() -> Option<std::path::PathBuf> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten().map(|task| task.path());
    let is_it = |task: &std::path::PathBuf| {
        std::fs::read_to_string(task.join("comm")).is_ok_and(|name| name.trim() == "procpool")
    };
    tasks.into_iter().find(is_it)
}

fn switches(task: &std::path::Path) -> u64 {
    let status = std::fs::read_to_string(task.join("status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    line.unwrap().trim().parse().unwrap()
}

fn processes(limit: u64) {
    let pool = ProcessPool::builder().workers(1).process_limit(limit).build().unwrap();
    println!("{:?}", pool.containment().processes);
    // As many as there may be, and then what was said.
    let count = |()| {
        let mut children = Vec::new();
        let error = loop {
            #[expect(clippy::disallowed_methods, reason = "a job's child is not a worker")]
            match Command::new("sleep").arg("1000").spawn() {
                Ok(child) if children.len() < 1000 => children.push(child),
                Ok(_) => break "none".to_owned(),
                Err(error) => break error.kind().to_string(),
            }
        };
        let count = children.len();
        for mut child in children {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        (count, error)
    };
    println!("{:?}", pool.submit(count, ()).result().map_err(|error| error.to_string()));
}

// ---- a host in namespaces of its own -------------------------------------------------------------

/// As process 1, to which every orphan comes, also those that are none of the pool's.
fn first() {
    assert_eq!(process::id(), 1);
    let pool = ProcessPool::builder().workers(2).grace(Duration::from_millis(100)).build().unwrap();
    println!("{:?}", pool.submit(|()| 42, ()).result());
    // A daemon that has let go of everything, of a worker that then crashes and of one that is stopped.
    println!("{:?}", pool.submit(daemon_and_crash, ()).result().map_err(|error| error.to_string()));
    let future = pool.job(daemon_and_spin, ()).timeout(Duration::from_millis(300)).submit();
    println!("{:?}", future.result().map_err(|error| error.to_string()));
    println!("{:?}", pool.submit(|()| 43, ()).result());
    let workers: Vec<u32> = pool.workers().iter().map(|worker| worker.pid).collect();
    pool.shutdown(Shutdown::Drain);
    // Whoever is process 1 reaps them; the pool's own children are not among them.
    while let Ok(stranger) = nix::sys::wait::wait() {
        let pid = stranger.pid().unwrap().as_raw() as u32;
        assert!(!workers.contains(&pid), "the pool has left its worker {pid}");
    }
    let others = std::fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        (pid != 1).then_some(pid)
    });
    println!("{:?}", others.collect::<Vec<_>>());
}

fn daemon(_: ()) {
    started("(setsid sh -c 'echo $$; exec sleep 1000 >/dev/null 2>&1' &) & wait");
}

fn daemon_and_crash(_: ()) {
    daemon(());
    process::abort();
}

fn daemon_and_spin(_: ()) {
    daemon(());
    loop {
        hint::spin_loop();
    }
}

/// As process 1: a host whose worker's id passes to a stranger before the pool can know of the worker's death.
fn reuse() {
    let program = std::env::current_exe().unwrap();
    #[expect(clippy::disallowed_methods, reason = "a host is not a worker")]
    let mut host = Command::new(program)
        .arg("reused")
        .stdin(process::Stdio::piped())
        .stdout(process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = io::BufReader::new(host.stdout.take().unwrap()).lines().map(Result::unwrap);
    let worker: u32 = said.next().unwrap().parse().unwrap();
    signal(host.id(), Signal::SIGSTOP);
    while !state(host.id()).starts_with('T') {
        std::thread::yield_now();
    }
    signal(worker, Signal::SIGKILL);
    // The kernel reaps it at once: its parent ignores SIGCHLD.
    while !state(worker).is_empty() {
        std::thread::yield_now();
    }
    let mut stranger = stranger_with(worker);
    signal(host.id(), Signal::SIGCONT);
    writeln!(host.stdin.take().unwrap(), "go").unwrap();
    said.for_each(|line| println!("{line}"));
    assert!(host.wait().unwrap().success());
    println!("{}", if stranger.try_wait().unwrap().is_none() { "unharmed" } else { "hit" });
    stranger.kill().unwrap();
    stranger.wait().unwrap();
}

/// A process that has this id, and leads a group that has it too.
fn stranger_with(id: u32) -> process::Child {
    for _ in 0..100 {
        std::fs::write("/proc/sys/kernel/ns_last_pid", (id - 1).to_string()).unwrap();
        #[expect(clippy::disallowed_methods, reason = "a stranger is not a worker")]
        let mut child = Command::new("sleep").arg("1000").process_group(0).spawn().unwrap();
        if child.id() == id {
            return child;
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
    panic!("nobody gets the id {id}");
}

fn signal(pid: u32, signal: Signal) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid as i32), signal).unwrap();
}

/// The letter for a process's state; empty if there is none.
fn state(pid: u32) -> String {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().unwrap_or_default().trim_start().to_owned()
}

/// The host: its children are reaped by the kernel.
#[expect(unsafe_code, reason = "to ignore a signal runs no code")]
fn reused() {
    // SAFETY: to ignore a signal runs no code.
    unsafe { nix::sys::signal::signal(Signal::SIGCHLD, SigHandler::SigIgn) }.unwrap();
    let pool = ProcessPool::builder().workers(1).build().unwrap();
    pool.warm_up().unwrap();
    println!("{}", pool.workers()[0].pid);
    next_line();
    // Its death is behind us when there is another.
    println!("{:?}", pool.submit(|()| 42, ()).result());
    pool.shutdown(Shutdown::Drain);
    println!("deaths: {}", pool.stats().deaths);
}

// ---- what the machine allows ---------------------------------------------------------------------

/// More than fits into a tiny /dev/shm, each way that large data goes.
fn large() {
    let pool = ProcessPool::builder().workers(2).build().unwrap();
    let bytes = vec![7_u8; 8 << 20];
    let shared = pool.share(bytes.clone());
    println!(
        "{:?}",
        pool.submit(|shared: procpool::Shared<Vec<u8>>| shared.len(), shared).result()
    );
    let raw = procpool::Bytes::from(bytes.clone());
    println!("{:?}", pool.submit(|raw: procpool::Bytes| raw, raw).result().map(|raw| raw.len()));
    println!("{:?}", pool.submit(|plain: Vec<u8>| plain, bytes).result().map(|plain| plain.len()));
}

fn say() {
    println!("as {} for {}", nix::unistd::geteuid(), nix::unistd::getuid());
    let pool = match ProcessPool::builder().workers(1).build() {
        Ok(pool) => pool,
        Err(error) => return println!("no pool: {error}"),
    };
    println!("{}", pool.capabilities());
    println!("{:?}", pool.submit(|()| 42, ()).result().map_err(|error| error.to_string()));
    println!("{:?}", pool.containment());
}
