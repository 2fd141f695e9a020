//! The memory that a worker shares with its pool, used again by the next where there is a process for each job.
//!
//! To make such memory, to find its first pages and to free them costs the host a fifth of what such a process costs it.
//! Only of a worker that nothing is left of: its cgroup was empty without being killed, so nobody else has the memory
//! mapped.

use std::io;
use std::os::fd::OwnedFd;

use procpool_sys::mapping::{self, Mapping};
use procpool_wire::block::{BLOCK_WORDS, Block};

use crate::builder::Isolation;

/// The memory of one worker, and the descriptor that it gets.
pub(super) struct Memory {
    pub(super) mapping: Mapping,
    pub(super) fd: OwnedFd,
}

/// Memory of workers that are gone. As much as there were workers at a time, at most.
pub(super) struct Memories {
    isolation: Isolation,
    free: Vec<Memory>,
}

impl Memories {
    pub(super) fn new(isolation: Isolation) -> Memories {
        Memories { isolation, free: Vec::new() }
    }

    /// Memory for a new worker, zeroed as far as that matters.
    pub(super) fn take(&mut self) -> io::Result<Memory> {
        if let Some(memory) = self.free.pop() {
            return Ok(memory);
        }
        let (mapping, fd) = mapping::create(BLOCK_WORDS)?;
        Ok(Memory { mapping, fd })
    }

    /// What to keep of a worker's memory while it lives, if it can be used again.
    pub(super) fn keep(&self, memory: Memory) -> Option<Memory> {
        (self.isolation == Isolation::FreshProcess).then_some(memory)
    }

    /// Takes back the memory of a worker of which nothing is left, and to which no channel belongs any more.
    pub(super) fn give_back(&mut self, mut memory: Memory) {
        if memory.mapping.is_sole() {
            Block::new(memory.mapping.clone()).renew();
            self.free.push(memory);
        }
    }
}
