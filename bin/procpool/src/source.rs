//! Where inputs come from: words behind `:::`, files, and how several sources combine, as in GNU parallel.
//!
//! Sources stand in groups. Those of a group go in pairs (`:::+`): first with first, second with second, and
//! the shortest decides. Groups are multiplied, the last varies fastest. The first group is read as it is
//! needed and may be endless; the others are kept in memory, because each is gone through many times.

use std::ffi::OsString;
use std::io;
use std::iter;
use std::mem;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use regex::bytes::Regex;

use crate::input::{self, Input, Inputs, Lines, Values};

/// What stands between the command and its inputs, or between two sources.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Separator {
    /// `:::`: values.
    Words,
    /// `::::`: files, each a source.
    Files,
}

/// One place that inputs come from.
#[derive(Debug, PartialEq, Eq)]
enum Source {
    Words(Vec<OsString>),
    /// The lines of a file; `-` is standard input.
    File(PathBuf),
}

/// All sources, in groups.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Sources {
    groups: Vec<Vec<Source>>,
}

/// How sources are read.
#[derive(Debug, Clone)]
pub(crate) struct Reading {
    pub(crate) lines: Lines,
    /// What separates the columns of a value.
    pub(crate) colsep: Option<Regex>,
}

fn separator(word: &OsString) -> Option<(Separator, Joined)> {
    Some(match word.to_str()? {
        ":::" => (Separator::Words, Joined::Product),
        ":::+" => (Separator::Words, Joined::Pairs),
        "::::" => (Separator::Files, Joined::Product),
        "::::+" => (Separator::Files, Joined::Pairs),
        _ => return None,
    })
}

/// How a source is combined with the one before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Joined {
    Product,
    Pairs,
}

impl Sources {
    /// Takes the sources from a command line: `files` come first, then what stands behind the separators in
    /// `words`, in which the command is left. Without any, there is standard input.
    pub(crate) fn take(files: Vec<PathBuf>, words: &mut Vec<OsString>) -> Sources {
        let mut sources = Sources::default();
        for file in files {
            sources.add(Source::File(file), Joined::Product);
        }
        let command_len = words.iter().position(|word| separator(word).is_some());
        let mut rest = words.split_off(command_len.unwrap_or(words.len()));
        while let Some((kind, joined)) = rest.first().and_then(separator) {
            let end = rest[1..].iter().position(|word| separator(word).is_some());
            let next = rest.split_off(end.map_or(rest.len(), |end| end + 1));
            let values = mem::replace(&mut rest, next).into_iter().skip(1);
            match kind {
                Separator::Words => sources.add(Source::Words(values.collect()), joined),
                Separator::Files => {
                    for file in values {
                        sources.add(Source::File(file.into()), joined);
                    }
                }
            }
        }
        if sources.groups.is_empty() && command_len.is_none() {
            sources.add(Source::File("-".into()), Joined::Product);
        }
        sources
    }

    fn add(&mut self, source: Source, joined: Joined) {
        match self.groups.last_mut() {
            Some(group) if joined == Joined::Pairs => group.push(source),
            _ => self.groups.push(vec![source]),
        }
    }

    /// True if standard input is one of them more than once: what the first reads, the second misses.
    pub(crate) fn share_stdin(&self) -> bool {
        let is_stdin = |source: &&Source| matches!(source, Source::File(file) if file == "-");
        self.groups.iter().flatten().filter(is_stdin).count() > 1
    }

    /// True if somebody types inputs.
    pub(crate) fn read_terminal(&self) -> bool {
        let is_typed =
            |source: &Source| matches!(source, Source::File(file) if input::is_terminal(file));
        self.groups.iter().flatten().any(is_typed)
    }

    /// The files among them; `-` is standard input.
    pub(crate) fn files(&self) -> Vec<&Path> {
        let mut files = Vec::new();
        for source in self.groups.iter().flatten() {
            if let Source::File(file) = source {
                files.push(file.as_path());
            }
        }
        files
    }

    /// How many inputs there are, if it can be told without reading.
    pub(crate) fn count(&self) -> Option<u64> {
        let len = |source: &Source| match source {
            Source::Words(words) => Some(words.len() as u64),
            Source::File(_) => None,
        };
        let group = |group: &Vec<Source>| -> Option<u64> {
            let lens: Option<Vec<u64>> = group.iter().map(len).collect();
            lens?.into_iter().min()
        };
        let groups: Option<Vec<u64>> = self.groups.iter().map(group).collect();
        groups.filter(|groups| !groups.is_empty())?.into_iter().try_fold(1, u64::checked_mul)
    }

    /// Opens all of them.
    ///
    /// # Errors
    /// A file cannot be opened. One that cannot be read on is an error among the inputs.
    pub(crate) fn open(self, reading: &Reading) -> anyhow::Result<Inputs> {
        let open = |source| open(source, reading);
        let group = |group: Vec<Source>| group.into_iter().map(open).collect();
        let groups: Vec<Vec<Values>> =
            self.groups.into_iter().map(group).collect::<anyhow::Result<_>>()?;
        let mut groups = groups.into_iter().map(|group| rows(group, reading.colsep.clone()));
        let Some(first) = groups.next() else {
            return Ok(Box::new(iter::empty()));
        };
        let rest: Vec<Rows> = groups.collect();
        if rest.is_empty() {
            return Ok(Box::new(first.map(|row| row.map(Input::of))));
        }
        Ok(Box::new(product(first, rest)))
    }
}

fn open(source: Source, reading: &Reading) -> anyhow::Result<Values> {
    match source {
        Source::Words(words) => Ok(Box::new(words.into_iter().map(|word| Ok(word.into_vec())))),
        Source::File(file) => input::of_lines(&file, reading.lines),
    }
}

/// The lines of one file as inputs, each of one value.
pub(crate) fn lines(file: &Path, lines: Lines) -> anyhow::Result<Inputs> {
    let values = input::of_lines(file, lines)?;
    Ok(Box::new(values.map(|value| value.map(Input::one))))
}

/// The values of a group that belong together.
type Row = Vec<Vec<u8>>;
type Rows = Box<dyn Iterator<Item = io::Result<Row>> + Send>;

/// The rows of a group.
fn rows(mut group: Vec<Values>, colsep: Option<Regex>) -> Rows {
    Box::new(iter::from_fn(move || {
        let mut row = Row::new();
        for values in &mut group {
            let value = match values.next()? {
                Ok(value) => value,
                Err(error) => return Some(Err(error)),
            };
            match &colsep {
                Some(colsep) => row.extend(colsep.split(&value).map(<[u8]>::to_vec)),
                None => row.push(value),
            }
        }
        Some(Ok(row))
    }))
}

/// Each row of the first with each combination of the others.
fn product(mut first: Rows, rest: Vec<Rows>) -> impl Iterator<Item = io::Result<Input>> + Send {
    let mut unread = Some(rest);
    let mut rest: Vec<Vec<Row>> = Vec::new();
    let mut row: Option<Row> = None;
    let mut place = Vec::new();
    iter::from_fn(move || {
        if let Some(unread) = unread.take() {
            let read = unread.into_iter().map(Iterator::collect).collect::<io::Result<_>>();
            rest = match read {
                Ok(rows) => rows,
                Err(error) => return Some(Err(error)),
            };
            place = vec![0; rest.len()];
        }
        if rest.iter().any(Vec::is_empty) {
            return None;
        }
        if row.is_none() {
            match first.next()? {
                Ok(next) => row = Some(next),
                Err(error) => return Some(Err(error)),
            }
        }
        let others = place.iter().zip(&rest).flat_map(|(at, rows)| rows[*at].iter().cloned());
        let input = Input::of(row.iter().flatten().cloned().chain(others));
        if !step(&mut place, &rest) {
            row = None;
        }
        Some(Ok(input))
    })
}

/// Goes to the next combination; false after the last, and then it is at the first again.
fn step(place: &mut [usize], rows: &[Vec<Row>]) -> bool {
    for (at, rows) in place.iter_mut().zip(rows).rev() {
        *at += 1;
        if *at < rows.len() {
            return true;
        }
        *at = 0;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<OsString> {
        text.split(' ').map(OsString::from).collect()
    }

    /// The command, and the inputs with their values joined by spaces.
    fn inputs(line: &str, colsep: Option<&str>) -> (Vec<OsString>, Vec<String>) {
        let mut words = words(line);
        let sources = Sources::take(Vec::new(), &mut words);
        let lines = Lines { end: b'\n', len_max: 100 };
        let colsep = colsep.map(|pattern| Regex::new(pattern).unwrap());
        let count = sources.count();
        let inputs = sources.open(&Reading { lines, colsep }).unwrap();
        let text = |input: io::Result<Input>| {
            String::from_utf8(input.unwrap().joined().into_owned()).unwrap()
        };
        let inputs: Vec<String> = inputs.map(text).collect();
        assert_eq!(count, Some(inputs.len() as u64));
        (words, inputs)
    }

    #[test]
    fn inputs_stand_behind_three_colons() {
        let (command, inputs) = inputs("echo -n ::: a -- b", None);
        assert_eq!(command, words("echo -n"));
        assert_eq!(inputs, ["a", "--", "b"]);
    }

    #[test]
    fn without_sources_there_is_standard_input() {
        let mut command = words("echo a:::b");
        let sources = Sources::take(Vec::new(), &mut command);
        assert_eq!(sources.groups, [[Source::File("-".into())]]);
        let mut command = words("echo :::");
        let sources = Sources::take(Vec::new(), &mut command);
        assert_eq!(sources.groups, [[Source::Words(Vec::new())]]);
        let mut command = words("echo ::::");
        assert_eq!(Sources::take(Vec::new(), &mut command), Sources::default());
    }

    #[test]
    fn sources_are_multiplied_and_the_last_varies_fastest() {
        let expected = ["a 1", "a 2", "b 1", "b 2"];
        assert_eq!(inputs("echo ::: a b ::: 1 2", None).1, expected);
        let expected = ["a 1 x", "a 1 y", "a 2 x", "a 2 y"];
        assert_eq!(inputs("echo ::: a ::: 1 2 ::: x y", None).1, expected);
    }

    #[test]
    fn linked_sources_go_in_pairs_and_the_shortest_decides() {
        assert_eq!(inputs("echo ::: a b c :::+ 1 2", None).1, ["a 1", "b 2"]);
        let expected = ["a 1 x", "a 1 y", "b 2 x", "b 2 y"];
        assert_eq!(inputs("echo ::: a b :::+ 1 2 ::: x y", None).1, expected);
        let expected = ["x a 1", "x b 2"];
        assert_eq!(inputs("echo ::: x ::: a b :::+ 1 2", None).1, expected);
    }

    #[test]
    fn a_source_without_values_leaves_nothing() {
        assert!(inputs("echo ::: a b :::", None).1.is_empty());
        assert!(inputs("echo ::: ::: a b", None).1.is_empty());
        assert!(inputs("echo ::: a :::+", None).1.is_empty());
    }

    #[test]
    fn columns_are_split() {
        let (_, inputs) = inputs("echo ::: a,b c,,d, e ::: x;y", Some("[,;]"));
        assert_eq!(inputs, ["a b x y", "c  d  x y", "e x y"]);
    }

    #[test]
    fn standard_input_is_one_source() {
        let mut command = words("echo :::: - -");
        assert!(Sources::take(Vec::new(), &mut command).share_stdin());
        let mut command = words("echo :::: - :::+ -");
        assert!(!Sources::take(Vec::new(), &mut command).share_stdin());
    }
}
