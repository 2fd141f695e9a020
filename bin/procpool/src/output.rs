//! Where what a job has printed goes, and in which form: standard output and error, tagged or not, an object of
//! JSON, files.

use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};

use crate::capture::Captured;
use crate::lines::Tagger;
use crate::progress;
use crate::record::{Record, Text};
use crate::report::{self, Unwritable};
use crate::results::Results;
use crate::spill::{Spill, Stream};
use crate::text;
use crate::work::Job;

/// How the output of commands is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Plain,
    Tagged,
    Json,
    /// Workers print it themselves, line by line.
    Streamed,
}

/// What prints the output of commands.
#[derive(Debug)]
pub(crate) struct Printer {
    pub(crate) form: Form,
    pub(crate) results: Option<Results>,
    pub(crate) spill: Spill,
}

/// One stream of a job.
enum Piece {
    Inline(Vec<u8>),
    File(File),
    Lost(io::Error),
}

impl Piece {
    fn copy(&mut self, to: &mut impl Write) -> io::Result<()> {
        match self {
            Piece::Inline(bytes) if bytes.is_empty() => return Ok(()),
            Piece::Inline(bytes) => to.write_all(bytes)?,
            Piece::File(file) => {
                file.seek(SeekFrom::Start(0))?;
                io::copy(file, to)?;
            }
            Piece::Lost(_) => return Ok(()),
        }
        // Whole outputs are not held back for the next.
        to.flush()
    }

    fn json(&mut self, to: &mut impl Write) -> io::Result<()> {
        match self {
            Piece::Inline(bytes) => Ok(serde_json::to_writer(to, &Text::of(bytes))?),
            Piece::File(file) => {
                file.seek(SeekFrom::Start(0))?;
                text::write_json(file, to)
            }
            Piece::Lost(_) => to.write_all(b"null"),
        }
    }
}

impl Printer {
    /// Prints what a job has left. Its files have no names from then on.
    pub(crate) fn print(
        &self,
        job: &Job,
        [stdout, stderr]: [Captured; 2],
        record: &Record,
    ) -> Result<(), Unwritable> {
        let mut stdout = self.piece(job, Stream::Stdout, stdout);
        let mut stderr = self.piece(job, Stream::Stderr, stderr);
        for piece in [&stdout, &stderr] {
            if let Piece::Lost(error) = piece {
                report::say(format_args!("job {}: its output is lost: {error}", job.number));
            }
        }
        let is_quiet = matches!(&stderr, Piece::Inline(bytes) if bytes.is_empty());
        let print = || self.print_pieces(job, &mut stdout, &mut stderr, record);
        // Where there is a bar, standard error is the terminal.
        let printed = match is_quiet {
            true => progress::beside_output(print),
            false => progress::beside(print),
        };
        printed.map_err(Unwritable::Stdout)?;
        if let Some(results) = &self.results {
            keep(results, &mut stdout, &mut stderr, record)
                .map_err(|error| Unwritable::file(results.dir(), error))?;
        }
        Ok(())
    }

    fn print_pieces(
        &self,
        job: &Job,
        stdout: &mut Piece,
        stderr: &mut Piece,
        record: &Record,
    ) -> io::Result<()> {
        let tag = match self.form {
            Form::Plain => Vec::new(),
            Form::Tagged => job.tag(),
            Form::Streamed => return Ok(()),
            Form::Json => {
                let mut out = BufWriter::new(io::stdout().lock());
                let json = record.json();
                out.write_all(json.strip_suffix('}').unwrap_or(&json).as_bytes())?;
                for (name, piece) in [("stdout", stdout), ("stderr", stderr)] {
                    write!(out, ",\"{name}\":")?;
                    piece.json(&mut out)?;
                }
                out.write_all(b"}\n")?;
                return out.flush();
            }
        };
        let result = match tag.is_empty() {
            true => stdout.copy(&mut io::stdout().lock()),
            false => {
                stdout.copy(&mut Tagger::new(BufWriter::new(io::stdout().lock()), tag.clone()))
            }
        };
        // If standard error is gone, nobody can be told.
        let _ = stderr.copy(&mut Tagger::new(io::stderr().lock(), tag));
        result
    }

    fn piece(&self, job: &Job, stream: Stream, captured: Captured) -> Piece {
        match captured {
            Captured::Inline(bytes) => Piece::Inline(bytes),
            Captured::Spilled => match self.spill.take(job.number, stream) {
                Ok(Some(file)) => Piece::File(file),
                Ok(None) => Piece::Inline(Vec::new()),
                Err(error) => Piece::Lost(error),
            },
        }
    }
}

fn keep(
    results: &Results,
    stdout: &mut Piece,
    stderr: &mut Piece,
    record: &Record,
) -> io::Result<()> {
    let (mut out, mut err) = results.begin(record.seq)?;
    stdout.copy(&mut out)?;
    stderr.copy(&mut err)?;
    results.finish(record)
}
