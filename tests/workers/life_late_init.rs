//! A program that calls `procpool::init()` only where it believes to be the host. Its workers run its `main`
//! past that, and make a pool of their own. Each process of it leaves a line in the file named by `CENSUS`.

#![expect(clippy::unwrap_used, reason = "a story that cannot be told fails its test")]

use std::fs::OpenOptions;
use std::io::Write;

use procpool::ProcessPool;

fn main() {
    let census = std::env::var_os("CENSUS").unwrap();
    let mut census = OpenOptions::new().append(true).open(census).unwrap();
    writeln!(census, "{}", std::process::id()).unwrap();
    // A worker has no arguments.
    if std::env::args().len() > 1 {
        procpool::init();
    }
    let pool = match ProcessPool::builder().workers(2).build() {
        Ok(pool) => pool,
        Err(error) => {
            eprintln!("{error}");
            std::process::exit(9);
        }
    };
    let futures: Vec<_> = (0..100).map(|n| pool.submit(|n: i32| n, n)).collect();
    for future in futures {
        println!("{}", future.result().unwrap_err());
    }
}
