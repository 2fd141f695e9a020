//! The program at a terminal: what keys do, and what happens when the terminal goes away.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::pty::{OpenptyResult, openpty};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{GUEST, PROCPOOL, pid, start};
use crate::life::fixture::is_installed;
use crate::support::{Meeting, TempDir, describe, is_alive, test, wait_gone, wait_until};

/// What stands before the first program of a new terminal: setsid(1) makes it the terminal's own. It has its signals at
/// their defaults as from a login, whatever these tests were started under: nohup(1), say, which has SIGHUP ignored.
const IN_A_NEW_TERMINAL: [&str; 4] = ["env", "--default-signal", "setsid", "--ctty"];

const CTRL_C: &str = "\x03";
const CTRL_Z: &str = "\x1a";

/// A terminal of which a program has all its streams.
struct Terminal {
    keyboard: File,
    screen: String,
    child: Child,
    _dir: TempDir,
}

impl Terminal {
    /// Runs this as the first program of a new terminal.
    fn start(program: &[&str]) -> Terminal {
        let pty = new_pty();
        let dir = TempDir::new();
        let stream = || Stdio::from(pty.slave.try_clone().unwrap());
        let [first, rest @ ..] = IN_A_NEW_TERMINAL;
        let mut command = Command::new(first);
        command.args(rest).args(program).env("TMPDIR", dir.path());
        command.stdin(stream()).stdout(stream()).stderr(stream());
        #[expect(clippy::disallowed_methods, reason = "the program is no worker of a pool of ours")]
        let child = command.spawn().unwrap();
        Terminal { keyboard: pty.master.into(), screen: String::new(), child, _dir: dir }
    }

    fn press(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).unwrap();
    }

    /// Waits until this stands on the screen. The watchdog ends a wait in vain.
    fn see(&mut self, part: &str) {
        let mut bytes = [0; 1024];
        while !self.screen.contains(part) {
            let len = self.keyboard.read(&mut bytes).unwrap_or(0);
            assert!(len > 0, "{part:?} is not on the screen: {:?}", self.screen);
            self.screen.push_str(&String::from_utf8_lossy(&bytes[..len]));
        }
    }

    /// Waits for the program's end: its exit code, and what is on the screen.
    fn end(mut self) -> (i32, String) {
        let mut bytes = [0; 1024];
        // An error is the end: nobody has the terminal any more.
        while let Ok(len @ 1..) = self.keyboard.read(&mut bytes) {
            self.screen.push_str(&String::from_utf8_lossy(&bytes[..len]));
        }
        (code(&mut self.child), self.screen)
    }
}

/// A terminal, both ends close-on-exec: one whose master a program has itself never goes away.
fn new_pty() -> OpenptyResult {
    let pty = openpty(None, None).unwrap();
    for end in [&pty.master, &pty.slave] {
        fcntl(end, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).unwrap();
    }
    pty
}

fn code(child: &mut Child) -> i32 {
    let status = child.wait().unwrap();
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap())
}

/// Goal: Ctrl-C reaches the program and not its jobs: what runs is finished, and nothing else is started.
/// Covers: F-66
#[test]
fn ctrl_c_finishes_what_runs() {
    test(|| {
        let meeting = Meeting::new();
        let path = meeting.path();
        let mut terminal =
            Terminal::start(&[PROCPOOL, "run", "-j1", GUEST, &path, ":::", "one", "two"]);
        let guest = meeting.next();
        terminal.press(CTRL_C);
        terminal.see("interrupted: nothing new is started");
        assert!(is_alive(pid(&guest)));
        guest.go();
        let (code, screen) = terminal.end();
        assert_eq!(code, 130, "{screen}");
        assert!(screen.contains("one\r\n"), "{screen}");
    });
}

/// Goal: the second Ctrl-C stops what runs, at once.
/// Covers: F-66
#[test]
fn the_second_ctrl_c_stops_what_runs() {
    test(|| {
        let stopped_after = || {
            let meeting = Meeting::new();
            let path = meeting.path();
            let mut terminal =
                Terminal::start(&[PROCPOOL, "run", "-j1", GUEST, &path, ":::", "one", "two"]);
            let guest = meeting.next();
            terminal.press(CTRL_C);
            terminal.see("interrupted: nothing new is started");
            let begun = Instant::now();
            terminal.press(CTRL_C);
            let (code, screen) = terminal.end();
            let took = begun.elapsed();
            assert_eq!(code, 130, "{screen}");
            wait_gone(pid(&guest));
            took
        };
        // The best of some: the machine may be busy with other things.
        let took = (0..3).map(|_| stopped_after()).min().unwrap();
        assert!(took < Duration::from_millis(500), "{took:?}");
    });
}

/// Goal: Ctrl-Z stops the jobs and the clocks, and gives the terminal back to the shell; `fg` continues both, and Ctrl-C
/// works as before.
/// Method: bash, as a person uses it, has the terminal. The program stays stopped for longer than the job may run.
/// Covers: F-67
#[test]
fn ctrl_z_stops_jobs_and_clocks_and_fg_continues_them() {
    const LIMIT: Duration = Duration::from_millis(2000);
    if !is_installed("bash") {
        return;
    }
    test(|| {
        let (meeting, dir) = (Meeting::new(), TempDir::new());
        let log = dir.path().join("log");
        let limit = format!("--timeout={}ms", LIMIT.as_millis());
        let line = format!(
            "{PROCPOOL} run -j1 {limit} --joblog {} {GUEST} {} ::: one two three\n",
            log.display(),
            meeting.path()
        );
        let mut terminal = Terminal::start(&["bash", "--norc", "--noprofile", "-i"]);
        terminal.press(&line);
        let guest = meeting.next();
        let job = pid(&guest);
        terminal.see("slot 1: 0:00 `one`");
        terminal.press(CTRL_Z);
        terminal.see("Stopped");
        wait_stopped(job);
        guest.go();
        // The limit has to pass. With less than that the test would see nothing.
        thread::sleep(LIMIT + LIMIT / 10);
        terminal.press("echo has-it:$((6*7))\n");
        terminal.see("has-it:42");
        assert!(is_alive(job));
        terminal.press("fg\n");
        // It had as much of its time as it had before.
        terminal.see("one\r\n");
        let guest = meeting.next();
        terminal.see("1 of 3 done");
        terminal.press(CTRL_C);
        terminal.see("interrupted: nothing new is started");
        guest.go();
        terminal.press("echo ended: $?\n");
        terminal.see("ended: 130");
        terminal.press("exit\n");
        let (_, screen) = terminal.end();
        assert!(screen.contains("two\r\n"), "{screen}");
        let log = fs::read_to_string(log).unwrap();
        let done = log.lines().filter(|line| line.contains("\"succeeded\"")).count();
        assert_eq!(done, 2, "{log}");
    });
}

/// Goal: SIGTSTP and SIGCONT do the same without a terminal, once and again, to `run` and to what runs below its command.
/// Covers: F-67
#[test]
fn signals_stop_and_continue_jobs_and_clocks() {
    const LIMIT: Duration = Duration::from_millis(1000);
    test(|| {
        let meeting = Meeting::new();
        let script = format!("'{GUEST}' '{}' $0; :", meeting.path());
        let args = ["run", "--timeout=1s", "sh", "-c", &script, ":::", "one"];
        let started = start(&args, Stdio::null());
        let guest = meeting.next();
        let (program, job) = (started.child.id(), pid(&guest));
        for _ in 0..2 {
            started.signal(Signal::SIGTSTP);
            wait_stopped(program);
            wait_stopped(job);
            // The limit has to pass. With less than that the test would see nothing.
            thread::sleep(LIMIT + LIMIT / 10);
            started.signal(Signal::SIGCONT);
            wait_until("the job goes on", || !describe(job).contains(") T "));
        }
        guest.go();
        let ran = started.finish();
        assert_eq!((ran.code, ran.out()), (0, "one\n"), "{ran:#?}");
    });
}

/// Goal: a program that is killed while it is stopped leaves nothing behind, nor one that is told to end.
#[test]
fn a_stopped_program_can_be_ended() {
    test(|| {
        for signal in [Signal::SIGKILL, Signal::SIGTERM] {
            let meeting = Meeting::new();
            // The second signal stops what runs.
            let script = format!("trap '' HUP; '{GUEST}' '{}' $0", meeting.path());
            let args = ["run", "-j1", "sh", "-c", &script, ":::", "one"];
            let mut started = start(&args, Stdio::null());
            let guest = meeting.next();
            let (program, job) = (started.child.id(), pid(&guest));
            started.signal(Signal::SIGTSTP);
            wait_stopped(program);
            wait_stopped(job);
            started.signal(signal);
            if signal == Signal::SIGTERM {
                started.signal(Signal::SIGCONT);
                started.wait_to_say("interrupted: nothing new is started");
                guest.go();
                assert_eq!(started.finish().code, 0);
            } else {
                assert_eq!(started.end().0.code, 128 + 9);
            }
            wait_gone(job);
        }
    });
}

/// A stop takes effect a moment after it was sent.
fn wait_stopped(pid: u32) {
    wait_until("it is stopped", || describe(pid).contains(") T "));
}

/// The program with its streams in files, and its input at a terminal if there is one.
fn start_quietly(program: &[&str], stdin: Stdio, dir: &TempDir) -> Child {
    let file = |name: &str| File::create(dir.path().join(name)).unwrap();
    let mut command = Command::new(program[0]);
    command.args(&program[1..]).env("TMPDIR", dir.path());
    command.stdin(stdin).stdout(file("out")).stderr(file("err"));
    #[expect(clippy::disallowed_methods, reason = "the program is no worker of a pool of ours")]
    let child = command.spawn().unwrap();
    child
}

/// Goal: under nohup(1) the end of a terminal is nothing to the program.
/// Covers: F-68
#[test]
fn a_hangup_that_was_to_be_ignored_is_ignored() {
    test(|| {
        let (meeting, dir) = (Meeting::new(), TempDir::new());
        let script = "trap '' HUP; exec \"$@\"";
        let program = [PROCPOOL, "run", "-j1", GUEST, &meeting.path(), ":::", "one", "two"];
        let program = [&["sh", "-c", script, "sh"], &program[..]].concat();
        let mut child = start_quietly(&program, Stdio::null(), &dir);
        let guest = meeting.next();
        kill(Pid::from_raw(child.id() as i32), Signal::SIGHUP).unwrap();
        // The signal has arrived when it is sent: one that is ignored is gone, one that is blocked waits. The
        // second job is started, which it would not be if either had an effect.
        guest.go();
        meeting.next().go();
        assert_eq!(code(&mut child), 0);
        assert_eq!(fs::read_to_string(dir.path().join("out")).unwrap(), "one\ntwo\n");
    });
}

/// Goal: when the terminal goes away, the program ends as after Ctrl-C, and leaves nothing behind.
/// Covers: F-68
#[test]
fn a_terminal_that_goes_away_ends_the_program() {
    test(|| {
        let (meeting, dir) = (Meeting::new(), TempDir::new());
        let pty = new_pty();
        let program = [PROCPOOL, "run", "-j1", GUEST, &meeting.path(), ":::", "one", "two"];
        let program = [&IN_A_NEW_TERMINAL, &program[..]].concat();
        let mut child = start_quietly(&program, pty.slave.into(), &dir);
        let guest = meeting.next();
        let job = pid(&guest);
        drop(pty.master);
        let errors = dir.path().join("err");
        wait_until("the program knows", || {
            fs::read_to_string(&errors).unwrap().contains("nothing new is started")
        });
        assert!(is_alive(job));
        guest.go();
        assert_eq!(code(&mut child), 130);
        assert_eq!(fs::read_to_string(dir.path().join("out")).unwrap(), "one\n");
        wait_gone(job);
    });
}

/// Goal: at a terminal a bar shows how far the batch is and what the slots do; lines are printed beside it, and it is
/// gone at the end.
#[test]
fn a_terminal_shows_a_bar() {
    test(|| {
        let meeting = Meeting::new();
        let path = meeting.path();
        let mut terminal =
            Terminal::start(&[PROCPOOL, "run", "-j1", GUEST, &path, ":::", "one", "two"]);
        let guest = meeting.next();
        terminal.see("0 of 2 done");
        terminal.see("slot 1: 0:00 `one`");
        guest.go();
        let guest = meeting.next();
        terminal.see("one\r\n");
        terminal.see("1 of 2 done");
        terminal.see("`two`");
        guest.go();
        let (code, screen) = terminal.end();
        assert_eq!(code, 0, "{screen}");
        assert!(screen.contains("two\r\n"), "{screen:?}");
        // The last that is done is to empty the line that the cursor is in.
        assert!(screen.ends_with("\u{1b}[2K"), "the bar is still there: {screen:?}");
    });
}
