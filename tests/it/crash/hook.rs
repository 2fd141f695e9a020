//! Jobs that meddle with what panics say.

use std::panic;

use procpool::{Output, ProcessPool, Status};

use super::{died, panicked};
use crate::support::test;

/// The worker's own panic hook, replaced by one that says nothing.
fn silence() {
    panic::set_hook(Box::new(|_| {}));
}

/// Goal: a job that replaces the panic hook costs no panic its message, and the next job no place either.
/// Covers: F-12
#[test]
fn a_replaced_panic_hook_hides_no_panic() {
    test(|| {
        let pool = ProcessPool::builder().workers(1).build().unwrap();
        let silent = |()| {
            silence();
            panic!("nobody is told");
        };
        for _ in 0..2 {
            let told = panicked(pool.submit::<_, ()>(silent, ()).result());
            assert_eq!((told.message.as_str(), told.aborted), ("nobody is told", false));
            let next = panicked(pool.submit::<_, ()>(|()| panic!("as ever"), ()).result());
            assert_eq!(next.message, "as ever");
            let place = next.location.expect("the hook is back");
            assert!(place.contains("hook.rs:"), "{place}");
        }
        assert_eq!((pool.stats().spawned, pool.stats().deaths), (1, 0));
    });
}

/// Goal: without the hook a panic that ends the process is a death, by the signal that it was.
/// Method: the second panic comes while the first unwinds, so that the process aborts.
/// Covers: F-12
#[test]
fn a_replaced_panic_hook_does_not_hide_a_death() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("the second");
        }
    }
    test(|| {
        let pool = ProcessPool::builder().workers(1).stderr(Output::Capture).build().unwrap();
        let silent = |()| {
            silence();
            let _bomb = Bomb;
            panic!("the first");
        };
        let death = died(pool.submit::<_, ()>(silent, ()).result());
        assert_eq!(death.status, Status::Signal(libc::SIGABRT, false));
        pool.submit(|()| (), ()).result().unwrap();
    });
}
