//! `top` on the screen, of any size.

use std::time::Duration;

use procpool_daemon::job::{JobId, Moment, Record, State};
use procpool_daemon::machine::Gate;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Modifier, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Cell, Paragraph, Row, Table, TableState};

use super::source::Now;
use super::view::{Log, View};

/// The widest bar of a queue's slots.
const BAR_MAX: u64 = 20;
/// The fewest rows for jobs that run and for those that failed, titles and border included.
const JOBS_MIN: u16 = 5;

/// Draws all of it.
pub(super) fn draw(frame: &mut Frame<'_>, view: &mut View) {
    let [head, body, foot] =
        Layout::vertical([Constraint::Length(2), Constraint::Fill(1), Constraint::Length(1)])
            .areas(frame.area());
    frame.render_widget(foot_line(view), foot);
    let Some(now) = &view.now else {
        frame.render_widget(Line::raw("asking the daemon …"), head);
        return;
    };
    frame.render_widget(Paragraph::new(head_lines(now, view.rate())), head);
    if let Some(log) = &mut view.log {
        draw_log(frame, log, body);
        return;
    }
    // Two of the border and one of titles.
    let queues = now.queues.len() as u16 + 3;
    let left = body.height.saturating_sub(2 * JOBS_MIN).max(4);
    let [top, running, failed] = Layout::vertical([
        Constraint::Length(queues.min(left)),
        Constraint::Fill(1),
        Constraint::Fill(1),
    ])
    .areas(body);
    draw_queues(frame, now, view.selected_queue(), top);
    let clock = Moment::now();
    let title = format!(" running: {} ", now.activity.running.len());
    draw_jobs(frame, &title, &now.running, view.selected(), running, |job| {
        let since = job.life.history.last().map_or(Moment::default(), |step| step.at);
        [format!("attempt {}", job.life.attempts), span(clock.since(since))]
    });
    let title = format!(" failed since the daemon was started: {} ", now.activity.failed);
    draw_jobs(frame, &title, &now.failures, view.selected(), failed, |job| {
        let since = job.life.history.last().map_or(Moment::default(), |step| step.at);
        [word(job.life.state()), format!("{} ago", span(clock.since(since)))]
    });
}

fn head_lines(now: &Now, rate: Option<f64>) -> Vec<Line<'static>> {
    let queued: u64 = now.queues.iter().map(|queue| queue.queued).sum();
    let rate = rate.map_or(String::new(), |rate| format!("{rate:.1}/s · "));
    let activity = &now.activity;
    vec![
        Line::from(vec![
            format!("procpool {}", now.pong.version).bold(),
            Span::raw(format!(" · process {}", now.pong.pid)),
        ]),
        Line::raw(format!(
            "{} running · {queued} queued · {rate}{} ended · {} failed",
            activity.running.len(),
            activity.ended,
            activity.failed
        )),
    ]
}

fn foot_line(view: &View) -> Line<'static> {
    if let Some(message) = view.message() {
        return Line::raw(printable(message)).bold();
    }
    // What does something now.
    let mut keys = Vec::new();
    if view.log.is_some() {
        keys.extend([("↑↓", "scroll"), ("q", "back")]);
    } else {
        keys.push(("↑↓", "select"));
        keys.extend(view.selected().map(|_| ("l", "log")));
        keys.extend(view.selected_running().map(|_| ("x", "stop the job")));
        keys.extend(view.selected_failed().map(|_| ("r", "run it again")));
        let pause = if view.is_paused() { "resume the queue" } else { "pause the queue" };
        keys.extend(view.queue().map(|_| ("p", pause)));
        keys.push(("q", "leave"));
    }
    let mut spans = Vec::new();
    for (key, what) in keys {
        spans.extend([Span::raw(key).bold(), Span::raw(format!(" {what}   "))]);
    }
    Line::from(spans)
}

fn draw_queues(frame: &mut Frame<'_>, now: &Now, selected: Option<&str>, area: Rect) {
    let name_width = usize::from(area.width).saturating_sub(2 + 9 + 9 + BAR_MAX as usize + 3);
    let rows = now.queues.iter().map(|queue| {
        let slots = queue.slots.max(queue.running);
        // Each slot a sign, unless there are too many.
        let (full, width) = match slots {
            0..=BAR_MAX => (queue.running, slots),
            _ => ((queue.running * BAR_MAX).div_ceil(slots), BAR_MAX),
        };
        let bar = "█".repeat(full as usize) + &"░".repeat((width - full) as usize);
        let bar = match queue.gate {
            Gate::Open => Cell::new(bar),
            Gate::Paused => Cell::new(Line::raw("paused").bold()),
        };
        Row::new([
            Cell::new(cut(&printable(&queue.name), name_width)),
            Cell::new(Line::raw(format!("{}/{}", queue.running, queue.slots)).right_aligned()),
            Cell::new(Line::raw(queue.queued.to_string()).right_aligned()),
            bar,
        ])
    });
    let widths = [
        Constraint::Fill(1),
        Constraint::Length(9),
        Constraint::Length(9),
        Constraint::Length(BAR_MAX as u16),
    ];
    let right = |text: &'static str| Cell::new(Line::raw(text).right_aligned());
    let titles = [Cell::new("queue"), right("running"), right("queued"), Cell::new("slots")];
    let table = Table::new(rows, widths).header(Row::new(titles).dim());
    let table = table
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED))
        .block(Block::bordered().title(" queues "));
    let place = now.queues.iter().position(|queue| Some(queue.name.as_str()) == selected);
    frame.render_stateful_widget(table, area, &mut TableState::new().with_selected(place));
}

fn draw_jobs(
    frame: &mut Frame<'_>,
    title: &str,
    jobs: &[Record],
    selected: Option<JobId>,
    area: Rect,
    columns: impl Fn(&Record) -> [String; 2],
) {
    let title_width = usize::from(area.width).saturating_sub(2 + 8 + 11 + 10 + 12 + 4);
    let rows = jobs.iter().map(|job| {
        let [first, second] = columns(job);
        Row::new([
            Cell::new(Line::raw(job.id.to_string()).right_aligned()),
            Cell::new(first),
            Cell::new(Line::raw(second).right_aligned()),
            Cell::new(cut(&printable(&job.terms.queue), 12)),
            Cell::new(cut(&printable(&job.terms.title), title_width)),
        ])
    });
    // The number of the millionth job has seven signs, and the longest state eleven.
    let widths = [
        Constraint::Length(8),
        Constraint::Length(11),
        Constraint::Length(10),
        Constraint::Length(12),
        Constraint::Fill(1),
    ];
    let table = Table::new(rows, widths)
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED))
        .block(Block::bordered().title(title.to_owned()));
    let place = jobs.iter().position(|job| Some(job.id) == selected);
    frame.render_stateful_widget(table, area, &mut TableState::new().with_selected(place));
}

fn draw_log(frame: &mut Frame<'_>, log: &mut Log, area: Rect) {
    let block = Block::new().borders(Borders::TOP).title(format!(" log of job {} ", log.id));
    let width = usize::from(area.width.max(1));
    // Long lines go on in the next one, so that nothing is cut.
    let lines: Vec<String> = log.text.lines().flat_map(|line| wrapped(line, width)).collect();
    let rows = usize::from(area.height.saturating_sub(1));
    log.up = log.up.min(lines.len().saturating_sub(rows));
    let end = lines.len() - log.up;
    let shown = lines[end.saturating_sub(rows)..end].iter().map(|line| Line::raw(line.as_str()));
    frame.render_widget(Paragraph::new(shown.collect::<Vec<_>>()).block(block), area);
}

/// A line in pieces that fit.
fn wrapped(line: &str, width: usize) -> Vec<String> {
    let mut pieces = vec![String::new()];
    let mut filled = 0;
    for sign in printable(line).chars() {
        let wide = Span::raw(sign.to_string()).width();
        if filled + wide > width {
            pieces.push(String::new());
            filled = 0;
        }
        filled += wide;
        pieces.last_mut().expect("there is one").push(sign);
    }
    pieces
}

/// What is safe on a terminal: what would move its cursor or change its colours is shown as what it is.
fn printable(text: &str) -> String {
    let mut out = String::new();
    for sign in text.chars() {
        match sign {
            '\t' => out.push_str("    "),
            sign if sign.is_control() => out.extend(sign.escape_debug()),
            sign => out.push(sign),
        }
    }
    out
}

/// As much of a text as fits; its end says that there is more.
fn cut(text: &str, width: usize) -> String {
    if Span::raw(text).width() <= width {
        return text.to_owned();
    }
    let mut out = String::new();
    let mut left = width.saturating_sub(1);
    for sign in text.chars() {
        let wide = Span::raw(sign.to_string()).width();
        if wide > left {
            break;
        }
        left -= wide;
        out.push(sign);
    }
    if width > 0 {
        out.push('…');
    }
    out
}

fn word(state: State) -> String {
    state.word().replace('_', " ")
}

fn span(span: Duration) -> String {
    let seconds = span.as_secs();
    match seconds {
        0..=9 => format!("{:.1}s", span.as_secs_f64()),
        10..=599 => format!("{seconds}s"),
        600..=35_999 => format!("{}min", seconds / 60),
        36_000..=863_999 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use procpool_daemon::job::{Life, Step, Terms, Who};
    use procpool_daemon::machine::QueueInfo;
    use procpool_daemon::protocol::{Activity, Pong};
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::super::source::Told;
    use super::*;

    fn record(id: u64, state: State) -> Record {
        let queue = if id.is_multiple_of(2) { "thumbnails" } else { "default" };
        let terms =
            Terms { queue: queue.into(), ..Terms::new(format!("render scene-{id}.blend\u{1b}")) };
        let at = Moment::now();
        let step = |state| Step { at, state, who: Who::Daemon, why: None };
        let mut life = Life::born(step(State::Queued));
        life.attempts = 1;
        life.history.push(step(state));
        Record { id: JobId(id), terms, life }
    }

    fn view(jobs: u64) -> View {
        let running: Vec<_> = (0..jobs).map(|n| record(1_000_000 + n, State::Running(1))).collect();
        let failures: Vec<_> = (0..jobs).map(|n| record(7 + n, State::Quarantined)).collect();
        let ids = |records: &[Record]| records.iter().map(|record| record.id).collect();
        let queue = |name: &str, slots, running| QueueInfo {
            name: name.into(),
            slots,
            queued: 123_456,
            running,
            gate: Gate::Open,
        };
        let mut view = View::default();
        view.take(Told::Now(Box::new(Now {
            at: Instant::now(),
            pong: Pong { version: "0.1.0".into(), pid: 4711 },
            queues: vec![queue("default", 2, 1), queue("thumbnails", 4096, 4096)],
            activity: Activity {
                started: 10,
                ended: 9,
                failed: jobs,
                running: ids(&running),
                failures: ids(&failures),
            },
            running,
            failures,
        })));
        view
    }

    fn screen(view: &mut View, width: u16, height: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, view)).unwrap();
        let buffer = terminal.backend().buffer();
        let row = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>();
        (0..height).map(|y| row(y).trim_end().to_owned()).collect()
    }

    /// Goal: nothing is cut and nothing overlaps, in a small terminal and in a large one.
    #[test]
    fn all_of_it_fits() {
        for (width, height) in [(80, 24), (200, 60)] {
            let lines = screen(&mut view(50), width, height);
            let text = lines.join("\n");
            let parts = [
                "procpool 0.1.0 · process 4711",
                "50 running · 246912 queued · 9 ended · 50 failed",
                "1/2    123456 █░",
                "4096/4096    123456 ████████████████████",
                "1000000 attempt 1         0.0s thumbnails   render scene-1000000.blend\\u{1b}",
                "quarantined   0.0s ago default      render scene-7.blend\\u{1b}",
                "↑↓ select   l log   x stop the job   p pause the queue   q leave",
            ];
            for part in parts {
                assert!(text.contains(part), "{part:?} is not on\n{text}");
            }
            assert!(
                lines.iter().filter(|line| line.contains("quarantined")).count() >= 4,
                "{text}"
            );
        }
    }

    /// Goal: what does not fit is seen to go on, whatever signs it has; a queue that is paused is seen to be.
    #[test]
    fn what_is_cut_says_so() {
        let mut view = view(2);
        let now = view.now.as_mut().unwrap();
        now.running[0].terms.title = "convert --resize 640x480 holiday-pictures.tar".into();
        now.running[1].terms.title = "日本語の長い題名日本語の長い題名日本語".into();
        now.queues[1].gate = Gate::Paused;
        now.queues[1].running = 0;
        let lines = screen(&mut view, 80, 24);
        let text = lines.join("\n");
        let parts = ["convert --resize 640x480 holiday…│", "0/4096    123456 paused"];
        for part in parts {
            assert!(text.contains(part), "{part:?} is not on\n{text}");
        }
        assert!(lines.iter().any(|line| line.contains("日") && line.ends_with("…│")), "{text}");
        assert!(
            screen(&mut view, 200, 60).iter().any(|line| line.contains("holiday-pictures.tar"))
        );
    }

    /// Goal: the keys that are named do what they say to what is selected.
    #[test]
    fn keys_are_for_what_is_selected() {
        let mut view = view(1);
        let foot = |view: &mut View| screen(view, 80, 24).pop().unwrap();
        assert!(foot(&mut view).contains("x stop") && !foot(&mut view).contains("run it again"));
        view.move_by(1);
        assert_eq!((view.selected_failed(), view.selected_running()), (Some(JobId(7)), None));
        assert!(foot(&mut view).contains("r run it again   p pause the queue"));
        view.move_by(-10);
        assert_eq!((view.selected(), view.selected_queue()), (None, Some("default")));
        assert_eq!(foot(&mut view), "↑↓ select   p pause the queue   q leave");
        view.now.as_mut().unwrap().queues[0].gate = Gate::Paused;
        assert!(foot(&mut view).contains("p resume the queue"));
    }

    /// Goal: no size is a panic.
    #[test]
    fn any_size_will_do() {
        let narrow = (1..90).flat_map(|width| [1, 2, 5, 12].map(|height| (width, height)));
        let flat = (1..30).flat_map(|height| [1, 8, 40].map(|width| (width, height)));
        for (width, height) in narrow.chain(flat) {
            screen(&mut view(3), width, height);
            let mut view = view(3);
            view.take(Told::Log(JobId(7), "a line\n".repeat(40)));
            screen(&mut view, width, height);
        }
        screen(&mut View::default(), 80, 24);
    }

    /// Goal: the selection stays on its job, and a log can be scrolled to its beginning.
    #[test]
    fn keys_move_the_selection_and_the_log() {
        let mut view = view(50);
        assert_eq!(view.selected(), Some(JobId(1_000_000)));
        view.move_by(60);
        assert_eq!((view.selected(), view.selected_running()), (Some(JobId(17)), None));
        assert!(screen(&mut view, 80, 24).iter().any(|line| line.contains("scene-17.")));
        view.move_by(1000);
        assert_eq!(view.selected(), Some(JobId(56)));
        let text: String = (0..100).map(|n| format!("line {n} {}\n", "x".repeat(90))).collect();
        view.take(Told::Log(JobId(7), text));
        assert!(screen(&mut view, 80, 24).iter().any(|line| line.contains("line 99")));
        view.move_by(-10_000);
        assert!(screen(&mut view, 80, 24).iter().any(|line| line.contains("line 0")));
        assert!(view.close_log() && !view.close_log());
    }
}
