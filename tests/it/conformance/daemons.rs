//! A daemon under the suite: its program, run for one test, and a client that is its executor.
//!
//! A daemon outlives its clients, so shutting down is not an executor's affair. Where a test shuts down in order to
//! wait, that is what is done here. How a daemon itself ends is the affair of other tests.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{self, Child, Stdio};
use std::thread::{self, JoinHandle};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use procpool::executor::Backend;
use procpool::{Executor, Shutdown};
use procpool_daemon::job::JobId;
use procpool_daemon::protocol::{PAGE_MAX, Request, Response};
use procpool_daemon::{Client, Daemon};

use super::Pool;
use crate::daemon::fixture::Home;

/// A daemon that runs for a test, with a queue whose worker program is this one.
pub(super) struct Running {
    client: Option<Daemon>,
    server: Child,
    /// Reads what the daemon and the jobs say.
    listener: Option<JoinHandle<()>>,
    home: Home,
    host: u32,
}

#[procpool::task]
fn nothing((): ()) {}

impl Running {
    fn socket(&self) -> std::path::PathBuf {
        self.home.socket()
    }

    fn client(&self) -> &Daemon {
        self.client.as_ref().expect("it is there until the drop")
    }

    fn is_here(&self) -> bool {
        process::id() == self.host
    }
}

impl Pool for Running {
    fn of(workers: usize) -> Running {
        let worker = std::fs::canonicalize("/proc/self/exe").unwrap();
        // What survives which crash is not what this suite is about.
        let home = Home::new(&format!(
            "level = \"process\"\n[queue.tasks]\nworker = {worker:?}\nslots = {workers}\n"
        ));
        let mut command = home.command();
        command.stderr(Stdio::piped());
        #[expect(clippy::disallowed_methods, reason = "the program is no worker of a pool of ours")]
        let mut server = command.spawn().unwrap();
        let mut stderr = BufReader::new(server.stderr.take().unwrap());
        let mut said = String::new();
        while !said.contains("listening at") {
            assert!(stderr.read_line(&mut said).unwrap() > 0, "{said}");
        }
        let listener = thread::spawn(move || {
            let _ = stderr.read_to_end(&mut Vec::new());
        });
        let client = Daemon::connect_to(home.socket(), "tasks").unwrap();
        let host = process::id();
        Running { client: Some(client), server, listener: Some(listener), home, host }
    }

    /// Waits until all jobs have ended.
    fn shutdown(&self, _how: Shutdown) {
        if !self.is_here() {
            return;
        }
        self.settle();
        for id in all(&self.socket()) {
            // On the same connection: what was asked there before has been answered then.
            self.client().future::<()>(id).wait();
        }
    }

    fn settle(&self) {
        // One connection's jobs are kept in order.
        let last = self.submit(nothing, ());
        self.client().id(&last).unwrap();
    }

    fn many(jobs: u64) -> u64 {
        jobs / 10
    }
}

fn all(socket: &Path) -> Vec<JobId> {
    let client = Client::connect(socket).unwrap();
    let mut ids = Vec::new();
    loop {
        let after = ids.last().copied().unwrap_or(JobId(0));
        match client.request(&Request::Page { after, limit: PAGE_MAX }).unwrap() {
            Response::Page(records) if records.is_empty() => return ids,
            Response::Page(records) => ids.extend(records.iter().map(|record| record.id)),
            other => panic!("{other:?}"),
        }
    }
}

impl Executor for Running {
    fn backend(&self) -> &dyn Backend {
        self.client().backend()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.client = None;
        if !self.is_here() {
            return;
        }
        let pid = Pid::from_raw(self.server.id() as i32);
        let signal = if thread::panicking() { Signal::SIGKILL } else { Signal::SIGTERM };
        kill(pid, signal).unwrap();
        let status = self.server.wait().unwrap();
        let _ = self.listener.take().map(JoinHandle::join);
        if !thread::panicking() {
            assert!(status.success(), "{status:?}");
            assert_eq!(self.home.workers(), [0_u32; 0]);
        }
    }
}
