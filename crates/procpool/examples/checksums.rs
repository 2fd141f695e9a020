//! The SHA-256 of every file below a directory, hashed on all CPUs and printed like `sha256sum` does.
//!
//! A file that cannot be read is reported, and so is one that crashes the worker; the others go on.
//! Run it with `cargo run --release -p procpool --example checksums -- DIRECTORY`.

use std::env;
use std::error::Error;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::iter;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use procpool::ProcessPool;
use sha2::{Digest, Sha256};

/// The digest in hexadecimal, beside the name, because the results come in no order. An `OsString` and
/// not a path: serde refuses paths that are not UTF-8, and files may be called anything.
fn checksum(name: OsString) -> (OsString, Result<String, String>) {
    let digest = digest(Path::new(&name)).map_err(|error| error.to_string());
    (name, digest)
}

fn digest(path: &Path) -> io::Result<String> {
    let mut file = BufReader::with_capacity(64 * 1024, File::open(path)?);
    let mut hasher = Sha256::new();
    loop {
        let bytes = file.fill_buf()?;
        if bytes.is_empty() {
            break;
        }
        hasher.update(bytes);
        let len = bytes.len();
        file.consume(len);
    }
    let digest = hasher.finalize();
    Ok(digest.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn main() -> Result<ExitCode, Box<dyn Error>> {
    procpool::init();
    let directory = env::args_os().nth(1).unwrap_or_else(|| ".".into());
    let pool = ProcessPool::new()?;
    let mut out = BufWriter::new(io::stdout().lock());
    let mut failures = 0;
    // The map is lazy: the directory is walked while its first files are hashed.
    for result in pool.map(checksum, files_below(directory.into())).unordered() {
        match result {
            Ok((name, Ok(digest))) => write_line(&mut out, &digest, &name)?,
            Ok((name, Err(error))) => {
                failures += 1;
                eprintln!("checksums: {}: {error}", name.display());
            }
            Err(error) => {
                failures += 1;
                eprintln!("checksums: {error}");
            }
        }
    }
    out.flush()?;
    Ok(ExitCode::from(u8::from(failures > 0)))
}

/// Every file below the directory, and every link to one. A link that leads nowhere is one that cannot
/// be read; links to directories are not followed, since they can lead round in a circle.
fn files_below(directory: PathBuf) -> impl Iterator<Item = OsString> {
    let mut waiting = vec![directory];
    iter::from_fn(move || {
        while let Some(path) = waiting.pop() {
            match fs::metadata(&path) {
                Ok(metadata) if metadata.is_dir() => match fs::read_dir(&path) {
                    Ok(entries) => waiting.extend(
                        entries
                            .flatten()
                            .filter(|entry| !is_link_to_directory(&entry.path()))
                            .map(|entry| entry.path()),
                    ),
                    Err(error) => eprintln!("checksums: {}: {error}", path.display()),
                },
                // A pipe or a device may never end.
                Ok(metadata) if !metadata.is_file() => {}
                Ok(_) | Err(_) => return Some(path.into_os_string()),
            }
        }
        None
    })
}

fn is_link_to_directory(path: &Path) -> bool {
    path.is_symlink() && path.is_dir()
}

/// A line as `sha256sum` writes it: a name that would break the line is escaped, and marked as such.
fn write_line(out: &mut impl Write, digest: &str, name: &OsString) -> io::Result<()> {
    let mut escaped = Vec::new();
    for byte in name.as_encoded_bytes() {
        match byte {
            b'\\' => escaped.extend(b"\\\\"),
            b'\n' => escaped.extend(b"\\n"),
            b'\r' => escaped.extend(b"\\r"),
            byte => escaped.push(*byte),
        }
    }
    let mark = if escaped.len() > name.len() { "\\" } else { "" };
    write!(out, "{mark}{digest}  ")?;
    out.write_all(&escaped)?;
    writeln!(out)
}
