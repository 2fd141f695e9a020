//! `--json` of every subcommand that prints data, as a program reads it; and what is said when there is nothing to read.

use serde_json::Value;

use super::fixture::{Finished, Home};
use crate::support::test;

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn one(text: &str) -> Value {
    let mut lines = lines(text);
    assert_eq!(lines.len(), 1, "{text:?}");
    lines.remove(0)
}

#[test]
fn every_answer_can_be_had_as_json() {
    test(|| {
        let home = Home::with_tasks(1);
        let daemon = home.start();
        let pong = one(&home.out(&["ping", "--json"]));
        assert_eq!(pong["pid"], daemon.pid());
        assert_eq!(pong["version"], env!("CARGO_PKG_VERSION"));
        assert_eq!(one(&home.out(&["submit", "--json", "--", "sh", "-c", "exit 7"]))["id"], 1);
        let ended = home.run(&["result", "--json", "1"]);
        assert_eq!(ended.code, 7);
        let ended = one(&ended.out);
        assert_eq!((&ended["state"], &ended["exit"]), (&"failed".into(), &7.into()));
        assert_eq!((&ended["attempts"], &ended["id"]), (&1.into(), &1.into()));
        assert_eq!(ended["error"], "the command failed: exit code 7");
        assert!(ended["ran_ms"].is_u64() && ended["queued_ms"].is_u64() && ended["pid"].is_u64());
        let words = ["submit", "--json", "--wait", "-q", "tasks", "--task"];
        let task = |name: &str, argument: &str| home.run(&[&words[..], &[name, argument]].concat());
        let good = one(&task("it::daemon::tasks::double", "21").out);
        assert_eq!((&good["value"], &good["state"]), (&42.into(), &"succeeded".into()));
        assert!(good.get("error").is_none());
        let bad = one(&task("it::daemon::tasks::refuse_13", "13").out);
        assert_eq!(bad["state"], "panicked");
        assert!(bad["error"].as_str().unwrap().contains("no 13 here"), "{bad}");
        let waited = home.run(&["wait", "--json", "1", "2"]);
        assert_eq!(waited.code, 1);
        let waited = lines(&waited.out);
        assert_eq!(
            (&waited[0]["state"], &waited[1]["state"]),
            (&"failed".into(), &"succeeded".into())
        );
        let all = lines(&home.out(&["status", "--json"]));
        assert_eq!(
            all.iter().map(|job| job["id"].as_u64().unwrap()).collect::<Vec<_>>(),
            [1, 2, 3]
        );
        assert_eq!(all[0]["history"][0]["state"], "queued");
        daemon.stop();
    });
}

fn says(finished: &Finished, code: i32, part: &str) {
    assert_eq!(finished.code, code, "{finished:?}");
    assert!(finished.err.contains(part) && finished.out.is_empty(), "{finished:?}");
}

/// Goal: a number that there is not, or that is none, is named, by each subcommand that takes one.
#[test]
fn wrong_numbers_are_named() {
    test(|| {
        let home = Home::new("");
        let daemon = home.start();
        for command in ["status", "wait", "result", "cancel", "abort"] {
            says(&home.run(&[command, "4711"]), 111, "there is no job 4711");
            says(&home.run(&[command, "x"]), 102, "a job has a number");
            says(&home.run(&[command, "0"]), 102, "a job has a number");
        }
        says(&home.run(&["submit", "--after=9", "--", "true"]), 111, "there is no job 9");
        says(&home.run(&["submit", "-q", "none", "--", "true"]), 111, "there is no queue `none`");
        daemon.stop();
    });
}

/// Goal: without a daemon each subcommand says so, and where it looked.
#[test]
fn a_missing_daemon_is_named() {
    test(|| {
        let home = Home::new("");
        let socket = home.socket().display().to_string();
        let commands: [&[&str]; 9] = [
            &["submit", "--", "true"],
            &["status"],
            &["status", "1"],
            &["wait", "1"],
            &["result", "1"],
            &["logs", "1"],
            &["cancel", "1"],
            &["ping"],
            &["stop"],
        ];
        for command in commands {
            says(&home.run(command), 110, &format!("no daemon answers at `{socket}`"));
        }
    });
}
