//! Taking a job: what is checked at once, and what the journal has to be asked first.

use super::{Asker, Desk, Follow, Purpose, Wanted};
use crate::config::{Config, QUEUE_NAME_MAX};
use crate::job::{Command, DEFAULT_QUEUE, JobId, JobSpec, Moment, State, Terms, Who, Work};
use crate::journal::{Found, Query};
use crate::machine::{Answer, Effects, Event, Machine};
use crate::protocol::{Phase, Refusal, Response};
use crate::server::MARK;

/// The longest title and key, in bytes: they stay in memory and in lists.
const NAME_BYTES_MAX: usize = 256;
/// The most jobs that one may depend on.
const AFTER_MAX: usize = 1000;

/// A job that somebody wants, and what is known about it so far.
#[derive(Debug)]
pub(crate) struct Candidate {
    asker: Asker,
    spec: JobSpec,
    follow: Follow,
    /// The journal has no job with its key.
    key_is_free: bool,
    /// The jobs that it depends on and that have ended.
    ended: Vec<(JobId, State)>,
}

impl Candidate {
    pub(super) fn new(asker: Asker, spec: JobSpec, follow: Follow) -> Candidate {
        Candidate { asker, spec, follow, key_is_free: false, ended: Vec::new() }
    }
}

/// Refuses what cannot be run.
pub(super) fn check(spec: &JobSpec, config: &Config, machine: &Machine) -> Result<(), Refusal> {
    let JobSpec { terms, work } = spec;
    let invalid = |why: &str| Err(Refusal::Invalid(why.into()));
    // A job that waits for a thousand others is as much to remember as a thousand jobs.
    if machine.weight() >= config.limits.jobs {
        return Err(Refusal::Busy(format!("there are {} jobs", machine.len())));
    }
    if terms.queue != DEFAULT_QUEUE && !config.queues.contains_key(&terms.queue) {
        return Err(no_queue(&terms.queue));
    }
    if terms.title.len() > NAME_BYTES_MAX
        || terms.key.as_ref().is_some_and(|key| key.len() > NAME_BYTES_MAX)
    {
        return invalid("a title, or a key, has at most 256 bytes");
    }
    if terms.after.len() > AFTER_MAX {
        return invalid("a job depends on at most 1000 others");
    }
    match work {
        Work::Command(_) if terms.cpu_timeout.is_some() => {
            invalid("a command's CPU time is not limited")
        }
        Work::Command(command) => check_command(command),
        Work::Task(_) if config.queues.get(&terms.queue).is_none_or(|q| q.worker.is_none()) => Err(
            Refusal::Invalid(format!("queue `{}` has no worker program, so no tasks", terms.queue)),
        ),
        Work::Task(task) if task.task.len() > NAME_BYTES_MAX => {
            invalid("a task's name has at most 256 bytes")
        }
        Work::Task(_) => Ok(()),
    }
}

/// Refuses a command that no system would start, and one that would not be found by the daemon after this one.
fn check_command(command: &Command) -> Result<(), Refusal> {
    let invalid = |why: &str| Err(Refusal::Invalid(why.into()));
    let Command { words, dir, env } = command;
    if words.first().is_none_or(|word| word.is_empty()) {
        return invalid("a command has a first word");
    }
    let texts = words.iter().chain([dir]).chain(env.iter().flat_map(|(name, value)| [name, value]));
    if texts.into_iter().any(|text| text.contains(&0)) {
        return invalid("a command, its directory and its environment have no byte that is zero");
    }
    if env.iter().any(|(name, _)| name.is_empty() || name.contains(&b'=')) {
        return invalid("a variable's name is not empty and has no `=`");
    }
    if env.iter().any(|(name, _)| name == MARK.as_bytes()) {
        return Err(Refusal::Invalid(format!("the variable `{MARK}` is the daemon's own")));
    }
    Ok(())
}

/// That there is no such queue. A name that no queue could have is not repeated.
pub(super) fn no_queue(name: &str) -> Refusal {
    if name.len() > QUEUE_NAME_MAX {
        return Refusal::Invalid(format!("a queue's name has at most {QUEUE_NAME_MAX} bytes"));
    }
    Refusal::NoQueue(name.into())
}

impl Desk {
    pub(super) fn submit(&mut self, asker: Asker, mut spec: JobSpec, follow: Follow) {
        if self.phase == Phase::Stopping {
            return self.refuse(asker, Refusal::Stopping);
        }
        if follow == Follow::ToItsEnd
            && let Err(too_many) = self.waits.check(asker.client)
        {
            return self.refuse(asker, too_many.into());
        }
        spec.terms.defaults = self.config.defaults(&spec);
        match check(&spec, &self.config, &self.machine) {
            Ok(()) if !self.space.take(spec.work.bytes()) => {
                self.refuse(asker, Refusal::Busy("the disk is full".into()));
            }
            Ok(()) => self.consider(Candidate::new(asker, spec, follow)),
            Err(refusal) => self.refuse(asker, refusal),
        }
    }

    /// Takes a job, unless something has to be known first.
    pub(super) fn consider(&mut self, candidate: Candidate) {
        let terms = &candidate.spec.terms;
        if let Some(key) = &terms.key
            && (!candidate.key_is_free || self.fresh_keys.contains(key))
        {
            let query = Query::Key(key.clone());
            return self.ask(query, Purpose::Consider(Box::new(candidate)));
        }
        let is_known = |id: &JobId| {
            self.machine.is_live(*id) || candidate.ended.iter().any(|(ended, _)| ended == id)
        };
        let unknown: Vec<JobId> = terms.after.iter().filter(|id| !is_known(id)).copied().collect();
        if !unknown.is_empty() {
            return self.ask(Query::States(unknown), Purpose::Consider(Box::new(candidate)));
        }
        self.take_in(candidate);
    }

    fn take_in(&mut self, candidate: Candidate) {
        let Candidate { asker, spec, follow, ended, .. } = candidate;
        if let Some(key) = &spec.terms.key {
            self.fresh_keys.insert(key.clone());
        }
        let mut effects = Effects::default();
        let copy = self.works.has_room().then(|| (spec.terms.clone(), spec.work.clone()));
        let event = Event::Submit { spec: Box::new(spec), by: Who::Client(asker.pid), ended };
        let answer = self.machine.handle(event, Moment::now(), &mut effects);
        let Answer::Born(id) = answer else {
            unreachable!("what is submitted is born");
        };
        // Not of one that has ended at once.
        if let Some((terms, work)) = copy.filter(|_| self.machine.is_live(id)) {
            self.works.put(id, terms, work);
        }
        self.keep(effects, Some((asker, Response::Submitted(id))));
        self.follow_up(asker, follow, id);
    }

    /// The second answer to whoever wants to know of a job's end.
    fn follow_up(&mut self, asker: Asker, follow: Follow, id: JobId) {
        if follow == Follow::ToItsEnd {
            self.wait(Asker { cost: None, ..asker }, id, Wanted::Ending);
        }
    }

    /// Goes on with a job of which something more is known.
    pub(super) fn reconsider(&mut self, mut candidate: Candidate, found: Option<Found>) {
        match found {
            Some(Found::Key(None)) => {
                candidate.key_is_free = true;
            }
            Some(Found::Key(Some((record, work)))) => {
                if let Some(key) = &record.terms.key {
                    self.fresh_keys.remove(key);
                }
                let wanted = &candidate.spec;
                let is_same = same(&record.terms, &wanted.terms) && work == wanted.work;
                if !is_same {
                    return self.refuse(candidate.asker, Refusal::KeyTaken(record.id));
                }
                self.reply(candidate.asker, Response::Submitted(record.id));
                return self.follow_up(candidate.asker, candidate.follow, record.id);
            }
            Some(Found::States(states)) => {
                for (id, state) in states {
                    match state {
                        Some(state) => candidate.ended.push((id, state)),
                        None => return self.refuse(candidate.asker, Refusal::NoJob(id)),
                    }
                }
            }
            other => unreachable!("a candidate does not need {other:?}"),
        }
        self.consider(candidate);
    }
}

/// Whether two jobs with one key are one. The moment is not compared: who asks again for a job in an hour has a later
/// hour in mind, and the job is that job. Nor are the defaults: they may have changed, and nobody has asked for them.
fn same(one: &Terms, other: &Terms) -> bool {
    let (not_before, defaults) = (one.not_before, one.defaults.clone());
    *one == Terms { not_before, defaults, ..other.clone() }
}
