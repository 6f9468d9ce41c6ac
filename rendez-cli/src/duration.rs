//! Times on the command line.

use std::time::Duration;

use jiff::SignedDuration;

/// `500ms`, `10s`, `1m 30s`; more than nothing.
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no time: write for example 500ms, 10s or \"1m 30s\"");
    let duration: SignedDuration = text.parse().map_err(|_| wrong())?;
    Duration::try_from(duration).ok().filter(|duration| !duration.is_zero()).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_and_nonsense_is_refused() {
        assert_eq!(parse("10s"), Ok(Duration::from_secs(10)));
        assert_eq!(parse("1m 30s"), Ok(Duration::from_secs(90)));
        for text in ["", "10", "-1s", "0s", "x"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
