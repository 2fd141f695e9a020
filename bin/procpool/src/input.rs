//! Inputs, and how they are read: one by one, as they are asked for, on a thread of their own, because
//! standard input may be silent for hours while jobs end. How several sources make one input is
//! [`source`](crate::source)'s affair.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, BufRead, BufReader, IsTerminal, Read};
use std::path::Path;

use anyhow::Context;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use crate::report;

/// What one job is given: a value from each source, or the columns of one line. Never without any.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Input(Vec<ByteBuf>);

impl Input {
    pub(crate) fn one(value: Vec<u8>) -> Input {
        Input(vec![ByteBuf::from(value)])
    }

    pub(crate) fn of(values: impl IntoIterator<Item = Vec<u8>>) -> Input {
        Input(values.into_iter().map(ByteBuf::from).collect())
    }

    pub(crate) fn values(&self) -> impl ExactSizeIterator<Item = &[u8]> + DoubleEndedIterator {
        self.0.iter().map(|value| &value[..])
    }

    /// All values, with a space between them.
    pub(crate) fn joined(&self) -> Cow<'_, [u8]> {
        match &self.0[..] {
            [value] => Cow::Borrowed(value),
            values => {
                let values: Vec<&[u8]> = values.iter().map(|value| &value[..]).collect();
                Cow::Owned(values.join(&b' '))
            }
        }
    }

    /// What `--tag` puts before lines.
    pub(crate) fn tag(&self) -> Vec<u8> {
        let mut tag = self.joined().into_owned();
        tag.push(b'\t');
        tag
    }

    /// Its size in memory, nearly.
    pub(crate) fn len(&self) -> usize {
        self.0.iter().map(|value| value.len()).sum()
    }
}

/// Values, one after the other.
pub(crate) type Values = Box<dyn Iterator<Item = io::Result<Vec<u8>>> + Send>;
/// Inputs, one after the other. After an error there are no more.
pub(crate) type Inputs = Box<dyn Iterator<Item = io::Result<Input>> + Send>;

/// How lines are read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lines {
    /// What ends one.
    pub(crate) end: u8,
    /// Of a longer line only so many bytes and one more are kept.
    pub(crate) len_max: u64,
}

/// The lines of a file, or of standard input if it is `-`.
pub(crate) fn of_lines(file: &Path, lines: Lines) -> anyhow::Result<Values> {
    if file != "-" {
        let file = open(file).with_context(|| format!("cannot read `{}`", file.display()))?;
        return Ok(Box::new(read(BufReader::new(file), lines)));
    }
    if is_terminal(file) {
        report::say("reading inputs from the terminal; Ctrl-D ends them");
    }
    Ok(Box::new(read(BufReader::new(io::stdin()), lines)))
}

/// True if somebody types this file.
pub(crate) fn is_terminal(file: &Path) -> bool {
    file == "-" && io::stdin().is_terminal()
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
fn read(
    mut reader: impl BufRead + Send,
    lines: Lines,
) -> impl Iterator<Item = io::Result<Vec<u8>>> + Send {
    let mut is_over = false;
    std::iter::from_fn(move || {
        if is_over {
            return None;
        }
        let line = next_line(&mut reader, lines).transpose();
        is_over = !matches!(line, Some(Ok(_)));
        line
    })
}

fn next_line(reader: &mut impl BufRead, lines: Lines) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    let kept_max = lines.len_max.saturating_add(1);
    if reader.take(kept_max).read_until(lines.end, &mut line)? == 0 {
        return Ok(None);
    }
    if line.last() == Some(&lines.end) {
        line.pop();
    } else if line.len() as u64 == kept_max {
        reader.skip_until(lines.end)?;
    }
    Ok(Some(line))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines_of(text: &[u8], end: u8, len_max: u64) -> Vec<Vec<u8>> {
        read(text, Lines { end, len_max }).map(Result::unwrap).collect()
    }

    #[test]
    fn lines_are_bytes_and_the_last_needs_no_end() {
        let lines = lines_of(b"a\n\n\xff\r\nb", b'\n', 10);
        assert_eq!(lines, [&b"a"[..], b"", b"\xff\r", b"b"]);
        assert!(lines_of(b"", b'\n', 10).is_empty());
        assert_eq!(lines_of(b"\n", b'\n', 10), [b""]);
    }

    #[test]
    fn lines_may_end_in_zero_bytes() {
        assert_eq!(lines_of(b"a\nb\0c\0", 0, 10), [&b"a\nb"[..], b"c"]);
    }

    #[test]
    fn a_line_that_is_too_long_is_recognisable_and_costs_no_other() {
        let lines = lines_of(b"123\n1234\n12345678\nx", b'\n', 3);
        assert_eq!(lines, [&b"123"[..], b"1234", b"1234", b"x"]);
        assert_eq!(lines_of(b"12345678", b'\n', 3), [b"1234"]);
    }

    #[test]
    fn several_values_are_joined_by_spaces() {
        assert_eq!(&*Input::one(b"a".to_vec()).joined(), b"a");
        assert_eq!(&*Input::of([b"a b".to_vec(), b"".to_vec(), b"c".to_vec()]).joined(), b"a b  c");
    }
}
