//! This program as something else: the other end of a ping-pong, a process that forks, a host that is measured
//! from within. A role that has a figure prints it.

use std::env;
use std::process::{Command, Stdio};

use super::{memory, ping, processes};

/// Makes this program play the role that follows.
pub(crate) const ROLE: &str = "--role";

/// This program in a role.
pub(crate) fn command(role: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(env::current_exe().expect("this program has a path"));
    command.args([ROLE, role]).args(arguments);
    command
}

/// The figure that this program prints in a role.
pub(crate) fn figure(role: &str, arguments: &[&str]) -> f64 {
    read_figure(&mut command(role, arguments))
}

/// The figure that a program prints.
pub(crate) fn read_figure(command: &mut Command) -> f64 {
    let output = command.stderr(Stdio::inherit()).output().expect("the program can be started");
    let text = String::from_utf8_lossy(&output.stdout);
    text.trim().parse().unwrap_or_else(|_| panic!("no figure from {command:?}: `{text}`"))
}

pub(crate) fn play(role: &str, arguments: &[&str]) {
    let figure = match (role, arguments) {
        ("nothing", []) => return,
        ("pong", [cpu, wait]) => return ping::pong(cpu, wait),
        ("fork", [cpu, seconds]) => processes::fork_here(cpu, seconds),
        ("pending", [jobs]) => memory::pending_here(number(jobs)),
        ("long-map", [items]) => memory::long_map_here(number(items)),
        ("idle", [workers, seconds]) => memory::idle_here(number(workers), seconds),
        _ => panic!("no such role: {role} {arguments:?}"),
    };
    println!("{figure}");
}

fn number(text: &str) -> u64 {
    text.parse().expect("a role is given numbers")
}
