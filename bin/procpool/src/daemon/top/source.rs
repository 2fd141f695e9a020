//! What `top` shows, asked of the daemon.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use procpool_daemon::job::{JobId, Record};
use procpool_daemon::machine::{Gate, QueueInfo, QueueOrder};
use procpool_daemon::protocol::{Activity, Pong, Refusal, Request, Response, Stream};
use procpool_daemon::{Client, Error};

/// How often the daemon is asked: as fast as a person reads.
const TICK: Duration = Duration::from_millis(500);
/// How many running jobs are looked at: more than a screen shows.
const RUNNING_MAX: usize = 200;
/// How much of the end of a log is shown.
const LOG_BYTES_MAX: usize = 64 << 10;
/// How many pieces of a log are read to find its end; a longer one is shown up to there.
const LOG_PIECES_MAX: usize = 64;

/// What the keys ask for.
#[derive(Debug)]
pub(super) enum Ask {
    Abort(JobId),
    Retry(JobId),
    Log(JobId),
    /// Pause a queue, or have it go on if it is paused.
    Pause(String),
}

/// What there is to show.
#[derive(Debug)]
pub(super) enum Told {
    Now(Box<Now>),
    Log(JobId, String),
    Message(String),
}

/// The daemon at a moment.
#[derive(Debug, Clone)]
pub(super) struct Now {
    pub(super) at: Instant,
    pub(super) pong: Pong,
    pub(super) queues: Vec<QueueInfo>,
    pub(super) activity: Activity,
    /// By number.
    pub(super) running: Vec<Record>,
    /// Latest first.
    pub(super) failures: Vec<Record>,
}

/// Asks and tells until nobody listens, or the daemon is gone.
pub(super) fn serve(client: &Client, asked: &Receiver<Ask>, tell: &Sender<Result<Told, Error>>) {
    let mut due = Instant::now();
    loop {
        let told = match asked.recv_timeout(due.saturating_duration_since(Instant::now())) {
            Ok(ask) => {
                // What it has done is seen at once.
                due = Instant::now();
                answer(client, &ask)
            }
            Err(RecvTimeoutError::Timeout) => {
                due = Instant::now() + TICK;
                look(client).map(|now| Told::Now(Box::new(now)))
            }
            Err(RecvTimeoutError::Disconnected) => return,
        };
        let is_last = told.is_err();
        if tell.send(told).is_err() || is_last {
            return;
        }
    }
}

fn look(client: &Client) -> Result<Now, Error> {
    let pong = match client.request(&Request::Ping)? {
        Response::Pong(pong) => pong,
        other => return Err(Error::unexpected(&other)),
    };
    let queues = queues(client)?;
    let activity = match client.request(&Request::Activity)? {
        Response::Activity(activity) => activity,
        other => return Err(Error::unexpected(&other)),
    };
    let running = records(client, activity.running.iter().take(RUNNING_MAX))?;
    let failures = records(client, activity.failures.iter())?;
    Ok(Now { at: Instant::now(), pong, queues, activity, running, failures })
}

fn queues(client: &Client) -> Result<Vec<QueueInfo>, Error> {
    match client.request(&Request::Queues)? {
        Response::Queues(queues) => Ok(queues),
        other => Err(Error::unexpected(&other)),
    }
}

fn records<'a>(
    client: &Client,
    ids: impl Iterator<Item = &'a JobId>,
) -> Result<Vec<Record>, Error> {
    match client.request(&Request::Records(ids.copied().collect()))? {
        // What has been forgotten meanwhile is not there.
        Response::Records(records) => Ok(records.into_iter().flatten().collect()),
        other => Err(Error::unexpected(&other)),
    }
}

fn answer(client: &Client, ask: &Ask) -> Result<Told, Error> {
    match *ask {
        Ask::Retry(id) => match client.request(&Request::Retry(id)) {
            Ok(_) => Ok(Told::Message(format!("job {id} is run again"))),
            Err(error) => refused(error),
        },
        Ask::Pause(ref name) => {
            // As it is now: what is on the screen may be older than the last key.
            let queues = queues(client)?;
            let Some(queue) = queues.iter().find(|queue| queue.name == *name) else {
                return Ok(Told::Message(format!("there is no queue `{name}` any more")));
            };
            let (order, what) = match queue.gate {
                Gate::Open => (QueueOrder::Pause, "paused"),
                Gate::Paused => (QueueOrder::Resume, "open"),
            };
            let request = Request::Queue { name: name.clone(), order };
            match client.request(&request) {
                Ok(_) => Ok(Told::Message(format!("queue `{name}` is {what}"))),
                Err(error) => refused(error),
            }
        }
        Ask::Abort(id) => match client.request(&Request::Abort(id)) {
            Ok(_) => Ok(Told::Message(format!("job {id} is being stopped"))),
            Err(error) => refused(error),
        },
        Ask::Log(id) => {
            let mut log = tail(client, id, Stream::Stdout)?;
            let said = tail(client, id, Stream::Stderr)?;
            if !said.is_empty() {
                log.push_str("\n── standard error ──\n");
                log.push_str(&said);
            }
            if log.is_empty() {
                log.push_str("(it has printed nothing)");
            }
            Ok(Told::Log(id, log))
        }
    }
}

/// A refusal is shown; anything else is the end.
fn refused(error: Error) -> Result<Told, Error> {
    match error.refusal().map(Refusal::to_string) {
        Some(why) => Ok(Told::Message(why)),
        None => Err(error),
    }
}

/// The end of what a command has said.
fn tail(client: &Client, id: JobId, stream: Stream) -> Result<String, Error> {
    let mut end = Vec::new();
    let mut offset = 0;
    for _ in 0..LOG_PIECES_MAX {
        let bytes = match client.request(&Request::Log { id, stream, offset })? {
            Response::Log { bytes } => bytes,
            other => return Err(Error::unexpected(&other)),
        };
        if bytes.is_empty() {
            break;
        }
        offset += bytes.len() as u64;
        end.extend_from_slice(&bytes);
        end.drain(..end.len().saturating_sub(LOG_BYTES_MAX));
    }
    Ok(String::from_utf8_lossy(&end).into_owned())
}
