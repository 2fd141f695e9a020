//! `procpool run`: a command once for each input.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::thread;
use std::time::Duration;

use anyhow::Context;
use procpool::{JobError, ProcessPool, Status};

use crate::args;
use crate::batch::{self, Options};
use crate::books::Books;
use crate::capture::Captured;
use crate::command::{self, Ended, Order, Ran, Setup};
use crate::exit_code;
use crate::input::{Inputs, Lines};
use crate::interrupt;
use crate::program;
use crate::record::{Outcome, Record, Verdict};
use crate::report::{self, Shown, Unwritable};
use crate::source::{Reading, Sources};
use crate::spill::{Spill, Stream};
use crate::template::{Place, Reader, Template};
use crate::work::{Job, Next, Work};

/// How much of a failed command's standard error a report quotes.
const TAIL_MAX: usize = 2048;
/// The longest argument that Linux passes to a program (MAX_ARG_STRLEN), with the zero at its end.
const ARGUMENT_MAX: usize = 128 * 1024;

/// All of `procpool run`; answers the exit code.
pub(crate) fn run(args: args::Run) -> anyhow::Result<u8> {
    let args::Run { settings, sources, shell, no_run, mut words } = args;
    let lines = Lines { end: if sources.null { 0 } else { b'\n' }, len_max: ARGUMENT_MAX as u64 };
    let reading = Reading { lines, colsep: sources.colsep };
    let sources = Sources::take(sources.arg_file, &mut words);
    if words.is_empty() {
        report::say("there is no command before the inputs; see `procpool run --help`");
        return Ok(exit_code::USAGE);
    }
    if sources.share_stdin() {
        report::say("standard input (`-`) can be one source only");
        return Ok(exit_code::USAGE);
    }
    let template = Template::new(words, if shell { Reader::Shell } else { Reader::Command });
    if let Some(Err(message)) = template.fixed_program().map(|name| program::check(&name)) {
        report::say(message);
        return Ok(exit_code::NOT_FOUND);
    }
    let inputs = match sources.open(&reading) {
        Ok(inputs) => inputs,
        Err(error) => {
            report::say(format_args!("{error:#}"));
            return Ok(exit_code::INPUT);
        }
    };
    if no_run {
        return Ok(show(&template, inputs));
    }
    let books = match Books::open(&settings) {
        Ok(books) => books,
        Err(refusal) => return Ok(refusal.say()),
    };
    let spill = Spill::new().context("cannot make a temporary directory")?;
    let code = run_batch(template, inputs, books, &settings, &spill);
    spill.remove();
    code
}

/// Prints what would be run; answers the exit code.
fn show(template: &Template, inputs: Inputs) -> u8 {
    let mut out = BufWriter::new(io::stdout().lock());
    let mut count = 0;
    for input in inputs {
        let input = match input {
            Ok(input) => input,
            Err(error) => {
                report::say(format_args!("cannot read the input after number {count}: {error}"));
                return exit_code::INPUT;
            }
        };
        count += 1;
        // Which slot it will be depends on how long jobs take.
        let mut line = template.shell_line(&input, Place { number: count, slot: 1 });
        line.push(b'\n');
        if let Err(error) = out.write_all(&line) {
            return Unwritable::Stdout(error).say();
        }
    }
    match out.flush() {
        Ok(()) if count == 0 => batch::no_input(),
        Ok(()) => exit_code::SUCCESS,
        Err(error) => Unwritable::Stdout(error).say(),
    }
}

fn run_batch(
    template: Template,
    inputs: Inputs,
    books: Books,
    settings: &args::Settings,
    spill: &Spill,
) -> anyhow::Result<u8> {
    // First of all, so that no signal leaves the directory behind.
    let events = interrupt::events(Some(spill.clone()))?;
    let workers = workers(settings);
    let setup = Setup { template, spill: spill.path().into() };
    let mut builder = ProcessPool::builder().workers(workers).initializer(command::prepare, setup);
    if let Some(timeout) = settings.timeout {
        builder = builder.job_timeout(timeout);
    }
    let pool = builder.build().context("cannot make a pool")?;
    let options = Options { workers, keep_order: settings.keep_order, retries: settings.retries };
    let work = Commands { spill: spill.clone() };
    batch::run(work, &pool, inputs, options, books, events)
}

/// How many jobs run at a time.
pub(crate) fn workers(settings: &args::Settings) -> usize {
    settings
        .jobs
        .map_or_else(|| thread::available_parallelism().map_or(1, usize::from), usize::from)
}

/// The work of `procpool run`.
struct Commands {
    spill: Spill,
}

impl Work for Commands {
    type Value = Ran;

    fn submit(&self, pool: &ProcessPool, job: &Job) -> Result<Next<Ran>, String> {
        if job.input.values().any(|value| value.len() >= ARGUMENT_MAX) {
            return Err(format!("not run: an argument has at most {} bytes", ARGUMENT_MAX - 1));
        }
        let order = Order { number: job.number, input: job.input.clone() };
        Ok(Next::Job(pool.submit(command::run_command, order)))
    }

    fn verdict(&self, ran: &Ran) -> Verdict {
        match &ran.ended {
            Ended::Exit(0) => Verdict { exit: Some(0), ..Verdict::success() },
            Ended::Exit(code) => {
                Verdict { exit: Some(*code), ..Verdict::failure(format!("exit code {code}")) }
            }
            Ended::Signal(number, core) => {
                let signal = Status::Signal(*number, *core).to_string();
                let message = format!("killed by {signal}");
                let outcome = Outcome::Died;
                Verdict { outcome, signal: Some(signal), ..Verdict::failure(message) }
            }
            Ended::NotStarted(message) | Ended::OutputLost(message) => Verdict::failure(message),
        }
    }

    fn describe(&self, error: &JobError) -> String {
        report::describe(error, "the command")
    }

    fn no_workers(&self, cause: &str) -> String {
        format!("workers cannot be started: {cause}")
    }

    fn may_retry(&self, result: &Result<Ran, JobError>) -> bool {
        match result {
            Ok(ran) => !matches!(ran.ended, Ended::Exit(0)),
            Err(error) => matches!(error, JobError::Died(_)),
        }
    }

    fn discard(&self, job: &Job) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            // The next attempt would overwrite it; it matters only if that one is short.
            let _ = self.spill.take(job.number, stream);
        }
    }

    fn cpu(&self, ran: &Ran) -> Option<Duration> {
        Some(ran.cpu)
    }

    fn stderr_tail(&self, job: &Job, result: &Result<Ran, JobError>) -> String {
        let tail = match result {
            Ok(Ran { stderr: Captured::Inline(bytes), .. }) => {
                Ok(bytes[bytes.len().saturating_sub(TAIL_MAX)..].to_vec())
            }
            _ => self.spill.tail(job.number, Stream::Stderr, TAIL_MAX),
        };
        String::from_utf8_lossy(&tail.unwrap_or_default()).into_owned()
    }

    fn print(&mut self, job: &Job, ran: Option<Ran>, _record: &Record) -> io::Result<()> {
        // A job that was stopped has left what it had written so far.
        let (stdout, stderr) = match ran {
            Some(ran) => (ran.stdout, ran.stderr),
            None => (Captured::Spilled, Captured::Spilled),
        };
        let mut out = io::stdout().lock();
        let result = match stdout {
            Captured::Inline(bytes) => write_through(&mut out, &bytes),
            Captured::Spilled => self.copy(job, Stream::Stdout, &mut out),
        };
        let mut err = io::stderr().lock();
        // If standard error is gone, nobody can be told.
        let _ = match stderr {
            Captured::Inline(bytes) => err.write_all(&bytes),
            Captured::Spilled => self.copy(job, Stream::Stderr, &mut err),
        };
        result
    }

    fn size(&self, ran: &Ran) -> usize {
        let size = |captured: &Captured| match captured {
            Captured::Inline(bytes) => bytes.len(),
            Captured::Spilled => 0,
        };
        size(&ran.stdout) + size(&ran.stderr)
    }

    fn name(&self, job: &Job) -> String {
        format!("job {} (input {})", job.number, Shown(&job.input.joined()))
    }
}

impl Commands {
    fn copy(&self, job: &Job, stream: Stream, to: &mut impl Write) -> io::Result<()> {
        match self.spill.take(job.number, stream) {
            Ok(Some(mut file)) => copy_through(&mut file, to),
            Ok(None) => Ok(()),
            Err(error) => {
                report::say(format_args!("{}: its output is lost: {error}", self.name(job)));
                Ok(())
            }
        }
    }
}

fn copy_through(file: &mut File, to: &mut impl Write) -> io::Result<()> {
    io::copy(file, to)?;
    to.flush()
}

/// Whole outputs are written at once, and not held back for the next.
pub(crate) fn write_through(to: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    if bytes.is_empty() {
        return Ok(());
    }
    to.write_all(bytes)?;
    to.flush()
}
