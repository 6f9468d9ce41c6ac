//! Numbers from a seed (SplitMix64): the only chance that there is in a world.

/// A stream of numbers that look like chance.
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    /// The stream of a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `n` (0 if that is 0).
    pub fn below(&mut self, n: u64) -> u64 {
        self.roll() % n.max(1)
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_has_one_stream_and_another_seed_another() {
        let rolls = |seed| {
            let mut dice = Dice::new(seed);
            [(); 4].map(|()| dice.roll())
        };
        assert_eq!(rolls(7), rolls(7));
        assert_ne!(rolls(7), rolls(8));
        // Of the published generator.
        assert_eq!(Dice::new(0).roll(), 0xE220_A839_7B1D_CDAF);
    }

    #[test]
    fn one_in_ten_is_about_one_in_ten() {
        let mut dice = Dice::new(1);
        let hits = (0..10_000).filter(|_| dice.one_in(10)).count();
        assert!((900..1100).contains(&hits), "{hits}");
    }
}
