//! User code that runs inside of `submit`.

use procpool::ProcessPool;
use serde::{Deserialize, Serialize, Serializer};

use crate::support::test;

thread_local! {
    static POOL: std::cell::RefCell<Option<ProcessPool>> = const { std::cell::RefCell::new(None) };
}

/// Is encoded as its double, which a pool of its own computes.
#[derive(Deserialize)]
struct Doubled(u64);

impl Serialize for Doubled {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let double = |n: u64| n * 2;
        let doubled = POOL.with_borrow(|pool| {
            let pool = pool.as_ref().unwrap();
            pool.submit(double, self.0).result().unwrap()
        });
        serializer.serialize_u64(doubled)
    }
}

/// Goal: encoding an argument may itself submit, and wait for, another job.
#[test]
fn a_serialize_may_submit() {
    test(|| {
        POOL.set(Some(ProcessPool::builder().workers(1).build().unwrap()));
        let pool = ProcessPool::builder().workers(1).build().unwrap();
        let future = pool.submit(|doubled: Doubled| doubled.0, Doubled(21));
        assert_eq!(future.result().unwrap(), 42);
        POOL.take();
    });
}
