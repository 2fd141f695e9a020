//! procpool beside its peers, in one run on one machine: `cargo bench -p procpool-tests --bench peers`.
//! With `-- --markdown` it prints the README's table, with `-- --json` every figure of every round.
//!
//! A *row* is one thing that is measured: [`rows`] lists them. Each contestant of a row is measured in turn, in
//! several rounds (A B C A B C …), so that a machine that slows down for a while does so for all. Printed are
//! medians and spread, and for each *target* the ratio within a round. Nothing is asserted: a figure is for a
//! person to judge. `-- --quick` only shows, in seconds, that all of it works.
//!
//! This program is also the worker of procpool and of procspawn, the program `procpool`, and every other process
//! that a row needs: see [`roles`].

mod batch;
mod bulk;
mod compute;
mod dispatch;
mod effort;
mod memory;
mod ping;
mod pools;
mod print;
mod processes;
mod python;
mod roles;
mod row;

use std::env;
use std::process::{self, ExitCode};

use effort::{FULL, QUICK};
use row::Row;

const USAGE: &str = "\
usage: peers [--only ROW[,ROW]...] [--rounds N] [--quick] [--markdown | --json] [--list]";

/// How the figures are printed.
enum Format {
    Text,
    Markdown,
    Json,
}

fn rows() -> Vec<Row> {
    let rows = [
        dispatch::rows(),
        ping::rows(),
        processes::rows(),
        bulk::rows(),
        batch::rows(),
        memory::rows(),
        compute::rows(),
    ];
    rows.into_iter().flatten().collect()
}

// Not private, because a program of the tests is this file too.
pub(crate) fn main() -> ExitCode {
    // In a worker of either, the call does not return. Each tells its own by its own variable.
    procpool::init();
    procspawn::init();
    let arguments: Vec<String> = env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == batch::RUN) {
        return procpool_cli::main_impl();
    }
    if let [roles::ROLE, role, rest @ ..] =
        &arguments.iter().map(String::as_str).collect::<Vec<_>>()[..]
    {
        roles::play(role, rest);
        return ExitCode::SUCCESS;
    }
    measure(arguments);
    ExitCode::SUCCESS
}

fn measure(arguments: Vec<String>) {
    let mut effort = FULL;
    let mut format = Format::Text;
    let mut rounds = None;
    let mut rows = rows();
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--quick" => effort = QUICK,
            "--markdown" => format = Format::Markdown,
            "--json" => format = Format::Json,
            "--rounds" => {
                rounds = arguments.next().and_then(|text| text.parse().ok());
                rounds.unwrap_or_else(|| usage("--rounds wants a number"));
            }
            "--only" => {
                let names = arguments.next().unwrap_or_else(|| usage("--only wants names of rows"));
                rows = only(rows, &names);
            }
            "--list" => {
                return rows.iter().for_each(|row| println!("{:<14}{}", row.name, row.title));
            }
            // What cargo adds.
            "--bench" => {}
            unknown => usage(&format!("unknown argument `{unknown}`")),
        }
    }
    effort.rounds = rounds.unwrap_or(effort.rounds).max(1);
    for row in &mut rows {
        row.measure(&effort);
    }
    match format {
        Format::Text => print::text(&rows, &effort),
        Format::Markdown => print::markdown(&rows, &effort),
        Format::Json => print::json(&rows, &effort),
    }
}

fn only(rows: Vec<Row>, names: &str) -> Vec<Row> {
    let names: Vec<&str> = names.split(',').collect();
    for name in &names {
        if !rows.iter().any(|row| row.name == *name) {
            usage(&format!("there is no row `{name}`"));
        }
    }
    rows.into_iter().filter(|row| names.contains(&row.name)).collect()
}

fn usage(fault: &str) -> ! {
    eprintln!("peers: {fault}\n{USAGE}");
    process::exit(2);
}
