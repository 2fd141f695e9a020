//! The one place that waits: for clients, for the journal and the pools, for signals, and for moments.

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use interprocess::local_socket::traits::Listener as _;
use interprocess::local_socket::traits::Stream as _;
use interprocess::os::unix::uds_local_socket::{Listener, Stream};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::signal::Signal;
use nix::sys::signalfd::SignalFd;
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

use super::connection::{CHUNK, Connection, Ended, is_passing};
use super::desk::{Asker, Desk};
use super::inbox::{Inbox, Message};
use crate::error::Error;
use crate::job::Moment;
use crate::protocol::Request;

/// The most connections. One more takes the place of one that has not greeted, or has nothing under way.
const CONNECTIONS_MAX: usize = 512;
/// How many events are taken at a time.
const EVENTS: usize = 64;
/// The longest wait: clocks can be set.
const WAIT_MAX: Duration = Duration::from_secs(1);

const LISTENER: u64 = 0;
const INBOX: u64 = 1;
const SIGNALS: u64 = 2;
/// The first number of a client.
const CLIENTS: u64 = 16;

/// See above.
pub(super) struct EventLoop<'a> {
    listener: &'a Listener,
    signals: &'a SignalFd,
    inbox: &'a Inbox,
    epoll: Epoll,
    desk: Desk,
    clients: HashMap<u64, Client>,
    next_client: u64,
    /// What anything is read into.
    chunk: Vec<u8>,
}

struct Client {
    connection: Connection,
    interest: EpollFlags,
    /// When it was last heard of.
    heard: Instant,
}

impl<'a> EventLoop<'a> {
    pub(super) fn new(
        listener: &'a Listener,
        signals: &'a SignalFd,
        inbox: &'a Inbox,
        desk: Desk,
    ) -> Result<EventLoop<'a>, Error> {
        let fault = |error| Error::system("cannot wait for events", io::Error::from(error));
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(fault)?;
        let readable = |number| EpollEvent::new(EpollFlags::EPOLLIN, number);
        epoll.add(listener, readable(LISTENER)).map_err(fault)?;
        epoll.add(inbox, readable(INBOX)).map_err(fault)?;
        epoll.add(signals, readable(SIGNALS)).map_err(fault)?;
        Ok(EventLoop {
            listener,
            signals,
            inbox,
            epoll,
            desk,
            clients: HashMap::new(),
            next_client: CLIENTS,
            chunk: vec![0; CHUNK],
        })
    }

    /// Until the desk is done, or the journal fails.
    pub(super) fn run(mut self) -> Result<(), Error> {
        let mut events = [EpollEvent::empty(); EVENTS];
        let result = loop {
            self.answer();
            if self.desk.is_over() {
                break Ok(());
            }
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
        self.desk.close();
        result
    }

    fn turn(&mut self, events: &[EpollEvent]) -> Result<(), Error> {
        for event in events {
            match event.data() {
                LISTENER => self.accept(),
                INBOX => self.take_messages()?,
                SIGNALS => self.take_signals(),
                number => self.serve(number, event.events()),
            }
        }
        self.desk.time();
        self.drop_late();
        Ok(())
    }

    fn timeout(&self) -> EpollTimeout {
        let until_due = self.desk.next_time().map(|due| due.since(Moment::now()));
        let late = self.clients.values().filter_map(|client| client.connection.greeting_until());
        let until_late = late.min().map(|late| late.saturating_duration_since(Instant::now()));
        let wait = [until_due, until_late].into_iter().flatten().min().unwrap_or(WAIT_MAX);
        // Rounded up: a moment too early is a turn for nothing.
        let millis = wait.min(WAIT_MAX).as_micros().div_ceil(1000);
        EpollTimeout::try_from(millis as i32).unwrap_or(EpollTimeout::ZERO)
    }

    fn take_messages(&mut self) -> Result<(), Error> {
        for message in self.inbox.take() {
            match message {
                Message::Kept(kept) => kept.into_iter().for_each(|kept| self.desk.kept(kept)),
                Message::JournalFailed(error) => return Err(Error::journal(error)),
                Message::Ended(id, attempt) => self.desk.ended(id, attempt),
            }
        }
        Ok(())
    }

    fn take_signals(&mut self) {
        while let Ok(Some(signal)) = self.signals.read_signal() {
            let signal =
                i32::try_from(signal.ssi_signo).ok().and_then(|n| Signal::try_from(n).ok());
            if let Some(Signal::SIGTERM | Signal::SIGINT) = signal {
                self.desk.stop();
            }
        }
    }

    fn accept(&mut self) {
        loop {
            match self.listener.accept() {
                Ok(stream) => self.welcome(stream),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if is_passing(&error) => {}
                Err(_) => {
                    // No descriptor is left. Somebody who says nothing gives up his.
                    self.evict();
                    return;
                }
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

    /// Ends the connection that is missed least: one that has not greeted, else the one that was silent longest.
    fn evict(&mut self) {
        let rank = |client: &Client| {
            let has_greeted = client.connection.greeting_until().is_none();
            (has_greeted, client.connection.under_way > 0, client.heard)
        };
        let least = self.clients.iter().min_by_key(|(_, client)| rank(client));
        if let Some(number) = least.map(|(number, _)| *number) {
            self.drop_client(number);
        }
    }

    fn drop_late(&mut self) {
        let now = Instant::now();
        let is_late =
            |client: &Client| client.connection.greeting_until().is_some_and(|until| until <= now);
        let late: Vec<u64> = self
            .clients
            .iter()
            .filter(|(_, client)| is_late(client))
            .map(|(number, _)| *number)
            .collect();
        late.into_iter().for_each(|number| self.drop_client(number));
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
        let mut result = Ok(Vec::new());
        if events.contains(EpollFlags::EPOLLOUT) {
            result = client.connection.write().map(|()| Vec::new());
        }
        if result.is_ok()
            && events.intersects(EpollFlags::EPOLLIN | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR)
        {
            result = client.connection.read(&mut self.chunk);
        }
        match result {
            Ok(requests) => self.take_requests(number, requests),
            Err(Ended) => return self.drop_client(number),
        }
        self.settle(number);
    }

    fn take_requests(&mut self, number: u64, requests: Vec<(u64, Request)>) {
        let Some(client) = self.clients.get_mut(&number) else {
            return;
        };
        let pid = client.connection.pid;
        let waits = |request: &Request| matches!(request, Request::Wait(_) | Request::Result(_));
        client.connection.under_way +=
            requests.iter().filter(|(_, request)| !waits(request)).count();
        for (request_number, request) in requests {
            let asker =
                Asker { client: number, number: request_number, pid, is_waiting: waits(&request) };
            self.desk.request(asker, request);
        }
    }

    /// Hands out answers, and what of them is taken at once.
    fn answer(&mut self) {
        let mut touched = Vec::new();
        for (asker, response) in self.desk.take_replies() {
            if let Some(client) = self.clients.get_mut(&asker.client) {
                client.connection.under_way -= usize::from(!asker.is_waiting);
                client.connection.push(asker.number, &response);
                if touched.last() != Some(&asker.client) {
                    touched.push(asker.client);
                }
            }
        }
        touched.sort_unstable();
        touched.dedup();
        touched.into_iter().for_each(|number| self.settle(number));
    }

    /// Writes what a client takes, and says what it is waited for.
    fn settle(&mut self, number: u64) {
        let Some(client) = self.clients.get_mut(&number) else {
            return;
        };
        if client.connection.write().is_err() {
            return self.drop_client(number);
        }
        let mut interest = EpollFlags::empty();
        interest.set(EpollFlags::EPOLLIN, client.connection.wants_input());
        interest.set(EpollFlags::EPOLLOUT, client.connection.wants_output());
        if interest == client.interest {
            return;
        }
        client.interest = interest;
        let mut event = EpollEvent::new(interest, number);
        if self.epoll.modify(client.connection.as_fd(), &mut event).is_err() {
            self.drop_client(number);
        }
    }
}
