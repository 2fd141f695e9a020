//! Every fault in every place: what must come of it.

use std::sync::Arc;
use std::sync::mpsc;

use procpool::{JobError, Outcome, Output, Phase, ProcessPool, StartMethod, Status};

use super::fault::{Answer, Argument, Blob, Fault, Place, job};
use crate::support::{Meeting, meet, wait_until};

/// From where the job is submitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum From {
    Test,
    #[allow(
        dead_code,
        reason = "the program that is built with another panic strategy has no use for it"
    )]
    Callback,
}

/// Bytes in flight.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    pub(crate) argument: usize,
    pub(crate) result: usize,
}

impl Load {
    pub(crate) const NONE: Load = Load { argument: 0, result: 0 };
}

/// How a job has to end.
#[derive(Debug)]
enum Ending {
    Value,
    Exit(i32),
    Signal(i32),
    Panic { message: &'static str, aborted: bool },
}

impl Ending {
    fn of(fault: Fault, place: Place) -> Ending {
        if place == Place::DropResult {
            return Ending::Value;
        }
        let panic = |message| Ending::Panic {
            message,
            aborted: cfg!(panic = "abort") || fault == Fault::PanicTwice,
        };
        match fault {
            Fault::Segfault => Ending::Signal(libc::SIGSEGV),
            Fault::Abort | Fault::StackOverflow => Ending::Signal(libc::SIGABRT),
            Fault::ExitZero | Fault::BareExit => Ending::Exit(0),
            Fault::ExitThree => Ending::Exit(3),
            Fault::ExitElsewhere => Ending::Exit(7),
            Fault::PanicString => panic("a message made of 3 parts"),
            Fault::PanicStr => panic("a literal message"),
            Fault::PanicNumber | Fault::PanicBomb => panic("Box<dyn Any>"),
            Fault::PanicTwice => panic("the first panic"),
        }
    }
}

/// True if the worker cannot outlive it.
fn is_fatal(fault: Fault) -> bool {
    let unwinds = matches!(
        fault,
        Fault::PanicString | Fault::PanicStr | Fault::PanicNumber | Fault::PanicBomb
    );
    !unwinds || cfg!(panic = "abort")
}

fn phase_in(place: Place) -> Phase {
    match place {
        Place::Decode => Phase::Decode,
        Place::Run | Place::DropArgument => Phase::Run,
        Place::Encode => Phase::Encode,
        Place::DropResult => Phase::Send,
    }
}

/// Runs these cells on one pool, and checks everything about each.
pub(crate) fn run(
    method: StartMethod,
    cells: impl IntoIterator<Item = (Fault, Place)>,
    load: Load,
    from: From,
) {
    let builder = ProcessPool::builder().workers(2).stderr(Output::Capture);
    let pool = builder.start_method(method).build().unwrap();
    let pool = Arc::new(pool);
    let mut deaths = 0;
    for (fault, place) in cells {
        check(&pool, fault, place, load, from);
        deaths += u64::from(is_fatal(fault));
    }
    // A worker that fails after its result was sent dies at its leisure.
    wait_until("every death is booked", || pool.stats().deaths >= deaths);
    assert_eq!(pool.stats().deaths, deaths);
    let pool = Arc::into_inner(pool).expect("callbacks give the pool back before they report");
    drop(pool);
}

/// One cell: another job runs meanwhile, and the pool is of use afterwards.
fn check(pool: &Arc<ProcessPool>, fault: Fault, place: Place, load: Load, from: From) {
    let cell = format!("{fault:?} in {place:?}, {load:?}, submitted from the {from:?}");
    let meeting = Meeting::new();
    let sibling = pool.submit(|path: String| meet(&path, "here"), meeting.path());
    let guest = meeting.next();
    let workers = pool.workers();
    let sibling_pid = workers
        .iter()
        .find(|worker| worker.job == Some(sibling.id()))
        .unwrap_or_else(|| panic!("{cell}: no worker has the sibling: {workers:?}"))
        .pid;

    let argument =
        Argument { fault, place, load: Blob(vec![7; load.argument]), result_len: load.result };
    let outcome = match from {
        From::Test => pool.submit(job, argument).outcome(),
        From::Callback => from_callback(pool, argument),
    };
    let pid = outcome.report.pid;
    check_outcome(outcome, fault, place, load, &cell);
    assert_ne!(pid, Some(sibling_pid), "{cell}");

    assert!(sibling.is_running(), "{cell}");
    guest.go();
    let sibling = sibling.outcome();
    assert!(sibling.result.is_ok(), "{cell}: {sibling:?}");
    assert_eq!(sibling.report.pid, Some(sibling_pid), "{cell}");
    assert_eq!(sibling.report.attempts, 1, "{cell}");
    // Two at a time, so that both slots have to be of use.
    let more = [2, 3].map(|n| (n, pool.submit(|n: u64| n * 2, n)));
    for (n, future) in more {
        let outcome = future.outcome();
        assert_eq!(outcome.result.unwrap_or_else(|e| panic!("{cell}: {e}")), n * 2);
        assert_eq!(outcome.report.attempts, 1, "{cell}");
    }
}

fn from_callback(pool: &Arc<ProcessPool>, argument: Argument) -> Outcome<Answer> {
    let (report, outcome) = mpsc::channel();
    let first = pool.submit(|()| (), ());
    let pool = Arc::clone(pool);
    first.on_done(move |_| {
        let outcome = pool.submit(job, argument).outcome();
        drop(pool);
        let _ = report.send(outcome);
    });
    outcome.recv().expect("the callback reports")
}

fn check_outcome(outcome: Outcome<Answer>, fault: Fault, place: Place, load: Load, cell: &str) {
    let report = outcome.report;
    assert_eq!(report.attempts, 1, "{cell}");
    let ending = Ending::of(fault, place);
    match (ending, outcome.result) {
        (Ending::Value, Ok(answer)) => {
            assert_eq!(answer.argument_len, load.argument, "{cell}");
            let right = answer.load.0 == vec![7; load.result];
            assert!(right, "{cell}: other bytes have arrived");
        }
        (ending @ (Ending::Exit(_) | Ending::Signal(_)), Err(JobError::Died(death))) => {
            let as_expected = match (ending, death.status) {
                (Ending::Exit(code), Status::Exit(was)) => was == code,
                (Ending::Signal(signal), Status::Signal(was, _)) => was == signal,
                _ => false,
            };
            assert!(as_expected, "{cell}: {death:?}");
            assert_eq!(death.phase, phase_in(place), "{cell}: {death:?}");
            assert_eq!(death.attempt, 1, "{cell}");
            assert_eq!(Some(death.pid), report.pid, "{cell}");
            assert_eq!(death.detail, None, "{cell}");
            let overflow = death.stderr_tail.contains("has overflowed its stack");
            assert_eq!(overflow, fault == Fault::StackOverflow, "{cell}: {:?}", death.stderr_tail);
        }
        (Ending::Panic { message, aborted }, Err(JobError::Panicked(panic))) => {
            assert_eq!(panic.message, message, "{cell}");
            assert_eq!(panic.location, Some(fault.location()), "{cell}");
            assert_eq!(panic.aborted, aborted, "{cell}");
        }
        (ending, result) => panic!("{cell}: {ending:?} was expected, got {result:?}"),
    }
}

/// All the cells.
pub(crate) fn all() -> impl Iterator<Item = (Fault, Place)> {
    Place::ALL.into_iter().flat_map(|place| Fault::ALL.into_iter().map(move |fault| (fault, place)))
}
