//! What is kept of each job that has ended, besides its output.

use std::fs;
use std::path::Path;

use crate::args;
use crate::exit_code;
use crate::input::Input;
use crate::joblog::{Again, Finished, Joblog};
use crate::record::Record;
use crate::report::{Refusal, Unwritable};

/// The books of one batch.
#[derive(Debug)]
pub(crate) struct Books {
    joblog: Option<Joblog>,
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
        let joblog = match settings.joblog.as_ref().or(resumed) {
            None => None,
            Some(path) => {
                let is_resumed = resumed.is_some_and(|resumed| is_same(path, resumed));
                let open = if is_resumed { Joblog::resume } else { Joblog::create };
                Some(open(path).map_err(|error| {
                    let message = format!("cannot write `{}`: {error}", path.display());
                    Refusal::new(exit_code::OUTPUT, message)
                })?)
            }
        };
        Ok(Books { joblog, finished })
    }

    /// True if a job with this input was finished before. Each that was counts once.
    pub(crate) fn has_finished(&mut self, input: &Input) -> bool {
        self.finished.take(input)
    }

    /// Takes note of a job that has ended, and whose output has been written.
    pub(crate) fn enter(&mut self, record: &Record) -> Result<(), Unwritable> {
        let Some(joblog) = &mut self.joblog else {
            return Ok(());
        };
        joblog.append(record).map_err(|error| Unwritable::file(joblog.path(), error))
    }

    /// What was skipped, in words.
    pub(crate) fn skipped(&self) -> Option<String> {
        let Finished { skipped_succeeded: succeeded, skipped_failed: failed, .. } = self.finished;
        match (succeeded, failed) {
            (0, 0) => None,
            (_, 0) => Some(format!("skipped {succeeded} jobs that had succeeded")),
            _ => Some(format!(
                "skipped {succeeded} jobs that had succeeded and {failed} that had failed \
                 (`--resume-failed` runs these again)"
            )),
        }
    }
}

fn is_same(one: &Path, other: &Path) -> bool {
    one == other
        || fs::canonicalize(one).ok().is_some_and(|one| fs::canonicalize(other).ok() == Some(one))
}
