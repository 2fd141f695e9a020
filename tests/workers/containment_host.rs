//! Hosts whose jobs start processes of their own, for `it/containment`: one story each, told by the argument.

#![expect(
    clippy::unwrap_used,
    reason = "clippy's own exception for tests does not cover programs that are tests"
)]

use std::hint;
use std::io::{self, BufRead, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{self, Command};
use std::time::Duration;

use procpool::{ProcessPool, Shutdown};

fn main() {
    procpool::init();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["tree", end, stderr, meeting] => tree(end, stderr, meeting),
        ["allocate"] => allocate(),
        ["processes", limit] => processes(limit.parse().unwrap()),
        ["say"] => say(),
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
    println!("{:?}", pool.submit(fill, 256).result().map_err(|error| error.to_string()));
    println!("{:?}", pool.submit(fill, 16).result().map_err(|error| error.to_string()));
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

// ---- what the machine allows ---------------------------------------------------------------------

fn say() {
    let pool = match ProcessPool::builder().workers(1).build() {
        Ok(pool) => pool,
        Err(error) => return println!("no pool: {error}"),
    };
    println!("{}", pool.capabilities());
    println!("{:?}", pool.submit(|()| 42, ()).result().map_err(|error| error.to_string()));
    println!("{:?}", pool.containment());
}
