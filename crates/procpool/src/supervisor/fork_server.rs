//! The pool's end of its fork server: a process that is asked for workers, and forks them.
//!
//! A request carries the descriptors of the new worker, whose setup is on its own channel already. The answer is
//! a process id, and is believed as far as that process is a child of ours. A server that dies leaves nobody
//! behind: its kernel notes each child in shared memory before the child runs, so one whose birth it did not live
//! to tell is taken up all the same. Workers need it no more once they are born.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::epoll::EpollFlags;
use procpool_sys::clock;
use procpool_sys::spawn::{Exit, Process};
use procpool_wire::codec;
use procpool_wire::frame::{Frame, FrameKind};
use procpool_wire::handshake::Forked;

use super::channel::{Harvest, Link, PoolChannel};
use super::machine::{Event, ServerEvent, SpareEvent};
use super::obituary::start_cause;
use super::slot::{Place, Slot};
use super::start::{Cradle, cause_of, trouble_of};
use super::{Course, HANGUP_GRACE_NS, Supervisor, Token, Worker};
use crate::builder::StartMethod;
use crate::worker::FORK_SERVER_NAME;

/// Requests that wait for an answer at a time: enough that the server never waits for us, few enough that the
/// descriptors in flight stay far from the limit for all of a user's (unix(7), ETOOMANYREFS).
const ASKED_MAX: usize = 8;

pub(super) struct ForkServer {
    pub(super) worker: Worker,
    channel: PoolChannel,
    /// Workers to be forked, oldest first.
    births: VecDeque<Cradle>,
    /// How many of them it was asked for.
    asked: usize,
    /// How many it has answered for.
    answered: u64,
    /// When it was last asked.
    asked_ns: u64,
}

impl Supervisor {
    pub(super) fn start_server(&mut self) {
        if let Err(error) = self.try_start_server() {
            let cause = format!("cannot start the fork server: {error}");
            let event = ServerEvent::SpawnFailed(trouble_of(&error), cause);
            self.events.push(Event::Server(event));
        }
    }

    fn try_start_server(&mut self) -> io::Result<()> {
        let cradle = self.make_cradle(Place::Server, StartMethod::Spawn)?;
        let (worker, channel) = self.execute(FORK_SERVER_NAME, cradle)?;
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP;
        let token = Token::ServerProcess.event(EpollFlags::EPOLLIN);
        let watched = self
            .epoll
            .add(channel.fd(), Token::ServerChannel.event(flags))
            .and_then(|()| self.epoll.add(worker.process.pidfd(), token))
            .map_err(io::Error::from)
            .and_then(|()| self.stderr.watch(&worker.tap, worker.process.id(), None));
        if let Err(error) = watched {
            self.stderr.close(&worker.tap);
            return Err(error);
        }
        let births = VecDeque::new();
        self.server =
            Some(ForkServer { worker, channel, births, asked: 0, answered: 0, asked_ns: 0 });
        self.register_server_writing();
        Ok(())
    }

    /// Asks for a worker.
    pub(super) fn ask_for(&mut self, cradle: Cradle) {
        match &mut self.server {
            Some(server) => {
                server.births.push_back(cradle);
                server.ask();
            }
            // It has died since the core decided so.
            None => self.give_up(cradle),
        }
    }

    /// A worker will not be asked for.
    fn give_up(&mut self, cradle: Cradle) {
        self.stderr.close(&cradle.tap);
        cradle.hold.let_go(&self.inner);
        self.events.push(Event::Unborn(cradle.place));
    }

    /// A process is not wanted any more, and may not have been forked yet. If it is, it is killed then.
    pub(super) fn renounce(&mut self, place: Place) {
        let Some(server) = &mut self.server else {
            return;
        };
        if self.course == Course::Serving && server.births.iter().any(|birth| birth.place == place)
        {
            // Its time was up, so the server does not answer.
            server.channel.fault.get_or_insert_with(|| "it did not answer in time".into());
            self.events.push(Event::Server(ServerEvent::Faulty));
        }
    }

    pub(super) fn dismiss_server(&mut self) {
        let Some(server) = &mut self.server else {
            return;
        };
        let unasked = server.births.split_off(server.asked);
        server.channel.send_frame(FrameKind::Bye);
        for cradle in unasked {
            self.give_up(cradle);
        }
        self.register_server_writing();
    }

    pub(super) fn kill_server(&mut self) {
        if let Some(server) = &self.server {
            server.worker.process.kill_group();
        }
    }

    /// Reads what the server has sent.
    pub(super) fn read_server(&mut self) {
        let Some(server) = &mut self.server else {
            return;
        };
        server.channel.flush();
        let (frames, link) = server.read(&mut self.buffer);
        if link == Link::Closed {
            server.worker.hung_up_at = Some(clock::monotonic_ns());
            let _ = self.epoll.delete(server.channel.fd());
        }
        for frame in frames {
            self.take_server_frame(&frame);
        }
        self.check_server_fault();
        self.register_server_writing();
    }

    pub(super) fn take_server_frame(&mut self, frame: &Frame) {
        let is_starting = matches!(self.machine.server(), Some(Slot::Starting { .. }));
        match frame.kind {
            FrameKind::Ready if is_starting => self.events.push(Event::Server(ServerEvent::Ready)),
            FrameKind::StartFailed if is_starting => {
                let cause = cause_of("the fork server", &frame.body);
                self.events.push(Event::Server(ServerEvent::StartFailed(cause)));
            }
            FrameKind::Forked => self.take_birth(&frame.body),
            kind => {
                let fault = || format!("it sent a {kind:?} frame when there was no place for one");
                if let Some(server) = &mut self.server {
                    server.channel.fault.get_or_insert_with(fault);
                }
            }
        }
    }

    fn take_birth(&mut self, body: &[u8]) {
        let Some(server) = &mut self.server else {
            return;
        };
        let Ok(forked) = codec::decode::<Forked>(body) else {
            server.channel.fault.get_or_insert_with(|| "its answer cannot be read".into());
            return;
        };
        let Some(cradle) = server.births.pop_front_if(|_| server.asked > 0) else {
            server.channel.fault.get_or_insert_with(|| "it answered what it was not asked".into());
            return;
        };
        server.asked -= 1;
        server.answered += 1;
        server.ask();
        match forked {
            Forked::Born(pid) => self.born(cradle, pid),
            Forked::Refused(errno) => {
                self.stderr.close(&cradle.tap);
                cradle.hold.let_go(&self.inner);
                let error = io::Error::from_raw_os_error(errno);
                self.stillborn(cradle.place, &error);
            }
        }
    }

    fn stillborn(&mut self, place: Place, error: &io::Error) {
        let cause = |what: &str| format!("the fork server cannot fork {what}: {error}");
        let trouble = trouble_of(error);
        self.events.push(match place {
            Place::Slot(slot) => {
                Event::SpawnFailed(slot, trouble, cause(&format!("worker {slot}")))
            }
            Place::Spare(place) => {
                Event::Spare(place, SpareEvent::SpawnFailed(trouble, cause("a spare")))
            }
            Place::Server | Place::Nowhere => return,
        });
    }

    /// Takes up a process that was forked.
    fn born(&mut self, cradle: Cradle, pid: u32) {
        let Cradle { place, channel, tap, hold, memory, ends } = cradle;
        drop(ends);
        let settled = match Process::adopt(pid) {
            Err(error) => {
                self.stderr.close(&tap);
                hold.let_go(&self.inner);
                Err(error)
            }
            Ok(process) => {
                let worker = Worker::new(process, tap, hold, memory);
                match place {
                    Place::Slot(slot) => self.move_in(slot, worker, channel),
                    Place::Spare(place) => self.settle_spare(place, worker, channel),
                    Place::Server => Ok(()),
                    Place::Nowhere => {
                        let Worker { process, tap, hold, .. } = worker;
                        self.stderr.close(&tap);
                        process.reap();
                        hold.let_go(&self.inner);
                        Ok(())
                    }
                }
            }
        };
        if let Err(error) = settled {
            return self.stillborn(place, &error);
        }
        // It may have been renounced before it was there.
        let process = match place {
            Place::Slot(slot) if self.machine.slot(slot).is_killed() => &mut self.workers[slot],
            Place::Spare(place) if self.machine.spare(place).is_killed() => {
                return self.kill_spare(place);
            }
            _ => return,
        };
        if let Some(worker) = process {
            worker.kill_tree();
        }
    }

    fn check_server_fault(&mut self) {
        if self.server.as_ref().is_some_and(|server| server.channel.fault.is_some()) {
            self.events.push(Event::Server(ServerEvent::Faulty));
        }
    }

    /// A server whose channel is closed although it lives is killed.
    pub(super) fn check_server_hangup(&mut self) {
        let now = clock::monotonic_ns();
        if let Some(server) = &mut self.server
            && server.worker.hung_up_at.take_if(|at| now >= *at + HANGUP_GRACE_NS).is_some()
        {
            server.channel.fault.get_or_insert_with(|| "it closed its control channel".into());
            self.check_server_fault();
        }
    }

    /// Tells epoll whether its channel waits for room.
    fn register_server_writing(&mut self) {
        if let Some(server) = &mut self.server {
            let wants = server.channel.wants_to_write();
            if wants != server.worker.writing && server.worker.hung_up_at.is_none() {
                server.worker.writing = wants;
                let mut flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP;
                flags.set(EpollFlags::EPOLLOUT, wants);
                let event = &mut Token::ServerChannel.event(flags);
                let _ = self.epoll.modify(server.channel.fd(), event);
            }
        }
    }

    /// The server's process has ended: takes up its last child, gives up the others.
    pub(super) fn bury_server(&mut self) {
        let Some(server) = &mut self.server else {
            return;
        };
        let exit = match server.worker.process.exit() {
            Ok(Some(exit)) => exit,
            Ok(None) => return,
            Err(_) => Exit::Unknown,
        };
        server.worker.process.kill_group();
        for frame in server.last_frames(&mut self.buffer) {
            if matches!(frame.kind, FrameKind::StartFailed | FrameKind::Forked) {
                self.take_server_frame(&frame);
            }
        }
        self.handle_events();
        let fault = self.server.as_ref().and_then(|server| server.channel.fault.clone());
        let Some((worker, unborn)) = self.close_server() else {
            return;
        };
        let Worker { process, tap, .. } = worker;
        let pid = process.id();
        process.reap();
        let tail = self.stderr.close(&tap);
        let cause = start_cause("the fork server", pid, exit, fault, &tail);
        self.events.push(Event::Server(ServerEvent::Exited { cause, unborn }));
    }

    /// There is no fork server any more: takes up its last child, gives up the others. Its process, and who was not
    /// born.
    pub(super) fn close_server(&mut self) -> Option<(Worker, Vec<Place>)> {
        let mut server = self.server.take()?;
        if server.asked > 0
            && let Some(pid) = server.channel.newborn(server.answered + 1)
            && let Some(cradle) = server.births.pop_front()
        {
            self.born(cradle, pid);
        }
        let mut unborn = Vec::new();
        for cradle in server.births {
            self.stderr.close(&cradle.tap);
            cradle.hold.let_go(&self.inner);
            unborn.push(cradle.place);
        }
        Some((server.worker, unborn))
    }
}

impl ForkServer {
    /// Sends as many requests as may wait for an answer.
    fn ask(&mut self) {
        while self.asked < ASKED_MAX.min(self.births.len()) {
            let Cradle { ends: [control, stderr], hold, .. } = &self.births[self.asked];
            // One that cannot be opened now the worker finds itself.
            let cgroup = hold.birth_dir().ok().flatten();
            let fds = [Some(control), Some(stderr), cgroup.as_ref()];
            let fds: Vec<BorrowedFd<'_>> = fds.into_iter().flatten().map(AsFd::as_fd).collect();
            match self.channel.send_frame_with(FrameKind::Fork, &[], &fds) {
                // It is gone: what is asked of it now is settled at its burial.
                Ok(()) => {
                    self.asked += 1;
                    self.asked_ns = clock::monotonic_ns();
                }
                Err(_) => return,
            }
        }
    }

    /// Whether it was asked for a worker within this time.
    pub(super) fn has_been_asked_since(&self, ns: u64) -> bool {
        clock::monotonic_ns().saturating_sub(self.asked_ns) < ns
    }

    /// What it has sent before its end.
    pub(super) fn last_frames(&mut self, buffer: &mut [u8]) -> Vec<Frame> {
        self.read(buffer).0
    }

    /// Whoever is still to be forked for this place ends as soon as he is.
    pub(super) fn renounce_all(&mut self, place: Place) {
        for cradle in self.births.iter_mut().filter(|cradle| cradle.place == place) {
            cradle.place = Place::Nowhere;
        }
    }

    fn read(&mut self, buffer: &mut [u8]) -> (Vec<Frame>, Link) {
        let mut frames = Vec::new();
        // No jobs travel on this channel, so there is nothing to harvest.
        let mut harvest = Harvest::default();
        let link = self.channel.read_frames(buffer, &mut harvest, |frame| frames.push(frame));
        (frames, link)
    }
}
