//! How far the batch is: a bar on a terminal, now and then a line elsewhere.

use std::io::{self, IsTerminal};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::report::{self, Shown};

/// How often the bar is brought up to date. The first time, too: a batch that is over by then shows none.
const BAR_EVERY: Duration = Duration::from_millis(250);
/// How often a line is printed where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);
/// The most slots that have a line of their own: a quarter of a usual terminal.
const SLOTS_MAX: usize = 6;

/// The bar that is on the screen, which other lines must not run into.
static SCREEN: OnceLock<MultiProgress> = OnceLock::new();

/// Prints something while the bar is out of the way. What prints must not call this again: the bar is locked.
pub(crate) fn beside<R>(print: impl FnOnce() -> R) -> R {
    match SCREEN.get() {
        Some(screen) => screen.suspend(print),
        None => print(),
    }
}

/// The same for standard output, which is in its way only if it is a terminal.
pub(crate) fn beside_output<R>(print: impl FnOnce() -> R) -> R {
    if SCREEN.get().is_some() && io::stdout().is_terminal() { beside(print) } else { print() }
}

/// Takes the bar off the screen.
pub(crate) fn clear() {
    if let Some(screen) = SCREEN.get() {
        // It fails if the terminal has gone, and the bar with it.
        let _ = screen.clear();
    }
}

/// What a batch has done so far.
#[derive(Debug)]
pub(crate) struct State<'a> {
    /// Jobs that have ended in this run.
    pub(crate) done: u64,
    pub(crate) failed: u64,
    /// Inputs that need no job: most of them, because an earlier run has finished them.
    pub(crate) skipped: u64,
    pub(crate) total: Option<u64>,
    /// The slots with jobs: number, input.
    pub(crate) slots: Vec<(usize, &'a [u8])>,
}

#[derive(Debug)]
pub(crate) struct Progress {
    begun: Instant,
    next: Option<Instant>,
    form: Form,
    /// What each slot showed last, and since when.
    slots: Vec<Option<(Vec<u8>, Instant)>>,
}

#[derive(Debug)]
enum Form {
    Bar(Option<Bar>),
    Lines,
    Nothing,
}

#[derive(Debug)]
struct Bar {
    all: ProgressBar,
    slots: Vec<ProgressBar>,
}

/// What is shown of the progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Show {
    /// A bar if standard error is a terminal, else lines
    Auto,
    /// A line every ten seconds
    Lines,
    /// Nothing
    Never,
}

impl Progress {
    /// `has_terminal` says whether the terminal is free for a bar.
    pub(crate) fn new(show: Show, has_terminal: bool) -> Progress {
        let now = Instant::now();
        let (form, next) = match show {
            Show::Never => (Form::Nothing, None),
            Show::Auto if has_terminal && io::stderr().is_terminal() => {
                (Form::Bar(None), Some(now + BAR_EVERY))
            }
            Show::Auto | Show::Lines => (Form::Lines, Some(now + LINE_EVERY)),
        };
        Progress { begun: now, next, form, slots: Vec::new() }
    }

    /// When it wants to be shown next.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.next
    }

    /// The program was stopped for so long, which is no part of any time that is shown.
    pub(crate) fn put_off(&mut self, by: Duration) {
        self.begun += by;
        for (_, since) in self.slots.iter_mut().flatten() {
            *since += by;
        }
    }

    /// Shows it. Call it when it is time.
    pub(crate) fn show(&mut self, state: &State<'_>, now: Instant) {
        let text = text(state, now - self.begun);
        let slots = self.slot_lines(state, now);
        match &mut self.form {
            Form::Nothing => {}
            Form::Lines => {
                self.next = Some(now + LINE_EVERY);
                report::say(format_args!("{text}; {} running", state.slots.len()));
            }
            Form::Bar(bar) => {
                self.next = Some(now + BAR_EVERY);
                bar.get_or_insert_with(Bar::new).show(state, text, &slots);
            }
        }
    }

    /// What the slots do, and since when, as far as it is shown.
    fn slot_lines(&mut self, state: &State<'_>, now: Instant) -> Vec<String> {
        let mut lines = Vec::new();
        for (slot, input) in &state.slots {
            if self.slots.len() <= *slot {
                self.slots.resize(*slot + 1, None);
            }
            let known = &mut self.slots[*slot];
            if known.as_ref().is_none_or(|(known, _)| known != input) {
                *known = Some((input.to_vec(), now));
            }
            let since = known.as_ref().map_or(now, |(_, since)| *since);
            lines.push(format!("slot {slot}: {} {}", clock(now - since), Shown(input)));
        }
        if lines.len() > SLOTS_MAX {
            let more = lines.len() - (SLOTS_MAX - 1);
            lines.truncate(SLOTS_MAX - 1);
            lines.push(format!("and {more} more"));
        }
        lines
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        clear();
    }
}

impl Bar {
    fn new() -> Bar {
        let screen =
            SCREEN.get_or_init(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr()));
        let all = screen.add(ProgressBar::no_length());
        Bar { all, slots: Vec::new() }
    }

    fn show(&mut self, state: &State<'_>, text: String, slots: &[String]) {
        let template = match state.total {
            Some(_) => "{bar:24} {percent:>3}% {wide_msg}",
            None => "{wide_msg}",
        };
        let style = |template| ProgressStyle::with_template(template).expect("it is well-formed");
        self.all.set_style(style(template).progress_chars("█▓░"));
        if let Some(total) = state.total {
            self.all.set_length(total);
            self.all.set_position(state.done + state.skipped);
        }
        self.all.set_message(text);
        while self.slots.len() < slots.len() {
            let Some(screen) = SCREEN.get() else { return };
            let bar = screen.add(ProgressBar::no_length());
            bar.set_style(style("  {wide_msg}"));
            self.slots.push(bar);
        }
        for (n, bar) in self.slots.iter().enumerate() {
            bar.set_message(slots.get(n).cloned().unwrap_or_default());
        }
    }
}

/// `12 of 100 done, 1 failed, 4.2/s, 0:21 left`.
fn text(state: &State<'_>, elapsed: Duration) -> String {
    let mut text = match state.total {
        Some(total) => format!("{} of {total} done", state.done + state.skipped),
        None => format!("{} done", state.done + state.skipped),
    };
    if state.failed > 0 {
        text.push_str(&format!(", {} failed", state.failed));
    }
    let rate = state.done as f64 / elapsed.as_secs_f64().max(0.001);
    text.push_str(&match rate {
        _ if state.done == 0 => String::new(),
        0.0..10.0 => format!(", {rate:.1}/s"),
        _ => format!(", {rate:.0}/s"),
    });
    if let Some(total) = state.total
        && state.done > 0
    {
        let left = total.saturating_sub(state.done + state.skipped) as f64 / rate;
        // More than is a duration is more than anybody waits.
        let left = Duration::try_from_secs_f64(left).unwrap_or(Duration::MAX);
        text.push_str(&format!(", {} left", clock(left)));
    }
    text
}

/// `1:02:03`, `2:03`, `0:03`.
fn clock(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match hours {
        0 => format!("{minutes}:{seconds:02}"),
        _ => format!("{hours}:{minutes:02}:{seconds:02}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(done: u64, failed: u64, total: Option<u64>) -> State<'static> {
        State { done, failed, skipped: 0, total, slots: Vec::new() }
    }

    #[test]
    fn the_text_says_what_is_known() {
        let after = Duration::from_secs(10);
        assert_eq!(text(&state(0, 0, None), after), "0 done");
        assert_eq!(text(&state(20, 0, None), after), "20 done, 2.0/s");
        let expected = "200 of 3000 done, 1 failed, 20/s, 2:20 left";
        assert_eq!(text(&state(200, 1, Some(3000)), after), expected);
        let skipped = State { skipped: 80, ..state(20, 0, Some(120)) };
        assert_eq!(text(&skipped, after), "100 of 120 done, 2.0/s, 0:10 left");
    }

    #[test]
    fn slots_beyond_the_first_are_counted() {
        let mut progress = Progress::new(Show::Never, true);
        let slots = (1..=9).map(|slot| (slot, &b"x\n"[..])).collect();
        let lines = progress.slot_lines(&State { slots, ..state(0, 0, None) }, Instant::now());
        assert_eq!(lines.len(), SLOTS_MAX);
        assert_eq!(lines[0], "slot 1: 0:00 `x\\n`");
        assert_eq!(lines[SLOTS_MAX - 1], "and 4 more");
    }

    #[test]
    fn a_stop_is_no_time_of_a_slot() {
        let mut progress = Progress::new(Show::Never, true);
        let state = State { slots: vec![(1, b"x")], ..state(0, 0, None) };
        let begun = progress.begun;
        progress.slot_lines(&state, begun);
        progress.put_off(Duration::from_secs(60));
        let lines = progress.slot_lines(&state, begun + Duration::from_secs(65));
        assert_eq!(lines, ["slot 1: 0:05 `x`"]);
        assert_eq!(progress.begun, begun + Duration::from_secs(60));
    }

    #[test]
    fn clocks_have_hours_if_need_be() {
        assert_eq!(clock(Duration::from_secs(3)), "0:03");
        assert_eq!(clock(Duration::from_secs(3723)), "1:02:03");
    }
}
