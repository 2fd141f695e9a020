//! One thing that is measured: its contestants, what they reached, and what is asked of procpool.

use std::fmt;

use super::effort::Effort;

/// What a figure counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    PerSecond,
    BytesPerSecond,
    Micros,
    Bytes,
}

impl Unit {
    fn more_is_better(self) -> bool {
        matches!(self, Unit::PerSecond | Unit::BytesPerSecond)
    }
}

type Measure = Box<dyn Fn(&Effort) -> f64>;

pub(crate) struct Contestant {
    pub(crate) name: &'static str,
    measure: Measure,
    /// Its figure in each round.
    pub(crate) figures: Vec<f64>,
}

impl Contestant {
    /// True for procpool in any of its ways.
    pub(crate) fn is_ours(&self) -> bool {
        self.name.starts_with("procpool")
    }
}

/// What is asked of a contestant, as a ratio: at least, or at most where less is better.
pub(crate) struct Target {
    pub(crate) ours: &'static str,
    pub(crate) factor: f64,
    pub(crate) than: Than,
}

/// What a target compares with.
pub(crate) enum Than {
    Peer(&'static str),
    /// A figure that stands for itself.
    Fixed(f64),
}

pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    pub(crate) unit: Unit,
    rounds_max: usize,
    pub(crate) contestants: Vec<Contestant>,
    /// Those that this machine has not.
    pub(crate) absent: Vec<&'static str>,
    pub(crate) targets: Vec<Target>,
}

impl Row {
    pub(crate) fn new(name: &'static str, title: &'static str, unit: Unit) -> Row {
        Row {
            name,
            title,
            unit,
            rounds_max: usize::MAX,
            contestants: Vec::new(),
            absent: Vec::new(),
            targets: Vec::new(),
        }
    }

    /// The first contestant of a row is procpool.
    pub(crate) fn contestant(
        mut self,
        name: &'static str,
        measure: impl Fn(&Effort) -> f64 + 'static,
    ) -> Row {
        self.contestants.push(Contestant { name, measure: Box::new(measure), figures: Vec::new() });
        self
    }

    /// A contestant that not every machine has.
    pub(crate) fn if_there(
        mut self,
        is_there: bool,
        name: &'static str,
        measure: impl Fn(&Effort) -> f64 + 'static,
    ) -> Row {
        if is_there {
            return self.contestant(name, measure);
        }
        self.absent.push(name);
        self
    }

    /// Asks for `factor` times what `than` reaches: at least, or at most where less is better.
    pub(crate) fn target(mut self, ours: &'static str, factor: f64, than: &'static str) -> Row {
        self.targets.push(Target { ours, factor, than: Than::Peer(than) });
        self
    }

    /// Asks for this figure.
    pub(crate) fn limit(mut self, ours: &'static str, limit: f64) -> Row {
        self.targets.push(Target { ours, factor: 1.0, than: Than::Fixed(limit) });
        self
    }

    /// For a row that takes long: no more rounds than these.
    pub(crate) fn rounds_max(mut self, rounds: usize) -> Row {
        self.rounds_max = rounds;
        self
    }

    pub(crate) fn measure(&mut self, effort: &Effort) {
        for absent in &self.absent {
            eprintln!("{}: no {absent} here, left out", self.name);
        }
        let rounds = effort.rounds.min(self.rounds_max);
        for round in 1..=rounds {
            eprintln!("{}: round {round} of {rounds}", self.name);
            for contestant in &mut self.contestants {
                contestant.figures.push((contestant.measure)(effort));
            }
        }
    }

    pub(crate) fn find(&self, name: &str) -> Option<&Contestant> {
        self.contestants.iter().find(|contestant| contestant.name == name)
    }

    /// How many times as good procpool is: more per second, or less of what costs.
    pub(crate) fn advantage(&self, peer: &Contestant) -> Option<f64> {
        let ours = self.contestants.first().filter(|_| !peer.is_ours())?;
        let (ours, theirs) = (Spread::of(&ours.figures), Spread::of(&peer.figures));
        Some(if self.unit.more_is_better() {
            ours.median / theirs.median
        } else {
            theirs.median / ours.median
        })
    }

    /// What became of a target; `None` if the peer is not on this machine.
    pub(crate) fn verdict(&self, target: &Target) -> Option<Verdict> {
        let ours = &self.find(target.ours)?.figures;
        let ratios: Vec<f64> = match target.than {
            Than::Fixed(limit) => ours.iter().map(|ours| ours / limit).collect(),
            Than::Peer(peer) => {
                let theirs = &self.find(peer)?.figures;
                ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs).collect()
            }
        };
        let ratio = Spread::of(&ratios);
        let is_met = if self.unit.more_is_better() {
            ratio.median >= target.factor
        } else {
            ratio.median <= target.factor
        };
        Some(if is_met { Verdict::Met(ratio) } else { Verdict::NotMet(ratio) })
    }

    /// What a target asks, for a person.
    pub(crate) fn asks(&self, target: &Target) -> String {
        let bound = if self.unit.more_is_better() { "at least" } else { "at most" };
        match target.than {
            Than::Fixed(limit) => format!("{bound} {}", Figure(self.unit, limit)),
            Than::Peer(peer) => format!("{bound} {} × {peer}", target.factor),
        }
    }
}

/// What became of a target, with the ratio within a round.
pub(crate) enum Verdict {
    Met(Spread),
    NotMet(Spread),
}

impl Verdict {
    pub(crate) fn ratio(&self) -> &Spread {
        match self {
            Verdict::Met(ratio) | Verdict::NotMet(ratio) => ratio,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Verdict::Met(_) => "met",
            Verdict::NotMet(_) => "not met",
        })
    }
}

/// Median, lowest and highest of the rounds.
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
}

impl Spread {
    pub(crate) fn of(figures: &[f64]) -> Spread {
        let quantile = |q| quantile(figures.to_vec(), q);
        Spread { median: quantile(0.5), low: quantile(0.0), high: quantile(1.0) }
    }
}

pub(crate) fn quantile(mut values: Vec<f64>, quantile: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    values[((values.len() as f64 * quantile) as usize).min(values.len() - 1)]
}

/// A figure as a person reads it, with three digits that count.
pub(crate) struct Figure(pub(crate) Unit, pub(crate) f64);

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Figure(unit, value) = *self;
        let (thousand, suffixes): (f64, &[&str]) = match unit {
            Unit::PerSecond => (1e3, &["/s", "k/s", "M/s", "G/s"]),
            Unit::BytesPerSecond => (1024.0, &["B/s", "KiB/s", "MiB/s", "GiB/s", "TiB/s"]),
            Unit::Micros => (1e3, &["µs", "ms", "s"]),
            Unit::Bytes => (1024.0, &["B", "KiB", "MiB", "GiB"]),
        };
        let (mut value, mut suffixes) = (value, suffixes);
        while value.abs() >= thousand && suffixes.len() > 1 {
            value /= thousand;
            suffixes = &suffixes[1..];
        }
        let decimals = match value.abs() {
            100.0.. => 0,
            10.0.. => 1,
            _ => 2,
        };
        write!(f, "{value:.decimals$} {}", suffixes[0])
    }
}
