//! What a worker has from its host, and what not.

use std::collections::BTreeMap;
use std::process::Command;

use super::fixture::{Fixture, HOST, METHODS};
use crate::support::test;

/// SIGPIPE in the masks of /proc/self/status.
const SIGPIPE: u64 = 1 << (libc::SIGPIPE - 1);

/// What a job of a host sees that has open descriptors without close-on-exec, blocks SIGTERM and SIGUSR1,
/// ignores SIGCHLD and SIGINT, wants core dumps and has a variable set.
fn seen(method: &str) -> BTreeMap<String, String> {
    let mut host = Command::new(HOST);
    let left = Fixture::start(host.args(["inherit", method]).env("WORD", "inherited")).end();
    assert!(left.status.success(), "{left:?}");
    serde_json::from_str(&left.output).unwrap()
}

/// Goal: a worker has what it needs and nothing else; a job finds a clean process, whether it was executed or
/// forked off one that was.
/// Method: one host that has everything wrong, one job that looks around.
/// Covers: F-73, F-103, F-104, F-105
#[test]
fn a_worker_inherits_nothing_that_a_job_would_trip_over() {
    test(|| METHODS.into_iter().for_each(looks_clean));
}

fn looks_clean(method: &str) {
    let seen = seen(method);
    let get = |key: &str| seen[key].as_str();
    let open: Vec<&str> = get("descriptors").lines().collect();
    assert_eq!(open[0], "0 /dev/null");
    assert!(open[1..].iter().any(|line| line.contains(" socket:")), "{open:?}");
    assert_eq!(open.len(), 4, "0, 1, 2 and the channel: {open:?}");
    assert_eq!(get("input"), "Some(0)", "nothing to read, and no error");

    let mask = |key: &str| u64::from_str_radix(get(key), 16).unwrap();
    assert_eq!(mask("SigBlk"), 0, "{:x}", mask("SigBlk"));
    assert_eq!(mask("SigIgn") & !SIGPIPE, 0, "{:x}", mask("SigIgn"));

    assert_eq!(get("variables"), "");
    assert_eq!(get("word"), "inherited", "other variables are");
    assert_eq!(get("core limit"), "0");
    assert_eq!(get("group"), get("pid"), "it leads a group of its own");

    let command = get("command");
    assert!(command.contains("procpool-worker 0 of life-host"), "{command}");
    assert_eq!(get("main thread"), "procpool-w0");
    assert_eq!(get("Name"), "procpool-w0");

    let score = |key: &str| get(key).parse::<i32>().unwrap();
    let (worker, host) = (score("oom_score_adj"), score("host oom_score_adj"));
    assert!(worker > host || worker == 1000, "{worker} beside {host}");
}
