//! `procpool daemon`.

use procpool_daemon::config::Config;
use procpool_daemon::server::{Root, Server, Settings};

use super::{args, place, say};
use crate::exit_code;
use crate::report;

/// All of `procpool daemon`; answers the exit code.
pub(crate) fn serve(args: args::Daemon) -> anyhow::Result<u8> {
    let config = match args.config.as_deref().map_or_else(|| Ok(Config::default()), Config::read) {
        Ok(config) => config,
        Err(error) => return Ok(say(&error)),
    };
    if args.check {
        return Ok(exit_code::SUCCESS);
    }
    let root = if args.allow_root { Root::Allowed } else { Root::Refused };
    let settings = Settings {
        config,
        config_path: args.config,
        state: place::state(args.state.as_deref())?,
        socket: args.socket,
        root,
    };
    let server = match Server::open(settings) {
        Ok(server) => server,
        Err(error) => return Ok(say(&error)),
    };
    report::say(format_args!("listening at `{}`", server.socket().display()));
    Ok(match server.serve() {
        Ok(()) => exit_code::SUCCESS,
        Err(error) => say(&error),
    })
}
