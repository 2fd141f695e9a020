//! Spares, as the core sees them: processes that are ready before a slot wants one.
//!
//! There are none before the first worker was ready, in some pools none before the first death, and none are started
//! while starts go wrong. Taking one is the core's decision: a slot goes from `Empty` to `Serving` at once, and the place
//! of the spare is filled again. For one that is starting a slot waits: it will be ready sooner than another that is
//! started now.

use super::starts::{BACKOFF_FIRST_NS, BACKOFF_MAX_NS};
use super::{Action, Life, Machine, Trouble};
use crate::supervisor::slot::{Place, Slot, Stage};

/// What can happen to a spare.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SpareEvent {
    /// It could not be started.
    SpawnFailed(Trouble, String),
    /// It could take jobs.
    Ready,
    /// It says that it cannot start.
    StartFailed(String),
    /// Its process has ended and is reaped; what is known of the cause.
    Exited(String),
    /// It broke the rules.
    Faulty,
}

/// From when on there are spares; never before some worker was ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SparesFrom {
    /// Then at once.
    FirstWorker,
    /// Once a worker has died, or had to be killed: it may not be the last one.
    FirstDeath,
}

/// The places of spares.
#[derive(Debug)]
pub(super) struct Spares {
    places: Vec<Slot>,
    from: SparesFrom,
    /// Some worker was ready once.
    worker_seen: bool,
    /// One that was not told to leave is gone.
    death_seen: bool,
    /// Ready ones that have died, or whose server has died before they were forked, since one was last taken.
    deaths: u32,
    /// None is started before this time.
    not_before: u64,
}

impl Spares {
    pub(super) fn new(places: usize, from: SparesFrom) -> Spares {
        Spares {
            places: vec![Slot::Empty; places],
            from,
            worker_seen: false,
            death_seen: false,
            deaths: 0,
            not_before: 0,
        }
    }

    pub(super) fn note_worker(&mut self) {
        self.worker_seen = true;
    }

    pub(super) fn note_death(&mut self) {
        self.death_seen = true;
    }

    /// One that nobody is to blame for is gone. But one that dies whenever it is ready, or as it is forked, is not replaced
    /// without end at full speed.
    pub(super) fn note_loss(&mut self, now: u64) {
        let doublings = self.deaths.min(20);
        self.deaths += 1;
        let wait = (BACKOFF_FIRST_NS << doublings).min(BACKOFF_MAX_NS);
        self.not_before = now.saturating_add(wait);
    }

    /// Whether it is time that there were some.
    fn are_wanted(&self) -> bool {
        self.worker_seen && (self.from == SparesFrom::FirstWorker || self.death_seen)
    }

    /// How many will be ready soon.
    pub(super) fn starting(&self) -> usize {
        self.places.iter().filter(|place| matches!(place, Slot::Starting { .. })).count()
    }

    pub(super) fn empty(&mut self, place: usize) -> Slot {
        std::mem::replace(&mut self.places[place], Slot::Empty)
    }

    /// Those that are starting have so much longer.
    pub(super) fn wait_longer(&mut self, by: u64) {
        self.places.iter_mut().for_each(|place| place.wait_longer(by));
    }

    pub(super) fn states(&self) -> impl Iterator<Item = (usize, Slot)> {
        self.places.iter().copied().enumerate()
    }

    pub(super) fn places_mut(&mut self) -> &mut [Slot] {
        &mut self.places
    }

    pub(super) fn is_empty(&self) -> bool {
        self.places.iter().all(Slot::is_vacant)
    }
}

impl Machine {
    pub(crate) fn spare(&self, place: usize) -> Slot {
        self.spares.places[place]
    }

    pub(super) fn handle_spare(
        &mut self,
        place: usize,
        event: SpareEvent,
        now: u64,
        out: &mut Vec<Action>,
    ) {
        let before = self.spares.places[place];
        let is_starting = matches!(before, Slot::Starting { .. });
        match event {
            SpareEvent::SpawnFailed(trouble, cause) => {
                self.spares.places[place] = Slot::Empty;
                match (before, trouble) {
                    // Nobody waits for it: it is enough to try again later.
                    (_, Trouble::Shortage) => {
                        self.spares.not_before = now.saturating_add(BACKOFF_MAX_NS);
                    }
                    (Slot::Starting { give_up_at }, Trouble::Lasting) => {
                        self.start_death(None, give_up_at, cause, now, out);
                    }
                    _ => {}
                }
            }
            SpareEvent::Ready if is_starting => {
                self.spares.places[place] = Slot::Serving;
                self.starts_go_well();
                if self.life != Life::Open {
                    self.dismiss_spares(now, out);
                }
            }
            SpareEvent::StartFailed(cause) => {
                if let Slot::Starting { give_up_at } = before {
                    self.kill_spare(place, now, out);
                    self.start_death(None, give_up_at, cause, now, out);
                }
            }
            SpareEvent::Exited(cause) => {
                self.spares.places[place] = Slot::Empty;
                match before {
                    Slot::Starting { give_up_at } => {
                        self.start_death(None, give_up_at, cause, now, out);
                    }
                    Slot::Serving => self.spares.note_loss(now),
                    Slot::Empty | Slot::Stopping(_) | Slot::Lost => {}
                }
            }
            SpareEvent::Ready => {}
            SpareEvent::Faulty => self.kill_spare(place, now, out),
        }
    }

    /// Gives spares that are ready to slots that want workers.
    pub(super) fn take_spares(&mut self, out: &mut Vec<Action>) {
        if self.life != Life::Open || self.is_paused() {
            return;
        }
        let mut wanted = self.wanted().saturating_sub(self.starting());
        while wanted > 0
            && let Some(slot) = self.slots.iter().position(|slot| *slot == Slot::Empty)
            && let Some(place) = self.spares.places.iter().position(|p| *p == Slot::Serving)
        {
            self.slots[slot] = Slot::Serving;
            self.spares.places[place] = Slot::Empty;
            self.spares.deaths = 0;
            self.note_wanted_worker();
            wanted -= 1;
            out.push(Action::TakeSpare { spare: place, slot });
        }
    }

    /// Fills the places that are empty. Workers that are wanted have been started before.
    pub(super) fn start_spares(&mut self, now: u64, out: &mut Vec<Action>) {
        if self.spares_due().is_some_and(|due| due <= now) {
            let give_up_at = now.saturating_add(self.policy.start_timeout_ns);
            for (place, slot) in self.spares.places.iter_mut().enumerate() {
                if *slot == Slot::Empty {
                    *slot = Slot::Starting { give_up_at };
                    out.push(Action::SpawnSpare(place));
                }
            }
        }
    }

    /// When spares are started, if any are to be.
    fn spares_due(&self) -> Option<u64> {
        let server_serves = self.server().is_none_or(|server| server == Slot::Serving);
        let may_start = self.life == Life::Open
            && !self.is_paused()
            && self.spares.are_wanted()
            && self.start_deaths.is_empty()
            && server_serves;
        (may_start && self.spares.places.contains(&Slot::Empty))
            .then_some(self.spares.not_before.max(self.start_at()))
    }

    pub(super) fn spares_deadline(&self) -> Option<u64> {
        let places = self.spares.places.iter().filter_map(|place| self.due(place));
        places.chain(self.spares_due()).min()
    }

    /// No worker will be started any more.
    pub(super) fn dismiss_spares(&mut self, now: u64, out: &mut Vec<Action>) {
        for place in 0..self.spares.places.len() {
            match self.spares.places[place] {
                Slot::Serving => {
                    self.let_end(Place::Spare(place), out);
                    let kill_at = now.saturating_add(self.policy.grace_ns);
                    self.spares.places[place] = Slot::Stopping(Stage::Leaving { kill_at });
                    out.push(Action::DismissSpare(place));
                }
                Slot::Starting { .. } => self.kill_spare(place, now, out),
                Slot::Empty | Slot::Stopping(_) | Slot::Lost => {}
            }
        }
    }

    fn kill_spare(&mut self, place: usize, now: u64, out: &mut Vec<Action>) {
        let state = self.spares.places[place];
        if !state.is_vacant() && !state.is_killed() {
            self.spares.places[place] = self.killed(now);
            out.push(Action::KillSpare(place));
        }
    }

    /// Does what is due by now.
    pub(super) fn expire_spares(&mut self, now: u64, out: &mut Vec<Action>) {
        for place in 0..self.spares.places.len() {
            match self.spares.places[place] {
                Slot::Starting { give_up_at } if now >= give_up_at && !self.is_paused() => {
                    self.kill_spare(place, now, out);
                    let timeout = std::time::Duration::from_nanos(self.policy.start_timeout_ns);
                    let cause = format!("a spare was not ready after {timeout:?} (start_timeout)");
                    self.start_death(None, give_up_at, cause, now, out);
                }
                Slot::Stopping(Stage::Leaving { kill_at }) if now >= kill_at => {
                    self.kill_spare(place, now, out);
                }
                _ => {}
            }
        }
    }
}
