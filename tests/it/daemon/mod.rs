//! The daemon, from the outside: its program, its clients, its crashes.

pub(crate) mod fixture;

mod client;
mod commands;
mod example;
mod hostile;
mod json;
mod operations;
mod restart;
mod systemd;
mod tasks;
mod top;
mod versions;
