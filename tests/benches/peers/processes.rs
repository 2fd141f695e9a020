//! Processes: one for each job, the first of a pool, the next after a death; beside bare ones.

use std::io::Write;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork};
use procpool::{Isolation, ProcessPool, ProcessPoolBuilder, StartMethod};

use super::dispatch::{EXECUTOR, MP_POOL};
use super::effort::{Effort, WORKERS};
use super::pools::{Pool, micros, same};
use super::row::{Row, Unit, quantile};
use super::{ping, python, roles};

const SPAWN: &str = "procpool";
const SERVER: &str = "procpool, fork server";
const TRUE_TO_ITS_END: &str = "`true`: fork, exec, exit";
const ITSELF: &str = "this program: fork, exec, exit";
const TRUE_BEGUN: &str = "`true`: fork and exec";

pub(crate) fn rows() -> Vec<Row> {
    let python = python::is_there();
    let xargs = is_there("xargs");
    let fresh = Row::new("fresh", "a fresh process for each job", Unit::PerSecond)
        .contestant(SERVER, |effort| fresh(StartMethod::ForkServer, effort))
        .contestant("procpool, spawn", |effort| fresh(StartMethod::Spawn, effort))
        .contestant("procspawn", fresh_procspawn)
        .if_there(python, MP_POOL, |effort| python::figure("fresh", "pool", effort))
        .if_there(xargs, "xargs -P2 true", |effort| {
            inputs_per_second(&mut xargs_true(), effort.fresh as usize)
        })
        .contestant("fork and exit, both CPUs", fork_and_exit)
        .target(SERVER, 10.0, "procspawn");
    let start = Row::new("start", "fresh pool, first result", Unit::Micros)
        .contestant(SPAWN, |effort| first(StartMethod::Spawn, effort))
        .contestant(SERVER, |effort| first(StartMethod::ForkServer, effort))
        .contestant("procspawn", first_procspawn)
        .if_there(python, EXECUTOR, |effort| python::figure("start", "executor", effort))
        .if_there(python, MP_POOL, |effort| python::figure("start", "pool", effort))
        .contestant(TRUE_TO_ITS_END, true_to_its_end)
        .contestant(ITSELF, itself_to_its_end)
        .target(SPAWN, 3.0, TRUE_TO_ITS_END);
    let kill = Row::new("kill", "SIGKILL of a worker, the slot's next result", Unit::Micros)
        .contestant(SPAWN, |effort| kill_to_result(builder(StartMethod::Spawn), effort))
        .contestant("procpool, two spares", |effort| {
            kill_to_result(builder(StartMethod::Spawn).spares(2), effort)
        })
        .contestant(SERVER, |effort| kill_to_result(builder(StartMethod::ForkServer), effort))
        .contestant(TRUE_BEGUN, true_begun)
        .contestant(TRUE_TO_ITS_END, true_to_its_end)
        .contestant(ITSELF, itself_to_its_end)
        .target(SPAWN, 2.0, TRUE_TO_ITS_END)
        .limit(SERVER, 500.0);
    vec![fresh, start, kill]
}

/// True if this machine has the program.
pub(crate) fn is_there(program: &str) -> bool {
    let output = Command::new(program).arg("--version").stdin(Stdio::null()).output();
    output.is_ok_and(|output| output.status.success())
}

fn builder(method: StartMethod) -> ProcessPoolBuilder {
    ProcessPool::builder().workers(WORKERS).start_method(method)
}

fn fresh(method: StartMethod, effort: &Effort) -> f64 {
    let pool = builder(method).isolation(Isolation::FreshProcess).build();
    let pool = pool.expect("a pool can be made");
    pool.run(4);
    let start = Instant::now();
    let mut jobs = 0;
    // Others are slow enough that their number of jobs takes long enough.
    while jobs == 0 || start.elapsed() < Duration::from_secs_f64(effort.seconds) {
        pool.run(effort.fresh);
        jobs += effort.fresh;
    }
    jobs as f64 / start.elapsed().as_secs_f64()
}

/// Outside of a pool procspawn starts a process for each call.
fn fresh_procspawn(effort: &Effort) -> f64 {
    let jobs = effort.fresh / WORKERS as u64;
    let start = Instant::now();
    thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                for n in 0..jobs {
                    procspawn::spawn(n, same).join().expect("a no-op succeeds");
                }
            });
        }
    });
    (jobs * WORKERS as u64) as f64 / start.elapsed().as_secs_f64()
}

pub(crate) fn xargs_true() -> Command {
    let mut command = Command::new("xargs");
    command.args(["-P2", "-n1", "true"]);
    command
}

/// Runs a program that takes a line of its standard input for each of its jobs.
pub(crate) fn inputs_per_second(command: &mut Command, inputs: usize) -> f64 {
    inputs as f64 / to_its_end(command, inputs).as_secs_f64()
}

/// How long such a program takes for one job, from its start to its end.
pub(crate) fn one_input(command: &mut Command, effort: &Effort) -> f64 {
    median(effort.starts, || to_its_end(command, 1).as_secs_f64() * 1e6)
}

fn to_its_end(command: &mut Command, inputs: usize) -> Duration {
    let lines: String = (0..inputs).map(|n| format!("{n}\n")).collect();
    let start = Instant::now();
    let mut child = spawn(command.stdin(Stdio::piped()).stdout(Stdio::null()));
    let mut stdin = child.stdin.take().expect("it is piped");
    stdin.write_all(lines.as_bytes()).expect("the program reads its inputs");
    drop(stdin);
    let status = child.wait().expect("the child can be waited for");
    assert!(status.success(), "{command:?}: {status}");
    start.elapsed()
}

fn spawn(command: &mut Command) -> std::process::Child {
    #[expect(clippy::disallowed_methods, reason = "not a worker: the bare thing to compare with")]
    command.spawn().unwrap_or_else(|error| panic!("{command:?} does not start: {error}"))
}

/// What the kernel can do: two processes, each on its CPU, that do nothing but fork.
fn fork_and_exit(effort: &Effort) -> f64 {
    let cpus = ping::two_cpus().map_or(vec![0], |(one, other)| vec![one, other]);
    let seconds = effort.seconds.to_string();
    thread::scope(|scope| {
        let forkers: Vec<_> = cpus
            .iter()
            .map(|cpu| scope.spawn(|| roles::figure("fork", &[&cpu.to_string(), &seconds])))
            .collect();
        forkers.into_iter().map(|forker| forker.join().expect("it prints a figure")).sum()
    })
}

/// One of them.
#[expect(unsafe_code, reason = "the bare thing to compare with")]
pub(crate) fn fork_here(cpu: &str, seconds: &str) -> f64 {
    ping::pin(cpu.parse().expect("a CPU's number"));
    let seconds = Duration::from_secs_f64(seconds.parse().expect("a number of seconds"));
    let start = Instant::now();
    let mut forks = 0.0;
    while start.elapsed() < seconds {
        // SAFETY: the child makes one system call, which ends it.
        match unsafe { fork() }.expect("there is room for a process") {
            // SAFETY: it takes an integer and touches no memory.
            ForkResult::Child => unsafe { libc::_exit(0) },
            ForkResult::Parent { child } => {
                waitpid(child, None).expect("the child can be waited for");
            }
        }
        forks += 1.0;
    }
    forks / start.elapsed().as_secs_f64()
}

fn first(method: StartMethod, effort: &Effort) -> f64 {
    median(effort.starts, || {
        let start = Instant::now();
        let pool = builder(method).build().expect("a pool can be made");
        pool.result(pool.submit(same, 0));
        micros(start)
    })
}

fn first_procspawn(effort: &Effort) -> f64 {
    median(effort.starts, || {
        let start = Instant::now();
        let pool = procspawn::Pool::start();
        pool.result(pool.submit(0));
        let first = micros(start);
        pool.end();
        first
    })
}

fn true_to_its_end(effort: &Effort) -> f64 {
    median(effort.starts, || {
        let start = Instant::now();
        let status = spawn(&mut Command::new("true")).wait();
        assert!(status.expect("the child can be waited for").success());
        micros(start)
    })
}

/// A worker that is spawned is this program, which is larger than `true`: what the system needs to execute it and to end it is in
/// each figure of such workers.
fn itself_to_its_end(effort: &Effort) -> f64 {
    median(effort.starts, || {
        let mut command = roles::command("nothing", &[]);
        let start = Instant::now();
        let status = spawn(&mut command).wait();
        assert!(status.expect("the child can be waited for").success());
        micros(start)
    })
}

/// The call returns when the new program is in place, before it runs: before it is linked, which takes several times
/// as long. So it says what the kernel does, and nothing can be asked of a program sooner than its first word.
fn true_begun(effort: &Effort) -> f64 {
    median(effort.starts, || {
        let start = Instant::now();
        let mut child = spawn(&mut Command::new("true"));
        let begun = micros(start);
        child.wait().expect("the child can be waited for");
        begun
    })
}

fn kill_to_result(builder: ProcessPoolBuilder, effort: &Effort) -> f64 {
    let pool = builder.workers(1).build().expect("a pool can be made");
    let worker = || pool.submit(|()| std::process::id(), ()).result().expect("it succeeds");
    median(effort.kills, || {
        let old = worker();
        let start = Instant::now();
        kill(Pid::from_raw(old.cast_signed()), Signal::SIGKILL).expect("the worker is there");
        // A job can reach the worker before the signal does; then it has died with the old one.
        while !pool.submit(|()| std::process::id(), ()).result().is_ok_and(|new| new != old) {}
        micros(start)
    })
}

fn median(times: usize, mut measure: impl FnMut() -> f64) -> f64 {
    quantile((0..times).map(|_| measure()).collect(), 0.5)
}
