//! When the host is gone, so are its workers and their children.

use std::time::{Duration, Instant};

use super::fixture::{Fixture, Left, Watched};
use crate::support::{children_of, test};

/// The last word to the host: how its workers come into being.
const METHODS: [&str; 3] = ["executed", "forked", "forked for one job"];

/// Tells the story `busy`: five workers that spin, one with a child, one that blocks every signal, one that ignores
/// every signal, one as another user. `end` ends the host once all are at it; afterwards none may be left, nor the
/// server that they were forked off.
fn nothing_survives(story: &str, method: &str, end: impl FnOnce(&mut Fixture)) -> Left {
    let mut host = Fixture::host(&["busy", story, method]);
    let mut watched: Vec<Watched> = (0..6)
        .map(|_| {
            let word = host.hear();
            let (_, pid) = word.split_once(' ').unwrap();
            Watched::new(pid.parse().unwrap())
        })
        .collect();
    watched.extend(children_of(host.id()).into_iter().map(Watched::new));
    // Five workers, one of them twice, its child, and the server; or with spares besides.
    match method {
        "executed" => assert_eq!(watched.len(), 11),
        "forked" => assert_eq!(watched.len(), 12),
        _ => assert!(watched.len() >= 12),
    }
    let host_process = Watched::new(host.id());
    end(&mut host);
    assert!(host_process.ends_within(Duration::from_secs(30)));
    let began = Instant::now();
    for process in &watched {
        let left = Duration::from_secs(2).saturating_sub(began.elapsed());
        assert!(process.ends_within(left), "process {} outlives its host", process.pid);
    }
    host.end()
}

/// Goal: workers do not outlive a host that had no chance to tell them.
/// Covers: F-61
#[test]
fn a_killed_host_leaves_no_process() {
    test(|| {
        for method in METHODS {
            let left = nothing_survives("wait", method, |host| {
                host.say("go");
                host.kill();
            });
            assert!(!left.status.success());
        }
    });
}

/// Goal: the same in a pause, when no worker can act on anything before it is continued.
/// Covers: F-61
#[test]
fn a_host_that_is_killed_in_a_pause_leaves_no_process() {
    test(|| {
        for method in METHODS {
            let left = nothing_survives("pause", method, |host| {
                host.say("go");
                assert_eq!(host.hear(), "paused");
                host.kill();
            });
            assert!(!left.status.success());
        }
    });
}

/// Goal: `exit` without a drop of the pool does not hang, keeps its code, and leaves nothing.
/// Covers: F-63
#[test]
fn a_host_that_exits_leaves_no_process() {
    test(|| {
        for method in METHODS {
            let left = nothing_survives("exit", method, |host| host.say("go"));
            assert_eq!(left.status.code(), Some(7));
        }
    });
}

/// Goal: a panic in main is not held up by jobs that never end.
/// Covers: F-63
#[test]
fn a_host_that_panics_leaves_no_process() {
    test(|| {
        for method in METHODS {
            let left = nothing_survives("panic", method, |host| host.say("go"));
            assert_eq!(left.status.code(), Some(101));
            assert!(left.errors.contains("as the story goes"), "{}", left.errors);
        }
    });
}

/// Goal: a pool that was forgotten ends with its host all the same.
/// Covers: F-63
#[test]
fn a_host_that_forgets_its_pool_leaves_no_process() {
    test(|| {
        for method in METHODS {
            let left = nothing_survives("forget", method, |host| host.say("go"));
            assert!(left.status.success(), "{left:?}");
        }
    });
}
