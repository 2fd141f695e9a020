//! The pure core: which job is where, and what follows from what happens.
//!
//! [`Machine::handle`] makes every transition. It does no I/O, reads no clock and knows neither clients nor
//! workers: it takes an event and the time, and says which changes must be kept and what is to be done once
//! they are. Only jobs that have not ended are in it; the others are in the [store](crate::store) alone.

mod again;
mod entry;
mod event;
#[cfg(test)]
mod properties;
mod queue;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap};

use procpool::executor::Verdict;

use self::again::{UNSTARTED_MAX, backoff, may_help, never_ran, quarantined, unstarted};
use self::entry::Entry;
use crate::job::{
    Attempt, Ending, JobId, JobSpec, Life, Moment, Outcome, Record, State, Step, Who,
};
use crate::store::Change;

pub use event::{Answer, Because, Effects, Event, Then};
pub use queue::{Gate, Queue, QueueInfo, QueueOrder, QueueSetting};

/// All jobs that have not ended.
#[derive(Debug)]
pub struct Machine {
    jobs: HashMap<JobId, Entry>,
    queues: Vec<Queue>,
    /// Those that wait for a moment.
    timers: BTreeSet<(Moment, JobId)>,
    /// Who waits for whom.
    dependents: HashMap<JobId, BTreeSet<JobId>>,
    /// How many entries there are in `dependents`.
    edges: usize,
    next: JobId,
    is_draining: bool,
}

impl Machine {
    /// A machine with these queues and no job. `next` is the number of the next one.
    pub fn new(queues: Vec<Queue>, next: JobId) -> Machine {
        Machine {
            jobs: HashMap::new(),
            queues,
            timers: BTreeSet::new(),
            dependents: HashMap::new(),
            edges: 0,
            next,
            is_draining: false,
        }
    }

    /// How many jobs there are.
    pub fn len(&self) -> usize {
        self.jobs.len()
    }

    /// True if there is none.
    pub fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }

    /// What there is to remember: the jobs, and how often one waits for another.
    pub fn weight(&self) -> usize {
        self.jobs.len() + self.edges
    }

    /// True if the job has not ended.
    pub fn is_live(&self, id: JobId) -> bool {
        self.jobs.contains_key(&id)
    }

    /// True if there is such a queue.
    pub fn has_queue(&self, name: &str) -> bool {
        self.queues.iter().any(|queue| queue.name() == name)
    }

    /// The queues as they are.
    pub fn queues(&self) -> impl Iterator<Item = QueueInfo> {
        self.queues.iter().map(Queue::info)
    }

    /// How many jobs run.
    pub fn running(&self) -> usize {
        self.queues.iter().map(Queue::running).sum()
    }

    /// The jobs that run, by number.
    pub fn running_ids(&self) -> Vec<JobId> {
        let mut ids: Vec<_> = self.queues.iter().flat_map(Queue::running_ids).collect();
        ids.sort_unstable();
        ids
    }

    /// Takes up what was set of a queue while an earlier daemon ran. Before the jobs.
    pub fn restore_queue(&mut self, name: &str, setting: QueueSetting) {
        let queue = self.queue_or_new(name);
        self.queues[queue].set(setting);
    }

    /// Whether jobs of a queue are started.
    pub fn starts(&self, name: &str) -> bool {
        let queue = self.queues.iter().find(|queue| queue.name() == name);
        !self.is_draining && queue.is_some_and(|queue| !queue.is_paused())
    }

    /// The jobs that run, and their attempts.
    pub fn attempts(&self) -> impl Iterator<Item = (JobId, Attempt)> {
        let ids = self.queues.iter().flat_map(Queue::running_ids);
        ids.map(|id| (id, self.jobs[&id].life.attempts))
    }

    /// True if no job is started any more.
    pub fn is_draining(&self) -> bool {
        self.is_draining
    }

    /// When [`Event::Time`] is due.
    pub fn next_time(&self) -> Option<Moment> {
        self.timers.first().map(|(moment, _)| *moment)
    }

    /// Takes up a job of an earlier daemon, in the order of their numbers. `ended` are those of its dependencies
    /// that have. After the last one, tell of [`Event::Restarted`].
    pub fn restore(
        &mut self,
        record: Record,
        ended: &[(JobId, State)],
        now: Moment,
        effects: &mut Effects,
    ) {
        let Record { id, terms, life } = record;
        let queue = self.queue_or_new(&terms.queue);
        let was = life.state();
        let due = match was {
            State::Scheduled => terms.not_before,
            _ => None,
        };
        // What was started before has waited for its dependencies then.
        let after = if life.attempts > 0 { &[] } else { terms.after.as_slice() };
        self.jobs.insert(id, Entry::new(queue, &terms, due, life));
        match was {
            State::Running(_) => self.queues[queue].count_running(id),
            State::Queued => self.enqueue(id),
            _ => self.schedule(id, after, ended, now, effects),
        }
    }

    /// Takes note of what happened, and says what follows.
    pub fn handle(&mut self, event: Event, now: Moment, effects: &mut Effects) -> Answer {
        let answer = match event {
            Event::Submit { spec, by, ended } => self.submit(*spec, by, &ended, now, effects),
            Event::Ended { id, attempt, ending } => self.ended(id, attempt, *ending, now, effects),
            Event::TakenBack { id, attempt, because } => {
                self.taken_back(id, attempt, because, effects);
                Answer::Nothing
            }
            Event::Cancel { id, taken_back, by } => self.cancel(id, taken_back, by, now, effects),
            Event::Abort { id, taken_back, by } => {
                match self.cancel(id, taken_back, by, now, effects) {
                    Answer::Running => {
                        let entry = self.jobs.get_mut(&id).expect("it runs");
                        entry.stopped_by.get_or_insert(by);
                        effects.then.push(Then::Stop { id });
                        Answer::Running
                    }
                    other => other,
                }
            }
            Event::Retry { record, by } => self.retry(*record, by, now, effects),
            Event::Queue { name, order } => {
                let index = self.queue_or_new(&name);
                let setting = self.queues[index].setting().after(order);
                self.queues[index].set(setting);
                effects.changes.push(Change::Queue { name, setting });
                Answer::Nothing
            }
            Event::Configured(queues) => {
                self.configure(&queues);
                Answer::Nothing
            }
            Event::Restarted { unbegun } => {
                for id in self.running_ids() {
                    if unbegun.contains(&id) {
                        self.wait_again(id, effects);
                    } else {
                        self.interrupt(id, "the daemon ended while it ran", now, effects);
                    }
                }
                self.fire(now, effects);
                Answer::Nothing
            }
            Event::Interrupt { id } => {
                if let Some(State::Running(_)) = self.state(id) {
                    effects.then.push(Then::Stop { id });
                    self.interrupt(id, "the daemon was stopped", now, effects);
                }
                Answer::Nothing
            }
            Event::Drain => {
                self.is_draining = true;
                Answer::Nothing
            }
            Event::Time => {
                self.fire(now, effects);
                Answer::Nothing
            }
        };
        self.fill(now, effects);
        answer
    }

    fn state(&self, id: JobId) -> Option<State> {
        self.jobs.get(&id).map(|entry| entry.life.state())
    }

    fn queue_or_new(&mut self, name: &str) -> usize {
        let found = self.queues.iter().position(|queue| queue.name() == name);
        found.unwrap_or_else(|| {
            // It was configured when its jobs came. They wait until it is again.
            self.queues.push(Queue::new(name, 0));
            self.queues.len() - 1
        })
    }

    fn submit(
        &mut self,
        spec: JobSpec,
        by: Who,
        ended: &[(JobId, State)],
        now: Moment,
        effects: &mut Effects,
    ) -> Answer {
        let id = self.next;
        self.next = JobId(id.0 + 1);
        let JobSpec { terms, work } = spec;
        let queue = self.queue_or_new(&terms.queue);
        let due = terms.not_before.filter(|moment| *moment > now);
        let waits = due.is_some() || !terms.after.is_empty();
        let state = if waits { State::Scheduled } else { State::Queued };
        let life = Life::born(Step { at: now, state, who: by, why: None });
        let after = terms.after.clone();
        let entry = Entry::new(queue, &terms, due, life.clone());
        effects.changes.push(Change::Insert { record: Record { id, terms, life }, work });
        self.jobs.insert(id, entry);
        if waits {
            self.schedule(id, &after, ended, now, effects);
        } else {
            self.enqueue(id);
        }
        Answer::Born(id)
    }

    fn retry(&mut self, record: Record, by: Who, now: Moment, effects: &mut Effects) -> Answer {
        let Record { id, terms, life } = record;
        let queue = self.queue_or_new(&terms.queue);
        self.jobs.insert(id, Entry::new(queue, &terms, None, life));
        self.step(id, Step { at: now, state: State::Queued, who: by, why: None }, effects);
        self.jobs.get_mut(&id).expect("it was just put there").used = 0;
        self.enqueue(id);
        Answer::Queued
    }

    fn configure(&mut self, queues: &[(String, usize)]) {
        for queue in &mut self.queues {
            // Its jobs wait until it is configured again.
            queue.configure(0);
        }
        for (name, slots) in queues {
            let index = self.queue_or_new(name);
            self.queues[index].configure(*slots);
        }
    }

    /// Finds out what a job waits for that may wait.
    fn schedule(
        &mut self,
        id: JobId,
        after: &[JobId],
        ended: &[(JobId, State)],
        now: Moment,
        effects: &mut Effects,
    ) {
        self.jobs.get_mut(&id).expect("it was just put there").after = after.into();
        let mut waits_for = 0;
        for other in after {
            if self.is_live(*other) && *other != id {
                let is_new = self.dependents.entry(*other).or_default().insert(id);
                waits_for += u32::from(is_new);
                self.edges += usize::from(is_new);
                continue;
            }
            let state = ended.iter().find(|(ended, _)| ended == other).map(|(_, state)| *state);
            if state != Some(State::Succeeded) {
                self.end(id, given_up(*other, state, now), Ending::nothing(), effects);
                return;
            }
        }
        let entry = self.jobs.get_mut(&id).expect("it was just put there");
        entry.waits_for = waits_for;
        if let Some(due) = entry.due {
            self.timers.insert((due, id));
        }
        self.queue_if_ready(id, now, effects);
    }

    /// Moves a scheduled job into its queue if it waits for nothing any more.
    fn queue_if_ready(&mut self, id: JobId, now: Moment, effects: &mut Effects) {
        let entry = self.jobs.get_mut(&id).expect("only live jobs are looked at");
        if entry.waits_for > 0 || entry.due.is_some() {
            return;
        }
        entry.after = Box::default();
        let step = Step { at: now, state: State::Queued, who: Who::Daemon, why: None };
        self.step(id, step, effects);
        self.enqueue(id);
    }

    fn enqueue(&mut self, id: JobId) {
        let entry = &self.jobs[&id];
        self.queues[entry.queue].insert(entry.priority, id);
    }

    /// A step that ends nothing.
    fn step(&mut self, id: JobId, step: Step, effects: &mut Effects) {
        let entry = self.jobs.get_mut(&id).expect("only live jobs make steps");
        entry.push(step);
        effects.changes.push(Change::Step { id, life: entry.life.clone() });
    }

    /// A job that has a slot does not begin, if it is still that attempt.
    fn taken_back(&mut self, id: JobId, attempt: Attempt, because: Because, effects: &mut Effects) {
        if self.state(id) != Some(State::Running(attempt)) {
            return;
        }
        if because == Because::Late {
            let queue = self.jobs[&id].queue;
            self.queues[queue].note_late();
        }
        self.wait_again(id, effects);
    }

    fn wait_again(&mut self, id: JobId, effects: &mut Effects) {
        let entry = self.jobs.get_mut(&id).expect("it has a slot");
        self.queues[entry.queue].count_ended(id);
        entry.take_back();
        effects.changes.push(Change::Back { id, life: entry.life.clone() });
        self.enqueue(id);
    }

    fn cancel(
        &mut self,
        id: JobId,
        taken_back: Option<Attempt>,
        by: Who,
        now: Moment,
        effects: &mut Effects,
    ) -> Answer {
        match self.state(id) {
            None => Answer::NotLive,
            Some(State::Running(attempt)) if taken_back != Some(attempt) => Answer::Running,
            Some(state) => {
                if let State::Running(_) = state {
                    let entry = self.jobs.get_mut(&id).expect("it has a state");
                    self.queues[entry.queue].count_ended(id);
                    entry.take_back();
                    // Where it is taken out of again.
                    self.enqueue(id);
                }
                let step = Step { at: now, state: State::Cancelled, who: by, why: None };
                self.end(id, step, Ending::nothing(), effects);
                Answer::Cancelled
            }
        }
    }

    fn ended(
        &mut self,
        id: JobId,
        attempt: Attempt,
        ending: Ending,
        now: Moment,
        effects: &mut Effects,
    ) -> Answer {
        if self.state(id) != Some(State::Running(attempt)) {
            return Answer::NotLive;
        }
        effects.then.push(Then::Over { id, attempt });
        let entry = self.jobs.get_mut(&id).expect("it has a state");
        if !never_ran(&ending) {
            self.queues[entry.queue].note_ran(ending.ran);
        }
        let killed_its_worker = matches!(ending.outcome, Outcome::Error(Verdict::Died { .. }));
        entry.life.deaths += u32::from(killed_its_worker);
        let state = ending.outcome.state();
        if entry.stopped_by.is_none() {
            if never_ran(&ending) && entry.unstarted < UNSTARTED_MAX {
                entry.unstarted += 1;
                entry.used = entry.used.saturating_sub(1);
                self.try_again(id, &unstarted(&ending), now, effects);
                return Answer::Nothing;
            }
            if may_help(&ending.outcome) && entry.used <= entry.retries {
                let why = format!("attempt {attempt} has {}", state.word());
                self.try_again(id, &why, now, effects);
                return Answer::Nothing;
            }
        }
        let who = match (state, entry.stopped_by) {
            (State::Cancelled, Some(by)) => by,
            _ => Who::Daemon,
        };
        let (state, ending) = if killed_its_worker && entry.retries > 0 {
            (State::Quarantined, quarantined(ending, entry.life.deaths))
        } else {
            (state, ending)
        };
        self.end(id, Step { at: now, state, who, why: None }, ending, effects);
        Answer::Nothing
    }

    /// Schedules another attempt of a job that runs.
    fn try_again(&mut self, id: JobId, why: &str, now: Moment, effects: &mut Effects) {
        let entry = self.jobs.get_mut(&id).expect("it runs");
        self.queues[entry.queue].count_ended(id);
        let due = now.after(backoff(entry.used.max(entry.unstarted)));
        entry.due = Some(due);
        self.timers.insert((due, id));
        let step =
            Step { at: now, state: State::Scheduled, who: Who::Daemon, why: Some(why.into()) };
        self.step(id, step, effects);
    }

    /// A job ran, and it is not known how far it came.
    fn interrupt(&mut self, id: JobId, why: &str, now: Moment, effects: &mut Effects) {
        let entry = &self.jobs[&id];
        effects.then.push(Then::Over { id, attempt: entry.life.attempts });
        if entry.used <= entry.retries && entry.stopped_by.is_none() {
            self.try_again(id, why, now, effects);
            return;
        }
        let state = State::Interrupted { may_have_run: true };
        let step = Step { at: now, state, who: Who::Daemon, why: Some(why.into()) };
        self.end(id, step, Ending::nothing(), effects);
    }

    /// The last step of a job, and what it means for those that depend on it, on those, and so on.
    fn end(&mut self, id: JobId, step: Step, ending: Ending, effects: &mut Effects) {
        // A list, not calls: a chain of jobs can be longer than a stack is deep.
        let mut ends = vec![(id, step, ending)];
        while let Some((id, step, mut ending)) = ends.pop() {
            let Some(mut entry) = self.jobs.remove(&id) else {
                // It depends on several that have not succeeded.
                continue;
            };
            match entry.life.state() {
                State::Queued => self.queues[entry.queue].remove(entry.priority, id),
                State::Running(_) => self.queues[entry.queue].count_ended(id),
                _ => {}
            }
            self.forget_edges(id, &entry);
            if let Some(due) = entry.due {
                self.timers.remove(&(due, id));
            }
            let Step { at, state, .. } = step;
            entry.push(step);
            ending.attempts = entry.life.attempts;
            ending.queued = entry.life.queued();
            effects.changes.push(Change::End { id, life: entry.life, ending: Box::new(ending) });
            effects.then.push(Then::Tell { id, state });
            let dependents = self.dependents.remove(&id).unwrap_or_default();
            self.edges -= dependents.len();
            for dependent in dependents {
                let Some(waiting) = self.jobs.get_mut(&dependent) else {
                    continue;
                };
                if state == State::Succeeded {
                    waiting.waits_for -= 1;
                    self.queue_if_ready(dependent, at, effects);
                } else {
                    ends.push((dependent, given_up(id, Some(state), at), Ending::nothing()));
                }
            }
        }
    }

    /// Nobody has to be told that a job has ended for which this one waited.
    fn forget_edges(&mut self, id: JobId, entry: &Entry) {
        for other in &entry.after {
            let Some(dependents) = self.dependents.get_mut(other) else {
                continue;
            };
            self.edges -= usize::from(dependents.remove(&id));
            if dependents.is_empty() {
                self.dependents.remove(other);
            }
        }
    }

    /// Queues what is due.
    fn fire(&mut self, now: Moment, effects: &mut Effects) {
        while let Some((due, id)) = self.timers.first().copied() {
            if due > now {
                break;
            }
            self.timers.remove(&(due, id));
            self.jobs.get_mut(&id).expect("a timer is of a live job").due = None;
            self.queue_if_ready(id, now, effects);
        }
    }

    /// Starts what there are slots for.
    fn fill(&mut self, now: Moment, effects: &mut Effects) {
        if self.is_draining {
            return;
        }
        for index in 0..self.queues.len() {
            while let Some(id) = self.queues[index].take_next() {
                let entry = self.jobs.get_mut(&id).expect("only live jobs are queued");
                entry.life.attempts += 1;
                entry.used += 1;
                let attempt = entry.life.attempts;
                let state = State::Running(attempt);
                self.step(id, Step { at: now, state, who: Who::Daemon, why: None }, effects);
                effects.then.push(Then::Start { id, attempt });
            }
        }
    }
}

/// The end of a job because one that it depends on did not succeed.
fn given_up(other: JobId, state: Option<State>, at: Moment) -> Step {
    let why = match state {
        Some(state) => format!("job {other}, which it depends on, has {}", state.word()),
        None => format!("job {other}, which it depends on, is not known"),
    };
    Step { at, state: State::Cancelled, who: Who::Daemon, why: Some(why.into()) }
}
