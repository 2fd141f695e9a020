//! What is kept of each job that has ended, besides its output.

use std::env;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::args;
use crate::capsule::{Capsules, What};
use crate::exit_code;
use crate::files::is_same;
use crate::joblog::{Again, Finished, Joblog};
use crate::page::Page;
use crate::quote::push_quoted;
use crate::record::Record;
use crate::report::{self, Refusal, Unwritable};
use crate::trace::Trace;

/// How much of the command line stands in a report, in characters: it may have thousands of inputs.
const COMMAND_LINE_MAX: usize = 200;

/// The books of one batch.
#[derive(Debug)]
pub(crate) struct Books {
    joblog: Option<Joblog>,
    trace: Option<Trace>,
    page: Option<Page>,
    capsules: Option<Capsules>,
    /// What need not be run, because it has been.
    finished: Finished,
}

impl Books {
    /// Opens what the settings name, before anything is run.
    pub(crate) fn open(settings: &args::Settings) -> Result<Books, Refusal> {
        let again = match settings.resume_failed {
            true => Again::UnfinishedAndFailed,
            false => Again::Unfinished,
        };
        // As with GNU parallel, `--resume-failed` alone means the joblog.
        let resumed = settings.resume.as_ref().or(match settings.resume_failed {
            true => settings.joblog.as_ref(),
            false => None,
        });
        if settings.resume_failed && resumed.is_none() {
            let message = "`--resume-failed` needs a joblog: `--resume FILE` or `--joblog FILE`";
            return Err(Refusal::new(exit_code::USAGE, message));
        }
        let finished = match resumed {
            None => Finished::default(),
            Some(path) => Finished::read(path, again).map_err(|error| {
                let message = format!("cannot resume `{}`: {error}", path.display());
                Refusal::new(exit_code::INPUT, message)
            })?,
        };
        if let Some(number) = finished.torn {
            report::say(format_args!(
                "line {number}, the last of the joblog, is torn: its job counts as not finished"
            ));
        }
        let joblog = opened(&settings.joblog.as_ref().or(resumed).cloned(), |path| {
            let is_resumed =
                resumed.is_some_and(|resumed| path == resumed || is_same(path, resumed));
            if is_resumed { Joblog::resume(path) } else { Joblog::create(path) }
        })?;
        let trace = opened(&settings.trace, Trace::create)?;
        let page = opened(&settings.report, |path| Page::create(path, command_line()))?;
        let capsules = opened(&settings.capsules, |dir| Capsules::open(dir, settings))?;
        Ok(Books { joblog, trace, page, capsules, finished })
    }

    /// Takes out what an earlier batch has finished.
    pub(crate) fn take_finished(&mut self) -> Finished {
        std::mem::take(&mut self.finished)
    }

    /// Takes note of a job that has ended, and whose output has been written.
    /// `what` says what was run.
    pub(crate) fn enter(
        &mut self,
        record: &Record,
        what: impl FnOnce() -> What,
    ) -> Result<(), Unwritable> {
        if let Some(capsules) = &self.capsules {
            let added = capsules.add(record, what());
            added.map_err(|error| Unwritable::file(capsules.dir(), error))?;
        }
        if let Some(trace) = &mut self.trace {
            trace.add(record).map_err(|error| Unwritable::file(trace.path(), error))?;
        }
        if let Some(page) = &mut self.page {
            page.add(record);
        }
        // Last: what is in the joblog is everywhere.
        if let Some(joblog) = &mut self.joblog {
            joblog.append(record).map_err(|error| Unwritable::file(joblog.path(), error))?;
        }
        Ok(())
    }

    /// Finishes what has an end.
    pub(crate) fn close(&mut self) -> Result<(), Unwritable> {
        if let Some(trace) = &mut self.trace {
            trace.finish().map_err(|error| Unwritable::file(trace.path(), error))?;
        }
        if let Some(page) = &self.page {
            page.finish().map_err(|error| Unwritable::file(page.path(), error))?;
        }
        Ok(())
    }
}

/// Opens what is to be written, if it is asked for.
fn opened<T>(
    path: &Option<PathBuf>,
    open: impl FnOnce(&Path) -> io::Result<T>,
) -> Result<Option<T>, Refusal> {
    let Some(path) = path else {
        return Ok(None);
    };
    open(path).map(Some).map_err(|error| {
        let message = format!("cannot write `{}`: {error}", path.display());
        Refusal::new(exit_code::OUTPUT, message)
    })
}

/// What was typed, more or less.
fn command_line() -> String {
    let mut line = b"procpool".to_vec();
    for word in env::args_os().skip(1) {
        line.push(b' ');
        push_quoted(&mut line, word.as_bytes());
    }
    let line = String::from_utf8_lossy(&line);
    let mut shown: String = line.chars().take(COMMAND_LINE_MAX).collect();
    if shown.len() < line.len() {
        shown.push('…');
    }
    shown
}
