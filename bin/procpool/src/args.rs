//! The flags: what they are called, what they mean, which values make sense. No behaviour.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum, value_parser};
use clap_complete::Shell;
use procpool_daemon::quantity::{parse_duration, parse_size};
use regex::bytes::{Regex, RegexBuilder};

use crate::daemon::args as daemon;
use crate::halt::Halt;
use crate::progress::Show;

const EXIT_CODES: &str = "\
Exit codes: 0 all jobs succeeded, 1-100 so many failed, 101 more failed, 102 wrong usage, \
103 no input, 104 input not readable, 105 output not writable, 106 workers cannot be started, \
107 the daemon's journal failed, 108 its state directory is taken, 109 its journal is damaged, \
110 no daemon answers, 111 the daemon refused, \
127 command or worker program not found, 130 interrupted, 141 output closed by its reader.

Ctrl-C or SIGTERM: the first starts nothing new and finishes what runs, the second stops what runs, \
the third kills it.";

/// Crash-isolated batch work: every job in a process of its own.
#[derive(Debug, Parser)]
#[command(name = "procpool", version, after_help = EXIT_CODES, subcommand_required = true, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The command line of `run`, without the other subcommands.
#[derive(Debug, Parser)]
#[command(name = "procpool")]
pub(crate) struct RunAlone {
    #[command(subcommand)]
    pub(crate) command: RunCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum RunCommand {
    Run(Run),
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Run(Run),
    Call(Call),
    Tasks(Tasks),
    Replay(Replay),
    Daemon(daemon::Daemon),
    Submit(daemon::Submit),
    Status(daemon::Status),
    Wait(daemon::Wait),
    Result(daemon::Result),
    Logs(daemon::Logs),
    Cancel(daemon::Cancel),
    Abort(daemon::Abort),
    Top(daemon::Top),
    Ping(daemon::Ping),
    Stop(daemon::Stop),
    Retry(daemon::Retry),
    Forget(daemon::Forget),
    Queue(daemon::Queue),
    Drain(daemon::Drain),
    Health(daemon::Health),
    Completions(Completions),
    Man(Man),
}

/// Run a command once for each input.
///
/// The inputs stand after `:::`, or come one a line from standard input or a file. In COMMAND and ARG,
/// `{}` is the input, `{.}` the input without its extension, `{/}` its last path component, `{//}` its
/// directory, `{/.}` its last component without extension, `{#}` the number of the job and `{%}` its slot,
/// both from 1. If there is none of them, the input is the last argument. No shell is involved, unless
/// there is `--shell`.
///
/// Several sources (`:::` again, `:::: FILE...`, `-a` again) are multiplied, the last varying fastest;
/// `:::+` and `::::+` pair a source with the one before it. `{1}`, `{2}`, `{-1}` (the last), `{1.}`, `{2/}` and so
/// on are the values of one source, or with `--colsep` the columns of a line; `{}` is all of them.
///
/// A job's output is printed when it has ended, its standard output and then its standard error, never
/// mixed with another's. Commands read nothing from standard input.
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct Run {
    #[command(flatten)]
    pub(crate) settings: Settings,

    #[command(flatten)]
    pub(crate) sources: Sources,

    /// Give the words as one line to /bin/sh; what fills placeholders is quoted, so these must not stand
    /// between quotes
    #[arg(long)]
    pub(crate) shell: bool,

    /// Print each job's input and a tab before each of its lines
    #[arg(long, conflicts_with = "json")]
    pub(crate) tag: bool,

    /// Print lines as they come, not jobs as they end. Lines of several jobs are mixed, but whole
    #[arg(long, visible_alias = "lb", conflicts_with_all = ["json", "keep_order", "results"])]
    pub(crate) line_buffer: bool,

    /// Print what would be run, a line each, as for a shell, and run nothing
    #[arg(long, alias = "dry-run")]
    pub(crate) no_run: bool,

    /// The command, its arguments, and the inputs after `:::`
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND [ARG]... [::: INPUT]")]
    pub(crate) words: Vec<OsString>,
}

/// Where `run` takes its inputs from.
#[derive(Debug, Args)]
pub(crate) struct Sources {
    /// Read inputs from FILE, one a line (`-` is standard input); several are multiplied
    #[arg(short = 'a', long = "arg-file", value_name = "FILE")]
    pub(crate) arg_file: Vec<PathBuf>,

    /// Inputs in files end with a zero byte, not with the line
    #[arg(short = '0', long)]
    pub(crate) null: bool,

    /// Split each input into columns where this regular expression (or text) matches
    #[arg(short = 'C', long, value_name = "REGEX", value_parser = parse_colsep)]
    pub(crate) colsep: Option<Regex>,
}

/// Call a registered task once for each line of JSON.
///
/// TASK is a function that the worker program has registered with `#[procpool::task]`; `procpool tasks`
/// lists them. Each line is its argument, each result is printed as one line of JSON. An `Err` that a
/// task returns is a result like any other. Lines of nothing but white space are skipped.
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct Call {
    #[command(flatten)]
    pub(crate) settings: Settings,

    #[command(flatten)]
    pub(crate) worker: Worker,

    /// The task's name, as `procpool tasks` lists it
    pub(crate) task: String,

    /// Read the lines from FILE instead of standard input (`-`)
    pub(crate) file: Option<PathBuf>,
}

/// List the tasks that a worker program has registered.
///
/// One a line: name, signature, fingerprint. The fingerprint changes with the name or the signature.
#[derive(Debug, Args)]
pub(crate) struct Tasks {
    #[command(flatten)]
    pub(crate) worker: Worker,

    /// Print each task as an object of JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Run a job again that was kept by `--capsules`.
///
/// It is run alone, in the foreground, in its directory and with its environment, and without limits. A
/// command takes the place of this program; a task is called in a worker, and its result is printed.
#[derive(Debug, Args)]
pub(crate) struct Replay {
    /// The file
    pub(crate) capsule: PathBuf,

    /// Run it under a debugger
    #[arg(long, value_name = "NAME")]
    pub(crate) debugger: Option<Debugger>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Debugger {
    Gdb,
    Lldb,
}

/// Print the completions of this program for a shell.
#[derive(Debug, Args)]
pub(crate) struct Completions {
    pub(crate) shell: Shell,
}

/// Print the manual page, of this program or of a subcommand, as man(1) reads it.
#[derive(Debug, Args)]
pub(crate) struct Man {
    pub(crate) subcommand: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Worker {
    /// The program that has the tasks: one whose main begins with `procpool::init()`
    #[arg(long = "worker", value_name = "PROGRAM")]
    pub(crate) program: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct Settings {
    /// Run at most N jobs at a time [default: the number of CPUs]
    #[arg(short = 'j', long, value_name = "N", value_parser = value_parser!(u16).range(1..=4096))]
    pub(crate) jobs: Option<u16>,

    /// Print output in the order of the inputs, not of completion
    #[arg(short = 'k', long)]
    pub(crate) keep_order: bool,

    /// Stop a job, with all that it has started, when it runs longer, as in 30s, 500ms, 1.5m, 2h;
    /// without a unit: seconds
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub(crate) timeout: Option<Duration>,

    /// Stop a job when it has used more CPU time. Of a command each process counts by itself, in whole
    /// seconds, and is ended by SIGXCPU
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub(crate) cpu_timeout: Option<Duration>,

    /// How much memory each slot may have, with all that its job starts, as in 500M, 2G. What needs more is
    /// killed, or gets none, as this machine allows
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(crate) memory: Option<u64>,

    /// Write a line of JSON to FILE for each job that has ended, once its output is printed. FILE is begun
    /// anew; `--resume` goes on with one
    #[arg(long, value_name = "FILE")]
    pub(crate) joblog: Option<PathBuf>,

    /// Skip the jobs that FILE, a joblog, has as ended, and add those that are run to it (or to
    /// `--joblog`). A job is known by its input
    #[arg(long, value_name = "FILE")]
    pub(crate) resume: Option<PathBuf>,

    /// Skip the jobs that have succeeded only: run those that failed again
    #[arg(long)]
    pub(crate) resume_failed: bool,

    /// Keep what each job prints, and how it ended, in files: DIR/SEQ/stdout, DIR/SEQ/stderr (of a call:
    /// DIR/SEQ/result.json) and DIR/SEQ/verdict.json, SEQ being the number of its input
    #[arg(long, value_name = "DIR")]
    pub(crate) results: Option<PathBuf>,

    /// Print an object of JSON for each job: the fields of the joblog and what it printed
    #[arg(long)]
    pub(crate) json: bool,

    /// Write a page of HTML to FILE at the end: summary, timeline, run times, failed and slowest jobs
    #[arg(long, value_name = "FILE")]
    pub(crate) report: Option<PathBuf>,

    /// Write a trace to FILE, for chrome://tracing or ui.perfetto.dev
    #[arg(long, value_name = "FILE")]
    pub(crate) trace: Option<PathBuf>,

    /// Keep each job that died, panicked or timed out in DIR/SEQ.json, for `procpool replay`. The
    /// environment is in it, so only you can read it
    #[arg(long, value_name = "DIR")]
    pub(crate) capsules: Option<PathBuf>,

    /// How far the batch is, on standard error
    #[arg(long, value_name = "HOW", value_enum, default_value_t = Show::Auto)]
    pub(crate) progress: Show,

    /// Stop early: now (stopping what runs) or soon (finishing it), when so many jobs, or so many percent of
    /// all, have failed, succeeded or ended; as in now,fail=1 or soon,fail=10% or now,success=1
    #[arg(long, value_name = "WHEN,WHY=N[%]")]
    pub(crate) halt: Option<Halt>,

    /// Let so much time pass between the starts of two jobs
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub(crate) delay: Option<Duration>,

    /// Start nothing while less memory is available, as in 500M, 1.5G
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(crate) memfree: Option<u64>,

    /// Run with a nice value that is N more (see nice(1))
    #[arg(long, value_name = "N", value_parser = value_parser!(u8).range(0..=39))]
    pub(crate) nice: Option<u8>,

    /// Set an environment variable for the jobs; may be given again
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_variable)]
    pub(crate) env: Vec<(OsString, OsString)>,

    /// Run the jobs in this directory
    #[arg(long, visible_alias = "wd", value_name = "DIR")]
    pub(crate) workdir: Option<PathBuf>,

    /// Run a job that failed up to N times more; the last attempt counts, and it alone is printed. A
    /// job that reached its time limit is not run again; `call` retries only tasks that killed their
    /// worker
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) retries: u32,
}

pub(crate) fn parse_variable(text: &str) -> Result<(OsString, OsString), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.into(), value.into())),
        _ => Err("it has the form NAME=VALUE".into()),
    }
}

/// Over bytes: inputs need not be UTF-8.
fn parse_colsep(pattern: &str) -> Result<Regex, String> {
    match RegexBuilder::new(pattern).unicode(false).build() {
        Ok(regex) if regex.is_match(b"") => Err("it matches nothing at all, so everywhere".into()),
        Ok(regex) => Ok(regex),
        Err(regex::Error::Syntax(message)) => {
            Err(message.lines().last().unwrap_or("not a regular expression").trim().into())
        }
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_have_names() {
        assert_eq!(parse_variable("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert_eq!(parse_variable("a="), Ok(("a".into(), "".into())));
        assert!(parse_variable("=b").is_err() && parse_variable("a").is_err());
    }

    #[test]
    fn the_flags_are_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
