//! Section I: maps.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use procpool::{EndedBy, JobError, Limit, ProcessPool, Shutdown};
use serde::{Deserialize, Serialize};

use super::jobs::{Marks, double, even_only, even_or_die, mark, pid};
use super::{Pool, hold, on_a_daemon, on_both_pools};
use crate::support::{Meeting, meet, say, test};

#[procpool::task]
fn add((a, b): (u64, u64)) -> u64 {
    a + b
}

/// Goal: a map gives what a sequential one gives, in input order, whatever the chunks and the buffer.
/// Several inputs are zipped.
///
/// Covers: 75, 76, 78, 90
fn a_map_is_like_a_sequential_one<P: Pool>() {
    let pool = P::of(2);
    let expected: Vec<_> = (0..30).map(double).collect();
    for chunk in [1, 3, 6, 30, 100] {
        for buffer in [1, 2, 7, 30, 60] {
            let map = pool.map(double, 0..30).chunk_size(chunk).buffer(buffer);
            let values: Vec<_> = map.map(Result::unwrap).collect();
            assert_eq!(values, expected, "chunk {chunk}, buffer {buffer}");
        }
        let map = pool.map(double, 0..30).chunk_size(chunk);
        assert_eq!(map.map(Result::unwrap).collect::<Vec<_>>(), expected);
    }
    assert_eq!(pool.map(double, 0..30).map(Result::unwrap).collect::<Vec<_>>(), expected);
    let zipped = pool.map(add, (0..).zip([10, 20, 30]));
    assert_eq!(zipped.map(Result::unwrap).collect::<Vec<_>>(), [10, 21, 32]);
}

/// Goal: a long map keeps its order through chunks that grow.
///
/// Covers: 75
fn a_long_map_keeps_its_order<P: Pool>() {
    let pool = P::of(2);
    let mut next = 0;
    for value in pool.map(double, 0..P::many(30_000)) {
        assert_eq!(value.unwrap(), next * 2);
        next += 1;
    }
    assert_eq!(next, P::many(30_000));
}

/// Goal: a chunk size or a buffer of 0 panics, and names the caller's line.
///
/// Covers: 77, 89
fn a_chunk_or_buffer_of_zero_panics_here<P: Pool>() {
    let pool = P::of(1);
    let place = Arc::new(Mutex::new(None));
    let note = Arc::clone(&place);
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let location = info.location().unwrap();
        *note.lock().unwrap() = Some((location.file().to_owned(), location.line()));
    }));
    let chunk = || drop(pool.map(double, 0..1).chunk_size(0));
    let chunk_line = line!() - 1;
    let buffer = || drop(pool.map(double, 0..1).buffer(0));
    let buffer_line = line!() - 1;
    let chunk = catch_unwind(AssertUnwindSafe(chunk)).is_err();
    let chunk_place = place.lock().unwrap().take();
    let buffer = catch_unwind(AssertUnwindSafe(buffer)).is_err();
    let buffer_place = place.lock().unwrap().take();
    std::panic::set_hook(before);
    assert!(chunk && buffer);
    assert_eq!(chunk_place, Some((file!().to_owned(), chunk_line)));
    assert_eq!(buffer_place, Some((file!().to_owned(), buffer_line)));
}

/// An input that counts what was pulled from it.
fn counted(count: &Cell<u64>) -> impl Iterator<Item = u64> {
    (0..).inspect(|_| count.set(count.get() + 1))
}

/// Goal: a map is lazy: nothing is pulled before the first `next`, and then never more than the buffer
/// beyond what was taken. Infinite inputs work.
///
/// Covers: 79, 80, 91, 93, 94, 95, F-78
fn a_map_pulls_no_more_than_its_buffer_ahead<P: Pool>() {
    let pool = P::of(2);
    for (buffer, chunk) in [(1, 1), (2, 1), (10, 1), (10, 3), (10, 10), (3, 10)] {
        let pulled = Cell::new(0);
        let mut map = pool.map(double, counted(&pulled)).buffer(buffer).chunk_size(chunk);
        assert_eq!(pulled.get(), 0);
        for taken in 0..40 {
            assert_eq!(map.next().unwrap().unwrap(), taken * 2);
            assert!(pulled.get() > taken);
            assert!(
                pulled.get() <= taken + 1 + buffer as u64,
                "{} pulled, {} taken, buffer {buffer}, chunk {chunk}",
                pulled.get(),
                taken + 1
            );
        }
    }
    let pulled = Cell::new(0);
    let mut map = pool.map(double, counted(&pulled));
    assert_eq!(map.next().unwrap().unwrap(), 0);
    // The default is finite, and of a size that a program would not notice.
    assert!(pulled.get() < 100_000);
}

#[procpool::task]
fn first_waits_all_mark((path, lines, n): (String, String, u64)) -> u64 {
    if n == 0 {
        meet(&path, "first");
    }
    mark((lines, n.to_string()));
    n
}

/// Goal: `buffer(n)` keeps n elements on their way: while the first is awaited, n are pulled.
///
/// Covers: 93
fn a_full_buffer_is_used<P: Pool>() {
    let pool = P::of(1);
    let meeting = Meeting::new();
    let marks = Marks::new();
    let pulled = Cell::new(0);
    let (path, lines) = (meeting.path(), marks.path());
    let items = (0..10).map(|n| {
        pulled.set(pulled.get() + 1);
        (path.clone(), lines.clone(), n)
    });
    let mut map = pool.map(first_waits_all_mark, items).buffer(4);
    let helper = std::thread::spawn(move || meeting.next().go());
    assert_eq!(map.next().unwrap().unwrap(), 0);
    helper.join().unwrap();
    assert!((4..=5).contains(&pulled.get()), "{} pulled", pulled.get());
}

/// Goal: an element's error stands in its place, earlier and later results are untouched, and the
/// iteration goes on; in chunks too.
///
/// Covers: 81, 82, 83, Y7
fn errors_are_per_element<P: Pool>() {
    let pool = P::of(2);
    for chunk in [1, 3, 100] {
        let results: Vec<_> = pool.map(even_only, 0..20).chunk_size(chunk).collect();
        assert_eq!(results.len(), 20);
        for (n, result) in results.into_iter().enumerate() {
            match result {
                Ok(value) => assert!(n % 2 == 0 && value == n as u64 * 2),
                Err(JobError::Panicked(panic)) => {
                    assert_eq!(panic.message, format!("{n} is odd"));
                }
                Err(error) => panic!("{error}"),
            }
        }
    }
}

/// Goal: past its time a map yields one error that says so, cancels what has not started, and ends. The
/// clock starts at the call that sets it.
///
/// Covers: 84, 85, 96
fn past_its_time_a_map_says_so_and_ends<P: Pool>() {
    let pool = P::of(1);
    let meeting = Meeting::new();
    let marks = Marks::new();
    let (_held, guest) = hold(&pool, &meeting);
    let start = Instant::now();
    let limit = Duration::from_millis(30);
    let mut map = pool.map(mark, (0..3).map(|n| marks.line(n))).timeout(limit).buffer(2);
    let Some(Err(JobError::TimedOut(timeout))) = map.next() else {
        panic!("the only worker is held")
    };
    assert!(start.elapsed() >= limit);
    assert_eq!((timeout.limit, timeout.after), (Limit::Map, limit));
    assert_eq!(timeout.ended_by, EndedBy::NotStarted);
    assert!(map.next().is_none() && map.next().is_none());
    guest.go();
    pool.shutdown(Shutdown::Drain);
    assert!(marks.lines().is_empty());
}

/// Goal: a map over an endless input ends when its time is over, however fast its jobs are and however
/// slowly its results are taken.
///
/// Covers: 84
fn an_endless_map_ends_in_time<P: Pool>() {
    let pool = P::of(2);
    for slow in [false, true] {
        let limit = Duration::from_millis(50);
        let mut map = pool.map(double, 0..).timeout(limit).buffer(100);
        let start = Instant::now();
        let mut errors = 0;
        for result in &mut map {
            match result {
                Ok(_) if slow => {
                    // Slower than the jobs, so that a result is always there. More only weakens the test.
                    std::thread::sleep(Duration::from_millis(1));
                }
                Ok(_) => {}
                Err(JobError::TimedOut(timeout)) => {
                    assert_eq!(timeout.limit, Limit::Map);
                    errors += 1;
                }
                Err(error) => panic!("{error}"),
            }
        }
        assert_eq!(errors, 1);
        assert!(start.elapsed() >= limit);
        assert!(map.next().is_none());
    }
}

/// Goal: a job's own time limit in a map is that element's, and not the map's.
///
/// Covers: 86, Y7
#[test]
fn an_elements_own_time_limit_is_its_own() {
    test(|| {
        let pool = ProcessPool::builder()
            .workers(2)
            .job_timeout(Duration::from_millis(30))
            .grace(Duration::from_millis(1))
            .build()
            .unwrap();
        let odd_hangs = |n: u64| if n == 3 { super::jobs::hang(n) } else { n };
        for chunk in [1, 2, 8] {
            let results: Vec<_> = pool
                .map(odd_hangs, 0..8)
                .chunk_size(chunk)
                .timeout(Duration::from_secs(3600))
                .collect();
            for (n, result) in results.into_iter().enumerate() {
                match result {
                    // A busy machine may take a healthy element's time as well, so that is no error here.
                    Err(JobError::TimedOut(timeout)) => assert_eq!(timeout.limit, Limit::Job),
                    Ok(value) => assert!(value == n as u64 && n != 3),
                    Err(error) => panic!("{error}"),
                }
            }
        }
    });
}

/// Goal: dropping a map cancels what has not started, and nothing else.
///
/// Covers: 87, Y7
fn dropping_a_map_cancels_what_has_not_started<P: Pool>() {
    let pool = P::of(1);
    let meeting = Meeting::new();
    let (_held, guest) = hold(&pool, &meeting);
    let marks = Marks::new();
    let pulled = Cell::new(0);
    let items = (0..100).map(|n| {
        pulled.set(pulled.get() + 1);
        marks.line(n)
    });
    let mut map = pool.map(mark, items).buffer(20).chunk_size(1).timeout(Duration::ZERO);
    assert!(matches!(map.next(), Some(Err(JobError::TimedOut(_)))));
    assert!(map.next().is_none());
    drop(map);
    let mut map = pool.map(mark, (100..200).map(|n| marks.line(n))).buffer(5);
    let other = pool.submit(mark, marks.line("other"));
    guest.go();
    map.next().unwrap().unwrap();
    drop(map);
    other.wait();
    pool.shutdown(Shutdown::Drain);
    assert!(pulled.get() <= 20);
    let lines = marks.lines();
    assert!(lines.contains(&"100".to_owned()) && lines.contains(&"other".to_owned()));
    assert!(lines.len() <= 1 + 6, "{lines:?}");
    assert!(lines.iter().all(|line| line == "other" || line.len() == 3), "{lines:?}");
}

/// Goal: a map of nothing is empty.
///
/// Covers: 92, Y7
fn a_map_of_nothing_is_empty<P: Pool>() {
    let pool = P::of(1);
    assert_eq!(pool.map(double, []).count(), 0);
    let map =
        pool.map(double, Vec::new()).buffer(1).chunk_size(3).timeout(Duration::ZERO).unordered();
    assert_eq!(map.count(), 0);
    pool.shutdown(Shutdown::Drain);
    assert_eq!(pool.map(double, []).count(), 0);
}

/// Counts its instances in this process.
#[derive(Debug)]
struct Counted;

static LIVE: AtomicI64 = AtomicI64::new(0);

impl Counted {
    fn new() -> Counted {
        LIVE.fetch_add(1, Ordering::SeqCst);
        Counted
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        LIVE.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Serialize for Counted {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        ().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Counted {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Counted, D::Error> {
        <()>::deserialize(deserializer).map(|()| Counted::new())
    }
}

#[procpool::task]
fn make(_: u64) -> Counted {
    Counted::new()
}

/// Goal: results that were taken are not kept.
///
/// Covers: 98
fn a_map_keeps_no_result_that_was_taken<P: Pool>() {
    let pool = P::of(1);
    for value in pool.map(make, 0..20).buffer(3) {
        let value = value.unwrap();
        // This one, and on threads those that are on their way.
        assert!(LIVE.load(Ordering::SeqCst) <= 1 + 3);
        drop(value);
    }
    pool.shutdown(Shutdown::Drain);
    assert_eq!(LIVE.load(Ordering::SeqCst), 0);
}

/// Goal: a panic in the input reaches the caller of `next`, with its payload, and nothing hangs; what was
/// on its way can still be taken.
///
/// Covers: X16
fn a_panic_in_the_input_reaches_the_caller<P: Pool>() {
    let pool = P::of(2);
    for chunk in [1, 4] {
        let items = (0..100).inspect(|n| assert!(*n != 10, "the input broke"));
        let mut map = pool.map(double, items).chunk_size(chunk).buffer(4);
        let mut values = Vec::new();
        let payload = loop {
            match catch_unwind(AssertUnwindSafe(|| map.next())) {
                Ok(value) => values.push(value.unwrap().unwrap()),
                Err(payload) => break payload,
            }
        };
        assert_eq!(payload.downcast_ref::<&str>(), Some(&"the input broke"));
        // Elements that were lost in the panic must not have others in their places.
        values.extend(map.by_ref().map(Result::unwrap));
        assert_eq!(values, (0..values.len() as u64).map(double).collect::<Vec<_>>());
        assert!(values.len() <= 10);
        drop(map);
        assert_eq!(pool.submit(double, 1).result().unwrap(), 2);
    }
}

#[procpool::task]
fn first_waits((path, n): (String, u64)) -> u64 {
    if n == 0 {
        meet(&path, "slow");
    }
    n
}

/// Goal: `unordered` yields each element once, in the order of completion: nothing waits for a slow one.
fn unordered_does_not_wait_for_the_slow<P: Pool>() {
    let pool = P::of(2);
    let meeting = Meeting::new();
    let path = meeting.path();
    let items = (0..30).map(|n| (path.clone(), n));
    let mut map = pool.map(first_waits, items).chunk_size(1).unordered();
    let mut values: Vec<_> = (0..29).map(|_| map.next().unwrap().unwrap()).collect();
    assert!(!values.contains(&0));
    values.sort_unstable();
    assert_eq!(values, (1..30).collect::<Vec<_>>());
    meeting.next().go();
    assert_eq!(map.next().unwrap().unwrap(), 0);
    assert!(map.next().is_none());
    for chunk in [1, 7, 64] {
        let map = pool.map(even_only, 0..64).chunk_size(chunk).unordered();
        assert_eq!(map.filter(Result::is_ok).count(), 32);
    }
}

/// Goal: an element that kills its worker costs itself alone, in any chunk; the rest of the chunk runs.
///
/// Covers: 83, 144
#[test]
fn a_crash_costs_its_element_alone() {
    test(|| {
        let pool = ProcessPool::of(2);
        for chunk in [1, 4, 12] {
            for unordered in [false, true] {
                let map = pool.map(even_or_die, 0..12).chunk_size(chunk);
                let map = if unordered { map.unordered() } else { map };
                let (mut good, mut died) = (Vec::new(), 0);
                for result in map {
                    match result {
                        Ok(value) => good.push(value),
                        Err(JobError::Died(death)) => {
                            assert_eq!(death.attempt, 1);
                            died += 1;
                        }
                        Err(error) => panic!("{error}"),
                    }
                }
                good.sort_unstable();
                assert_eq!(died, 6);
                assert_eq!(good, [0, 4, 8, 12, 16, 20]);
            }
        }
    });
}

fn mark_and_die_at((path, n, fatal): (String, u64, u64)) -> u64 {
    mark((path, n.to_string()));
    if n == fatal {
        super::jobs::bad_write();
    }
    n
}

/// Goal: what a chunk had finished before it crashed is neither lost nor run again.
#[test]
fn a_crash_in_a_chunk_repeats_nothing() {
    test(|| {
        let pool = ProcessPool::of(1);
        let marks = Marks::new();
        let items = (0..20).map(|n| (marks.path(), n, 11));
        let results: Vec<_> = pool.map(mark_and_die_at, items).chunk_size(20).collect();
        for (n, result) in results.into_iter().enumerate() {
            assert_eq!(result.is_ok(), n != 11);
        }
        let expected: Vec<_> = (0..20).map(|n| n.to_string()).collect();
        assert_eq!(marks.lines(), expected);
    });
}

/// Goal: workers are kept from one map to the next, also for other functions.
///
/// Covers: Y14
#[test]
fn workers_are_kept_between_maps() {
    test(|| {
        let pool = ProcessPool::of(2);
        pool.warm_up().unwrap();
        let pids: std::collections::BTreeSet<_> = pool.workers().iter().map(|w| w.pid).collect();
        assert_eq!(pool.map(double, 0..100).count(), 100);
        let used: Vec<_> = pool.map(pid, vec![(); 50]).map(Result::unwrap).collect();
        assert!(used.iter().all(|pid| pids.contains(pid)));
        assert_eq!(pool.map(even_only, 0..100).count(), 100);
        assert_eq!((pool.stats().spawned, pool.stats().deaths), (2, 0));
    });
}

#[procpool::task]
fn speak((path, n): (String, u64)) -> u64 {
    say(&path, "here");
    n
}

/// Goal: a slow input does not keep results back that are there.
/// Method: the input itself waits until the first element's job has spoken.
fn an_element_is_submitted_as_it_is_pulled<P: Pool>() {
    let pool = P::of(1);
    let meeting = Meeting::new();
    let path = meeting.path();
    let items = (0..3).map(|n| {
        if n > 0 {
            drop(meeting.next());
        }
        (path.clone(), n)
    });
    let map = pool.map(speak, items).chunk_size(1);
    assert_eq!(map.map(Result::unwrap).collect::<Vec<_>>(), [0, 1, 2]);
    drop(meeting.next());
}

/// Goal: an argument that cannot be encoded fails in its place, alone.
///
/// Covers: 155
#[test]
fn an_element_that_cannot_be_encoded_fails_alone() {
    test(|| {
        let pool = ProcessPool::of(2);
        for chunk in [1, 3, 20] {
            let items = (0..20).map(super::encoding::RefusesOdd);
            let results: Vec<_> =
                pool.map(super::encoding::number_of, items).chunk_size(chunk).collect();
            assert_eq!(results.len(), 20);
            for (n, result) in results.into_iter().enumerate() {
                match result {
                    Ok(value) => assert_eq!((n % 2, value), (0, n as u64)),
                    Err(JobError::Encode(_)) => assert_eq!(n % 2, 1),
                    Err(error) => panic!("{error}"),
                }
            }
        }
    });
}

on_both_pools![
    a_map_is_like_a_sequential_one,
    a_long_map_keeps_its_order,
    a_chunk_or_buffer_of_zero_panics_here,
    a_map_pulls_no_more_than_its_buffer_ahead,
    a_full_buffer_is_used,
    errors_are_per_element,
    past_its_time_a_map_says_so_and_ends,
    an_endless_map_ends_in_time,
    dropping_a_map_cancels_what_has_not_started,
    a_map_of_nothing_is_empty,
    a_map_keeps_no_result_that_was_taken,
    a_panic_in_the_input_reaches_the_caller,
    unordered_does_not_wait_for_the_slow,
    an_element_is_submitted_as_it_is_pulled,
];

on_a_daemon![
    a_map_is_like_a_sequential_one,
    a_long_map_keeps_its_order,
    a_chunk_or_buffer_of_zero_panics_here,
    a_map_pulls_no_more_than_its_buffer_ahead,
    a_full_buffer_is_used,
    errors_are_per_element,
    past_its_time_a_map_says_so_and_ends,
    an_endless_map_ends_in_time,
    dropping_a_map_cancels_what_has_not_started,
    a_map_of_nothing_is_empty,
    a_map_keeps_no_result_that_was_taken,
    a_panic_in_the_input_reaches_the_caller,
    unordered_does_not_wait_for_the_slow,
    an_element_is_submitted_as_it_is_pulled,
];
