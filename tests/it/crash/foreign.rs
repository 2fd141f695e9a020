//! Exceptions that are none of Rust's.

use procpool::{Output, Phase, ProcessPool, Status};

use super::died;
use crate::support::test;

/// What the unwinder knows of an exception (`_Unwind_Exception` of the C++ ABI for exception handling).
#[repr(C, align(16))]
struct Exception {
    class: u64,
    cleanup: Option<extern "C" fn(i32, *mut Exception)>,
    private: [u64; 2],
}

#[expect(unsafe_code, reason = "the unwinder is not declared anywhere else")]
unsafe extern "C-unwind" {
    /// What `throw` calls in C++. In the library that also unwinds for Rust.
    fn _Unwind_RaiseException(exception: *mut Exception) -> i32;
}

/// A frame of another language, as Rust sees it: it may unwind.
#[expect(unsafe_code, reason = "nothing safe throws")]
extern "C-unwind" fn throws() {
    let class = u64::from_be_bytes(*b"ELSEC++\0");
    let exception = Box::leak(Box::new(Exception { class, cleanup: None, private: [0; 2] }));
    // SAFETY: the exception is valid and lives for ever; the unwinder alone touches it from here on.
    let failure = unsafe { _Unwind_RaiseException(exception) };
    panic!("nobody would catch it: {failure}");
}

/// Goal: an exception of another language ends its worker and nothing else: Rust cannot catch it.
/// Covers: F-13
#[test]
fn a_foreign_exception_is_the_death_of_its_job() {
    test(|| {
        let pool = ProcessPool::builder().workers(1).stderr(Output::Capture).build().unwrap();
        let death = died(pool.submit(|()| throws(), ()).result());
        assert_eq!((death.status, death.phase), (Status::Signal(libc::SIGABRT, false), Phase::Run));
        assert!(death.stderr_tail.contains("foreign exception"), "{:?}", death.stderr_tail);
        pool.submit(|()| (), ()).result().unwrap();
    });
}
