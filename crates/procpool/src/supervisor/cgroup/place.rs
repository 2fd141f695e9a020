//! Where this process's own cgroups are: /proc/self/cgroup and /proc/self/mountinfo read together
//! (cgroups(7), proc_pid_mountinfo(5)).

use std::ffi::OsString;
use std::fmt::Display;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use crate::proc_file;

/// A hierarchy of cgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hierarchy {
    /// Version 2.
    Unified,
    /// The one of version 1 that has this controller.
    Controller(&'static str),
}

/// The directory of this process's own cgroup, or why there is none.
pub(super) fn own_cgroup(hierarchy: Hierarchy) -> io::Result<PathBuf> {
    let read = |file| proc_file::read_text(file).map_err(|error| named(file, error));
    let (cgroups, mounts) = (read("/proc/self/cgroup")?, read("/proc/self/mountinfo")?);
    find(hierarchy, &cgroups, &mounts).map_err(io::Error::other)
}

/// Says what failed, unless it may go well next time: then whoever tries again wants the bare error.
pub(super) fn named(what: impl Display, error: io::Error) -> io::Error {
    if is_shortage(&error) {
        return error;
    }
    io::Error::new(error.kind(), format!("{what}: {error}"))
}

/// True if the system is only short of something now.
pub(super) fn is_shortage(error: &io::Error) -> bool {
    use nix::libc::{EAGAIN, EINTR, EMFILE, ENFILE, ENOMEM};
    matches!(error.raw_os_error(), Some(EAGAIN | EINTR | EMFILE | ENFILE | ENOMEM))
}

fn find(hierarchy: Hierarchy, cgroups: &str, mounts: &str) -> Result<PathBuf, String> {
    let what = match hierarchy {
        Hierarchy::Unified => "no cgroup version 2 hierarchy is mounted".to_owned(),
        Hierarchy::Controller(name) => format!("no cgroup version 1 {name} controller is mounted"),
    };
    let path = cgroups.lines().find_map(|line| own_path(hierarchy, line)).ok_or(&what[..])?;
    let mut reason = what.clone();
    for mount in mounts.lines().filter_map(|line| mount_of(hierarchy, line)) {
        // A mount may show a part of the hierarchy only, and not the part that we are in.
        match Path::new(path).strip_prefix(&mount.root) {
            Ok(rest) if !path.starts_with("/..") => return Ok(mount.point.join(rest)),
            _ => reason = format!("the own cgroup {path} is not below {}", mount.point.display()),
        }
    }
    Err(reason)
}

/// The path in a line of /proc/self/cgroup: `id:controllers:path`.
fn own_path(hierarchy: Hierarchy, line: &str) -> Option<&str> {
    let mut parts = line.splitn(3, ':');
    let (id, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
    let is_meant = match hierarchy {
        Hierarchy::Unified => id == "0" && controllers.is_empty(),
        Hierarchy::Controller(name) => controllers.split(',').any(|known| known == name),
    };
    is_meant.then_some(path)
}

struct Mount {
    root: PathBuf,
    point: PathBuf,
}

fn mount_of(hierarchy: Hierarchy, line: &str) -> Option<Mount> {
    let (before, after) = line.split_once(" - ")?;
    let mut before = before.split(' ').skip(3);
    let (root, point) = (before.next()?, before.next()?);
    let mut after = after.split(' ');
    let (kind, _source, options) = (after.next()?, after.next()?, after.next()?);
    let is_meant = match hierarchy {
        Hierarchy::Unified => kind == "cgroup2",
        Hierarchy::Controller(name) => {
            kind == "cgroup" && options.split(',').any(|option| option == name)
        }
    };
    is_meant.then(|| Mount { root: unescape(root), point: unescape(point) })
}

/// Spaces and the like are written as a backslash and three octal digits.
fn unescape(text: &str) -> PathBuf {
    let bytes = text.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let code = text.get(at + 1..at + 4).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match (bytes[at], code) {
            (b'\\', Some(byte)) => {
                plain.push(byte);
                at += 4;
            }
            (byte, _) => {
                plain.push(byte);
                at += 1;
            }
        }
    }
    OsString::from_vec(plain).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime shared:7 - cgroup cgroup rw,cpuacct,cpu
41 31 0:38 / /sys/fs/cgroup/uni\\040fied rw,relatime - cgroup2 cgroup2 rw
";
    const CGROUPS: &str = "\
4:memory:/process_api/e808
2:cpuacct,cpu:/
0::/user.slice/my:scope
";

    #[test]
    fn each_hierarchy_is_found_at_its_mount() {
        let find = |hierarchy| find(hierarchy, CGROUPS, MOUNTS);
        assert_eq!(
            find(Hierarchy::Unified),
            Ok("/sys/fs/cgroup/uni fied/user.slice/my:scope".into())
        );
        assert_eq!(
            find(Hierarchy::Controller("memory")),
            Ok("/sys/fs/cgroup/memory/process_api/e808".into())
        );
        assert_eq!(find(Hierarchy::Controller("cpu")), Ok("/sys/fs/cgroup/cpu".into()));
        let error = find(Hierarchy::Controller("pids")).unwrap_err();
        assert_eq!(error, "no cgroup version 1 pids controller is mounted");
    }

    /// A container whose mount begins at its own cgroup, and one that was moved out of what it can see.
    #[test]
    fn a_mount_that_shows_a_part_is_understood() {
        let mounts = "41 31 0:38 /docker/a1 /sys/fs/cgroup rw - cgroup2 cgroup2 rw";
        let find = |cgroups| find(Hierarchy::Unified, cgroups, mounts);
        assert_eq!(find("0::/docker/a1"), Ok("/sys/fs/cgroup".into()));
        assert_eq!(find("0::/docker/a1/x"), Ok("/sys/fs/cgroup/x".into()));
        assert!(find("0::/docker/b2").unwrap_err().contains("/docker/b2 is not below"));
        assert!(find("0::/../b2").is_err());
    }
}
