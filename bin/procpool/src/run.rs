//! `procpool run`: a command once for each input.

use std::io::{self, BufWriter, Write};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use nix::sys::signal::Signal;
use procpool::{JobError, ProcessPool, Status};

use crate::args;
use crate::batch::{self, Options};
use crate::books::Books;
use crate::capsule::{self, What};
use crate::capture::Captured;
use crate::command::{self, Ended, Order, Ran, Setup};
use crate::exit_code;
use crate::files;
use crate::input::{Inputs, Lines};
use crate::interrupt;
use crate::lines::Streaming;
use crate::output::{Form, Printer};
use crate::program;
use crate::record::{Outcome, Record, Verdict};
use crate::report::{self, Refusal, Shown, Unwritable};
use crate::results::Results;
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
    let args::Run { settings, sources, shell, no_run, tag, line_buffer, mut words } = args;
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
    let checked = settings.check();
    if let Err(message) = checked.and_then(|()| files::check(&settings, &sources.files())) {
        report::say(message);
        return Ok(exit_code::USAGE);
    }
    let (workdir, path) = (settings.workdir.as_deref(), settings.path());
    let checked = template.fixed_program().map(|name| program::check(&name, workdir, path));
    if let Some(Err(message)) = checked {
        report::say(message);
        return Ok(exit_code::NOT_FOUND);
    }
    let (total, is_typed) = (sources.count(), sources.read_terminal());
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
    let opened = Books::open(&settings).and_then(|books| Ok((books, results(&settings)?)));
    let (books, results) = match opened {
        Ok(opened) => opened,
        Err(refusal) => return Ok(refusal.say()),
    };
    let form = match () {
        () if settings.json => Form::Json,
        () if line_buffer => Form::Streamed,
        () if tag => Form::Tagged,
        () => Form::Plain,
    };
    let spill = Spill::new().context("cannot make a temporary directory")?;
    // Workers that print themselves would print into a bar.
    let has_terminal = !is_typed && form != Form::Streamed;
    let options =
        Options { retries: settings.retries, total, ..Options::new(&settings, has_terminal) };
    let setup = Setup {
        template: template.clone(),
        spill: spill.path().into(),
        cpu_seconds: settings.cpu_timeout.map(|limit| limit.as_secs_f64().ceil() as u64),
        streaming: line_buffer.then_some(if tag { Streaming::Tagged } else { Streaming::Untagged }),
    };
    let work = Commands {
        template,
        cpu_timeout: settings.cpu_timeout,
        memory: settings.memory,
        printer: Printer { form, results, spill: spill.clone() },
    };
    let code = run_batch(work, setup, inputs, options, books, &settings);
    // It is still there if the batch was cut short.
    spill.remove();
    code
}

/// The directory of `--results`, if it is asked for.
pub(crate) fn results(settings: &args::Settings) -> Result<Option<Results>, Refusal> {
    let Some(dir) = &settings.results else {
        return Ok(None);
    };
    Results::open(dir).map(Some).map_err(|error| {
        let message = format!("cannot write into `{}`: {error}", dir.display());
        Refusal::new(exit_code::OUTPUT, message)
    })
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
    work: Commands,
    setup: Setup,
    inputs: Inputs,
    options: Options,
    books: Books,
    settings: &args::Settings,
) -> anyhow::Result<u8> {
    // First of all, so that no signal leaves the directory behind.
    let events = interrupt::events(Some(work.printer.spill.clone()))?;
    settings.prepare_process()?;
    let builder = settings.apply(ProcessPool::builder()).initializer(command::prepare, setup);
    let pool = Arc::new(builder.build().context("cannot make a pool")?);
    batch::run(work, &pool, inputs, options, books, events)
}

/// The work of `procpool run`.
struct Commands {
    template: Template,
    cpu_timeout: Option<Duration>,
    memory: Option<u64>,
    printer: Printer,
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
                let (outcome, message) = match self.cpu_timeout {
                    Some(limit) if *number == Signal::SIGXCPU as i32 => (
                        Outcome::TimedOut,
                        format!("the command used up its CPU time of {limit:?}"),
                    ),
                    _ => (Outcome::Died, self.killed_by(*number, &signal)),
                };
                Verdict { outcome, signal: Some(signal), ..Verdict::failure(message) }
            }
            Ended::NotStarted(message) | Ended::OutputLost(message) => Verdict::failure(message),
            // What there is to say of it ends the batch.
            Ended::StdoutFailed(_) => Verdict { error: None, ..Verdict::failure("") },
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
            let _ = self.printer.spill.take(job.number, stream);
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
            _ => self.printer.spill.tail(job.number, Stream::Stderr, TAIL_MAX),
        };
        String::from_utf8_lossy(&tail.unwrap_or_default()).into_owned()
    }

    fn print(&mut self, job: &Job, ran: Option<Ran>, record: &Record) -> Result<(), Unwritable> {
        if let Some(Ran { ended: Ended::StdoutFailed(errno), .. }) = ran {
            return Err(Unwritable::Stdout(io::Error::from_raw_os_error(errno)));
        }
        // A job that was stopped has left what it had written so far.
        let pieces = match ran {
            Some(ran) => [ran.stdout, ran.stderr],
            None => [Captured::Spilled, Captured::Spilled],
        };
        self.printer.print(job, pieces, record)
    }

    fn end(&mut self) {
        self.printer.spill.remove();
    }

    fn what(&self, job: &Job, record: &Record) -> What {
        let place = Place { number: job.number, slot: record.slot.unwrap_or(1) };
        let words = self.template.fill(&job.input, place);
        What::Command(words.iter().map(|word| capsule::text(word)).collect())
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
    /// The kernel does not say for what it has killed a command.
    fn killed_by(&self, number: i32, signal: &str) -> String {
        match self.memory {
            Some(bytes) if number == Signal::SIGKILL as i32 => {
                format!("killed by {signal}, as what needs more than its {} MiB is", bytes >> 20)
            }
            _ => format!("killed by {signal}"),
        }
    }
}

/// Whole outputs are written at once, and not held back for the next.
pub(crate) fn write_through(to: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    if bytes.is_empty() {
        return Ok(());
    }
    to.write_all(bytes)?;
    to.flush()
}
