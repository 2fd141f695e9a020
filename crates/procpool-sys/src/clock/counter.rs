//! The monotonic clock for whoever asks at each job: by the processor's counter, which is read in half the time.

use std::fs;
use std::sync::OnceLock;

use super::monotonic_ns;

/// The clock itself is asked once in so long: what the counter's rate is not exact to, some 0.01 %, comes to less than a
/// tenth of a microsecond by then.
const APART_NS: u64 = 1_000_000;
/// Two measured rates agree if they differ by less than one in so many.
const AGREES: u64 = 256;
/// Fractional bits of the rate.
const SHIFT: u32 = 32;

/// The time of [`monotonic_ns`], told for one thread or for threads that take turns. It never goes back.
#[derive(Debug)]
pub struct Counter {
    /// When the clock was asked last, by the counter and by itself.
    ticks: u64,
    ns: u64,
    /// Nanoseconds in a tick, as measured last.
    rate: u64,
    /// For so many ticks from then on the rate is taken to hold; 0 if it is not known well enough.
    valid_ticks: u64,
    /// The latest time that was told.
    told_ns: u64,
    steady: bool,
}

impl Counter {
    /// If the counter is not `steady`, see [`counter_is_steady`], the clock is asked each time.
    pub fn new(steady: bool) -> Counter {
        let ns = monotonic_ns();
        Counter { ticks: ticks(), ns, rate: 0, valid_ticks: 0, told_ns: ns, steady }
    }

    /// The time, in nanoseconds.
    #[inline]
    pub fn now_ns(&mut self) -> u64 {
        if !self.steady {
            return monotonic_ns();
        }
        let since = ticks().wrapping_sub(self.ticks);
        // A counter that has jumped, back or ahead, as that of a machine which was moved, is beyond as well.
        let ns = if since < self.valid_ticks { self.ns + self.span(since) } else { self.ask() };
        self.told_ns = self.told_ns.max(ns);
        self.told_ns
    }

    fn span(&self, ticks: u64) -> u64 {
        ((u128::from(ticks) * u128::from(self.rate)) >> SHIFT) as u64
    }

    #[cold]
    fn ask(&mut self) -> u64 {
        let (ticks, ns) = (ticks(), monotonic_ns());
        let (ticks_since, ns_since) = (ticks.wrapping_sub(self.ticks), ns - self.ns);
        if ns_since < APART_NS {
            // Too short a time to measure a rate by.
            return ns;
        }
        let rate = (u128::from(ns_since) << SHIFT) / u128::from(ticks_since.max(1));
        let rate = u64::try_from(rate).unwrap_or(0);
        // One that two looks agree on. After a jump it is as if nothing were known.
        let agrees = rate.abs_diff(self.rate) < rate / AGREES;
        self.valid_ticks = match agrees {
            true => ((u128::from(APART_NS) << SHIFT) / u128::from(rate)) as u64,
            false => 0,
        };
        (self.ticks, self.ns, self.rate) = (ticks, ns, rate);
        ns
    }
}

/// True if the kernel itself tells the time by the processor's counter, and so has found that it runs at one rate, the
/// same on all processors. Asked once.
pub fn counter_is_steady() -> bool {
    const FILE: &str = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
    static STEADY: OnceLock<bool> = OnceLock::new();
    *STEADY.get_or_init(|| {
        cfg!(target_arch = "x86_64")
            && fs::read_to_string(FILE).is_ok_and(|source| source.trim_end() == "tsc")
    })
}

#[cfg(target_arch = "x86_64")]
#[inline]
fn ticks() -> u64 {
    // SAFETY: every x86-64 processor has the instruction, which writes two registers.
    unsafe { std::arch::x86_64::_rdtsc() }
}

#[cfg(not(target_arch = "x86_64"))]
fn ticks() -> u64 {
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Holds the counter against the clock for some milliseconds. A thread that is not run for a while between two
    /// looks can only make them further apart.
    fn follow(counter: &mut Counter) {
        const CLOSE_NS: u64 = 20_000;
        let (end, mut last) = (monotonic_ns() + 10 * APART_NS, 0);
        while monotonic_ns() < end {
            let before = monotonic_ns();
            let told = counter.now_ns();
            let after = monotonic_ns();
            assert!(before <= told + CLOSE_NS, "{told} was told after {before}");
            assert!(told <= after + CLOSE_NS, "{told} was told before {after}");
            assert!(last <= told);
            last = told;
        }
    }

    /// Goal: the counter tells the clock's time, before its rate is known and after, and never goes back.
    #[test]
    fn the_counter_tells_the_time_of_the_clock() {
        for steady in [counter_is_steady(), false] {
            let mut counter = Counter::new(steady);
            follow(&mut counter);
            assert_eq!(steady, counter.rate > 0);
        }
    }

    /// Goal: a counter that jumps, as after a machine was moved, costs looks at the clock and no false time.
    #[test]
    fn a_counter_that_jumps_is_not_believed() {
        let mut counter = Counter::new(counter_is_steady());
        for jump in [1 << 40, (1u64 << 40).wrapping_neg(), 1 << 30, (1u64 << 30).wrapping_neg()] {
            follow(&mut counter);
            counter.ticks = counter.ticks.wrapping_add(jump);
            follow(&mut counter);
        }
    }
}
