//! What epoll tells of, in the 64 bits that it keeps of each descriptor.

use nix::sys::epoll::{EpollEvent, EpollFlags};

/// Whose descriptor has something to tell.
#[derive(Clone, Copy)]
pub(super) enum Token {
    Wake,
    Channel(usize),
    Process(usize),
    ServerChannel,
    ServerProcess,
    SpareChannel(usize),
    SpareProcess(usize),
    Abandoned(usize),
}

impl Token {
    pub(super) fn event(self, flags: EpollFlags) -> EpollEvent {
        let data = match self {
            Token::Wake => 0,
            Token::Channel(slot) => (slot as u64) << 3 | 1,
            Token::Process(slot) => (slot as u64) << 3 | 2,
            Token::ServerChannel => 3,
            Token::ServerProcess => 4,
            Token::SpareChannel(place) => (place as u64) << 3 | 5,
            Token::SpareProcess(place) => (place as u64) << 3 | 6,
            Token::Abandoned(place) => (place as u64) << 3 | 7,
        };
        EpollEvent::new(flags, data)
    }

    pub(super) fn of(event: &EpollEvent) -> Token {
        let slot = (event.data() >> 3) as usize;
        match event.data() & 7 {
            1 => Token::Channel(slot),
            2 => Token::Process(slot),
            3 => Token::ServerChannel,
            4 => Token::ServerProcess,
            5 => Token::SpareChannel(slot),
            6 => Token::SpareProcess(slot),
            7 => Token::Abandoned(slot),
            _ => Token::Wake,
        }
    }
}
