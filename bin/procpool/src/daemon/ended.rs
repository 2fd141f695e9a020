//! A job's end as the shell sees it: what it printed, and the exit code.

use std::io::{self, Write};
use std::time::Duration;

use procpool::executor::Verdict;
use procpool_daemon::job::{CommandEnd, Ending, JobId, Outcome, State};
use procpool_daemon::protocol::{Request, Response, Stream};
use procpool_daemon::{Client, Error};
use serde_json::{Value, json};

use crate::exit_code;
use crate::report::{self, Unwritable};

/// How a job's end is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// As what it has printed, or returned.
    Plain,
    /// As an object of JSON.
    Json,
}

impl Form {
    /// As `--json` is given or not.
    pub(super) fn of(json: bool) -> Form {
        if json { Form::Json } else { Form::Plain }
    }
}

/// Waits for a job's end, prints what it has printed, and says what went wrong; answers the exit code.
pub(super) fn print(client: &Client, id: JobId, form: Form) -> Result<u8, Error> {
    let (state, ending) = match client.request(&Request::Result(id))? {
        Response::Ending(_, state, ending) => (state, *ending),
        other => return Err(Error::unexpected(&other)),
    };
    let printed = match &ending.outcome {
        _ if form == Form::Json => {
            io::stdout().lock().write_all(format!("{}\n", json(id, state, &ending)).as_bytes())
        }
        Outcome::Json(json) => io::stdout().lock().write_all(format!("{json}\n").as_bytes()),
        Outcome::Binary(bytes) => io::stdout().lock().write_all(bytes),
        _ => match log(client, id, Stream::Stdout, so_far, &mut io::stdout().lock())? {
            Ok(()) => {
                // If standard error is gone, nobody can be told.
                let _ = log(client, id, Stream::Stderr, so_far, &mut io::stderr().lock())?;
                Ok(())
            }
            Err(error) => Err(error),
        },
    };
    if let Err(error) = printed.and_then(|()| io::stdout().lock().flush()) {
        return Ok(Unwritable::Stdout(error).say());
    }
    if state != State::Succeeded {
        report::say(format_args!("job {id}: {}", describe(state, &ending)));
    }
    Ok(code(state, &ending))
}

fn json(id: JobId, state: State, ending: &Ending) -> Value {
    let millis = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
    let mut object = json!({
        "id": id.0,
        "state": state.word(),
        "attempts": ending.attempts,
        "queued_ms": millis(ending.queued),
        "ran_ms": millis(ending.ran),
        "cpu_ms": ending.cpu.map(millis),
        "peak_rss": ending.peak_rss,
        "pid": ending.pid,
    });
    match &ending.outcome {
        Outcome::Json(text) => object["value"] = serde_json::from_str(text).unwrap_or(Value::Null),
        Outcome::Command(CommandEnd::Exit(code)) => object["exit"] = json!(code),
        Outcome::Command(CommandEnd::Signal(signal, _)) => object["signal"] = json!(signal),
        // What is binary is for the program that submitted it: nobody else knows its type.
        _ => {}
    }
    if state != State::Succeeded {
        object["error"] = json!(describe(state, ending));
    }
    object
}

/// Asks for what a command has said from there on.
pub(super) type Ask = fn(JobId, Stream, u64) -> Request;

/// Up to now.
pub(super) fn so_far(id: JobId, stream: Stream, offset: u64) -> Request {
    Request::Log { id, stream, offset }
}

/// As soon as it says something.
pub(super) fn follow(id: JobId, stream: Stream, offset: u64) -> Request {
    Request::Follow { id, stream, offset }
}

/// Prints what a command has said, piece by piece, up to one that is empty.
pub(super) fn log(
    client: &Client,
    id: JobId,
    stream: Stream,
    ask: Ask,
    to: &mut impl Write,
) -> Result<io::Result<()>, Error> {
    let mut offset = 0;
    loop {
        let bytes = match client.request(&ask(id, stream, offset))? {
            Response::Log { bytes } => bytes,
            other => return Err(Error::unexpected(&other)),
        };
        if bytes.is_empty() {
            return Ok(to.flush());
        }
        if let Err(error) = to.write_all(&bytes).and_then(|()| to.flush()) {
            return Ok(Err(error));
        }
        offset += bytes.len() as u64;
    }
}

fn code(state: State, ending: &Ending) -> u8 {
    match (state, &ending.outcome) {
        (State::Succeeded, _) => exit_code::SUCCESS,
        (_, Outcome::Command(CommandEnd::Exit(code))) => (*code & 0xff) as u8,
        (_, Outcome::Command(CommandEnd::Signal(signal, _))) => (128 + *signal) as u8,
        (_, Outcome::Command(CommandEnd::NotStarted(_))) => exit_code::NOT_FOUND,
        _ => exit_code::of_failed(1),
    }
}

fn describe(state: State, ending: &Ending) -> String {
    match &ending.outcome {
        Outcome::Command(CommandEnd::Exit(code)) => format!("the command failed: exit code {code}"),
        Outcome::Command(CommandEnd::Signal(signal, _)) => {
            match nix::sys::signal::Signal::try_from(*signal) {
                Ok(signal) => format!("the command died: {}", signal.as_str()),
                Err(_) => format!("the command died: signal {signal}"),
            }
        }
        Outcome::Command(CommandEnd::NotStarted(why)) => why.clone(),
        Outcome::Error(verdict) => verdict_text(state, verdict),
        Outcome::Json(_) | Outcome::Binary(_) | Outcome::Nothing => state.word().replace('_', " "),
    }
}

fn verdict_text(state: State, verdict: &Verdict) -> String {
    match verdict {
        Verdict::Panicked { message, location, .. } => {
            format!(
                "it panicked at {}: {message}",
                location.as_deref().unwrap_or("an unknown place")
            )
        }
        Verdict::Died { status, phase, .. } => format!("its worker died: {status} {phase}"),
        Verdict::TimedOut { after, .. } => format!("it timed out after {after:?}"),
        Verdict::Unregistered(_) => "the worker program has no such task".into(),
        Verdict::Broken(why) => why.clone(),
        Verdict::Codec { message, .. } => {
            format!("its argument, or its result, does not fit: {message}")
        }
        _ => state.word().replace('_', " "),
    }
}
