//! The only unsafe code of procpool, behind safe functions: the running image, spawning, pidfds, process
//! groups, shared mappings, and what a worker does to itself as it starts.
//!
//! Linux only. Each unsafe block is one operation with its argument beside it.

#![allow(unsafe_code)]

pub mod channel;
pub mod child;
pub mod clock;
pub mod fork;
pub mod fork_server;
pub mod held;
pub mod image;
pub mod lent;
pub mod limits;
pub mod mapping;
pub mod pidfd;
pub mod privileges;
pub mod sealed;
pub mod spawn;
pub mod stack;
pub mod title;
pub mod worker;
