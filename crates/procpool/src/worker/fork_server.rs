//! A fork server's life: it loads what its workers shall have in common, then forks them.
//!
//! It has one thread, because a fork copies only the thread that asks for it. A worker goes on from here like
//! one that was executed: with its own channel, from its setup on.

use std::env;
use std::mem;
use std::os::fd::{AsFd, OwnedFd};

use procpool_sys::fork_server::{self, Forker, Side};
use procpool_sys::stack;
use procpool_sys::title::Title;
use procpool_sys::worker::{self, Birthplace};
use procpool_wire::block::Block;
use procpool_wire::codec;
use procpool_wire::frame::FrameKind;
use procpool_wire::handshake::{Forked, Setup, StartFault};

use super::channel::{Request, WorkerChannel};
use super::{EXIT_CANNOT_START, MainThread, Origin, Start, fail, give_up, initialize, live};

/// What the names of fork servers begin with, for `ps`. The name of a worker must fit into the same memory.
pub(crate) const NAME: &str = "procpool-fork-server";

/// What the names of workers begin with.
const WORKER_NAME: &str = "procpool-worker";

/// Runs this process as a fork server to its end.
pub(super) fn serve(start: Start, setup: Setup, mut channel: WorkerChannel) -> ! {
    // Without it an overflow is a SIGSEGV like any other, which is no reason not to work.
    let _ = stack::report_overflow();
    let loaded = initialize(start.image, start.same_build, &setup, &mut channel);
    if let Err(message) = loaded.and_then(|()| is_fit()) {
        fail(&mut channel, &StartFault::Preload(message));
    }
    let main_thread =
        if setup.initializer.is_some() { MainThread::Used } else { MainThread::Unused };
    drop(setup);
    let forker = Forker::of_this_thread();
    let naming = Title::find().map(Naming::new);
    let block = Block::new(start.memory);
    channel.send(FrameKind::Ready, &[]);
    let mut births = 0;
    loop {
        let descriptors = match channel.next_request() {
            Request::Fork(descriptors) => descriptors,
            Request::Bye => std::process::exit(0),
        };
        births += 1;
        // Control channel, standard error, and the cgroup if there is one.
        let cgroup = descriptors.get(2).map(AsFd::as_fd);
        let forked = match forker.fork(block.next_birth(births), cgroup) {
            Ok(Side::Server(pid)) => Forked::Born(pid),
            Ok(Side::Worker(born)) => {
                // The server's, of which this process has a copy.
                channel.abandon();
                mem::forget(block);
                enter(descriptors, naming, Origin::Forked(main_thread), born);
            }
            Err(error) => Forked::Refused(error.raw_os_error().unwrap_or(0)),
        };
        // The worker has its own copies, and none but its own may keep its channel open.
        drop(descriptors);
        let mut body = Vec::new();
        // The type is ours and always encodes.
        let _ = codec::encode_into(&forked, None, &mut body);
        channel.send(FrameKind::Forked, &body);
    }
}

/// After the preload: whether this process can be forked, and a worker would find what it expects.
fn is_fit() -> Result<(), String> {
    let other = |error: std::io::Error| format!("the fork server cannot look at itself: {error}");
    let threads = fork_server::other_threads().map_err(other)?;
    if !threads.is_empty() {
        return Err(format!(
            "it left threads running ({}), which no forked worker would have; \
             an initializer may start them in each",
            threads.join(", ")
        ));
    }
    worker::reset_signals().map_err(other)
}

/// In a new worker: what [`worker::enter`] does for one that was executed, as far as the server has not done it.
///
/// Other descriptors stay open, unlike there: what the preload has opened, its values may use in the worker.
fn enter(descriptors: Vec<OwnedFd>, naming: Option<Naming>, origin: Origin, born: Birthplace) -> ! {
    let mut descriptors = descriptors.into_iter();
    let (Some(control), Some(stderr)) = (descriptors.next(), descriptors.next()) else {
        std::process::exit(EXIT_CANNOT_START)
    };
    // The cgroup's is for the server.
    drop(descriptors);
    let channel = fork_server::set_stderr(stderr).and_then(|()| WorkerChannel::new(control));
    match channel {
        Ok(channel) => live(channel, origin, born, naming),
        Err(error) => give_up(&format!("cannot become a worker: {error}")),
    }
}

/// How forked workers get their names, for `ps`: they have the server's arguments. Made once by the server.
pub(super) struct Naming {
    title: Title,
    /// A worker's without a slot.
    name: String,
}

impl Naming {
    fn new(title: Title) -> Naming {
        let own = env::args_os().next().unwrap_or_default();
        let own = own.to_string_lossy();
        let of = own.strip_prefix(NAME).unwrap_or_default();
        Naming { title, name: format!("{WORKER_NAME}{of}") }
    }

    pub(super) fn set(&self, slot: Option<u32>) {
        let Some(slot) = slot else {
            return self.title.set(&self.name);
        };
        let of = &self.name[WORKER_NAME.len()..];
        self.title.set(&format!("{WORKER_NAME} {slot}{of}"));
    }
}
