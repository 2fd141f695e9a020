//! Runs the matrix of crashes in a program of its own, for builds that are not those of the tests: in the
//! profile `abort` a panic ends the process.
#![expect(clippy::unwrap_used, reason = "a test, in a program of its own")]

#[path = "../it/crash/fault.rs"]
mod fault;
#[path = "../it/crash/matrix.rs"]
mod matrix;
#[expect(dead_code, reason = "shared with the tests, which have more to support")]
#[path = "../it/support.rs"]
mod support;

use matrix::{From, Load};
use procpool::StartMethod;

fn main() {
    procpool::init();
    for method in [StartMethod::Spawn, StartMethod::ForkServer] {
        support::test(|| matrix::run(method, matrix::all(), Load::NONE, From::Test));
    }
}
