//! A random number generator with the same output on every machine.

/// Increment of splitmix64: the golden ratio in 64 bits.
const STEP: u64 = 0x9E37_79B9_7F4A_7C15;

/// The generator splitmix64 (Steele, Lea and Flood, 2014). A seed and an index select a stream, so any scene of a sequence can be
/// computed without the ones before it.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Creates the stream `index` of `seed`.
    pub fn new(seed: u64, index: u64) -> Self {
        Self(mix(mix(seed.wrapping_add(STEP)) ^ index.wrapping_mul(STEP)))
    }

    /// Returns the next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(STEP);
        mix(self.0)
    }

    /// Returns a number from 0 (inclusive) to 1 (exclusive).
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Returns a number in a range.
    pub fn between(&mut self, [low, high]: [f64; 2]) -> f64 {
        low + (high - low) * self.unit()
    }

    /// Returns an integer below `count`, or 0 if `count` is 0.
    pub fn below(&mut self, count: usize) -> usize {
        ((u128::from(self.bits()) * count as u128) >> 64) as usize
    }

    /// Returns true with this probability.
    pub fn chance(&mut self, probability: f64) -> bool {
        self.unit() < probability
    }
}

/// Applies the finaliser of splitmix64.
fn mix(mut word: u64) -> u64 {
    word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    word ^ (word >> 31)
}

/// Hashes words. The result never changes between versions.
///
/// The hash is FNV-1a over the bytes with a zero after each word, followed by splitmix64's finaliser, since FNV's low bits are
/// poor.
pub fn hash(words: &[&str]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for word in words {
        for &byte in word.as_bytes().iter().chain(&[0]) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
    mix(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_pinned_and_differ() {
        assert_eq!(mix(STEP), 0xE220_A839_7B1D_CDAF, "the first output of splitmix64 for the seed 0");
        let first = |seed, index| Random::new(seed, index).bits();
        assert!(first(0, 0) != first(0, 1) && first(0, 0) != first(1, 0));
        assert_ne!(hash(&["ab", "c"]), hash(&["a", "bc"]));
    }

    #[test]
    fn numbers_stay_in_their_ranges() {
        let mut random = Random::new(1, 2);
        let mut seen = [0; 5];
        for _ in 0..1000 {
            assert!((2.0..3.0).contains(&random.between([2.0, 3.0])));
            seen[random.below(5)] += 1;
        }
        assert!(seen.iter().all(|&count| (150..250).contains(&count)), "{seen:?}");
        assert_eq!(random.below(0), 0);
    }
}
