//! The fork server, as the core sees it: a process without which no worker is started.
//!
//! It is started with the first worker that is wanted. If it dies before it was ready, or with workers that it
//! was asked for and has not forked, that counts as a failed start; else it is replaced without blame. Spares are no
//! workers: nobody waits for them, so those that it has not forked only come later, if it dies again and again.

use super::starts::BACKOFF_FIRST_NS;
use super::{Action, Life, Machine, Trouble};
use crate::supervisor::slot::{Place, Slot, Stage};

/// What can happen to the fork server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ServerEvent {
    /// It could not be started.
    SpawnFailed(Trouble, String),
    /// It can fork.
    Ready,
    /// It says that it cannot start.
    StartFailed(String),
    /// Its process has ended and is reaped; what is known of the cause, and whom it was asked for and has not
    /// forked.
    Exited { cause: String, unborn: Vec<Place> },
    /// It broke the rules, or does not answer.
    Faulty,
}

/// The place of the fork server.
#[derive(Debug)]
pub(super) struct Server {
    state: Slot,
    /// By when the one that there is, or was, had to be ready.
    give_up_at: u64,
    /// When a dead one is replaced although no worker waits for it.
    replace_at: Option<u64>,
}

impl Server {
    pub(super) fn new() -> Server {
        Server { state: Slot::Empty, give_up_at: 0, replace_at: None }
    }
}

impl Machine {
    pub(crate) fn server(&self) -> Option<Slot> {
        self.server.as_ref().map(|server| server.state)
    }

    pub(super) fn handle_server(&mut self, event: ServerEvent, now: u64, out: &mut Vec<Action>) {
        let Some(server) = &mut self.server else {
            return;
        };
        let (state, give_up_at) = (server.state, server.give_up_at);
        let is_starting = matches!(state, Slot::Starting { .. });
        match event {
            ServerEvent::SpawnFailed(trouble, cause) => {
                server.state = Slot::Empty;
                match trouble {
                    _ if !is_starting => {}
                    Trouble::Shortage => self.shortage(None, give_up_at, cause, now, out),
                    Trouble::Lasting => self.start_death(None, give_up_at, cause, now, out),
                }
            }
            ServerEvent::Ready if is_starting => {
                server.state = Slot::Serving;
                if self.life != Life::Open {
                    self.dismiss_server(now, out);
                }
            }
            ServerEvent::StartFailed(cause) if is_starting => {
                self.kill_server(now, out);
                self.start_death(None, give_up_at, cause, now, out);
            }
            ServerEvent::Ready | ServerEvent::StartFailed(_) => {}
            ServerEvent::Exited { cause, unborn } => {
                server.state = Slot::Empty;
                let births: Vec<Place> =
                    unborn.into_iter().filter(|place| self.unborn(*place)).collect();
                if is_starting || births.iter().any(|place| matches!(place, Place::Slot(_))) {
                    self.start_death(None, give_up_at, cause, now, out);
                } else if state == Slot::Serving {
                    if !births.is_empty() {
                        self.spares.note_loss(now);
                    }
                    if let Some(server) = &mut self.server {
                        // Not at once: one that dies whenever it is ready would keep a processor busy.
                        server.replace_at = Some(now.saturating_add(BACKOFF_FIRST_NS));
                    }
                }
            }
            ServerEvent::Faulty => self.kill_server(now, out),
        }
    }

    /// A process was not forked, and will not be. True if it was still wanted.
    pub(super) fn unborn(&mut self, place: Place) -> bool {
        let before = match place {
            Place::Slot(slot) if self.slots[slot].is_vacant() => return false,
            Place::Spare(place) if self.spare(place).is_vacant() => return false,
            Place::Slot(slot) => std::mem::replace(&mut self.slots[slot], Slot::Empty),
            Place::Spare(place) => self.spares.empty(place),
            Place::Server | Place::Nowhere => return false,
        };
        matches!(before, Slot::Starting { .. })
    }

    /// True if workers can be started, which takes a server that is ready where there shall be one. Starts one
    /// if there is none and one is wanted.
    pub(super) fn may_start(&mut self, workers: usize, now: u64, out: &mut Vec<Action>) -> bool {
        let is_paused = self.is_paused();
        let Some(server) = &mut self.server else {
            return true;
        };
        let due = workers > 0 || server.replace_at.is_some_and(|at| at <= now);
        if server.state == Slot::Empty && self.life == Life::Open && due && !is_paused {
            let give_up_at = now.saturating_add(self.policy.start_timeout_ns);
            *server = Server { state: Slot::Starting { give_up_at }, give_up_at, ..Server::new() };
            out.push(Action::StartServer);
        }
        server.state == Slot::Serving
    }

    /// When something is due about the server, given when workers are; when workers are, given the server.
    pub(super) fn server_deadline(&self, workers: Option<u64>) -> Option<u64> {
        let Some(server) = &self.server else {
            return workers;
        };
        match server.state {
            Slot::Serving => workers,
            Slot::Empty if self.is_paused() => None,
            Slot::Empty if self.life == Life::Open => {
                let replace_at = server.replace_at.map(|at| at.max(self.start_at()));
                [workers, replace_at].into_iter().flatten().min()
            }
            state => state.deadline(),
        }
    }

    /// No worker will be started any more.
    pub(super) fn dismiss_server(&mut self, now: u64, out: &mut Vec<Action>) {
        match &mut self.server {
            Some(server) if server.state == Slot::Serving => {
                let kill_at = now.saturating_add(self.policy.grace_ns);
                server.state = Slot::Stopping(Stage::Leaving { kill_at });
                out.push(Action::DismissServer);
            }
            Some(Server { state: Slot::Starting { .. }, .. }) => self.kill_server(now, out),
            _ => {}
        }
    }

    fn kill_server(&mut self, now: u64, out: &mut Vec<Action>) {
        let killed = self.killed(now);
        if let Some(server) = &mut self.server
            && !server.state.is_vacant()
            && !server.state.is_killed()
        {
            server.state = killed;
            out.push(Action::KillServer);
        }
    }

    /// Notes that the server was abandoned, or can be replaced after all.
    pub(super) fn set_server(&mut self, state: Slot) {
        if let Some(server) = &mut self.server {
            server.state = state;
        }
    }

    /// Does what is due by now.
    pub(super) fn expire_server(&mut self, now: u64, out: &mut Vec<Action>) {
        match self.server() {
            Some(Slot::Starting { give_up_at }) if now >= give_up_at => {
                self.kill_server(now, out);
                let timeout = std::time::Duration::from_nanos(self.policy.start_timeout_ns);
                let cause =
                    format!("the fork server was not ready after {timeout:?} (start_timeout)");
                self.start_death(None, give_up_at, cause, now, out);
            }
            Some(Slot::Stopping(Stage::Leaving { kill_at })) if now >= kill_at => {
                self.kill_server(now, out);
            }
            _ => {}
        }
    }
}
