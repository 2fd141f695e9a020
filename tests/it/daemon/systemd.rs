//! A service manager's side: notifications, the watchdog, sockets that are passed.

use std::fs;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use super::fixture::Home;
use crate::support::test;

/// How often the daemon of these tests has to say that it is alive.
const WATCHDOG: Duration = Duration::from_millis(200);

/// The next word; `None` if none comes for five times as long as the daemon has for it.
fn next(manager: &UnixDatagram) -> Option<String> {
    manager.set_read_timeout(Some(WATCHDOG * 5)).unwrap();
    let mut word = [0; 256];
    match manager.recv(&mut word) {
        Ok(len) => Some(String::from_utf8(word[..len].to_vec()).unwrap()),
        Err(error) if error.kind() == ErrorKind::WouldBlock => None,
        Err(error) => panic!("{error}"),
    }
}

/// Goal: the manager hears that the daemon serves, that its loop is alive, and that it ends; and when the loop is
/// stuck, it hears nothing.
/// Method: a log that is a pipe without a writer blocks whoever opens it, which is the loop. Every other thread goes on.
/// Covers: F-135
#[test]
fn a_manager_hears_of_start_life_and_end() {
    test(|| {
        let home = Home::new("");
        let path = home.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let mut command = home.command();
        command.env("NOTIFY_SOCKET", &path);
        command.env("WATCHDOG_USEC", WATCHDOG.as_micros().to_string());
        let mut daemon = home.spawn(command);
        daemon.wait_to_say("listening at");
        assert_eq!(next(&manager).as_deref(), Some("READY=1\n"));
        for _ in 0..5 {
            assert_eq!(next(&manager).as_deref(), Some("WATCHDOG=1\n"));
        }
        let logs = home.state().join("logs/0");
        fs::create_dir_all(&logs).unwrap();
        mkfifo(&logs.join("7.out"), Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
        std::thread::scope(|scope| {
            let stuck = scope.spawn(|| home.run(&["logs", "7"]));
            // Those that were said before it was stuck, and then none.
            while next(&manager).is_some() {}
            drop(fs::OpenOptions::new().write(true).open(logs.join("7.out")).unwrap());
            assert_eq!(next(&manager).as_deref(), Some("WATCHDOG=1\n"));
            // A pipe is no file that could be read from some byte on.
            assert_eq!(stuck.join().unwrap().code, 111);
        });
        home.out(&["stop"]);
        let last = std::iter::from_fn(|| next(&manager)).find(|word| !word.starts_with("WATCHDOG"));
        assert_eq!(last.as_deref(), Some("STOPPING=1\nEXTEND_TIMEOUT_USEC=90000000\n"));
        assert_eq!(daemon.finish().code, 0);
    });
}

/// Goal: a socket that the manager has made is served, and is there for the next daemon.
#[test]
fn a_socket_that_is_passed_is_served_and_left() {
    test(|| {
        let home = Home::new("");
        fs::create_dir(home.path().join("run")).unwrap();
        let path = home.path().join("run/socket");
        let listener = UnixListener::bind(&path).unwrap();
        for round in 1..=2 {
            let ours = home.command();
            let mut command = Command::new("sh");
            // As systemd does it: descriptor 3, for this process.
            let script = "exec 3<&0 </dev/null; LISTEN_FDS=1 LISTEN_PID=$$ exec \"$@\"";
            command.args(["-c", script, "sh"]).arg(ours.get_program()).args(ours.get_args());
            command.env_remove("PROCPOOL_SOCKET").stdout(Stdio::null());
            command.stdin(Stdio::from(OwnedFd::from(listener.try_clone().unwrap())));
            let mut daemon = home.spawn(command);
            daemon.wait_to_say(path.to_str().unwrap());
            let socket = path.to_str().unwrap();
            let words = ["submit", "--socket", socket, "--wait", "--", "echo", "served"];
            assert_eq!(home.out(&words), "served\n", "round {round}");
            home.out(&["stop", "--socket", socket]);
            assert_eq!(daemon.finish().code, 0);
            assert!(path.exists() && !home.socket().exists());
        }
    });
}
