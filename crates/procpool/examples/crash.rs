//! Jobs that crash in every way there is, beside jobs that work: each future says what happened.
//!
//! Run it with `cargo run -p procpool --example crash`.

use std::error::Error;
use std::hint::black_box;
use std::process;
use std::ptr;
use std::thread;
use std::time::Duration;

use procpool::{Output, ProcessPool};

fn add((a, b): (u64, u64)) -> u64 {
    a + b
}

#[expect(unsafe_code, reason = "a real segmentation fault needs a real bad write")]
fn segfault((a, b): (u64, u64)) -> u64 {
    let nowhere = ptr::without_provenance_mut::<u64>(64);
    // SAFETY: none. No page is ever mapped so low, so the write ends the process: which is the point.
    unsafe { nowhere.write_volatile(a + b) };
    a + b
}

fn abort(_: (u64, u64)) -> u64 {
    process::abort()
}

fn exit(_: (u64, u64)) -> u64 {
    process::exit(3)
}

fn overflow((a, b): (u64, u64)) -> u64 {
    // The black boxes keep the compiler from making a loop of this, or from seeing that it has no end.
    let frame = black_box([a; 512]);
    if black_box(true) { overflow((a + 1, b)) + frame[0] } else { b }
}

fn panic((a, b): (u64, u64)) -> u64 {
    panic!("cannot add {a} and {b}")
}

fn hang(_: (u64, u64)) -> u64 {
    loop {
        thread::park();
    }
}

type Sum = fn((u64, u64)) -> u64;

fn main() -> Result<(), Box<dyn Error>> {
    procpool::init();
    let pool = ProcessPool::builder()
        .workers(2)
        .job_timeout(Duration::from_secs(1))
        // What the dying print goes into the verdicts and not to the screen.
        .stderr(Output::Capture)
        .build()?;

    let jobs: [(&str, Sum); 9] = [
        ("add", add),
        ("segfault", segfault),
        ("abort", abort),
        ("exit", exit),
        ("overflow", overflow),
        ("add again", add),
        ("panic", panic),
        ("hang", hang),
        ("add at last", add),
    ];
    let futures: Vec<_> = jobs
        .into_iter()
        .map(|(name, f)| (name, pool.job(f, (40, 2)).name(name).submit()))
        .collect();
    for (name, future) in futures {
        match future.result() {
            Ok(sum) => println!("{name}: {sum}"),
            Err(error) => println!("{name}: {error}"),
        }
    }
    println!("{} workers died", pool.stats().deaths);
    Ok(())
}
