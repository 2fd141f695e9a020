//! `procpool submit`.

use std::env;
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path;

use anyhow::Context;
use procpool_daemon::job::{Command, JobSpec, Moment, TaskWork, Terms, Work};
use procpool_daemon::protocol::{Request, Response};
use procpool_daemon::{Client, Error};
use serde::de::IgnoredAny;
use serde_json::json;

use super::ended;
use super::{args, with_daemon};
use crate::exit_code;
use crate::report::{Refusal, Unwritable};
use crate::run::write_through;

/// How much of a command stands in lists.
const TITLE_MAX: usize = 80;

/// All of `procpool submit`; answers the exit code.
pub(crate) fn submit(args: args::Submit) -> anyhow::Result<u8> {
    let spec = match spec(&args)? {
        Ok(spec) => spec,
        Err(refusal) => return Ok(refusal.say()),
    };
    with_daemon(&args.socket, |client| send(client, spec, &args))
}

fn send(client: &Client, spec: JobSpec, args: &args::Submit) -> Result<u8, Error> {
    let id = match client.request(&Request::Submit(spec))? {
        Response::Submitted(id) => id,
        other => return Err(Error::unexpected(&other)),
    };
    if args.wait {
        return ended::print(client, id, ended::Form::of(args.json));
    }
    let line = if args.json { format!("{}\n", json!({ "id": id.0 })) } else { format!("{id}\n") };
    Ok(match write_through(&mut io::stdout().lock(), line.as_bytes()) {
        Ok(()) => exit_code::SUCCESS,
        Err(error) => Unwritable::Stdout(error).say(),
    })
}

fn spec(args: &args::Submit) -> anyhow::Result<Result<JobSpec, Refusal>> {
    let (title, work) = match &args.task {
        Some(task) => match argument(args)? {
            Ok(argument) => {
                let work = TaskWork { task: task.clone(), fingerprint: None, argument };
                (task.clone(), Work::Task(work))
            }
            Err(refusal) => return Ok(Err(refusal)),
        },
        None if args.words.is_empty() => {
            return Ok(Err(Refusal::new(exit_code::USAGE, "there is no command, and no `--task`")));
        }
        None => (title(args), Work::Command(command(args)?)),
    };
    let terms = Terms {
        queue: args.queue.clone(),
        priority: args.priority,
        retries: args.retries,
        timeout: args.timeout,
        not_before: args.at.or_else(|| args.delay.map(|delay| Moment::now().after(delay))),
        after: args.after.clone(),
        key: args.key.clone(),
        ..Terms::new(title)
    };
    Ok(Ok(JobSpec { terms, work }))
}

/// The argument of a task, which has been looked at: what is no JSON is told here and not by the worker.
fn argument(args: &args::Submit) -> anyhow::Result<Result<Vec<u8>, Refusal>> {
    let bytes = match args.words.as_slice() {
        [] => b"null".to_vec(),
        [word] if word == "-" => {
            let mut bytes = Vec::new();
            io::stdin().lock().read_to_end(&mut bytes).context("cannot read standard input")?;
            bytes
        }
        [word] => word.as_bytes().to_vec(),
        _ => {
            let message = "a task has one argument: one word of JSON, or `-`";
            return Ok(Err(Refusal::new(exit_code::USAGE, message)));
        }
    };
    Ok(match serde_json::from_slice::<IgnoredAny>(&bytes) {
        Ok(_) => Ok(bytes),
        Err(error) => Err(Refusal::new(exit_code::USAGE, format!("not JSON: {error}"))),
    })
}

fn command(args: &args::Submit) -> anyhow::Result<Command> {
    let dir = match &args.workdir {
        Some(dir) => path::absolute(dir).context("--workdir")?,
        None => env::current_dir().context("the current directory is gone")?,
    };
    let bytes = |text: &std::ffi::OsString| text.clone().into_vec().into();
    Ok(Command {
        words: args.words.iter().map(bytes).collect(),
        dir: dir.into_os_string().into_vec().into(),
        env: args.env.iter().map(|(name, value)| (bytes(name), bytes(value))).collect(),
    })
}

fn title(args: &args::Submit) -> String {
    let words: Vec<_> = args.words.iter().map(|word| word.to_string_lossy()).collect();
    let mut title = words.join(" ");
    title.truncate(title.floor_char_boundary(TITLE_MAX));
    title
}
