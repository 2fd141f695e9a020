//! What the daemon says of itself: a line on standard error for each thing that somebody who runs it wants to know.
//!
//! Nothing here is caused by a client, so no client can fill a disk with it.

use std::fmt::Display;
use std::io::{self, Write};

/// Says something. Nobody can be told that nobody listens.
pub(super) fn say(message: impl Display) {
    let _ = writeln!(io::stderr().lock(), "procpool: {message}");
}
