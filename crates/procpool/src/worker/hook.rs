//! What panics say. The hook records message and place on the thread that runs jobs, where the outcome
//! tells them, and nothing is printed. A panic that the process will not survive goes to the black box,
//! for the pool to read, and to the previous hook. Other threads' panics are the previous hook's affair.

use std::any::Any;
use std::backtrace::{Backtrace, BacktraceStatus};
use std::cell::RefCell;
use std::mem;
use std::panic::{self, PanicHookInfo};
use std::sync::{Arc, OnceLock};

use procpool_wire::block::PANIC_BYTES_MAX;
use procpool_wire::handshake::PanicRecord;

use super::{SharedBlock, fault};
use crate::executor::panic_message;

/// What stands for the message of a payload that is not text.
const NOT_TEXT: &str = "Box<dyn Any>";
/// The messages with which the standard library announces that it is about to abort
/// (library/core/src/panicking.rs: `panic_in_cleanup`, `panic_cannot_unwind`).
const IN_CLEANUP: &str = "panic in a destructor during cleanup";
const CANNOT_UNWIND: &str = "panic in a function that cannot unwind";

thread_local! {
    /// Panics of the current element, oldest first; `None` off the thread that runs jobs.
    static PANICS: RefCell<Option<Vec<PanicRecord>>> = const { RefCell::new(None) };
}

static BLOCK: OnceLock<Arc<SharedBlock>> = OnceLock::new();

/// Installs the hook, in front of the one that is there. Call it on the thread that runs jobs.
pub(super) fn install(block: &Arc<SharedBlock>) {
    let _ = BLOCK.set(Arc::clone(block));
    PANICS.set(Some(Vec::new()));
    let previous = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        if on_panic(info) == Fate::Aborts
            || PANICS.with(|panics| panics.try_borrow().is_ok_and(|p| p.is_none()))
        {
            previous(info);
        }
    }));
}

#[derive(PartialEq, Eq)]
enum Fate {
    Unwinds,
    Aborts,
}

fn on_panic(info: &PanicHookInfo<'_>) -> Fate {
    let message = info.payload_as_str().unwrap_or(NOT_TEXT);
    let announced = message == IN_CLEANUP || message == CANNOT_UNWIND;
    let record = PanicRecord {
        message: message.to_owned(),
        location: info.location().map(ToString::to_string),
        backtrace: backtrace(),
    };
    let fatal = PANICS.with(|panics| {
        let Ok(mut panics) = panics.try_borrow_mut() else {
            return None;
        };
        match panics.as_mut() {
            // The announcement follows the panics that it is about. In a cleanup those are the one that
            // was unwinding and the one in the destructor: the first is the cause.
            Some(panics) if announced => {
                let back = if message == IN_CLEANUP { 2 } else { 1 };
                let cause = panics.len().checked_sub(back).map(|at| panics.swap_remove(at));
                Some(cause.unwrap_or(record))
            }
            Some(_) | None if cfg!(panic = "abort") || announced => Some(record),
            Some(panics) => {
                panics.push(record);
                None
            }
            None => None,
        }
    });
    match (fatal, BLOCK.get()) {
        (Some(record), Some(block)) => {
            let mut bytes = fault::panic(&record);
            if bytes.len() > PANIC_BYTES_MAX {
                bytes = fault::panic(&shortened(record));
            }
            block.block.set_fatal_panic(block.block.black_box().ticket, &bytes);
            Fate::Aborts
        }
        _ => Fate::Unwinds,
    }
}

/// Without the backtrace and with as much of the message as the black box holds.
fn shortened(mut record: PanicRecord) -> PanicRecord {
    record.backtrace = None;
    let location = record.location.as_ref().map_or(0, String::len);
    // Three lengths and tags of at most 9 bytes each.
    let room = PANIC_BYTES_MAX.saturating_sub(location + 27);
    record.message.truncate(record.message.floor_char_boundary(room));
    record
}

fn backtrace() -> Option<String> {
    let backtrace = Backtrace::capture();
    (backtrace.status() == BacktraceStatus::Captured).then(|| backtrace.to_string())
}

/// Forgets the panics of earlier elements: a job may have caught some itself.
pub(super) fn clear() {
    PANICS.with_borrow_mut(|panics| {
        if let Some(panics) = panics {
            panics.clear();
        }
    });
}

/// What is known of the panic that ended with this payload, which is not dropped: its Drop may panic
/// (rust-lang/rust#86027).
pub(super) fn record_of(payload: Box<dyn Any + Send>, block: &Arc<SharedBlock>) -> PanicRecord {
    let recorded = PANICS.with_borrow_mut(|panics| panics.as_mut().and_then(Vec::pop));
    if recorded.is_none() {
        // The job has put its own hook in the place of ours, which therefore saw nothing.
        install(block);
    }
    let message = panic_message(&*payload).unwrap_or(NOT_TEXT).to_owned();
    mem::forget(payload);
    let recorded = recorded.unwrap_or_default();
    PanicRecord { message, location: recorded.location, backtrace: recorded.backtrace }
}
