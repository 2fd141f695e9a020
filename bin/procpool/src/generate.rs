//! What is made of the flags themselves: completions for shells, and manual pages.

use std::io::{self, Write};

use clap::{Command, CommandFactory};
use clap_complete::Shell;

use crate::args::Cli;
use crate::exit_code;
use crate::report::Unwritable;

/// `procpool completions SHELL`; answers the exit code.
pub(crate) fn completions(shell: Shell) -> u8 {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "procpool", &mut script);
    print(&script)
}

/// `procpool man [SUBCOMMAND]`; answers the exit code.
pub(crate) fn manual(subcommand: Option<&str>) -> anyhow::Result<u8> {
    let mut command = Cli::command();
    command.build();
    let page = match subcommand {
        None => page(command)?,
        Some(name) => match command.find_subcommand(name) {
            Some(subcommand) => page(subcommand.clone())?,
            None => {
                crate::report::say(format_args!("there is no subcommand `{name}`"));
                return Ok(exit_code::USAGE);
            }
        },
    };
    Ok(print(&page))
}

fn page(command: Command) -> io::Result<Vec<u8>> {
    let mut page = Vec::new();
    clap_mangen::Man::new(command).render(&mut page)?;
    Ok(page)
}

fn print(text: &[u8]) -> u8 {
    let mut out = io::stdout().lock();
    match out.write_all(text).and_then(|()| out.flush()) {
        Ok(()) => exit_code::SUCCESS,
        Err(error) => Unwritable::Stdout(error).say(),
    }
}
