//! Reading files of /proc.

use std::fs::File;
use std::io::{self, Read};

/// What is read at a time: more than most such files have.
const PIECE: usize = 16 * 1024;

/// Reads a whole file. The kernel does not say how long it is and makes it anew for each piece that is read, so pieces
/// that grow from 32 bytes, as the standard library's do, cost many times as much.
pub(crate) fn read(file: &str) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(PIECE);
    File::open(file)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The same of one that is text.
pub(crate) fn read_text(file: &str) -> io::Result<String> {
    String::from_utf8(read(file)?)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_whole_whatever_length_it_is_said_to_have() {
        let status = read_text("/proc/self/status").unwrap();
        assert!(status.starts_with("Name:") && status.ends_with('\n'), "{status}");
        assert_eq!(read("/no/such/file").unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
