//! The loop that `run` and `call` share: inputs become jobs, results come out, signals are obeyed.
//!
//! Everything that happens is one [`Event`] in one channel; the loop alone waits. Inputs are asked for one
//! by one, so their number, and that of the results that wait for their turn, is bounded whatever the
//! number of inputs.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;

use anyhow::Context;
use procpool::{JobError, JobFuture, ProcessPool, Shutdown};

use crate::exit_code;
use crate::input::{Input, Inputs};
use crate::report;

/// Jobs submitted beyond those that run: enough that no worker ever waits for this loop.
const AHEAD_OF_EACH_WORKER: usize = 4;
/// With `--keep-order`: results that may wait for an earlier job's.
const HELD_JOBS_MAX: usize = 1000;
/// And their size in memory.
const HELD_BYTES_MAX: usize = 64 << 20;

/// What can happen to a batch.
#[derive(Debug)]
pub(crate) enum Event {
    /// An input that was asked for.
    Input(Input),
    /// There are no more, for a reason that may be an error.
    NoMoreInputs(Option<io::Error>),
    /// A job has ended.
    Ended(u64),
    /// SIGINT or SIGTERM.
    Interrupted,
}

/// The channel in which events come.
#[derive(Debug)]
pub(crate) struct Events {
    pub(crate) sender: Sender<Event>,
    pub(crate) receiver: Receiver<Event>,
}

/// What a batch does with its inputs.
pub(crate) trait Work {
    type Value: Send + 'static;

    /// Starts a job. An error says why the input can be none.
    fn submit(&self, pool: &ProcessPool, job: &Job) -> Result<Next<Self::Value>, String>;

    /// How a job ended that ended with this value.
    fn verdict(&self, value: &Self::Value) -> Result<(), String>;

    /// How a job ended without a value.
    fn describe(&self, error: &JobError) -> String;

    /// Why no worker can be started.
    fn no_workers(&self, cause: &str) -> String;

    /// Whether another attempt may help.
    fn may_retry(&self, result: &Result<Self::Value, JobError>) -> bool;

    /// Forgets what an attempt has left, before another one.
    fn discard(&self, job: &Job);

    /// Prints the output of a job that was run. Errors are those of standard output.
    fn print(&mut self, job: &Job, value: Option<Self::Value>) -> io::Result<()>;

    /// The memory that a value takes.
    fn size(&self, value: &Self::Value) -> usize;

    /// The job as messages call it.
    fn name(&self, job: &Job) -> String;
}

/// What an input becomes.
pub(crate) enum Next<V> {
    Job(JobFuture<V>),
    /// Nothing: it says nothing.
    Skip,
}

/// One input with its number, from 1.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) number: u64,
    pub(crate) input: Input,
}

struct Active<V> {
    job: Job,
    future: JobFuture<V>,
    attempt: u64,
}

/// A job that has ended and is to be printed.
struct Ended<V> {
    job: Job,
    value: Option<V>,
    outcome: Outcome,
}

enum Outcome {
    Succeeded,
    Failed(String),
    NotRun,
    Skipped,
}

/// How far an interruption has got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Working,
    /// Nothing new is started.
    Finishing,
    /// What runs is being stopped.
    Stopping,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Options {
    pub(crate) workers: usize,
    pub(crate) keep_order: bool,
    pub(crate) retries: u32,
}

/// Runs a batch to its end; answers the exit code.
pub(crate) fn run<W: Work>(
    work: W,
    pool: &ProcessPool,
    inputs: Inputs,
    options: Options,
    events: Events,
) -> anyhow::Result<u8> {
    let wanted = read_inputs(inputs, events.sender.clone())?;
    let mut batch = Batch {
        work,
        pool,
        options,
        events,
        wanted,
        asked: 0,
        stage: Stage::Working,
        inputs: InputState::Open,
        count: 0,
        active: HashMap::new(),
        held: BTreeMap::new(),
        held_bytes: 0,
        printed: 0,
        failed: 0,
        not_run: 0,
        broken: None,
    };
    let result = batch.work_off();
    let how = if result.is_ok() { Shutdown::Drain } else { Shutdown::Abort };
    pool.shutdown(how);
    Ok(match result {
        Ok(()) => batch.exit_code(),
        Err(_) if batch.stage != Stage::Working => exit_code::INTERRUPTED,
        Err(error) => report::output_failed(&error),
    })
}

/// Starts the thread that reads an input for each unit sent to it. It may be blocked in a read for ever,
/// so nobody joins it.
fn read_inputs(mut inputs: Inputs, events: Sender<Event>) -> anyhow::Result<Sender<()>> {
    let (wanted, asked) = mpsc::channel();
    let read = move || {
        for () in asked {
            let event = match inputs.next() {
                Some(Ok(input)) => Event::Input(input),
                Some(Err(error)) => Event::NoMoreInputs(Some(error)),
                None => Event::NoMoreInputs(None),
            };
            let is_last = matches!(event, Event::NoMoreInputs(_));
            // The batch is over if nobody receives it.
            if events.send(event).is_err() || is_last {
                return;
            }
        }
    };
    thread::Builder::new()
        .name("inputs".into())
        .spawn(read)
        .context("cannot start the thread that reads inputs")?;
    Ok(wanted)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum InputState {
    Open,
    Ended,
    Failed,
}

struct Batch<'a, W: Work> {
    work: W,
    pool: &'a ProcessPool,
    options: Options,
    events: Events,
    wanted: Sender<()>,
    /// Inputs asked for and not received.
    asked: usize,
    stage: Stage,
    inputs: InputState,
    /// Inputs received; the number of the last.
    count: u64,
    active: HashMap<u64, Active<W::Value>>,
    /// Ended jobs that wait for an earlier one to be printed.
    held: BTreeMap<u64, Ended<W::Value>>,
    held_bytes: usize,
    /// With `--keep-order`: the number of the last job that was printed.
    printed: u64,
    failed: u64,
    not_run: u64,
    /// Why no worker can be started.
    broken: Option<String>,
}

impl<W: Work> Batch<'_, W> {
    fn work_off(&mut self) -> io::Result<()> {
        loop {
            self.ask_for_inputs();
            if self.is_over() {
                return Ok(());
            }
            match self.events.receiver.recv().expect("we hold a sender") {
                Event::Input(input) => self.start(input)?,
                Event::NoMoreInputs(error) => self.end_inputs(error),
                Event::Ended(number) => self.end_attempt(number)?,
                Event::Interrupted => self.interrupt(),
            }
        }
    }

    fn takes_inputs(&self) -> bool {
        self.inputs == InputState::Open && self.stage == Stage::Working && self.broken.is_none()
    }

    fn is_over(&self) -> bool {
        self.active.is_empty() && !self.takes_inputs()
    }

    fn ask_for_inputs(&mut self) {
        let active_max = self.options.workers * (1 + AHEAD_OF_EACH_WORKER);
        while self.takes_inputs()
            && self.active.len() + self.asked < active_max
            && self.held.len() < HELD_JOBS_MAX
            && self.held_bytes < HELD_BYTES_MAX
        {
            self.asked += 1;
            // The reader has gone only if it has said that there are no more inputs.
            let _ = self.wanted.send(());
        }
    }

    fn end_inputs(&mut self, error: Option<io::Error>) {
        self.inputs = match error {
            None => InputState::Ended,
            Some(error) => {
                report::say(format_args!(
                    "cannot read the input after number {}: {error}",
                    self.count
                ));
                InputState::Failed
            }
        };
    }

    fn start(&mut self, input: Input) -> io::Result<()> {
        self.asked -= 1;
        self.count += 1;
        let job = Job { number: self.count, input };
        if !self.takes_inputs() {
            return self.finish(job, None, Outcome::NotRun);
        }
        self.submit(job, 1)
    }

    fn submit(&mut self, job: Job, attempt: u64) -> io::Result<()> {
        match self.work.submit(self.pool, &job) {
            Ok(Next::Job(future)) => {
                let (number, sender) = (job.number, self.events.sender.clone());
                future.on_done(move |_| {
                    // The batch is over if nobody receives it.
                    let _ = sender.send(Event::Ended(number));
                });
                let active = Active { job, future, attempt };
                self.active.insert(number, active);
                Ok(())
            }
            Ok(Next::Skip) => self.finish(job, None, Outcome::Skipped),
            Err(message) => self.finish(job, None, Outcome::Failed(message)),
        }
    }

    fn end_attempt(&mut self, number: u64) -> io::Result<()> {
        let Active { job, future, attempt } =
            self.active.remove(&number).expect("each attempt ends once, and is active until then");
        let result = future.result();
        let attempts_max = u64::from(self.options.retries) + 1;
        if attempt < attempts_max && self.stage == Stage::Working && self.work.may_retry(&result) {
            self.work.discard(&job);
            return self.submit(job, attempt + 1);
        }
        let (value, outcome) = match result {
            Ok(value) => match self.work.verdict(&value) {
                Ok(()) => (Some(value), Outcome::Succeeded),
                Err(message) => (Some(value), Outcome::Failed(message)),
            },
            Err(JobError::Cancelled { started: false }) => (None, Outcome::NotRun),
            Err(JobError::Broken(error)) => {
                self.break_down(error.to_string());
                (None, Outcome::NotRun)
            }
            Err(error) => (None, Outcome::Failed(self.work.describe(&error))),
        };
        let outcome = match outcome {
            Outcome::Failed(message) if attempt > 1 => {
                Outcome::Failed(format!("{message} (attempt {attempt} of {attempts_max})"))
            }
            outcome => outcome,
        };
        self.finish(job, value, outcome)
    }

    fn break_down(&mut self, cause: String) {
        if self.broken.is_none() {
            report::say(self.work.no_workers(&cause));
            self.broken = Some(cause);
        }
    }

    /// Prints what has ended, now or when its turn comes.
    fn finish(&mut self, job: Job, value: Option<W::Value>, outcome: Outcome) -> io::Result<()> {
        let ended = Ended { job, value, outcome };
        if !self.options.keep_order {
            return self.print(ended);
        }
        self.held_bytes += self.size(&ended);
        self.held.insert(ended.job.number, ended);
        while let Some(next) = self.held.remove(&(self.printed + 1)) {
            self.held_bytes -= self.size(&next);
            self.printed += 1;
            self.print(next)?;
        }
        Ok(())
    }

    fn size(&self, ended: &Ended<W::Value>) -> usize {
        let value = ended.value.as_ref().map_or(0, |value| self.work.size(value));
        ended.job.input.len() + value
    }

    fn print(&mut self, ended: Ended<W::Value>) -> io::Result<()> {
        let Ended { job, value, outcome } = ended;
        let name = || self.work.name(&job);
        match outcome {
            Outcome::Succeeded => self.work.print(&job, value),
            Outcome::Failed(message) => {
                self.failed += 1;
                let message = format!("{}: {message}", name());
                let result = self.work.print(&job, value);
                report::say(message);
                result
            }
            Outcome::NotRun => {
                self.not_run += 1;
                report::say(format_args!("{}: not run", name()));
                Ok(())
            }
            Outcome::Skipped => Ok(()),
        }
    }

    fn interrupt(&mut self) {
        match self.stage {
            Stage::Working => {
                self.stage = Stage::Finishing;
                // Each that will never run ends as an event like any other.
                let cancelled = self.active.values().filter(|job| job.future.cancel()).count();
                report::say(format_args!(
                    "interrupted: nothing new is started, {} running jobs are finished; \
                     interrupt again to stop them",
                    self.active.len() - cancelled
                ));
            }
            Stage::Finishing => {
                self.stage = Stage::Stopping;
                report::say("interrupted again: stopping what runs; once more to kill it");
                for active in self.active.values() {
                    active.future.abort();
                }
            }
            // The third is the handler's own affair.
            Stage::Stopping => {}
        }
    }

    fn exit_code(&self) -> u8 {
        let has_more = self.inputs == InputState::Open;
        let was_cut = self.not_run > 0 || has_more || self.stage == Stage::Stopping;
        if self.stage != Stage::Working && was_cut {
            if has_more {
                report::say(format_args!(
                    "interrupted: what follows input {} was not run",
                    self.count
                ));
            }
            return exit_code::INTERRUPTED;
        }
        if self.broken.is_some() {
            if has_more {
                report::say(format_args!("what follows input {} was not run", self.count));
            }
            return exit_code::SYSTEM;
        }
        match self.inputs {
            InputState::Failed => exit_code::INPUT,
            _ if self.count == 0 => no_input(),
            _ => exit_code::of_failed(self.failed),
        }
    }
}

/// Says that there is no input; answers the exit code.
pub(crate) fn no_input() -> u8 {
    report::say("there is no input, so there is nothing to do");
    exit_code::NO_INPUT
}
