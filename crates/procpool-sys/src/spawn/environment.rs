//! What workers have for an environment.

use std::collections::BTreeMap;
use std::collections::btree_map;
use std::env;
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::unistd::{AccessFlags, access};

use super::{BIND_NOW, BIND_NOW_FOR_NOW};

/// Where a program is looked for without a PATH; what `confstr(_CS_PATH)` answers.
const DEFAULT_PATH: &str = "/bin:/usr/bin";

/// The environment of a worker, whole.
#[derive(Debug, Clone, Default)]
pub struct Environment(BTreeMap<OsString, OsString>);

impl Environment {
    /// This process's, as it is now.
    pub fn of_this_process() -> Environment {
        Environment(env::vars_os().collect())
    }

    /// Sets a variable, in place of one of the same name.
    pub fn set(&mut self, key: impl Into<OsString>, value: impl Into<OsString>) {
        self.0.insert(key.into(), value.into());
    }

    /// Has the process bind the functions of shared libraries before it begins, unless the user has had his say. For one
    /// that is forked: what is bound in each of its children costs them some pages each.
    pub fn bind_at_once(&mut self) {
        self.0.entry(BIND_NOW.into()).or_insert(BIND_NOW_FOR_NOW.into());
    }

    /// The file that is executed for `program`: without a slash it is looked for in PATH, as in execvp(3).
    pub(super) fn find(&self, program: &Path) -> io::Result<PathBuf> {
        if program.as_os_str().as_encoded_bytes().contains(&b'/') {
            return Ok(program.to_owned());
        }
        let path =
            self.0.get(OsStr::new("PATH")).map_or(OsStr::new(DEFAULT_PATH), OsString::as_os_str);
        env::split_paths(path)
            .map(|dir| dir.join(program))
            .find(|file| file.is_file() && access(file, AccessFlags::X_OK).is_ok())
            .ok_or_else(|| Errno::ENOENT.into())
    }
}

impl IntoIterator for Environment {
    type Item = (OsString, OsString);
    type IntoIter = btree_map::IntoIter<OsString, OsString>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_without_a_slash_is_looked_for_in_path() {
        let mut environment = Environment::default();
        let find = |environment: &Environment, program: &str| {
            environment.find(Path::new(program)).map_err(|error| error.kind())
        };
        assert!(find(&environment, "sh").unwrap().ends_with("bin/sh"), "without a PATH");
        environment.set("PATH", "/no/such/directory:/etc:/bin:/usr/bin");
        assert_eq!(find(&environment, "sh"), Ok("/bin/sh".into()));
        assert_eq!(find(&environment, "./sh"), Ok("./sh".into()));
        // There, and not to be executed.
        assert_eq!(find(&environment, "group"), Err(io::ErrorKind::NotFound));
        environment.set("PATH", "/etc");
        assert_eq!(find(&environment, "sh"), Err(io::ErrorKind::NotFound));
    }
}
