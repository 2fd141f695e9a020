//! The loop that `run` and `call` share: inputs become jobs, results come out, signals are obeyed.
//!
//! Everything that happens is one [`Event`] in one channel; the loop alone waits. Inputs are asked for one
//! by one, so their number, and that of the results that wait for their turn, is bounded whatever the
//! number of inputs.

mod printing;
mod stopping;

use std::borrow::Cow;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};
use std::task::{Context, Wake, Waker};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use procpool::{JobError, JobFuture, JobId, ProcessPool, Shutdown};

use crate::args;
use crate::books::Books;
use crate::exit_code;
use crate::feed::{Feed, Unfinished};
use crate::gate::Gate;
use crate::halt::{Halt, Tally};
use crate::input::{Input, Inputs};
use crate::interrupt::Jobs;
use crate::joblog::Counts;
use crate::progress::{self, Progress};
use crate::record::{Outcome, Run, Verdict};
use crate::report::{self, Unwritable};
use crate::turns::Turns;
use crate::work::{Job, Next, Work};

pub(crate) use stopping::no_input;

/// Jobs submitted beyond those that run: enough that no worker ever waits for this loop.
const AHEAD_OF_EACH_WORKER: usize = 4;

/// What can happen to a batch.
#[derive(Debug)]
pub(crate) enum Event {
    /// An input that was asked for.
    Input(Input),
    /// So many before the next one were finished by an earlier batch.
    Skipped(Counts),
    /// There are no more, for a reason that may be an error.
    NoMoreInputs(Option<io::Error>),
    /// A job has ended, at that time.
    Ended(u64, SystemTime),
    /// SIGINT or SIGTERM.
    Interrupted,
    /// The program was stopped for so long, and its jobs with it.
    WentOn(Duration),
}

/// The channel in which events come.
#[derive(Debug)]
pub(crate) struct Events {
    pub(crate) sender: Sender<Event>,
    pub(crate) receiver: Receiver<Event>,
    pub(crate) jobs: Jobs,
}

/// Tells of an attempt's end, on whichever thread learns of it: no other has to be woken only for that, as one for a
/// callback would.
struct End {
    number: u64,
    sender: Sender<Event>,
}

impl Wake for End {
    fn wake(self: Arc<End>) {
        // The batch is over if nobody receives it.
        let _ = self.sender.send(Event::Ended(self.number, SystemTime::now()));
    }
}

struct Active<V> {
    job: Job,
    future: JobFuture<V>,
    attempt: u32,
}

/// A job that has ended and is to be printed.
struct Ended<V> {
    job: Job,
    value: Option<V>,
    fate: Fate,
}

/// What became of an input.
enum Fate {
    Ended { run: Run, verdict: Verdict, stderr_tail: String },
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

#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) workers: usize,
    pub(crate) keep_order: bool,
    /// What the batch does itself, beside those of the pool.
    pub(crate) retries: u32,
    pub(crate) halt: Option<Halt>,
    pub(crate) gate: Gate,
    /// The number of all inputs, if it is known.
    pub(crate) total: Option<u64>,
    pub(crate) progress: Progress,
}

impl Options {
    /// `has_terminal` says whether a bar may have it.
    pub(crate) fn new(settings: &args::Settings, has_terminal: bool) -> Options {
        Options {
            workers: settings.workers(),
            keep_order: settings.keep_order,
            retries: 0,
            halt: settings.halt,
            gate: Gate::new(settings.delay, settings.memfree),
            total: None,
            progress: Progress::new(settings.progress, has_terminal),
        }
    }
}

/// Runs a batch to its end; answers the exit code.
pub(crate) fn run<W: Work>(
    work: W,
    pool: &Arc<ProcessPool>,
    inputs: Inputs,
    options: Options,
    mut books: Books,
    events: Events,
) -> anyhow::Result<u8> {
    let (inputs, total) = match options.halt {
        // A share of all can be told only when all are known.
        Some(halt) if halt.needs_total() => {
            let all: Vec<_> = inputs.collect();
            let total = all.len() as u64;
            (Box::new(all.into_iter()) as Inputs, Some(total))
        }
        _ => (inputs, options.total),
    };
    events.jobs.are_in(pool);
    let unfinished = Unfinished { inputs, finished: books.take_finished() };
    let feed = match total {
        // All of them are at hand: what can be counted was not read from anywhere, or was read to its end.
        Some(_) => Feed::AtHand(unfinished),
        None => Feed::read(unfinished, events.sender.clone())?,
    };
    let mut batch = Batch {
        work,
        pool,
        options,
        books,
        events,
        feed,
        asked: 0,
        waiting: VecDeque::new(),
        look_at: None,
        total,
        tally: Tally::default(),
        skipped: Counts::default(),
        empty: 0,
        halted: None,
        stage: Stage::Working,
        inputs: InputState::Open,
        count: 0,
        active: HashMap::new(),
        slot_ends: HashMap::new(),
        held: Turns::new(),
        failed: 0,
        not_run: 0,
        broken: None,
        closing: None,
    };
    let result = batch.work_off();
    if result.is_ok() {
        // While the workers leave.
        batch.work.end();
    }
    let how = if result.is_ok() { Shutdown::Drain } else { Shutdown::Abort };
    pool.shutdown(how);
    if let Some(closing) = batch.closing.take() {
        // It waits for the same end.
        let _ = closing.join();
    }
    progress::clear();
    let result = batch.books.close().and(result);
    Ok(match result {
        Ok(()) => batch.exit_code(),
        Err(_) if batch.stage != Stage::Working && batch.halted.is_none() => exit_code::INTERRUPTED,
        Err(error) => error.say(),
    })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum InputState {
    Open,
    Ended,
    Failed,
}

struct Batch<'a, W: Work> {
    work: W,
    pool: &'a Arc<ProcessPool>,
    options: Options,
    books: Books,
    events: Events,
    feed: Feed,
    /// Inputs asked for and not received.
    asked: usize,
    /// Inputs received that have to wait for the gate.
    waiting: VecDeque<Job>,
    /// When to ask the gate again.
    look_at: Option<Instant>,
    /// The number of all inputs, if it is known.
    total: Option<u64>,
    tally: Tally,
    /// Inputs that an earlier batch has finished.
    skipped: Counts,
    /// Inputs that need no job, being empty.
    empty: u64,
    /// The rule by which the batch stops early.
    halted: Option<Halt>,
    stage: Stage,
    inputs: InputState,
    /// Inputs received; the number of the last.
    count: u64,
    active: HashMap<u64, Active<W::Value>>,
    /// When the last job of each slot ended.
    slot_ends: HashMap<usize, SystemTime>,
    /// Ended jobs that wait for an earlier one to be printed.
    held: Turns<Ended<W::Value>>,
    failed: u64,
    not_run: u64,
    /// Why no worker can be started.
    broken: Option<String>,
    /// The thread that waits for the pool's end, once that has been begun.
    closing: Option<JoinHandle<()>>,
}

impl<W: Work> Batch<'_, W> {
    fn work_off(&mut self) -> Result<(), Unwritable> {
        loop {
            self.start_waiting()?;
            self.ask_for_inputs();
            if self.is_over() {
                return Ok(());
            }
            self.close_in_time();
            let event = self.next_event();
            self.show_progress();
            match event {
                None => {}
                Some(Event::Input(input)) => {
                    self.asked -= 1;
                    self.count += 1;
                    self.waiting.push_back(Job { number: self.count, input });
                }
                Some(Event::Skipped(counts)) => self.skip(counts)?,
                Some(Event::NoMoreInputs(error)) => self.end_inputs(error),
                Some(Event::Ended(number, end)) => self.end_attempt(number, end)?,
                Some(Event::Interrupted) => self.interrupt(),
                Some(Event::WentOn(after)) => {
                    self.options.gate.put_off(after);
                    self.options.progress.put_off(after);
                }
            }
        }
    }

    /// The next event, or none if it is time to ask the gate again or to show the progress.
    fn next_event(&mut self) -> Option<Event> {
        let times = [self.look_at.take(), self.options.progress.next()];
        let Some(wake_at) = times.into_iter().flatten().min() else {
            return Some(self.events.receiver.recv().expect("we hold a sender"));
        };
        self.events.receiver.recv_timeout(wake_at.saturating_duration_since(Instant::now())).ok()
    }

    fn show_progress(&mut self) {
        let now = Instant::now();
        if self.options.progress.next().is_none_or(|next| now < next) {
            return;
        }
        let by_id: HashMap<JobId, &Job> =
            self.active.values().map(|active| (active.future.id(), &active.job)).collect();
        let inputs: Vec<(usize, Cow<'_, [u8]>)> = self
            .pool
            .workers()
            .iter()
            .filter_map(|worker| Some((worker.index + 1, by_id.get(&worker.job?)?.input.joined())))
            .collect();
        let state = progress::State {
            done: self.tally.succeeded + self.tally.failed,
            failed: self.tally.failed,
            skipped: self.skipped.sum() + self.empty,
            total: self.total,
            slots: inputs.iter().map(|(slot, input)| (*slot, &input[..])).collect(),
        };
        self.options.progress.show(&state, now);
    }

    fn takes_inputs(&self) -> bool {
        self.inputs == InputState::Open && self.is_starting()
    }

    fn is_starting(&self) -> bool {
        self.stage == Stage::Working && self.broken.is_none()
    }

    fn is_over(&self) -> bool {
        self.active.is_empty() && self.waiting.is_empty() && !self.takes_inputs()
    }

    fn ask_for_inputs(&mut self) {
        // A job that is handed ahead starts when its worker likes, whatever has been learnt meanwhile.
        let decides_each = self.options.gate.is_there() || self.options.halt.is_some();
        let ahead = if decides_each { 0 } else { AHEAD_OF_EACH_WORKER };
        let ahead_max = self.options.workers * ahead;
        let active_max = self.options.workers + ahead_max;
        let under_way = self.active.len() + self.waiting.len() + self.asked;
        // Several at a time, when half of those ahead have gone: so the feed is not woken for each.
        if active_max.saturating_sub(under_way) < ahead_max / 2 {
            return;
        }
        for _ in under_way..active_max {
            if !self.takes_inputs() || self.held.is_full() {
                return;
            }
            self.asked += 1;
            self.feed.ask(&self.events.sender);
        }
    }

    /// Starts the inputs that have come, as far as the gate allows it.
    fn start_waiting(&mut self) -> Result<(), Unwritable> {
        while let Some(job) = self.waiting.pop_front() {
            if !self.is_starting() {
                self.finish(job, None, Fate::NotRun)?;
            } else if let Err(wait) = self.options.gate.pass(Instant::now()) {
                if let Some(news) = wait.news {
                    report::say(news);
                }
                self.look_at = Some(wait.until);
                self.waiting.push_front(job);
                return Ok(());
            } else {
                self.submit(job, 1)?;
            }
        }
        Ok(())
    }

    /// Begins the pool's end when nothing more will be submitted: so its workers leave when their last jobs end, and not
    /// when all of it has been printed.
    fn close_in_time(&mut self) {
        let may_submit =
            self.inputs == InputState::Open || !self.waiting.is_empty() || self.options.retries > 0;
        if may_submit || self.closing.is_some() {
            return;
        }
        let pool = Arc::clone(self.pool);
        let drain = move || pool.shutdown(Shutdown::Drain);
        // Without a thread it has its end later.
        self.closing = thread::Builder::new().name("closing".into()).spawn(drain).ok();
    }

    fn end_inputs(&mut self, error: Option<io::Error>) {
        self.inputs = match error {
            None => {
                self.total = Some(self.count);
                InputState::Ended
            }
            Some(error) => {
                report::say(format_args!(
                    "cannot read the input after number {}: {error}",
                    self.count
                ));
                InputState::Failed
            }
        };
    }

    fn submit(&mut self, job: Job, attempt: u32) -> Result<(), Unwritable> {
        match self.work.submit(self.pool, &job) {
            Ok(Next::Job(future)) => {
                let number = job.number;
                let end = Arc::new(End { number, sender: self.events.sender.clone() });
                let waker = Waker::from(Arc::clone(&end));
                if future.poll_done(&mut Context::from_waker(&waker)).is_ready() {
                    end.wake();
                }
                self.active.insert(number, Active { job, future, attempt });
                Ok(())
            }
            Ok(Next::Skip) => self.finish(job, None, Fate::Skipped),
            Err(message) => {
                let verdict = Verdict::failure(message);
                let fate = Fate::Ended { run: Run::none(), verdict, stderr_tail: String::new() };
                self.finish(job, None, fate)
            }
        }
    }

    fn end_attempt(&mut self, number: u64, end: SystemTime) -> Result<(), Unwritable> {
        let Active { job, future, attempt } =
            self.active.remove(&number).expect("each attempt ends once, and is active until then");
        let procpool::Outcome { result, report, .. } = future.outcome();
        let attempts_max = self.options.retries.saturating_add(1);
        if attempt < attempts_max && self.stage == Stage::Working && self.work.may_retry(&result) {
            self.work.discard(&job);
            return self.submit(job, attempt + 1);
        }
        match &result {
            Err(JobError::Cancelled { started: false }) => {
                return self.finish(job, None, Fate::NotRun);
            }
            Err(JobError::Broken(error)) => {
                self.break_down(error.to_string());
                return self.finish(job, None, Fate::NotRun);
            }
            _ => {}
        }
        let mut run = Run::of(&report, end);
        run.attempts += attempt - 1;
        // When a job ended is known a moment late, and not always the same. A slot has one job at a time.
        if let Some(slot) = run.slot {
            let end = self.slot_ends.entry(slot).or_insert(run.start);
            run.start = run.start.max(*end);
            *end = run.start + run.run;
        }
        let mut verdict = match &result {
            Ok(value) => {
                run.cpu = self.work.cpu(value).or(run.cpu);
                self.work.verdict(value)
            }
            Err(error) => Verdict::of_error(error, self.work.describe(error)),
        };
        if let Some(message) = &mut verdict.error
            && attempt > 1
        {
            message.push_str(&format!(" (attempt {attempt} of {attempts_max})"));
        }
        let stderr_tail = match verdict.outcome {
            Outcome::Succeeded => String::new(),
            _ => self.work.stderr_tail(&job, &result),
        };
        self.finish(job, result.ok(), Fate::Ended { run, verdict, stderr_tail })
    }

    fn break_down(&mut self, cause: String) {
        if self.broken.is_none() {
            report::say(self.work.no_workers(&cause));
            self.broken = Some(cause);
        }
    }
}
