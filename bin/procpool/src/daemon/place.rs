//! Where the daemon is, if nobody says so.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::Context;
use procpool_daemon::server::socket_path;

use super::args::Socket;

/// The state directory: as it was given, or the user's.
pub(super) fn state(given: Option<&Path>) -> anyhow::Result<PathBuf> {
    if let Some(path) = given {
        return Ok(path.to_owned());
    }
    let whole = |name: &str| env::var_os(name).map(PathBuf::from).filter(|dir| dir.is_absolute());
    whole("XDG_STATE_HOME")
        .or_else(|| whole("HOME").map(|home| home.join(".local/state")))
        .map(|dir| dir.join("procpool"))
        .context("no HOME to keep a state directory in: say `--state`, or `--socket`")
}

/// The socket of the daemon to talk to.
pub(super) fn socket(given: &Socket) -> anyhow::Result<PathBuf> {
    match &given.socket {
        Some(path) => Ok(path.clone()),
        None => Ok(socket_path(&state(None)?)),
    }
}
