//! Finding a program before a thousand jobs fail for want of it.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Says why no job can execute the program `name`, if that can be known. A name without a slash is looked
/// up in `path`, or in PATH, as execvp(3) does. Jobs start in `workdir`, if there is one.
pub(crate) fn check(
    name: &OsStr,
    workdir: Option<&Path>,
    path: Option<&OsStr>,
) -> Result<(), String> {
    let shown = name.display();
    let here = workdir.unwrap_or(Path::new(""));
    if name.as_bytes().contains(&b'/') {
        return match is_executable(&here.join(name)) {
            Ok(true) => Ok(()),
            Ok(false) => Err(format!("`{shown}` is not an executable file")),
            Err(error) => Err(format!("cannot execute `{shown}`: {error}")),
        };
    }
    // Without PATH the C library has a default of its own, so nothing can be said here.
    let Some(path) = path.map(OsStr::to_owned).or_else(|| env::var_os("PATH")) else {
        return Ok(());
    };
    let is_found = env::split_paths(&path)
        .any(|dir| is_executable(&here.join(dir).join(name)).unwrap_or(false));
    if is_found {
        return Ok(());
    }
    let is_line = name.as_bytes().iter().any(u8::is_ascii_whitespace);
    let hint = if is_line {
        "; no shell is used: give the command and each argument as a word of its own, or say `--shell`"
    } else {
        ""
    };
    Err(format!("there is no program `{shown}` in PATH{hint}"))
}

fn is_executable(path: &Path) -> std::io::Result<bool> {
    let metadata = fs::metadata(path)?;
    Ok(metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}
