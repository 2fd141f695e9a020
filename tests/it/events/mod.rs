//! What a pool tells about itself, and what it does again after a death.

mod retry;
