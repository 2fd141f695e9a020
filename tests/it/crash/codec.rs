//! Values that cannot be encoded or decoded, on either side, and text that nobody should print as it is.

use procpool::{CodecError, JobError, Output, ProcessPool, Shared, Side};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};

use super::fault::Fault;
use super::{died, panicked};
use crate::support::test;

const REFUSAL: &str = "refused on purpose";

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Step {
    Encode,
    Decode,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum How {
    Error,
    Panic,
}

/// A value that fails at one step on one side. The job hands it through, so that it is encoded and
/// decoded on both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Fickle(Option<(Step, bool, How)>);

impl Fickle {
    const SOUND: Fickle = Fickle(None);

    fn new(step: Step, side: Side, how: How) -> Fickle {
        Fickle(Some((step, side == Side::Worker, how)))
    }

    fn fails_now(self, now: Step) -> bool {
        match self.0 {
            Some((step, in_worker, how)) => {
                let fails = step == now && in_worker == procpool::context().is_some();
                assert!(!(fails && how == How::Panic), "{REFUSAL}");
                fails
            }
            None => false,
        }
    }
}

impl Serialize for Fickle {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.fails_now(Step::Encode) {
            return Err(ser::Error::custom(REFUSAL));
        }
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Fickle {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Fickle, D::Error> {
        let value = Fickle(Deserialize::deserialize(deserializer)?);
        if value.fails_now(Step::Decode) {
            return Err(de::Error::custom(REFUSAL));
        }
        Ok(value)
    }
}

/// Every way to fail: where, when and how.
fn ways() -> impl Iterator<Item = (Step, Side, How)> {
    [Step::Encode, Step::Decode].into_iter().flat_map(|step| {
        [Side::Caller, Side::Worker].into_iter().flat_map(move |side| {
            [How::Error, How::Panic].into_iter().map(move |how| (step, side, how))
        })
    })
}

fn check((step, side, how): (Step, Side, How), result: Result<Fickle, JobError>) {
    let what = format!("{step:?} {side:?} {how:?}: {result:?}");
    if (side, how) == (Side::Worker, How::Panic) {
        // A panic in a worker is a panic, wherever.
        let panic = panicked(result);
        assert_eq!((panic.message.as_str(), panic.aborted), (REFUSAL, false), "{what}");
        return;
    }
    let error: CodecError = match (step, result) {
        (Step::Encode, Err(JobError::Encode(error))) => error,
        (Step::Decode, Err(JobError::Decode(error))) => error,
        _ => panic!("{what}"),
    };
    assert_eq!(error.side, side, "{what}");
    assert!(error.message.contains(REFUSAL), "{what}");
    assert!(error.type_name.ends_with("Fickle"), "{what}");
}

/// Goal: a value that cannot be encoded or decoded fails its own job, with the reason, and costs no worker;
/// an argument that cannot be encoded does not even need one.
/// Covers: F-47, F-48, F-49, F-50
#[test]
fn a_codec_error_on_either_side_fails_its_job_alone() {
    test(|| {
        let pool = ProcessPool::builder().workers(1).build().unwrap();
        for way @ (step, side, how) in ways() {
            let spawned = pool.stats().spawned;
            let future = pool.submit(|fickle: Fickle| fickle, Fickle::new(step, side, how));
            let outcome = future.outcome();
            check(way, outcome.result);
            let never_ran = (step, side) == (Step::Encode, Side::Caller);
            assert_eq!(outcome.report.attempts, u32::from(!never_ran));
            if never_ran {
                assert_eq!(pool.stats().spawned, spawned);
            }
            let sound = pool.submit(|fickle: Fickle| fickle, Fickle::SOUND);
            assert_eq!(sound.result().unwrap(), Fickle::SOUND);
        }
        assert_eq!((pool.stats().spawned, pool.stats().deaths), (1, 0));
    });
}

/// Goal: in a map such a value fails its own element, also in the middle of a chunk.
/// Covers: F-47, F-48, F-49, F-50
#[test]
fn a_codec_error_in_a_map_fails_its_element_alone() {
    test(|| {
        let pool = ProcessPool::builder().workers(1).build().unwrap();
        for way @ (step, side, how) in ways() {
            for chunk in [1, 4, 10] {
                let at = |n| match n {
                    3 | 4 | 9 => Fickle::new(step, side, how),
                    _ => Fickle::SOUND,
                };
                let map = pool.map(|fickle: Fickle| fickle, (0..10).map(at));
                let results: Vec<_> = map.chunk_size(chunk).collect();
                assert_eq!(results.len(), 10);
                for (n, result) in (0..).zip(results) {
                    match at(n) {
                        Fickle::SOUND => assert_eq!(result.unwrap(), Fickle::SOUND, "{n}"),
                        _ => check(way, result),
                    }
                }
            }
        }
        assert_eq!((pool.stats().spawned, pool.stats().deaths), (1, 0));
    });
}

/// Goal: no text of a job's reaches a terminal as it is: a message of any kind is one line without
/// control characters.
/// Covers: F-58
#[test]
fn control_characters_in_a_jobs_text_are_escaped() {
    const EVIL: &str = "\u{1b}]0;pwn\u{7}\r\n\u{202e}";
    fn check(error: &JobError) {
        let text = error.to_string();
        let is_evil = |c: char| c.is_control() || c == '\u{202e}';
        assert!(!text.contains(is_evil), "{text:?}");
        assert!(text.contains("pwn"), "{text:?}");
    }
    #[derive(Debug, Serialize)]
    struct Refuses;
    impl<'de> Deserialize<'de> for Refuses {
        fn deserialize<D: Deserializer<'de>>(_: D) -> Result<Refuses, D::Error> {
            Err(de::Error::custom(EVIL))
        }
    }
    test(|| {
        let pool = ProcessPool::builder().workers(1).stderr(Output::Capture).build().unwrap();
        let panic = panicked(pool.submit::<_, ()>(|()| panic!("{EVIL}"), ()).result());
        assert_eq!(panic.message, EVIL);
        check(&JobError::Panicked(panic));
        let crash = |()| {
            eprint!("{EVIL}");
            Fault::Abort.strike();
        };
        let death = died(pool.submit(crash, ()).result());
        assert_eq!(death.stderr_tail, EVIL);
        check(&JobError::Died(death));
        let named = pool.job(|()| Fault::Abort.strike(), ()).name(EVIL);
        check(&named.submit().result().unwrap_err());
        check(&pool.submit(|_: Refuses| (), Refuses).result().unwrap_err());
        check(&pool.submit(|()| Refuses, ()).result().unwrap_err());
    });
}

/// Goal: bytes on standard error that are no text do not keep a death from being told.
/// Covers: F-58
#[test]
fn bytes_that_are_not_text_are_shown_as_well_as_can_be() {
    test(|| {
        let pool = ProcessPool::builder().workers(1).stderr(Output::Capture).build().unwrap();
        let crash = |()| {
            std::io::Write::write_all(&mut std::io::stderr(), b"caf\xe9 \xff\xfe\0 end").unwrap();
            Fault::Abort.strike();
        };
        let death = died(pool.submit(crash, ()).result());
        assert_eq!(death.stderr_tail, "caf\u{fffd} \u{fffd}\u{fffd}\0 end");
        let text = JobError::Died(death).to_string();
        assert!(!text.contains(char::is_control), "{text:?}");
    });
}

/// A sequence that claims to have a length, and has one element.
#[derive(Debug)]
struct Liar(u64);

impl Serialize for Liar {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (self.0, 7_u64).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Liar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Liar, D::Error> {
        // The length comes first, as a `u64`, in the format of sequences, text and maps alike.
        let elements = Vec::<u64>::deserialize(deserializer)?;
        Ok(Liar(elements.len() as u64))
    }
}

/// Goal: data that claims to be longer than it is takes no memory for what it claims, on neither side, and fails
/// its own job alone.
/// Covers: F-54
#[test]
fn lengths_that_lie_are_not_believed() {
    test(|| {
        let pool = ProcessPool::builder().workers(1).build().unwrap();
        let before = super::resident();
        for len in [2, 1 << 32, 1 << 60, u64::MAX] {
            let argument = pool.submit(|liar: Liar| liar.0, Liar(len)).result();
            let error = match argument {
                Err(JobError::Decode(error)) => error,
                other => panic!("{len}: {other:?}"),
            };
            assert_eq!(error.side, Side::Worker, "{len}");
            let result = pool.submit(Liar, len).result();
            let error = match result {
                Err(JobError::Decode(error)) => error,
                other => panic!("{len}: {other:?}"),
            };
            assert_eq!(error.side, Side::Caller, "{len}");
        }
        let grown = super::resident().saturating_sub(before);
        assert!(grown < 4 << 20, "{grown} bytes more");
        assert_eq!((pool.stats().spawned, pool.stats().deaths), (1, 0));
    });
}

#[derive(Debug, Serialize, Deserialize)]
struct Nested(Option<Box<Nested>>);

/// Encodes as so many levels, without having them.
#[derive(Debug)]
struct Deep(usize);

impl Serialize for Deep {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeTuple;
        // Each level is the mark that says that there is another.
        let mut levels = serializer.serialize_tuple(self.0 + 1)?;
        for _ in 0..self.0 {
            levels.serialize_element(&1_u8)?;
        }
        levels.serialize_element(&0_u8)?;
        levels.end()
    }
}

impl<'de> Deserialize<'de> for Deep {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Deep, D::Error> {
        let nested = Nested::deserialize(deserializer)?;
        let mut level = &nested;
        let mut levels = 0;
        while let Some(next) = &level.0 {
            level = next;
            levels += 1;
        }
        Ok(Deep(levels))
    }
}

/// Goal: an argument that is nested deeper than a worker's stack costs that worker, and not the pool.
/// Covers: F-54
#[test]
fn an_argument_that_is_nested_too_deep_is_the_death_of_its_job() {
    test(|| {
        let pool = ProcessPool::builder().workers(1).stderr(Output::Capture).build().unwrap();
        assert_eq!(pool.submit(|deep: Deep| deep.0, Deep(100)).result().unwrap(), 100);
        let death = died(pool.submit(|deep: Deep| deep.0, Deep(10_000_000)).result());
        assert_eq!(death.phase, procpool::Phase::Decode);
        assert!(death.stderr_tail.contains("overflowed its stack"), "{:?}", death.stderr_tail);
        assert_eq!(pool.submit(|deep: Deep| deep.0, Deep(100)).result().unwrap(), 100);
    });
}

fn deep(levels: usize) -> Deep {
    Deep(levels)
}

/// The same in the memory of a shared value, which the host decodes as well.
fn share_deep(levels: usize) -> Shared<Deep> {
    let pool = ProcessPool::builder().workers(1).build().unwrap();
    pool.share(Deep(levels))
}

/// Goal: a result that is nested deeper than its taker's stack is that job's error, with the reason; the host is
/// none the worse for it, and neither are the worker and the other elements of a map.
/// Method: a job whose result encodes as ten million levels, taken on a thread with std's usual stack.
/// Covers: F-54
#[test]
fn a_result_that_is_nested_too_deep_is_refused() {
    const LEVELS: usize = 10_000_000;
    fn check<R: std::fmt::Debug>(result: Result<R, JobError>) {
        let error = match result {
            Err(JobError::Decode(error)) => error,
            other => panic!("{other:?}"),
        };
        assert_eq!(error.side, Side::Caller);
        assert!(error.message.contains("nested too deep"), "{}", error.message);
    }
    test(|| {
        let pool = ProcessPool::builder().workers(1).build().unwrap();
        check(pool.submit(deep, LEVELS).result());
        check(pool.submit(share_deep, LEVELS).result());
        let results: Vec<_> = pool.map(deep, [100, LEVELS, 100]).chunk_size(3).collect();
        for (n, result) in results.into_iter().enumerate() {
            match n {
                1 => check(result),
                _ => assert_eq!(result.unwrap().0, 100),
            }
        }
        assert_eq!(pool.submit(share_deep, 100).result().unwrap().0, 100);
        assert_eq!((pool.stats().spawned, pool.stats().deaths), (1, 0));
    });
}
