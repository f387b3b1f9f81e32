//! Numbers at random for the choices of one worker: xorshift64* (Vigna, 2016). No secret hangs on
//! them.

/// A row of such numbers.
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    /// The row of a seed. Seeds beside each other have rows that have nothing in common.
    pub fn new(seed: u64) -> Dice {
        // One step of SplitMix64; xorshift must not begin with zero.
        let mixed = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        Dice((mixed ^ (mixed >> 31)) | 1)
    }

    /// The next one, from 0 to below `bound`; 0 when that is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let bits = self.0.wrapping_mul(0x2545_F491_4F6C_DD1D);
        ((u128::from(bits) * u128::from(bound)) >> 64) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_sides_come_up_as_often() {
        let mut dice = Dice::new(7);
        let mut counts = [0; 6];
        (0..60_000).for_each(|_| counts[dice.below(6) as usize] += 1);
        assert!(counts.iter().all(|n| (9_500..10_500).contains(n)), "{counts:?}");
        assert_eq!(dice.below(0), 0);
        let rows = [0, 1, 2].map(|seed| Dice::new(seed).below(u64::MAX));
        assert!(rows[0] != rows[1] && rows[1] != rows[2], "{rows:?}");
    }
}
