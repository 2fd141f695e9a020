//! The placeholders of `procpool run`, with GNU parallel's meanings.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use serde::{Deserialize, Serialize};

/// A command with placeholders: the words of one.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Template {
    words: Vec<OsString>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Placeholder {
    Input,
    WithoutExtension,
    Basename,
    Dirname,
    Number,
}

const PLACEHOLDERS: [(&[u8], Placeholder); 5] = [
    (b"{}", Placeholder::Input),
    (b"{.}", Placeholder::WithoutExtension),
    (b"{/}", Placeholder::Basename),
    (b"{//}", Placeholder::Dirname),
    (b"{#}", Placeholder::Number),
];

impl Template {
    /// Without a placeholder in any of them, the words get the input as one more.
    pub(crate) fn new(mut words: Vec<OsString>) -> Template {
        if !words.iter().any(|word| has_placeholder(word.as_bytes())) {
            words.push("{}".into());
        }
        Template { words }
    }

    /// The program, if it is the same for every input.
    pub(crate) fn fixed_program(&self) -> Option<&OsString> {
        self.words.first().filter(|word| !has_placeholder(word.as_bytes()))
    }

    /// The words for one input.
    pub(crate) fn fill(&self, input: &[u8], number: u64) -> Vec<OsString> {
        let fill = |word: &OsString| OsString::from_vec(fill_word(word.as_bytes(), input, number));
        self.words.iter().map(fill).collect()
    }
}

fn has_placeholder(word: &[u8]) -> bool {
    (0..word.len()).any(|at| placeholder_at(&word[at..]).is_some())
}

fn placeholder_at(text: &[u8]) -> Option<(&'static [u8], Placeholder)> {
    PLACEHOLDERS.into_iter().find(|(name, _)| text.starts_with(name))
}

fn fill_word(word: &[u8], input: &[u8], number: u64) -> Vec<u8> {
    let mut filled = Vec::with_capacity(word.len() + input.len());
    let mut rest = word;
    while let Some(&first) = rest.first() {
        let Some((name, placeholder)) = placeholder_at(rest) else {
            filled.push(first);
            rest = &rest[1..];
            continue;
        };
        rest = &rest[name.len()..];
        match placeholder {
            Placeholder::Input => filled.extend_from_slice(input),
            Placeholder::WithoutExtension => filled.extend_from_slice(without_extension(input)),
            Placeholder::Basename => filled.extend_from_slice(basename(input)),
            Placeholder::Dirname => filled.extend_from_slice(dirname(input)),
            Placeholder::Number => filled.extend_from_slice(number.to_string().as_bytes()),
        }
    }
    filled
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

    fn filled(words: &[&str], input: &str) -> Vec<String> {
        let template = Template::new(words.iter().map(OsString::from).collect());
        let words = template.fill(input.as_bytes(), 7);
        words.into_iter().map(|word| word.into_string().unwrap()).collect()
    }

    #[test]
    fn without_a_placeholder_the_input_is_the_last_word() {
        assert_eq!(filled(&["echo", "-n"], "x y"), ["echo", "-n", "x y"]);
        assert_eq!(filled(&["echo", "{#}"], "x"), ["echo", "7"]);
    }

    #[test]
    fn placeholders_mean_what_they_mean_to_gnu_parallel() {
        let all = ["{}", "{.}", "{/}", "{//}", "{#}"];
        let cases = [
            ("d/a.tar.gz", ["d/a.tar.gz", "d/a.tar", "a.tar.gz", "d", "7"]),
            ("d.x/a", ["d.x/a", "d.x/a", "a", "d.x", "7"]),
            ("a", ["a", "a", "a", ".", "7"]),
            ("/a", ["/a", "/a", "a", "/", "7"]),
            ("/", ["/", "/", "", "/", "7"]),
            ("a//b/", ["a//b/", "a//b/", "", "a", "7"]),
            ("", ["", "", "", ".", "7"]),
        ];
        for (input, expected) in cases {
            assert_eq!(filled(&all, input), expected, "{input:?}");
        }
    }

    #[test]
    fn placeholders_stand_anywhere_and_are_not_filled_twice() {
        assert_eq!(filled(&["a{}b{#}{}"], "{#}"), ["a{#}b7{#}"]);
        assert_eq!(filled(&["{{}}", "{/.}", "{1}", "{"], "x"), ["{x}", "{/.}", "{1}", "{"]);
    }
}
