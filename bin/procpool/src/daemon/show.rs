//! `procpool status`, `wait`, `result` and `logs`.

use std::io::{self, Write};
use std::thread;

use procpool_daemon::job::{JobId, Record, State};
use procpool_daemon::protocol::{PAGE_MAX, Refusal, Request, Response, Stream};
use procpool_daemon::{Client, Error};
use serde_json::json;

use super::{args, ended, view, with_daemon};
use crate::exit_code;
use crate::report::{self, Unwritable};

/// All of `procpool status`; answers the exit code.
pub(crate) fn status(args: &args::Status) -> anyhow::Result<u8> {
    with_daemon(&args.socket, |client| {
        let mut missing = 0;
        let mut show = |record: &Record| {
            let line = if args.json { view::json(record) } else { view::line(record) };
            writeln!(io::stdout().lock(), "{line}")
        };
        let shown = if args.ids.is_empty() {
            all(client, &mut show)?
        } else {
            these(client, &args.ids, &mut show, &mut missing)?
        };
        Ok(match shown.and_then(|()| io::stdout().lock().flush()) {
            Ok(()) if missing > 0 => exit_code::REFUSED,
            Ok(()) => exit_code::SUCCESS,
            Err(error) => Unwritable::Stdout(error).say(),
        })
    })
}

type Show<'a> = dyn FnMut(&Record) -> io::Result<()> + 'a;

fn all(client: &Client, show: &mut Show<'_>) -> Result<io::Result<()>, Error> {
    let mut after = JobId(0);
    loop {
        let records = match client.request(&Request::Page { after, limit: PAGE_MAX })? {
            Response::Page(records) => records,
            other => return Err(Error::unexpected(&other)),
        };
        let Some(last) = records.last() else {
            return Ok(Ok(()));
        };
        after = last.id;
        if let Err(error) = records.iter().try_for_each(&mut *show) {
            return Ok(Err(error));
        }
    }
}

fn these(
    client: &Client,
    ids: &[JobId],
    show: &mut Show<'_>,
    missing: &mut usize,
) -> Result<io::Result<()>, Error> {
    for ids in ids.chunks(PAGE_MAX as usize) {
        let records = match client.request(&Request::Records(ids.to_vec()))? {
            Response::Records(records) => records,
            other => return Err(Error::unexpected(&other)),
        };
        for (id, record) in ids.iter().zip(records) {
            match record {
                None => {
                    *missing += 1;
                    report::say(Refusal::NoJob(*id));
                }
                Some(record) => {
                    if let Err(error) = show(&record) {
                        return Ok(Err(error));
                    }
                }
            }
        }
    }
    Ok(Ok(()))
}

/// All of `procpool wait`; answers the exit code.
pub(crate) fn wait(args: &args::Wait) -> anyhow::Result<u8> {
    with_daemon(&args.socket, |client| {
        let mut failed = 0;
        for id in &args.ids {
            let state = match client.request(&Request::Wait(*id))? {
                Response::Ended(_, state) => state,
                other => return Err(Error::unexpected(&other)),
            };
            if args.json {
                let line = json!({ "id": id.0, "state": state.word() });
                if let Err(error) = writeln!(io::stdout().lock(), "{line}") {
                    return Ok(Unwritable::Stdout(error).say());
                }
            }
            if state != State::Succeeded {
                failed += 1;
                report::say(format_args!("job {id} has {}", state.word()));
            }
        }
        Ok(exit_code::of_failed(failed))
    })
}

/// All of `procpool result`; answers the exit code.
pub(crate) fn result(args: &args::Result) -> anyhow::Result<u8> {
    with_daemon(&args.socket, |client| ended::print(client, args.id, ended::Form::of(args.json)))
}

/// All of `procpool logs`; answers the exit code.
pub(crate) fn logs(args: &args::Logs) -> anyhow::Result<u8> {
    let ask = if args.follow { ended::follow } else { ended::so_far };
    with_daemon(&args.socket, |client| {
        let printed = thread::scope(|scope| {
            // If standard error is gone, nobody can be told.
            let err = || ended::log(client, args.id, Stream::Stderr, ask, &mut io::stderr().lock());
            // At the same time, if they are followed: either may be silent for long.
            let err = args.follow.then(|| scope.spawn(err)).ok_or(err);
            let out = ended::log(client, args.id, Stream::Stdout, ask, &mut io::stdout().lock())?;
            let err = match err {
                Ok(thread) => thread.join().expect("printing does not panic"),
                Err(print) => print(),
            };
            err.map(|_| out)
        })?;
        Ok(match printed {
            Ok(()) => exit_code::SUCCESS,
            Err(error) => Unwritable::Stdout(error).say(),
        })
    })
}
