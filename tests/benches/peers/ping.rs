//! Round trips, beside the least that two processes can do: one byte there and one back through a socket pair.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::thread;
use std::time::Instant;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use procpool::ProcessPool;

use super::dispatch::{EXECUTOR, MP_POOL, trips};
use super::effort::Effort;
use super::pools::{Threads, micros};
use super::python;
use super::roles;
use super::row::{Row, Unit, quantile};

const BLOCKING: &str = "socket ping-pong, two CPUs";

/// How an end waits for a byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wait {
    Block,
    Spin,
}

pub(crate) fn rows() -> Vec<Row> {
    let row = |name, title, at| {
        let python = python::is_there();
        let cpus = two_cpus();
        let pinned =
            move |ours, theirs| move |effort: &Effort| ping(effort, cpus, ours, theirs, at);
        Row::new(name, title, Unit::Micros)
            .contestant("procpool", move |effort| trips::<ProcessPool>(effort, at))
            .contestant("threadpool", move |effort| trips::<Threads>(effort, at))
            .contestant("procspawn", move |effort| trips::<procspawn::Pool>(effort, at))
            .if_there(python, EXECUTOR, move |e| python::figure(name, "executor", e))
            .if_there(python, MP_POOL, move |e| python::figure(name, "pool", e))
            .if_there(cpus.is_some(), BLOCKING, pinned(Wait::Block, Wait::Block))
            .if_there(cpus.is_some(), "the same, one end spins", pinned(Wait::Spin, Wait::Block))
            .if_there(cpus.is_some(), "the same, both ends spin", pinned(Wait::Spin, Wait::Spin))
            .contestant("socket ping-pong, unpinned", move |effort| {
                ping(effort, None, Wait::Block, Wait::Block, at)
            })
    };
    vec![
        row("trip", "round trip, median", 0.5).target("procpool", 0.25, BLOCKING),
        row("trip-p90", "round trip, p90", 0.9),
    ]
}

/// Two CPUs that this program may use.
pub(crate) fn two_cpus() -> Option<(usize, usize)> {
    let allowed = sched_getaffinity(Pid::from_raw(0)).ok()?;
    let mut cpus = (0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu).unwrap_or(false));
    Some((cpus.next()?, cpus.next()?))
}

pub(crate) fn pin(cpu: usize) {
    let mut set = CpuSet::new();
    set.set(cpu)
        .and_then(|()| sched_setaffinity(Pid::from_raw(0), &set))
        .expect("the CPU was allowed");
}

fn ping(effort: &Effort, cpus: Option<(usize, usize)>, ours: Wait, theirs: Wait, at: f64) -> f64 {
    let trips = effort.trips;
    // In a thread of its own, which alone is pinned.
    let trips = thread::spawn(move || ping_from_here(trips, cpus, ours, theirs)).join();
    quantile(trips.expect("the ping-pong does not panic"), at)
}

fn ping_from_here(
    trips: usize,
    cpus: Option<(usize, usize)>,
    ours: Wait,
    theirs: Wait,
) -> Vec<f64> {
    let (mut here, there) = UnixStream::pair().expect("a socket pair can be made");
    let cpu = cpus.map_or("any".to_owned(), |(_, theirs)| theirs.to_string());
    let wait = if theirs == Wait::Spin { "spin" } else { "block" };
    let mut command = roles::command("pong", &[&cpu, wait]);
    let mut child = start(command.stdin(OwnedFd::from(there)));
    drop(command);
    if let Some((ours, _)) = cpus {
        pin(ours);
    }
    // A socket that blocks blocks for both who have it, so each end is set by its own process.
    here.set_nonblocking(ours == Wait::Spin).expect("a socket can be set so");
    let mut trip = || {
        let start = Instant::now();
        here.write_all(&[0]).and_then(|()| receive(&mut here)).expect("the other end answers");
        micros(start)
    };
    (0..100).for_each(|_| {
        trip();
    });
    let trips = (0..trips).map(|_| trip()).collect();
    drop(here);
    child.wait().expect("the child can be waited for");
    trips
}

fn start(command: &mut Command) -> std::process::Child {
    #[expect(clippy::disallowed_methods, reason = "not a worker: the bare thing to compare with")]
    command.spawn().expect("this program can be started")
}

fn receive(socket: &mut UnixStream) -> io::Result<()> {
    loop {
        match socket.read_exact(&mut [0]) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::hint::spin_loop(),
            result => return result,
        }
    }
}

/// The other end.
pub(crate) fn pong(cpu: &str, wait: &str) {
    if let Ok(cpu) = cpu.parse() {
        pin(cpu);
    }
    let socket = io::stdin().as_fd().try_clone_to_owned();
    let mut socket = UnixStream::from(socket.expect("a descriptor can be copied"));
    socket.set_nonblocking(wait == "spin").expect("a socket can be set so");
    while receive(&mut socket).is_ok() && socket.write_all(&[0]).is_ok() {}
}
