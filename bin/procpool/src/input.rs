//! Where inputs come from. They are read one by one, as they are asked for, on a thread of their own:
//! standard input may be silent for hours while jobs end.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufRead, BufReader, IsTerminal, Read};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use anyhow::Context;

use crate::report;

/// Inputs, one after the other.
pub(crate) type Inputs = Box<dyn Iterator<Item = io::Result<Vec<u8>>> + Send>;

/// The inputs after `:::`.
pub(crate) fn of_words(words: Vec<OsString>) -> Inputs {
    Box::new(words.into_iter().map(|word| Ok(word.into_vec())))
}

/// The lines of a file, or of standard input if there is none or it is `-`. Of a line longer than
/// `line_max` bytes only so many and one more are kept.
pub(crate) fn of_lines(file: Option<&Path>, line_max: u64) -> anyhow::Result<Inputs> {
    match file {
        Some(path) if path != "-" => {
            let file = open(path).with_context(|| format!("cannot read `{}`", path.display()))?;
            Ok(Box::new(lines(BufReader::new(file), line_max)))
        }
        _ => {
            if io::stdin().is_terminal() {
                report::say("reading inputs from the terminal; Ctrl-D ends them");
            }
            Ok(Box::new(lines(BufReader::new(io::stdin()), line_max)))
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    let file = File::open(path)?;
    // Opening a directory succeeds, and only reading it does not.
    if file.metadata()?.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    Ok(file)
}

/// The lines without their ends. After an error there are no more.
fn lines(
    mut reader: impl BufRead + Send,
    line_max: u64,
) -> impl Iterator<Item = io::Result<Vec<u8>>> + Send {
    let mut is_over = false;
    std::iter::from_fn(move || {
        if is_over {
            return None;
        }
        let line = next_line(&mut reader, line_max).transpose();
        is_over = !matches!(line, Some(Ok(_)));
        line
    })
}

fn next_line(reader: &mut impl BufRead, line_max: u64) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    let kept_max = line_max.saturating_add(1);
    if reader.take(kept_max).read_until(b'\n', &mut line)? == 0 {
        return Ok(None);
    }
    if line.last() == Some(&b'\n') {
        line.pop();
    } else if line.len() as u64 == kept_max {
        reader.skip_until(b'\n')?;
    }
    Ok(Some(line))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &[u8], line_max: u64) -> Vec<Vec<u8>> {
        lines(text, line_max).map(Result::unwrap).collect()
    }

    #[test]
    fn lines_are_bytes_and_the_last_needs_no_end() {
        assert_eq!(read(b"a\n\n\xff\r\nb", 10), [&b"a"[..], b"", b"\xff\r", b"b"]);
        assert!(read(b"", 10).is_empty());
        assert_eq!(read(b"\n", 10), [b""]);
    }

    #[test]
    fn a_line_that_is_too_long_is_recognisable_and_costs_no_other() {
        assert_eq!(read(b"123\n1234\n12345678\nx", 3), [&b"123"[..], b"1234", b"1234", b"x"]);
        assert_eq!(read(b"12345678", 3), [b"1234"]);
    }
}
