//! `--capsules DIR`: what it takes to run a job again that died, panicked or timed out, in a file of its own.
//!
//! A capsule has the whole environment in it, which may be nobody else's business: only its owner can read it.

use std::collections::BTreeMap;
use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::args::Settings;
use crate::record::{Outcome, Record, Text, Texts};

/// Raised when older programs could not replay what newer ones write.
const VERSION: u32 = 1;

/// A job as it was run.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Capsule {
    version: u32,
    pub(crate) what: What,
    pub(crate) input: Texts,
    pub(crate) workdir: Text,
    pub(crate) environment: BTreeMap<String, Text>,
    pub(crate) limits: Limits,
    /// How it ended: its line of the joblog.
    pub(crate) verdict: serde_json::Value,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum What {
    /// The program and its arguments.
    Command(Vec<Text>),
    Task {
        worker: Text,
        name: String,
    },
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Limits {
    timeout_ms: Option<u64>,
    cpu_timeout_ms: Option<u64>,
    memory: Option<u64>,
}

/// Where capsules go, and what they have in common.
#[derive(Debug)]
pub(crate) struct Capsules {
    dir: PathBuf,
    workdir: PathBuf,
    environment: BTreeMap<String, Text>,
    limits: Limits,
}

impl Capsules {
    /// Makes the directory, if it is not there.
    pub(crate) fn open(dir: &Path, settings: &Settings) -> io::Result<Capsules> {
        fs::create_dir_all(dir)?;
        // Better now than when the first job has died.
        tempfile::tempfile_in(dir)?;
        let here = env::current_dir()?;
        let workdir = settings.workdir.as_ref().map_or(here.clone(), |dir| here.join(dir));
        let asked = settings.env.iter().cloned();
        // A name that is no text cannot be a key of JSON; no shell lets one be made.
        let name = |name: OsString| name.into_string().ok();
        let environment = env::vars_os().chain(asked);
        let environment = environment
            .filter_map(|(key, value)| Some((name(key)?, Text::of(value.as_bytes()))))
            .collect();
        let millis = |limit: Duration| limit.as_millis() as u64;
        let limits = Limits {
            timeout_ms: settings.timeout.map(millis),
            cpu_timeout_ms: settings.cpu_timeout.map(millis),
            memory: settings.memory,
        };
        Ok(Capsules { dir: dir.into(), workdir, environment, limits })
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Keeps the job, if it ended in a way that is worth it.
    pub(crate) fn add(&self, record: &Record, what: What) -> io::Result<()> {
        if !matches!(record.outcome, Outcome::Died | Outcome::Panicked | Outcome::TimedOut) {
            return Ok(());
        }
        let capsule = Capsule {
            version: VERSION,
            what,
            input: Texts::of(&record.input),
            workdir: Text::of(self.workdir.as_os_str().as_bytes()),
            environment: self.environment.clone(),
            limits: self.limits.clone(),
            verdict: serde_json::to_value(record)?,
        };
        let path = self.dir.join(format!("{}.json", record.seq));
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
        file.write_all((serde_json::to_string_pretty(&capsule)? + "\n").as_bytes())
    }
}

impl Capsule {
    /// Reads one.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Capsule> {
        let text = fs::read_to_string(path)?;
        let capsule: Capsule = serde_json::from_str(&text)?;
        anyhow::ensure!(
            capsule.version == VERSION,
            "it is of version {}, and this procpool knows {VERSION}",
            capsule.version
        );
        Ok(capsule)
    }
}

/// A word of a command, or a path, as it is in a capsule.
pub(crate) fn text(word: &OsStr) -> Text {
    Text::of(word.as_bytes())
}

/// The same back again; `None` if a capsule was changed into what it cannot be.
pub(crate) fn word(text: Text) -> Option<OsString> {
    text.into_bytes().map(OsString::from_vec)
}
