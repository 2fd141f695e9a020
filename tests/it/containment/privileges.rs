//! Hosts that have more privileges than whoever runs them.

use std::fs::{self, Permissions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use nix::unistd::geteuid;

use super::{HOST, NOBODY};
use crate::life::fixture::Fixture;
use crate::support::{TempDir, test};

/// A copy of the host that everybody can run.
fn copy(dir: &TempDir) -> PathBuf {
    let path = dir.path().join("privileged-host");
    fs::copy(HOST, &path).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
    path
}

/// One that runs as another user, whoever runs it. `None` where that cannot be made.
fn of_another_user(dir: &TempDir) -> Option<PathBuf> {
    if !geteuid().is_root() {
        println!("skipped: only root can give a file away");
        return None;
    }
    let path = copy(dir);
    chown(&path, Some(NOBODY), Some(NOBODY)).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o4755)).unwrap();
    Some(path)
}

/// Goal: a program that runs as its owner has workers that do so too.
/// Covers: F-109
#[test]
fn a_program_that_runs_as_its_owner_has_workers() {
    test(|| {
        let dir = TempDir::new();
        let Some(program) = of_another_user(&dir) else { return };
        let left = Fixture::start(Command::new(program).arg("say").current_dir("/")).end();
        assert!(left.status.success(), "{left:?}");
        if left.output.starts_with("as 0 ") {
            return println!("skipped: set-user-id has no effect in {}", dir.path().display());
        }
        assert!(left.output.starts_with(&format!("as {NOBODY} for 0\n")), "{left:?}");
        assert!(left.output.contains("\nOk(42)\n"), "{left:?}");
    });
}

/// Goal: whoever runs a program with privileges cannot pose as its host, and so call whatever he likes in it.
/// Method: what a host does: a variable, and a channel as standard input.
/// Covers: F-109
#[test]
fn nobody_poses_as_the_host_of_a_program_with_privileges() {
    test(|| {
        let dir = TempDir::new();
        let Some(program) = of_another_user(&dir) else { return };
        let (ours, theirs) = UnixStream::pair().unwrap();
        // One that takes it for its host then finds that it says nothing.
        drop(ours);
        let output = Command::new(program)
            .env("PROCPOOL_WORKER", "1")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .output()
            .unwrap();
        let errors = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success());
        assert!(errors.contains("raised privileges"), "{errors}");
    });
}

/// Goal: where a worker could not tell its host from whoever runs the program, there are no workers, and the error
/// says why.
/// Method: file capabilities, run by a user who has none.
/// Covers: F-109
#[test]
fn a_program_with_capabilities_of_its_file_is_told_that_it_has_no_workers() {
    test(|| {
        let dir = TempDir::new();
        let program = copy(&dir);
        let set = Command::new("setcap").arg("cap_net_raw+ep").arg(&program).output();
        if !geteuid().is_root() || !set.is_ok_and(|output| output.status.success()) {
            return println!("skipped: a file cannot be given capabilities here");
        }
        let mut command = Command::new(program);
        command.arg("say").uid(NOBODY).gid(NOBODY).current_dir("/");
        let left = Fixture::start(&mut command).end();
        assert!(
            left.output.contains("no pool: this program runs with raised privileges"),
            "{left:?}"
        );
    });
}
