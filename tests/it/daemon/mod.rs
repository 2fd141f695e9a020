//! The daemon, from the outside: its program, its clients, its crashes.

pub(crate) mod fixture;

mod client;
mod commands;
mod damage;
mod disk;
mod example;
mod hostile;
mod journals;
mod json;
mod operations;
mod power;
mod restart;
mod sweep;
mod systemd;
mod tasks;
mod top;
mod versions;
