//! The files that a batch reads and writes: none that is begun anew may be one that something else needs.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{self, Path, PathBuf};

use crate::args::Settings;

/// Says which file two uses of it would spoil: an input that would be written over, or a file with two writers.
pub(crate) fn check(settings: &Settings, inputs: &[&Path]) -> Result<(), String> {
    // `--resume` may be the joblog, which is gone on with then.
    let is_another = |joblog: &&PathBuf| match &settings.resume {
        Some(resume) => !is_same(joblog, resume),
        None => true,
    };
    let written = [
        ("--joblog", settings.joblog.as_ref().filter(is_another)),
        ("--resume", settings.resume.as_ref()),
        ("--report", settings.report.as_ref()),
        ("--trace", settings.trace.as_ref()),
    ];
    let mut uses: Vec<(&str, &Path)> = inputs.iter().map(|path| ("an input", *path)).collect();
    for (option, path) in written {
        let Some(path) = path else { continue };
        if let Some((other, _)) = uses.iter().find(|(_, used)| is_same(used, path)) {
            return Err(format!("{option}: `{}` is {other} as well", path.display()));
        }
        uses.push((option, path));
    }
    Ok(())
}

/// True if both are one file.
pub(crate) fn is_same(one: &Path, other: &Path) -> bool {
    identity(one).is_some_and(|one| identity(other) == Some(one))
}

/// What a file is known by.
#[derive(Debug, PartialEq, Eq)]
enum Identity {
    /// Device and inode.
    There(u64, u64),
    /// It will be made here.
    Missing(PathBuf),
}

/// None of what is no file: a device or a pipe may be used twice.
fn identity(path: &Path) -> Option<Identity> {
    match metadata(path) {
        Ok(metadata) if metadata.is_file() => Some(Identity::There(metadata.dev(), metadata.ino())),
        Ok(_) => None,
        Err(_) => path::absolute(path).ok().map(Identity::Missing),
    }
}

fn metadata(path: &Path) -> io::Result<Metadata> {
    if path == "-" {
        return File::from(io::stdin().as_fd().try_clone_to_owned()?).metadata();
    }
    fs::metadata(path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_file_is_the_same_by_whatever_name() {
        let dir = tempfile::tempdir().unwrap();
        let [file, hard, soft, other] =
            ["file", "hard", "soft", "other"].map(|name| dir.path().join(name));
        assert!(is_same(&file, &dir.path().join("./file")), "neither is there");
        assert!(!is_same(&file, &other));
        fs::write(&file, "").unwrap();
        fs::hard_link(&file, &hard).unwrap();
        symlink(&file, &soft).unwrap();
        assert!(is_same(&file, &hard) && is_same(&soft, &hard) && !is_same(&file, &other));
        assert!(!is_same(Path::new("/dev/null"), Path::new("/dev/../dev/null")), "no file");
    }
}
