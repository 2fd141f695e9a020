//! `procpool top`: what the daemon does, on a terminal.
//!
//! Two threads: one asks the daemon, over and over, and does what is asked of it; the other draws and listens to the
//! keys, so that it can be left whatever the daemon does. The terminal is as it was when this ends, also by a panic
//! or a signal.

mod draw;
mod source;
mod view;

use std::io::{self, IsTerminal};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender, TryRecvError};
use std::thread;
use std::time::Duration;

use procpool_daemon::{Client, Error};
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use self::source::{Ask, Told};
use self::view::View;
use super::{args, place, say};
use crate::exit_code;
use crate::report::{self, Refusal};

/// How long it takes at most until a signal, or news of the daemon, is seen.
const LOOK: Duration = Duration::from_millis(100);

/// All of `procpool top`; answers the exit code.
pub(crate) fn top(args: &args::Top) -> anyhow::Result<u8> {
    if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        let message = "top needs a terminal; `status` and `ping` do not";
        return Ok(Refusal::new(exit_code::USAGE, message).say());
    }
    let socket = place::socket(&args.socket)?;
    let client = match Client::connect(&socket) {
        Ok(client) => client,
        Err(error) => return Ok(say(&error)),
    };
    // Before the terminal is changed: each of them ends by putting it back.
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&interrupted))?;
    }
    let (ask, asked) = mpsc::channel();
    let (tell, told) = mpsc::channel();
    // Left alone at the end: it may be waiting for a daemon that does not answer.
    thread::Builder::new()
        .name("top".into())
        .spawn(move || source::serve(&client, &asked, &tell))?;
    let mut terminal = ratatui::try_init()?;
    let end = show(&mut terminal, &ask, &told, &interrupted);
    ratatui::restore();
    Ok(match end? {
        End::Left => exit_code::SUCCESS,
        End::Interrupted => exit_code::INTERRUPTED,
        End::Lost(Some(error)) => say(&error),
        End::Lost(None) => {
            report::say("the daemon is not asked any more");
            exit_code::SYSTEM
        }
    })
}

enum End {
    Left,
    Interrupted,
    /// The daemon does not answer any more.
    Lost(Option<Error>),
}

fn show(
    terminal: &mut DefaultTerminal,
    ask: &Sender<Ask>,
    told: &Receiver<Result<Told, Error>>,
    interrupted: &AtomicBool,
) -> io::Result<End> {
    let mut view = View::default();
    loop {
        if interrupted.load(Ordering::Relaxed) {
            return Ok(End::Interrupted);
        }
        loop {
            match told.try_recv() {
                Ok(Ok(told)) => view.take(told),
                Ok(Err(error)) => return Ok(End::Lost(Some(error))),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return Ok(End::Lost(None)),
            }
        }
        terminal.draw(|frame| draw::draw(frame, &mut view))?;
        if !event::poll(LOOK)? {
            continue;
        }
        if let Event::Key(key) = event::read()?
            && key.kind != KeyEventKind::Release
        {
            match pressed(key, &mut view) {
                Pressed::Nothing => {}
                Pressed::Leave => return Ok(End::Left),
                // It is read as long as this runs.
                Pressed::Ask(wish) => drop(ask.send(wish)),
            }
        }
    }
}

enum Pressed {
    Nothing,
    Leave,
    Ask(Ask),
}

fn pressed(key: KeyEvent, view: &mut View) -> Pressed {
    let is_control = key.modifiers.contains(KeyModifiers::CONTROL);
    match key.code {
        KeyCode::Char('c') if is_control => return Pressed::Leave,
        KeyCode::Char('q') | KeyCode::Esc if view.close_log() => {}
        KeyCode::Char('q') | KeyCode::Esc => return Pressed::Leave,
        KeyCode::Up | KeyCode::Char('k') => view.move_by(-1),
        KeyCode::Down | KeyCode::Char('j') => view.move_by(1),
        KeyCode::PageUp => view.move_by(-10),
        KeyCode::PageDown => view.move_by(10),
        KeyCode::Char('l') | KeyCode::Enter => {
            return view.selected().map_or(Pressed::Nothing, |id| Pressed::Ask(Ask::Log(id)));
        }
        KeyCode::Char('x') => {
            return view
                .selected_running()
                .map_or(Pressed::Nothing, |id| Pressed::Ask(Ask::Abort(id)));
        }
        KeyCode::Char('r') => {
            return view
                .selected_failed()
                .map_or(Pressed::Nothing, |id| Pressed::Ask(Ask::Retry(id)));
        }
        KeyCode::Char('p') => {
            return view
                .queue()
                .map_or(Pressed::Nothing, |queue| Pressed::Ask(Ask::Pause(queue.name.clone())));
        }
        _ => {}
    }
    Pressed::Nothing
}
