//! The trampolines: what knows the types of a function, and so can call it with encoded arguments.

use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};

use procpool_sys::image::Function;
use procpool_wire::codec::{self, CodecFault};

use super::runtime::Running;
use crate::attachments::List;
use crate::attachments::session;
use crate::builder::InitResult;
use crate::executor::Data;

/// The trampoline of a function whose argument and result are encoded.
pub(crate) fn run_function<A: Data, R: Data>(function: Function, running: &mut Running) {
    let decode = |bytes: &[u8]| codec::decode::<A>(bytes);
    let encode = |result: &R, limit: Option<u64>, out: &mut Vec<u8>| {
        session::encode_into(result, limit, out)
    };
    let f = function.function::<A, R>();
    running.run_elements(&|running, argument| running.run_one(argument, decode, f, encode));
}

/// The trampoline of a task called with JSON.
pub(crate) fn run_json<A: Data, R: Data>(function: Function, running: &mut Running) {
    let message = |error: serde_json::Error| CodecFault::Message(error.to_string());
    let decode = |bytes: &[u8]| serde_json::from_slice::<A>(bytes).map_err(message);
    let encode = |result: &R, limit: Option<u64>, out: &mut Vec<u8>| {
        codec::write_within(limit, out, |writer| {
            serde_json::to_writer(writer, result).map_err(message)
        })
    };
    let f = function.function::<A, R>();
    running.run_elements(&|running, argument| running.run_one(argument, decode, f, encode));
}

/// What the trampoline of an initializer works with.
pub(crate) struct Initializing {
    argument: Vec<u8>,
    attachments: Option<List>,
    pub(super) result: Result<(), String>,
}

impl Initializing {
    pub(super) fn new(argument: Vec<u8>, attachments: Option<List>) -> Initializing {
        Initializing { argument, attachments, result: Err("it did not run".into()) }
    }
}

/// The trampoline of an initializer.
pub(crate) fn run_initializer<A: Data, R: InitResult>(
    function: Function,
    initializing: &mut Initializing,
) {
    let f = function.function::<A, R>();
    let argument = mem::take(&mut initializing.argument);
    let attachments = initializing.attachments.take();
    let result = catch_unwind(AssertUnwindSafe(|| {
        let argument = session::with_source(attachments.as_ref(), || codec::decode::<A>(&argument))
            .map_err(|fault| format!("its argument cannot be decoded: {fault}"))?;
        f(argument).into_init_result()
    }));
    initializing.result = result.unwrap_or_else(|payload| {
        let text = crate::executor::panic_message(&*payload)
            .unwrap_or("its payload is not text")
            .to_owned();
        mem::forget(payload);
        Err(format!("it panicked: {text}"))
    });
}
