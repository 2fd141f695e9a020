//! What jobs have left is kept for some time, and goes.

use std::fs;
use std::time::{Duration, Instant};

use super::{Desk, Purpose};
use crate::command::log_path;
use crate::config::Retention;
use crate::job::{Moment, Record, State, Step, Who};
use crate::journal::{Entry, Query, Urgency};
use crate::protocol::Stream;
use crate::store::Change;

/// When it is looked for what has been kept long enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Retire {
    At(Instant),
    UnderWay,
}

/// How often it is looked for what has been kept long enough.
const RETIRE_EVERY: Duration = Duration::from_secs(1);
/// How many jobs expire at a time.
const RETIRE_MAX: u32 = 128;

impl Desk {
    /// Looks for what has been kept long enough, if it is time to.
    pub(super) fn retire(&mut self) {
        let Retire::At(at) = self.retire else {
            return;
        };
        if at > Instant::now() {
            return;
        }
        self.retire = Retire::UnderWay;
        let Retention { days, mib } = self.config.retention;
        let before = Moment(Moment::now().0.saturating_sub(u64::from(days) * 86_400_000));
        let query = Query::Stale { before, bytes: u64::from(mib) << 20, limit: RETIRE_MAX };
        self.ask(query, Purpose::Retire);
    }

    /// Lets go of what these jobs have left. A log goes before its job: afterwards nobody would know of it.
    pub(super) fn expire(&mut self, records: Vec<Record>) {
        let is_all = records.len() < RETIRE_MAX as usize;
        let pause = if is_all { RETIRE_EVERY } else { Duration::ZERO };
        self.retire = Retire::At(Instant::now() + pause);
        let (mut changes, mut ids) = (Vec::new(), Vec::new());
        for Record { id, mut life, .. } in records {
            // It may have been taken up again, or be gone, when it was found.
            if self.machine.is_live(id) || self.forgetting.contains(&id) {
                continue;
            }
            for stream in [Stream::Stdout, Stream::Stderr] {
                // Tasks have none.
                let _ = fs::remove_file(log_path(&self.logs, id, stream));
            }
            let who = Who::Daemon;
            life.history.push(Step { at: Moment::now(), state: State::Expired, who, why: None });
            changes.push(Change::Expire { id, life });
            self.forgetting.insert(id);
            ids.push(id);
        }
        if !ids.is_empty() {
            self.under_way += 1;
            let purpose = Purpose::Expired(ids);
            let (queries, urgency) = (Vec::new(), Urgency::Now);
            self.journal.push(Entry { changes, queries, purpose, urgency });
        }
    }
}
