//! Clients and daemons of other versions: played by hand, from the greeting on.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;

use procpool_daemon::Client;
use procpool_daemon::job::{JobSpec, TaskWork, Terms, Work};
use procpool_daemon::protocol::{
    GREETING_LEN, Pong, Request, Response, greeting, parse_body, push_frame, read_frame,
};

use super::fixture::Home;
use crate::support::test;

/// The greeting of a side that speaks these versions.
fn greeting_of(from: u16, to: u16, chosen: u16) -> [u8; GREETING_LEN] {
    let mut bytes = greeting(chosen);
    bytes[8..10].copy_from_slice(&from.to_le_bytes());
    bytes[10..12].copy_from_slice(&to.to_le_bytes());
    bytes
}

/// A daemon that greets like that, and answers one ping if it is asked.
fn with_daemon_of(theirs: &[u8], work: impl FnOnce(&Home)) {
    let home = Home::new("");
    std::fs::create_dir(home.state()).unwrap();
    let listener = UnixListener::bind(home.socket()).unwrap();
    let theirs = theirs.to_vec();
    let daemon = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.read_exact(&mut [0; GREETING_LEN]).unwrap();
        stream.write_all(&theirs).unwrap();
        if let Ok((number, body)) = read_frame(&mut stream) {
            assert_eq!(parse_body(&body), Ok(Request::Ping));
            let pong = Response::Pong(Pong { version: "9.0.0".into(), pid: 7 });
            let mut frame = Vec::new();
            push_frame(number, &pong, &mut frame).unwrap();
            stream.write_all(&frame).unwrap();
        }
    });
    work(&home);
    daemon.join().unwrap();
}

/// Goal: a client works with a daemon of another version if they have a version of the protocol in common, and else
/// says which versions there are.
/// Covers: F-133
#[test]
fn a_client_and_another_daemon_agree_or_say_why_not() {
    test(|| {
        for (from, to) in [(1, 1), (1, 9), (0, 1)] {
            with_daemon_of(&greeting_of(from, to, 1), |home| {
                assert_eq!(home.out(&["ping"]), "procpool 9.0.0 (process 7)\n");
            });
        }
        for (from, to) in [(2, 9), (0, 0)] {
            with_daemon_of(&greeting_of(from, to, 0), |home| {
                let finished = home.run(&["ping"]);
                assert_eq!(finished.code, 110, "{finished:?}");
                let part = format!("versions {from} to {to} of the protocol, this one 1 to 1");
                assert!(finished.err.contains(&part), "{finished:?}");
            });
        }
        with_daemon_of(b"HTTP/1.1 400 Bad", |home| {
            let finished = home.run(&["ping"]);
            assert_eq!(finished.code, 110, "{finished:?}");
            assert!(finished.err.contains("does not speak this protocol"), "{finished:?}");
        });
        // One that is gone in the middle of its greeting.
        with_daemon_of(b"procpool", |home| {
            assert!(Client::connect(&home.socket()).unwrap_err().is_no_daemon());
        });
    });
}

/// Goal: a daemon works with a client of another version in the same way, and tells one that it cannot serve which
/// versions it speaks.
/// Covers: F-133
#[test]
fn a_daemon_and_another_client_agree_or_say_why_not() {
    test(|| {
        let home = Home::new("");
        let daemon = home.start();
        let greet = |from, to| {
            let mut stream = UnixStream::connect(home.socket()).unwrap();
            stream.write_all(&greeting_of(from, to, 0)).unwrap();
            let mut theirs = [0; GREETING_LEN];
            stream.read_exact(&mut theirs).unwrap();
            (stream, theirs)
        };
        for (from, to) in [(1, 1), (1, 9), (0, 1)] {
            let (mut stream, theirs) = greet(from, to);
            assert_eq!(theirs, greeting(1));
            let mut frame = Vec::new();
            push_frame(3, &Request::Ping, &mut frame).unwrap();
            stream.write_all(&frame).unwrap();
            let (number, body) = read_frame(&mut stream).unwrap();
            assert_eq!(number, 3);
            assert!(matches!(parse_body(&body), Ok(Response::Pong(_))));
        }
        for (from, to) in [(2, 9), (0, 0), (9, 1)] {
            let (mut stream, theirs) = greet(from, to);
            assert_eq!(theirs, greeting(0));
            assert_eq!(stream.read(&mut [0]).unwrap(), 0, "the daemon closes the connection");
        }
        // A request that only a later version has ends that connection, and no other.
        let (mut stream, _) = greet(1, 1);
        let mut frame = Vec::new();
        push_frame(1, &4711_u32, &mut frame).unwrap();
        stream.write_all(&frame).unwrap();
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
        home.out(&["ping"]);
        daemon.stop();
    });
}

/// Goal: a task that is not the worker's any more, since one of the two programs was built anew, is refused by name.
/// Covers: F-133
#[test]
fn a_task_of_another_build_is_refused() {
    test(|| {
        let home = Home::with_tasks(1);
        let daemon = home.start();
        let client = daemon.client();
        let work = TaskWork {
            task: "it::daemon::tasks::double".into(),
            fingerprint: Some(1),
            argument: vec![2],
        };
        let terms = Terms { queue: "tasks".into(), ..Terms::new("double") };
        let spec = JobSpec { terms, work: Work::Task(work) };
        let id = match client.request(&Request::Submit(spec)).unwrap() {
            Response::Submitted(id) => id.to_string(),
            other => panic!("{other:?}"),
        };
        let finished = home.run(&["result", &id]);
        assert_eq!(finished.code, 1, "{finished:?}");
        assert!(finished.err.contains("the caller's is not"), "{finished:?}");
        drop(client);
        daemon.stop();
    });
}
