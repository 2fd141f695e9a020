//! Bytes of any length as JSON: in pieces, so that no output need fit into memory.

use std::io::{self, Read, Seek, SeekFrom, Write};

/// Bytes at a time.
const CHUNK: usize = 64 * 1024;

/// Writes what is in `from` as [`Text`](crate::record::Text) would be written.
pub(crate) fn write_json(mut from: impl Read + Seek, to: &mut impl Write) -> io::Result<()> {
    let is_text = chunks(&mut from, |_| Ok(()))?;
    from.seek(SeekFrom::Start(0))?;
    if is_text {
        to.write_all(b"\"")?;
        chunks(&mut from, |text| {
            let json = serde_json::to_string(text).expect("a text is JSON");
            to.write_all(&json.as_bytes()[1..json.len() - 1])
        })?;
        return to.write_all(b"\"");
    }
    to.write_all(b"{\"hex\":\"")?;
    let mut bytes = vec![0; CHUNK];
    loop {
        let len = from.read(&mut bytes)?;
        if len == 0 {
            return to.write_all(b"\"}");
        }
        let hex: String = bytes[..len].iter().map(|byte| format!("{byte:02x}")).collect();
        to.write_all(hex.as_bytes())?;
    }
}

/// Calls `take` with the text, piece by piece; false as soon as it is none.
fn chunks(from: &mut impl Read, mut take: impl FnMut(&str) -> io::Result<()>) -> io::Result<bool> {
    let mut bytes = vec![0; CHUNK];
    // Bytes of a character that has not ended stay at the front.
    let mut kept = 0;
    loop {
        let len = from.read(&mut bytes[kept..])?;
        if len == 0 {
            return Ok(kept == 0);
        }
        let filled = kept + len;
        let valid = match str::from_utf8(&bytes[..filled]) {
            Ok(_) => filled,
            Err(error) if error.error_len().is_none() => error.valid_up_to(),
            Err(_) => return Ok(false),
        };
        take(str::from_utf8(&bytes[..valid]).expect("it was found to be valid"))?;
        bytes.copy_within(valid..filled, 0);
        kept = filled - valid;
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;
    use crate::record::Text;

    #[test]
    fn pieces_make_what_the_whole_makes() {
        let long = "é\"\n€".repeat(CHUNK / 3);
        let cases =
            [&b""[..], b"a\"b\\\n\x00", long.as_bytes(), b"\xff", b"ab\xc3", &long.as_bytes()[1..]];
        for bytes in cases {
            let mut json = Vec::new();
            write_json(Cursor::new(bytes), &mut json).unwrap();
            assert_eq!(json, serde_json::to_vec(&Text::of(bytes)).unwrap());
        }
    }
}
