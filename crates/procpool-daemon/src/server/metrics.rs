//! Figures for Prometheus, in its text format, over the least of HTTP.
//!
//! The loop accepts and says what holds now; a thread for each scraper waits for its request and writes, so that one
//! that is slow costs a thread for a second and nobody else anything.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::config::Place;
use crate::error::Error;
use crate::machine::Gate;
use crate::protocol::{Health, Phase};
use crate::server::state_dir;

/// The most scrapers at a time: one has to be enough, and a second one looks by hand.
const SCRAPERS_MAX: usize = 4;
/// How long a scraper may be silent, or take nothing.
const PATIENCE: Duration = Duration::from_secs(1);
/// The longest request.
const REQUEST_MAX: usize = 8 << 10;

/// Where scrapers come to.
#[derive(Debug)]
pub(super) struct Metrics {
    listener: Listener,
    /// A clone is with each scraper's thread.
    scrapers: Arc<()>,
}

#[derive(Debug)]
enum Listener {
    Port(TcpListener),
    Path(UnixListener, PathBuf),
}

enum Stream {
    Port(TcpStream),
    Path(UnixStream),
}

impl Metrics {
    pub(super) fn listen(place: &Place) -> Result<Metrics, Error> {
        let listener =
            match place {
                Place::Port(address) => {
                    let listener = TcpListener::bind(address).and_then(|listener| {
                        listener.set_nonblocking(true)?;
                        Ok(listener)
                    });
                    Listener::Port(listener.map_err(|error| {
                        Error::system(format!("cannot listen at {address}"), error)
                    })?)
                }
                Place::Path(path) => Listener::Path(state_dir::listen_std(path)?, path.clone()),
            };
        Ok(Metrics { listener, scrapers: Arc::new(()) })
    }

    /// Serves those who have come, of whom there may be none.
    pub(super) fn serve(&self, health: impl Fn() -> Health) {
        while let Ok(stream) = self.accept() {
            if Arc::strong_count(&self.scrapers) > SCRAPERS_MAX {
                continue;
            }
            let text = render(&health());
            let held = Arc::clone(&self.scrapers);
            let answer = move || {
                // It is the scraper's own loss.
                let _ = answer(stream, &text);
                drop(held);
            };
            // Without a thread the connection is closed, and the scraper comes again.
            let _ = thread::Builder::new().name("procpool-metrics".into()).spawn(answer);
        }
    }

    fn accept(&self) -> io::Result<Stream> {
        match &self.listener {
            Listener::Port(listener) => listener.accept().map(|(stream, _)| Stream::Port(stream)),
            Listener::Path(listener, _) => {
                listener.accept().map(|(stream, _)| Stream::Path(stream))
            }
        }
    }
}

impl AsFd for Metrics {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.listener {
            Listener::Port(listener) => listener.as_fd(),
            Listener::Path(listener, _) => listener.as_fd(),
        }
    }
}

impl Drop for Metrics {
    fn drop(&mut self) {
        if let Listener::Path(_, path) = &self.listener {
            let _ = fs::remove_file(path);
        }
    }
}

fn answer(stream: Stream, text: &str) -> io::Result<()> {
    match stream {
        Stream::Port(stream) => {
            stream.set_nonblocking(false)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            respond(&stream, &stream, text)
        }
        Stream::Path(stream) => {
            stream.set_nonblocking(false)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            respond(&stream, &stream, text)
        }
    }
}

/// Reads a request, whatever it asks for, and answers it.
fn respond(input: impl Read, mut output: impl Write, text: &str) -> io::Result<()> {
    let mut request = Vec::new();
    let mut input = input.take(REQUEST_MAX as u64);
    let mut chunk = [0; 512];
    while !request.windows(4).any(|window| window == b"\r\n\r\n") {
        match input.read(&mut chunk)? {
            0 => return Ok(()),
            len => request.extend_from_slice(&chunk[..len]),
        }
    }
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n",
        text.len()
    );
    output.write_all(head.as_bytes())?;
    output.write_all(text.as_bytes())
}

/// The text.
fn render(health: &Health) -> String {
    let mut text = String::new();
    let mut family = |name: &str, kind: &str, help: &str, samples: &[(String, u64)]| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "# HELP procpool_{name} {help}\n# TYPE procpool_{name} {kind}");
        for (labels, value) in samples {
            let _ = writeln!(text, "procpool_{name}{labels} {value}");
        }
    };
    let one = |value: u64| [(String::new(), value)];
    let queues = |value: fn(&crate::machine::QueueInfo) -> u64| {
        let samples = health
            .queues
            .iter()
            .map(|queue| (format!("{{queue=\"{}\"}}", escape(&queue.name)), value(queue)));
        samples.collect::<Vec<_>>()
    };
    let ended: Vec<_> = health
        .ended
        .iter()
        .map(|(state, count)| (format!("{{state=\"{state}\"}}"), *count))
        .collect();
    family("up_seconds", "gauge", "How long the daemon has been up.", &one(health.up.as_secs()));
    let serves = u64::from(health.phase == Phase::Serving);
    family("serving", "gauge", "Whether it starts jobs.", &one(serves));
    family("jobs", "gauge", "Jobs that have not ended.", &one(health.jobs));
    family("jobs_max", "gauge", "The most of them.", &one(health.jobs_max));
    family("jobs_ended_total", "counter", "Jobs that have ended since it is up.", &ended);
    family("clients", "gauge", "Connections of clients.", &one(health.clients));
    family("waits", "gauge", "How often clients wait for a job to end.", &one(health.waits));
    family("requests_under_way", "gauge", "Requests not answered yet.", &one(health.under_way));
    family("queue_slots", "gauge", "How many jobs of a queue may run.", &queues(|q| q.slots));
    family("queue_running", "gauge", "How many do.", &queues(|q| q.running));
    family("queue_waiting", "gauge", "How many wait for a slot.", &queues(|q| q.queued));
    let paused = queues(|q| u64::from(q.gate == Gate::Paused));
    family("queue_paused", "gauge", "Whether its jobs are held back.", &paused);
    text
}

/// A label's value, as the format wants it.
fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
