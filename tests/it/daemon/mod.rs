//! The daemon, from the outside: its program, its clients, its crashes.

mod fixture;

mod commands;
mod restart;
mod tasks;
