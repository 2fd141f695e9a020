//! The program `procpool`, as a library: so that the tests can build it again.
//!
//! It uses what `procpool` exports and nothing else: its workers are this program, executed again, or with
//! `--worker` another one that calls `procpool::init()`. A command is a job like any other.

mod args;
mod exit_code;

mod batch;
mod call;
mod run;
mod work;

mod daemon;

mod books;
mod joblog;
mod output;
mod page;
mod record;
mod results;
mod trace;

mod capsule;
mod replay;

mod feed;
mod files;
mod input;
mod source;

mod interrupt;
mod program;
mod progress;
mod report;
mod settings;

mod generate;

mod gate;
mod halt;
mod turns;

mod capture;
mod command;
mod lines;
mod quote;
mod spill;
mod template;
mod text;

use std::env;
use std::iter;
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;

/// All of `main` but its first line.
pub fn main_impl() -> ExitCode {
    interrupt::respect_nohup();
    interrupt::outlive_file_size_limit();
    let code = match typed() {
        Ok(cli) => obey(cli.command),
        Err(error) => explain(&error),
    };
    ExitCode::from(code)
}

/// What was typed. To define all subcommands takes longer than to read one of them: so `run`, which may stand in a loop, is
/// read by its own definition, and only what is wrong with it, or help, is a matter for all.
fn typed() -> Result<args::Cli, clap::Error> {
    if env::args_os().nth(1).is_some_and(|word| word == "run")
        && let Ok(args::RunAlone { command: args::RunCommand::Run(run) }) =
            args::RunAlone::try_parse()
    {
        return Ok(args::Cli { command: args::Command::Run(run) });
    }
    args::Cli::try_parse()
}

fn obey(command: args::Command) -> u8 {
    let result = match command {
        args::Command::Run(args) => run::run(args),
        args::Command::Call(args) => call::call(args),
        args::Command::Tasks(args) => call::tasks(&args),
        args::Command::Replay(args) => replay::replay(&args),
        args::Command::Daemon(args) => daemon::serve::serve(args),
        args::Command::Submit(args) => daemon::submit::submit(args),
        args::Command::Status(args) => daemon::show::status(&args),
        args::Command::Wait(args) => daemon::show::wait(&args),
        args::Command::Result(args) => daemon::show::result(&args),
        args::Command::Logs(args) => daemon::show::logs(&args),
        args::Command::Cancel(args) => daemon::control::cancel(&args),
        args::Command::Abort(args) => daemon::control::abort(&args),
        args::Command::Top(args) => daemon::top::top(&args),
        args::Command::Ping(args) => daemon::control::ping(&args),
        args::Command::Stop(args) => daemon::control::stop(&args),
        args::Command::Retry(args) => daemon::control::retry(&args),
        args::Command::Forget(args) => daemon::control::forget(&args),
        args::Command::Queue(args) => daemon::control::queue(&args),
        args::Command::Drain(args) => daemon::control::drain(&args),
        args::Command::Health(args) => daemon::health::health(&args),
        args::Command::Completions(args) => Ok(generate::completions(args.shell)),
        args::Command::Man(args) => generate::manual(args.subcommand.as_deref()),
    };
    result.unwrap_or_else(|error| {
        report::say(format_args!("{error:#}"));
        exit_code::SYSTEM
    })
}

/// Help is printed as it is, a wrong usage as one line.
fn explain(error: &clap::Error) -> u8 {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            // A closed standard output has no reader to disappoint.
            let _ = error.print();
            exit_code::SUCCESS
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = error.print();
            exit_code::USAGE
        }
        _ => {
            let text = error.render().to_string();
            let message: Vec<&str> = text.lines().map(str::trim).collect();
            let first = message.split(|line| line.is_empty()).next().unwrap_or(&[]);
            let tips = message.iter().filter(|line| line.starts_with("tip: "));
            let first = first.join(" ");
            let first = first.strip_prefix("error: ").unwrap_or(&first);
            let parts: Vec<&str> = iter::once(first).chain(tips.copied()).collect();
            report::say(format_args!("{} (see `procpool --help`)", parts.join("; ")));
            exit_code::USAGE
        }
    }
}
