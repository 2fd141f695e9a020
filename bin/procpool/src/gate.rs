//! When the next job may start, besides that there is a slot for it: `--delay` and `--memfree`.

use std::fs;
use std::time::{Duration, Instant};

/// How often the free memory is looked at while there is too little.
const MEMORY_LOOK: Duration = Duration::from_millis(200);

/// What a start has to wait for.
#[derive(Debug)]
pub(crate) struct Gate {
    delay: Duration,
    memfree: Option<u64>,
    /// Not before.
    opens_at: Option<Instant>,
    is_short_of_memory: bool,
}

/// Why nothing may start now.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Wait {
    /// When to ask again.
    pub(crate) until: Instant,
    /// What a person should be told, once.
    pub(crate) news: Option<String>,
}

impl Gate {
    pub(crate) fn new(delay: Option<Duration>, memfree: Option<u64>) -> Gate {
        Gate {
            delay: delay.unwrap_or_default(),
            memfree,
            opens_at: None,
            is_short_of_memory: false,
        }
    }

    /// True if each start is decided on when it is due, so that nothing may be submitted ahead.
    pub(crate) fn is_there(&self) -> bool {
        !self.delay.is_zero() || self.memfree.is_some()
    }

    /// The program was stopped for so long.
    pub(crate) fn put_off(&mut self, by: Duration) {
        self.opens_at = self.opens_at.map(|opens_at| opens_at + by);
    }

    /// Lets one job start now, or says when to ask again.
    pub(crate) fn pass(&mut self, now: Instant) -> Result<(), Wait> {
        self.pass_with(now, available_memory)
    }

    fn pass_with(&mut self, now: Instant, memory: impl Fn() -> Option<u64>) -> Result<(), Wait> {
        if let Some(opens_at) = self.opens_at.filter(|opens_at| now < *opens_at) {
            return Err(Wait { until: opens_at, news: None });
        }
        // Where it is not told how much there is, nothing can be waited for.
        if let (Some(least), Some(free)) = (self.memfree, self.memfree.and_then(|_| memory()))
            && free < least
        {
            let look_at = now + MEMORY_LOOK;
            self.opens_at = Some(look_at);
            let news = (!self.is_short_of_memory).then(|| {
                let mib = |bytes: u64| bytes >> 20;
                format!("waiting for memory: {} MiB of {} are available", mib(free), mib(least))
            });
            self.is_short_of_memory = true;
            return Err(Wait { until: look_at, news });
        }
        self.is_short_of_memory = false;
        self.opens_at = Some(now + self.delay);
        Ok(())
    }
}

/// What can be had without swapping, in bytes: MemAvailable of proc_meminfo(5).
pub(crate) fn available_memory() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_keep_their_distance() {
        let mut gate = Gate::new(Some(Duration::from_secs(2)), None);
        let start = Instant::now();
        assert_eq!(gate.pass(start), Ok(()));
        let next = start + Duration::from_secs(2);
        assert_eq!(
            gate.pass(start + Duration::from_secs(1)),
            Err(Wait { until: next, news: None })
        );
        assert_eq!(gate.pass(next), Ok(()));
        gate.put_off(Duration::from_secs(10));
        let next = next + Duration::from_secs(12);
        assert_eq!(gate.pass(start + Duration::from_secs(13)).unwrap_err().until, next);
    }

    #[test]
    fn nothing_starts_while_memory_is_short() {
        let mut gate = Gate::new(None, Some(1000));
        let start = Instant::now();
        let look_at = start + MEMORY_LOOK;
        assert_eq!(gate.pass_with(start, || Some(999)).unwrap_err().until, look_at);
        assert_eq!(gate.pass_with(look_at, || Some(1000)), Ok(()));
        assert_eq!(gate.pass_with(look_at, || None), Ok(()));
    }

    #[test]
    fn the_machine_tells_its_memory() {
        assert!(available_memory().is_some_and(|bytes| bytes > 1 << 20));
    }
}
