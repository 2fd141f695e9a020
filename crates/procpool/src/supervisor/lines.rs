//! Lines out of the bytes that a worker writes. Pure.

/// Bytes of a line that are told in one piece: what is longer than a screenful is no line that a person reads.
const LINE_MAX: usize = 4096;
/// The most bytes of a character of UTF-8 that can be missing where a piece is cut.
const CUT_MAX: usize = 3;

/// The beginning of a line whose end has not come yet.
#[derive(Debug, Default)]
pub(super) struct Lines {
    partial: Vec<u8>,
}

impl Lines {
    /// Takes more bytes. `line` gets each line that ends in them, and the pieces of those that are too long,
    /// with whether it is the last piece of its line.
    pub(super) fn feed(&mut self, bytes: &[u8], mut line: impl FnMut(String, bool)) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let room = &rest[..rest.len().min(LINE_MAX - self.partial.len())];
            match room.iter().position(|byte| *byte == b'\n') {
                Some(end) => {
                    self.partial.extend_from_slice(&room[..end]);
                    rest = &rest[end + 1..];
                    line(text(self.partial.strip_suffix(b"\r").unwrap_or(&self.partial)), true);
                    self.partial.clear();
                }
                None => {
                    self.partial.extend_from_slice(room);
                    rest = &rest[room.len()..];
                    if self.partial.len() == LINE_MAX {
                        let cut = LINE_MAX - unfinished(&self.partial);
                        line(text(&self.partial[..cut]), false);
                        self.partial.drain(..cut);
                    }
                }
            }
        }
    }

    /// No more bytes will come: the rest, if there is one, whose line was never ended.
    pub(super) fn end(&mut self, mut line: impl FnMut(String, bool)) {
        if !self.partial.is_empty() {
            line(text(&std::mem::take(&mut self.partial)), false);
        }
    }

    /// Forgets what nobody wants to hear.
    pub(super) fn clear(&mut self) {
        self.partial.clear();
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// How many bytes at the end are the beginning of a character that goes on.
fn unfinished(bytes: &[u8]) -> usize {
    let tail = (1..=CUT_MAX).find(|len| {
        let tail = &bytes[bytes.len() - len..];
        std::str::from_utf8(tail)
            .is_err_and(|error| error.valid_up_to() == 0 && error.error_len().is_none())
    });
    tail.unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lines(pieces: &[&[u8]]) -> Vec<(String, bool)> {
        let (mut lines, mut told) = (Lines::default(), Vec::new());
        for piece in pieces {
            lines.feed(piece, |line, whole| told.push((line, whole)));
        }
        lines.end(|line, whole| told.push((line, whole)));
        told
    }

    fn whole(text: &str) -> (String, bool) {
        (text.to_owned(), true)
    }

    /// Goal: lines are the same however their bytes arrive, with either kind of end, and the last one without.
    #[test]
    fn lines_do_not_depend_on_the_pieces_they_come_in() {
        let expected = [whole("one"), whole(""), whole("two\rtwo"), ("the last".to_owned(), false)];
        let text = b"one\r\n\ntwo\rtwo\nthe last";
        assert_eq!(lines(&[text]), expected);
        let single: Vec<&[u8]> = text.chunks(1).collect();
        assert_eq!(lines(&single), expected);
    }

    /// Goal: what is not UTF-8 is replaced, and costs nothing else.
    #[test]
    fn what_is_not_text_is_replaced() {
        assert_eq!(lines(&[b"a\xffb\n\x1b[0m\n"]), [whole("a\u{fffd}b"), whole("\u{1b}[0m")]);
    }

    /// Goal: a line without end is told in pieces of bounded length, none of which cuts a character.
    #[test]
    fn a_long_line_is_cut_between_characters() {
        for shift in 0..4 {
            let text = format!("{}{}", "x".repeat(shift), "\u{1f980}é".repeat(3000));
            let told = lines(&[text.as_bytes(), b"\n"]);
            let (last, pieces) = told.split_last().unwrap();
            assert!(last.1 && pieces.iter().all(|(piece, whole)| !whole && piece.len() > 4000));
            assert!(told.iter().all(|(piece, _)| piece.len() <= LINE_MAX));
            assert_eq!(told.into_iter().map(|(piece, _)| piece).collect::<String>(), text);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        /// Goal: any bytes, in any pieces: nothing is held back but the line that is not ended, and memory
        /// stays bounded.
        #[test]
        fn any_bytes_in_any_pieces(
            bytes in prop::collection::vec(prop_oneof![3 => Just(b'x'), 1 => any::<u8>()], 0..9_000),
            piece in 1usize..9000,
        ) {
            let (mut lines, mut ends) = (Lines::default(), 0);
            for piece in bytes.chunks(piece) {
                // Each byte that is not text becomes three.
                lines.feed(piece, |line, whole| {
                    assert!(line.len() <= 3 * LINE_MAX);
                    ends += usize::from(whole);
                });
                prop_assert!(lines.partial.len() < LINE_MAX);
            }
            prop_assert_eq!(ends, bytes.iter().filter(|byte| **byte == b'\n').count());
        }
    }
}
