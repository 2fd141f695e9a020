//! `procpool top` on a terminal that the test plays.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};

use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{Termios, tcgetattr};
use nix::unistd::Pid;

use super::fixture::{Home, PROCPOOL};
use crate::support::{Meeting, test, wait_until};

const GUEST: &str = env!("CARGO_BIN_EXE_guest");

/// `top`, and the other side of its terminal.
struct Top {
    child: Child,
    screen: File,
    /// The side of `top`, kept open so that what it has written last can be read.
    line: OwnedFd,
    before: Termios,
    seen: String,
}

impl Top {
    fn start(home: &Home, columns: u16, rows: u16) -> Top {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(Some(&size), None).unwrap();
        let before = tcgetattr(&pty.slave).unwrap();
        let side = || Stdio::from(pty.slave.try_clone().unwrap());
        let mut command = Command::new(PROCPOOL);
        command.arg("top").arg("--socket").arg(home.socket()).env("TERM", "xterm-256color");
        command.stdin(side()).stdout(side()).stderr(side());
        #[expect(clippy::disallowed_methods, reason = "the program is no worker of a pool of ours")]
        let child = command.spawn().unwrap();
        let screen = File::from(pty.master);
        Top { child, screen, line: pty.slave, before, seen: String::new() }
    }

    /// Reads what is drawn until this text was. What is blank may be skipped, so it is one word.
    fn wait_for(&mut self, word: &str) {
        let mut bytes = [0; 4096];
        while !self.seen.contains(word) {
            let len = self.screen.read(&mut bytes).unwrap();
            self.seen.push_str(&String::from_utf8_lossy(&bytes[..len]));
        }
    }

    fn press(&mut self, keys: &[u8]) {
        self.seen.clear();
        self.screen.write_all(keys).unwrap();
    }

    /// Waits for its end, and sees that the terminal is as it was; answers the exit code.
    fn finish(mut self) -> i32 {
        self.wait_for("\u{1b}[?1049l");
        let code = self.child.wait().unwrap().code().unwrap();
        assert_eq!(tcgetattr(&self.line).unwrap(), self.before);
        code
    }
}

/// Goal: queues, running jobs and failures are on the screen, in a small terminal and in a large one; keys open a log
/// and stop a job; the terminal is given back.
#[test]
fn top_shows_what_the_daemon_does() {
    test(|| {
        let home = Home::new("[queue.default]\nslots = 2\n[queue.thumbnails]\nslots = 3\n");
        let daemon = home.start();
        let failing = home.submit(&["--", "sh", "-c", "echo last-words; exit 7"]);
        home.run(&["wait", &failing.to_string()]);
        for (columns, rows) in [(80, 24), (200, 60)] {
            let meeting = Meeting::new();
            let held = home.submit(&["--", GUEST, &meeting.path(), "held"]);
            let _guest = meeting.next();
            let states = home.history(failing);
            let before = states.iter().filter(|state| *state == "failed").count();
            let mut top = Top::start(&home, columns, rows);
            for word in ["thumbnails", "running:", "attempt", "failed", "last-words;", "leave"] {
                top.wait_for(word);
            }
            // The failed job is the next one.
            top.press(b"\x1b[B");
            top.press(b"l");
            top.wait_for("back");
            top.wait_for("last-words");
            top.press(b"q");
            top.wait_for("leave");
            top.press(b"r");
            top.wait_for("again");
            wait_until("it has failed once more", || {
                home.history(failing).iter().filter(|state| *state == "failed").count() > before
            });
            top.press(b"p");
            top.wait_for("paused");
            let paused = home.out(&["health", "--json"]);
            assert!(paused.contains("paused"), "{paused}");
            top.press(b"p");
            top.wait_for("open");
            // Behind the two queues is the job that runs.
            top.press(b"kkkkkkjj");
            top.press(b"x");
            top.wait_for("stopped");
            home.run(&["wait", &held.to_string()]);
            assert_eq!(home.status(held)["state"], "cancelled");
            top.press(b"q");
            assert_eq!(top.finish(), 0);
        }
        daemon.stop();
    });
}

/// Goal: whatever ends it, the terminal is given back: a signal, Ctrl-C, the daemon's end.
#[test]
fn top_gives_the_terminal_back() {
    test(|| {
        let home = Home::new("");
        let daemon = home.start();
        let mut top = Top::start(&home, 80, 24);
        top.wait_for("leave");
        kill(Pid::from_raw(top.child.id() as i32), Signal::SIGTERM).unwrap();
        assert_eq!(top.finish(), 130);
        let mut top = Top::start(&home, 80, 24);
        top.wait_for("leave");
        top.press(b"\x03");
        assert_eq!(top.finish(), 0);
        let mut top = Top::start(&home, 80, 24);
        top.wait_for("leave");
        daemon.stop();
        assert_eq!(top.finish(), 110);
    });
}

/// Goal: without a daemon, or a terminal, it says so and touches nothing.
#[test]
fn top_says_what_is_missing() {
    test(|| {
        let home = Home::new("");
        let finished = home.run(&["top"]);
        assert_eq!(finished.code, 102, "{finished:?}");
        assert!(finished.err.contains("needs a terminal") && finished.out.is_empty());
        let mut top = Top::start(&home, 80, 24);
        top.wait_for("answers");
        assert!(!top.seen.contains("\u{1b}[?1049h"));
        assert_eq!(top.child.wait().unwrap().code(), Some(110));
    });
}
