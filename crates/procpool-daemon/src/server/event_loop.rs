//! The one place that waits: for clients, for the journal and the pools, for signals, and for moments.

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use interprocess::local_socket::traits::Listener as _;
use interprocess::local_socket::traits::Stream as _;
use interprocess::os::unix::uds_local_socket::{Listener, Stream};
use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::signal::Signal;
use nix::sys::signalfd::SignalFd;
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

use super::connection::{CHUNK, Connection, Ended, is_passing, is_wait};
use super::desk::{Asker, Desk};
use super::inbox::{Inbox, Message};
use super::log;
use super::metrics::Metrics;
use super::notify::Notify;
use crate::config::Config;
use crate::error::Error;
use crate::job::Moment;

/// The most connections. One more takes the place of one that has not greeted, or has nothing under way.
const CONNECTIONS_MAX: usize = 512;
/// How much of frames that have begun and not ended all clients may have here: beyond, the one that began first goes.
const GATHERED_MAX: usize = 64 << 20;
/// How much all clients may leave unread: beyond, the one that leaves most goes.
const UNREAD_MAX: usize = 128 << 20;
/// How long nobody is let in when there is no descriptor for him and none can be freed: the listener stays readable, and
/// would be looked at without end.
const DOOR_SHUT: Duration = Duration::from_millis(100);
/// How many events are taken at a time.
const EVENTS: usize = 64;
/// The longest wait: clocks can be set.
const WAIT_MAX: Duration = Duration::from_secs(1);

const LISTENER: u64 = 0;
const INBOX: u64 = 1;
const SIGNALS: u64 = 2;
const METRICS: u64 = 3;
const LOGS: u64 = 4;
/// The first number of a client.
const CLIENTS: u64 = 16;

/// What the loop hears of the world.
#[derive(Debug)]
pub(super) struct Doors<'a> {
    pub(super) listener: &'a Listener,
    pub(super) metrics: Option<&'a Metrics>,
    pub(super) signals: &'a SignalFd,
    pub(super) inbox: &'a Inbox,
    /// What SIGHUP has read again.
    pub(super) config_path: Option<PathBuf>,
}

/// See above.
pub(super) struct EventLoop<'a> {
    doors: Doors<'a>,
    notify: Notify,
    /// Whether that was told.
    is_stopping: bool,
    epoll: Epoll,
    desk: Desk,
    clients: HashMap<u64, Client>,
    next_client: u64,
    door: Door,
    /// What anything is read into.
    chunk: Vec<u8>,
}

/// Whether clients are let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Door {
    Open,
    Shut { until: Instant },
}

struct Client {
    connection: Connection,
    interest: EpollFlags,
    /// When it was last heard of.
    heard: Instant,
}

impl<'a> EventLoop<'a> {
    pub(super) fn new(doors: Doors<'a>, desk: Desk, epoll: Epoll) -> Result<EventLoop<'a>, Error> {
        let fault = |error| Error::system("cannot wait for events", io::Error::from(error));
        let readable = |number| EpollEvent::new(EpollFlags::EPOLLIN, number);
        epoll.add(doors.listener, readable(LISTENER)).map_err(fault)?;
        epoll.add(doors.inbox, readable(INBOX)).map_err(fault)?;
        epoll.add(doors.signals, readable(SIGNALS)).map_err(fault)?;
        epoll.add(desk.followers(), readable(LOGS)).map_err(fault)?;
        if let Some(metrics) = doors.metrics {
            epoll.add(metrics, readable(METRICS)).map_err(fault)?;
        }
        Ok(EventLoop {
            doors,
            notify: Notify::from_env(),
            is_stopping: false,
            epoll,
            desk,
            clients: HashMap::new(),
            next_client: CLIENTS,
            door: Door::Open,
            chunk: vec![0; CHUNK],
        })
    }

    /// Until the desk is done, or the journal fails.
    pub(super) fn run(mut self) -> Result<(), Error> {
        let mut events = [EpollEvent::empty(); EVENTS];
        self.notify.ready();
        let result = loop {
            self.notify.beat();
            self.answer();
            if self.desk.is_over() {
                break Ok(());
            }
            self.desk.flush();
            let count = match self.epoll.wait(&mut events, self.timeout()) {
                Ok(count) => count,
                Err(nix::errno::Errno::EINTR) => 0,
                Err(error) => {
                    break Err(Error::system("cannot wait for events", io::Error::from(error)));
                }
            };
            if let Err(error) = self.turn(&events[..count]) {
                break Err(error);
            }
        };
        // What runs is of no use to anybody if it cannot be recorded.
        let closed = self.desk.close().map_err(Error::journal);
        result.and(closed)
    }

    fn turn(&mut self, events: &[EpollEvent]) -> Result<(), Error> {
        for event in events {
            match event.data() {
                LISTENER => self.accept(),
                INBOX => self.take_messages()?,
                SIGNALS => self.take_signals(),
                LOGS => self.desk.heard(),
                METRICS => {
                    let clients = self.clients.len();
                    if let Some(metrics) = self.doors.metrics {
                        metrics.serve(|| self.desk.health(clients));
                    }
                }
                number => self.serve(number, event.events()),
            }
        }
        self.desk.time();
        if let Some(error) = self.desk.take_failure() {
            return Err(Error::journal(error));
        }
        if self.desk.is_stopping() && !self.is_stopping {
            self.is_stopping = true;
            self.notify.stopping(self.desk.drain_limit());
        }
        self.drop_late();
        self.open_door();
        Ok(())
    }

    fn timeout(&self) -> EpollTimeout {
        let until_due = self.desk.next_time().map(|due| due.since(Moment::now()));
        let late = self.clients.values().filter_map(|client| client.connection.late_at());
        let door = match self.door {
            Door::Open => None,
            Door::Shut { until } => Some(until),
        };
        let moments =
            late.chain(self.desk.next_instant()).chain(self.notify.next_beat()).chain(door);
        let until = moments.min().map(|moment| moment.saturating_duration_since(Instant::now()));
        let wait = [until_due, until].into_iter().flatten().min().unwrap_or(WAIT_MAX);
        // Rounded up: a moment too early is a turn for nothing.
        let millis = wait.min(WAIT_MAX).as_micros().div_ceil(1000);
        EpollTimeout::try_from(millis as i32).unwrap_or(EpollTimeout::ZERO)
    }

    fn take_messages(&mut self) -> Result<(), Error> {
        for message in self.doors.inbox.take() {
            match message {
                Message::Kept(kept) => kept.into_iter().for_each(|kept| self.desk.kept(kept)),
                Message::JournalFailed(error) => return Err(Error::journal(error)),
                Message::Ended(id, attempt) => self.desk.ended(id, attempt),
            }
        }
        Ok(())
    }

    fn take_signals(&mut self) {
        while let Ok(Some(signal)) = self.doors.signals.read_signal() {
            let signal =
                i32::try_from(signal.ssi_signo).ok().and_then(|n| Signal::try_from(n).ok());
            match signal {
                Some(Signal::SIGHUP) => self.reload(),
                Some(Signal::SIGTERM | Signal::SIGINT) => self.desk.stop(),
                _ => {}
            }
        }
    }

    /// Reads the configuration again. One that makes no sense changes nothing.
    fn reload(&mut self) {
        let Some(path) = &self.doors.config_path else {
            return log::say("there is no configuration to read again");
        };
        match Config::read(path).and_then(|config| self.desk.configure(config)) {
            Ok(()) => log::say(format_args!("the configuration `{}` holds now", path.display())),
            Err(error) => log::say(format_args!("the configuration stays as it was: {error}")),
        }
    }

    fn accept(&mut self) {
        loop {
            match self.doors.listener.accept() {
                Ok(stream) => self.welcome(stream),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if is_passing(&error) => {}
                Err(_) => {
                    // No descriptor is left. Somebody who says nothing gives up his.
                    if !self.evict() {
                        self.shut_door();
                    }
                    return;
                }
            }
        }
    }

    fn shut_door(&mut self) {
        let nothing = &mut EpollEvent::new(EpollFlags::empty(), LISTENER);
        if self.epoll.modify(self.doors.listener, nothing).is_ok() {
            self.door = Door::Shut { until: Instant::now() + DOOR_SHUT };
        }
    }

    fn open_door(&mut self) {
        if let Door::Shut { until } = self.door
            && until <= Instant::now()
        {
            let readable = &mut EpollEvent::new(EpollFlags::EPOLLIN, LISTENER);
            if self.epoll.modify(self.doors.listener, readable).is_ok() {
                self.door = Door::Open;
            }
        }
    }

    /// Lets a client in whose user is ours.
    fn welcome(&mut self, stream: Stream) {
        let Ok(peer) = getsockopt(&stream, PeerCredentials) else {
            return;
        };
        if peer.uid() != nix::unistd::geteuid().as_raw() || stream.set_nonblocking(true).is_err() {
            return;
        }
        if self.clients.len() >= CONNECTIONS_MAX {
            self.evict();
        }
        let number = self.next_client;
        let interest = EpollFlags::EPOLLIN;
        if self.epoll.add(&stream, EpollEvent::new(interest, number)).is_err() {
            return;
        }
        self.next_client += 1;
        let connection = Connection::new(stream, peer.pid() as u32);
        self.clients.insert(number, Client { connection, interest, heard: Instant::now() });
    }

    /// Ends the connection that is missed least: one that has not greeted, else the one that was silent longest of
    /// those for which nothing is being done, else of all. False if there is none.
    fn evict(&mut self) -> bool {
        let desk = &self.desk;
        let rank = |(number, client): &(&u64, &Client)| {
            let is_idle = !client.connection.is_busy() && desk.waits_of(**number) == 0;
            (client.connection.has_greeted(), !is_idle, client.heard)
        };
        let least = self.clients.iter().min_by_key(rank).map(|(number, _)| *number);
        if let Some(number) = least {
            self.drop_client(number);
        }
        least.is_some()
    }

    fn drop_late(&mut self) {
        let now = Instant::now();
        let is_late = |client: &Client| client.connection.late_at().is_some_and(|at| at <= now);
        let late: Vec<u64> = self
            .clients
            .iter()
            .filter(|(_, client)| is_late(client))
            .map(|(number, _)| *number)
            .collect();
        late.into_iter().for_each(|number| self.drop_client(number));
    }

    /// Ends the connection that has had a part of a frame here for longest, if there is too much of that.
    fn relieve_input(&mut self) {
        let gathered = || {
            self.clients.iter().filter_map(|(number, client)| {
                client.connection.gathered().map(|(len, begun)| (*number, len, begun))
            })
        };
        if gathered().map(|(_, len, _)| len).sum::<usize>() <= GATHERED_MAX {
            return;
        }
        let long = gathered().filter(|(_, len, _)| *len > CHUNK);
        if let Some((number, ..)) = long.min_by_key(|(_, _, begun)| *begun) {
            self.drop_client(number);
        }
    }

    /// Ends the connection that leaves most unread, if that is too much together.
    fn relieve_output(&mut self) {
        let unread = |client: &Client| client.connection.unread();
        if self.clients.values().map(unread).sum::<usize>() <= UNREAD_MAX {
            return;
        }
        if let Some((number, _)) = self.clients.iter().max_by_key(|(_, client)| unread(client)) {
            self.drop_client(*number);
        }
    }

    fn drop_client(&mut self, number: u64) {
        if let Some(client) = self.clients.remove(&number) {
            // Closing it would do as well; an error says that it is not there.
            let _ = self.epoll.delete(client.connection.as_fd());
            self.desk.gone(number);
        }
    }

    fn serve(&mut self, number: u64, events: EpollFlags) {
        let Some(client) = self.clients.get_mut(&number) else {
            return;
        };
        client.heard = Instant::now();
        let mut result = Ok(());
        if events.contains(EpollFlags::EPOLLOUT) {
            result = client.connection.write();
        }
        if result.is_ok()
            && events.intersects(EpollFlags::EPOLLIN | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR)
        {
            result = client.connection.read(&mut self.chunk);
        }
        if let Err(Ended) = result {
            return self.drop_client(number);
        }
        let is_long = client.connection.gathered().is_some_and(|(len, _)| len > CHUNK);
        self.settle(number);
        if is_long {
            self.relieve_input();
        }
    }

    /// Hands out answers, and what of them is taken at once. Whoever has been answered may have more to ask.
    fn answer(&mut self) {
        loop {
            let replies = self.desk.take_replies();
            if replies.is_empty() {
                return;
            }
            let mut touched = Vec::new();
            for (asker, response) in replies {
                if let Some(client) = self.clients.get_mut(&asker.client) {
                    if let Some(cost) = asker.cost {
                        client.connection.answered(cost);
                    }
                    client.connection.push(asker.number, &response);
                    if touched.last() != Some(&asker.client) {
                        touched.push(asker.client);
                    }
                }
            }
            touched.sort_unstable();
            touched.dedup();
            touched.into_iter().for_each(|number| self.settle(number));
            self.relieve_output();
        }
    }

    /// Writes what a client takes, hears what it may ask, and says what it is waited for.
    fn settle(&mut self, number: u64) {
        let Some(client) = self.clients.get_mut(&number) else {
            return;
        };
        let connection = &mut client.connection;
        let Ok(requests) = connection.write().and_then(|()| connection.requests()) else {
            return self.drop_client(number);
        };
        let pid = connection.pid;
        let mut interest = EpollFlags::empty();
        interest.set(EpollFlags::EPOLLIN, connection.wants_input());
        interest.set(EpollFlags::EPOLLOUT, connection.wants_output());
        let has_changed = interest != client.interest;
        client.interest = interest;
        let mut event = EpollEvent::new(interest, number);
        if has_changed && self.epoll.modify(client.connection.as_fd(), &mut event).is_err() {
            return self.drop_client(number);
        }
        let clients = self.clients.len();
        for asked in requests {
            let cost = (!is_wait(&asked.request)).then_some(asked.cost);
            let asker = Asker { client: number, number: asked.number, pid, cost };
            self.desk.request(asker, asked.request, clients);
        }
    }
}
