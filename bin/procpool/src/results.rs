//! `--results DIR`: what each job has printed and how it ended, in files.
//!
//! `DIR/SEQ/stdout`, `DIR/SEQ/stderr` and, last, `DIR/SEQ/verdict.json`, the job's line of the joblog: where it
//! is, the others are whole. A call has `DIR/SEQ/result.json` and the verdict.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use crate::record::Record;

#[derive(Debug)]
pub(crate) struct Results {
    dir: PathBuf,
}

impl Results {
    /// Makes the directory, if it is not there.
    pub(crate) fn open(dir: &Path) -> io::Result<Results> {
        fs::create_dir_all(dir)?;
        // Better now than after the first job, which may have taken hours.
        tempfile::tempfile_in(dir)?;
        Ok(Results { dir: dir.into() })
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The job's files, empty.
    pub(crate) fn begin(&self, seq: u64) -> io::Result<(File, File)> {
        let dir = self.dir.join(seq.to_string());
        fs::create_dir_all(&dir)?;
        // Of an earlier batch in the same directory. Its absence says that the others are not whole.
        remove(&dir.join("verdict.json"))?;
        Ok((File::create(dir.join("stdout"))?, File::create(dir.join("stderr"))?))
    }

    /// The same of a call: its result, if it has one.
    pub(crate) fn keep_result(&self, record: &Record, result: Option<&[u8]>) -> io::Result<()> {
        let dir = self.dir.join(record.seq.to_string());
        fs::create_dir_all(&dir)?;
        match result {
            Some(result) => fs::write(dir.join("result.json"), result)?,
            None => remove(&dir.join("result.json"))?,
        }
        self.finish(record)
    }

    pub(crate) fn finish(&self, record: &Record) -> io::Result<()> {
        let path = self.dir.join(record.seq.to_string()).join("verdict.json");
        fs::write(path, record.json() + "\n")
    }
}

/// Removes a file of an earlier batch, if there is one.
fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
