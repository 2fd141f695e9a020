//! `procpool cancel`, `abort`, `ping` and `stop`.

use std::io::{self, Write};

use procpool_daemon::Error;
use procpool_daemon::protocol::{Cancelled, Request, Response};

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
        let line = format!("procpool {} (process {})\n", pong.version, pong.pid);
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
