//! `procpool call` and `procpool tasks`: the registered tasks of another program.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::str;
use std::sync::Arc;

use anyhow::Context;
use procpool::{JobError, ProcessPool, ProcessPoolBuilder, TaskInfo};
use serde::de::IgnoredAny;

use crate::args;
use crate::batch::{self, Options};
use crate::books::Books;
use crate::capsule::{self, What};
use crate::exit_code;
use crate::files;
use crate::input::{self, Lines};
use crate::interrupt;
use crate::program;
use crate::progress;
use crate::record::{Record, Verdict};
use crate::report::{self, Unwritable};
use crate::results::Results;
use crate::run::{results, write_through};
use crate::source;
use crate::work::{Job, Next, Work};

/// All of `procpool call`; answers the exit code.
pub(crate) fn call(args: args::Call) -> anyhow::Result<u8> {
    let file = args.file.as_deref().unwrap_or(Path::new("-"));
    let checked = args.settings.check();
    if let Err(message) = checked.and_then(|()| files::check(&args.settings, &[file])) {
        report::say(message);
        return Ok(exit_code::USAGE);
    }
    let Some(builder) = worker_program(&args.worker) else {
        return Ok(exit_code::NOT_FOUND);
    };
    let inputs = match source::lines(file, Lines { end: b'\n', len_max: u64::MAX }) {
        Ok(inputs) => inputs,
        Err(error) => {
            report::say(format_args!("{error:#}"));
            return Ok(exit_code::INPUT);
        }
    };
    let settings = &args.settings;
    let opened = Books::open(settings).and_then(|books| Ok((books, results(settings)?)));
    let (books, results) = match opened {
        Ok(opened) => opened,
        Err(refusal) => return Ok(refusal.say()),
    };
    let events = interrupt::events(None)?;
    settings.prepare_process()?;
    let mut builder = settings.apply(builder).retries(settings.retries);
    if let Some(limit) = settings.cpu_timeout {
        builder = builder.cpu_timeout(limit);
    }
    let pool = Arc::new(builder.build().context("cannot make a pool")?);
    // The pool does retries.
    let options = Options { retries: 0, ..Options::new(settings, !input::is_terminal(file)) };
    let work = Calls {
        described: format!("task `{}`", args.task),
        task: args.task,
        program: fs::canonicalize(&args.worker.program)
            .unwrap_or_else(|_| args.worker.program.clone()),
        worker: args.worker,
        is_json: settings.json,
        results,
    };
    batch::run(work, &pool, inputs, options, books, events)
}

/// All of `procpool tasks`; answers the exit code.
pub(crate) fn tasks(args: &args::Tasks) -> anyhow::Result<u8> {
    let Some(builder) = worker_program(&args.worker) else {
        return Ok(exit_code::NOT_FOUND);
    };
    let pool = builder.workers(1).build().context("cannot make a pool")?;
    let tasks = match pool.worker_tasks() {
        Ok(tasks) => tasks,
        Err(error) => {
            report::say(match error {
                JobError::Broken(cause) => no_workers(&args.worker, &cause.to_string()),
                error => report::describe(&error, "the list of tasks"),
            });
            return Ok(exit_code::SYSTEM);
        }
    };
    let mut lines = String::new();
    for task in &tasks {
        lines.push_str(&if args.json { json(task) } else { human(task) });
        lines.push('\n');
    }
    Ok(match write_through(&mut io::stdout().lock(), lines.as_bytes()) {
        Ok(()) => exit_code::SUCCESS,
        Err(error) => Unwritable::Stdout(error).say(),
    })
}

/// Settings for a pool with these workers; `None`, and the reason said, if there is no such program.
fn worker_program(worker: &args::Worker) -> Option<ProcessPoolBuilder> {
    match program::check(worker.program.as_os_str(), None, None) {
        Ok(()) => Some(ProcessPool::builder().worker_program(&worker.program)),
        Err(message) => {
            report::say(format_args!("--worker: {message}"));
            None
        }
    }
}

/// What is said of a place in JSON, without the line number: that is 1 in every message, because one line is given at a time.
fn in_its_line(message: &str) -> String {
    message.replace(" at line 1 column ", " at column ")
}

fn no_workers(worker: &args::Worker, cause: &str) -> String {
    let program = worker.program.display();
    format!("`{program}` cannot serve as the worker program: {cause}")
}

fn human(task: &TaskInfo) -> String {
    format!("{}  {}  {:016x}", task.name, task.signature, task.fingerprint)
}

/// The fingerprint is text: 64 bits are more than a JSON number keeps in most programs.
fn json(task: &TaskInfo) -> String {
    let object = serde_json::json!({
        "name": task.name,
        "signature": task.signature,
        "fingerprint": format!("{:016x}", task.fingerprint),
    });
    object.to_string()
}

/// The work of `procpool call`.
struct Calls {
    task: String,
    /// The task as messages call it.
    described: String,
    worker: args::Worker,
    /// The worker program's whole path, for capsules.
    program: PathBuf,
    /// Results are printed with their verdicts.
    is_json: bool,
    results: Option<Results>,
}

impl Work for Calls {
    type Value = String;

    fn submit(&self, pool: &ProcessPool, job: &Job) -> Result<Next<String>, String> {
        let not_json = |error: &dyn std::fmt::Display| {
            format!("{} was not called: not JSON: {error}", self.described)
        };
        let input = job.input.joined();
        let line = str::from_utf8(&input).map_err(|error| not_json(&error))?;
        if line.trim().is_empty() {
            return Ok(Next::Skip);
        }
        serde_json::from_str::<IgnoredAny>(line)
            .map_err(|error| not_json(&in_its_line(&error.to_string())))?;
        Ok(Next::Job(pool.call(&self.task, line)))
    }

    fn verdict(&self, _json: &String) -> Verdict {
        Verdict::success()
    }

    fn describe(&self, error: &JobError) -> String {
        let text = report::describe(error, &self.described);
        if matches!(error, JobError::Decode(_)) { in_its_line(&text) } else { text }
    }

    fn no_workers(&self, cause: &str) -> String {
        no_workers(&self.worker, cause)
    }

    fn may_retry(&self, _result: &Result<String, JobError>) -> bool {
        false
    }

    fn discard(&self, _job: &Job) {}

    fn stderr_tail(&self, _job: &Job, result: &Result<String, JobError>) -> String {
        match result {
            Err(JobError::Died(death)) => death.stderr_tail.clone(),
            _ => String::new(),
        }
    }

    fn print(
        &mut self,
        _job: &Job,
        json: Option<String>,
        record: &Record,
    ) -> Result<(), Unwritable> {
        // A `Serialize` that passes JSON through may have line ends in it; in JSON they are white space.
        let line = json.map(|json| json.replace(['\n', '\r'], " ") + "\n");
        let printed = match (&line, self.is_json) {
            (Some(line), false) => line,
            (None, false) => "",
            (result, true) => {
                let json = record.json();
                let fields = json.strip_suffix('}').unwrap_or(&json);
                let result = result.as_ref().map_or("null", |line| line.trim_end());
                &format!("{fields},\"result\":{result}}}\n")
            }
        };
        let print = || write_through(&mut io::stdout().lock(), printed.as_bytes());
        progress::beside_output(print).map_err(Unwritable::Stdout)?;
        let Some(results) = &self.results else {
            return Ok(());
        };
        let result = line.as_ref().map(|line| line.as_bytes());
        results.keep_result(record, result).map_err(|error| Unwritable::file(results.dir(), error))
    }

    fn what(&self, _job: &Job, _record: &Record) -> What {
        What::Task { worker: capsule::text(self.program.as_os_str()), name: self.task.clone() }
    }

    fn size(&self, json: &String) -> usize {
        json.len()
    }

    fn name(&self, job: &Job) -> String {
        format!("line {}", job.number)
    }
}
