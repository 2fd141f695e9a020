//! What is known of a job that has ended: the same facts for the joblog and whatever else tells of it.

use std::time::{Duration, SystemTime};

use procpool::{JobError, Report, Status};
use serde::{Deserialize, Serialize, Serializer};

use crate::input::Input;

/// A job that has ended, with its output apart. The fields and their order are those of the joblog.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Record {
    /// The number of its input, from 1.
    pub(crate) seq: u64,
    #[serde(serialize_with = "as_text")]
    pub(crate) input: Input,
    /// Where its last attempt ran, from 1.
    pub(crate) slot: Option<usize>,
    /// When its last attempt began, in seconds since 1970.
    #[serde(serialize_with = "unix_seconds")]
    pub(crate) start: SystemTime,
    /// How long that ran.
    #[serde(rename = "run_ms", serialize_with = "milliseconds")]
    pub(crate) run: Duration,
    /// CPU time of that, all processes that were waited for.
    #[serde(rename = "cpu_ms", serialize_with = "some_milliseconds")]
    pub(crate) cpu: Option<Duration>,
    /// 0 if it was never started.
    pub(crate) attempts: u32,
    pub(crate) outcome: Outcome,
    /// The exit code of a command.
    pub(crate) exit: Option<i32>,
    /// What killed the command, or the task's worker.
    pub(crate) signal: Option<String>,
    /// The same in words.
    pub(crate) error: Option<String>,
    /// If it failed: the end of what it said on standard error.
    pub(crate) stderr_tail: String,
}

/// How a job ended, in a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Outcome {
    Succeeded,
    /// It could not be started, or its command said so, or its input was none.
    Failed,
    /// A signal killed the command, or the task's worker ended under it.
    Died,
    Panicked,
    TimedOut,
    /// It was running and was stopped, because the batch was.
    Stopped,
}

/// How a job ended, in words and numbers.
#[derive(Debug, Clone)]
pub(crate) struct Verdict {
    pub(crate) outcome: Outcome,
    pub(crate) exit: Option<i32>,
    pub(crate) signal: Option<String>,
    pub(crate) error: Option<String>,
}

impl Verdict {
    pub(crate) fn success() -> Verdict {
        Verdict { outcome: Outcome::Succeeded, exit: None, signal: None, error: None }
    }

    pub(crate) fn failure(message: impl Into<String>) -> Verdict {
        Verdict { outcome: Outcome::Failed, error: Some(message.into()), ..Verdict::success() }
    }

    /// Of a job that ended without a value; `message` tells it.
    pub(crate) fn of_error(error: &JobError, message: String) -> Verdict {
        let outcome = match error {
            JobError::Died(_) | JobError::Quarantined { .. } => Outcome::Died,
            JobError::Panicked(_) => Outcome::Panicked,
            JobError::TimedOut(_) => Outcome::TimedOut,
            JobError::Cancelled { .. } => Outcome::Stopped,
            _ => Outcome::Failed,
        };
        let (exit, signal) = match last_status(error) {
            Some(Status::Exit(code)) => (Some(code), None),
            Some(status @ Status::Signal(..)) => (None, Some(status.to_string())),
            _ => (None, None),
        };
        Verdict { outcome, exit, signal, error: Some(message) }
    }
}

fn last_status(error: &JobError) -> Option<Status> {
    match error {
        JobError::Died(death) => Some(death.status),
        JobError::Quarantined { last, .. } => last_status(last),
        _ => None,
    }
}

/// When and where a job ran.
#[derive(Debug, Clone)]
pub(crate) struct Run {
    pub(crate) slot: Option<usize>,
    pub(crate) start: SystemTime,
    pub(crate) run: Duration,
    pub(crate) cpu: Option<Duration>,
    pub(crate) attempts: u32,
}

impl Run {
    /// Of a job that ended at `end`, of which the pool reports this.
    pub(crate) fn of(report: &Report, end: SystemTime) -> Run {
        Run {
            slot: report.worker.map(|worker| worker + 1),
            start: end.checked_sub(report.ran).unwrap_or(end),
            run: report.ran,
            cpu: report.cpu,
            attempts: report.attempts,
        }
    }

    /// Of a job that was never started.
    pub(crate) fn none() -> Run {
        let start = SystemTime::now();
        Run { slot: None, start, run: Duration::ZERO, cpu: None, attempts: 0 }
    }
}

impl Record {
    pub(crate) fn new(seq: u64, input: Input, run: Run, verdict: Verdict, tail: String) -> Record {
        Record {
            seq,
            input,
            slot: run.slot,
            start: run.start,
            run: run.run,
            cpu: run.cpu,
            attempts: run.attempts,
            outcome: verdict.outcome,
            exit: verdict.exit,
            signal: verdict.signal,
            error: verdict.error,
            stderr_tail: tail,
        }
    }

    /// One object of JSON, without a line end.
    pub(crate) fn json(&self) -> String {
        serde_json::to_string(self).expect("numbers and texts are JSON, and all keys are texts")
    }
}

/// Bytes in JSON: as a text if they are one, and exact if they are not.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Text {
    Utf8(String),
    Bytes { hex: String },
}

impl Text {
    pub(crate) fn of(bytes: &[u8]) -> Text {
        match str::from_utf8(bytes) {
            Ok(text) => Text::Utf8(text.into()),
            Err(_) => Text::Bytes { hex: bytes.iter().map(|byte| format!("{byte:02x}")).collect() },
        }
    }

    /// `None` if it is not what [`Text::of`] makes.
    pub(crate) fn into_bytes(self) -> Option<Vec<u8>> {
        match self {
            Text::Utf8(text) => Some(text.into_bytes()),
            Text::Bytes { hex } => {
                let digits = hex.as_bytes();
                let byte = |pair: &[u8]| u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok();
                digits.len().is_multiple_of(2).then(|| digits.chunks(2).map(byte).collect())?
            }
        }
    }
}

/// An input in JSON: a text, or of several values an array of them.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Texts {
    Several(Vec<Text>),
    One(Text),
}

impl Texts {
    pub(crate) fn of(input: &Input) -> Texts {
        let mut texts: Vec<Text> = input.values().map(Text::of).collect();
        if texts.len() == 1 { Texts::One(texts.remove(0)) } else { Texts::Several(texts) }
    }

    /// `None` if it is not what [`Texts::of`] makes.
    pub(crate) fn into_input(self) -> Option<Input> {
        match self {
            Texts::One(text) => text.into_bytes().map(Input::one),
            Texts::Several(texts) => {
                let values: Option<Vec<_>> = texts.into_iter().map(Text::into_bytes).collect();
                values.map(Input::of)
            }
        }
    }
}

fn as_text<S: Serializer>(input: &Input, serializer: S) -> Result<S::Ok, S::Error> {
    Texts::of(input).serialize(serializer)
}

fn unix_seconds<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    serializer.serialize_f64(since.as_micros() as f64 / 1e6)
}

fn milliseconds<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(duration.as_micros() as f64 / 1e3)
}

fn some_milliseconds<S: Serializer>(
    duration: &Option<Duration>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match duration {
        Some(duration) => milliseconds(duration, serializer),
        None => serializer.serialize_none(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_survive_json_whatever_their_bytes() {
        let inputs = [
            Input::one(b"a \"b\"\n".to_vec()),
            Input::one(b"\xff\x00\xc3".to_vec()),
            Input::one(Vec::new()),
            Input::of([b"a".to_vec(), b"\xfe".to_vec()]),
        ];
        for input in inputs {
            let json = serde_json::to_string(&Texts::of(&input)).unwrap();
            let texts: Texts = serde_json::from_str(&json).unwrap();
            assert_eq!(texts.into_input(), Some(input), "{json}");
        }
    }

    #[test]
    fn what_is_no_input_is_none() {
        for json in [r#"{"hex":"f"}"#, r#"{"hex":"zz"}"#, r#"{"hex":"é"}"#] {
            let texts: Texts = serde_json::from_str(json).unwrap();
            assert_eq!(texts.into_input(), None, "{json}");
        }
    }
}
