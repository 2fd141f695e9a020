//! Counts add up at every moment.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use procpool::{ProcessPool, Stats};

use super::jobs::{double, fail, segv};
use super::{Pool, hold};
use crate::support::{Meeting, test};

fn adds_up(stats: &Stats) {
    let ended = stats.finished + stats.failed + stats.cancelled;
    let there = (stats.running + stats.queued) as u64;
    assert_eq!(stats.submitted, ended + there, "{stats:?}");
    assert!(stats.idle <= stats.workers, "{stats:?}");
    assert!(stats.deaths <= stats.spawned, "{stats:?}");
}

/// A generator that is good enough to shake things (Marsaglia's xorshift).
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new() -> Random {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let seed = now.as_nanos() as u64 | 1;
        println!("seed {seed}");
        Random(seed)
    }

    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// Goal: submitted = finished + failed + cancelled + running + queued, whenever one looks: under load, with
/// cancels, panics, deaths and maps.
#[test]
fn counts_add_up_at_every_moment() {
    test(|| {
        let mut random = Random::new();
        let pool = ProcessPool::of(2);
        let over = AtomicBool::new(false);
        let looks = thread::scope(|scope| {
            let looker = scope.spawn(|| {
                let mut looks = 0;
                while !over.load(Ordering::Relaxed) {
                    adds_up(&pool.stats());
                    looks += 1;
                }
                looks
            });
            let mapper = scope.spawn(|| pool.map(double, 0..5000).filter(Result::is_ok).count());
            let mut futures = Vec::new();
            for n in 0..1500 {
                let job = match random.below(100) {
                    0 => segv,
                    1..10 => fail,
                    _ => double,
                };
                futures.push(pool.submit(job, n));
                if random.below(4) == 0 {
                    let index = random.below(futures.len() as u64) as usize;
                    futures.swap_remove(index).cancel();
                }
                if random.below(50) == 0 {
                    let index = random.below(futures.len() as u64) as usize;
                    futures.swap_remove(index).abort();
                }
            }
            futures.iter().for_each(|future| future.wait());
            assert_eq!(mapper.join().unwrap(), 5000);
            over.store(true, Ordering::Relaxed);
            looker.join().unwrap()
        });
        assert!(looks > 10, "{looks} looks");
        adds_up(&pool.stats());
    });
}

/// Goal: each count counts what it says; refused jobs are not counted.
#[test]
fn each_count_counts_what_it_says() {
    test(|| {
        let pool = ProcessPool::builder().workers(2).queue_limit(3).build().unwrap();
        assert_eq!(pool.stats(), Stats::default());
        let meeting = Meeting::new();
        let (held, guest) = hold(&pool, &meeting);
        let (other, other_guest) = hold(&pool, &meeting);
        let waiting: Vec<_> = (0..3).map(|n| pool.submit(double, n)).collect();
        assert!(pool.try_submit(double, 9).is_err());
        assert!(waiting[2].cancel());
        let stats = pool.stats();
        assert_eq!((stats.workers, stats.idle, stats.spawned), (2, 0, 2));
        assert_eq!((stats.running, stats.queued), (2, 2));
        assert_eq!((stats.submitted, stats.cancelled), (5, 1));
        guest.go();
        held.wait();
        waiting.iter().for_each(|future| future.wait());
        pool.submit(fail, 1).wait();
        pool.submit(segv, 1).wait();
        other_guest.go();
        other.wait();
        let stats = pool.stats();
        assert_eq!((stats.finished, stats.failed, stats.cancelled), (4, 2, 1));
        assert_eq!((stats.running, stats.queued, stats.submitted), (0, 0, 7));
        assert_eq!(stats.deaths, 1);
        pool.shutdown(procpool::Shutdown::Drain);
        let stats = pool.stats();
        assert_eq!((stats.workers, stats.idle), (0, 0));
    });
}
