//! Every way for a job, a worker or a host to fail that the catalogue knows, each with its tests.
//!
//! A test of a fault stands where it belongs and names it in a line `/// Covers: F-20` of its comment.
//! [`catalogue`] has the numbers, [`table`] finds the tests, and `tests/FAULTS.md` is what it has found.

mod catalogue;
mod chaos;
mod table;
mod undead;
