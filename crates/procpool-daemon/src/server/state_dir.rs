//! The state directory: one user's, one daemon's.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process;

use interprocess::local_socket::{GenericFilePath, ListenerOptions, ToFsName};
use interprocess::os::unix::uds_local_socket::Listener;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};
use nix::sys::stat::{Mode, umask};

use crate::error::Error;

/// The longest path of a socket, which the kernel sets: `sun_path` of unix(7) without its zero.
const SOCKET_PATH_MAX: usize = 107;

/// The directory, held by this process until it is dropped.
#[derive(Debug)]
pub(super) struct StateDir {
    path: PathBuf,
    mark: String,
    _lock: Flock<File>,
}

impl StateDir {
    /// Takes the directory, which is made if it is not there. The lock ends with the process, however that ends;
    /// what stands in its file is for people.
    pub(super) fn take(path: &Path) -> Result<StateDir, Error> {
        let fault = |what: &str, error| {
            Error::system(format!("cannot {what} the state directory `{}`", path.display()), error)
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(|error| fault("make", error))?;
        let path = fs::canonicalize(path).map_err(|error| fault("use", error))?;
        let metadata = fs::metadata(&path).map_err(|error| fault("use", error))?;
        if metadata.uid() != nix::unistd::geteuid().as_raw() || metadata.mode() & 0o077 != 0 {
            return Err(Error::setting(format!(
                "the state directory `{}` must be this user's and nobody else's (mode 0700)",
                path.display()
            )));
        }
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(OFlag::O_NOFOLLOW.bits())
            .open(path.join("lock"))
            .map_err(|error| fault("lock", error))?;
        lock = match Flock::lock(lock, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => {
                return StateDir::held(path.clone(), &metadata, lock)
                    .map_err(|error| fault("lock", error));
            }
            Err((lock, Errno::EAGAIN)) => lock,
            Err((_, error)) => return Err(fault("lock", error.into())),
        };
        let mut holder = String::new();
        // If it cannot be read, or is being written, nobody is named.
        let _ = lock.read_to_string(&mut holder);
        let holder = match holder.trim().parse::<u32>() {
            Ok(pid) => format!(" (process {pid})"),
            Err(_) => String::new(),
        };
        Err(Error::locked(&path, &holder))
    }

    fn held(path: PathBuf, dir: &fs::Metadata, mut lock: Flock<File>) -> io::Result<StateDir> {
        lock.set_len(0)?;
        lock.rewind()?;
        writeln!(lock, "{}", process::id())?;
        let mark = format!("{}:{}", dir.dev(), dir.ino());
        Ok(StateDir { path, mark, _lock: lock })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What no other directory has.
    pub(super) fn mark(&self) -> String {
        self.mark.clone()
    }
}

/// Listens at a path. What was left there by a daemon that is gone is removed: whoever calls this holds the lock.
pub(super) fn listen(path: &Path) -> Result<Listener, Error> {
    let fault =
        |error: io::Error| Error::system(format!("cannot listen at `{}`", path.display()), error);
    if path.as_os_str().len() > SOCKET_PATH_MAX {
        return Err(Error::setting(format!(
            "a socket's path has at most {SOCKET_PATH_MAX} bytes, which `{}` has not",
            path.display()
        )));
    }
    remove_stale(path).map_err(fault)?;
    let name = path.to_fs_name::<GenericFilePath>().map_err(fault)?;
    // Not even for a moment may somebody else connect. There is no other thread yet whose files this could touch.
    let before = umask(Mode::from_bits_truncate(0o177));
    let listener = ListenerOptions::new().name(name).create_sync_as::<Listener>();
    umask(before);
    let mut listener = listener.map_err(fault)?;
    use interprocess::local_socket::traits::Listener as _;
    // The socket is removed by hand, while the lock is held.
    listener.do_not_reclaim_name_on_drop();
    listener
        .set_nonblocking(interprocess::local_socket::ListenerNonblockingMode::Both)
        .map_err(fault)?;
    Ok(listener)
}

/// Removes the socket of a daemon that is gone. Whatever else is there, or answers, is not touched.
fn remove_stale(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::FileTypeExt;
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "there is a file, and no socket",
            ));
        }
        Ok(_) => {}
    }
    // A socket elsewhere than in the directory can be of a daemon with another one.
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => Err(io::Error::new(io::ErrorKind::AddrInUse, "another daemon listens there")),
        Err(_) => fs::remove_file(path),
    }
}
