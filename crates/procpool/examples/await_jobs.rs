//! Jobs awaited in tokio: together, in a race, and with a timeout, all on one thread.
//!
//! A `JobFuture` is a future of the standard library, so it works in any runtime and needs no thread of
//! its own. Run it with `cargo run --release -p procpool --example await_jobs`.

use std::error::Error;
use std::thread;
use std::time::Duration;

use procpool::ProcessPool;
use tokio::runtime;
use tokio::time::timeout;

/// Computes for a while.
fn fibonacci(n: u64) -> u64 {
    if n < 2 { n } else { fibonacci(n - 1) + fibonacci(n - 2) }
}

/// Does not return for a long time.
fn sleep(seconds: u64) -> u64 {
    thread::sleep(Duration::from_secs(seconds));
    seconds
}

fn main() -> Result<(), Box<dyn Error>> {
    // Before the runtime is made: in a worker the call does not return, and a worker needs no runtime.
    procpool::init();
    let pool = ProcessPool::builder().workers(2).build()?;
    let runtime = runtime::Builder::new_current_thread().enable_time().build()?;
    runtime.block_on(run(&pool))
}

async fn run(pool: &ProcessPool) -> Result<(), Box<dyn Error>> {
    let (a, b, c) = tokio::try_join!(
        pool.submit(fibonacci, 20),
        pool.submit(fibonacci, 25),
        pool.submit(fibonacci, 30),
    )?;
    println!("together: {a}, {b}, {c}");

    // The loser is not cancelled by being dropped: a job that has started may be wanted for its effects.
    let mut quick = pool.submit(fibonacci, 10);
    let mut slow = pool.submit(sleep, 600);
    tokio::select! {
        value = &mut quick => {
            println!("the quick job wins with {}", value?);
            slow.abort();
        }
        value = &mut slow => {
            println!("the slow job wins with {}", value?);
            quick.abort();
        }
    }

    let mut late = pool.submit(sleep, 600);
    match timeout(Duration::from_millis(300), &mut late).await {
        Ok(value) => println!("in time: {}", value?),
        Err(_) => {
            // The runtime has stopped waiting; the job runs until it is stopped as well.
            late.abort();
            match late.await {
                Ok(value) => println!("just in time: {value}"),
                Err(error) => println!("too late: {error}"),
            }
        }
    }
    Ok(())
}
