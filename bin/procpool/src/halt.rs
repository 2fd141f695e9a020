//! When to stop early: `--halt now|soon,fail|success|done=N|N%`.

use std::str::FromStr;

use crate::record::Outcome;

/// A rule for stopping early.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Halt {
    pub(crate) when: When,
    why: Why,
    threshold: Threshold,
}

/// What becomes of jobs that run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum When {
    /// They are stopped.
    Now,
    /// They are finished.
    Soon,
}

/// Which jobs count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Why {
    Fail,
    Success,
    Done,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Threshold {
    Jobs(u64),
    /// Of all inputs.
    Percent(u64),
}

impl FromStr for Halt {
    type Err = String;

    fn from_str(text: &str) -> Result<Halt, String> {
        const EXAMPLES: &str = "examples: now,fail=1  soon,fail=10%  now,success=1  soon,done=100";
        parse(text).ok_or_else(|| EXAMPLES.into())
    }
}

fn parse(text: &str) -> Option<Halt> {
    let (when, rest) = text.split_once(',')?;
    let (why, threshold) = rest.split_once('=')?;
    let when = match when {
        "now" => When::Now,
        "soon" => When::Soon,
        _ => return None,
    };
    let why = match why {
        "fail" => Why::Fail,
        "success" => Why::Success,
        "done" => Why::Done,
        _ => return None,
    };
    let number = |text: &str| text.parse().ok().filter(|number| *number > 0);
    let threshold = match threshold.strip_suffix('%') {
        Some(percent) => Threshold::Percent(number(percent).filter(|percent| *percent <= 100)?),
        None => Threshold::Jobs(number(threshold)?),
    };
    Some(Halt { when, why, threshold })
}

/// How many jobs have ended how.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Tally {
    pub(crate) succeeded: u64,
    pub(crate) failed: u64,
}

impl Tally {
    pub(crate) fn add(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Succeeded => self.succeeded += 1,
            _ => self.failed += 1,
        }
    }
}

impl Halt {
    /// True if the number of inputs must be known.
    pub(crate) fn needs_total(self) -> bool {
        matches!(self.threshold, Threshold::Percent(_))
    }

    /// Says why it is time, if it is. `total` is the number of inputs.
    pub(crate) fn is_reached(self, tally: Tally, total: Option<u64>) -> Option<String> {
        let (count, what) = match self.why {
            Why::Fail => (tally.failed, "failed"),
            Why::Success => (tally.succeeded, "succeeded"),
            Why::Done => (tally.failed + tally.succeeded, "ended"),
        };
        let is_reached = match (self.threshold, total) {
            (Threshold::Jobs(jobs), _) => count >= jobs,
            (Threshold::Percent(percent), Some(total)) => {
                // Without the first condition none of none would be enough.
                count > 0 && u128::from(count) * 100 >= u128::from(total) * u128::from(percent)
            }
            (Threshold::Percent(_), None) => false,
        };
        is_reached.then(|| format!("{count} jobs have {what}"))
    }

    /// True if what was wanted is there, whatever else has failed.
    pub(crate) fn is_success(self) -> bool {
        self.why == Why::Success
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_reached(rule: &str, succeeded: u64, failed: u64, total: u64) -> bool {
        let rule: Halt = rule.parse().unwrap();
        rule.is_reached(Tally { succeeded, failed }, Some(total)).is_some()
    }

    #[test]
    fn rules_count_jobs_or_shares() {
        assert!(!is_reached("now,fail=2", 9, 1, 100) && is_reached("now,fail=2", 0, 2, 100));
        assert!(
            !is_reached("soon,success=1", 0, 5, 100) && is_reached("soon,success=1", 1, 0, 100)
        );
        assert!(!is_reached("soon,done=3", 1, 1, 100) && is_reached("soon,done=3", 2, 1, 100));
        assert!(!is_reached("now,fail=10%", 0, 0, 9) && is_reached("now,fail=10%", 0, 1, 9));
        assert!(!is_reached("now,fail=10%", 50, 1, 11) && is_reached("now,fail=10%", 0, 2, 11));
        assert!(!is_reached("now,done=100%", 5, 5, 11) && is_reached("now,done=100%", 5, 6, 11));
        assert!(!is_reached("now,fail=10%", 0, 0, 0));
    }

    #[test]
    fn what_is_no_rule_is_refused() {
        for text in [
            "",
            "now",
            "now,fail",
            "later,fail=1",
            "now,fall=1",
            "now,fail=0",
            "now,fail=-1",
            "now,fail=0%",
            "now,fail=101%",
            "now,fail=1.5",
            "now,fail=1%%",
            "1",
            "soon,=1",
        ] {
            assert!(text.parse::<Halt>().is_err(), "{text:?}");
        }
    }
}
