//! The state directory: one user's, one daemon's.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process;

use interprocess::local_socket::traits::Listener as _;
use interprocess::local_socket::{
    GenericFilePath, ListenerNonblockingMode, ListenerOptions, ToFsName,
};
use interprocess::os::unix::uds_local_socket::Listener;
use listenfd::ListenFd;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};
use nix::sys::stat::{Mode, umask};

use crate::error::Error;

/// The longest path of a socket, which the kernel sets: `sun_path` of unix(7) without its zero.
const SOCKET_PATH_MAX: usize = 107;

/// How many bytes of the list of locks are asked for at once: the kernel gives a page of it at most.
const LOCKS_AT_ONCE: usize = 64 << 10;

/// How often a lock is tried whose holder the kernel does not name: it may have ended between the try and the look,
/// and a list of locks that changes while it is read can lack one that is held.
const LOOKS_FOR_HOLDER: u32 = 10;

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
        let lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(OFlag::O_NOFOLLOW.bits())
            .open(path.join("lock"))
            .map_err(|error| fault("lock", error))?;
        let mut looks = 1..=LOOKS_FOR_HOLDER;
        let mut lock = lock;
        loop {
            match Flock::lock(lock, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => {
                    return StateDir::held(path.clone(), &metadata, lock)
                        .map_err(|error| fault("lock", error));
                }
                Err((held, Errno::EAGAIN)) => match holder(&held) {
                    Some(pid) => return Err(Error::locked(&path, &format!(" (process {pid})"))),
                    None if looks.next().is_none() => return Err(Error::locked(&path, "")),
                    None => lock = held,
                },
                Err((_, error)) => return Err(fault("lock", error.into())),
            }
        }
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

/// Who holds the lock on a file: as the kernel says it, since what stands in the file may be of one that is dead, or
/// not yet of one that lives. Where it does not say it, nobody is named.
fn holder(lock: &File) -> Option<u32> {
    let inode = lock.metadata().ok()?.ino().to_string();
    // Read at once, as far as the kernel does that: between two reads a lock that is given up moves the others.
    let mut locks = String::with_capacity(LOCKS_AT_ONCE);
    File::open("/proc/locks").ok()?.read_to_string(&mut locks).ok()?;
    // `1: FLOCK  ADVISORY  WRITE 1234 08:01:5678 0 EOF`; see proc_locks(5).
    locks.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let is_ours = words.get(1) == Some(&"FLOCK")
            && words.get(5).is_some_and(|file| file.rsplit(':').next() == Some(&inode));
        if is_ours { words.get(4)?.parse().ok() } else { None }
    })
}

/// Listens at a path. What was left there by a daemon that is gone is removed: whoever calls this holds the lock.
pub(super) fn listen(path: &Path) -> Result<Listener, Error> {
    let fault =
        |error: io::Error| Error::system(format!("cannot listen at `{}`", path.display()), error);
    let name = path.to_fs_name::<GenericFilePath>().map_err(fault)?;
    let options = ListenerOptions::new().name(name);
    let mut listener = bind(path, || options.create_sync_as::<Listener>())?;
    // The socket is removed by hand, while the lock is held.
    listener.do_not_reclaim_name_on_drop();
    listener.set_nonblocking(ListenerNonblockingMode::Both).map_err(fault)?;
    Ok(listener)
}

/// The same, for somebody who needs no peers' names.
pub(super) fn listen_std(path: &Path) -> Result<UnixListener, Error> {
    let listener = bind(path, || UnixListener::bind(path))?;
    listener
        .set_nonblocking(true)
        .map_err(|error| Error::system(format!("cannot listen at `{}`", path.display()), error))?;
    Ok(listener)
}

fn bind<T>(path: &Path, bind: impl FnOnce() -> io::Result<T>) -> Result<T, Error> {
    let fault =
        |error: io::Error| Error::system(format!("cannot listen at `{}`", path.display()), error);
    if path.as_os_str().len() > SOCKET_PATH_MAX {
        return Err(Error::setting(format!(
            "a socket's path has at most {SOCKET_PATH_MAX} bytes, which `{}` has not",
            path.display()
        )));
    }
    remove_stale(path).map_err(fault)?;
    // Not even for a moment may somebody else connect. There is no other thread yet whose files this could touch.
    let before = umask(Mode::from_bits_truncate(0o177));
    let listener = bind();
    umask(before);
    listener.map_err(fault)
}

/// The socket that a service manager has made, if it has passed one; see sd_listen_fds(3).
pub(super) fn passed() -> Result<Option<(Listener, PathBuf)>, Error> {
    let fault = |error| Error::system("cannot use the socket that was passed", error);
    let passed = ListenFd::from_env().take_unix_listener(0).map_err(fault)?;
    let Some(listener) = passed else {
        return Ok(None);
    };
    let address = listener.local_addr().map_err(fault)?;
    let Some(path) = address.as_pathname().map(Path::to_owned) else {
        return Err(Error::setting("the socket that was passed has no path"));
    };
    let mut listener = Listener::from(OwnedFd::from(listener));
    listener.do_not_reclaim_name_on_drop();
    listener.set_nonblocking(ListenerNonblockingMode::Both).map_err(fault)?;
    Ok(Some((listener, path)))
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
