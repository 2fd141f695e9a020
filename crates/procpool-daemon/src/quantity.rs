//! How quantities are written, on command lines and in the configuration.

use std::time::Duration;

/// `30s`, `500ms`, `1.5m`, `2h`, or seconds without a unit.
///
/// # Errors
/// What is wrong with it, in words.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let unit_at = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(unit_at);
    let seconds = match unit {
        "ms" => 0.001,
        "s" | "" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err("not a duration; examples: 30s, 500ms, 1.5m, 2h".into()),
    };
    let number: f64 =
        number.parse().map_err(|_| "not a duration; examples: 30s, 500ms, 1.5m, 2h")?;
    match Duration::try_from_secs_f64(number * seconds) {
        Ok(duration) if duration.is_zero() => Err("a duration is more than nothing".into()),
        Ok(duration) => Ok(duration),
        Err(_) => Err("too long".into()),
    }
}

/// `500M`, `1.5G`, or bytes without a unit. The units are powers of 1024.
///
/// # Errors
/// What is wrong with it, in words.
pub fn parse_size(text: &str) -> Result<u64, String> {
    const EXAMPLES: &str = "not a size; examples: 500M, 1.5G, 65536";
    let (number, shift) = match text.char_indices().last() {
        Some((at, 'k' | 'K')) => (&text[..at], 10),
        Some((at, 'm' | 'M')) => (&text[..at], 20),
        Some((at, 'g' | 'G')) => (&text[..at], 30),
        Some((at, 't' | 'T')) => (&text[..at], 40),
        _ => (text, 0),
    };
    if !number.starts_with(|c: char| c.is_ascii_digit()) || number.contains(['e', 'E']) {
        return Err(EXAMPLES.into());
    }
    let bytes = number.parse::<f64>().map_err(|_| EXAMPLES)? * f64::from(shift).exp2();
    match bytes {
        0.0 => Err("a size is more than nothing".into()),
        // Beyond that not every number of bytes is exact, and no machine has so much.
        _ if bytes > 2_f64.powi(53) => Err("too large".into()),
        _ => Ok(bytes as u64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        assert_eq!(parse_size("512"), Ok(512));
        assert_eq!(parse_size("1.5k"), Ok(1536));
        assert_eq!(parse_size("500M"), Ok(500 << 20));
        assert_eq!(parse_size("2G"), Ok(2 << 30));
        assert_eq!(parse_size("1T"), Ok(1 << 40));
        for text in ["", "G", "-1G", "0", "1e3", "1 G", "1GB", "9999999T", "inf", "é"] {
            assert!(parse_size(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn durations_have_units() {
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(parse_duration("7"), Ok(Duration::from_secs(7)));
        assert_eq!(parse_duration("1.5m"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("2h"), Ok(Duration::from_secs(7200)));
    }

    #[test]
    fn what_is_no_duration_is_refused() {
        for text in ["", "s", "-1s", "1 s", "1d", "1e3", "0", "0.0s", "..", "inf", "nan", "9s9"] {
            assert!(parse_duration(text).is_err(), "{text:?}");
        }
        assert!(parse_duration("99999999999999999999999h").is_err());
    }
}
