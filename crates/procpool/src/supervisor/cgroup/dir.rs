//! Directories of cgroups: a pool's is made, those that dead hosts left are removed.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};

use super::place::named;

/// A pool's directory in one hierarchy, below the host's own cgroup.
#[derive(Debug)]
pub(super) struct PoolDir(PathBuf);

/// How the names of pools' directories begin.
const PREFIX: &str = "procpool-";

impl PoolDir {
    pub(super) fn make(own: &Path) -> io::Result<PoolDir> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let prefix = format!("{PREFIX}{}-", pid_namespace());
        remove_abandoned(own, &prefix);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = own.join(format!("{prefix}{}-{number}", process::id()));
        fs::create_dir(&path).map_err(|error| named(own.display(), error))?;
        Ok(PoolDir(path))
    }

    /// Hands a controller of version 2 on to the workers' cgroups, if the host's cgroup hands it down. If it
    /// does not it is not there to be enabled: the host's cgroup itself is not ours to change.
    pub(super) fn enable(&self, controller: &str) -> bool {
        self.has_controller(controller)
            && fs::write(self.0.join("cgroup.subtree_control"), format!("+{controller}")).is_ok()
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// Whether version 2 has the controller here. False in a hierarchy of version 1.
    pub(super) fn has_controller(&self, name: &str) -> bool {
        let list = fs::read_to_string(self.0.join("cgroup.controllers")).unwrap_or_default();
        list.split_ascii_whitespace().any(|known| known == name)
    }

    pub(super) fn into_path(self) -> PathBuf {
        self.0
    }
}

/// Process ids mean something only within their namespace; two that share a hierarchy must not take each
/// other's hosts for dead.
fn pid_namespace() -> u64 {
    fs::metadata("/proc/self/ns/pid").map_or(0, |metadata| metadata.ino())
}

/// Removes the directories of hosts that are dead, where nothing is left in them.
fn remove_abandoned(own: &Path, prefix: &str) {
    for entry in fs::read_dir(own).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix(prefix)?.split('-').next());
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            remove(&entry.path());
        }
    }
}

/// Removes a cgroup and those below it. True if it is gone: one in which a process lives stays.
pub(super) fn remove(path: &Path) -> bool {
    remove_below(path, None);
    match fs::remove_dir(path) {
        Ok(()) => true,
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

/// Removes the cgroups below one, which may be open.
pub(super) fn remove_below(path: &Path, dir: Option<&File>) {
    let metadata = dir.map_or_else(|| fs::metadata(path), File::metadata);
    // A directory has two links, and one more for each directory in it.
    if metadata.is_ok_and(|metadata| metadata.nlink() == 2) {
        return;
    }
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path());
        }
    }
}
