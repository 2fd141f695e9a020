//! A host that is listened to: by a subscriber of its own, or by whoever reads its streams. What it does is what
//! its first argument says.

#![expect(clippy::unwrap_used, reason = "a story that cannot be told fails its test")]

use std::fmt;
use std::fs;
use std::process;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use procpool::events::Event as PoolEvent;
use procpool::{JobFuture, Output, ProcessPool, Shutdown};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

fn main() {
    procpool::init();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments[0].as_str() {
        "log" => log(&arguments[1]),
        "panicking-log" => panicking_log(),
        "asking-log" => asking_log(),
        "manners" => manners(),
        "storm" => storm(),
        other => panic!("no such story: {other}"),
    }
}

// ---- jobs ----------------------------------------------------------------------------------------

fn abort(_: ()) {
    process::abort();
}

fn cry(_: ()) {
    eprintln!("a captured line");
    panic!("a cry");
}

fn hang(_: ()) {
    loop {
        thread::park();
    }
}

fn refuse(_: ()) -> Result<(), String> {
    Err("no such model".into())
}

// ---- a log ---------------------------------------------------------------------------------------

/// Writes each event down as a line.
struct Recorder {
    level: Level,
    panics: bool,
}

static LINES: Mutex<Vec<String>> = Mutex::new(Vec::new());

impl Subscriber for Recorder {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= self.level
    }

    fn max_level_hint(&self) -> Option<tracing::level_filters::LevelFilter> {
        Some(self.level.into())
    }

    fn event(&self, event: &Event<'_>) {
        assert!(!self.panics, "a log that cannot write");
        let metadata = event.metadata();
        let mut line = format!("{} {} {}", metadata.level(), metadata.target(), metadata.name());
        event.record(&mut Fields(&mut line));
        LINES.lock().unwrap().push(line);
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

struct Fields<'a>(&'a mut String);

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() != "message" {
            self.0.push_str(&format!(" {}={value:?}", field.name()));
        }
    }
}

fn subscribe(level: &str, panics: bool) {
    let level = level.parse().unwrap();
    tracing::subscriber::set_global_default(Recorder { level, panics }).unwrap();
}

/// A bit of everything, and what the log has of it on standard output.
fn log(level: &str) {
    subscribe(level, false);
    let builder = || ProcessPool::builder().workers(1).stderr(Output::Capture);
    let pool = builder().retries(1).build().unwrap();
    pool.submit(|n: u32| n, 1).result().unwrap();
    pool.job(cry, ()).name("cry").submit().result().unwrap_err();
    pool.submit(abort, ()).result().unwrap_err();
    pool.job(hang, ()).timeout(Duration::from_millis(50)).submit().result().unwrap_err();
    pool.shutdown(Shutdown::Drain);
    let broken = builder().initializer(refuse, ()).build().unwrap();
    broken.submit(|n: u32| n, 1).result().unwrap_err();
    drop(broken);
    for line in LINES.lock().unwrap().iter() {
        println!("{line}");
    }
}

/// A subscriber that panics at each event. The panic hook is silent, so that nothing but the library could print.
fn panicking_log() {
    subscribe("trace", true);
    std::panic::set_hook(Box::new(|_| ()));
    let pool =
        ProcessPool::builder().workers(1).retries(1).stderr(Output::Capture).build().unwrap();
    pool.submit(abort, ()).result().unwrap_err();
    println!("{}", pool.submit(|n: u32| n, 42).result().unwrap());
    pool.shutdown(Shutdown::Drain);
    println!("ended");
}

static POOL: Mutex<Option<(&'static ProcessPool, u64)>> = Mutex::new(None);

/// Asks the pool while it is told of it.
struct Asking;

impl Subscriber for Asking {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }
    fn event(&self, event: &Event<'_>) {
        // Its own submit is told as well, to the same thread.
        if event.metadata().name() != "worker_ended" {
            return;
        }
        let Some((pool, _)) = *POOL.lock().unwrap() else {
            return;
        };
        let _ = (pool.stats(), pool.workers(), pool.events());
        drop::<JobFuture<u32>>(pool.submit(|n: u32| n, 1));
        POOL.lock().unwrap().as_mut().unwrap().1 += 1;
    }
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

fn asking_log() {
    tracing::subscriber::set_global_default(Asking).unwrap();
    let pool = ProcessPool::builder().workers(1).stderr(Output::Capture).build().unwrap();
    let pool: &'static ProcessPool = Box::leak(Box::new(pool));
    *POOL.lock().unwrap() = Some((pool, 0));
    for _ in 0..5 {
        pool.submit(abort, ()).result().unwrap_err();
    }
    println!("{} asked", POOL.lock().unwrap().unwrap().1);
    pool.shutdown(Shutdown::Drain);
    println!("{} finished", pool.stats().finished);
}

// ---- manners -------------------------------------------------------------------------------------

/// What the kernel knows of this process's signals.
fn signals() -> Vec<String> {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let about = ["SigBlk", "SigIgn", "SigCgt"];
    let lines = status.lines().filter(|line| about.iter().any(|key| line.starts_with(key)));
    // The C library has two signals of its own, 32 and 33, which it begins to handle when it likes.
    let own = 0b11 << 31;
    let mask = |value: &str| u64::from_str_radix(value.trim(), 16).unwrap() & !own;
    let (key, value) = (|line: &str| line[..7].to_owned(), |line: &str| mask(&line[7..]));
    lines.map(|line| format!("{} {:x}", key(line), value(line))).collect()
}

/// Everything that can go wrong, in a host that says nothing about it.
fn manners() {
    let before = signals();
    let builder = || {
        ProcessPool::builder().workers(2).stderr(Output::Capture).grace(Duration::from_millis(20))
    };
    let pool = builder().retries(1).build().unwrap();
    pool.submit(abort, ()).result().unwrap_err();
    pool.submit(cry, ()).result().unwrap_err();
    pool.submit::<_, ()>(|()| process::exit(3), ()).result().unwrap_err();
    pool.job(hang, ()).timeout(Duration::from_millis(20)).submit().result().unwrap_err();
    let close = |()| {
        for fd in 3..100 {
            let _ = nix::unistd::close(fd);
        }
        hang(());
    };
    pool.submit(close, ()).result().unwrap_err();
    let aborted = pool.submit(hang, ());
    aborted.abort();
    aborted.result().unwrap_err();
    let during = signals();
    let left = pool.submit(hang, ());
    pool.shutdown(Shutdown::Abort);
    left.result().unwrap_err();
    let broken = builder().initializer(refuse, ()).build().unwrap();
    broken.submit(|n: u32| n, 1).result().unwrap_err();
    drop(broken);
    let missing = builder().worker_program("/no/such/program").build().unwrap();
    missing.call("task", "null").result().unwrap_err();
    drop(missing);
    builder().workers(0).build().unwrap_err();
    assert_eq!(before, during);
    assert_eq!(before, signals());
}

// ---- a storm -------------------------------------------------------------------------------------

/// CPU time of this process so far, its children's not included.
fn cpu() -> Duration {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF).unwrap();
    let of = |time: nix::sys::time::TimeVal| {
        Duration::new(time.tv_sec() as u64, 1000 * time.tv_usec() as u32)
    };
    of(usage.user_time()) + of(usage.system_time())
}

/// Workers that die as soon as they are ready, without any job. Prints what that costs the host in two seconds:
/// starts, and CPU time in milliseconds.
fn storm() {
    fn doom(_: ()) {
        thread::spawn(|| process::abort());
    }
    let builder = ProcessPool::builder().workers(2).stderr(Output::Capture);
    let pool = builder.initializer(doom, ()).restart_limit(100_000, Duration::from_secs(10));
    let pool = pool.build().unwrap();
    let events = pool.events();
    drop(pool.submit(|n: u32| n, 1));
    let before = cpu();
    let mut starts = 0;
    let over = std::time::Instant::now() + Duration::from_secs(2);
    while let left = over.saturating_duration_since(std::time::Instant::now())
        && let Ok(event) = events.recv_timeout(left)
    {
        starts += u32::from(matches!(event, PoolEvent::WorkerStarting { .. }));
    }
    println!("{starts} {}", (cpu() - before).as_millis());
    pool.shutdown(Shutdown::Abort);
}
