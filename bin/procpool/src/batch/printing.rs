//! What has ended is printed and entered in the books, with `--keep-order` in the order of the inputs.

use super::{Batch, Ended, Fate};
use crate::joblog::Counts;
use crate::record::{Outcome, Record};
use crate::report::{self, Unwritable};
use crate::work::{Job, Work};

impl<W: Work> Batch<'_, W> {
    /// Prints what has ended, now or when its turn comes.
    pub(super) fn finish(
        &mut self,
        job: Job,
        value: Option<W::Value>,
        fate: Fate,
    ) -> Result<(), Unwritable> {
        if let Fate::Ended { verdict, .. } = &fate {
            self.tally.add(verdict.outcome);
            self.halt_if_reached();
        }
        let ended = Ended { job, value, fate };
        if !self.options.keep_order {
            return self.print(ended);
        }
        self.held.add(ended.job.number, self.size(&ended), ended);
        self.print_in_turn()
    }

    /// The next inputs need no job.
    pub(super) fn skip(&mut self, counts: Counts) -> Result<(), Unwritable> {
        self.skipped += counts;
        let first = self.count + 1;
        self.count += counts.sum();
        if self.options.keep_order {
            self.held.leave_out(first..=self.count);
            self.print_in_turn()?;
        }
        Ok(())
    }

    fn print_in_turn(&mut self) -> Result<(), Unwritable> {
        while let Some(next) = self.held.take() {
            self.print(next)?;
        }
        Ok(())
    }

    fn size(&self, ended: &Ended<W::Value>) -> usize {
        let value = ended.value.as_ref().map_or(0, |value| self.work.size(value));
        ended.job.input.len() + value
    }

    fn print(&mut self, ended: Ended<W::Value>) -> Result<(), Unwritable> {
        let Ended { job, value, fate } = ended;
        let (run, verdict, stderr_tail) = match fate {
            Fate::Ended { run, verdict, stderr_tail } => (run, verdict, stderr_tail),
            Fate::NotRun => {
                self.not_run += 1;
                report::say(format_args!("{}: not run", self.work.name(&job)));
                return Ok(());
            }
            Fate::Skipped => {
                self.empty += 1;
                return Ok(());
            }
        };
        let record = Record::new(job.number, job.input.clone(), run, verdict, stderr_tail);
        let result = self.work.print(&job, value, &record);
        if let Some(message) = &record.error {
            // What a halt has stopped has not failed.
            if self.halted.is_none() || record.outcome != Outcome::Stopped {
                self.failed += 1;
            }
            report::say(format_args!("{}: {message}", self.work.name(&job)));
        }
        result?;
        self.books.enter(&record, || self.work.what(&job, &record))
    }
}
