//! `--results DIR`: what each job has printed and how it ended, in files.
//!
//! `DIR/SEQ/stdout`, `DIR/SEQ/stderr` and, last, `DIR/SEQ/verdict.json`, the job's line of the joblog: where it
//! is, the others are whole.

use std::fs::{self, File};
use std::io::{self, Read};
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
        match fs::remove_file(dir.join("verdict.json")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        Ok((File::create(dir.join("stdout"))?, File::create(dir.join("stderr"))?))
    }

    pub(crate) fn finish(&self, record: &Record) -> io::Result<()> {
        let path = self.dir.join(record.seq.to_string()).join("verdict.json");
        fs::write(path, record.json() + "\n")
    }
}
