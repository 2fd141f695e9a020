//! `procpool health`.

use std::io::{self, Write};

use procpool_daemon::Error;
use procpool_daemon::job::Level;
use procpool_daemon::protocol::{Health, Phase, Request, Response};
use serde_json::json;

use super::control::{queue_json, queue_line};
use super::{args, with_daemon};
use crate::exit_code;
use crate::report::Unwritable;

/// All of `procpool health`; answers the exit code.
pub(crate) fn health(args: &args::Health) -> anyhow::Result<u8> {
    with_daemon(&args.socket, |client| {
        let health = match client.request(&Request::Health)? {
            Response::Health(health) => health,
            other => return Err(Error::unexpected(&other)),
        };
        let text = if args.json { as_json(&health) } else { for_people(&health) };
        Ok(match io::stdout().lock().write_all(text.as_bytes()) {
            Ok(()) => exit_code::SUCCESS,
            Err(error) => Unwritable::Stdout(error).say(),
        })
    })
}

fn as_json(health: &Health) -> String {
    let ended: serde_json::Map<_, _> =
        health.ended.iter().map(|(word, count)| (word.clone(), json!(count))).collect();
    let object = json!({
        "version": health.version,
        "pid": health.pid,
        "level": level_word(health.level),
        "phase": phase_word(health.phase),
        "up_seconds": health.up.as_secs(),
        "jobs": health.jobs,
        "jobs_max": health.jobs_max,
        "ended": ended,
        "clients": health.clients,
        "waits": health.waits,
        "under_way": health.under_way,
        "queues": health.queues.iter().map(queue_json).collect::<Vec<_>>(),
    });
    format!("{object}\n")
}

fn for_people(health: &Health) -> String {
    let mut text = format!(
        "procpool {} (process {}): {}, up {} s, kept over a crash of: {}\n\
         {} jobs of at most {}; {} clients, {} waits, {} requests under way\n",
        health.version,
        health.pid,
        phase_word(health.phase),
        health.up.as_secs(),
        match health.level {
            Level::Machine => "the machine",
            Level::Process => "the process",
            Level::Memory => "nothing",
        },
        health.jobs,
        health.jobs_max,
        health.clients,
        health.waits,
        health.under_way,
    );
    for (word, count) in &health.ended {
        text += &format!("{count} {word}\n");
    }
    for queue in &health.queues {
        text += &format!("queue {}\n", queue_line(queue));
    }
    text
}

fn level_word(level: Level) -> &'static str {
    match level {
        Level::Machine => "machine",
        Level::Process => "process",
        Level::Memory => "memory",
    }
}

fn phase_word(phase: Phase) -> &'static str {
    match phase {
        Phase::Serving => "serving",
        Phase::Draining => "draining",
        Phase::Stopping => "stopping",
    }
}
