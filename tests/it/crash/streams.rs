//! What jobs write to standard error and read from standard input.

use std::fs;
use std::io::{self, Read, Write};

use procpool::{Output, ProcessPool};

use super::fault::Fault;
use super::{died, resident};
use crate::support::test;

const MIB: u64 = 1 << 20;

/// Goal: a job that writes without end to standard error is neither blocked nor kept: the pool reads it
/// all and remembers the tail.
/// Covers: F-25
#[test]
fn a_flood_on_standard_error_is_read_and_forgotten() {
    test(|| {
        let pool = ProcessPool::builder().workers(1).stderr(Output::Capture).build().unwrap();
        let flood = |mib: u64| {
            let line = [b'x'; 64 * 1024];
            for _ in 0..mib * 16 {
                io::stderr().write_all(&line).unwrap();
            }
        };
        pool.submit(flood, 1).result().unwrap();
        let before = resident();
        pool.submit(flood, 256).result().unwrap();
        let grown = resident().saturating_sub(before);
        assert!(grown < 4 * MIB, "{grown} bytes more");
        let last_words = |()| {
            eprintln!("the last words");
            Fault::Abort.strike();
        };
        let death = died(pool.submit(last_words, ()).result());
        assert!(death.stderr_tail.ends_with("the last words\n"));
        assert!(death.stderr_tail.len() < 64 * 1024);
    });
}

/// Goal: a job that reads standard input finds its end, and takes nothing from the host's.
/// Covers: F-26
#[test]
fn standard_input_is_at_its_end() {
    test(|| {
        let pool = ProcessPool::builder().workers(1).build().unwrap();
        let job = |()| {
            let mut text = String::new();
            let len = io::stdin().read_to_string(&mut text).unwrap();
            (len, fs::read_link("/proc/self/fd/0").unwrap())
        };
        let (len, path) = pool.submit(job, ()).result().unwrap();
        assert_eq!((len, path.to_str()), (0, Some("/dev/null")));
    });
}
