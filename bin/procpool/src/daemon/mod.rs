//! `procpool daemon`, and the subcommands that talk to one.

pub(crate) mod args;
pub(crate) mod control;
pub(crate) mod health;
pub(crate) mod serve;
pub(crate) mod show;
pub(crate) mod submit;
pub(crate) mod top;

mod ended;
mod place;
mod view;

use procpool_daemon::{Client, Error};

use crate::exit_code;
use crate::report;

/// Connects, and does what needs a connection. What goes wrong is said; answers the exit code.
fn with_daemon(
    socket: &args::Socket,
    work: impl FnOnce(&Client) -> Result<u8, Error>,
) -> anyhow::Result<u8> {
    let path = place::socket(socket)?;
    Ok(Client::connect(&path).and_then(|client| work(&client)).unwrap_or_else(|error| say(&error)))
}

/// Says why something cannot be done; answers the exit code.
fn say(error: &Error) -> u8 {
    match std::error::Error::source(error) {
        Some(source) => report::say(format_args!("{error}: {source}")),
        None => report::say(error),
    }
    if error.is_no_daemon() || error.is_protocol() || error.is_lost() {
        exit_code::NO_DAEMON
    } else if error.refusal().is_some() {
        exit_code::REFUSED
    } else if error.is_setting() {
        exit_code::USAGE
    } else if error.is_locked() {
        exit_code::LOCKED
    } else if error.is_damaged() {
        exit_code::DAMAGED
    } else if error.is_journal() {
        exit_code::JOURNAL
    } else {
        exit_code::SYSTEM
    }
}
