//! The matrix of faults and places, in every way in which it is run.

use std::process::Command;
use std::time::Duration;

use procpool::StartMethod;

use super::fault::Place;
use super::matrix::{self, From, Load};
use crate::support::{test, test_within};

const MIB: usize = 1 << 20;

/// Goal: whatever goes wrong in a job, wherever it does, the job has the one outcome that says so, a job
/// that runs beside it is not touched, and the pool is as good as before.
/// Covers: F-2, F-3, F-4, F-5, F-6, F-7, F-8, F-10, F-48
#[test]
fn every_fault_in_every_place_costs_its_own_job_alone() {
    test(|| matrix::run(StartMethod::Spawn, matrix::all(), Load::NONE, From::Test));
}

/// Goal: the same in workers that were forked: signals, exit codes, panics, stack overflows as in any other.
#[test]
fn every_fault_in_a_forked_worker_costs_its_own_job_alone() {
    test(|| matrix::run(StartMethod::ForkServer, matrix::all(), Load::NONE, From::Test));
}

/// Goal: the same for jobs that are submitted by a callback, on a thread of the pool's own.
/// Covers: F-76
#[test]
fn every_fault_of_a_job_from_a_callback_costs_its_own_job_alone() {
    test(|| matrix::run(StartMethod::Spawn, matrix::all(), Load::NONE, From::Callback));
}

/// Goal: the same while 64 MiB are on their way: nothing waits for the rest of them for ever.
/// Method: the argument is large where the argument is what fails or what was there before; the result,
/// where the result is.
/// Covers: F-41
#[test]
fn every_fault_with_64_mib_in_flight_costs_its_own_job_alone() {
    test_within(Duration::from_secs(180), || {
        for place in Place::ALL {
            let load = match place {
                Place::Decode | Place::Run | Place::DropArgument => {
                    Load { argument: 64 * MIB, result: 0 }
                }
                Place::Encode | Place::DropResult => Load { argument: 0, result: 64 * MIB },
            };
            let cells = matrix::all().filter(|cell| cell.1 == place);
            matrix::run(StartMethod::Spawn, cells, load, From::Test);
        }
    });
}

/// Goal: the same in a program built with `panic = "abort"`, where a panic ends the worker, and its
/// message and place must survive that.
/// Method: the panic strategy belongs to the whole build, so a program that runs the matrix is built in a
/// profile of its own. `cargo test` has just fetched everything that takes, and does not hold the lock on
/// that profile's directory.
/// Covers: F-11
#[test]
fn every_fault_under_panic_abort_costs_its_own_job_alone() {
    // Most of the time goes into building the dependencies once more.
    test_within(Duration::from_secs(600), || {
        let status = Command::new(env!("CARGO"))
            .args(["run", "--quiet", "--locked", "--offline"])
            .args(["--package", "procpool-tests", "--bin", "crash_matrix"])
            .args(["--profile", "abort"])
            .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
            .status()
            .unwrap();
        assert!(status.success(), "{status}");
    });
}
