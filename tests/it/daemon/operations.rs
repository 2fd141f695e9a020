//! What whoever runs a daemon does with it: pause, limit, retry, forget, drain, reload, look.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;

use nix::sys::signal::Signal;
use procpool_daemon::job::{JobSpec, State, TaskWork, Terms, Work};
use procpool_daemon::protocol::{Request, Response};
use serde_json::json;

use super::fixture::Home;
use crate::support::{Meeting, test, wait_until};

const GUEST: &str = env!("CARGO_BIN_EXE_guest");
const DOUBLE: &str = "it::daemon::tasks::double";

fn health(home: &Home) -> serde_json::Value {
    serde_json::from_str(&home.out(&["health", "--json"])).unwrap()
}

/// What `queue --json` says of a queue.
fn queue(home: &Home, name: &str) -> serde_json::Value {
    let all = home.out(&["queue", "--json"]);
    let queues = all.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    queues.into_iter().find(|queue| queue["name"] == name).unwrap()
}

/// Goal: what is set of a queue holds at once, and over a crash.
#[test]
fn what_is_set_of_a_queue_outlives_the_daemon() {
    test(|| {
        let home = Home::new("[queue.default]\nslots = 1\n");
        let daemon = home.start();
        home.out(&["queue", "pause", "default"]);
        let id = home.submit(&["--", "true"]);
        assert_eq!(home.history(id), ["queued"]);
        home.out(&["queue", "limit", "default", "3"]);
        daemon.kill();
        let daemon = home.start();
        let set = queue(&home, "default");
        assert_eq!((set["gate"].as_str(), set["slots"].as_u64()), (Some("paused"), Some(3)));
        assert_eq!(home.history(id), ["queued"]);
        home.out(&["queue", "resume", "default"]);
        home.out(&["wait", &id.to_string()]);
        // Three run at a time now, in pools that were made for one.
        let meeting = Meeting::new();
        let ids: Vec<u64> =
            (0..4).map(|_| home.submit(&["--", GUEST, &meeting.path(), "here"])).collect();
        let guests = [meeting.next(), meeting.next(), meeting.next()];
        assert_eq!(queue(&home, "default")["queued"], 1);
        home.out(&["queue", "limit", "default", "default"]);
        assert_eq!(queue(&home, "default")["slots"], 1);
        // What runs goes on; the fourth waits until none of them does.
        let [first, second, third] = guests;
        first.go();
        second.go();
        wait_until("one runs", || queue(&home, "default")["running"] == 1);
        assert_eq!(queue(&home, "default")["queued"], 1);
        third.go();
        meeting.next().go();
        let mut words = vec!["wait".to_owned()];
        words.extend(ids.iter().map(u64::to_string));
        home.out(&words);
        let refused = home.run(&["queue", "limit", "default", "0"]);
        assert_eq!((refused.code, refused.err.contains("and not 0")), (111, true), "{refused:?}");
        assert_eq!(home.run(&["queue", "pause", "other"]).code, 111);
        daemon.stop();
    });
}

/// Goal: a job that has ended is run again when somebody wants it, under its number, and forgotten likewise.
#[test]
fn ended_jobs_are_retried_and_forgotten() {
    test(|| {
        let home = Home::new("");
        let daemon = home.start();
        let flag = home.path().join("flag");
        let script = format!("echo said; test -e {}", flag.display());
        let id = home.submit(&["--", "sh", "-c", &script]).to_string();
        assert_eq!(home.run(&["wait", &id]).code, 1);
        fs::write(&flag, "").unwrap();
        home.out(&["retry", &id]);
        home.out(&["wait", &id]);
        let expected = ["queued", "running", "failed", "queued", "running", "succeeded"];
        assert_eq!(home.history(1), expected);
        assert_eq!(home.out(&["result", &id]), "said\n");
        // Not while it has not ended.
        home.out(&["queue", "pause", "default"]);
        home.out(&["retry", &id]);
        for command in ["retry", "forget"] {
            let refused = home.run(&[command, &id]);
            assert_eq!(
                (refused.code, refused.err.as_str()),
                (1, "procpool: job 1 has not ended\n")
            );
        }
        home.out(&["queue", "resume", "default"]);
        home.out(&["wait", &id]);
        home.out(&["forget", &id]);
        assert_eq!(home.run(&["status", &id]).code, 111);
        assert!(!home.state().join("logs/0/1.out").exists());
        let again = home.run(&["forget", "1", "99"]);
        assert_eq!(again.code, 2, "{again:?}");
        // Its number is not given again, also not by the next daemon.
        daemon.kill();
        let daemon = home.start();
        assert_eq!(home.submit(&["--", "true"]), 2);
        home.out(&["wait", "2"]);
        daemon.stop();
    });
}

/// Goal: a moment of the calendar is kept to, also over a restart, and one that has passed is now.
/// Covers: F-136
#[test]
fn jobs_wait_for_their_moment() {
    test(|| {
        let home = Home::new("");
        let daemon = home.start();
        let past = home.submit(&["--at", "2001-02-03T04:05:06Z", "--", "true"]);
        let local = home.submit(&["--at", "2001-02-03T04:05", "--", "true"]);
        home.out(&["wait", &past.to_string(), &local.to_string()]);
        let far = home.submit(&["--at", "2999-01-01T00:00:00+01:00", "--", "true"]);
        assert_eq!(home.history(far), ["scheduled"]);
        assert_eq!(home.status(far)["not_before_ms"], 32_472_140_400_000_u64);
        let soon = home.submit(&["--in=1s", "--", "true"]);
        daemon.kill();
        // It is late by then, and runs once.
        let daemon = home.start();
        home.out(&["wait", &soon.to_string()]);
        assert_eq!(home.history(soon), ["scheduled", "queued", "running", "succeeded"]);
        assert_eq!(home.history(far), ["scheduled"]);
        let bad = home.run(&["submit", "--at", "tomorrow", "--", "true"]);
        assert_eq!(bad.code, 102);
        // The same job in an hour is that job, though the hour is a later one.
        let words = ["--key=k", "--in=1h", "--", "true"];
        let first = home.submit(&words);
        assert_eq!(home.submit(&words), first);
        daemon.stop();
    });
}

/// Goal: whoever stopped a job is in its history.
#[test]
fn a_stop_has_a_name() {
    test(|| {
        let home = Home::new("");
        let daemon = home.start();
        let meeting = Meeting::new();
        let id = home.submit(&["--retries=3", "--", GUEST, &meeting.path(), "here"]);
        let _guest = meeting.next();
        home.out(&["abort", &id.to_string()]);
        let status = home.status(id);
        let last = status["history"].as_array().unwrap().last().unwrap().clone();
        assert_eq!(last["state"], "cancelled");
        assert!(last["who"]["client"].as_u64().is_some_and(|pid| pid != u64::from(daemon.pid())));
        daemon.stop();
    });
}

/// Goal: a drained daemon starts nothing, takes jobs, and says when it is quiet; the next one runs them.
/// Covers: F-129
#[test]
fn a_drained_daemon_keeps_what_comes() {
    test(|| {
        let home = Home::new("");
        let daemon = home.start();
        let meeting = Meeting::new();
        home.submit(&["--", GUEST, &meeting.path(), "here"]);
        let guest = meeting.next();
        home.out(&["drain"]);
        let late = home.submit(&["--", "true"]);
        assert_eq!(health(&home)["phase"], "draining");
        guest.go();
        home.out(&["drain", "--wait"]);
        assert_eq!(home.history(1), ["queued", "running", "succeeded"]);
        assert_eq!(home.history(late), ["queued"]);
        daemon.stop();
        let daemon = home.start();
        home.out(&["wait", &late.to_string()]);
        daemon.stop();
    });
}

/// Goal: a job that does not end does not keep the daemon from ending: not beyond the limit, and not beyond a second
/// signal.
/// Covers: F-130
#[test]
fn a_drain_ends() {
    test(|| {
        let home = Home::new("[limits]\ndrain_seconds = 1\n");
        let daemon = home.start();
        let meeting = Meeting::new();
        home.submit(&["--", GUEST, &meeting.path(), "here"]);
        let _guest = meeting.next();
        home.out(&["stop"]);
        let finished = daemon.finish();
        assert_eq!(finished.code, 0, "{finished:?}");
        assert_eq!(home.workers(), [0_u32; 0]);
        fs::write(home.path().join("config.toml"), "[limits]\ndrain_seconds = 3600\n").unwrap();
        let daemon = home.start();
        assert_eq!(home.history(1), ["queued", "running", "interrupted"]);
        home.submit(&["--", GUEST, &meeting.path(), "here"]);
        let _guest = meeting.next();
        daemon.signal(Signal::SIGTERM);
        wait_until("it drains", || health(&home)["phase"] == "stopping");
        daemon.signal(Signal::SIGTERM);
        let finished = daemon.finish();
        assert_eq!(finished.code, 0, "{finished:?}");
        assert_eq!(home.workers(), [0_u32; 0]);
    });
}

/// Goal: a configuration that makes sense holds from SIGHUP on; another one changes nothing, and that is said.
/// Covers: F-131
#[test]
fn a_configuration_is_read_again() {
    test(|| {
        let home = Home::new("[queue.default]\nslots = 1\n");
        let mut daemon = home.start();
        let config = home.path().join("config.toml");
        let meeting = Meeting::new();
        let first = home.submit(&["--", GUEST, &meeting.path(), "here"]);
        let guest = meeting.next();
        fs::write(&config, "[queue.default]\nslots = 2\n[queue.new]\nslots = 3\n").unwrap();
        daemon.signal(Signal::SIGHUP);
        daemon.wait_to_say("holds now");
        assert_eq!(queue(&home, "new")["slots"], 3);
        let second = home.submit(&["--", GUEST, &meeting.path(), "here"]);
        meeting.next().go();
        for bad in ["[queue.default]\nslots = 0\n", "[queue", "level = \"memory\"\n"] {
            fs::write(&config, bad).unwrap();
            daemon.signal(Signal::SIGHUP);
            daemon.wait_to_say("stays as it was");
            assert_eq!(queue(&home, "default")["slots"], 2);
            assert_eq!(queue(&home, "new")["slots"], 3);
        }
        guest.go();
        home.out(&["wait", &first.to_string(), &second.to_string()]);
        let check = |text: &str| {
            fs::write(&config, text).unwrap();
            let path = config.to_str().unwrap();
            home.run(&["daemon", "--check", "--config", path])
        };
        assert_eq!(check("[queue.default]\nslots = 2\n").code, 0);
        for line in ["slots = 0", "timeout = \"soon\"", "memory = \"much\"", "retries = -1"] {
            let bad = check(&format!("[queue.default]\n{line}\n"));
            assert_eq!((bad.code, bad.err.contains(line)), (102, true), "{bad:?}");
        }
        daemon.stop();
    });
}

/// Goal: what a queue is configured with holds for its jobs that say nothing else, and a job's own wins, nothing included. What
/// held when a job was submitted goes on to hold for it: over a reload, a crash, and for whoever asks for it again by its key.
#[test]
fn a_queue_has_defaults_for_its_jobs() {
    test(|| {
        let write = |home: &Home, text: &str| {
            fs::write(home.path().join("config.toml"), format!("[queue.default]\n{text}")).unwrap();
        };
        let home = Home::new("");
        write(&home, "slots = 1\nretries = 1\npriority = 7\n");
        let mut daemon = home.start();
        let mut reload = |text: &str| {
            write(&home, text);
            daemon.signal(Signal::SIGHUP);
            daemon.wait_to_say("holds now");
        };
        let terms = |id: u64| {
            let status = home.status(id);
            ["priority", "retries", "timeout_ms"].map(|name| status[name].clone())
        };
        let failing = home.submit(&["--", "false"]);
        home.run(&["wait", &failing.to_string()]);
        assert_eq!(home.status(failing)["attempts"], 2, "it was tried once more");
        let words = ["--retries=0", "--priority=-3", "--timeout=1h", "--", "false"];
        let own = home.submit(&words);
        home.run(&["wait", &own.to_string()]);
        assert_eq!(home.status(own)["attempts"], 1, "it said that it is not to be tried again");
        assert_eq!(terms(own), [json!(-3), json!(0), json!(3_600_000)]);
        reload("slots = 1\ntimeout = \"50ms\"\nretries = 1\npriority = 7\n");
        let late = home.submit(&["--", "sleep", "1000"]);
        assert_eq!(home.run(&["wait", &late.to_string()]).code, 1);
        assert_eq!(home.status(late)["state"], "timed_out");
        // It waits, with what was configured when it came.
        home.out(&["queue", "pause", "default"]);
        let kept = ["--key=k", "--", "sleep", "1000"];
        let waits = home.submit(&kept);
        assert_eq!(terms(waits), [json!(7), json!(1), json!(50)]);
        reload("slots = 1\nretries = 4\n");
        let new = home.submit(&["--", "true"]);
        assert_eq!(terms(new), [json!(0), json!(4), json!(null)]);
        assert_eq!(home.submit(&kept), waits, "the same was asked for");
        let other = home.run(&["submit", "--timeout=50ms", "--key=k", "--", "sleep", "1000"]);
        assert_eq!(other.code, 111, "{other:?}");
        daemon.kill();
        let daemon = home.start();
        assert_eq!(terms(waits), [json!(7), json!(1), json!(50)]);
        home.out(&["queue", "resume", "default"]);
        home.run(&["wait", &waits.to_string(), &new.to_string()]);
        assert_eq!(home.status(waits)["state"], "timed_out");
        daemon.stop();
    });
}

/// Goal: jobs that want more memory than their queue has for each are killed, and others of it go on; without the limit, as
/// after a reload, they get it.
#[test]
fn a_queue_limits_the_memory_of_its_jobs() {
    test(|| {
        let home = Home::new("[queue.default]\nmemory = \"64M\"\n");
        let mut daemon = home.start();
        // All of it is in memory at once.
        let words =
            ["submit", "--wait", "--", "sh", "-c", "x=$(head -c 200M /dev/zero | tr '\\0' x)"];
        let large = home.run(&words);
        assert_eq!(home.status(1)["state"], "died", "{large:?}");
        home.out(&["submit", "--wait", "--", "true"]);
        fs::write(home.path().join("config.toml"), "").unwrap();
        daemon.signal(Signal::SIGHUP);
        daemon.wait_to_say("holds now");
        home.out(&words);
        daemon.stop();
    });
}

/// Goal: a job that has a slot in advance is said to wait until a worker has it, wherever it waits.
/// Method: short tasks, until slots are given in advance; then one that holds the only slot, and others behind it.
#[test]
fn what_has_not_begun_is_not_said_to_run() {
    test(|| {
        let home = Home::with_tasks(1);
        let daemon = home.start();
        let client = daemon.client();
        let submit = |task: &str, argument: String| {
            let (task, argument) = (format!("it::daemon::{task}"), argument.into_bytes());
            let work = Work::Task(TaskWork { task, fingerprint: None, argument });
            let terms = Terms { queue: "tasks".into(), ..Terms::new("a task") };
            match client.request(&Request::Submit(JobSpec { terms, work })).unwrap() {
                Response::Submitted(id) => id,
                other => panic!("{other:?}"),
            }
        };
        for id in (0..100).map(|n| submit("tasks::double", n.to_string())).collect::<Vec<_>>() {
            client.request(&Request::Wait(id)).unwrap();
        }
        let meeting = Meeting::new();
        let argument = json!([meeting.path(), 1]).to_string();
        let mut ids = vec![submit("client::meet_and_triple", argument)];
        let guest = meeting.next();
        ids.extend((0..4).map(|n| submit("tasks::double", n.to_string())));
        let records = match client.request(&Request::Records(ids.clone())).unwrap() {
            Response::Records(records) => records,
            other => panic!("{other:?}"),
        };
        let states = records.iter().flatten().map(|record| record.life.state());
        let expected = [State::Running(1)].into_iter().chain([State::Queued; 4]);
        assert!(states.eq(expected), "{records:?}");
        assert!(records.iter().skip(1).flatten().all(|record| record.life.attempts == 0));
        let counts = queue(&home, "tasks");
        assert_eq!((&counts["running"], &counts["queued"]), (&json!(1), &json!(4)));
        match client.request(&Request::Activity).unwrap() {
            Response::Activity(activity) => assert_eq!(activity.running, ids[..1]),
            other => panic!("{other:?}"),
        }
        guest.go();
        for id in ids {
            client.request(&Request::Wait(id)).unwrap();
            assert_eq!(home.history(id.0), ["queued", "running", "succeeded"]);
        }
        drop(client);
        daemon.stop();
    });
}

/// Goal: a worker program that is not there for a while costs no job.
#[test]
fn a_job_waits_for_a_worker_program_that_is_being_replaced() {
    test(|| {
        let home = Home::new("");
        let worker = home.path().join("worker");
        let config = format!("[queue.tasks]\nworker = {worker:?}\n");
        fs::write(home.path().join("config.toml"), config).unwrap();
        let daemon = home.start();
        let id = home.submit(&["-q", "tasks", "--task", DOUBLE, "21"]);
        wait_until("it is tried again", || home.history(id).contains(&"scheduled".to_owned()));
        let why = home.status(id)["history"][2]["why"].as_str().unwrap().to_owned();
        assert!(why.contains("no worker could be started"), "{why}");
        symlink(fs::canonicalize("/proc/self/exe").unwrap(), &worker).unwrap();
        assert_eq!(home.out(&["result", &id.to_string()]), "42\n");
        daemon.stop();
    });
}

/// Goal: what is kept of a command that talks without end is bounded, and one that leaves something behind which
/// holds its streams open has ended all the same.
/// Covers: F-100
#[test]
fn a_log_is_bounded_and_ends_with_its_command() {
    test(|| {
        let home = Home::new("[limits]\nlog_bytes = 1000\n");
        let daemon = home.start();
        let script = "head -c 1000000 /dev/zero | tr '\\0' x; echo end >&2";
        let id = home.submit(&["--", "sh", "-c", script]).to_string();
        home.out(&["wait", &id]);
        let log = home.run(&["logs", &id]);
        let expected =
            format!("{}\n[procpool: 999000 more bytes were not kept]\n", "x".repeat(1000));
        assert_eq!((log.out.as_str(), log.err.as_str()), (expected.as_str(), "end\n"));
        let id = home.submit(&["--", "sh", "-c", "sleep 1000 & echo said"]).to_string();
        home.out(&["wait", &id]);
        assert_eq!(home.out(&["result", &id]), "said\n");
        daemon.stop();
    });
}

/// Goal: how the daemon is can be read by programs, and by Prometheus.
#[test]
fn figures_are_to_be_had() {
    test(|| {
        let socket = Home::new("");
        let place = socket.path().join("metrics");
        let config = format!("[metrics]\nlisten = {place:?}\n");
        fs::write(socket.path().join("config.toml"), config).unwrap();
        let daemon = socket.start();
        socket.out(&["submit", "--wait", "--", "true"]);
        let figures = health(&socket);
        assert_eq!(figures["phase"], "serving");
        assert_eq!(figures["level"], "machine");
        assert_eq!(figures["ended"]["succeeded"], 1);
        assert_eq!(figures["pid"], daemon.pid());
        assert!(socket.out(&["health"]).contains("serving"));
        let text = scrape(UnixStream::connect(&place).unwrap());
        assert!(text.contains("\nprocpool_jobs_ended_total{state=\"succeeded\"} 1\n"), "{text}");
        assert!(text.contains("\nprocpool_queue_running{queue=\"default\"} 0\n"), "{text}");
        daemon.stop();
        assert!(!place.exists());
        // Free a moment ago; nobody else here takes ports.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let home = Home::new(&format!("[metrics]\nlisten = \"{port}\"\n"));
        let daemon = home.start();
        // Scrapers that say nothing keep nobody waiting.
        let silent: Vec<TcpStream> = (0..3).map(|_| TcpStream::connect(port).unwrap()).collect();
        let text = scrape(TcpStream::connect(port).unwrap());
        assert!(text.contains("\nprocpool_serving 1\n"), "{text}");
        drop(silent);
        daemon.stop();
    });
}

fn scrape(mut stream: impl Read + Write) -> String {
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: here\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(head.contains(&format!("Content-Length: {}", body.len())), "{head}");
    body.to_owned()
}

/// Goal: what a command says is seen as it says it, and the end with it.
/// Method: the command waits until its first words have been read.
#[test]
fn a_log_is_followed() {
    test(|| {
        let home = Home::new("");
        let daemon = home.start();
        let meeting = Meeting::new();
        let script =
            format!("echo first; {GUEST} {} here; echo last; echo err >&2", meeting.path());
        let id = home.submit(&["--", "sh", "-c", &script]).to_string();
        let mut command = std::process::Command::new(super::fixture::PROCPOOL);
        command.args(["logs", "-f", &id]).env("PROCPOOL_SOCKET", home.socket());
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        #[expect(clippy::disallowed_methods, reason = "the program is no worker of a pool of ours")]
        let mut logs = command.spawn().unwrap();
        let mut out = std::io::BufReader::new(logs.stdout.take().unwrap());
        let mut line = String::new();
        std::io::BufRead::read_line(&mut out, &mut line).unwrap();
        assert_eq!(line, "first\n");
        meeting.next().go();
        out.read_to_string(&mut line).unwrap();
        // The guest says its word here as well.
        assert_eq!(line, "first\nhere\nlast\n");
        let output = logs.wait_with_output().unwrap();
        assert!(output.status.success());
        assert_eq!(output.stderr, b"err\n");
        daemon.stop();
    });
}
