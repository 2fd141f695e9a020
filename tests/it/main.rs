//! Real pools, real workers, real faults. One binary: one link, shared support code.
//!
//! Each test runs in [`support::test`]: alone, under a watchdog, and at its end no process, descriptor or
//! thread of it may be left.

#![expect(
    clippy::unwrap_used,
    reason = "clippy's own exception for tests does not cover the functions that tests and jobs call"
)]

procpool::testing!();

mod support;

mod benchmark;
mod cli;
mod conformance;
mod containment;
mod contract;
mod crash;
mod crew;
mod daemon;
mod events;
mod examples;
mod faults;
mod fork_server;
mod fresh;
mod held_up;
mod helping;
mod life;
mod limits;
mod pause;
mod pool;
mod reentrant;
mod shared;
mod spares;
mod tasks;
