//! What `top` has been told, and what of it is selected.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use procpool_daemon::job::{JobId, State};
use procpool_daemon::machine::{Gate, QueueInfo};

use super::source::{Now, Told};

/// Over how long the rate is taken.
const RATE_OVER: Duration = Duration::from_secs(5);
/// How long a message stands.
const MESSAGE_TIME: Duration = Duration::from_secs(5);

/// See above.
#[derive(Debug, Default)]
pub(super) struct View {
    pub(super) now: Option<Now>,
    /// How many jobs had ended when.
    ended: VecDeque<(Instant, u64)>,
    /// What is selected: as long as it is there, whatever comes before it.
    selected: Option<Line>,
    pub(super) log: Option<Log>,
    message: Option<(Instant, String)>,
}

/// A line that can be selected.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Line {
    Queue(String),
    Job(JobId),
}

/// A log on the screen.
#[derive(Debug)]
pub(super) struct Log {
    pub(super) id: JobId,
    pub(super) text: String,
    /// How many lines above its end the last one on the screen is.
    pub(super) up: usize,
}

impl View {
    pub(super) fn take(&mut self, told: Told) {
        match told {
            Told::Now(now) => {
                self.ended.push_back((now.at, now.activity.ended));
                while self.ended.len() > 2 && now.at - self.ended[0].0 > RATE_OVER {
                    self.ended.pop_front();
                }
                self.now = Some(*now);
                let lines = self.lines();
                let is_there = self.selected.as_ref().is_some_and(|line| lines.contains(line));
                if !is_there {
                    // A job, if there is one.
                    let job = lines.iter().find(|line| matches!(line, Line::Job(_)));
                    self.selected = job.or(lines.first()).cloned();
                }
            }
            Told::Log(id, text) => self.log = Some(Log { id, text, up: 0 }),
            Told::Message(text) => self.message = Some((Instant::now(), text)),
        }
    }

    /// Jobs that ended in each second of late; `None` before it is known.
    pub(super) fn rate(&self) -> Option<f64> {
        let ((from, before), (to, after)) = (self.ended.front()?, self.ended.back()?);
        let span = (*to - *from).as_secs_f64();
        (span > 0.0).then(|| after.saturating_sub(*before) as f64 / span)
    }

    /// What there is to say, for a while.
    pub(super) fn message(&self) -> Option<&str> {
        let (since, text) = self.message.as_ref()?;
        (since.elapsed() < MESSAGE_TIME).then_some(text)
    }

    /// As they stand on the screen.
    fn lines(&self) -> Vec<Line> {
        let Some(now) = &self.now else {
            return Vec::new();
        };
        let queues = now.queues.iter().map(|queue| Line::Queue(queue.name.clone()));
        let jobs = now.running.iter().chain(&now.failures).map(|job| Line::Job(job.id));
        queues.chain(jobs).collect()
    }

    /// Moves the selection, or the log that is open.
    pub(super) fn move_by(&mut self, lines: isize) {
        if let Some(log) = &mut self.log {
            log.up = log.up.saturating_add_signed(-lines);
            return;
        }
        let all = self.lines();
        let place = all.iter().position(|line| Some(line) == self.selected.as_ref()).unwrap_or(0);
        let place = place.saturating_add_signed(lines).min(all.len().saturating_sub(1));
        self.selected = all.get(place).cloned();
    }

    /// The job that is selected.
    pub(super) fn selected(&self) -> Option<JobId> {
        match &self.selected {
            Some(Line::Job(id)) if self.log.is_none() => Some(*id),
            _ => None,
        }
    }

    /// The same if it runs.
    pub(super) fn selected_running(&self) -> Option<JobId> {
        let running = &self.now.as_ref()?.running;
        self.selected().filter(|id| running.iter().any(|job| job.id == *id))
    }

    /// The same if it has failed, and can be run again.
    pub(super) fn selected_failed(&self) -> Option<JobId> {
        let failures = &self.now.as_ref()?.failures;
        let can_run = |state| state != State::Expired;
        let found =
            |id: &JobId| failures.iter().any(|job| job.id == *id && can_run(job.life.state()));
        self.selected().filter(found)
    }

    /// The queue that is selected itself.
    pub(super) fn selected_queue(&self) -> Option<&str> {
        match &self.selected {
            Some(Line::Queue(name)) if self.log.is_none() => Some(name),
            _ => None,
        }
    }

    /// The queue that is selected, or whose job is.
    pub(super) fn queue(&self) -> Option<&QueueInfo> {
        let now = self.now.as_ref()?;
        let name = match self.selected.as_ref().filter(|_| self.log.is_none())? {
            Line::Queue(name) => name,
            Line::Job(id) => {
                let mut jobs = now.running.iter().chain(&now.failures);
                &jobs.find(|job| job.id == *id)?.terms.queue
            }
        };
        now.queues.iter().find(|queue| queue.name == *name)
    }

    /// Whether that is paused.
    pub(super) fn is_paused(&self) -> bool {
        self.queue().is_some_and(|queue| queue.gate == Gate::Paused)
    }

    /// Closes the log that is open; true if there was one.
    pub(super) fn close_log(&mut self) -> bool {
        self.log.take().is_some()
    }
}
