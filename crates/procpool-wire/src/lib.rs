//! What procpool's processes say to each other, as bytes: no I/O, no clock, no unsafe code.
//!
//! * [`codec`] turns values into bytes and back; `bincode` is named there and nowhere else.
//! * [`frame`] cuts the byte stream of a control channel into frames.
//! * [`handshake`] is what a pool and a new worker tell each other first.
//! * [`limits`] is what a worker holds itself to.
//! * [`attach`] is what travels beside descriptors: which sealed memory they are, and who uses it.
//! * [`elements`] lays out arguments and results one after another, so that one record can carry many.
//! * [`ring`] is a queue of words in shared memory with one writer and one reader.
//! * [`block`] is the memory a pool shares with one worker: the black box, the claim table, two rings.
//!
//! Everything that a worker may have written is treated as hostile: a worker runs user code that can
//! scribble anywhere.

pub mod attach;
pub mod block;
pub mod codec;
pub mod elements;
pub mod frame;
pub mod handshake;
pub mod limits;
pub mod ring;
