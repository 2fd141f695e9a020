//! procpool beside its peers, in one run on one machine: run it with
//! `cargo bench -p procpool-tests --bench peers`, and with `-- --markdown` for the README's table.
//!
//! All do the same: no-op jobs on two workers. The rounds alternate (A B C A B C …), so that a machine that
//! slows down for a while does so for all. Reported are the median of the rounds and their spread. Nothing
//! is asserted: a number is for a person to judge. `-- --quick` only shows, in seconds, that all of it works.
//!
//! This program is also the worker of procpool and of procspawn, and the other end of the ping-pong.

use std::collections::BTreeMap;
use std::env;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{self, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use serde::Serialize;

/// Every contestant has this many workers.
const WORKERS: usize = 2;

const USAGE: &str = "usage: peers [--quick] [--markdown] [--rounds N]";

/// What is measured: its key in the numbers of a round, what it is called, and its unit.
const MEASURES: [(&str, &str, Unit); 6] = [
    ("jobs", "jobs, one future each", Unit::PerSecond),
    ("trip", "round trip, median", Unit::Micros),
    ("trip_p90", "round trip, p90", Unit::Micros),
    ("map", "map of no-ops, automatic chunks", Unit::PerSecond),
    ("first", "fresh pool, first result", Unit::Micros),
    ("life", "fresh pool, two jobs, end", Unit::Micros),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unit {
    PerSecond,
    Micros,
}

/// What one contestant reached in one round, by the keys of [`MEASURES`].
type Numbers = BTreeMap<String, f64>;

/// How long to try, the same for everyone. The Python script reads it as JSON.
#[derive(Debug, Serialize)]
struct Effort {
    rounds: usize,
    /// Jobs submitted before the first result is taken.
    batch: u64,
    /// How long batches are repeated.
    seconds: f64,
    trips: usize,
    items: u64,
    /// Fresh pools.
    starts: usize,
}

const FULL: Effort =
    Effort { rounds: 5, batch: 10_000, seconds: 0.5, trips: 2_000, items: 1_000_000, starts: 10 };

const QUICK: Effort =
    Effort { rounds: 2, batch: 100, seconds: 0.01, trips: 20, items: 10_000, starts: 1 };

/// One line of the tables.
struct Contestant {
    name: &'static str,
    round: Box<dyn Fn(&Effort) -> Numbers>,
    rounds: Vec<Numbers>,
}

// Not private, because a program of the tests is this file too.
pub(crate) fn main() {
    // In a worker of either, the call does not return. Each tells its own by its own variable.
    procpool::init();
    procspawn::init();
    let mut effort = FULL;
    let mut markdown = false;
    let mut rounds = None;
    let mut arguments = env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--quick" => effort = QUICK,
            "--markdown" => markdown = true,
            "--rounds" => rounds = Some(number(arguments.next())),
            PONG => return pong(arguments.next()),
            // What cargo adds.
            "--bench" => {}
            _ => usage(),
        }
    }
    effort.rounds = rounds.unwrap_or(effort.rounds).max(1);

    let mut contestants = contestants();
    for round in 1..=effort.rounds {
        for contestant in &mut contestants {
            eprintln!("round {round} of {}: {}", effort.rounds, contestant.name);
            let numbers = (contestant.round)(&effort);
            contestant.rounds.push(numbers);
        }
    }
    print_setting(&effort);
    if markdown {
        print_markdown(&contestants);
    } else {
        print_text(&contestants);
    }
}

fn number(argument: Option<String>) -> usize {
    argument.and_then(|text| text.parse().ok()).unwrap_or_else(|| usage())
}

fn usage() -> ! {
    eprintln!("{USAGE}");
    process::exit(2);
}

fn contestants() -> Vec<Contestant> {
    let mut contestants = Vec::new();
    let mut add = |name, round: Box<dyn Fn(&Effort) -> Numbers>| {
        contestants.push(Contestant { name, round, rounds: Vec::new() });
    };
    // The first is the one that the others are compared with.
    add("procpool", Box::new(round::<procpool::ProcessPool>));
    add("threadpool, a channel a job", Box::new(round::<Threads>));
    add("threadpool, one channel", Box::new(round::<SharedChannel>));
    add("procspawn", Box::new(round::<procspawn::Pool>));
    if python_is_there() {
        add("ProcessPoolExecutor", Box::new(|effort| python("executor", effort)));
        add("multiprocessing.Pool", Box::new(|effort| python("pool", effort)));
    } else {
        eprintln!("no python3 here: its pools are left out");
    }
    match two_cpus() {
        Some(cpus) => {
            add("socket ping-pong, two CPUs", Box::new(move |effort| ping(effort, Some(cpus))))
        }
        None => eprintln!("one CPU only: the ping-pong across two is left out"),
    }
    add("socket ping-pong, unpinned", Box::new(|effort| ping(effort, None)));
    contestants
}

/// A pool of two workers whose job is to return its argument.
trait Pool {
    /// The most jobs that can wait for their results.
    const PENDING_MAX: u64 = u64::MAX;
    type Ticket;
    fn start() -> Self;
    fn submit(&self, n: u64) -> Self::Ticket;
    fn result(&self, ticket: Self::Ticket) -> u64;
    /// The sum of a map over the numbers below `items`, where there is such a thing.
    fn map(&self, items: u64) -> Option<u64>;
    fn end(self);
}

/// One round of a pool: fresh ones first, then one that is warm.
fn round<P: Pool>(effort: &Effort) -> Numbers {
    let (mut first, mut life) = (Vec::new(), Vec::new());
    for _ in 0..effort.starts {
        let start = Instant::now();
        let pool = P::start();
        pool.result(pool.submit(0));
        first.push(micros(start));
        pool.end();
        let start = Instant::now();
        let pool = P::start();
        run(&pool, WORKERS as u64);
        pool.end();
        life.push(micros(start));
    }

    let pool = P::start();
    run(&pool, 100);
    let batch = effort.batch.min(P::PENDING_MAX);
    let start = Instant::now();
    let mut jobs = 0;
    while jobs == 0 || start.elapsed() < Duration::from_secs_f64(effort.seconds) {
        run(&pool, batch);
        jobs += batch;
    }
    let jobs = jobs as f64 / start.elapsed().as_secs_f64();

    let trip = |n| {
        let start = Instant::now();
        pool.result(pool.submit(n));
        micros(start)
    };
    let trips: Vec<f64> = (0..effort.trips as u64).map(trip).collect();

    let start = Instant::now();
    let sum = pool.map(effort.items);
    let map = effort.items as f64 / start.elapsed().as_secs_f64();
    pool.end();

    let mut numbers = trip_numbers(trips);
    numbers.insert("jobs".into(), jobs);
    numbers.insert("first".into(), quantile(first, 0.5));
    numbers.insert("life".into(), quantile(life, 0.5));
    if let Some(sum) = sum {
        assert_eq!(sum, effort.items * (effort.items - 1) / 2);
        numbers.insert("map".into(), map);
    }
    numbers
}

fn run<P: Pool>(pool: &P, jobs: u64) {
    let tickets: Vec<P::Ticket> = (0..jobs).map(|n| pool.submit(n)).collect();
    for ticket in tickets {
        pool.result(ticket);
    }
}

fn trip_numbers(trips: Vec<f64>) -> Numbers {
    Numbers::from([
        ("trip".into(), quantile(trips.clone(), 0.5)),
        ("trip_p90".into(), quantile(trips, 0.9)),
    ])
}

fn same(n: u64) -> u64 {
    n
}

impl Pool for procpool::ProcessPool {
    type Ticket = procpool::JobFuture<u64>;

    fn start() -> Self {
        let pool = procpool::ProcessPool::builder().workers(WORKERS).build();
        pool.expect("a pool can be made")
    }

    fn submit(&self, n: u64) -> Self::Ticket {
        self.submit(same, n)
    }

    fn result(&self, ticket: Self::Ticket) -> u64 {
        ticket.result().expect("a no-op succeeds")
    }

    fn map(&self, items: u64) -> Option<u64> {
        let results = self.map(same, 0..items);
        Some(results.map(|n| n.expect("a no-op succeeds")).sum())
    }

    fn end(self) {}
}

impl Pool for procspawn::Pool {
    /// Each job that waits holds descriptors, of which a process commonly has 1024.
    const PENDING_MAX: u64 = 100;
    type Ticket = procspawn::JoinHandle<u64>;

    fn start() -> Self {
        procspawn::Pool::new(WORKERS).expect("a pool can be made")
    }

    fn submit(&self, n: u64) -> Self::Ticket {
        self.spawn(n, same)
    }

    fn result(&self, ticket: Self::Ticket) -> u64 {
        ticket.join().expect("a no-op succeeds")
    }

    fn map(&self, _items: u64) -> Option<u64> {
        None
    }

    fn end(self) {
        self.shutdown();
    }
}

/// The crate `threadpool` has no futures; a channel for each job is what comes nearest.
struct Threads(threadpool::ThreadPool);

impl Pool for Threads {
    type Ticket = mpsc::Receiver<u64>;

    fn start() -> Self {
        Threads(threadpool::ThreadPool::new(WORKERS))
    }

    fn submit(&self, n: u64) -> Self::Ticket {
        let (sender, receiver) = mpsc::channel();
        self.0.execute(move || {
            let _ = sender.send(same(n));
        });
        receiver
    }

    fn result(&self, ticket: Self::Ticket) -> u64 {
        ticket.recv().expect("a no-op succeeds")
    }

    fn map(&self, _items: u64) -> Option<u64> {
        None
    }

    fn end(self) {
        self.0.join();
    }
}

/// The crate `threadpool` as its own documentation uses it: all results come through one channel, so that
/// none can be asked for by itself.
struct SharedChannel {
    threads: threadpool::ThreadPool,
    sender: mpsc::Sender<u64>,
    receiver: mpsc::Receiver<u64>,
}

impl Pool for SharedChannel {
    type Ticket = ();

    fn start() -> Self {
        let (sender, receiver) = mpsc::channel();
        SharedChannel { threads: threadpool::ThreadPool::new(WORKERS), sender, receiver }
    }

    fn submit(&self, n: u64) {
        let sender = self.sender.clone();
        self.threads.execute(move || {
            let _ = sender.send(same(n));
        });
    }

    fn result(&self, (): ()) -> u64 {
        self.receiver.recv().expect("a no-op succeeds")
    }

    fn map(&self, _items: u64) -> Option<u64> {
        None
    }

    fn end(self) {
        self.threads.join();
    }
}

const SCRIPT: &str = include_str!("peers.py");

fn python_is_there() -> bool {
    let imports = "import concurrent.futures, json, multiprocessing, statistics";
    let output = Command::new("python3").args(["-c", imports]).output();
    output.is_ok_and(|output| output.status.success())
}

/// One round of a Python pool; the script keeps the time, so that the interpreter's start does not count.
fn python(pool: &str, effort: &Effort) -> Numbers {
    let effort = serde_json::to_string(effort).expect("numbers are always JSON");
    let output = Command::new("python3")
        .args(["-c", SCRIPT, pool, &effort])
        .stderr(Stdio::inherit())
        .output()
        .expect("python3 was there a moment ago");
    serde_json::from_slice(&output.stdout).expect("the script prints its numbers as JSON")
}

/// Makes this program the other end of the ping-pong.
const PONG: &str = "--pong";

/// Two CPUs that this program may use.
fn two_cpus() -> Option<(usize, usize)> {
    let allowed = sched_getaffinity(Pid::from_raw(0)).ok()?;
    let mut cpus = (0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu).unwrap_or(false));
    Some((cpus.next()?, cpus.next()?))
}

fn pin(cpu: usize) {
    let mut set = CpuSet::new();
    set.set(cpu)
        .and_then(|()| sched_setaffinity(Pid::from_raw(0), &set))
        .expect("the CPU was allowed");
}

/// The least that two processes can do: one byte there and one back, blocking, through a socket pair.
fn ping(effort: &Effort, cpus: Option<(usize, usize)>) -> Numbers {
    let trips = effort.trips;
    // In a thread of its own, which alone is pinned.
    let trips = thread::spawn(move || ping_from_here(trips, cpus)).join();
    trip_numbers(trips.expect("the ping-pong does not panic"))
}

fn ping_from_here(trips: usize, cpus: Option<(usize, usize)>) -> Vec<f64> {
    let (mut here, there) = UnixStream::pair().expect("a socket pair can be made");
    let mut command = Command::new(env::current_exe().expect("this program has a path"));
    command.arg(PONG).stdin(OwnedFd::from(there));
    if let Some((ours, theirs)) = cpus {
        command.arg(theirs.to_string());
        pin(ours);
    }
    #[expect(clippy::disallowed_methods, reason = "not a worker: the bare thing to compare with")]
    let mut child = command.spawn().expect("this program can be started");
    drop(command);
    let mut trip = |_| {
        let start = Instant::now();
        here.write_all(&[0])
            .and_then(|()| here.read_exact(&mut [0]))
            .expect("the other end answers");
        micros(start)
    };
    (0..100).for_each(|n| {
        trip(n);
    });
    let trips = (0..trips).map(trip).collect();
    drop(here);
    child.wait().expect("the child can be waited for");
    trips
}

fn pong(cpu: Option<String>) {
    if let Some(cpu) = cpu {
        pin(number(Some(cpu)));
    }
    let socket = io::stdin().as_fd().try_clone_to_owned();
    let mut socket = UnixStream::from(socket.expect("a descriptor can be copied"));
    let mut byte = [0];
    while socket.read_exact(&mut byte).is_ok() && socket.write_all(&byte).is_ok() {}
}

fn micros(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e6
}

fn quantile(mut values: Vec<f64>, quantile: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    values[((values.len() as f64 * quantile) as usize).min(values.len() - 1)]
}

/// Median, lowest and highest of a contestant's rounds; `None` if it has no such measure.
fn summary(contestant: &Contestant, key: &str) -> Option<(f64, f64, f64)> {
    let values: Option<Vec<f64>> =
        contestant.rounds.iter().map(|numbers| numbers.get(key).copied()).collect();
    let values = values?;
    Some((quantile(values.clone(), 0.5), quantile(values.clone(), 0.0), quantile(values, 1.0)))
}

/// How many times as good procpool is: more per second, or less time.
fn advantage(unit: Unit, ours: f64, theirs: f64) -> String {
    let factor = match unit {
        Unit::PerSecond => ours / theirs,
        Unit::Micros => theirs / ours,
    };
    let decimals = if factor < 10.0 { 2 } else { 0 };
    format!("{factor:.decimals$} ×")
}

/// A number as a person reads it, with three digits that count.
fn human(unit: Unit, value: f64) -> String {
    let (value, suffix) = match unit {
        Unit::PerSecond if value >= 1e6 => (value / 1e6, " M/s"),
        Unit::PerSecond if value >= 1e3 => (value / 1e3, " k/s"),
        Unit::PerSecond => (value, " /s"),
        Unit::Micros if value >= 1e6 => (value / 1e6, " s"),
        Unit::Micros if value >= 1e3 => (value / 1e3, " ms"),
        Unit::Micros => (value, " µs"),
    };
    let decimals = match value {
        100.0.. => 0,
        10.0.. => 1,
        _ => 2,
    };
    format!("{value:.decimals$}{suffix}")
}

fn print_setting(effort: &Effort) {
    let cpus = thread::available_parallelism().map_or(1, usize::from);
    let build =
        if cfg!(debug_assertions) { "; a debug build, whose numbers mean nothing" } else { "" };
    println!("{WORKERS} workers, {cpus} CPUs, median of {} rounds{build}\n", effort.rounds);
}

fn print_text(contestants: &[Contestant]) {
    for (key, title, unit) in MEASURES {
        println!("{title}");
        let ours = summary(&contestants[0], key);
        for contestant in contestants {
            let Some((median, lowest, highest)) = summary(contestant, key) else {
                continue;
            };
            let spread = format!("{} to {}", human(unit, lowest), human(unit, highest));
            let advantage = match ours {
                Some((ours, ..)) if contestant.name != contestants[0].name => {
                    format!("procpool is {}", advantage(unit, ours, median))
                }
                _ => String::new(),
            };
            let median = human(unit, median);
            let line = format!("  {:<28}{median:>10}  {spread:<24}{advantage}", contestant.name);
            println!("{}", line.trim_end());
        }
        println!();
    }
}

/// One table: a line for each contestant, and in brackets how many times as good procpool is.
fn print_markdown(contestants: &[Contestant]) {
    let titles = MEASURES.map(|(_, title, _)| title);
    println!("| | {} |", titles.join(" | "));
    println!("|---|{}", "---:|".repeat(MEASURES.len()));
    for contestant in contestants {
        let cells = MEASURES.map(|(key, _, unit)| {
            let Some((median, ..)) = summary(contestant, key) else {
                return "–".to_owned();
            };
            match summary(&contestants[0], key) {
                Some((ours, ..)) if contestant.name != contestants[0].name => {
                    format!("{} ({})", human(unit, median), advantage(unit, ours, median))
                }
                _ => format!("**{}**", human(unit, median)),
            }
        });
        println!("| {} | {} |", contestant.name, cells.join(" | "));
    }
}
