//! `--trace FILE`: the batch as a trace, for chrome://tracing or <https://ui.perfetto.dev>.
//!
//! The Trace Event Format's array form, whose closing bracket may be missing: so each job is added as it ends, and a
//! batch that was killed leaves a trace too.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde_json::json;

use crate::record::{Outcome, Record, Texts};

#[derive(Debug)]
pub(crate) struct Trace {
    path: PathBuf,
    file: File,
    /// Slots that have their name in the trace.
    named: BTreeSet<usize>,
}

impl Trace {
    pub(crate) fn create(path: &Path) -> io::Result<Trace> {
        let mut file = File::create(path)?;
        file.write_all(b"[\n")?;
        Ok(Trace { path: path.into(), file, named: BTreeSet::new() })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Adds a job. One that was never started has no place in a trace.
    pub(crate) fn add(&mut self, record: &Record) -> io::Result<()> {
        let Some(slot) = record.slot else {
            return Ok(());
        };
        let mut text = String::new();
        if self.named.insert(slot) {
            let name = json!({"name": format!("slot {slot}")});
            let event =
                json!({"ph": "M", "name": "thread_name", "pid": 1, "tid": slot, "args": name});
            text.push_str(&format!("{event},\n"));
        }
        let start = record.start.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let event = json!({
            "ph": "X",
            "name": format!("{} {}", record.seq, String::from_utf8_lossy(&record.input.joined())),
            "cat": record.outcome,
            "pid": 1,
            "tid": slot,
            "ts": start.as_micros() as u64,
            "dur": record.run.as_micros() as u64,
            // Names that both viewers know.
            "cname": if record.outcome == Outcome::Succeeded { "good" } else { "terrible" },
            "args": {
                "input": Texts::of(&record.input),
                "outcome": record.outcome,
                "attempts": record.attempts,
                "error": record.error,
            },
        });
        text.push_str(&format!("{event},\n"));
        self.file.write_all(text.as_bytes())
    }

    /// Makes it JSON to the letter.
    pub(crate) fn finish(&mut self) -> io::Result<()> {
        // The last event is followed by a comma, so there is one more: the name of the process.
        let event =
            json!({"ph": "M", "name": "process_name", "pid": 1, "args": {"name": "procpool"}});
        self.file.write_all(format!("{event}\n]\n").as_bytes())
    }
}
