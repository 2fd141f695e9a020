//! `--report FILE`: one page of HTML that needs nothing else: summary, timeline, run times, slowest and failed jobs.
//!
//! What is read is written here, as text that stands in the page; the two drawings are made by the page's own
//! script from the numbers of each job. About a hundred bytes a job are kept for that until the end.

use std::collections::BinaryHeap;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::record::{Outcome, Record};

/// How many of the slowest jobs are listed.
const SLOWEST: usize = 20;
/// How many of the failed jobs are listed: more than anybody reads, and the joblog has them all.
const FAILED_MAX: usize = 500;
/// How much of an input stands in the page, in characters.
const INPUT_MAX: usize = 120;

const STYLE: &str = include_str!("page/style.css");
const SCRIPT: &str = include_str!("page/script.js");

/// Outcomes as the page calls them, in the order of the script's colours.
const OUTCOMES: [(Outcome, &str); 6] = [
    (Outcome::Succeeded, "succeeded"),
    (Outcome::Failed, "failed"),
    (Outcome::Died, "died"),
    (Outcome::Panicked, "panicked"),
    (Outcome::TimedOut, "timed out"),
    (Outcome::Stopped, "stopped"),
];

/// The page of a batch that is under way.
#[derive(Debug)]
pub(crate) struct Page {
    path: PathBuf,
    /// The command line, as a person would type it.
    title: String,
    begun: SystemTime,
    jobs: Vec<Row>,
    /// The fastest of the slowest comes first.
    slowest: BinaryHeap<std::cmp::Reverse<(Duration, u64, String)>>,
    failed: Vec<Record>,
    cpu: Duration,
}

/// A job in the drawings.
#[derive(Debug)]
struct Row {
    seq: u64,
    slot: usize,
    start: SystemTime,
    run: Duration,
    outcome: usize,
    input: String,
}

impl Page {
    /// Makes sure that it can be written at the end.
    pub(crate) fn create(path: &Path, title: String) -> io::Result<Page> {
        fs::write(
            path,
            "<!doctype html><title>procpool</title>The batch has not ended, or was killed.\n",
        )?;
        Ok(Page {
            path: path.into(),
            title,
            begun: SystemTime::now(),
            jobs: Vec::new(),
            slowest: BinaryHeap::new(),
            failed: Vec::new(),
            cpu: Duration::ZERO,
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn add(&mut self, record: &Record) {
        let text = String::from_utf8_lossy(&record.input.joined()).into_owned();
        let mut input: String = text.chars().take(INPUT_MAX).collect();
        if input.len() < text.len() {
            input.push('…');
        }
        let outcome = OUTCOMES.iter().position(|(outcome, _)| *outcome == record.outcome);
        self.cpu += record.cpu.unwrap_or_default();
        self.slowest.push(std::cmp::Reverse((record.run, record.seq, input.clone())));
        if self.slowest.len() > SLOWEST {
            self.slowest.pop();
        }
        if record.outcome != Outcome::Succeeded && self.failed.len() < FAILED_MAX {
            self.failed.push(record.clone());
        }
        self.jobs.push(Row {
            seq: record.seq,
            slot: record.slot.unwrap_or(0),
            start: record.start,
            run: record.run,
            outcome: outcome.expect("every outcome is there"),
            input,
        });
    }

    /// Writes the page.
    pub(crate) fn finish(&self) -> io::Result<()> {
        fs::write(&self.path, self.html())
    }

    fn html(&self) -> String {
        let mut html = String::with_capacity(64 * 1024 + self.jobs.len() * 100);
        let title = Escaped(&self.title);
        // Writing to a String cannot fail, here and below.
        let _ = write!(
            html,
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <link rel=\"icon\" href=\"data:,\">\n\
             <title>procpool: {title}</title>\n<style>{STYLE}</style></head>\n<body><main>\n\
             <h1><code>{title}</code></h1>\n"
        );
        self.summary(&mut html);
        html.push_str(
            "<section><h2>Timeline</h2>\n<p class=\"note\">Each row is a slot, each bar a job.</p>\n\
             <canvas id=\"timeline\" role=\"img\" aria-label=\"What ran when, in which slot\"></canvas>\n\
             <p id=\"about\" class=\"note\">&nbsp;</p></section>\n\
             <section><h2>Run times</h2>\n\
             <canvas id=\"histogram\" role=\"img\" aria-label=\"How many jobs ran how long\"></canvas></section>\n",
        );
        self.failures(&mut html);
        self.slow(&mut html);
        html.push_str("</main>\n<script type=\"application/json\" id=\"jobs\">");
        self.data(&mut html);
        let _ = write!(html, "</script>\n<script>{SCRIPT}</script>\n</body></html>\n");
        html
    }

    fn summary(&self, html: &mut String) {
        let ends = self.jobs.iter().map(|job| job.start + job.run);
        let end = ends.max().unwrap_or(self.begun);
        let wall = end.duration_since(self.begun).unwrap_or_default();
        let mut facts = vec![(self.jobs.len().to_string(), "jobs", String::new())];
        for (n, (_, name)) in OUTCOMES.iter().enumerate() {
            let count = self.jobs.iter().filter(|job| job.outcome == n).count();
            if count > 0 {
                facts.push((count.to_string(), *name, format!("<i class=\"mark o{n}\"></i>")));
            }
        }
        facts.push((Spent(wall).to_string(), "wall time", String::new()));
        facts.push((Spent(self.cpu).to_string(), "CPU time", String::new()));
        let rate = self.jobs.len() as f64 / wall.as_secs_f64().max(0.001);
        facts.push((format!("{rate:.1}"), "jobs/s", String::new()));
        html.push_str("<dl class=\"facts\">\n");
        for (number, name, mark) in facts {
            let _ = writeln!(html, "<div><dt>{mark}{name}</dt><dd>{number}</dd></div>");
        }
        html.push_str("</dl>\n");
    }

    fn failures(&self, html: &mut String) {
        let count = self.jobs.iter().filter(|job| job.outcome != 0).count();
        if count == 0 {
            return;
        }
        let _ = writeln!(html, "<section><h2>Failed jobs</h2>");
        if count > self.failed.len() {
            let listed = self.failed.len();
            let _ = writeln!(html, "<p class=\"note\">The first {listed} of {count}.</p>");
        }
        html.push_str("<ol class=\"failed\">\n");
        for record in &self.failed {
            let outcome = OUTCOMES.iter().position(|(outcome, _)| *outcome == record.outcome);
            let input = String::from_utf8_lossy(&record.input.joined()).into_owned();
            let (seq, run) = (record.seq, Spent(record.run));
            let error = Escaped(record.error.as_deref().unwrap_or(""));
            let _ = write!(
                html,
                "<li><i class=\"mark o{}\"></i><b>job {seq}</b> <code>{}</code><p>{error} <span class=\"note\">\
                 after {run}, attempt {}</span></p>",
                outcome.unwrap_or(0),
                Escaped(&input.chars().take(INPUT_MAX).collect::<String>()),
                record.attempts,
            );
            if !record.stderr_tail.trim().is_empty() {
                let _ = write!(html, "<pre>{}</pre>", Escaped(record.stderr_tail.trim_end()));
            }
            html.push_str("</li>\n");
        }
        html.push_str("</ol></section>\n");
    }

    fn slow(&self, html: &mut String) {
        let mut slowest: Vec<_> = self.slowest.iter().map(|slow| &slow.0).collect();
        slowest.sort_by(|a, b| b.cmp(a));
        html.push_str("<section><h2>Slowest jobs</h2>\n<ol class=\"slow\">\n");
        for (run, seq, input) in slowest {
            let (run, input) = (Spent(*run), Escaped(input));
            let _ = writeln!(html, "<li><b>{run}</b> job {seq} <code>{input}</code></li>");
        }
        html.push_str("</ol></section>\n");
    }

    /// For the script: the jobs in the order of their starts, times in milliseconds from the first.
    fn data(&self, html: &mut String) {
        let mut jobs: Vec<&Row> = self.jobs.iter().filter(|job| job.slot > 0).collect();
        jobs.sort_by_key(|job| job.start);
        let zero = jobs.first().map_or(self.begun, |job| job.start);
        html.push('[');
        for (n, job) in jobs.iter().enumerate() {
            let start = job.start.duration_since(zero).unwrap_or_default().as_micros() as f64 / 1e3;
            let run = job.run.as_micros() as f64 / 1e3;
            let comma = if n > 0 { ",\n" } else { "" };
            // `<` could end the element that it stands in.
            let input = serde_json::Value::from(&job.input[..]).to_string().replace('<', "\\u003c");
            let (seq, slot, outcome) = (job.seq, job.slot, job.outcome);
            let _ = write!(html, "{comma}[{seq},{slot},{start},{run},{outcome},{input}]");
        }
        html.push(']');
    }
}

/// Text in HTML. Control characters that a page may not have are left out.
struct Escaped<'a>(&'a str);

impl std::fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for c in self.0.chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\n' | '\t' => f.write_char(c)?,
                c if c.is_control() => f.write_char('\u{fffd}')?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

/// A duration with three digits or so.
struct Spent(Duration);

impl std::fmt::Display for Spent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let seconds = self.0.as_secs_f64();
        match seconds {
            0.0..0.01 => write!(f, "{:.1} ms", seconds * 1e3),
            0.01..1.0 => write!(f, "{:.0} ms", seconds * 1e3),
            1.0..100.0 => write!(f, "{seconds:.1} s"),
            100.0..6000.0 => write!(f, "{:.1} min", seconds / 60.0),
            _ => write!(f, "{:.1} h", seconds / 3600.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::Input;
    use crate::record::{Run, Verdict};

    #[test]
    fn nothing_that_a_job_says_is_taken_for_the_page() {
        let dir = tempfile::tempdir().unwrap();
        let evil = "</script><script>alert(1)</script>&\"\u{1}";
        let mut page = Page::create(&dir.path().join("page.html"), evil.into()).unwrap();
        let run = Run { slot: Some(1), run: Duration::from_millis(5), ..Run::none() };
        let input = Input::one(evil.as_bytes().to_vec());
        page.add(&Record::new(1, input, run, Verdict::failure(evil), evil.into()));
        let html = page.html();
        assert_eq!(html.matches("<script").count(), 2);
        assert_eq!(html.matches("</script>").count(), 2);
        assert!(!html.contains('\u{1}'));
    }

    #[test]
    fn the_slowest_are_the_slowest() {
        let dir = tempfile::tempdir().unwrap();
        let mut page = Page::create(&dir.path().join("page.html"), String::new()).unwrap();
        for ms in (0..100).rev().chain(100..200) {
            let run = Run { slot: Some(1), run: Duration::from_millis(ms), ..Run::none() };
            let input = Input::one(ms.to_string().into_bytes());
            page.add(&Record::new(ms, input, run, Verdict::success(), String::new()));
        }
        let mut html = String::new();
        page.slow(&mut html);
        assert_eq!(html.matches("<li>").count(), SLOWEST);
        let first = html.find("job 199").unwrap();
        assert!(html.find("job 180").unwrap() > first && !html.contains("job 179"));
    }
}
