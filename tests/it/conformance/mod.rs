//! What `concurrent.futures` promises, restated: one suite for both kinds of pool and for a daemon, and what holds for
//! processes or threads alone beside it. What a daemon does not promise stands in [`table`] with the reason.
//!
//! The promises are numbered as in [`table`], which fails when a number has neither a test nor a reason
//! for having none. A test names its numbers in a line `/// Covers: …` of its comment.

mod as_completed;
mod awaiting;
mod beyond;
mod callbacks;
mod cancel;
mod context;
mod daemons;
mod death;
mod encoding;
mod errors;
mod forced;
pub(crate) mod forks;
mod future;
mod idle;
mod initializer;
mod jobs;
mod limits;
mod map;
mod recycle;
mod settings;
mod shutdown;
mod stats;
mod submit;
mod table;
mod threads;
mod timeouts;
mod wait;
mod workers;

use procpool::{Executor, JobFuture, ProcessPool, Shutdown, ThreadPool};

use crate::support::{Guest, Meeting};

/// What the suite needs of a pool beyond [`Executor`].
trait Pool: Executor + Send + Sync + 'static {
    fn of(workers: usize) -> Self;
    fn shutdown(&self, how: Shutdown);

    /// Waits until what was submitted is where it will be started from.
    fn settle(&self) {}

    /// How many are many: so that a test takes about as long wherever it runs.
    fn many(jobs: u64) -> u64 {
        jobs
    }
}

impl Pool for ThreadPool {
    fn of(workers: usize) -> ThreadPool {
        ThreadPool::builder().workers(workers).build().unwrap()
    }

    fn shutdown(&self, how: Shutdown) {
        ThreadPool::shutdown(self, how);
    }
}

impl Pool for ProcessPool {
    fn of(workers: usize) -> ProcessPool {
        ProcessPool::builder().workers(workers).build().unwrap()
    }

    fn shutdown(&self, how: Shutdown) {
        ProcessPool::shutdown(self, how);
    }
}

/// Makes a test of each generic function, for threads and for processes.
macro_rules! on_both_pools {
    ($($name:ident),* $(,)?) => {
        mod threads {
            $(
                #[test]
                fn $name() {
                    crate::support::test(super::$name::<procpool::ThreadPool>);
                }
            )*
        }
        mod processes {
            $(
                #[test]
                fn $name() {
                    crate::support::test(super::$name::<procpool::ProcessPool>);
                }
            )*
        }
    };
}
use on_both_pools;

/// Makes a test of each generic function, for a daemon.
macro_rules! on_a_daemon {
    ($($name:ident),* $(,)?) => {
        mod daemons {
            $(
                #[test]
                fn $name() {
                    crate::support::test(super::$name::<crate::conformance::daemons::Running>);
                }
            )*
        }
    };
}
use on_a_daemon;

/// Has a job started that waits at the meeting: it holds one of the pool's workers until the guest goes.
fn hold<P: Pool>(pool: &P, meeting: &Meeting) -> (JobFuture<String>, Guest) {
    let future = pool.submit(jobs::wait_at, (meeting.path(), "held".to_owned()));
    (future, meeting.next())
}
