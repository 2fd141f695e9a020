//! What a worker may leave behind, and what it may use: trees, cgroups, limits of memory and processes.
//!
//! Most stories are told by a host of their own, `tests/workers/containment_host.rs`, twice: as the user who
//! runs the tests, and as a user who can make no cgroups.

mod limits;
mod machine;
mod namespaces;
mod privileges;
mod tree;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::unistd::geteuid;

use crate::life::fixture::Fixture;
use crate::support::TempDir;

pub(super) const HOST: &str = env!("CARGO_BIN_EXE_containment-host");
/// A user who has no other processes, so that limits by user count nothing else.
const NOBODY: u32 = 54321;

/// Who tells a story.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum User {
    /// Who runs the tests: root on most test machines, who can make cgroups.
    Own,
    /// One who cannot.
    Nobody,
}

impl User {
    /// Those as whom stories can be told here.
    pub(super) fn all() -> Vec<User> {
        if geteuid().is_root() {
            return vec![User::Own, User::Nobody];
        }
        println!("skipped: only root can take another user's place");
        vec![User::Own]
    }
}

/// A host that tells a story as the user.
pub(super) struct Story {
    pub(super) host: Fixture,
    _dir: TempDir,
}

pub(super) fn tell(user: User, story: &[&str]) -> Story {
    let dir = TempDir::new();
    let mut command = match user {
        User::Own => Command::new(HOST),
        User::Nobody => {
            // Where the user can reach it.
            let program = dir.path().join("containment-host");
            fs::copy(HOST, &program).unwrap();
            fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
            let mut command = Command::new(program);
            command.uid(NOBODY).gid(NOBODY).current_dir("/");
            command
        }
    };
    // To find the names for a backtrace takes more memory than the limits of these stories.
    command.env("RUST_BACKTRACE", "0");
    Story { host: Fixture::start(command.args(story)), _dir: dir }
}
