//! Handles to shared values: where they may go, how often their value is decoded, when it is let go.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::Ordering;
use std::time::Duration;

use procpool::{Bytes, JobError, Leaks, ProcessPool, Shared, ThreadPool};
use serde::{Deserialize, Serialize};

use super::{ALIVE, Baseline, Counted, DECODED, MIB, attachments_of};
use crate::support::{Meeting, meet, test};

fn sum(shared: Shared<Counted>) -> u64 {
    shared.0.iter().sum()
}

/// The pid of the worker, and how often it has decoded.
fn decodes(shared: Shared<Counted>) -> (u32, u64) {
    assert!(!shared.0.is_empty());
    (std::process::id(), DECODED.load(Ordering::Relaxed))
}

/// Goal: a large value that a hundred jobs use is decoded once in each worker, and let go everywhere when
/// the last handle is gone.
#[test]
fn a_hundred_jobs_on_64_mib_decode_them_once_in_each_worker() {
    test(|| {
        let pool = ProcessPool::builder().workers(2).build().unwrap();
        let baseline = Baseline::of(&pool);
        let before = DECODED.load(Ordering::Relaxed);
        let value = Counted::new((0..64 * MIB as u64 / 8).collect());
        let total: u64 = value.0.iter().sum();
        let shared = pool.share(value);
        let jobs: Vec<_> = (0..100).map(|_| pool.submit(sum, shared.clone())).collect();
        for job in jobs {
            assert_eq!(job.result().unwrap(), total);
        }
        let mut most: HashMap<u32, u64> = HashMap::new();
        for _ in 0..10 {
            let (pid, decoded) = pool.submit(decodes, shared.clone()).result().unwrap();
            most.insert(pid, decoded);
        }
        assert!(most.values().all(|decoded| *decoded == 1), "{most:?}");
        for worker in pool.workers() {
            assert_eq!(attachments_of(worker.pid).0, 1, "one descriptor in each worker");
        }
        assert_eq!(DECODED.load(Ordering::Relaxed), before, "nothing is decoded here");
        drop(shared);
        baseline.wait(&pool);
        assert_eq!(ALIVE.load(Ordering::Relaxed), 0);
        let alive = |()| ALIVE.load(Ordering::Relaxed);
        for alive in [(); 10].map(|()| pool.submit(alive, ())) {
            assert_eq!(alive.result().unwrap(), 0, "the worker has dropped its value");
        }
    });
}

#[derive(Debug, Serialize, Deserialize)]
struct Spec {
    name: String,
    table: Shared<Vec<u32>>,
    again: Option<Shared<Vec<u32>>>,
}

/// Goal: a handle is data like any other: in tuples, structs, lists and maps, alone, twice, as the element
/// of a map, and inside another shared value.
#[test]
fn handles_travel_inside_other_data() {
    test(|| {
        let pool = ProcessPool::builder().workers(2).build().unwrap();
        let baseline = Baseline::of(&pool);
        let table = pool.share(vec![1u32, 2, 3]);
        let other = pool.share(String::from("other"));
        let pair = |(table, other): (Shared<Vec<u32>>, Shared<String>)| (table[2], other.len());
        assert_eq!(pool.submit(pair, (table.clone(), other.clone())).result().unwrap(), (3, 5));
        let spec = Spec { name: "a".into(), table: table.clone(), again: Some(table.clone()) };
        let of_spec = |spec: Spec| {
            let again = spec.again.unwrap();
            assert!(std::ptr::eq(&**spec.table, &**again), "two handles, one value");
            spec.name + &spec.table[0].to_string()
        };
        assert_eq!(pool.submit(of_spec, spec).result().unwrap(), "a1");
        let many = vec![table.clone(); 300];
        let of_many = |many: Vec<Shared<Vec<u32>>>| many.iter().map(|t| t.len()).sum::<usize>();
        assert_eq!(pool.submit(of_many, many).result().unwrap(), 900);
        let items = (0..1000usize).map(|n| (table.clone(), n));
        let at = |(table, n): (Shared<Vec<u32>>, usize)| table[n % 3];
        let found: Vec<u32> = pool.map(at, items).map(Result::unwrap).collect();
        assert!(found.iter().enumerate().all(|(n, found)| *found == 1 + n as u32 % 3));
        let chunks = (0..100usize).map(|n| (table.clone(), n));
        assert_eq!(pool.map(at, chunks).chunk_size(7).map(Result::unwrap).sum::<u32>(), 199);
        let nested = pool.share((table.clone(), other, Bytes::from(vec![7; MIB])));
        let deep = |nested: Shared<(Shared<Vec<u32>>, Shared<String>, Bytes)>| {
            (nested.0[1], nested.1.len(), nested.2.len())
        };
        assert_eq!(pool.submit(deep, nested.clone()).result().unwrap(), (2, 5, MIB));
        // What it refers to goes with it, whoever else has let go.
        drop(table);
        assert_eq!(pool.submit(deep, nested.clone()).result().unwrap(), (2, 5, MIB));
        drop(nested);
        baseline.wait(&pool);
    });
}

/// Goal: more handles than one message carries descriptors for; and those that a worker keeps for the next
/// job are not taken for what a job has left behind.
#[test]
fn three_hundred_different_values_in_one_argument() {
    test(|| {
        let pool = ProcessPool::builder().workers(1).leaks(Leaks::Error).build().unwrap();
        let baseline = Baseline::of(&pool);
        let many: Vec<_> = (0..300u64).map(|n| pool.share(n)).collect();
        let of_many = |many: Vec<Shared<u64>>| {
            // Jobs of less than a tenth of a millisecond are not looked at.
            std::thread::sleep(Duration::from_millis(1));
            many.iter().map(|n| **n).sum::<u64>()
        };
        assert_eq!(pool.submit(of_many, many.clone()).result().unwrap(), 299 * 300 / 2);
        let back = pool.submit(|many: Vec<Shared<u64>>| many, many).result().unwrap();
        assert_eq!(back.iter().map(|n| **n).sum::<u64>(), 299 * 300 / 2);
        drop(back);
        baseline.wait(&pool);
    });
}

/// Goal: a handle belongs to the process, not to the pool that made it; threads take it as it is; and a job
/// passes it on to a pool of its own.
#[test]
fn a_handle_goes_to_any_pool_and_on_from_there() {
    fn nested(shared: Shared<Counted>) -> (u64, u64) {
        let pool = ProcessPool::builder().workers(1).build().unwrap();
        let inner = pool.submit(sum, shared.clone()).result().unwrap();
        let back = pool.submit(|shared: Shared<Counted>| shared, shared.clone()).result().unwrap();
        assert!(std::ptr::eq(&*back, &*shared), "the value that is here");
        (inner, DECODED.load(Ordering::Relaxed))
    }
    test(|| {
        let maker = ProcessPool::builder().workers(1).build().unwrap();
        let shared = maker.share(Counted::new(vec![1, 2, 3]));
        drop(maker);
        let threads = ThreadPool::new().unwrap();
        let address = |shared: Shared<Counted>| std::ptr::from_ref(&*shared) as usize;
        let here = std::ptr::from_ref(&*shared) as usize;
        assert_eq!(threads.submit(address, shared.clone()).result().unwrap(), here);
        let pool = ProcessPool::builder().workers(1).build().unwrap();
        assert_eq!(pool.submit(sum, shared.clone()).result().unwrap(), 6);
        assert_eq!(pool.submit(nested, shared.clone()).result().unwrap(), (6, 1));
        drop(shared);
        Baseline::of(&pool).wait(&pool);
    });
}

/// Goal: a handle that comes back is the value that is here, not a copy; one to a value that was shared in
/// a worker arrives too, as a value of its own.
#[test]
fn handles_come_back_in_results() {
    fn made_here(n: u64) -> (Shared<Counted>, Shared<(Bytes, u64)>) {
        // A pool that does nothing but share.
        let pool = ProcessPool::builder().workers(1).build().unwrap();
        let bytes = Bytes::from(vec![n as u8; MIB]);
        (pool.share(Counted::new(vec![n])), pool.share((bytes, n)))
    }
    test(|| {
        let pool = ProcessPool::builder().workers(2).build().unwrap();
        let baseline = Baseline::of(&pool);
        let shared = pool.share(Counted::new(vec![1, 2, 3]));
        let give_back = |(shared, n): (Shared<Counted>, u64)| (n, shared);
        let (n, back) = pool.submit(give_back, (shared.clone(), 5)).result().unwrap();
        assert_eq!(n, 5);
        assert!(std::ptr::eq(&*back, &*shared));
        let items = (0..20).map(|n| (shared.clone(), n));
        for (expected, result) in (0..).zip(pool.map(give_back, items)) {
            let (n, back) = result.unwrap();
            assert!(n == expected && std::ptr::eq(&*back, &*shared));
        }
        // The last handle is the one in the result that nobody has taken yet.
        let pending = pool.submit(give_back, (back, 6));
        drop(shared);
        pending.wait();
        assert_eq!(pending.result().unwrap().1.0, [1, 2, 3]);
        let (counted, with_bytes) = pool.submit(made_here, 9).result().unwrap();
        assert_eq!(counted.0, [9]);
        assert_eq!((with_bytes.0.len(), with_bytes.0[MIB - 1], with_bytes.1), (MIB, 9, 9));
        // And on from here.
        let use_both = |(a, b): (Shared<Counted>, Shared<(Bytes, u64)>)| a.0[0] + b.0.len() as u64;
        let both = (counted, with_bytes);
        assert_eq!(pool.submit(use_both, both.clone()).result().unwrap(), 9 + MIB as u64);
        drop(both);
        baseline.wait(&pool);
    });
}

/// Goal: a job may keep a handle; the worker lets go when that goes, not before; and it can be given back
/// when nobody else has it any more.
#[test]
fn a_handle_that_a_job_has_kept_stays_good() {
    static KEPT: Mutex<Option<Shared<Counted>>> = Mutex::new(None);
    test(|| {
        let pool = ProcessPool::builder().workers(1).build().unwrap();
        let baseline = Baseline::of(&pool);
        let shared = pool.share(Counted::new(vec![4, 5]));
        let keep = |shared: Shared<Counted>| *KEPT.lock().unwrap() = Some(shared);
        pool.submit(keep, shared).result().unwrap();
        // Nothing of it is left here, once the worker has been told.
        let told = |()| KEPT.lock().unwrap().as_ref().map(|kept| kept.0.clone());
        assert_eq!(pool.submit(told, ()).result().unwrap(), Some(vec![4, 5]));
        assert_eq!(ALIVE.load(Ordering::Relaxed), 0);
        let give = |()| KEPT.lock().unwrap().take().unwrap();
        let back = pool.submit(give, ()).result().unwrap();
        assert_eq!(back.0, [4, 5]);
        drop(back);
        baseline.wait(&pool);
    });
}

/// Goal: the handle of a job that runs keeps the value, whoever else lets go.
#[test]
fn a_running_job_keeps_what_it_uses() {
    fn look_twice((shared, path): (Shared<Counted>, String)) -> (u64, u64) {
        let before = shared.0.iter().sum();
        meet(&path, "");
        (before, shared.0.iter().sum())
    }
    test(|| {
        let meeting = Meeting::new();
        let pool = ProcessPool::builder().workers(1).build().unwrap();
        let baseline = Baseline::of(&pool);
        let shared = pool.share(Counted::new(vec![1; 1000]));
        let job = pool.submit(look_twice, (shared.clone(), meeting.path()));
        let guest = meeting.next();
        drop(shared);
        guest.go();
        assert_eq!(job.result().unwrap(), (1000, 1000));
        baseline.wait(&pool);
    });
}

/// Goal: the initializer's argument may hold handles, and jobs find the value decoded.
#[test]
fn an_initializer_is_given_handles() {
    static TABLE: Mutex<Option<Shared<Counted>>> = Mutex::new(None);
    fn set((shared, bytes): (Shared<Counted>, Bytes)) {
        assert_eq!(bytes.len(), MIB);
        *TABLE.lock().unwrap() = Some(shared);
    }
    test(|| {
        let maker = ProcessPool::builder().workers(1).build().unwrap();
        let shared = maker.share(Counted::new(vec![7]));
        drop(maker);
        let argument = (shared.clone(), Bytes::from(vec![1; MIB]));
        let pool = ProcessPool::builder().workers(2).max_jobs_per_worker(2);
        let pool = pool.initializer(set, argument).build().unwrap();
        let of_static = |()| TABLE.lock().unwrap().as_ref().unwrap().0[0];
        for _ in 0..6 {
            assert_eq!(pool.submit(of_static, ()).result().unwrap(), 7);
            assert_eq!(pool.submit(decodes, shared.clone()).result().unwrap().1, 1);
        }
    });
}

/// Goal: recycled workers, and a process for each job, get it too.
#[test]
fn every_new_worker_gets_it() {
    test(|| {
        let pool = ProcessPool::builder().workers(2).max_jobs_per_worker(1).build().unwrap();
        let shared = pool.share(Counted::new(vec![1, 2, 3]));
        let jobs: Vec<_> = (0..12).map(|_| pool.submit(decodes, shared.clone())).collect();
        let mut pids: Vec<u32> = Vec::new();
        for job in jobs {
            let (pid, decoded) = job.result().unwrap();
            assert_eq!(decoded, 1);
            pids.push(pid);
        }
        pids.sort_unstable();
        pids.dedup();
        assert_eq!(pids.len(), 12);
    });
}

/// Goal: a handle that is serialized anywhere else is an error that says so, here and in a job.
#[test]
fn a_handle_in_json_is_an_error() {
    test(|| {
        let pool = ProcessPool::builder().workers(1).build().unwrap();
        let shared = pool.share(5u32);
        let error = serde_json::to_string(&shared).unwrap_err().to_string();
        assert!(error.contains("only in the argument or result of a job"), "{error}");
        let in_job = |shared: Shared<u32>| serde_json::to_string(&shared).unwrap_err().to_string();
        assert_eq!(pool.submit(in_job, shared).result().unwrap(), error);
        assert!(serde_json::from_str::<Shared<u32>>("0").is_err());
    });
}

/// Goal: a value that cannot be encoded is no panic: it can be used here, and each job that is given it says
/// why it cannot.
#[test]
fn a_value_that_cannot_be_encoded_fails_the_jobs_that_use_it() {
    #[derive(Debug, Clone, Copy, Deserialize)]
    enum Bad {
        Error,
        Panic,
    }
    impl Serialize for Bad {
        fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
            match self {
                Bad::Error => Err(serde::ser::Error::custom("not today")),
                Bad::Panic => panic!("not today"),
            }
        }
    }
    test(|| {
        let pool = ProcessPool::builder().workers(1).payload_limit(1000).build().unwrap();
        for bad in [Bad::Error, Bad::Panic] {
            let shared = pool.share(bad);
            assert!(matches!(*shared, Bad::Error | Bad::Panic));
            let error = pool.submit(|_: Shared<Bad>| (), shared).result().unwrap_err();
            assert!(matches!(error, JobError::Encode(_)), "{error}");
            assert!(error.to_string().contains("not today"), "{error}");
        }
        let long = pool.share(vec![0u8; 1000]);
        let error = pool.submit(|_: Shared<Vec<u8>>| (), long).result().unwrap_err();
        assert!(error.to_string().contains("1008 bytes exceed the limit of 1000"), "{error}");
        let short = pool.share(vec![0u8; 992]);
        assert_eq!(pool.submit(|s: Shared<Vec<u8>>| s.len(), short).result().unwrap(), 992);
    });
}
