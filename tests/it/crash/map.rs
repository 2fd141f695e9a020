//! A map of which some elements crash.

use procpool::{JobError, Map, Phase, ProcessPool};

use super::fault::Fault;
use super::ledger::{Ledger, note};
use crate::support::test;

const ELEMENTS: u64 = 10_000;
/// The first, two neighbours, the ends of common chunk sizes, the last.
const CULPRITS: [u64; 7] = [0, 1, 99, 4_095, 4_096, 7_777, 9_999];
const LEDGER: &str = "LEDGER_OF_THE_MAP";

fn work(n: u64) -> u64 {
    note(&std::env::var(LEDGER).unwrap(), n);
    let faults = [Fault::Segfault, Fault::Abort, Fault::ExitZero];
    if let Some(place) = CULPRITS.iter().position(|culprit| *culprit == n) {
        faults[place % faults.len()].strike();
    }
    n * 2
}

type Results<'p> = Map<'p, u64, u64, std::ops::Range<u64>>;

/// Runs the map on a pool of its own, and checks that each element ran exactly once, crash or not.
fn results(set_up: impl FnOnce(Results<'_>) -> Results<'_>) -> Vec<Result<u64, JobError>> {
    let ledger = Ledger::new();
    let pool = ProcessPool::builder().workers(3).env(LEDGER, ledger.path()).build().unwrap();
    let results = set_up(pool.map(work, 0..ELEMENTS)).collect();
    assert_eq!(pool.stats().deaths, CULPRITS.len() as u64);
    let attempts = ledger.attempts();
    assert_eq!(attempts.len() as u64, ELEMENTS);
    assert!(attempts.values().all(|attempts| *attempts == [1]));
    results
}

fn check_ordered(results: Vec<Result<u64, JobError>>) {
    assert_eq!(results.len() as u64, ELEMENTS);
    for (n, result) in (0..).zip(results) {
        match result {
            Ok(value) => {
                assert_eq!(value, n * 2);
                assert!(!CULPRITS.contains(&n), "{n}");
            }
            Err(JobError::Died(death)) => {
                assert!(CULPRITS.contains(&n), "{n}: {death:?}");
                assert_eq!((death.phase, death.attempt), (Phase::Run, 1), "{n}");
            }
            Err(error) => panic!("{n}: {error}"),
        }
    }
}

/// Goal: a crash costs its own element, in order, whatever the chunks; and nothing runs twice for it.
#[test]
fn seven_crashes_among_ten_thousand_elements_cost_seven_elements() {
    test(|| check_ordered(results(|map| map)));
}

/// Goal: the same with chunks of a given size: such that a culprit stands first, last, and beside another.
#[test]
fn seven_crashes_cost_seven_elements_in_chunks_of_any_size() {
    test(|| {
        for size in [1, 100, 4_096, 10_000] {
            check_ordered(results(|map| map.chunk_size(size).buffer(20_000)));
        }
    });
}

/// Goal: the same when the results come in the order of completion.
#[test]
fn seven_crashes_cost_seven_elements_of_an_unordered_map() {
    test(|| {
        for size in [None, Some(100)] {
            let results = results(|map| match size {
                Some(size) => map.chunk_size(size).unordered(),
                None => map.unordered(),
            });
            let (values, errors): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
            assert_eq!(errors.len(), CULPRITS.len());
            assert!(errors.iter().all(|e| matches!(e, Err(JobError::Died(_)))));
            let mut values: Vec<u64> = values.into_iter().map(Result::unwrap).collect();
            values.sort_unstable();
            let expected = (0..ELEMENTS).filter(|n| !CULPRITS.contains(n));
            assert_eq!(values, expected.map(|n| n * 2).collect::<Vec<_>>());
        }
    });
}
