//! Section O: values that cannot be encoded or decoded fail their job alone.

use procpool::{CodecError, JobError, ProcessPool, Side};
use serde::de::Error as _;
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Pool;
use super::jobs::{bad_write, double};
use crate::support::test;

/// Cannot be encoded when it is odd.
#[derive(Debug, Deserialize)]
pub(super) struct RefusesOdd(pub(super) u64);

impl Serialize for RefusesOdd {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0.is_multiple_of(2) {
            serializer.serialize_newtype_struct("RefusesOdd", &self.0)
        } else {
            Err(S::Error::custom("odd ones do not travel"))
        }
    }
}

pub(super) fn number_of(value: RefusesOdd) -> u64 {
    value.0
}

/// The result cannot be encoded when the argument is odd.
pub(super) fn refuse_result(n: u64) -> RefusesOdd {
    RefusesOdd(n)
}

/// How a value ends the worker.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) enum Deadly {
    Segv,
    Exit,
}

impl Deadly {
    fn strike(self) -> ! {
        match self {
            Deadly::Segv => bad_write(),
            Deadly::Exit => std::process::exit(5),
        }
    }
}

/// Ends every process but its own that decodes it.
#[derive(Debug, Serialize)]
pub(super) struct DiesInDecode {
    how: Deadly,
    home: u32,
}

impl DiesInDecode {
    pub(super) fn new(how: Deadly) -> DiesInDecode {
        DiesInDecode { how, home: std::process::id() }
    }
}

impl<'de> Deserialize<'de> for DiesInDecode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<DiesInDecode, D::Error> {
        let (how, home) = <(Deadly, u32)>::deserialize(deserializer)?;
        if home != std::process::id() {
            how.strike();
        }
        Ok(DiesInDecode { how, home })
    }
}

/// Ends the process that encodes it.
#[derive(Debug, Deserialize)]
pub(super) struct DiesInEncode(pub(super) Deadly);

impl Serialize for DiesInEncode {
    fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        self.0.strike()
    }
}

/// Can be decoded nowhere but at home, or nowhere but abroad.
#[derive(Debug, Serialize)]
struct Picky {
    home: u32,
    at_home: bool,
}

impl Picky {
    fn new(at_home: bool) -> Picky {
        Picky { home: std::process::id(), at_home }
    }
}

impl<'de> Deserialize<'de> for Picky {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Picky, D::Error> {
        let (home, at_home) = <(u32, bool)>::deserialize(deserializer)?;
        if at_home == (home == std::process::id()) {
            Ok(Picky { home, at_home })
        } else {
            Err(D::Error::custom("not in this place"))
        }
    }
}

/// Panics when it is encoded.
#[derive(Debug, Deserialize)]
struct Panicky;

impl Serialize for Panicky {
    fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        panic!("no way to say it")
    }
}

fn encode_error<R: std::fmt::Debug>(result: Result<R, JobError>) -> (CodecError, String) {
    match result {
        Err(JobError::Encode(error)) => (error.clone(), JobError::Encode(error).to_string()),
        other => panic!("{other:?}"),
    }
}

fn decode_error<R: std::fmt::Debug>(result: Result<R, JobError>) -> (CodecError, String) {
    match result {
        Err(JobError::Decode(error)) => (error.clone(), JobError::Decode(error).to_string()),
        other => panic!("{other:?}"),
    }
}

/// Goal: an argument that cannot be encoded fails its own job, with the type and the reason; it never ran,
/// and the pool goes on. A panic there does not unwind `submit`.
///
/// Covers: 155
#[test]
fn an_argument_that_cannot_be_encoded_fails_alone() {
    test(|| {
        let pool = ProcessPool::of(1);
        let future = pool.submit(number_of, RefusesOdd(1));
        assert!(future.is_done());
        let outcome = future.outcome();
        assert_eq!((outcome.report.attempts, outcome.report.pid), (0, None));
        let (error, text) = encode_error(outcome.result);
        assert_eq!(error.side, Side::Caller);
        assert!(error.type_name.ends_with("RefusesOdd"), "{error:?}");
        assert!(error.message.contains("odd ones do not travel"), "{error:?}");
        assert!(text.starts_with("cannot encode the argument: "), "{text}");
        let (error, _) = encode_error(pool.submit(|_: Panicky| (), Panicky).result());
        assert_eq!(error.side, Side::Caller);
        assert!(error.message.contains("no way to say it"), "{error:?}");
        assert_eq!(pool.submit(number_of, RefusesOdd(2)).result().unwrap(), 2);
        let stats = pool.stats();
        assert_eq!((stats.submitted, stats.failed, stats.finished), (3, 2, 1));
    });
}

/// Goal: an argument that cannot be decoded in the worker fails its own job, in the worker's name, and the
/// worker lives on.
///
/// Covers: 156, 175
#[test]
fn an_argument_that_cannot_be_decoded_fails_alone() {
    test(|| {
        let pool = ProcessPool::of(1);
        let (error, text) = decode_error(pool.submit(|_: Picky| (), Picky::new(true)).result());
        assert_eq!(error.side, Side::Worker);
        assert!(error.type_name.ends_with("Picky"), "{error:?}");
        assert!(error.message.contains("not in this place"), "{error:?}");
        assert!(text.starts_with("cannot decode the argument: "), "{text}");
        assert_eq!(pool.submit(double, 1).result().unwrap(), 2);
        assert_eq!((pool.stats().spawned, pool.stats().deaths), (1, 0));
    });
}

/// Goal: a result that cannot be encoded fails its own job, which did run; the worker lives on.
///
/// Covers: 157
#[test]
fn a_result_that_cannot_be_encoded_fails_alone() {
    test(|| {
        let pool = ProcessPool::of(1);
        let outcome = pool.submit(refuse_result, 1).outcome();
        assert_eq!(outcome.report.attempts, 1);
        let (error, text) = encode_error(outcome.result);
        assert_eq!(error.side, Side::Worker);
        assert!(error.type_name.ends_with("RefusesOdd"), "{error:?}");
        assert!(error.message.contains("odd ones do not travel"), "{error:?}");
        assert!(text.starts_with("cannot encode the result: "), "{text}");
        assert_eq!(pool.submit(refuse_result, 2).result().unwrap().0, 2);
        assert_eq!((pool.stats().spawned, pool.stats().deaths), (1, 0));
    });
}

/// Goal: a result that cannot be decoded by its taker fails for its taker; callbacks know only that there
/// is a value.
///
/// Covers: 158, 175
#[test]
fn a_result_that_cannot_be_decoded_fails_alone() {
    test(|| {
        let pool = ProcessPool::of(1);
        let abroad = |home: u32| Picky { home, at_home: false };
        let future = pool.submit(abroad, std::process::id());
        let (word, said) = std::sync::mpsc::channel();
        future.on_done(move |done| word.send(done.error.is_none()).unwrap());
        assert!(said.recv().unwrap());
        let (error, text) = decode_error(future.result());
        assert_eq!(error.side, Side::Caller);
        assert!(error.type_name.ends_with("Picky"), "{error:?}");
        assert!(text.starts_with("cannot decode the result: "), "{text}");
        let results: Vec<_> = pool.map(abroad, vec![std::process::id(); 3]).collect();
        assert_eq!(results.len(), 3);
        assert!(results.iter().all(|r| matches!(r, Err(JobError::Decode(_)))));
        assert_eq!(pool.submit(double, 1).result().unwrap(), 2);
        assert_eq!((pool.stats().spawned, pool.stats().deaths), (1, 0));
    });
}

/// Goal: nothing is encoded on threads: what could not travel runs there.
#[test]
fn threads_encode_nothing() {
    test(|| {
        let pool = procpool::ThreadPool::of(1);
        assert_eq!(pool.submit(number_of, RefusesOdd(1)).result().unwrap(), 1);
        assert!(pool.submit(|_: Panicky| Panicky, Panicky).result().is_ok());
    });
}
