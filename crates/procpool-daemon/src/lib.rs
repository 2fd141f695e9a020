//! A durable queue of jobs with a warm pool behind a local socket, and its client.
//!
//! Jobs outlive the terminal, the client and the daemon: what is acknowledged is kept, and every job ends in one
//! [`State`](job::State). The program `procpool daemon` is this crate's [`server`]; a program that submits jobs
//! needs [`Daemon`] alone, which is an [`Executor`](procpool::Executor), and can do without the feature `server`.
//!
//! ```no_run
//! # #[procpool::task]
//! # fn thumbnail(path: String) -> Result<Vec<u8>, String> { Ok(path.into_bytes()) }
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use procpool::Executor;
//! use procpool_daemon::Daemon;
//!
//! let daemon = Daemon::connect_to("/home/me/.local/state/procpool/socket", "thumbs")?;
//! let future = daemon.submit(thumbnail, "cat.jpg".to_owned());
//! let thumbnail = future.result()??;
//! # Ok(())
//! # }
//! ```

mod client;
mod error;
pub mod job;
pub mod machine;
pub mod protocol;
pub mod quantity;
pub mod store;

#[cfg(feature = "server")]
mod command;
#[cfg(feature = "server")]
pub mod config;
#[cfg(feature = "server")]
mod engine;
#[cfg(feature = "server")]
mod journal;
#[cfg(feature = "server")]
pub mod server;

pub use client::{Client, Daemon};
pub use error::Error;
