//! What each layer of a job costs, from the caller's side: `cargo bench -p procpool`.
//!
//! * `futures`: a job that ends as it is accepted: argument encoded, cell made, completed, result decoded. No other
//!   thread or process has a part in it.
//! * `pool`: the same through two workers: one at a time, ten thousand at a time, as a map.
//!
//! The steps between the processes have a benchmark of their own, in `procpool-wire`; procpool beside others is in
//! `cargo bench -p procpool-tests --bench peers`.

use std::sync::{Arc, LazyLock};

use divan::Bencher;
use divan::counter::ItemsCount;
use procpool::executor::{Backend, Call, Control, Options, Promise, Rejection, WhenFull};
use procpool::{Executor, JobFuture, ProcessPool, Progress, Report};

fn main() {
    procpool::init();
    divan::main();
}

fn same(n: u64) -> u64 {
    n
}

/// Ends each job as it comes, with its argument as its result.
#[derive(Debug)]
struct Echo;

impl Control for Echo {
    fn cancel(&self, _job: &Promise) -> bool {
        false
    }

    fn abort(&self, _job: &Promise) {}

    fn is_running(&self, _job: &Promise) -> bool {
        false
    }

    fn progress(&self, _job: &Promise) -> Option<Progress> {
        None
    }

    fn is_inert(&self) -> bool {
        false
    }
}

static CONTROL: LazyLock<Arc<dyn Control>> = LazyLock::new(|| Arc::new(Echo));

impl Backend for Echo {
    fn control(&self) -> Arc<dyn Control> {
        Arc::clone(&CONTROL)
    }

    fn accept(
        &self,
        call: &mut dyn Call,
        promise: Promise,
        _options: &Options,
        _when_full: WhenFull,
    ) -> Result<(), Rejection> {
        let mut element = Vec::with_capacity(16);
        if let Err(error) = call.encode(None, &mut element) {
            promise.fail(error, Report::default());
            return Ok(());
        }
        // Behind the element's header word.
        promise.finish_encoded(&element[8..], Report::default());
        Ok(())
    }

    fn workers(&self) -> usize {
        1
    }

    fn takes_chunks(&self) -> bool {
        false
    }

    fn payload_limit(&self) -> Option<u64> {
        None
    }
}

impl Executor for Echo {
    fn backend(&self) -> &dyn Backend {
        self
    }
}

#[divan::bench(name = "futures: one that ends at once")]
fn future() -> u64 {
    Echo.submit(same, 7).result().expect("it is its own result")
}

#[divan::bench(name = "futures: 10,000 that end at once, then taken", sample_count = 20)]
fn futures(bencher: Bencher) {
    bencher.counter(ItemsCount::new(10_000_usize)).bench(|| take_all(|n| Echo.submit(same, n)));
}

fn take_all(submit: impl Fn(u64) -> JobFuture<u64>) {
    let futures: Vec<_> = (0..10_000).map(submit).collect();
    for future in futures {
        future.result().expect("a no-op succeeds");
    }
}

/// Two workers that are up, with an idea of how long these jobs take.
fn pool() -> ProcessPool {
    let pool = ProcessPool::builder().workers(2).build().expect("a pool can be made");
    pool.warm_up().expect("workers can be started");
    take_all(|n| pool.submit(same, n));
    pool
}

#[divan::bench(name = "pool: one, there and back", sample_count = 1000)]
fn round_trip(bencher: Bencher) {
    let pool = pool();
    bencher.bench_local(|| pool.submit(same, 7).result().expect("a no-op succeeds"));
}

#[divan::bench(name = "pool: 10,000 submitted, then taken", sample_count = 20)]
fn dispatch(bencher: Bencher) {
    let pool = pool();
    bencher
        .counter(ItemsCount::new(10_000_usize))
        .bench_local(|| take_all(|n| pool.submit(same, n)));
}

#[divan::bench(name = "pool: a map of 1,000,000", sample_count = 5, sample_size = 1)]
fn map(bencher: Bencher) {
    let pool = pool();
    bencher
        .counter(ItemsCount::new(1_000_000_usize))
        .bench_local(|| pool.map(same, 0..1_000_000).filter(Result::is_ok).count());
}
