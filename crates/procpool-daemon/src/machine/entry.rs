//! One job that has not ended.

use crate::job::{JobId, Life, Moment, State, Step, Terms, Who};

/// The most steps that a history keeps: the first, and the last ones. Each step writes all of it.
pub(super) const HISTORY_MAX: usize = 64;

/// A job that has not ended.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) queue: usize,
    pub(super) priority: i32,
    pub(super) retries: u32,
    /// How many of its attempts count, against `retries`.
    pub(super) used: u32,
    /// How often no worker could be started for it.
    pub(super) unstarted: u32,
    /// Who has had it stopped.
    pub(super) stopped_by: Option<Who>,
    /// Not before this.
    pub(super) due: Option<Moment>,
    /// The jobs that it still waits for, and perhaps some that it does no longer.
    pub(super) after: Box<[JobId]>,
    /// How many jobs it still waits for.
    pub(super) waits_for: u32,
    pub(super) life: Life,
}

impl Entry {
    pub(super) fn new(queue: usize, terms: &Terms, due: Option<Moment>, life: Life) -> Entry {
        Entry {
            queue,
            priority: terms.priority(),
            retries: terms.retries(),
            used: used(&life),
            unstarted: 0,
            stopped_by: None,
            due,
            after: Box::default(),
            waits_for: 0,
            life,
        }
    }

    /// Another step.
    pub(super) fn push(&mut self, step: Step) {
        let history = &mut self.life.history;
        if history.len() >= HISTORY_MAX {
            history.remove(1);
        }
        history.push(step);
    }

    /// It was given a slot, and did not begin: all is as it was before.
    pub(super) fn take_back(&mut self) {
        self.life.take_back();
        self.used -= 1;
    }
}

/// How many attempts count: those since it last ended, if it is being retried.
fn used(life: &Life) -> u32 {
    let Some(end) = life.history.iter().rposition(|step| step.state.is_terminal()) else {
        return life.attempts;
    };
    let starts = life.history[end..].iter().filter(|step| matches!(step.state, State::Running(_)));
    u32::try_from(starts.count()).unwrap_or(u32::MAX)
}
