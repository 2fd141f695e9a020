//! The joblog: a line of JSON for each job that has ended, written at once, when its output has been.
//!
//! So whatever kills the program, the log is true: a job that is in it has ended, and what it printed is
//! where it belongs. A line that was torn at the end (a full disk, a machine that went down) counts for
//! nothing. Lines are not forced to the disk one by one: what the log survives is the program's death.

use std::collections::HashMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, BufRead, BufReader, Seek, SeekFrom, Write};
use std::ops::AddAssign;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::input::Input;
use crate::record::{Outcome, Record, Texts};

/// A joblog that is being written.
#[derive(Debug)]
pub(crate) struct Joblog {
    path: PathBuf,
    file: File,
}

impl Joblog {
    /// Begins one anew.
    pub(crate) fn create(path: &Path) -> io::Result<Joblog> {
        let log = Joblog::open(path)?;
        log.truncate(0)?;
        Ok(log)
    }

    /// Goes on with one, behind its last whole line; begins it if there is none.
    pub(crate) fn resume(path: &Path) -> io::Result<Joblog> {
        let log = Joblog::open(path)?;
        log.truncate(whole_lines(&log.file)?)?;
        Ok(log)
    }

    /// Only a file has a length; a device or a pipe takes lines as they come.
    fn truncate(&self, len: u64) -> io::Result<()> {
        if self.file.metadata()?.is_file() { self.file.set_len(len) } else { Ok(()) }
    }

    fn open(path: &Path) -> io::Result<Joblog> {
        // Not truncated here: first it must be ours.
        let file =
            OpenOptions::new().read(true).append(true).create(true).truncate(false).open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Joblog { path: path.into(), file }),
            Err(TryLockError::WouldBlock) => {
                Err(io::Error::new(io::ErrorKind::ResourceBusy, "another procpool writes to it"))
            }
            // A file system without locks, or a pipe: then nobody can be kept out.
            Err(TryLockError::Error(_)) => Ok(Joblog { path: path.into(), file }),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Adds a job, with one write. One that fails leaves no part of a line.
    pub(crate) fn append(&mut self, record: &Record) -> io::Result<()> {
        let mut line = record.json();
        line.push('\n');
        let written = loop {
            match self.file.write(line.as_bytes()) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => break result?,
            }
        };
        if written == line.len() {
            return Ok(());
        }
        // The disk is full, most likely, and the next write says so.
        let result = self.file.write_all(&line.as_bytes()[written..]);
        if result.is_err()
            && let Ok(whole) = whole_lines(&self.file)
        {
            // If this fails too, the torn line is recognised as one.
            let _ = self.truncate(whole);
        }
        result
    }
}

/// Where the last line that has an end ends.
fn whole_lines(file: &File) -> io::Result<u64> {
    let mut reader = BufReader::new(file);
    reader.seek(SeekFrom::Start(0))?;
    let (mut whole, mut at) = (0, 0);
    loop {
        let chunk = reader.fill_buf()?;
        if chunk.is_empty() {
            return Ok(whole);
        }
        let len = chunk.len();
        if let Some(end) = chunk.iter().rposition(|byte| *byte == b'\n') {
            whole = at + end as u64 + 1;
        }
        at += len as u64;
        reader.consume(len);
    }
}

/// Which jobs an earlier batch has finished, by their inputs: an input keeps its place here though others
/// were added or taken away before it.
#[derive(Debug, Default)]
pub(crate) struct Finished {
    inputs: HashMap<Input, Counts>,
    /// The number of the last line, if it has no end: it counts for nothing.
    pub(crate) torn: Option<u64>,
}

/// How many jobs have ended how.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) succeeded: u64,
    pub(crate) failed: u64,
}

impl Counts {
    pub(crate) fn sum(self) -> u64 {
        self.succeeded + self.failed
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Counts) {
        self.succeeded += other.succeeded;
        self.failed += other.failed;
    }
}

/// Which jobs are run again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Again {
    Unfinished,
    UnfinishedAndFailed,
}

/// What a line must have to count.
#[derive(Deserialize)]
struct Line {
    seq: u64,
    input: Texts,
    outcome: Outcome,
}

impl Finished {
    /// Reads a joblog. One that does not exist has no jobs.
    pub(crate) fn read(path: &Path, again: Again) -> io::Result<Finished> {
        match File::open(path) {
            Ok(file) => Finished::of_lines(BufReader::new(file), again),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Finished::default()),
            Err(error) => Err(error),
        }
    }

    fn of_lines(mut reader: impl BufRead, again: Again) -> io::Result<Finished> {
        // A job that was run again is there again, and the last time counts.
        let mut jobs = HashMap::new();
        let mut finished = Finished::default();
        let mut bytes = Vec::new();
        for number in 1_u64.. {
            bytes.clear();
            if reader.read_until(b'\n', &mut bytes)? == 0 {
                break;
            }
            if bytes.last() != Some(&b'\n') {
                finished.torn = Some(number);
                break;
            }
            let (input, seq, outcome) = parse(&bytes).ok_or_else(|| {
                let message = format!("line {number} is no line of a joblog");
                io::Error::new(io::ErrorKind::InvalidData, message)
            })?;
            jobs.insert((input, seq), outcome);
        }
        for ((input, _), outcome) in jobs {
            let counts = finished.inputs.entry(input).or_default();
            match outcome {
                Outcome::Succeeded => counts.succeeded += 1,
                // It did not fail: the batch was stopped, and it with it.
                Outcome::Stopped => {}
                _ if again == Again::UnfinishedAndFailed => {}
                _ => counts.failed += 1,
            }
        }
        Ok(finished)
    }

    /// Whether a job with this input has been finished; if so it is counted. Each counts once.
    pub(crate) fn take(&mut self, input: &Input, counted: &mut Counts) -> bool {
        let Some(counts) = self.inputs.get_mut(input) else {
            return false;
        };
        if counts.succeeded > 0 {
            counts.succeeded -= 1;
            counted.succeeded += 1;
            true
        } else if counts.failed > 0 {
            counts.failed -= 1;
            counted.failed += 1;
            true
        } else {
            false
        }
    }
}

fn parse(line: &[u8]) -> Option<(Input, u64, Outcome)> {
    let line: Line = serde_json::from_slice(line).ok()?;
    Some((line.input.into_input()?, line.seq, line.outcome))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Run, Verdict};

    fn record(seq: u64, input: &str, verdict: Verdict) -> Record {
        Record::new(seq, Input::one(input.into()), Run::none(), verdict, String::new())
    }

    fn finished(text: &str, again: Again) -> Finished {
        Finished::of_lines(text.as_bytes(), again).unwrap()
    }

    fn takes(finished: &mut Finished, input: &str) -> bool {
        finished.take(&Input::one(input.into()), &mut Counts::default())
    }

    fn lines(jobs: &[(u64, &str, Verdict)]) -> String {
        jobs.iter().map(|(seq, input, v)| record(*seq, input, v.clone()).json() + "\n").collect()
    }

    #[test]
    fn what_was_written_is_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = Joblog::create(&path).unwrap();
        log.append(&record(1, "a", Verdict::success())).unwrap();
        log.append(&record(2, "b", Verdict::failure("exit code 1"))).unwrap();
        assert!(Joblog::resume(&path).is_err(), "two writers");
        drop(log);
        Joblog::resume(&path).unwrap().append(&record(3, "c", Verdict::success())).unwrap();
        let mut finished = Finished::read(&path, Again::Unfinished).unwrap();
        let mut counts = Counts::default();
        let found = ["a", "b", "c", "a", "d"]
            .map(|input| finished.take(&Input::one(input.into()), &mut counts));
        assert_eq!(found, [true, true, true, false, false]);
        assert_eq!(counts, Counts { succeeded: 2, failed: 1 });
        assert!(Joblog::create(&path).unwrap().file.metadata().unwrap().len() == 0);
    }

    #[test]
    fn a_torn_last_line_counts_for_nothing_and_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let whole = lines(&[(1, "a", Verdict::success()), (2, "b", Verdict::success())]);
        for len in 0..=whole.len() {
            // Each has a file of its own: a process that another test starts at this moment holds a copy of the
            // descriptor, and so the lock, until it executes its program.
            let path = dir.path().join(format!("log-{len}"));
            std::fs::write(&path, &whole[..len]).unwrap();
            let mut finished = Finished::read(&path, Again::Unfinished).unwrap();
            let ends = whole[..len].matches('\n').count();
            assert_eq!(takes(&mut finished, "a"), ends >= 1);
            assert_eq!(takes(&mut finished, "b"), ends == 2);
            let mut log = Joblog::resume(&path).unwrap();
            log.append(&record(3, "c", Verdict::success())).unwrap();
            let text = std::fs::read_to_string(&path).unwrap();
            assert_eq!(text.lines().count(), ends + 1);
            assert!(takes(&mut Finished::read(&path, Again::Unfinished).unwrap(), "c"));
        }
    }

    #[test]
    fn failures_are_run_again_if_asked_for_and_what_was_stopped_always() {
        let stopped = Verdict { outcome: Outcome::Stopped, ..Verdict::failure("stopped") };
        let text = lines(&[
            (1, "a", Verdict::failure("x")),
            (2, "b", stopped),
            (3, "c", Verdict::failure("x")),
            (3, "c", Verdict::success()),
        ]);
        let mut log = finished(&text, Again::Unfinished);
        assert!(takes(&mut log, "a") && !takes(&mut log, "b") && takes(&mut log, "c"));
        assert!(!takes(&mut log, "c"), "the failure before it was the same job's");
        let mut log = finished(&text, Again::UnfinishedAndFailed);
        assert!(!takes(&mut log, "a") && !takes(&mut log, "b") && takes(&mut log, "c"));
    }

    #[test]
    fn equal_inputs_are_counted() {
        let text = lines(&[(1, "a", Verdict::success()), (7, "a", Verdict::success())]);
        let mut log = finished(&text, Again::Unfinished);
        assert!(takes(&mut log, "a") && takes(&mut log, "a") && !takes(&mut log, "a"));
    }

    #[test]
    fn what_is_no_joblog_is_refused() {
        for text in ["hello\n", "{}\n", "{\"seq\":1,\"input\":\"a\"}\n", "\n"] {
            assert!(Finished::of_lines(text.as_bytes(), Again::Unfinished).is_err(), "{text:?}");
        }
    }
}
