//! What a job knows of itself, and what it tells.

use std::thread;

use procpool::{Progress, context};

use super::jobs::double;
use super::{Pool, hold, on_both_pools};
use crate::support::{Meeting, meet};

fn look(_: u64) -> (String, u32, usize, bool, bool) {
    let context = context().unwrap();
    let clone = context.clone();
    // Threads of the job's own have a context only if it is handed to them.
    let (in_thread, id) =
        thread::spawn(move || (procpool::context().is_some(), clone.job_id().to_string()))
            .join()
            .unwrap();
    assert_eq!(id, context.job_id().to_string());
    (id, context.attempt(), context.worker_index(), context.is_cancelled(), in_thread)
}

/// Goal: a job knows its number, attempt, worker and whether it should stop; outside of jobs there is no
/// context.
///
/// Covers: Y13
fn a_job_knows_itself<P: Pool>() {
    assert!(context().is_none());
    let pool = P::of(1);
    let meeting = Meeting::new();
    let (_held, guest) = hold(&pool, &meeting);
    let futures: Vec<_> = (0..3).map(|n| pool.submit(look, n)).collect();
    guest.go();
    for future in futures {
        let id = future.id().to_string();
        assert_eq!(future.result().unwrap(), (id, 1, 0, false, false));
    }
    assert!(context().is_none());
}

fn report(meeting: String) {
    let context = context().unwrap();
    meet(&meeting, "silent");
    context.progress(0.25, "a quarter");
    context.progress(0.5, "half");
    meet(&meeting, "half");
    context.progress(1.0, &"ü".repeat(200));
}

/// Goal: the latest progress is seen while the job runs and after it has ended; there is none before the
/// first; of a message 256 bytes are kept, whole characters.
fn progress_is_seen_from_outside<P: Pool>() {
    let pool = P::of(1);
    let meeting = Meeting::new();
    let future = pool.submit(report, meeting.path());
    let guest = meeting.next();
    assert_eq!(future.progress(), None);
    let behind = pool.submit(double, 1);
    guest.go();
    let guest = meeting.next();
    let Some(Progress { fraction, message, .. }) = future.progress() else {
        panic!("the job has reported")
    };
    assert_eq!((fraction, message.as_str()), (0.5, "half"));
    guest.go();
    future.wait();
    let last = future.progress().unwrap();
    assert_eq!((last.fraction, last.message), (1.0, "ü".repeat(128)));
    behind.wait();
    assert_eq!(behind.progress(), None);
}

/// Goal: what is reported after the job's end goes nowhere.
fn progress_after_the_end_goes_nowhere<P: Pool>() {
    fn leave_a_thread_behind(meeting: String) {
        let context = context().unwrap();
        context.progress(0.5, "mine");
        thread::spawn(move || {
            meet(&meeting, "behind");
            context.progress(0.9, "late");
            meet(&meeting, "reported");
        });
    }
    let pool = P::of(1);
    let meeting = Meeting::new();
    let future = pool.submit(leave_a_thread_behind, meeting.path());
    let guest = meeting.next();
    future.wait();
    let (next, next_guest) = hold(&pool, &meeting);
    guest.go();
    let reported = meeting.next();
    assert_eq!(reported.word, "reported");
    assert_eq!(next.progress(), None);
    assert_eq!(future.progress().unwrap().message, "mine");
    reported.go();
    next_guest.go();
    next.wait();
    assert_eq!(next.progress(), None);
}

on_both_pools![
    a_job_knows_itself,
    progress_is_seen_from_outside,
    progress_after_the_end_goes_nowhere,
];
