//! The daemon: who may come, what they ask, what is done about it.
//!
//! One thread, in `event_loop`, waits for clients, for the journal and for pools, and runs the `desk`, which
//! answers requests. Only the journal has a thread of its own. See this crate's README.

mod connection;
mod desk;
mod event_loop;
mod inbox;
mod log;
mod metrics;
mod notify;
mod predecessor;
mod state_dir;

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use interprocess::os::unix::uds_local_socket::Listener;
use nix::sys::epoll::{Epoll, EpollCreateFlags};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::config::{Config, Level};
use crate::engine::{Engine, Surroundings};
use crate::error::Error;
use crate::job::{Attempt, JobId, Moment, State};
use crate::journal::Journal;
use crate::machine::{Effects, Event, Machine, Queue};
use crate::store::sqlite::SqliteStore;
use crate::store::{Begun, Space, Store, StoreError};
use desk::followers::Followers;
use desk::{Desk, OnDisk};
use event_loop::{Doors, EventLoop};
use inbox::{Inbox, Message};
use metrics::Metrics;
use state_dir::StateDir;

/// The variable that marks the workers of a daemon with the state directory they work for.
pub(crate) const MARK: &str = "PROCPOOL_DAEMON";

/// What a daemon is started with.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The configuration.
    pub config: Config,
    /// Its file, which SIGHUP has read again.
    pub config_path: Option<PathBuf>,
    /// The state directory. Made if it is not there.
    pub state: PathBuf,
    /// Where clients come to. By default `socket` in the state directory.
    pub socket: Option<PathBuf>,
    /// Whether root may run it.
    pub root: Root,
}

/// Whether root may run a daemon, whose clients may run anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Root {
    /// It may.
    Allowed,
    /// It may not.
    Refused,
}

/// The socket of the daemon with this state directory, unless it was started with another.
pub fn socket_path(state: &Path) -> PathBuf {
    state.join("socket")
}

/// A daemon that clients can connect to, and that does not serve them yet.
#[derive(Debug)]
pub struct Server {
    // Dropped last: the next daemon may come when everything else is gone.
    listener: Listener,
    socket: Socket,
    metrics: Option<Metrics>,
    machine: Machine,
    effects: Effects,
    store: Box<dyn Store>,
    space: Space,
    begun: Begun,
    settings: Settings,
    signals: SignalFd,
    inbox: Arc<Inbox>,
    followers: Followers,
    epoll: Epoll,
    state: StateDir,
}

/// The socket that clients come to.
#[derive(Debug)]
enum Socket {
    /// Made by this daemon, and removed by it.
    Own(PathBuf),
    /// Made by a service manager.
    Passed(PathBuf),
}

impl Server {
    /// Takes the state directory, ends what an earlier daemon may have left, reads the journal and listens. Every descriptor
    /// that it needs it has then: the lack of one does not end a daemon to which somebody has connected.
    ///
    /// Blocks SIGTERM, SIGINT and SIGHUP for this thread and those that it starts: they are events then. Call it
    /// before there is any other thread.
    ///
    /// # Errors
    /// [`is_locked`](Error::is_locked) if another daemon has the directory; [`is_damaged`](Error::is_damaged);
    /// [`is_setting`](Error::is_setting); else what the system refused.
    pub fn open(settings: Settings) -> Result<Server, Error> {
        if settings.root == Root::Refused && nix::unistd::geteuid().is_root() {
            return Err(Error::setting(
                "root's clients could run anything as root: say `--allow-root` if that is meant",
            ));
        }
        let signals = signals()?;
        let state = StateDir::take(&settings.state)?;
        predecessor::end(MARK, &state.mark())?;
        let journal = state.path().join("journal.sqlite");
        let store = SqliteStore::open(state.path(), settings.config.level)
            .map_err(|error| Error::store(&journal, error))?;
        let space = store.space().clone();
        store.reserve_log(state.path()).map_err(|error| Error::store(&journal, error))?;
        let mut store: Box<dyn Store> = Box::new(store);
        let mut begun = match settings.config.level {
            Level::Memory => Begun::nowhere(),
            Level::Machine | Level::Process => {
                Begun::open(state.path()).map_err(|error| Error::store(&journal, error))?
            }
        };
        let (machine, effects) = restore(&settings.config, &mut *store, &mut begun)
            .map_err(|error| Error::store(&journal, error))?;
        let inbox = Arc::new(Inbox::new()?);
        let system = |what| move |error| Error::system(what, std::io::Error::from(error));
        let followers = Followers::new().map_err(system("cannot watch logs"))?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)
            .map_err(system("cannot wait for events"))?;
        let (listener, socket) = match state_dir::passed()? {
            Some((listener, path)) => (listener, Socket::Passed(path)),
            None => {
                let path = settings.socket.clone().unwrap_or_else(|| socket_path(state.path()));
                (state_dir::listen(&path)?, Socket::Own(path))
            }
        };
        let place = settings.config.metrics.place().map_err(Error::setting)?;
        let metrics = place.as_ref().map(Metrics::listen).transpose()?;
        Ok(Server {
            listener,
            socket,
            metrics,
            machine,
            effects,
            store,
            space,
            begun,
            settings,
            signals,
            inbox,
            followers,
            epoll,
            state,
        })
    }

    /// Where clients come to.
    pub fn socket(&self) -> &Path {
        match &self.socket {
            Socket::Own(path) | Socket::Passed(path) => path,
        }
    }

    /// What acknowledged means here.
    pub fn level(&self) -> Level {
        self.settings.config.level
    }

    /// Serves until it is told to stop and nothing runs any more. A panic of any of its threads ends the process.
    ///
    /// # Errors
    /// [`is_journal`](Error::is_journal) if the journal failed; else what the system refused.
    pub fn serve(self) -> Result<(), Error> {
        abort_on_panic();
        let inbox = self.inbox;
        let logs = self.state.path().join("logs");
        let deliver = Arc::clone(&inbox);
        let journal = Journal::start(self.store, move |result| {
            deliver.push(match result {
                Ok(kept) => Message::Kept(kept),
                Err(error) => Message::JournalFailed(error),
            });
        })
        .map_err(|error| Error::system("cannot start a thread", error))?;
        let ended = Arc::clone(&inbox);
        let surroundings = Surroundings {
            logs: logs.clone(),
            log_bytes: self.settings.config.limits.log_bytes,
            mark: (MARK, OsString::from(self.state.mark())),
        };
        let engine = Engine::new(
            self.settings.config.all_queues(),
            surroundings,
            self.begun,
            Arc::new(move |id, attempt| ended.push(Message::Ended(id, attempt))),
        );
        let Settings { config, config_path, .. } = self.settings;
        let disk = OnDisk { journal, space: self.space, logs };
        let desk = Desk::new(self.machine, self.effects, disk, engine, config, self.followers);
        let doors = Doors {
            listener: &self.listener,
            metrics: self.metrics.as_ref(),
            signals: &self.signals,
            inbox: &inbox,
            config_path,
        };
        let result = EventLoop::new(doors, desk, self.epoll)?.run();
        // Before the directory is given up.
        if let Socket::Own(path) = &self.socket {
            let _ = std::fs::remove_file(path);
        }
        drop(self.state);
        result
    }
}

/// SIGTERM and SIGINT, which mean stop, and SIGHUP, as something to wait for.
fn signals() -> Result<SignalFd, Error> {
    let mut set = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        set.add(signal);
    }
    let fault = |error| Error::system("cannot wait for signals", std::io::Error::from(error));
    set.thread_block().map_err(fault)?;
    SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC).map_err(fault)
}

/// The jobs that an earlier daemon has left.
fn restore(
    config: &Config,
    store: &mut dyn Store,
    begun: &mut Begun,
) -> Result<(Machine, Effects), StoreError> {
    let queues = config.all_queues();
    let queues = queues.iter().map(|(name, queue)| Queue::new(name, queue.slots())).collect();
    let mut machine = Machine::new(queues, store.next_id()?);
    for (name, setting) in store.queues()? {
        machine.restore_queue(&name, setting);
    }
    let mut effects = Effects::default();
    let now = Moment::now();
    let mut dependents = Vec::new();
    store.live(&mut |record| {
        if record.life.state() == State::Scheduled && !record.terms.after.is_empty() {
            dependents.push(record);
        } else {
            machine.restore(record, &[], now, &mut effects);
        }
    })?;
    // After the others: those of them that depend on another are after it in this list. A job that it depended on and
    // that has ended has succeeded: otherwise this one had ended in the same commit.
    for record in dependents {
        let ended = record.terms.after.iter().filter(|id| !machine.is_live(**id));
        let ended: Vec<(JobId, State)> = ended.map(|id| (*id, State::Succeeded)).collect();
        machine.restore(record, &ended, now, &mut effects);
    }
    let attempts: HashMap<JobId, Attempt> = machine.attempts().collect();
    begun.keep_only(|id, attempt| attempts.get(&id) == Some(&attempt));
    let unbegun = attempts.into_iter().filter(|(id, attempt)| !begun.may_have(*id, *attempt));
    let unbegun = unbegun.map(|(id, _)| id).collect();
    machine.handle(Event::Restarted { unbegun }, now, &mut effects);
    Ok((machine, effects))
}

/// A daemon that lives on without one of its threads would answer nobody, and hold the directory.
fn abort_on_panic() {
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        tell(panic);
        std::process::abort();
    }));
}
