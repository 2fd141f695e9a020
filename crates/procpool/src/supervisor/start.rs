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
use procpool_sys::spawn::{self, Program};
use procpool_sys::{channel as sockets, clock, limits, mapping};
use procpool_wire::block::BLOCK_WORDS;
use procpool_wire::codec;
use procpool_wire::frame::{Frame, FrameKind};
use procpool_wire::handshake::{Setup, StartFault, Target};
use procpool_wire::limits::WorkerLimits;

use super::channel::PoolChannel;
use super::machine::{Event, Trouble};
use super::slot::Slot;
use super::stderr::Tap;
use super::{Supervisor, Token, Worker};
use crate::attachments::Forgets;
use crate::attachments::carrier::Carrier;
use crate::events;
use crate::nesting;

impl Supervisor {
    pub(super) fn spawn(&mut self, slot: usize) -> io::Result<()> {
        let (tap, stderr) = self.stderr.open(slot)?;
        self.spawn_with(slot, &tap, stderr).inspect_err(|_| {
            self.stderr.close(&tap);
        })
    }

    fn spawn_with(&mut self, slot: usize, tap: &Arc<Tap>, stderr: OwnedFd) -> io::Result<()> {
        let settings = &self.inner.settings;
        let (ours, theirs) = sockets::pair()?;
        let (memory, memory_fd) = mapping::create(BLOCK_WORDS)?;
        let program = match &settings.worker_program {
            Some(path) => Program::Other(path.clone()),
            None => Program::SameImage(self.inner.image),
        };
        let name = worker_name(slot, &program);
        let (process, _) =
            spawn::spawn(&program, &name, &settings.environment, theirs, stderr, None)?;
        self.stderr.watch(tap, process.id())?;
        let mut channel =
            PoolChannel::new(slot, process.id(), memory, ours, settings.max_jobs_per_worker);
        let wake: Arc<dyn Forgets> = Arc::clone(&self.inner.wake) as _;
        channel.set_who_forgets(Arc::downgrade(&wake));
        let stdout = io::stdout();
        let fds = [memory_fd.as_fd(), stdout.as_fd()];
        // The same program has the host's standard output already.
        let fds = if settings.worker_program.is_some() { &fds[..] } else { &fds[..1] };
        match channel.send_setup(&self.setup(slot), fds) {
            // It has ended already, and its exit status and last words tell more than this error.
            Err(error) if is_hangup(&error) => {}
            result => result?,
        }
        if let Some(initializer) = &settings.initializer {
            channel.attach(&initializer.attachments);
            channel.flush();
        }
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP;
        self.epoll.add(channel.fd(), Token::Channel(slot).event(flags))?;
        self.epoll.add(process.pidfd(), Token::Process(slot).event(EpollFlags::EPOLLIN))?;
        let tap = Arc::clone(tap);
        let pid = process.id();
        let started_ns = clock::monotonic_ns();
        let worker = Worker { process, tap, hung_up_at: None, writing: false, started_ns };
        self.workers[slot] = Some(worker);
        self.notes.add(events::Event::WorkerStarting { worker: slot, pid });
        let inner = Arc::clone(&self.inner);
        let mut dispatch = inner.dispatch();
        dispatch.add_worker(channel);
        self.register_writers(&mut dispatch);
        Ok(())
    }

    fn setup(&self, slot: usize) -> Vec<u8> {
        let settings = &self.inner.settings;
        let initializer = settings.initializer.as_ref().and_then(|initializer| {
            // The builder has checked that it is in the image.
            let (run, function) = self.inner.image.offsets(initializer.function)?;
            Some((Target::Offset { run, function }, initializer.argument.clone()))
        });
        let setup = Setup {
            build_id: settings
                .worker_program
                .is_none()
                .then(|| self.inner.image.build_id().to_vec()),
            slot: slot as u32,
            depth: nesting::below(),
            host: process::id(),
            stack_size: settings.stack_size as u64,
            payload_limit: settings.payload_limit,
            initializer,
            initializer_uses: settings
                .initializer
                .as_ref()
                .map(|initializer| Carrier::numbers(&initializer.attachments))
                .unwrap_or_default(),
            current_dir: settings
                .current_dir
                .as_deref()
                .map(|dir| dir.as_os_str().as_bytes().to_vec()),
            limits: WorkerLimits { cpu: self.cpu_of(slot), ..settings.limits.clone() },
        };
        let mut body = Vec::new();
        // The type is ours and always encodes.
        let _ = codec::encode_into(&setup, None, &mut body);
        body
    }

    /// The CPU that this slot's worker is pinned to.
    fn cpu_of(&self, slot: usize) -> Option<u32> {
        if !self.inner.settings.pin_cpus {
            return None;
        }
        // Asked anew for each worker: the host's CPUs can change while it runs. Where there is one only, or
        // nobody says which, there is nothing to choose.
        let cpus = limits::usable_cpus().ok().filter(|cpus| cpus.len() > 1)?;
        Some(cpus[slot % cpus.len()])
    }

    /// Takes what a starting worker says.
    pub(super) fn take_start_frame(&mut self, slot: usize, frame: &Frame) {
        let is_starting = matches!(self.machine.slot(slot), Slot::Starting { .. });
        match frame.kind {
            FrameKind::Ready if is_starting => {
                // Told before `warm_up` can return because of it.
                self.note_ready(slot);
                self.notes.tell();
                self.inner.dispatch().ready(slot);
                self.events.push(Event::Ready(slot));
                self.inner.changed.notify_all();
            }
            FrameKind::StartFailed if is_starting => {
                let cause = match codec::decode::<StartFault>(&frame.body) {
                    Ok(StartFault::OtherBuild) => {
                        "the executable was replaced by another build while the program ran"
                            .to_owned()
                    }
                    Ok(StartFault::Initializer(message)) => {
                        format!("the initializer failed: {message}")
                    }
                    Ok(StartFault::Other(message)) => {
                        format!("worker {slot} cannot start: {message}")
                    }
                    Err(_) => format!("worker {slot} cannot start, and cannot say why"),
                };
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
/// True if the other end of a channel is closed.
fn is_hangup(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
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
fn worker_name(slot: usize, program: &Program<'_>) -> OsString {
    let path = match program {
        Program::Other(path) => path.clone(),
        Program::SameImage(_) => std::env::current_exe().unwrap_or_default(),
    };
    let mut name = OsString::from(format!("procpool-worker {slot} of "));
    name.push(path.file_name().unwrap_or(Path::new("?").as_os_str()));
    name
}
