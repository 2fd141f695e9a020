//! The placeholders of `procpool run`, with GNU parallel's meanings.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use serde::{Deserialize, Serialize};

use crate::input::Input;
use crate::quote::push_quoted;

/// What understands the line that `--shell` makes.
const SHELL: [&str; 2] = ["/bin/sh", "-c"];

/// A command with placeholders.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Template {
    words: Vec<Vec<Piece>>,
    reader: Reader,
}

/// Who reads the words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Reader {
    /// The command itself: each word is an argument.
    Command,
    /// A shell: the words are a line, and what fills the placeholders is quoted.
    Shell,
}

/// What a word is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum Piece {
    Text(#[serde(with = "serde_bytes")] Vec<u8>),
    Value(Which, Form),
    /// `{#}`: the job's number, from 1.
    Number,
    /// `{%}`: the slot that the job runs in, from 1.
    Slot,
}

/// Which of an input's values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Which {
    All,
    /// From 1.
    FromStart(usize),
    /// From 1, which is the last.
    FromEnd(usize),
}

/// What of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Form {
    Whole,
    WithoutExtension,
    Basename,
    Dirname,
    BasenameWithoutExtension,
}

const FORMS: [(&[u8], Form); 5] = [
    (b"}", Form::Whole),
    (b".}", Form::WithoutExtension),
    (b"/}", Form::Basename),
    (b"//}", Form::Dirname),
    (b"/.}", Form::BasenameWithoutExtension),
];

/// A job's places in the batch, beside its input.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    /// Of the job, from 1.
    pub(crate) number: u64,
    /// From 1.
    pub(crate) slot: usize,
}

impl Template {
    /// Without a placeholder in any of them, the words get the input as one more.
    pub(crate) fn new(words: Vec<OsString>, reader: Reader) -> Template {
        let mut words: Vec<Vec<Piece>> = words.iter().map(|word| parse(word.as_bytes())).collect();
        if words.iter().flatten().all(|piece| matches!(piece, Piece::Text(_))) {
            words.push(vec![Piece::Value(Which::All, Form::Whole)]);
        }
        Template { words, reader }
    }

    /// The program, if it is the same for every input.
    pub(crate) fn fixed_program(&self) -> Option<OsString> {
        match (self.reader, &self.words[0][..]) {
            (Reader::Shell, _) => Some(SHELL[0].into()),
            (Reader::Command, []) => Some(OsString::new()),
            (Reader::Command, [Piece::Text(text)]) => Some(OsString::from_vec(text.clone())),
            (Reader::Command, _) => None,
        }
    }

    /// The command for one input: the program and its arguments.
    pub(crate) fn fill(&self, input: &Input, place: Place) -> Vec<OsString> {
        match self.reader {
            Reader::Command => self.arguments(input, place),
            Reader::Shell => {
                let line = OsString::from_vec(self.line(input, place));
                SHELL.into_iter().map(OsString::from).chain([line]).collect()
            }
        }
    }

    /// The command for one input, as a shell would have to be given it.
    pub(crate) fn shell_line(&self, input: &Input, place: Place) -> Vec<u8> {
        match self.reader {
            Reader::Shell => self.line(input, place),
            Reader::Command => {
                let mut line = Vec::new();
                for word in self.arguments(input, place) {
                    if !line.is_empty() {
                        line.push(b' ');
                    }
                    push_quoted(&mut line, word.as_bytes());
                }
                line
            }
        }
    }

    /// A word that is nothing but a placeholder for all values becomes a word for each; within a word they
    /// are joined by spaces.
    fn arguments(&self, input: &Input, place: Place) -> Vec<OsString> {
        let mut arguments = Vec::with_capacity(self.words.len());
        for word in &self.words {
            if let [Piece::Value(Which::All, form)] = word[..] {
                let values = input.values().map(|value| form.of(value).to_vec());
                arguments.extend(values.map(OsString::from_vec));
                continue;
            }
            let mut argument = Vec::new();
            for piece in word {
                piece.fill(input, place, &mut argument, |value, out| out.extend_from_slice(value));
            }
            arguments.push(OsString::from_vec(argument));
        }
        arguments
    }

    fn line(&self, input: &Input, place: Place) -> Vec<u8> {
        let mut line = Vec::new();
        for (n, word) in self.words.iter().enumerate() {
            if n > 0 {
                line.push(b' ');
            }
            for piece in word {
                piece.fill(input, place, &mut line, |value, out| push_quoted(out, value));
            }
        }
        line
    }
}

impl Piece {
    /// Adds what it stands for; `put` adds a value.
    fn fill(&self, input: &Input, place: Place, out: &mut Vec<u8>, put: fn(&[u8], &mut Vec<u8>)) {
        match self {
            Piece::Text(text) => out.extend_from_slice(text),
            Piece::Number => out.extend_from_slice(place.number.to_string().as_bytes()),
            Piece::Slot => out.extend_from_slice(place.slot.to_string().as_bytes()),
            Piece::Value(Which::All, form) => {
                for (n, value) in input.values().enumerate() {
                    if n > 0 {
                        out.push(b' ');
                    }
                    put(form.of(value), out);
                }
            }
            Piece::Value(Which::FromStart(at), form) => {
                // One that the input does not have is nothing.
                if let Some(value) = input.values().nth(at - 1) {
                    put(form.of(value), out);
                }
            }
            Piece::Value(Which::FromEnd(at), form) => {
                if let Some(value) = input.values().rev().nth(at - 1) {
                    put(form.of(value), out);
                }
            }
        }
    }
}

impl Form {
    fn of(self, value: &[u8]) -> &[u8] {
        match self {
            Form::Whole => value,
            Form::WithoutExtension => without_extension(value),
            Form::Basename => basename(value),
            Form::Dirname => dirname(value),
            Form::BasenameWithoutExtension => without_extension(basename(value)),
        }
    }
}

fn parse(word: &[u8]) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut text = Vec::new();
    let mut rest = word;
    while let Some((&first, after)) = rest.split_first() {
        let Some((piece, len)) = placeholder(rest) else {
            text.push(first);
            rest = after;
            continue;
        };
        if !text.is_empty() {
            pieces.push(Piece::Text(std::mem::take(&mut text)));
        }
        pieces.push(piece);
        rest = &rest[len..];
    }
    if !text.is_empty() {
        pieces.push(Piece::Text(text));
    }
    pieces
}

/// The placeholder that `text` begins with, and its length.
fn placeholder(text: &[u8]) -> Option<(Piece, usize)> {
    let inner = text.strip_prefix(b"{")?;
    if inner.starts_with(b"#}") {
        return Some((Piece::Number, 3));
    }
    if inner.starts_with(b"%}") {
        return Some((Piece::Slot, 3));
    }
    let sign_len = usize::from(inner.starts_with(b"-"));
    let digits = inner[sign_len..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    let number = str::from_utf8(&inner[sign_len..sign_len + digits]).ok()?.parse().unwrap_or(0);
    let which = match (sign_len, digits) {
        (0, 0) => Which::All,
        // Also `{-}`, and a number that no input has.
        _ if number == 0 => return None,
        (0, _) => Which::FromStart(number),
        _ => Which::FromEnd(number),
    };
    let rest = &inner[sign_len + digits..];
    let (end, form) = FORMS.into_iter().find(|(end, _)| rest.starts_with(end))?;
    Some((Piece::Value(which, form), 1 + sign_len + digits + end.len()))
}

/// `dir/a.tar.gz` is `dir/a.tar`; a dot in a directory's name ends no extension.
fn without_extension(path: &[u8]) -> &[u8] {
    match path.iter().rposition(|byte| matches!(byte, b'.' | b'/')) {
        Some(at) if path[at] == b'.' => &path[..at],
        _ => path,
    }
}

/// What follows the last slash, also if that is nothing.
fn basename(path: &[u8]) -> &[u8] {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => &path[at + 1..],
        None => path,
    }
}

/// As dirname(1): `a/b/` is in `a`, `b` is in `.`, and `/` in `/`.
fn dirname(path: &[u8]) -> &[u8] {
    let path = without_slashes(path);
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => without_slashes(&path[..=at]),
        None => b".",
    }
}

/// Without the slashes at its end, except one that is all there is.
fn without_slashes(path: &[u8]) -> &[u8] {
    let mut path = path;
    while let [rest @ .., b'/'] = path
        && !rest.is_empty()
    {
        path = rest;
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: Place = Place { number: 7, slot: 2 };

    fn template(words: &[&str], reader: Reader) -> Template {
        Template::new(words.iter().map(OsString::from).collect(), reader)
    }

    fn input(values: &[&str]) -> Input {
        Input::of(values.iter().map(|value| value.as_bytes().to_vec()))
    }

    fn filled(words: &[&str], values: &[&str]) -> Vec<String> {
        let words = template(words, Reader::Command).fill(&input(values), PLACE);
        words.into_iter().map(|word| word.into_string().unwrap()).collect()
    }

    fn line(words: &[&str], values: &[&str], reader: Reader) -> String {
        String::from_utf8(template(words, reader).shell_line(&input(values), PLACE)).unwrap()
    }

    #[test]
    fn without_a_placeholder_the_input_is_the_last_word() {
        assert_eq!(filled(&["echo", "-n"], &["x y"]), ["echo", "-n", "x y"]);
        assert_eq!(filled(&["echo", "{#}"], &["x"]), ["echo", "7"]);
        assert_eq!(filled(&["echo"], &["x y", "z"]), ["echo", "x y", "z"]);
    }

    #[test]
    fn placeholders_mean_what_they_mean_to_gnu_parallel() {
        let all = ["{}", "{.}", "{/}", "{//}", "{/.}", "{#}", "{%}"];
        let cases = [
            ("d/a.tar.gz", ["d/a.tar.gz", "d/a.tar", "a.tar.gz", "d", "a.tar", "7", "2"]),
            ("d.x/a", ["d.x/a", "d.x/a", "a", "d.x", "a", "7", "2"]),
            ("a", ["a", "a", "a", ".", "a", "7", "2"]),
            ("/a", ["/a", "/a", "a", "/", "a", "7", "2"]),
            ("/", ["/", "/", "", "/", "", "7", "2"]),
            ("a//b/", ["a//b/", "a//b/", "", "a", "", "7", "2"]),
            ("", ["", "", "", ".", "", "7", "2"]),
        ];
        for (value, expected) in cases {
            assert_eq!(filled(&all, &[value]), expected, "{value:?}");
        }
    }

    #[test]
    fn values_have_numbers_from_both_ends() {
        let words = ["{2}", "{1.}{-1/.}", "{-2//}", "{3}"];
        assert_eq!(filled(&words, &["d/a.b", "e/c.d"]), ["e/c.d", "d/ac", "d", ""]);
    }

    #[test]
    fn within_a_word_all_values_are_joined() {
        assert_eq!(filled(&["<{}>", "{/}"], &["a/b c", "d"]), ["<a/b c d>", "b c", "d"]);
    }

    #[test]
    fn placeholders_stand_anywhere_and_are_not_filled_twice() {
        assert_eq!(filled(&["a{}b{#}{}"], &["{#}"]), ["a{#}b7{#}"]);
        assert_eq!(
            filled(&["{{}}", "{0}", "{-}", "{1", "{"], &["x"]),
            ["{x}", "{0}", "{-}", "{1", "{"]
        );
        assert_eq!(
            filled(&["{99999999999999999999999}{}"], &["x"]),
            ["{99999999999999999999999}x"]
        );
    }

    #[test]
    fn a_shell_gets_one_line_with_quoted_values() {
        let words =
            template(&["echo {} | tr a b", "$x"], Reader::Shell).fill(&input(&["a b", "c"]), PLACE);
        assert_eq!(words, ["/bin/sh", "-c", "echo 'a b' c | tr a b $x"]);
    }

    #[test]
    fn a_line_can_be_given_to_a_shell() {
        let command = ["printf", "%s|", "{}"];
        assert_eq!(line(&command, &["it's", "b"], Reader::Command), r"printf '%s|' 'it'\''s' b");
        assert_eq!(line(&["echo", "<{2}>"], &["a", "b c"], Reader::Shell), "echo <'b c'>");
    }
}
