//! Jobs that crash in every way there is, beside jobs that work: each future says what happened, to whom, where,
//! when and why; and nothing is left behind.
//!
//! Run it with `cargo run --release --example crash`.

use std::collections::BTreeSet;
use std::error::Error;
use std::fs;
use std::hint::black_box;
use std::process;
use std::ptr;
use std::thread;
use std::time::{Duration, Instant};

use procpool::events::{Event, Events};
use procpool::{
    EndedBy, JobError, JobFuture, Limit, Outcome, Output, ProcessPool, Shutdown, Status,
};

fn add((a, b): (u64, u64)) -> u64 {
    a + b
}

#[expect(unsafe_code, reason = "a real segmentation fault needs a real bad write")]
fn segfault((a, b): (u64, u64)) -> u64 {
    let nowhere = ptr::without_provenance_mut::<u64>(64);
    // SAFETY: none. No page is ever mapped so low, so the write ends the process: which is the point.
    unsafe { nowhere.write_volatile(a + b) };
    a + b
}

fn abort(_: (u64, u64)) -> u64 {
    eprintln!("the sum of this does not add up");
    process::abort()
}

fn exit(_: (u64, u64)) -> u64 {
    process::exit(3)
}

fn overflow((a, b): (u64, u64)) -> u64 {
    // The black boxes keep the compiler from making a loop of this, or from seeing that it has no end.
    let frame = black_box([a; 512]);
    if black_box(true) { overflow((a + 1, b)) + frame[0] } else { b }
}

fn panic((a, b): (u64, u64)) -> u64 {
    panic!("cannot add {a} and {b}")
}

fn hang(_: (u64, u64)) -> u64 {
    loop {
        thread::park();
    }
}

#[expect(clippy::disallowed_methods, reason = "a job's child is not a worker")]
fn litter(_: (u64, u64)) -> u64 {
    let child = process::Command::new("sleep").arg("1000").spawn().expect("there is a sleep");
    eprintln!("process {} is left behind", child.id());
    process::abort()
}

fn poison(_: (u64, u64)) -> u64 {
    eprintln!("attempt {}", procpool::context().map_or(0, |context| context.attempt()));
    process::abort()
}

type Sum = fn((u64, u64)) -> u64;

/// The poison may try three times, the others once. The line that calls this is the one that reports name.
#[track_caller]
fn submit(
    pool: &ProcessPool,
    name: &'static str,
    f: Sum,
) -> (&'static str, Instant, JobFuture<u64>) {
    let retries = if name == "poison" { 2 } else { 0 };
    (name, Instant::now(), pool.job(f, (40, 2)).name(name).retries(retries).submit())
}

fn main() -> Result<(), Box<dyn Error>> {
    procpool::init();
    let start = Instant::now();
    let pool = ProcessPool::builder()
        .workers(2)
        .job_timeout(Duration::from_secs(1))
        // What the dying print goes into the verdicts and not to the screen.
        .stderr(Output::Capture)
        .build()?;
    let events = pool.events();

    let futures = [
        submit(&pool, "add", add),
        submit(&pool, "segfault", segfault),
        submit(&pool, "abort", abort),
        submit(&pool, "exit", exit),
        submit(&pool, "overflow", overflow),
        submit(&pool, "add again", add),
        submit(&pool, "panic", panic),
        submit(&pool, "hang", hang),
        submit(&pool, "poison", poison),
        submit(&pool, "litter", litter),
        submit(&pool, "add at last", add),
    ];
    let mut told = Vec::new();
    let mut errors = Vec::new();
    for (name, submitted, future) in futures {
        let submitted = submitted.duration_since(start);
        errors.extend(verdict(name, submitted, future, &events, &mut told));
    }

    println!("The same in a line each, as errors print themselves:");
    for error in &errors {
        println!("  {error}");
    }
    pool.shutdown(Shutdown::Drain);
    told.extend(&events);
    let workers = told.iter().filter_map(|event| match event {
        Event::WorkerStarting { pid, .. } => Some(*pid),
        _ => None,
    });
    let workers: BTreeSet<u32> = workers.collect();
    let (started, died) = (pool.stats().spawned, pool.stats().deaths);
    println!("{started} workers were started, {died} died; left of them: {}", left_of(&workers));
    Ok(())
}

/// Waits for a job and prints what a person would ask for. The error comes back, if it is one.
fn verdict(
    name: &str,
    submitted: Duration,
    future: JobFuture<u64>,
    events: &Events,
    told: &mut Vec<Event>,
) -> Option<JobError> {
    let id = future.id();
    let Outcome { result, report, .. } = future.outcome();
    let error = match result {
        Ok(sum) => {
            println!("{name}: {sum}\n");
            return None;
        }
        Err(error) => error,
    };
    println!("{name}: {}", what(&error));
    // What is known of a job's end is told before its future is done.
    while let Ok(event) = events.try_recv() {
        told.push(event);
    }
    for event in told.iter() {
        if let Event::JobFailed { job, origin, .. } = event
            && *job == id
        {
            line("who", &format!("job {id}, submitted at {}:{}", origin.file(), origin.line()));
        }
    }
    if let (Some(worker), Some(pid)) = (report.worker, report.pid) {
        line("where", &format!("worker {worker}, process {pid}, attempt {}", report.attempts));
    }
    let (at, ran) = (submitted + report.queued, report.ran);
    line(
        "when",
        &format!(
            "{:.3} s after the start, for {:.1} ms",
            at.as_secs_f64(),
            1e3 * ran.as_secs_f64()
        ),
    );
    for why in why(&error) {
        line("why", &why);
    }
    if let Some(pid) = report.pid
        && !matches!(error, JobError::Panicked(_))
    {
        line("left", &format!("{} of process {pid} and its group", left_of(&[pid].into())));
    }
    println!();
    Some(error)
}

fn what(error: &JobError) -> String {
    match error {
        JobError::Died(death) => format!("died of {} {}", death.status, death.phase),
        JobError::Panicked(panic) => {
            format!("panicked at {}", panic.location.as_deref().unwrap_or("an unknown place"))
        }
        JobError::TimedOut(timeout) => format!("was stopped after {:?}", timeout.after),
        JobError::Quarantined { attempts, last } => {
            format!("given up after {attempts} attempts; the last {}", what(last))
        }
        other => other.to_string(),
    }
}

fn why(error: &JobError) -> Vec<String> {
    match error {
        JobError::Died(death) => {
            let mut why: Vec<String> = death.detail.iter().cloned().collect();
            why.extend(match death.status {
                Status::Signal(11, _) => {
                    Some("a bad memory access: look at unsafe code and C".into())
                }
                Status::Exit(code) => Some(format!("it, or what it calls, called exit({code})")),
                _ => None,
            });
            // The last line says most, but for an overflow. It may have control characters in it.
            let mut lines = death.stderr_tail.lines();
            let overflow = lines.clone().find(|line| line.contains("overflowed its stack"));
            let said = overflow.or_else(|| lines.rfind(|line| !line.trim().is_empty()));
            why.extend(said.map(|line| format!("it said \"{}\"", line.escape_debug())));
            why
        }
        JobError::Panicked(panic) => vec![panic.message.escape_debug().to_string()],
        JobError::TimedOut(timeout) => {
            let limit = match timeout.limit {
                Limit::Cpu => "it used more CPU time than it may",
                _ => "it took longer than it may",
            };
            let end = match timeout.ended_by {
                EndedBy::Term => "SIGTERM ended it",
                EndedBy::Kill => "it did not end at SIGTERM, so SIGKILL did it",
                _ => "it ended by itself when asked to",
            };
            vec![format!("{limit}; {end}")]
        }
        JobError::Quarantined { last, .. } => why(last),
        _ => Vec::new(),
    }
}

fn line(key: &str, value: &str) {
    println!("    {key:<6} {value}");
}

/// The processes that are still in the group of one of these.
fn left_of(workers: &BTreeSet<u32>) -> String {
    let stats = fs::read_dir("/proc").into_iter().flatten().flatten();
    let stats = stats.filter_map(|entry| fs::read_to_string(entry.path().join("stat")).ok());
    let left: Vec<String> = stats
        .filter(|stat| {
            // After the name: state, parent, group. A zombie is dead; that is its parent's affair.
            let fields: Vec<&str> =
                stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
            let group = fields.get(2).and_then(|group| group.parse().ok());
            fields[0] != "Z" && group.is_some_and(|group| workers.contains(&group))
        })
        .collect();
    if left.is_empty() { "nothing".to_owned() } else { left.concat() }
}
