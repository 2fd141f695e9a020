//! Event lists against the machine: no processes, no clock.

use std::collections::HashSet;
use std::time::Duration;

use super::entry::HISTORY_MAX;
use super::*;
use crate::job::{CommandEnd, Terms, Work};

const T0: Moment = Moment(1_000_000);

fn spec(terms: Terms) -> Box<JobSpec> {
    let work = crate::job::Command {
        words: vec![b"true".to_vec().into()],
        dir: b"/".to_vec().into(),
        env: Vec::new(),
    };
    Box::new(JobSpec { terms, work: Work::Command(work) })
}

fn machine(slots: usize) -> Machine {
    Machine::new(vec![Queue::new("default", slots)], JobId(1))
}

struct Play {
    machine: Machine,
    effects: Effects,
    now: Moment,
}

impl Play {
    fn new(slots: usize) -> Play {
        Play { machine: machine(slots), effects: Effects::default(), now: T0 }
    }

    fn handle(&mut self, event: Event) -> Answer {
        self.effects = Effects::default();
        self.machine.handle(event, self.now, &mut self.effects)
    }

    fn submit(&mut self, terms: Terms) -> JobId {
        let event = Event::Submit { spec: spec(terms), by: Who::Client(1), ended: Vec::new() };
        match self.handle(event) {
            Answer::Born(id) => id,
            other => panic!("{other:?}"),
        }
    }

    fn end(&mut self, id: JobId, attempt: Attempt, outcome: Outcome) {
        let ending = Box::new(Ending { outcome, ..Ending::nothing() });
        self.handle(Event::Ended { id, attempt, ending });
    }

    /// The last state that was recorded of a job by the last event.
    fn recorded(&self, id: JobId) -> Option<State> {
        let mut states = self.effects.changes.iter().filter_map(|change| match change {
            Change::Insert { record, .. } if record.id == id => Some(record.life.state()),
            Change::Step { id: other, life } | Change::End { id: other, life, .. }
                if *other == id =>
            {
                Some(life.state())
            }
            _ => None,
        });
        states.next_back()
    }

    fn starts(&self) -> Vec<JobId> {
        let starts = self.effects.then.iter().filter_map(|then| match then {
            Then::Start { id, .. } => Some(*id),
            _ => None,
        });
        starts.collect()
    }
}

fn exit(code: i32) -> Outcome {
    Outcome::Command(CommandEnd::Exit(code))
}

#[test]
fn a_start_is_recorded_with_the_submit_that_made_it() {
    let mut play = Play::new(1);
    let id = play.submit(Terms::new("a"));
    assert_eq!(play.recorded(id), Some(State::Running(1)));
    assert_eq!(play.starts(), [id]);
    play.end(id, 1, exit(0));
    assert_eq!(play.recorded(id), Some(State::Succeeded));
    let tell = Then::Tell { id, state: State::Succeeded };
    assert_eq!(play.effects.then, [Then::Over { id, attempt: 1 }, tell]);
    assert!(play.machine.is_empty());
}

#[test]
fn slots_are_filled_by_priority_and_then_by_number() {
    let mut play = Play::new(1);
    let first = play.submit(Terms::new("a"));
    let second = play.submit(Terms::new("b"));
    let third = play.submit(Terms { priority: Some(1), ..Terms::new("c") });
    assert!(play.starts().is_empty());
    play.end(first, 1, exit(0));
    assert_eq!(play.starts(), [third]);
    play.end(third, 1, exit(1));
    assert_eq!(play.starts(), [second]);
}

#[test]
fn what_is_told_of_an_earlier_attempt_is_not_heard() {
    let mut play = Play::new(1);
    let id = play.submit(Terms { retries: Some(1), ..Terms::new("a") });
    play.end(id, 1, exit(1));
    assert_eq!(play.recorded(id), Some(State::Scheduled));
    play.now = play.machine.next_time().unwrap();
    play.handle(Event::Time);
    assert_eq!(play.recorded(id), Some(State::Running(2)));
    play.end(id, 1, exit(0));
    assert!(play.effects.changes.is_empty());
    play.end(id, 2, exit(1));
    assert_eq!(play.recorded(id), Some(State::Failed));
}

/// Goal: a chain of dependencies runs in order, or falls as a whole, however long it is.
#[test]
fn dependents_wait_for_success() {
    let mut play = Play::new(4);
    let first = play.submit(Terms::new("a"));
    let second = play.submit(Terms { after: vec![first], ..Terms::new("b") });
    assert_eq!(play.recorded(second), Some(State::Scheduled));
    play.end(first, 1, exit(0));
    assert_eq!(play.starts(), [second]);
    let mut last = second;
    for _ in 0..100_000 {
        last = play.submit(Terms { after: vec![last], ..Terms::new("c") });
    }
    play.end(second, 1, exit(3));
    assert_eq!(play.recorded(last), Some(State::Cancelled));
    assert!(play.machine.is_empty());
}

/// Goal: a restart runs again only what may be run again.
/// Covers: F-125
#[test]
fn a_restart_interrupts_what_ran() {
    let mut before = Play::new(4);
    let mut records = Vec::new();
    for retries in [0, 1] {
        before.submit(Terms { retries: Some(retries), ..Terms::new("a") });
        let mut record = match &before.effects.changes[0] {
            Change::Insert { record, .. } => record.clone(),
            other => panic!("{other:?}"),
        };
        if let Change::Step { life, .. } = &before.effects.changes[1] {
            record.life = life.clone();
        }
        records.push(record);
    }
    let mut after = Play::new(4);
    for record in records {
        let Play { machine, effects, now } = &mut after;
        machine.restore(record, &[], *now, effects);
    }
    after.handle(Event::Restarted { unbegun: HashSet::new() });
    assert_eq!(after.recorded(JobId(1)), Some(State::Interrupted { may_have_run: true }));
    assert_eq!(after.recorded(JobId(2)), Some(State::Scheduled));
    assert!(after.starts().is_empty());
}

/// Goal: whoever had a job stopped is named, and it is not tried again.
#[test]
fn a_stop_is_recorded_as_whose_it_was() {
    let mut play = Play::new(1);
    let id = play.submit(Terms { retries: Some(3), ..Terms::new("a") });
    let by = Who::Client(77);
    assert_eq!(play.handle(Event::Abort { id, taken_back: None, by }), Answer::Running);
    assert_eq!(play.effects.then, [Then::Stop { id }]);
    play.end(id, 1, Outcome::Error(Verdict::Cancelled { started: true }));
    match &play.effects.changes[..] {
        [Change::End { life, .. }] => assert_eq!(life.history.last().unwrap().who, by),
        other => panic!("{other:?}"),
    }
}

/// Goal: a worker program that is being replaced costs no job; one that is gone is told.
#[test]
fn a_job_without_a_worker_is_tried_again_and_not_for_ever() {
    let mut play = Play::new(1);
    let id = play.submit(Terms::new("a"));
    let broken = || Outcome::Error(Verdict::Broken("no such file".into()));
    for attempt in 1..=UNSTARTED_MAX {
        play.end(id, attempt, broken());
        assert_eq!(play.recorded(id), Some(State::Scheduled), "attempt {attempt}");
        play.now = play.machine.next_time().unwrap();
        play.handle(Event::Time);
    }
    play.end(id, UNSTARTED_MAX + 1, broken());
    assert_eq!(play.recorded(id), Some(State::Failed));
    let waited = play.now.since(T0);
    assert!(waited > Duration::from_secs(20) && waited < Duration::from_secs(60), "{waited:?}");
}

/// Goal: a job that kills its workers ends as one that did, with the last death, however it is looked at.
#[test]
fn poison_is_quarantined_in_state_and_ending() {
    let mut play = Play::new(1);
    let id = play.submit(Terms { retries: Some(1), ..Terms::new("a") });
    let died = |pid| {
        Outcome::Error(Verdict::Died {
            status: procpool::Status::Exit(3),
            phase: procpool::Phase::Run,
            oom: procpool::Oom::No,
            pid,
            attempt: 1,
            worker: 0,
            stderr_tail: String::new(),
            detail: None,
        })
    };
    play.end(id, 1, died(5));
    play.now = play.machine.next_time().unwrap();
    play.handle(Event::Time);
    play.end(id, 2, died(6));
    match &play.effects.changes[..] {
        [Change::End { life, ending, .. }] => {
            assert_eq!(life.state(), State::Quarantined);
            let Outcome::Error(last) = died(6) else { unreachable!() };
            let last = Box::new(last);
            assert_eq!(ending.outcome, Outcome::Error(Verdict::Quarantined { attempts: 2, last }));
        }
        other => panic!("{other:?}"),
    }
}

/// Goal: a history is bounded, and begins where it began.
#[test]
fn a_history_keeps_its_first_and_last_steps() {
    let mut play = Play::new(1);
    let id = play.submit(Terms { retries: Some(1000), ..Terms::new("a") });
    for attempt in 1..=100 {
        play.end(id, attempt, exit(1));
        play.now = play.machine.next_time().unwrap();
        play.handle(Event::Time);
    }
    let life = &play.machine.jobs[&id].life;
    assert_eq!((life.history.len(), life.attempts), (HISTORY_MAX, 101));
    assert_eq!(life.history[0].who, Who::Client(1));
    assert_eq!(life.state(), State::Running(101));
}

/// Ends so many jobs that take so long, and that many others wait for their slots.
fn after_short_ones(play: &mut Play, count: u64) {
    for _ in 0..count {
        let id = play.submit(Terms::new("a"));
        let ran = Duration::from_micros(100);
        let ending = Box::new(Ending { outcome: exit(0), ran, ..Ending::nothing() });
        play.handle(Event::Ended { id, attempt: 1, ending });
    }
}

#[test]
fn short_jobs_are_given_slots_in_advance() {
    let mut play = Play::new(2);
    let mut counts = Vec::new();
    for _ in 0..3 {
        let ids: Vec<JobId> = (0..200).map(|_| play.submit(Terms::new("a"))).collect();
        counts.push(play.machine.running());
        for id in ids {
            play.handle(Event::Cancel { id, taken_back: None, by: Who::Daemon });
            let attempt = play.machine.jobs.get(&id).map_or(1, |entry| entry.life.attempts);
            play.end(id, attempt, exit(0));
        }
        assert!(play.machine.is_empty());
        after_short_ones(&mut play, 100);
    }
    // Of the first nothing was known. No more than one commit keeps.
    assert_eq!(counts, [2, 2 + queue::AHEAD_MAX, 2 + queue::AHEAD_MAX]);
}

#[test]
fn who_waits_too_long_for_a_slot_is_as_before() {
    let mut play = Play::new(1);
    after_short_ones(&mut play, 100);
    let ids: Vec<JobId> = (0..3).map(|_| play.submit(Terms::new("a"))).collect();
    assert_eq!(play.machine.running_ids(), ids);
    let because = Because::Late;
    // Another attempt is not meant.
    play.handle(Event::TakenBack { id: ids[1], attempt: 2, because });
    assert!(play.effects.changes.is_empty());
    play.handle(Event::TakenBack { id: ids[2], attempt: 1, because });
    let [Change::Back { id, life }] = &play.effects.changes[..] else {
        panic!("{:?}", play.effects);
    };
    assert_eq!((*id, life.attempts, life.history.len()), (ids[2], 0, 1));
    assert_eq!(life.state(), State::Queued);
    play.handle(Event::TakenBack { id: ids[1], attempt: 1, because });
    // No slot in advance any more.
    assert_eq!((play.machine.running_ids(), play.starts()), (vec![ids[0]], vec![]));
    play.end(ids[0], 1, exit(0));
    assert_eq!(play.starts(), [ids[1]]);
}

#[test]
fn who_was_taken_back_is_cancelled_without_having_run() {
    let mut play = Play::new(1);
    let id = play.submit(Terms::new("a"));
    let by = Who::Client(2);
    assert_eq!(play.handle(Event::Cancel { id, taken_back: Some(2), by }), Answer::Running);
    assert_eq!(play.handle(Event::Cancel { id, taken_back: Some(1), by }), Answer::Cancelled);
    let Some(Change::End { life, .. }) = play.effects.changes.first() else {
        panic!("{:?}", play.effects);
    };
    let states: Vec<State> = life.history.iter().map(|step| step.state).collect();
    assert_eq!((states, life.attempts), (vec![State::Queued, State::Cancelled], 0));
    assert!(play.machine.is_empty() && play.machine.running() == 0);
}

#[test]
fn what_had_a_slot_and_no_worker_waits_again_after_a_crash() {
    let mut play = Play::new(2);
    let (begun, unbegun) = (play.submit(Terms::new("a")), play.submit(Terms::new("b")));
    let mut after = Machine::new(vec![Queue::new("default", 2)], JobId(3));
    let mut effects = Effects::default();
    for id in [begun, unbegun] {
        let life = play.machine.jobs[&id].life.clone();
        after.restore(Record { id, terms: Terms::new("a"), life }, &[], T0, &mut effects);
    }
    after.handle(Event::Restarted { unbegun: HashSet::from([unbegun]) }, T0, &mut effects);
    let is_interrupted = effects.changes.iter().any(|change| match change {
        Change::End { id, life, .. } => {
            *id == begun && life.state() == State::Interrupted { may_have_run: true }
        }
        _ => false,
    });
    assert!(is_interrupted, "{effects:?}");
    assert!(effects.then.contains(&Then::Over { id: begun, attempt: 1 }));
    assert!(effects.then.contains(&Then::Start { id: unbegun, attempt: 1 }));
}
