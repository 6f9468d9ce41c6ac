//! What fences have in common: resources that remember the highest token they have seen, and refuse a lower one (S3).
//!
//! How a fence is kept is each store's own affair; how a token is written down, and what a refusal says, is not.

use crate::FencingToken;

/// As many digits as the largest token has.
const DIGITS: usize = 20;

/// A write under a token lower than one that the resource has seen. Nothing was written, and under this token nothing
/// ever will be: the slot has had a newer owner. Whatever works under it should stop.
///
/// ```
/// use rendez_core::{FencingToken, StaleToken};
/// let stale = StaleToken { token: FencingToken::new(5), seen: FencingToken::new(7) };
/// assert_eq!(stale.to_string(), "token 5 is stale: 7 has been seen, so the slot has a newer owner");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("token {token} is stale: {seen} has been seen, so the slot has a newer owner")]
pub struct StaleToken {
    /// The one that was shown.
    pub token: FencingToken,
    /// The highest that the resource has seen.
    pub seen: FencingToken,
}

impl FencingToken {
    /// The number in decimal with leading zeros, always equally long, so that texts compare as the numbers do.
    ///
    /// ```
    /// use rendez_core::FencingToken;
    /// assert!(FencingToken::new(9).to_digits() < FencingToken::new(10).to_digits());
    /// ```
    #[must_use]
    pub fn to_digits(self) -> String {
        format!("{:0DIGITS$}", self.get())
    }

    /// Reads what [`to_digits`](Self::to_digits) has written; nothing else is taken.
    ///
    /// ```
    /// use rendez_core::FencingToken;
    /// let token = FencingToken::new(u64::MAX);
    /// assert_eq!(FencingToken::from_digits(token.to_digits().as_bytes()), Some(token));
    /// assert_eq!(FencingToken::from_digits(b"7"), None);
    /// ```
    #[must_use]
    pub fn from_digits(digits: &[u8]) -> Option<Self> {
        let well_formed = digits.len() == DIGITS && digits.iter().all(u8::is_ascii_digit);
        let number = std::str::from_utf8(digits).ok().filter(|_| well_formed)?;
        number.parse().ok().map(Self::new)
    }
}
