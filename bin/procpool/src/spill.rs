//! The private directory for output that is too long for memory.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tempfile::TempDir;

/// How often the removal is tried: a worker that is being killed may still make a file meanwhile.
const REMOVALS: u32 = 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

/// The file for a stream of a job.
pub(crate) fn file(dir: &Path, number: u64, stream: Stream) -> PathBuf {
    let extension = match stream {
        Stream::Stdout => "out",
        Stream::Stderr => "err",
    };
    dir.join(format!("{number}.{extension}"))
}

/// The directory; its clones are handles to the same one. It is removed by [`Spill::remove`], and when the
/// last of them is dropped.
#[derive(Debug, Clone)]
pub(crate) struct Spill {
    path: PathBuf,
    dir: Arc<Mutex<Option<TempDir>>>,
}

impl Spill {
    /// Makes the directory, for this user alone.
    pub(crate) fn new() -> io::Result<Spill> {
        let dir = tempfile::Builder::new().prefix("procpool-").tempdir()?;
        Ok(Spill { path: dir.path().to_owned(), dir: Arc::new(Mutex::new(Some(dir))) })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Opens a job's file. It has no name from then on. `None` if the job has none.
    pub(crate) fn take(&self, number: u64, stream: Stream) -> io::Result<Option<File>> {
        let path = file(&self.path, number, stream);
        match File::open(&path) {
            Ok(file) => {
                fs::remove_file(&path)?;
                Ok(Some(file))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The end of a job's file, if there is one.
    pub(crate) fn tail(&self, number: u64, stream: Stream, len_max: usize) -> io::Result<Vec<u8>> {
        let mut file = File::open(file(&self.path, number, stream))?;
        let len = file.metadata()?.len();
        file.seek(SeekFrom::Start(len.saturating_sub(len_max as u64)))?;
        let mut bytes = Vec::new();
        // Something may still write to it.
        file.take(len_max as u64).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Removes the directory with all that is in it.
    pub(crate) fn remove(&self) {
        let dir = self.dir.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(dir) = dir else {
            return;
        };
        let path = dir.keep();
        for _ in 0..REMOVALS {
            match fs::remove_dir_all(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {}
                _ => return,
            }
        }
    }
}
