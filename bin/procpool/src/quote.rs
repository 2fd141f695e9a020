//! Words as a POSIX shell must be given them.

/// Adds `word` to `line` so that a shell reads it as one word of just these bytes.
pub(crate) fn push_quoted(line: &mut Vec<u8>, word: &[u8]) {
    if !word.is_empty() && word.iter().all(|byte| is_plain(*byte)) {
        line.extend_from_slice(word);
        return;
    }
    line.push(b'\'');
    for byte in word {
        match byte {
            b'\'' => line.extend_from_slice(b"'\\''"),
            byte => line.push(*byte),
        }
    }
    line.push(b'\'');
}

/// Bytes that mean nothing to a shell, wherever they stand. `=` and `~` do in places, `-` never does.
fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"_-./:,@%+".contains(&byte)
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    use std::process::Command;

    use super::*;

    #[test]
    fn a_shell_reads_what_was_quoted() {
        let every_byte: Vec<u8> = (1..=255).collect();
        let words =
            [&b"plain-word_1.x/y"[..], b"", b"it's", b"a b", b"$x `y` \\ \"", b"'", &every_byte];
        for word in words {
            let mut line = b"printf %s ".to_vec();
            push_quoted(&mut line, word);
            let output =
                Command::new("sh").arg("-c").arg(OsStr::from_bytes(&line)).output().unwrap();
            assert_eq!(output.stdout, word);
        }
    }

    #[test]
    fn plain_words_stay_readable() {
        let mut line = Vec::new();
        push_quoted(&mut line, b"d/a-b_c.txt");
        assert_eq!(line, b"d/a-b_c.txt");
    }
}
