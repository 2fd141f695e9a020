//! What subscribers of `tracing` are told.

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Command, Output};

use crate::support::test;

const HOST: &str = env!("CARGO_BIN_EXE_events-host");
const DOCUMENTATION: &str = include_str!("../../../crates/procpool/src/events.rs");

fn story(arguments: &[&str]) -> Output {
    let output = Command::new(HOST).args(arguments).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    output
}

/// What the log has at this level: lines `LEVEL target name field=value …`.
fn log(level: &str) -> Vec<String> {
    let text = String::from_utf8(story(&["log", level]).stdout).unwrap();
    text.lines().map(str::to_owned).collect()
}

fn name(line: &str) -> &str {
    line.split(' ').nth(2).unwrap()
}

/// The value of a field, up to the next one; of a text that is the first word.
fn field<'a>(line: &'a str, field: &str) -> &'a str {
    let start = line.split_once(&format!(" {field}=")).unwrap_or_else(|| panic!("{field}: {line}"));
    start.1.split(' ').next().unwrap()
}

/// Goal: every event of the documented table comes with the level and fields that the table gives it, and no other
/// comes.
#[test]
fn the_log_is_as_documented() {
    test(|| {
        let rows = DOCUMENTATION.lines().filter_map(|line| line.strip_prefix("//! | `"));
        let documented: BTreeMap<&str, (&str, BTreeSet<&str>)> = rows
            .map(|row| {
                let columns: Vec<&str> = row.split('|').map(str::trim).collect();
                let fields = columns[2].split('`').skip(1).step_by(2).chain(["pool"]).collect();
                (columns[0].trim_end_matches('`'), (columns[1], fields))
            })
            .collect();
        assert_eq!(documented.len(), 18);
        let mut seen = BTreeSet::new();
        for line in log("trace") {
            let mut words = line.split(' ');
            let (level, target) = (words.next().unwrap(), words.next().unwrap());
            let name = words.next().unwrap();
            let (levels, fields) = &documented[name];
            assert!(levels.contains(level) && target == "procpool", "{line}");
            let known =
                if name == "job_quarantined" { &documented["job_failed"].1 } else { fields };
            for word in words {
                // Texts have spaces, and could have an equals sign.
                let key = word.split_once('=').map_or("", |(key, _)| key);
                assert!(key.is_empty() || known.contains(key), "{key} in {line}");
            }
            assert!(line.contains(" pool="), "{line}");
            seen.insert(name.to_owned());
        }
        let missing: Vec<_> = documented.keys().filter(|name| !seen.contains(**name)).collect();
        // In the story everybody can be killed and nobody breaks the protocol; these are told by the same code as the
        // events, which have tests.
        assert_eq!(missing, [&"worker_abandoned", &"worker_fault"]);
    });
}

/// Goal: the facts are in the fields.
#[test]
fn the_log_has_the_facts() {
    test(|| {
        let lines = log("debug");
        let all = |wanted: &str| -> Vec<&String> {
            lines.iter().filter(|line| name(line) == wanted).collect()
        };
        let pools: BTreeSet<&str> = lines.iter().map(|line| field(line, "pool")).collect();
        assert_eq!(pools.len(), 2);
        let cry = all("job_failed").into_iter().find(|line| field(line, "name") == "\"cry\"");
        let cry = cry.unwrap();
        assert!(cry.contains("a cry") && cry.contains("events_host.rs:"), "{cry}");
        let said = all("worker_line");
        assert!(said.iter().any(|line| line.contains("line=a captured line")), "{said:?}");
        let retry = all("job_retry")[0];
        assert_eq!(field(retry, "attempt"), "2");
        let given_up = all("job_quarantined")[0];
        assert_eq!(field(given_up, "job"), field(retry, "job"));
        assert!(given_up.contains("SIGABRT"), "{given_up}");
        let died = all("worker_ended").into_iter().find(|line| field(line, "end") == "Died");
        assert_eq!(field(died.unwrap(), "job"), field(retry, "job"));
        let causes = all("start_failed");
        assert_eq!(causes.len(), 3);
        assert!(causes.iter().all(|line| line.contains("no such model")), "{causes:?}");
        assert!(!lines.iter().any(|line| name(line) == "job_ended"), "that is TRACE");
    });
}

/// Goal: a log that wants warnings alone gets nothing else.
#[test]
fn a_log_gets_no_more_than_it_wants() {
    test(|| {
        let lines = log("warn");
        assert!(!lines.is_empty());
        assert!(lines.iter().all(|line| line.starts_with("WARN") || line.starts_with("ERROR")));
    });
}

/// Goal: a subscriber that panics at every event costs the pool nothing.
#[test]
fn a_log_that_panics_costs_nothing() {
    test(|| assert_eq!(story(&["panicking-log"]).stdout, b"42\nended\n"));
}

/// Goal: a subscriber may ask the pool, and submit to it, while it is told: no lock is held.
#[test]
fn a_log_may_ask_the_pool() {
    test(|| assert_eq!(story(&["asking-log"]).stdout, b"5 asked\n5 finished\n"));
}
