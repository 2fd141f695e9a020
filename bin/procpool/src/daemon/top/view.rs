//! What `top` has been told, and what of it is selected.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use procpool_daemon::job::JobId;

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
    /// The job that is selected: as long as it is there, whatever comes before it.
    selected: Option<JobId>,
    pub(super) log: Option<Log>,
    message: Option<(Instant, String)>,
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
                let ids = self.ids();
                self.selected =
                    self.selected.filter(|id| ids.contains(id)).or_else(|| ids.first().copied());
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

    fn ids(&self) -> Vec<JobId> {
        let now = self.now.iter();
        now.flat_map(|now| now.running.iter().chain(&now.failures)).map(|job| job.id).collect()
    }

    /// Moves the selection, or the log that is open.
    pub(super) fn move_by(&mut self, lines: isize) {
        if let Some(log) = &mut self.log {
            log.up = log.up.saturating_add_signed(-lines);
            return;
        }
        let ids = self.ids();
        let place = ids.iter().position(|id| Some(*id) == self.selected).unwrap_or(0);
        let place = place.saturating_add_signed(lines).min(ids.len().saturating_sub(1));
        self.selected = ids.get(place).copied();
    }

    pub(super) fn selected(&self) -> Option<JobId> {
        self.selected.filter(|_| self.log.is_none())
    }

    pub(super) fn selected_running(&self) -> Option<JobId> {
        let running = &self.now.as_ref()?.running;
        self.selected().filter(|id| running.iter().any(|job| job.id == *id))
    }

    /// Closes the log that is open; true if there was one.
    pub(super) fn close_log(&mut self) -> bool {
        self.log.take().is_some()
    }
}
