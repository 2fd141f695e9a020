//! The configuration: a file of TOML, and what holds without one.
//!
//! ```toml
//! level = "machine"          # what acknowledged means: kept over a crash of the "machine", of the "process", or in "memory"
//!
//! [queue.default]            # there without being named, with a slot for each CPU
//! slots = 2
//!
//! [queue.thumbs]
//! worker = "/opt/thumbs/bin/thumbs"    # a program whose main begins with procpool::init()
//! slots = 4
//! memory = "2G"              # for each of its jobs, with all that it starts
//! timeout = "10m"            # these four hold for jobs that say nothing else, and are submitted from then on
//! cpu_timeout = "5m"         # of tasks
//! retries = 2
//! priority = -1
//!
//! [limits]
//! jobs = 1000000             # that have not ended
//! drain_seconds = 60         # how long what runs may take when the daemon is told to stop
//! log_bytes = 67108864       # of each stream of a command: the rest is not kept
//!
//! [metrics]
//! listen = "127.0.0.1:9464"  # or the path of a socket: text for Prometheus, which any user may read
//!
//! [retention]                # of what jobs leave when they have ended: results, logs, what they were to do
//! days = 30
//! mib = 1024                 # of results and what was to do, together; the oldest go first
//! ```

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, thread};

use serde::{Deserialize, Deserializer, de};

use crate::error::Error;
pub use crate::job::Level;
use crate::job::{DEFAULT_QUEUE, Defaults, JobSpec, Work};
use crate::quantity::{parse_duration, parse_size};

/// All settings.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// What acknowledged means.
    pub level: Level,
    /// The queues by name.
    #[serde(rename = "queue")]
    pub queues: BTreeMap<String, QueueConfig>,
    /// What there may be at most.
    pub limits: Limits,
    /// What is kept of jobs that have ended.
    pub retention: Retention,
    /// Where figures are to be had.
    pub metrics: Metrics,
}

/// Where figures are to be had.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Metrics {
    /// A port of this machine, as `127.0.0.1:9464`, or the whole path of a socket.
    pub listen: Option<String>,
}

/// A place to listen at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    Port(SocketAddr),
    Path(PathBuf),
}

impl Metrics {
    /// Where that is, in words why it cannot be.
    pub(crate) fn place(&self) -> Result<Option<Place>, String> {
        let Some(listen) = &self.listen else {
            return Ok(None);
        };
        if listen.starts_with('/') {
            return Ok(Some(Place::Path(listen.into())));
        }
        match listen.parse::<SocketAddr>() {
            Ok(address) if address.ip().is_loopback() => Ok(Some(Place::Port(address))),
            _ => Err(format!(
                "metrics: listen = {listen:?}: a port of 127.0.0.1 or [::1] is needed, or a whole path"
            )),
        }
    }
}

/// The settings of a queue.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct QueueConfig {
    /// The program that has its tasks. Without one it runs commands only.
    pub worker: Option<PathBuf>,
    /// How many of its jobs run at a time. By default one for each CPU.
    pub slots: Option<usize>,
    /// How much memory each of its jobs may have, in bytes, with all that it starts. By default any.
    #[serde(deserialize_with = "size")]
    pub memory: Option<u64>,
    /// The time limit of its jobs that have none of their own.
    #[serde(deserialize_with = "duration")]
    pub timeout: Option<Duration>,
    /// The limit on CPU time of its tasks that have none of their own.
    #[serde(deserialize_with = "duration")]
    pub cpu_timeout: Option<Duration>,
    /// The retries of its jobs that do not say how many.
    pub retries: u32,
    /// The priority of its jobs that do not say theirs.
    pub priority: i32,
}

/// Text, as on command lines.
fn size<'de, D: Deserializer<'de>>(value: D) -> Result<Option<u64>, D::Error> {
    parse_size(&String::deserialize(value)?).map(Some).map_err(de::Error::custom)
}

/// The same.
fn duration<'de, D: Deserializer<'de>>(value: D) -> Result<Option<Duration>, D::Error> {
    parse_duration(&String::deserialize(value)?).map(Some).map_err(de::Error::custom)
}

/// What there may be at most.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Jobs that have not ended, and how often one waits for another.
    pub jobs: usize,
    /// How long jobs may run on when the daemon is told to stop. Then they are interrupted.
    pub drain_seconds: u64,
    /// The bytes of each stream of a command that are kept.
    pub log_bytes: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        // Some hundred MiB of the daemon's memory; less than the 90 seconds after which systemd kills; logs that an
        // editor opens.
        Limits { jobs: 1_000_000, drain_seconds: 60, log_bytes: 64 << 20 }
    }
}

/// How long it is kept what a job leaves that has ended. Then it [expires](crate::job::State::Expired).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Retention {
    /// So many days at most.
    pub days: u32,
    /// So much at most, in MiB: results, and what was to be done. Logs go with them.
    pub mib: u32,
}

impl Default for Retention {
    fn default() -> Retention {
        // Somebody comes back from a holiday and wants to know; and no disk fills up meanwhile.
        Retention { days: 30, mib: 1024 }
    }
}

/// The most slots of a queue: as many as processes that a small machine can hold.
pub(crate) const SLOTS_MAX: usize = 4096;

/// The longest name of a queue, in bytes: it stands in lists.
pub(crate) const QUEUE_NAME_MAX: usize = 64;

impl Config {
    /// Reads a file.
    ///
    /// # Errors
    /// If it cannot be read, or does not make sense; the text names the place.
    pub fn read(path: &Path) -> Result<Config, Error> {
        let text = fs::read_to_string(path)
            .map_err(|error| Error::system(format!("cannot read `{}`", path.display()), error))?;
        Config::parse(&text)
            .map_err(|message| Error::setting(format!("`{}`: {message}", path.display())))
    }

    /// Reads a text.
    ///
    /// # Errors
    /// What does not make sense in it, in words.
    pub fn parse(text: &str) -> Result<Config, String> {
        let config: Config = toml::from_str(text).map_err(|error| error.to_string())?;
        for (name, queue) in &config.queues {
            if name.is_empty()
                || name.len() > QUEUE_NAME_MAX
                || name.chars().any(|c| c.is_control())
            {
                return Err(format!(
                    "queue {name:?}: a name has 1 to {QUEUE_NAME_MAX} bytes, none a control character"
                ));
            }
            if let Some(slots) = queue.slots.filter(|slots| !(1..=SLOTS_MAX).contains(slots)) {
                return Err(format!("queue `{name}`: slots = {slots}: it has 1 to {SLOTS_MAX}"));
            }
            if queue.worker.as_ref().is_some_and(|worker| worker.is_relative()) {
                return Err(format!("queue `{name}`: worker: a whole path is needed"));
            }
        }
        if config.limits.jobs == 0 {
            return Err("limits: jobs = 0: no job could ever be submitted".into());
        }
        config.metrics.place()?;
        Ok(config)
    }

    /// All queues, with the one that is always there.
    pub fn all_queues(&self) -> BTreeMap<String, QueueConfig> {
        let mut queues = self.queues.clone();
        queues.entry(DEFAULT_QUEUE.into()).or_default();
        queues
    }

    /// What holds for a job where it says nothing.
    pub(crate) fn defaults(&self, spec: &JobSpec) -> Defaults {
        let Some(queue) = self.queues.get(&spec.terms.queue) else {
            return Defaults::default();
        };
        let QueueConfig { priority, retries, timeout, .. } = *queue;
        let cpu_timeout = match spec.work {
            Work::Task(_) => queue.cpu_timeout,
            // Nobody measures it.
            Work::Command(_) => None,
        };
        Defaults { priority, retries, timeout, cpu_timeout }
    }
}

impl QueueConfig {
    /// How many of its jobs run at a time.
    pub fn slots(&self) -> usize {
        self.slots.unwrap_or_else(|| thread::available_parallelism().map_or(1, usize::from))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_said_has_a_default() {
        let config = Config::parse("[queue.thumbs]\nworker = \"/bin/thumbs\"\nslots = 4").unwrap();
        assert_eq!(config.level, Level::Machine);
        assert_eq!(config.all_queues().keys().collect::<Vec<_>>(), ["default", "thumbs"]);
        assert_eq!(config.queues["thumbs"].slots(), 4);
        assert_eq!(Config::parse(""), Ok(Config::default()));
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        let cases = [
            ("levle = \"machine\"", "levle"),
            ("level = \"disk\"", "disk"),
            ("[queue.a]\nslots = 0", "slots = 0"),
            ("[queue.a]\nworker = \"thumbs\"", "worker"),
            ("[queue.a]\ntimeout = \"soon\"", "timeout = \"soon\""),
            ("[queue.a]\ntimeout = 30", "timeout = 30"),
            ("[queue.a]\ncpu_timeout = \"0s\"", "more than nothing"),
            ("[queue.a]\nmemory = \"2 GB\"", "memory = \"2 GB\""),
            ("[queue.a]\nretries = -1", "retries = -1"),
            ("[queue.a]\npriority = \"high\"", "priority = \"high\""),
            ("[queue.a]\nretry = 1", "retry"),
            ("[queue.\"\"]", "name"),
            ("[limits]\njobs = 0", "jobs = 0"),
            ("[metrics]\nlisten = \"0.0.0.0:1\"", "0.0.0.0:1"),
            ("[metrics]\nlisten = \"metrics\"", "metrics"),
            ("[queue.a", "queue"),
        ];
        for (text, part) in cases {
            let message = Config::parse(text).unwrap_err();
            assert!(message.contains(part), "{text:?}: {message:?}");
        }
    }
}
