//! The flags of the daemon and of what talks to it.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use procpool_daemon::job::{JobId, Moment};
use procpool_daemon::machine::QueueOrder;
use procpool_daemon::quantity::parse_duration;

use crate::args::parse_variable;

/// Where the daemon is.
#[derive(Debug, Args)]
pub(crate) struct Socket {
    /// The daemon's socket [default: its own; see `procpool daemon --help`]
    #[arg(long, value_name = "PATH", env = "PROCPOOL_SOCKET", hide_env_values = true)]
    pub(crate) socket: Option<PathBuf>,
}

/// Run the daemon: a durable queue of jobs, in the foreground.
///
/// What it has acknowledged it keeps, whatever becomes of it. SIGTERM or Ctrl-C starts nothing new, finishes what
/// runs and ends; the second one stops what runs.
///
/// Any program of the same user may give it jobs, and nobody else.
#[derive(Debug, Args)]
pub(crate) struct Daemon {
    /// The configuration, a file of TOML
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,

    /// Where jobs are kept [default: $XDG_STATE_HOME/procpool, or ~/.local/state/procpool]
    #[arg(long, value_name = "DIR")]
    pub(crate) state: Option<PathBuf>,

    /// Where clients come to [default: `socket` in the state directory]
    #[arg(long, value_name = "PATH", env = "PROCPOOL_SOCKET", hide_env_values = true)]
    pub(crate) socket: Option<PathBuf>,

    /// Say whether the configuration makes sense, and do nothing
    #[arg(long)]
    pub(crate) check: bool,

    /// Run although this is root, whose clients can then run anything as root
    #[arg(long)]
    pub(crate) allow_root: bool,
}

/// Give the daemon a job, and print its number.
///
/// The job is a command, run in the current directory with the daemon's environment, or with `--task` a registered
/// task of the queue's worker program, called with JSON.
#[derive(Debug, Args)]
pub(crate) struct Submit {
    #[command(flatten)]
    pub(crate) socket: Socket,

    /// The queue
    #[arg(long, short = 'q', value_name = "NAME", default_value = "default")]
    pub(crate) queue: String,

    /// Jobs of higher priority start first [default: the queue's, or 0]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) priority: Option<i32>,

    /// Run it only if these jobs have succeeded
    #[arg(long, value_name = "ID", value_parser = parse_id, value_delimiter = ',')]
    pub(crate) after: Vec<JobId>,

    /// Run it so much later
    #[arg(long = "in", value_name = "DURATION", value_parser = parse_duration)]
    pub(crate) delay: Option<Duration>,

    /// Run it at this time, or as soon after it as it can be: `2026-11-26T03:00`, here or with `Z` or `+01:00`
    #[arg(long, value_name = "TIME", value_parser = parse_moment, conflicts_with = "delay")]
    pub(crate) at: Option<Moment>,

    /// Run it up to N times more if it fails, dies, or is interrupted. With 0 it is started at most once
    /// [default: the queue's, or 0]
    #[arg(long, value_name = "N")]
    pub(crate) retries: Option<u32>,

    /// Stop it when it runs longer [default: the queue's, or no limit]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub(crate) timeout: Option<Duration>,

    /// The same key and the same job are one job, whenever it is to run; another job with that key is refused
    #[arg(long, value_name = "KEY")]
    pub(crate) key: Option<String>,

    /// Run a command in this directory
    #[arg(long, visible_alias = "wd", value_name = "DIR")]
    pub(crate) workdir: Option<PathBuf>,

    /// Set an environment variable for a command; may be given again
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_variable)]
    pub(crate) env: Vec<(OsString, OsString)>,

    /// Wait for its end, print what it has printed, and end as it did
    #[arg(long)]
    pub(crate) wait: bool,

    /// Print an object of JSON: the number, or with `--wait` how it ended
    #[arg(long)]
    pub(crate) json: bool,

    /// Call this task. The one word that may follow is its argument as JSON, or `-` to read that from standard input
    #[arg(long, value_name = "NAME")]
    pub(crate) task: Option<String>,

    /// The command and its arguments, or the task's argument
    #[arg(trailing_var_arg = true, value_name = "COMMAND [ARG]...")]
    pub(crate) words: Vec<OsString>,
}

/// Show jobs: these, or all.
#[derive(Debug, Args)]
pub(crate) struct Status {
    #[command(flatten)]
    pub(crate) socket: Socket,

    /// Print each job as an object of JSON
    #[arg(long)]
    pub(crate) json: bool,

    #[arg(value_name = "ID", value_parser = parse_id)]
    pub(crate) ids: Vec<JobId>,
}

/// Wait until these jobs have ended. The exit code is the number of those that did not succeed.
#[derive(Debug, Args)]
pub(crate) struct Wait {
    #[command(flatten)]
    pub(crate) socket: Socket,

    /// Print each job as an object of JSON
    #[arg(long)]
    pub(crate) json: bool,

    #[arg(required = true, value_name = "ID", value_parser = parse_id)]
    pub(crate) ids: Vec<JobId>,
}

/// Print a job's result, waiting for it: a task's as JSON, what a command wrote to standard output.
///
/// Ends as the job did, like `submit --wait`.
#[derive(Debug, Args)]
pub(crate) struct Result {
    #[command(flatten)]
    pub(crate) socket: Socket,

    /// Print an object of JSON: how it ended, with the result
    #[arg(long)]
    pub(crate) json: bool,

    #[arg(value_name = "ID", value_parser = parse_id)]
    pub(crate) id: JobId,
}

/// Print what a command has written so far, to both of its streams.
#[derive(Debug, Args)]
pub(crate) struct Logs {
    #[command(flatten)]
    pub(crate) socket: Socket,

    /// Go on until the job has ended, and print what it writes as it does
    #[arg(long, short = 'f')]
    pub(crate) follow: bool,

    #[arg(value_name = "ID", value_parser = parse_id)]
    pub(crate) id: JobId,
}

/// Cancel jobs that have not started. The exit code is the number of those that had.
#[derive(Debug, Args)]
pub(crate) struct Cancel {
    #[command(flatten)]
    pub(crate) socket: Socket,

    #[arg(required = true, value_name = "ID", value_parser = parse_id)]
    pub(crate) ids: Vec<JobId>,
}

/// Stop jobs, whether they run or not, and wait until they have ended.
#[derive(Debug, Args)]
pub(crate) struct Abort {
    #[command(flatten)]
    pub(crate) socket: Socket,

    #[arg(required = true, value_name = "ID", value_parser = parse_id)]
    pub(crate) ids: Vec<JobId>,
}

/// Look on: queues, running jobs and the last failures, on the whole terminal.
///
/// A job is selected with the arrow keys; l shows its log, x stops it, q leaves.
#[derive(Debug, Args)]
pub(crate) struct Top {
    #[command(flatten)]
    pub(crate) socket: Socket,
}

/// Ask whether the daemon is there.
#[derive(Debug, Args)]
pub(crate) struct Ping {
    #[command(flatten)]
    pub(crate) socket: Socket,

    /// Print it as an object of JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Have the daemon start nothing new, finish what runs, and end.
#[derive(Debug, Args)]
pub(crate) struct Stop {
    #[command(flatten)]
    pub(crate) socket: Socket,
}

/// Run jobs once more that have ended, however they did. The exit code is the number of those that are not.
///
/// They keep their numbers and histories. What they depended on is not looked at again.
#[derive(Debug, Args)]
pub(crate) struct Retry {
    #[command(flatten)]
    pub(crate) socket: Socket,

    #[arg(required = true, value_name = "ID", value_parser = parse_id)]
    pub(crate) ids: Vec<JobId>,
}

/// Forget jobs that have ended, with all that they left. The exit code is the number of those that are not.
#[derive(Debug, Args)]
pub(crate) struct Forget {
    #[command(flatten)]
    pub(crate) socket: Socket,

    #[arg(required = true, value_name = "ID", value_parser = parse_id)]
    pub(crate) ids: Vec<JobId>,
}

/// Show the queues, or set something of one, which the daemon keeps.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Queue {
    #[command(flatten)]
    pub(crate) socket: Socket,

    /// Print each queue as an object of JSON
    #[arg(long)]
    pub(crate) json: bool,

    #[command(subcommand)]
    pub(crate) order: Option<QueueCommand>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum QueueCommand {
    /// Start no more jobs of a queue; those that run go on
    Pause {
        #[command(flatten)]
        socket: Socket,
        #[arg(value_name = "NAME")]
        name: String,
    },
    /// Start jobs of a queue again
    Resume {
        #[command(flatten)]
        socket: Socket,
        #[arg(value_name = "NAME")]
        name: String,
    },
    /// Run at most N jobs of a queue at a time; `default` is what the configuration says
    Limit {
        #[command(flatten)]
        socket: Socket,
        #[arg(value_name = "NAME")]
        name: String,
        #[arg(value_name = "N", value_parser = parse_limit)]
        limit: QueueOrder,
    },
}

/// Have the daemon start no more jobs; it takes jobs all the same, and keeps them for the next one.
#[derive(Debug, Args)]
pub(crate) struct Drain {
    #[command(flatten)]
    pub(crate) socket: Socket,

    /// Wait until nothing runs any more
    #[arg(long)]
    pub(crate) wait: bool,
}

/// Show how the daemon is.
#[derive(Debug, Args)]
pub(crate) struct Health {
    #[command(flatten)]
    pub(crate) socket: Socket,

    /// Print it as an object of JSON
    #[arg(long)]
    pub(crate) json: bool,
}

fn parse_limit(text: &str) -> std::result::Result<QueueOrder, String> {
    match text.parse() {
        _ if text == "default" => Ok(QueueOrder::Limit(None)),
        Ok(slots) => Ok(QueueOrder::Limit(Some(slots))),
        Err(_) => Err("a number, or `default`".into()),
    }
}

/// A moment by the calendar: with an offset, or by the clock of this place.
fn parse_moment(text: &str) -> std::result::Result<Moment, String> {
    let stamp = match text.parse::<jiff::Timestamp>() {
        Ok(stamp) => stamp,
        Err(_) => text
            .parse::<jiff::civil::DateTime>()
            .and_then(|local| local.to_zoned(jiff::tz::TimeZone::system()))
            .map_err(|error| error.to_string())?
            .timestamp(),
    };
    u64::try_from(stamp.as_millisecond()).map(Moment).map_err(|_| "it is before 1970".into())
}

fn parse_id(text: &str) -> std::result::Result<JobId, String> {
    match text.parse() {
        Ok(number) if number > 0 => Ok(JobId(number)),
        _ => Err("a job has a number, from 1".into()),
    }
}
