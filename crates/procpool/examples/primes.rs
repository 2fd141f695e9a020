//! Which of six big numbers are prime? Asked once with `submit` and once with `map`.
//!
//! The program of Python's `ProcessPoolExecutor` documentation. Run it with
//! `cargo run --release -p procpool --example primes`.

use std::error::Error;

use procpool::ProcessPool;

const NUMBERS: [u64; 6] = [
    112_272_535_095_293,
    112_582_705_942_171,
    112_272_535_095_293,
    115_280_095_190_773,
    115_797_848_077_099,
    1_099_726_899_285_419,
];

fn is_prime(n: u64) -> bool {
    match n {
        0 | 1 => false,
        2 => true,
        _ if n.is_multiple_of(2) => false,
        _ => !(3..=n.isqrt()).step_by(2).any(|divisor| n.is_multiple_of(divisor)),
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    // First of all: the workers are this program again, and in them the call does not return.
    procpool::init();
    let pool = ProcessPool::new()?;

    println!("submit: a future for each call");
    let futures: Vec<_> = NUMBERS.into_iter().map(|n| pool.submit(is_prime, n)).collect();
    for (n, future) in NUMBERS.into_iter().zip(futures) {
        println!("{n} is prime: {}", future.result()?);
    }

    println!("map: the results in the order of the input");
    for (n, prime) in NUMBERS.into_iter().zip(pool.map(is_prime, NUMBERS)) {
        println!("{n} is prime: {}", prime?);
    }
    Ok(())
}
