//! The daemon beside the bare disk, in one run on one machine: `cargo bench -p procpool-tests --bench daemon`.
//!
//! Each figure stands with a ratio to what the disk, or SQLite alone, does in the same run: this machine is shared, and
//! a figure alone says little. Words select what is measured (`-- submit`); `-- --quick` only shows, in seconds, that
//! all of it works. Nothing is asserted. This program is also the worker whose tasks the daemon runs.

#![expect(clippy::unwrap_used, reason = "what cannot be measured ends the program")]

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{self, Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use procpool_daemon::Client;
use procpool_daemon::config::Level;
use procpool_daemon::job::{
    self, JobId, JobSpec, Life, Moment, Outcome, Record, State, Step, TaskWork, Terms, Who, Work,
};
use procpool_daemon::protocol::{
    GREETING_LEN, Request, Response, greeting, parse_body, push_frame, read_frame,
};
use procpool_daemon::store::sqlite::SqliteStore;
use procpool_daemon::store::{Change, Store};
use rusqlite::Connection;

/// What a client that pipelines has under way at most.
const WINDOW: usize = 2048;

/// How long to try.
struct Effort {
    /// Each measurement of a rate.
    time: Duration,
    /// Jobs to run.
    commands: usize,
    tasks: usize,
    /// Jobs that a daemon finds.
    queued: u64,
    trips: usize,
}

const FULL: Effort = Effort {
    time: Duration::from_secs(2),
    commands: 2_000,
    tasks: 40_000,
    queued: 1_000_000,
    trips: 1_000,
};
const QUICK: Effort =
    Effort { time: Duration::from_millis(50), commands: 10, tasks: 100, queued: 1_000, trips: 10 };

#[procpool::task]
fn nothing(_: ()) {}

/// When it was here, in nanoseconds since 1970.
#[procpool::task]
fn moment(_: ()) -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos() as u64
}

fn main() {
    procpool::init();
    let mut effort = FULL;
    let mut words = Vec::new();
    for word in std::env::args().skip(1) {
        match word.as_str() {
            // Cargo says so to every benchmark.
            "--bench" => {}
            "--quick" => effort = QUICK,
            _ if word.starts_with('-') => {
                eprintln!("usage: daemon [--quick] [disk|submit|run|start]...");
                process::exit(2);
            }
            _ => words.push(word),
        }
    }
    let wants = |name: &str| words.is_empty() || words.iter().any(|word| word == name);
    let dir = Dir::new();
    let disk = wants("disk").then(|| disk(&dir.0, &effort));
    if wants("submit") {
        for level in ["machine", "process"] {
            submits(level, &effort, disk);
        }
    }
    if wants("run") {
        runs(&effort, disk);
    }
    if wants("start") {
        start(&effort);
    }
}

/// What the disk does, a second.
#[derive(Debug, Clone, Copy)]
struct Disk {
    sync: f64,
    commits: f64,
}

fn tell(what: &str, rate: f64, unit: &str, beside: &[(&str, f64)]) {
    let ratios = beside.iter().map(|(peer, other)| format!("  {:.2} × {peer}", rate / other));
    println!("{what:<52} {rate:>10.0} {unit}{}", ratios.collect::<String>());
}

/// The rate of what `once` does, which says how much it was.
fn rate(time: Duration, mut once: impl FnMut() -> u64) -> f64 {
    let since = Instant::now();
    let mut count = 0;
    while since.elapsed() < time {
        count += once();
    }
    count as f64 / since.elapsed().as_secs_f64()
}

fn disk(dir: &Path, effort: &Effort) -> Disk {
    let mut file = File::create(dir.join("append")).unwrap();
    let sync = rate(effort.time, || {
        file.write_all(&[7; 200]).unwrap();
        file.sync_data().unwrap();
        1
    });
    tell("disk: fdatasync after an append of 200 bytes", sync, "/s", &[]);
    let connection = Connection::open(dir.join("peer.sqlite")).unwrap();
    connection.pragma_update(None, "locking_mode", "EXCLUSIVE").unwrap();
    connection.pragma_update(None, "journal_mode", "WAL").unwrap();
    connection.pragma_update(None, "synchronous", "FULL").unwrap();
    connection.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, bytes BLOB)", []).unwrap();
    let batch = |rows: u64| {
        let transaction = connection.unchecked_transaction().unwrap();
        let mut insert = connection.prepare_cached("INSERT INTO t (bytes) VALUES (?1)").unwrap();
        for _ in 0..rows {
            insert.execute([[7_u8; 200]]).unwrap();
        }
        transaction.commit().unwrap();
        rows
    };
    let commits = rate(effort.time, || batch(1));
    tell("SQLite, WAL, FULL: commits of one row", commits, "/s", &[]);
    tell("SQLite, WAL, FULL: rows in commits of 64", rate(effort.time, || batch(64)), "/s", &[]);
    Disk { sync, commits }
}

fn submits(level: &str, effort: &Effort, disk: Option<Disk>) {
    let home = Home::new(level);
    let daemon = home.start();
    // The one slot is taken, so that the others wait.
    let mut first = Pipe::connect(&home);
    first.ask(&Request::Submit(command(&["sleep", "1000"])));
    let clients: Vec<_> = (0..8).map(|_| Client::connect(&home.socket()).unwrap()).collect();
    let since = Instant::now();
    let counts: Vec<u64> = thread::scope(|scope| {
        let clients = clients.iter().map(|client| {
            scope.spawn(move || {
                let request = Request::Submit(command(&["true"]));
                let mut count = 0;
                while since.elapsed() < effort.time {
                    client.request(&request).unwrap();
                    count += 1;
                }
                count
            })
        });
        let clients: Vec<_> = clients.collect();
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    });
    let waiting = counts.iter().sum::<u64>() as f64 / since.elapsed().as_secs_f64();
    let peers: Vec<(&str, f64)> = disk
        .iter()
        .flat_map(|disk| [("fdatasync", disk.sync), ("SQLite's single commits", disk.commits)])
        .collect();
    tell(&format!("{level}: submits of 8 clients that wait"), waiting, "/s", &peers);
    let request = Request::Submit(command(&["true"]));
    let since = Instant::now();
    let mut count = 0_u64;
    while since.elapsed() < effort.time || first.under_way > 0 {
        let is_late = since.elapsed() >= effort.time;
        while !is_late && first.under_way < WINDOW {
            first.send(&request);
        }
        first.flush();
        first.receive();
        count += 1;
    }
    let piped = count as f64 / since.elapsed().as_secs_f64();
    tell(&format!("{level}: submits of one client that pipelines"), piped, "/s", &peers);
    daemon.kill();
}

fn runs(effort: &Effort, disk: Option<Disk>) {
    let home = Home::new("machine");
    let daemon = home.start();
    let mut pipe = Pipe::connect(&home);
    let peers: Vec<(&str, f64)> = disk.iter().map(|disk| ("fdatasync", disk.sync)).collect();
    let mut run = |what: &str, count: usize, spec: &JobSpec| {
        pipe.ask(&Request::Run(spec.clone()));
        pipe.drain();
        let since = Instant::now();
        let request = Request::Run(spec.clone());
        let (mut sent, mut ended) = (0, 0);
        while ended < count {
            while sent < count && sent - ended < WINDOW {
                pipe.send(&request);
                sent += 1;
            }
            pipe.flush();
            if let Response::Ending(_, state, _) = pipe.receive() {
                assert_eq!(state, State::Succeeded);
                ended += 1;
            }
        }
        tell(what, count as f64 / since.elapsed().as_secs_f64(), "/s", &peers);
    };
    run("machine: `true` as a command, two slots", effort.commands, &slots(command(&["true"])));
    run("machine: a task that does nothing, two slots", effort.tasks, &task("nothing"));
    let mut late = Vec::new();
    for _ in 0..effort.trips {
        pipe.send(&Request::Run(task("moment")));
        pipe.flush();
        let ending = loop {
            if let Response::Ending(_, _, ending) = pipe.receive() {
                break ending;
            }
        };
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
        let Outcome::Json(text) = ending.outcome else {
            panic!("{ending:?}");
        };
        late.push((now - text.parse::<u64>().unwrap()) as f64 / 1e3);
    }
    late.sort_by(f64::total_cmp);
    tell("from a task's last word to its waiter: median", late[late.len() / 2], "µs", &[]);
    tell("the same, 99 of 100 within", late[late.len() * 99 / 100], "µs", &[]);
    daemon.kill();
}

fn start(effort: &Effort) {
    let home = Home::new("machine");
    let since = Instant::now();
    {
        let mut store = SqliteStore::open(&home.state(), Level::Machine).unwrap();
        let at = Moment::now();
        for batch in (1..=effort.queued).collect::<Vec<_>>().chunks(1000) {
            let changes = batch.iter().map(|id| {
                let JobSpec { terms, work } = slots(command(&["true"]));
                let step = Step { at, state: State::Queued, who: Who::Client(1), why: None };
                let life = Life::born(step);
                Change::Insert { record: Record { id: JobId(*id), terms, life }, work }
            });
            store.commit(&changes.collect::<Vec<_>>()).unwrap();
        }
        Box::new(store).close().unwrap();
    }
    let made = effort.queued as f64 / since.elapsed().as_secs_f64();
    tell("jobs put into the store, 1000 a commit", made, "/s", &[]);
    let bytes = fs::metadata(home.state().join("journal.sqlite")).unwrap().len();
    tell("bytes of the journal for each", bytes as f64 / effort.queued as f64, "", &[]);
    for what in ["after a clean stop", "after a kill"] {
        let empty = Home::new("machine");
        let daemon = empty.start();
        let without = daemon.memory();
        daemon.stop();
        let since = Instant::now();
        let daemon = home.start();
        let took = since.elapsed();
        tell(
            &format!("start with {} jobs, {what}", effort.queued),
            took.as_millis() as f64,
            "ms",
            &[],
        );
        let mut pipe = Pipe::connect(&home);
        let since = Instant::now();
        pipe.ask(&Request::Page { after: JobId(0), limit: 100 });
        tell("the first page then", since.elapsed().as_micros() as f64, "µs", &[]);
        let memory = (daemon.memory() - without) as f64 / effort.queued as f64;
        tell("bytes of memory for each job", memory, "", &[]);
        daemon.kill();
    }
}

/// In the queue that has a worker program and two slots.
fn slots(mut spec: JobSpec) -> JobSpec {
    spec.terms.queue = "two".into();
    spec
}

fn command(words: &[&str]) -> JobSpec {
    let work = job::Command::here(words.iter().copied()).unwrap();
    JobSpec { terms: Terms::new(words[0]), work: Work::Command(work) }
}

fn task(name: &str) -> JobSpec {
    let name = format!("{}::{name}", module_path!());
    let work = TaskWork { task: name.clone(), fingerprint: None, argument: b"null".to_vec() };
    slots(JobSpec { terms: Terms::new(name), work: Work::Task(work) })
}

/// A directory that goes with the value.
struct Dir(PathBuf);

impl Dir {
    fn new() -> Dir {
        static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        // Where programs are built there is a real disk; /tmp may be memory.
        let own = std::env::current_exe().unwrap();
        let dir = own.with_file_name(format!("bench-daemon-{}-{number}", process::id()));
        fs::create_dir(&dir).unwrap();
        Dir(dir)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

struct Home {
    dir: Dir,
}

impl Home {
    fn new(level: &str) -> Home {
        let dir = Dir::new();
        let worker = std::env::current_exe().unwrap();
        let config = format!(
            "level = {level:?}\n[queue.default]\nslots = 1\n\
             [queue.two]\nslots = 2\nworker = {worker:?}\n"
        );
        fs::write(dir.0.join("config.toml"), config).unwrap();
        use std::os::unix::fs::DirBuilderExt;
        fs::DirBuilder::new().mode(0o700).create(dir.0.join("state")).unwrap();
        Home { dir }
    }

    fn state(&self) -> PathBuf {
        self.dir.0.join("state")
    }

    fn socket(&self) -> PathBuf {
        // The path of a socket has little room.
        std::env::temp_dir().join(format!("bench-{}", self.dir.0.file_name().unwrap().display()))
    }

    fn start(&self) -> Daemon {
        let mut command = Command::new(env!("CARGO_BIN_EXE_procpool-dup"));
        command.args(["daemon", "--allow-root", "--config"]).arg(self.dir.0.join("config.toml"));
        command.arg("--state").arg(self.state()).arg("--socket").arg(self.socket());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        #[expect(clippy::disallowed_methods, reason = "the program is no worker of a pool of ours")]
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        while !lines.next().expect("the daemon listens").unwrap().contains("listening at") {}
        thread::spawn(move || lines.for_each(|line| eprintln!("{}", line.unwrap_or_default())));
        Daemon { child }
    }
}

struct Daemon {
    child: Child,
}

impl Daemon {
    fn end(mut self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
        self.child.wait().unwrap();
    }

    fn kill(self) {
        self.end(Signal::SIGKILL);
    }

    fn stop(self) {
        self.end(Signal::SIGTERM);
    }

    /// Its resident set, in bytes.
    fn memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    }
}

/// A client that sends without waiting.
struct Pipe {
    stream: UnixStream,
    reader: BufReader<UnixStream>,
    output: Vec<u8>,
    next: u64,
    under_way: usize,
}

impl Pipe {
    fn connect(home: &Home) -> Pipe {
        let mut stream = UnixStream::connect(home.socket()).unwrap();
        stream.write_all(&greeting(0)).unwrap();
        let mut reader = BufReader::with_capacity(64 << 10, stream.try_clone().unwrap());
        std::io::Read::read_exact(&mut reader, &mut [0; GREETING_LEN]).unwrap();
        Pipe { stream, reader, output: Vec::new(), next: 1, under_way: 0 }
    }

    fn send(&mut self, request: &Request) {
        push_frame(self.next, request, &mut self.output).unwrap();
        self.next += 1;
        self.under_way += 1;
    }

    fn flush(&mut self) {
        self.stream.write_all(&self.output).unwrap();
        self.output.clear();
    }

    fn receive(&mut self) -> Response {
        let (_, body) = read_frame(&mut self.reader).unwrap();
        let response: Response = parse_body(&body).unwrap();
        assert!(!matches!(response, Response::Refused(_)), "{response:?}");
        self.under_way = self.under_way.saturating_sub(1);
        response
    }

    fn ask(&mut self, request: &Request) -> Response {
        self.send(request);
        self.flush();
        self.receive()
    }

    /// Takes the end of a job that was run.
    fn drain(&mut self) {
        while !matches!(self.receive(), Response::Ending(..)) {}
        self.under_way = 0;
    }
}
