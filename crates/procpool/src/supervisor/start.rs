//! Starting a worker: its process, its channel, what it is told, and what it answers.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process;
use std::sync::Arc;

use nix::libc;
use nix::sys::epoll::EpollFlags;
use procpool_sys::clock;
use procpool_sys::spawn::{self, Program};
use procpool_sys::{channel as sockets, limits};
use procpool_wire::codec;
use procpool_wire::frame::{Frame, FrameKind};
use procpool_wire::handshake::{Contained, Role, Runs, Setup, StartFault, Target};
use procpool_wire::limits::{LeakPolicy, WorkerLimits};

use super::channel::PoolChannel;
use super::containment::Hold;
use super::machine::{Event, Trouble};
use super::memories::Memory;
use super::slot::{Place, Slot};
use super::stderr::{Tap, Uses};
use super::{Supervisor, Token, Worker};
use crate::attachments::Forgets;
use crate::attachments::carrier::Carrier;
use crate::builder::{Initializer, Isolation, Settings, StartMethod};
use crate::events;
use crate::nesting;
use crate::worker::main_thread_suffices;

/// What a process of the pool needs before it is there.
pub(super) struct Cradle {
    pub(super) place: Place,
    /// The pool's end; the setup is on its way.
    pub(super) channel: PoolChannel,
    pub(super) tap: Arc<Tap>,
    pub(super) hold: Hold,
    pub(super) memory: Option<Memory>,
    /// The process's ends of its control channel and of its standard error.
    pub(super) ends: [OwnedFd; 2],
}

impl Supervisor {
    /// Starts a worker, or asks the fork server for one.
    pub(super) fn spawn(&mut self, slot: usize) -> io::Result<()> {
        let method = self.inner.settings.start_method;
        let cradle = self.make_cradle(Place::Slot(slot), method)?;
        match method {
            StartMethod::Spawn => {
                let (worker, channel) = self.execute(&format!("procpool-worker {slot}"), cradle)?;
                self.move_in(slot, worker, channel)
            }
            StartMethod::ForkServer => {
                self.ask_for(cradle);
                Ok(())
            }
        }
    }

    pub(super) fn make_cradle(&mut self, place: Place, method: StartMethod) -> io::Result<Cradle> {
        let settings = &self.inner.settings;
        let (role, slot) = match place {
            Place::Slot(slot) => (Role::Worker, Some(slot)),
            Place::Spare(_) => (Role::Worker, None),
            Place::Server => (Role::ForkServer, None),
            Place::Nowhere => (Role::Worker, None),
        };
        let hold = match role {
            Role::Worker => Hold::prepare(self),
            Role::ForkServer => Ok(Hold::default()),
        };
        let hold = hold?;
        let uses = match settings.isolation {
            Isolation::FreshProcess if hold.has_cgroup() => Uses::Several,
            _ => Uses::Once,
        };
        let (tap, stderr) = match self.stderr.open(uses) {
            Ok(opened) => opened,
            Err(error) => {
                hold.let_go(&self.inner);
                return Err(error);
            }
        };
        let contained = match role {
            Role::Worker => hold.contained(),
            Role::ForkServer => Contained {
                kill_file: self.inner.cgroups().kill_file_of_all(),
                ..Contained::default()
            },
        };
        let runs = runs_of(settings, role, &hold);
        let setup = self.setup(role, slot, contained, runs);
        let memories = &mut self.memories;
        let mut channel = || {
            let (ours, control) = sockets::pair()?;
            let memory = memories.take()?;
            let mapping = memory.mapping.clone();
            let mut channel = PoolChannel::new(mapping, ours, jobs_of(settings, runs), runs);
            let wake: Arc<dyn Forgets> = Arc::clone(&self.inner.wake) as _;
            channel.set_who_forgets(Arc::downgrade(&wake));
            let stdout = io::stdout();
            let fds = [memory.fd.as_fd(), stdout.as_fd()];
            // The same program has the host's standard output already, and a forked one its server's.
            let lacks_stdout = settings.worker_program.is_some() && method == StartMethod::Spawn;
            channel.send_setup(&setup, if lacks_stdout { &fds } else { &fds[..1] })?;
            if let Some(initializer) = settings.initializer_of(role) {
                channel.attach(&initializer.attachments);
                channel.flush();
            }
            Ok((channel, control, memories.keep(memory)))
        };
        match channel() {
            Ok((channel, control, memory)) => {
                Ok(Cradle { place, channel, tap, hold, memory, ends: [control, stderr] })
            }
            Err(error) => {
                self.stderr.close(&tap);
                hold.let_go(&self.inner);
                Err(error)
            }
        }
    }

    /// Executes the program of the pool.
    pub(super) fn execute(&self, name: &str, cradle: Cradle) -> io::Result<(Worker, PoolChannel)> {
        let settings = &self.inner.settings;
        let program = match &settings.worker_program {
            Some(path) => Program::Other(path.clone()),
            None => Program::SameImage(self.inner.image),
        };
        let name = full_name(name, &program);
        let Cradle { place, channel, tap, hold, memory, ends: [control, stderr] } = cradle;
        let mut environment = settings.environment.clone();
        if place == Place::Server {
            environment.bind_at_once();
        }
        let started = hold.birth_dir().and_then(|dir| {
            let cgroup = dir.as_ref().map(AsFd::as_fd);
            spawn::spawn(&program, &name, &environment, control, stderr, cgroup)
        });
        match started {
            Ok((process, _)) => Ok((Worker::new(process, tap, hold, memory), channel)),
            Err(error) => {
                self.stderr.close(&tap);
                hold.let_go(&self.inner);
                Err(error)
            }
        }
    }

    /// Takes charge of a slot's new process.
    pub(super) fn move_in(
        &mut self,
        slot: usize,
        worker: Worker,
        mut channel: PoolChannel,
    ) -> io::Result<()> {
        channel.move_in(slot, worker.process.id(), None);
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP;
        let token = Token::Process(slot).event(EpollFlags::EPOLLIN);
        let pid = worker.process.id();
        let watched = self
            .epoll
            .add(channel.fd(), Token::Channel(slot).event(flags))
            .and_then(|()| self.epoll.add(worker.process.pidfd(), token))
            .map_err(io::Error::from)
            .and_then(|()| self.stderr.watch(&worker.tap, pid, Some(slot)));
        if let Err(error) = watched {
            self.stderr.close(&worker.tap);
            return Err(error);
        }
        self.workers[slot] = Some(worker);
        self.notes.add(events::Event::WorkerStarting { worker: slot, pid });
        let inner = Arc::clone(&self.inner);
        let mut dispatch = inner.dispatch();
        dispatch.add_worker(channel);
        self.register_writers(&mut dispatch);
        drop(dispatch);
        self.suspend_newborn(Place::Slot(slot));
        Ok(())
    }

    /// The first frame for a process of the pool. The slot is not known of every worker.
    pub(super) fn setup(
        &self,
        role: Role,
        slot: Option<usize>,
        contained: Contained,
        runs: Runs,
    ) -> Vec<u8> {
        let settings = &self.inner.settings;
        let initializer = settings.initializer_of(role);
        // What a preload needs is not limited by what workers may use.
        let limits = match role {
            Role::Worker => {
                let cpu = slot.and_then(|slot| self.cpu_of(slot));
                let mut limits = WorkerLimits { cpu, ..settings.limits.clone() };
                if settings.isolation == Isolation::FreshProcess
                    && limits.leaks == LeakPolicy::Retire
                {
                    // It leaves after its job anyway, and with it what the job has left. To look would cost as
                    // much as all the rest.
                    limits.leaks = LeakPolicy::Ignore;
                }
                if runs == Runs::InChildren {
                    // A child's memory goes with it, and the worker's own does not grow.
                    limits.rss = None;
                }
                limits
            }
            Role::ForkServer => WorkerLimits::default(),
        };
        let setup = Setup {
            role,
            build_id: settings
                .worker_program
                .is_none()
                .then(|| self.inner.image.build_id().to_vec()),
            slot: slot.map(|slot| slot as u32),
            depth: nesting::below(),
            host: process::id(),
            stack_size: settings.stack_size as u64,
            jobs: jobs_of(settings, runs).filter(|_| role == Role::Worker),
            runs,
            spins: self.inner.spin_ns > 0,
            counts: clock::counter_is_steady(),
            payload_limit: settings.payload_limit,
            initializer: initializer.and_then(|it| self.target(it)),
            initializer_uses: initializer
                .map(|it| Carrier::numbers(&it.attachments))
                .unwrap_or_default(),
            current_dir: settings
                .current_dir
                .as_deref()
                .map(|dir| dir.as_os_str().as_bytes().to_vec()),
            limits,
            contained,
        };
        let mut body = Vec::new();
        // The type is ours and always encodes.
        let _ = codec::encode_into(&setup, None, &mut body);
        body
    }

    /// The CPU that this slot's worker is pinned to.
    pub(super) fn cpu_of(&self, slot: usize) -> Option<u32> {
        if !self.inner.settings.pin_cpus {
            return None;
        }
        // Asked anew for each worker: the host's CPUs can change while it runs. Where there is one only, or
        // nobody says which, there is nothing to choose.
        let cpus = limits::usable_cpus().ok().filter(|cpus| cpus.len() > 1)?;
        Some(cpus[slot % cpus.len()])
    }

    pub(super) fn target(&self, initializer: &Initializer) -> Option<(Target, Vec<u8>)> {
        // The builder has checked that it is in the image.
        let (run, function) = self.inner.image.offsets(initializer.function)?;
        Some((Target::Offset { run, function }, initializer.argument.clone()))
    }

    /// Takes what a starting worker says.
    pub(super) fn take_start_frame(&mut self, slot: usize, frame: &Frame) {
        let is_starting = matches!(self.machine.slot(slot), Slot::Starting { .. });
        match frame.kind {
            FrameKind::Ready if is_starting => {
                // Told before `warm_up` can return because of it.
                self.note_ready(slot);
                self.notes.tell();
                self.begin_memory_watch(slot);
                self.inner.dispatch().ready(slot);
                self.events.push(Event::Ready(slot));
                self.inner.changed.notify_all();
            }
            FrameKind::StartFailed if is_starting => {
                let cause = cause_of(&format!("worker {slot}"), &frame.body);
                self.events.push(Event::StartFailed(slot, cause));
            }
            kind => {
                if let Some(channel) = self.inner.dispatch().channel_mut(slot) {
                    channel.fault.get_or_insert_with(|| {
                        format!("the worker sent a {kind:?} frame when there was no place for one")
                    });
                }
                self.events.push(Event::Faulty(slot));
            }
        }
    }
}

/// Where a process of the pool runs its jobs: each in a child, if each shall have a process of its own and a fork of the
/// worker, which is nothing but our code in a cgroup, is all that this takes. Else the worker runs its one job itself.
fn runs_of(settings: &Settings, role: Role, hold: &Hold) -> Runs {
    let is_wanted = settings.isolation == Isolation::FreshProcess
        && settings.start_method == StartMethod::ForkServer
        && role == Role::Worker;
    // These are each process's own, or counted over all of a worker.
    let is_plain = settings.initializer.is_none()
        && settings.preload.is_none()
        && settings.memory_limit.is_none()
        && settings.process_limit.is_none()
        && settings.limits.leaks != LeakPolicy::Error;
    let has_stack = || main_thread_suffices(&settings.limits, settings.stack_size as u64);
    match is_wanted && is_plain && hold.has_cgroup() && has_stack() {
        true => Runs::InChildren,
        false => Runs::Here,
    }
}

/// How many jobs a worker gets.
fn jobs_of(settings: &Settings, runs: Runs) -> Option<u64> {
    match runs {
        Runs::Here => settings.jobs_per_worker(),
        Runs::InChildren => None,
    }
}

/// Why a process of the pool says that it cannot start.
pub(super) fn cause_of(who: &str, body: &[u8]) -> String {
    match codec::decode::<StartFault>(body) {
        Ok(StartFault::OtherBuild) => {
            "the executable was replaced by another build while the program ran".to_owned()
        }
        Ok(StartFault::Initializer(message)) => format!("the initializer failed: {message}"),
        Ok(StartFault::Preload(message)) => format!("the preload failed: {message}"),
        Ok(StartFault::Other(message)) => format!("{who} cannot start: {message}"),
        Err(_) => format!("{who} cannot start, and cannot say why"),
    }
}

/// Whether a failed start is worth another try.
pub(super) fn trouble_of(error: &io::Error) -> Trouble {
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::ENOMEM | libc::EMFILE | libc::ENFILE | libc::EINTR) => {
            Trouble::Shortage
        }
        _ => Trouble::Lasting,
    }
}

/// What `ps` shows.
fn full_name(name: &str, program: &Program<'_>) -> OsString {
    let path = match program {
        Program::Other(path) => path.clone(),
        Program::SameImage(_) => std::env::current_exe().unwrap_or_default(),
    };
    let mut name = OsString::from(format!("{name} of "));
    name.push(path.file_name().unwrap_or(Path::new("?").as_os_str()));
    name
}
