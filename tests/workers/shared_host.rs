//! A host that passes descriptors to and fro, under a strace that has system calls fail. It checks that each
//! job has its result or says why not, and that no descriptor is left.

#![expect(clippy::unwrap_used, reason = "a run that cannot be made fails its test")]

use std::time::{Duration, Instant};
use std::{fs, thread};

use procpool::{Bytes, JobError, ProcessPool, Shared};

const JOBS: usize = 100;
const LEN: usize = 100_000;

fn double((shared, bytes): (Shared<Vec<u8>>, Bytes)) -> (Bytes, Shared<Vec<u8>>) {
    (Bytes::from(bytes.iter().zip(shared.iter()).map(|(a, b)| a + b).collect::<Vec<u8>>()), shared)
}

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

fn main() {
    procpool::init();
    let pool = ProcessPool::builder().workers(2).build().unwrap();
    pool.warm_up().unwrap();
    let before = descriptors();
    let shared = pool.share(vec![1; LEN]);
    let (mut sound, mut lost, mut died) = (0, 0, 0);
    let futures: Vec<_> = (0..JOBS)
        .map(|n| pool.submit(double, (shared.clone(), Bytes::from(vec![n as u8; LEN]))))
        .collect();
    for (n, future) in futures.into_iter().enumerate() {
        match future.result() {
            Ok((bytes, back)) => {
                assert!(*bytes == *vec![n as u8 + 1; LEN] && std::ptr::eq(&*back, &*shared));
                sound += 1;
            }
            Err(JobError::Decode(fault)) if fault.message.contains("did not arrive") => lost += 1,
            Err(JobError::Died(death)) if death.detail.is_some() => died += 1,
            Err(error) => panic!("job {n}: {error}"),
        }
    }
    println!("{sound} sound, {lost} lost, {died} died");
    let expected = std::env::args().nth(1);
    assert!(sound > 0 && (lost + died > 0) == (expected.as_deref() == Some("some are lost")));
    assert_eq!(pool.submit(|n: u64| n, 5).result().unwrap(), 5);
    drop(shared);
    let deadline = Instant::now() + Duration::from_secs(10);
    while descriptors() > before {
        assert!(Instant::now() < deadline, "{} descriptors, {before} before", descriptors());
        // Nobody says when the last one is closed; only how soon it is seen depends on this.
        thread::sleep(Duration::from_millis(2));
    }
    println!("all is well");
}
