//! The program `procpool run` beside other programs that run a command for each input.

use std::env;
use std::process::{Command, Stdio};

use super::processes::{inputs_per_second, is_there, one_input, xargs_true};
use super::row::{Row, Unit};

/// The first argument with which this program is `procpool`.
pub(crate) const RUN: &str = "run";

pub(crate) fn rows() -> Vec<Row> {
    let run = Row::new("run", "`run true` over 2,000 inputs", Unit::PerSecond)
        .contestant("procpool run -j2", |effort| {
            inputs_per_second(procpool().args(["-j2", "true"]), effort.inputs)
        })
        .if_there(is_there("xargs"), "xargs -P2 -n1", |effort| {
            inputs_per_second(&mut xargs_true(), effort.inputs)
        })
        .if_there(is_there("parallel"), "parallel -j2", |effort| {
            inputs_per_second(Command::new("parallel").args(["-j2", "true"]), effort.inputs)
        })
        .target("procpool run -j2", 1.0, "xargs -P2 -n1")
        .rounds_max(3);
    let once = Row::new("once", "`run true` over one input, to its end", Unit::Micros)
        .contestant("procpool run", |effort| {
            one_input(procpool().args(["true", ":::", "x"]), effort)
        })
        .if_there(is_there("xargs"), "xargs", |effort| {
            one_input(Command::new("xargs").arg("true"), effort)
        })
        .target("procpool run", 3.0, "xargs");
    vec![run, once]
}

fn procpool() -> Command {
    let mut command = Command::new(env::current_exe().expect("this program has a path"));
    command.arg(RUN).stderr(Stdio::null());
    command
}
