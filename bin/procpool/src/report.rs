//! Lines for people: one line each on standard error, safe for a terminal.

use std::fmt::{self, Write as _};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use procpool::{EndedBy, JobError, Limit, Side};

use crate::exit_code;
use crate::progress;

/// How much of an input stands in a message.
const INPUT_MAX: usize = 200;
/// How much of a worker's last words.
const TAIL_MAX: usize = 300;

/// Prints `procpool: …` as one line. If standard error is gone, nobody can be told.
pub(crate) fn say(message: impl fmt::Display) {
    let mut line = String::from("procpool: ");
    escape(message.to_string().as_bytes(), &mut line);
    line.push('\n');
    let _ = progress::beside(|| io::stderr().write_all(line.as_bytes()));
}

/// Why nothing is run: what to say, and the exit code.
#[derive(Debug)]
pub(crate) struct Refusal {
    code: u8,
    message: String,
}

impl Refusal {
    pub(crate) fn new(code: u8, message: impl Into<String>) -> Refusal {
        Refusal { code, message: message.into() }
    }

    /// Says it; answers the exit code.
    pub(crate) fn say(&self) -> u8 {
        say(&self.message);
        self.code
    }
}

/// What could not be written, and why.
#[derive(Debug)]
pub(crate) enum Unwritable {
    Stdout(io::Error),
    File(PathBuf, io::Error),
}

impl Unwritable {
    pub(crate) fn file(path: &Path, error: io::Error) -> Unwritable {
        Unwritable::File(path.into(), error)
    }

    /// Says it; answers the exit code.
    pub(crate) fn say(&self) -> u8 {
        match self {
            // Whoever closed the pipe has seen enough.
            Unwritable::Stdout(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                return exit_code::CLOSED_PIPE;
            }
            Unwritable::Stdout(error) => {
                say(format_args!("cannot write to standard output: {error}"));
            }
            Unwritable::File(path, error) => {
                say(format_args!("cannot write `{}`: {error}", path.display()));
            }
        }
        exit_code::OUTPUT
    }
}

/// An input as a message shows it.
pub(crate) struct Shown<'a>(pub(crate) &'a [u8]);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        escape(&self.0[..self.0.len().min(INPUT_MAX)], &mut text);
        let cut = if self.0.len() > INPUT_MAX { "…" } else { "" };
        write!(f, "`{text}{cut}`")
    }
}

/// Control characters, marks that turn the direction of text, and what is not UTF-8 as escapes.
fn escape(bytes: &[u8], out: &mut String) {
    let is_unsafe = |c: char| {
        c.is_control()
            || matches!(c, '\u{200e}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            if is_unsafe(c) {
                out.extend(c.escape_default());
            } else {
                out.push(c);
            }
        }
        for byte in chunk.invalid() {
            // Writing to a String cannot fail.
            let _ = write!(out, "\\x{byte:02x}");
        }
    }
}

/// How a job ended without a value, told about `what`: "the command", or a task.
pub(crate) fn describe(error: &JobError, what: &str) -> String {
    match error {
        JobError::Panicked(panic) => {
            let place = panic.location.as_deref().unwrap_or("an unknown place");
            let aborted = if panic.aborted { " (and its worker aborted)" } else { "" };
            format!("{what} panicked at {place}: {}{aborted}", panic.message)
        }
        JobError::Died(death) => {
            let mut text = format!(
                "the worker (pid {}) of {what} died: {} {}",
                death.pid, death.status, death.phase
            );
            if let Some(detail) = &death.detail {
                text.push_str(&format!("; {detail}"));
            }
            let tail = death.stderr_tail.trim_end();
            if !tail.is_empty() {
                let start = tail.ceil_char_boundary(tail.len().saturating_sub(TAIL_MAX));
                let cut = if start > 0 { "…" } else { "" };
                text.push_str(&format!("; last stderr: \"{cut}{}\"", &tail[start..]));
            }
            text
        }
        JobError::TimedOut(timeout) => {
            let how = match timeout.ended_by {
                EndedBy::Kill => "killed",
                _ => "stopped",
            };
            match timeout.limit {
                Limit::Cpu => {
                    format!("{what} used up its CPU time of {:?} and was {how}", timeout.after)
                }
                _ => format!("{what} timed out after {:?} and was {how}", timeout.after),
            }
        }
        JobError::Cancelled { started: false } => "not run".into(),
        JobError::Cancelled { started: true } => format!("{what} was stopped"),
        JobError::Quarantined { attempts, last } => format!(
            "{what} killed {attempts} workers and is not tried again; the last time: {}",
            describe(last, what)
        ),
        JobError::Encode(error) if error.side == Side::Worker => {
            format!("the result of {what} does not fit: {}", error.message)
        }
        JobError::Decode(error) if error.side == Side::Worker => {
            format!("the argument does not fit {what}: {}", error.message)
        }
        JobError::Unregistered(_) => format!("the worker program has no {what}"),
        other => format!("{what}: {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_cannot_drive_a_terminal() {
        let mut text = String::new();
        escape("a\n\u{1b}[2J\u{202e}é\0".as_bytes(), &mut text);
        assert_eq!(text, "a\\n\\u{1b}[2J\\u{202e}é\\u{0}");
        assert_eq!(Shown(b"\xff\xc3ok").to_string(), "`\\xff\\xc3ok`");
    }

    #[test]
    fn long_inputs_are_cut() {
        let shown = Shown(&[b'x'; 300]).to_string();
        assert_eq!(shown, format!("`{}…`", "x".repeat(INPUT_MAX)));
    }
}
