//! Tasks: functions registered by name keep their identity, in debug and release builds alike.

use std::collections::HashSet;

use procpool::{JobError, ProcessPool, tasks};

use crate::support::test;

mod inner {
    /// In a module of its own, with the name of another task.
    #[procpool::task]
    pub(super) fn same_name(n: u64) -> String {
        format!("inner {n}")
    }

    pub(super) mod deeper {
        #[procpool::task]
        pub(in super::super) fn same_name(n: u64) -> String {
            format!("deeper {n}")
        }
    }
}

#[procpool::task]
fn same_name(n: u64) -> String {
    format!("outer {n}")
}

// Three functions of one body, which an optimizer would like to make one function.
#[procpool::task]
fn twin_a(n: u64) -> u64 {
    n + 1
}

#[procpool::task]
fn twin_b(n: u64) -> u64 {
    n + 1
}

#[procpool::task]
fn twin_c(n: u64) -> u64 {
    n + 1
}

/// A body that an optimizer would like to put into its callers.
#[procpool::task]
#[inline(always)]
#[must_use]
fn attributed(n: u64) -> u64 {
    n * 2
}

#[procpool::task]
#[cfg(not(unix))]
fn compiled_out(n: u64) -> u64 {
    n
}

#[procpool::task]
#[cfg(unix)]
fn compiled_in((a, b): (u64, String)) -> Result<String, String> {
    Err(format!("{a} {b}"))
}

#[procpool::task]
fn no_argument(_: ()) {}

const HERE: &str = module_path!();

/// Goal: every task has a name of its own, which says where it stands, and a fingerprint of its own.
#[test]
fn each_task_is_listed_once_under_its_path() {
    let here: Vec<_> = tasks().iter().filter(|task| task.name.starts_with(HERE)).collect();
    let mut listed: Vec<(&str, &str)> =
        here.iter().map(|task| (&task.name[HERE.len()..], task.signature)).collect();
    listed.sort_unstable();
    let expected = [
        ("::attributed", "fn(u64) -> u64"),
        ("::compiled_in", "fn((u64, String)) -> Result<String, String>"),
        ("::inner::deeper::same_name", "fn(u64) -> String"),
        ("::inner::same_name", "fn(u64) -> String"),
        ("::no_argument", "fn(()) -> ()"),
        ("::same_name", "fn(u64) -> String"),
        ("::twin_a", "fn(u64) -> u64"),
        ("::twin_b", "fn(u64) -> u64"),
        ("::twin_c", "fn(u64) -> u64"),
    ];
    assert_eq!(listed, expected);
    let fingerprints: HashSet<u64> = here.iter().map(|task| task.fingerprint).collect();
    assert_eq!(fingerprints.len(), expected.len());
}

/// Goal: a task is called by its name with JSON, and the one of that name answers.
#[test]
fn each_name_calls_its_own_task() {
    test(|| {
        let pool = ProcessPool::builder().workers(1).build().unwrap();
        let call = |task: &str, json: &str| pool.call(&format!("{HERE}::{task}"), json).result();
        assert_eq!(call("same_name", "1").unwrap(), r#""outer 1""#);
        assert_eq!(call("inner::same_name", "2").unwrap(), r#""inner 2""#);
        assert_eq!(call("inner::deeper::same_name", "3").unwrap(), r#""deeper 3""#);
        for twin in ["twin_a", "twin_b", "twin_c"] {
            assert_eq!(call(twin, "41").unwrap(), "42");
        }
        assert_eq!(call("attributed", "21").unwrap(), "42");
        assert_eq!(call("compiled_in", r#"[4, "x"]"#).unwrap(), r#"{"Err":"4 x"}"#);
        assert_eq!(call("no_argument", "null").unwrap(), "null");
        let missing = call("compiled_out", "1");
        assert!(matches!(missing, Err(JobError::Unregistered(_))), "{missing:?}");
    });
}

/// Goal: a task is still an ordinary function, here and in `submit`.
#[test]
fn a_task_is_an_ordinary_function_too() {
    test(|| {
        let pool = ProcessPool::builder().workers(1).build().unwrap();
        assert_eq!(same_name(1), "outer 1");
        assert_eq!(inner::same_name(1), "inner 1");
        assert_eq!(attributed(21), 42);
        assert_eq!(pool.submit(same_name, 5).result().unwrap(), "outer 5");
        assert_eq!(pool.submit(inner::same_name, 5).result().unwrap(), "inner 5");
        assert_eq!(pool.submit(inner::deeper::same_name, 5).result().unwrap(), "deeper 5");
        assert_eq!(pool.submit(attributed, 21).result().unwrap(), 42);
    });
}

/// Goal: functions of equal bodies stay distinct by address, which is how a pool finds the task that a
/// function is registered as.
#[test]
fn tasks_with_the_same_body_have_addresses_of_their_own() {
    let addresses: HashSet<usize> =
        [twin_a, twin_b, twin_c].map(|twin: fn(u64) -> u64| twin as usize).into();
    assert_eq!(addresses.len(), 3);
}
