//! `procpool cancel`, `abort`, `retry`, `forget`, `queue`, `drain`, `ping` and `stop`.

use std::io::{self, Write};

use procpool_daemon::job::JobId;
use procpool_daemon::machine::{Gate, QueueInfo, QueueOrder};
use procpool_daemon::protocol::{Cancelled, Request, Response};
use procpool_daemon::{Client, Error};
use serde_json::json;

use super::{args, with_daemon};
use crate::exit_code;
use crate::report::{self, Unwritable};

/// All of `procpool cancel`; answers the exit code.
pub(crate) fn cancel(args: &args::Cancel) -> anyhow::Result<u8> {
    with_daemon(&args.socket, |client| {
        let mut failed = 0;
        for id in &args.ids {
            let why = match client.request(&Request::Cancel(*id))? {
                Response::Cancel(Cancelled::Unstarted) => continue,
                Response::Cancel(Cancelled::Running) => "runs (`procpool abort` stops it)",
                Response::Cancel(Cancelled::Ended) => "has ended",
                other => return Err(Error::unexpected(&other)),
            };
            failed += 1;
            report::say(format_args!("job {id} was not cancelled: it {why}"));
        }
        Ok(exit_code::of_failed(failed))
    })
}

/// All of `procpool abort`; answers the exit code.
pub(crate) fn abort(args: &args::Abort) -> anyhow::Result<u8> {
    with_daemon(&args.socket, |client| {
        for id in &args.ids {
            client.request(&Request::Abort(*id))?;
        }
        for id in &args.ids {
            client.request(&Request::Wait(*id))?;
        }
        Ok(exit_code::SUCCESS)
    })
}

/// All of `procpool ping`; answers the exit code.
pub(crate) fn ping(args: &args::Ping) -> anyhow::Result<u8> {
    with_daemon(&args.socket, |client| {
        let pong = match client.request(&Request::Ping)? {
            Response::Pong(pong) => pong,
            other => return Err(Error::unexpected(&other)),
        };
        let line = if args.json {
            format!("{}\n", json!({ "version": pong.version, "pid": pong.pid }))
        } else {
            format!("procpool {} (process {})\n", pong.version, pong.pid)
        };
        Ok(match io::stdout().lock().write_all(line.as_bytes()) {
            Ok(()) => exit_code::SUCCESS,
            Err(error) => Unwritable::Stdout(error).say(),
        })
    })
}

/// All of `procpool stop`; answers the exit code.
pub(crate) fn stop(args: &args::Stop) -> anyhow::Result<u8> {
    with_daemon(&args.socket, |client| match client.request(&Request::Stop)? {
        Response::Stopping => Ok(exit_code::SUCCESS),
        other => Err(Error::unexpected(&other)),
    })
}

/// All of `procpool retry`; answers the exit code.
pub(crate) fn retry(args: &args::Retry) -> anyhow::Result<u8> {
    with_daemon(&args.socket, |client| each(client, &args.ids, Request::Retry))
}

/// All of `procpool forget`; answers the exit code.
pub(crate) fn forget(args: &args::Forget) -> anyhow::Result<u8> {
    with_daemon(&args.socket, |client| each(client, &args.ids, Request::Forget))
}

/// Asks for something for each of these jobs, and says where it is refused.
fn each(client: &Client, ids: &[JobId], request: fn(JobId) -> Request) -> Result<u8, Error> {
    let mut failed = 0;
    for id in ids {
        match client.request(&request(*id)) {
            Ok(Response::Done) => {}
            Ok(other) => return Err(Error::unexpected(&other)),
            Err(error) if error.refusal().is_some() => {
                failed += 1;
                report::say(error);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(exit_code::of_failed(failed))
}

/// All of `procpool queue`; answers the exit code.
pub(crate) fn queue(args: &args::Queue) -> anyhow::Result<u8> {
    let (socket, name, order) = match &args.order {
        None => return with_daemon(&args.socket, |client| show_queues(client, args.json)),
        Some(args::QueueCommand::Pause { socket, name }) => (socket, name, QueueOrder::Pause),
        Some(args::QueueCommand::Resume { socket, name }) => (socket, name, QueueOrder::Resume),
        Some(args::QueueCommand::Limit { socket, name, limit }) => (socket, name, *limit),
    };
    with_daemon(socket, |client| done(client, &Request::Queue { name: name.clone(), order }))
}

fn done(client: &Client, request: &Request) -> Result<u8, Error> {
    match client.request(request)? {
        Response::Done => Ok(exit_code::SUCCESS),
        other => Err(Error::unexpected(&other)),
    }
}

fn show_queues(client: &Client, json: bool) -> Result<u8, Error> {
    let queues = match client.request(&Request::Queues)? {
        Response::Queues(queues) => queues,
        other => return Err(Error::unexpected(&other)),
    };
    let mut out = io::stdout().lock();
    let shown = queues.iter().try_for_each(|queue| {
        if json {
            writeln!(out, "{}", queue_json(queue))
        } else {
            writeln!(out, "{}", queue_line(queue))
        }
    });
    Ok(match shown {
        Ok(()) => exit_code::SUCCESS,
        Err(error) => Unwritable::Stdout(error).say(),
    })
}

fn gate_word(gate: Gate) -> &'static str {
    match gate {
        Gate::Open => "open",
        Gate::Paused => "paused",
    }
}

/// A queue, for people.
pub(super) fn queue_line(queue: &QueueInfo) -> String {
    let QueueInfo { name, slots, queued, running, gate } = queue;
    let gate = gate_word(*gate);
    format!("{name}  {gate}  {running} of {slots} slots run  {queued} jobs wait")
}

/// A queue, as JSON.
pub(super) fn queue_json(queue: &QueueInfo) -> serde_json::Value {
    let QueueInfo { name, slots, queued, running, gate } = queue;
    let gate = gate_word(*gate);
    json!({ "name": name, "gate": gate, "slots": slots, "queued": queued, "running": running })
}

/// All of `procpool drain`; answers the exit code.
pub(crate) fn drain(args: &args::Drain) -> anyhow::Result<u8> {
    with_daemon(&args.socket, |client| {
        done(client, &Request::Drain)?;
        if args.wait { done(client, &Request::Drained) } else { Ok(exit_code::SUCCESS) }
    })
}
