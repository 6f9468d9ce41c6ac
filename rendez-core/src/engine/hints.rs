//! How often hints may make a node ask the store: a bucket for each kind of hint, so that a storm of changes costs a
//! bounded number of calls (L4), while a handover is heard at once.

use std::time::Duration;

use crate::Timestamp;

/// A bucket that is filled by time and emptied by use.
#[derive(Debug)]
pub(super) struct Bucket {
    capacity: u32,
    refill: Duration,
    left: u32,
    since: Timestamp,
}

impl Bucket {
    pub(super) fn new(capacity: u32, refill: Duration) -> Self {
        Self { capacity, refill, left: capacity, since: Timestamp::ZERO }
    }

    /// Takes one, or says when there will be one.
    pub(super) fn take(&mut self, now: Timestamp) -> Result<(), Timestamp> {
        let refilled = now.since(self.since).as_nanos() / self.refill.as_nanos().max(1);
        if refilled >= u128::from(self.capacity - self.left) {
            self.left = self.capacity;
            self.since = now;
        } else {
            let refilled = u32::try_from(refilled).unwrap_or(u32::MAX);
            self.left += refilled;
            self.since += self.refill * refilled;
        }
        if self.left == 0 {
            return Err(self.since + self.refill);
        }
        self.left -= 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_its_capacity_at_once_and_then_one_a_refill() {
        let mut bucket = Bucket::new(3, Duration::from_millis(10));
        let at = |ms: u64| Timestamp::from_nanos(ms * 1_000_000);
        let taken = (0..1000).filter(|ms| bucket.take(at(1000 + ms)).is_ok()).count();
        assert_eq!(taken, 3 + 99);
        assert_eq!(bucket.take(at(1999)), Err(at(2000)));
    }
}
