//! The daemon, from the outside: its program, its clients, its crashes.

mod fixture;

mod commands;
mod hostile;
mod operations;
mod restart;
mod systemd;
mod tasks;
