//! Workers that are forked off a fork server.
//!
//! What all workers have in common is tested where they are executed; the matrix of crashes and the hosts'
//! lives are told for both.

mod death;
mod life;
mod preload;

use std::fs;

use procpool::{ProcessPool, ProcessPoolBuilder, StartMethod};

use crate::support::{children, describe};

fn builder(workers: usize) -> ProcessPoolBuilder {
    ProcessPool::builder().workers(workers).start_method(StartMethod::ForkServer)
}

/// The fork server of the only pool, if it is there.
fn find_server() -> Option<u32> {
    children().into_iter().find(|pid| {
        fs::read(format!("/proc/{pid}/cmdline"))
            .is_ok_and(|command| command.starts_with(b"procpool-fork-server"))
    })
}

/// Ends the pool, and sees to it that it has reaped every child itself.
fn leaves_nobody(pool: ProcessPool) {
    drop(pool);
    let left: Vec<String> = children().into_iter().map(describe).collect();
    assert!(left.is_empty(), "left behind, or not reaped: {left:?}");
}
