//! A fork server's life, and its workers'.

use std::process;

use nix::unistd::getppid;

use super::builder;
use crate::support::{children, test};

/// Goal: workers run jobs, and are children of the host as those that are executed; the server is one more child
/// and no worker.
#[test]
fn forked_workers_run_jobs_and_are_the_hosts_children() {
    test(|| {
        let pool = builder(2).build().unwrap();
        assert_eq!(children().len(), 0, "nothing is started before the first job");
        pool.warm_up().unwrap();
        assert_eq!(children().len(), 3);
        assert_eq!(pool.workers().len(), 2);
        assert_eq!((pool.stats().workers, pool.stats().spawned), (2, 2));
        let parent = pool.submit(|()| getppid().as_raw() as u32, ()).result().unwrap();
        assert_eq!(parent, process::id());
        let results: u64 = pool.map(|n: u64| n * 2, 0..1000).map(Result::unwrap).sum();
        assert_eq!(results, 999_000);
    });
}
