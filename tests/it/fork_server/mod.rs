//! Workers that are forked off a fork server.

mod life;

use procpool::{ProcessPool, ProcessPoolBuilder, StartMethod};

fn builder(workers: usize) -> ProcessPoolBuilder {
    ProcessPool::builder().workers(workers).start_method(StartMethod::ForkServer)
}
