//! Every promise has a test, or a reason for having none.
//!
//! The numbers are those of a list that was drawn up from CPython 3.11 to 3.16's `concurrent.futures` (1 to
//! 177, in sections A to S) and from what loky (X) and pebble and mpire (Y) have beyond it. The sections'
//! files say what each is about.

use std::collections::{BTreeMap, BTreeSet};

const COUNTS: [(&str, u32); 3] = [("", 177), ("X", 20), ("Y", 14)];

/// Promises without a meaning here, and why.
const NONE: &[(&str, &str)] = &[
    (
        "7",
        "Python only: types print under their public module path; Rust's paths are what is exported.",
    ),
    ("28", "The producer's side is not public: no caller can start a job twice."),
    ("29", "The producer's side is not public: no caller can set a result."),
    ("30", "The producer's side is not public: no caller can set an error."),
    ("43", "A future is owned, so it cannot stand in a list twice."),
    ("56", "`Until` is an enum: there is no unknown value."),
    ("67", "Python only: keyword arguments."),
    (
        "69",
        "Python only: an interpreter that is shutting down; here `main` drops its pools, or the process is gone.",
    ),
    ("73", "Python only: errors that are falsy."),
    ("88", "The buffer's type is checked by the compiler."),
    (
        "97",
        "A map borrows its pool, which so cannot be gone; after a shutdown its elements are refused one by one, see 99.",
    ),
    (
        "104",
        "There is no shutdown without waiting; a program that ends without one ends its workers, see X6.",
    ),
    ("115", "Python only: threads that cannot be made while the interpreter is finalised."),
    ("117", "Windows only."),
    ("126", "There is no probe of system limits to be forbidden."),
    ("134", "The absence of a hook; worker indices are there, see Y13."),
    ("169", "`Shutdown` is an enum: there is no unknown operation."),
    ("172", "A thread pool has no initializer: its closures can capture what they need."),
    (
        "174",
        "The compiler refuses closures that capture: a `compile_fail` example of `ProcessPool::submit`.",
    ),
    (
        "X7",
        "There is no global pool that could be used again: a pool is a value, and dropping it ends it.",
    ),
    ("X8", "A pool has a fixed number of workers."),
    (
        "X15",
        "No crash handler: the signal, the phase and the last words are in the report, see 146.",
    ),
    (
        "Y11",
        "There is no exit function; a job's own thread-locals and statics are the worker's affair.",
    ),
];

/// What pools do and a daemon does not, by its nature, or not in the same way; and why. `shutdown` is all of that file.
const NOT_ON_A_DAEMON: &[(&str, &str)] = &[
    (
        "callbacks::a_callback_that_submits_too_late_is_told_so",
        "Only the daemon itself can be stopped: `daemon::client` has what is told then.",
    ),
    (
        "callbacks::a_shutdown_waits_for_callbacks",
        "Dropping the handle waits for nothing: the jobs go on without it.",
    ),
    (
        "context::a_job_knows_itself",
        "The job's number is the one that the daemon's own pool has given it; `daemon::client` looks at the attempt.",
    ),
    (
        "context::progress_after_the_end_goes_nowhere",
        "Progress is asked for while the job runs, and is not kept: `daemon::client` sees it.",
    ),
    ("context::progress_is_seen_from_outside", "As above."),
    ("shutdown", "A daemon outlives its clients: dropping the handle stops nothing."),
    (
        "submit::a_job_may_have_a_pool_of_its_own",
        "A function that is generic over its pool is no task; a job may connect to a daemon like any program.",
    ),
    (
        "submit::a_submit_is_a_call",
        "Functions travel by name, so closures and functions of other crates cannot.",
    ),
    (
        "submit::after_a_shutdown_jobs_are_refused",
        "Only the daemon itself can be stopped: `daemon::client` has what is told then.",
    ),
    ("submit::submits_race_with_a_shutdown", "As above."),
];

/// The sources of the suite, this file apart.
const SOURCES: &[(&str, &str)] = &[
    ("as_completed", include_str!("as_completed.rs")),
    ("awaiting", include_str!("awaiting.rs")),
    ("beyond", include_str!("beyond.rs")),
    ("callbacks", include_str!("callbacks.rs")),
    ("cancel", include_str!("cancel.rs")),
    ("context", include_str!("context.rs")),
    ("daemons", include_str!("daemons.rs")),
    ("death", include_str!("death.rs")),
    ("encoding", include_str!("encoding.rs")),
    ("errors", include_str!("errors.rs")),
    ("forced", include_str!("forced.rs")),
    ("forks", include_str!("forks.rs")),
    ("future", include_str!("future.rs")),
    ("idle", include_str!("idle.rs")),
    ("initializer", include_str!("initializer.rs")),
    ("jobs", include_str!("jobs.rs")),
    ("limits", include_str!("limits.rs")),
    ("map", include_str!("map.rs")),
    ("recycle", include_str!("recycle.rs")),
    ("settings", include_str!("settings.rs")),
    ("shutdown", include_str!("shutdown.rs")),
    ("stats", include_str!("stats.rs")),
    ("submit", include_str!("submit.rs")),
    ("threads", include_str!("threads.rs")),
    ("timeouts", include_str!("timeouts.rs")),
    ("wait", include_str!("wait.rs")),
    ("workers", include_str!("workers.rs")),
];

/// The numbers that each test names: number to tests.
fn covered() -> BTreeMap<String, Vec<String>> {
    let mut covered: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (file, source) in SOURCES {
        let mut numbers: Vec<String> = Vec::new();
        for line in source.lines().map(str::trim_start) {
            if let Some(list) = line.strip_prefix("/// Covers: ") {
                // Faults have a table of their own.
                let promises = list.split(',').map(str::trim).filter(|n| !n.starts_with("F-"));
                numbers.extend(promises.map(str::to_owned));
            } else if let Some(rest) = line.strip_prefix("fn ")
                && !numbers.is_empty()
            {
                let name = rest.split(['(', '<']).next().unwrap_or(rest);
                assert!(
                    is_test(source, name),
                    "{file}.rs: `{name}` covers something and is no test"
                );
                for number in numbers.drain(..) {
                    covered.entry(number).or_default().push(format!("{file}::{name}"));
                }
            }
        }
        assert!(numbers.is_empty(), "{file}.rs: a `Covers:` without a test");
    }
    covered
}

/// True if the function is a test by itself, or one that both kinds of pool run.
fn is_test(source: &str, name: &str) -> bool {
    let own = source
        .split("#[test]")
        .skip(1)
        .any(|after| after.split("fn ").nth(1).is_some_and(|f| f.starts_with(&format!("{name}("))));
    own || listed(source, "\non_both_pools![").any(|item| item == name)
}

/// What stands in the list that this macro is given.
fn listed<'a>(source: &'a str, start: &str) -> impl Iterator<Item = &'a str> {
    let list = source.split_once(start).and_then(|(_, list)| list.split_once(']'));
    let items = list.map_or("", |(list, _)| list).split(',').map(str::trim);
    items.filter(|item| !item.is_empty())
}

fn all() -> BTreeSet<String> {
    COUNTS
        .iter()
        .flat_map(|(annex, count)| (1..=*count).map(move |n| format!("{annex}{n}")))
        .collect()
}

/// Goal: no promise is forgotten: each number has a test or a reason, never both; and no test names a
/// number that there is not.
#[test]
fn every_promise_has_a_test_or_a_reason() {
    let covered = covered();
    let excused: BTreeSet<String> = NONE.iter().map(|(number, _)| (*number).to_owned()).collect();
    assert_eq!(excused.len(), NONE.len(), "a number is excused twice");
    let all = all();
    let named: BTreeSet<String> = covered.keys().cloned().collect();
    let forgotten: Vec<_> = all
        .iter()
        .filter(|number| !named.contains(*number) && !excused.contains(*number))
        .collect();
    assert!(forgotten.is_empty(), "neither test nor reason: {forgotten:?}");
    let unknown: Vec<_> = named.union(&excused).filter(|n| !all.contains(*n)).collect();
    assert!(unknown.is_empty(), "no such numbers: {unknown:?}");
    let both: Vec<_> = named.intersection(&excused).collect();
    assert!(both.is_empty(), "both tested and excused: {both:?}");
    assert!(NONE.iter().all(|(_, reason)| reason.ends_with('.')));
}

/// Goal: the table reads every file of the suite.
#[test]
fn the_table_reads_every_file() {
    let modules: BTreeSet<_> = include_str!("mod.rs")
        .lines()
        .filter_map(|line| {
            let line = line.strip_prefix("pub(crate) ").unwrap_or(line);
            line.strip_prefix("mod ")?.strip_suffix(';')
        })
        .filter(|name| *name != "table")
        .collect();
    let sources: BTreeSet<_> = SOURCES.iter().map(|(name, _)| *name).collect();
    assert_eq!(modules, sources);
}

/// Goal: what both kinds of pool promise, a daemon does as well, or there is a reason.
#[test]
fn a_daemon_promises_the_same_or_there_is_a_reason() {
    let mut both = BTreeSet::new();
    let mut daemons = BTreeSet::new();
    for (file, source) in SOURCES {
        let name = |test| format!("{file}::{test}");
        both.extend(listed(source, "\non_both_pools![").map(name));
        daemons.extend(listed(source, "\non_a_daemon![").map(name));
    }
    let excused = |name: &String| {
        let file = name.split("::").next().unwrap();
        NOT_ON_A_DAEMON.iter().any(|(excused, _)| excused == name || *excused == file)
    };
    let forgotten: Vec<_> = both.difference(&daemons).filter(|name| !excused(name)).collect();
    assert!(forgotten.is_empty(), "neither on a daemon nor excused: {forgotten:?}");
    let both_ways: Vec<_> = daemons.iter().filter(|name| excused(name)).collect();
    assert!(both_ways.is_empty(), "on a daemon and excused: {both_ways:?}");
    assert!(daemons.len() > 60, "{} tests", daemons.len());
    assert!(NOT_ON_A_DAEMON.iter().all(|(_, reason)| reason.ends_with('.')));
}
