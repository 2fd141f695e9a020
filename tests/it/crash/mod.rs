//! Jobs that crash, workers that die, channels that break: what it costs, and what it must not.

mod fault;
mod matrix;
mod table;
