//! The child's side: what a worker process does from its first line to its last.
//!
//! The main thread sets the process up and then waits for the host's death; a second thread, with the
//! stack that the pool asks for, runs the jobs. A process for one job gets by with the main thread, where it can.
//! [`runtime`] is the loop, [`trampolines`] know the types of functions, [`hook`] catches what panics say, [`channel`] is the
//! worker's end of the control channel, [`fork_server`] the process that workers are forked off. Nothing here knows pools or futures.

mod channel;
mod contained;
mod fault;
mod fork_server;
mod hook;
mod limits;
mod runtime;
mod trampolines;
mod upkeep;

use std::env;
use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use procpool_sys::image::{Image, SameBuild};
use procpool_sys::mapping::{self, Mapping};
use procpool_sys::stack;
use procpool_sys::worker::{self, Birthplace};
use procpool_wire::block::{BLOCK_WORDS, Block, Ticket};
use procpool_wire::codec;
use procpool_wire::frame::FrameKind;
use procpool_wire::handshake::{Form, Role, Runs, Setup, StartFault, Target};

use crate::{init, nesting};
use channel::WorkerChannel;
pub(crate) use fault::{leaked_of, panic_of, recorded_error};
pub(crate) use fork_server::NAME as FORK_SERVER_NAME;
pub(crate) use limits::main_thread_suffices;
pub(crate) use trampolines::{Initializing, run_function, run_initializer, run_json};

/// The exit code of a worker that could not even say why it cannot start.
const EXIT_CANNOT_START: i32 = 70;
/// The name by which any worker program answers with the list of its tasks.
pub(crate) const TASK_LIST: &str = "procpool::tasks";
/// How a named task is called, as its job's header says: with JSON,
pub(crate) const RUN_JSON: u64 = 0;
/// in binary form,
pub(crate) const RUN_BINARY: u64 = 1;
/// or so that its result can be kept and read elsewhere: nothing of it travels by descriptor.
pub(crate) const RUN_BINARY_APART: u64 = 2;

/// The block, as the threads of a worker share it.
pub(crate) struct SharedBlock {
    block: Block<Mapping>,
    /// Reports of progress take turns.
    progress: Mutex<()>,
}

impl SharedBlock {
    pub(crate) fn set_cooperative(&self, ticket: Ticket) {
        self.block.set_cooperative(ticket);
    }

    #[inline]
    pub(crate) fn is_asked_to_stop(&self, ticket: Ticket) -> bool {
        self.block.is_asked_to_stop(ticket)
    }

    pub(crate) fn set_progress(&self, ticket: Ticket, fraction: f64, message: &str) {
        let _turn = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        // A clone of a context may outlive its job; what it says then is nobody's progress.
        if self.block.black_box().ticket == ticket {
            self.block.set_progress(ticket, fraction, message);
        }
    }
}

/// Runs this process as a worker to its end.
pub(crate) fn serve() -> ! {
    let entered = worker::enter();
    match entered.and_then(|(control, born)| Ok((WorkerChannel::new(control)?, born))) {
        Ok((channel, born)) => live(channel, Origin::Executed, born, None),
        Err(error) => give_up(&format!("cannot become a worker: {error}")),
    }
}

/// How this process came into being.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    Executed,
    Forked(MainThread),
}

/// Whether user code has run on the main thread before the fork.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum MainThread {
    Unused,
    Used,
}

/// From the setup on. A forked worker gets a name, since its arguments are its fork server's.
fn live(
    mut channel: WorkerChannel,
    origin: Origin,
    born: Birthplace,
    naming: Option<fork_server::Naming>,
) -> ! {
    let (setup, fds) = match channel.receive_setup() {
        Ok(received) => received,
        Err(error) => give_up(&format!("no setup from the pool: {error}")),
    };
    if let Some(naming) = &naming {
        naming.set(setup.slot);
    }
    match prepare(&setup, born, fds) {
        Ok(start) => match setup.role {
            Role::Worker if needs_one_thread(&setup, origin) => serve_jobs(start, setup, channel),
            Role::Worker => run(start, setup, channel),
            Role::ForkServer => fork_server::serve(start, setup, channel),
        },
        Err(fault) => fail(&mut channel, &fault),
    }
}

/// What a worker needs beyond its channel.
struct Start {
    image: &'static Image,
    same_build: Option<SameBuild>,
    memory: Mapping,
}

fn prepare(setup: &Setup, born: Birthplace, fds: Vec<OwnedFd>) -> Result<Start, StartFault> {
    let other = |what: &str, error: std::io::Error| StartFault::Other(format!("{what}: {error}"));
    nesting::note(setup.depth);
    contained::enter(&setup.contained, born)?;
    let kill_file = setup.contained.kill_file.as_deref();
    let follows = match (setup.role, kill_file) {
        (Role::Worker, _) => worker::die_with(setup.host, kill_file),
        (Role::ForkServer, None) => worker::die_with(setup.host, None),
        (Role::ForkServer, Some(all)) => {
            worker::answer_for(all).and_then(|()| worker::die_with(setup.host, None))
        }
    };
    follows.map_err(|error| other("cannot follow the host in death", error))?;
    worker::set_thread_name(&thread_name(setup));
    let image = init::image_of_worker().map_err(|error| {
        let cause =
            std::error::Error::source(&error).map_or_else(String::new, |s| format!(": {s}"));
        StartFault::Other(format!("{error}{cause}"))
    })?;
    let same_build = match &setup.build_id {
        Some(build_id) => Some(image.same_build(build_id).ok_or(StartFault::OtherBuild)?),
        None => None,
    };
    let mut fds = fds.into_iter();
    let fd =
        fds.next().ok_or_else(|| StartFault::Other("the shared memory did not arrive".into()))?;
    let memory = mapping::attach(fd.as_fd(), BLOCK_WORDS)
        .map_err(|error| other("cannot map the shared memory", error))?;
    if let Some(stdout) = fds.next() {
        worker::set_stdout(stdout)
            .map_err(|error| other("cannot take over the host's standard output", error))?;
    }
    if let Some(dir) = &setup.current_dir {
        let dir = OsStr::from_bytes(dir);
        env::set_current_dir(dir).map_err(|error| {
            StartFault::Other(format!("cannot enter the directory {dir:?}: {error}"))
        })?;
    }
    // The last of what needs no user code: a limit is on jobs, not on what is done for them.
    limits::apply(&setup.limits)?;
    contained::limit(&setup.contained, setup.stack_size)?;
    Ok(Start { image, same_build, memory })
}

/// What `top` shows. Both threads of a worker have one name, unless it was a spare: the main thread of that keeps
/// the one that it had.
fn thread_name(setup: &Setup) -> String {
    match (&setup.role, setup.slot) {
        (Role::ForkServer, _) => "procpool-fork".into(),
        (Role::Worker, Some(slot)) => format!("procpool-w{slot}"),
        (Role::Worker, None) => "procpool-worker".into(),
    }
}

/// Whether the main thread can run the jobs. In a process that is there for one job a second thread is a third of the
/// cost. It is needed to see to the host's death, unless a fork server does that; for a stack that the main thread does
/// not have; and after a preload, since the main thread's own variables, the keys of its hash maps among them, are the
/// same in all that are forked.
fn needs_one_thread(setup: &Setup, origin: Origin) -> bool {
    let is_seen_to = matches!(origin, Origin::Forked(MainThread::Unused))
        && setup.contained.kill_file.is_some()
        && worker::is_answered_for();
    (setup.jobs == Some(1) || setup.runs == Runs::InChildren)
        && is_seen_to
        && main_thread_suffices(&setup.limits, setup.stack_size)
}

fn run(start: Start, setup: Setup, channel: WorkerChannel) -> ! {
    let host = setup.host;
    let name = thread_name(&setup);
    let stack = usize::try_from(setup.stack_size).unwrap_or(usize::MAX);
    let jobs = thread::Builder::new().name(name).stack_size(stack).spawn(move || {
        // It fails for numbers alone that are no signals.
        let _ = worker::hear_of_host_death();
        // Without it an overflow is a SIGSEGV like any other, which is no reason not to work.
        let _ = stack::report_overflow();
        serve_jobs(start, setup, channel)
    });
    if let Err(error) = jobs {
        give_up(&format!(
            "cannot start the thread for jobs with a stack of {stack} bytes: {error}"
        ));
    }
    worker::wait_for_host_death(host);
    contained::kill_self()
}

/// What the thread does that runs jobs.
fn serve_jobs(start: Start, setup: Setup, mut channel: WorkerChannel) -> ! {
    let block = Arc::new(SharedBlock { block: Block::new(start.memory), progress: Mutex::new(()) });
    hook::install(&block);
    if let Err(message) = initialize(start.image, start.same_build, &setup, &mut channel) {
        fail(&mut channel, &StartFault::Initializer(message));
    }
    channel.send(FrameKind::Ready, &[]);
    runtime::serve(start.image, start.same_build, &setup, &block, channel)
}

/// Runs the initializer, or what a fork server is to load.
fn initialize(
    image: &Image,
    same_build: Option<SameBuild>,
    setup: &Setup,
    channel: &mut WorkerChannel,
) -> Result<(), String> {
    let Some((target, argument)) = &setup.initializer else {
        return Ok(());
    };
    let attachments = channel.arrived(&setup.initializer_uses);
    let function = match (target, same_build) {
        (Target::Offset { run, function }, Some(proof)) => image.receive(proof, *run, *function),
        _ => None,
    };
    let function = function.ok_or("it is not a function of this program")?;
    let mut initializing = Initializing::new(argument.clone(), Some(Arc::clone(&attachments)));
    function.run(&mut initializing);
    // The first job that is given the same value finds it decoded.
    attachments.iter().flatten().for_each(|attachment| attachment.keep_value());
    initializing.result
}

/// Tells the pool why this worker cannot start, and ends.
fn fail(channel: &mut WorkerChannel, fault: &StartFault) -> ! {
    let mut body = Vec::new();
    // The type is ours and always encodes.
    let _ = codec::encode_into(fault, None, &mut body);
    channel.send(FrameKind::StartFailed, &body);
    std::process::exit(EXIT_CANNOT_START)
}

/// The channel itself is out of order; standard error is what is left, and the pool keeps its tail.
fn give_up(message: &str) -> ! {
    eprintln!("procpool: {message}");
    std::process::exit(EXIT_CANNOT_START)
}

/// The function that a job's target names in this program.
fn resolve_named(name: &str, form: Form) -> Result<procpool_sys::image::Function, Unresolved> {
    let task = crate::task::named(name).ok_or(Unresolved::Unknown)?;
    let functions = (task.functions)();
    match form {
        Form::Json => Ok(functions.json),
        Form::Binary { fingerprint } if fingerprint == task.fingerprint => Ok(functions.binary),
        Form::Binary { .. } => Err(Unresolved::OtherSignature(task.signature)),
    }
}

enum Unresolved {
    Unknown,
    OtherSignature(&'static str),
}
