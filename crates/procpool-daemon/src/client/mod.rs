//! The client's half: a connection that anybody can send requests through, and [`Daemon`], an executor on top.

mod answers;
mod connection;
mod executor;
mod follow;

pub use connection::Client;
pub use executor::Daemon;
