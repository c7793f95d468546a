//! Counter-based random numbers. A number depends only on (seed, scale, purpose, position), so an image does not depend on its
//! batch, on the number of threads or on the device.
//!
//! The generator is Philox 4x32 with 10 rounds (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011). Its key is
//! the image's seed. Image `i` of a prompt has the seed `seed + i` and can therefore be generated again alone.

use crate::math;

/// Key of one token's random numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RandomKey {
    /// Row of the batch, from 0.
    pub image: usize,
    /// Index of the scale, from 0.
    pub scale: usize,
    /// Index of the token in the scale, in row-major order.
    pub position: usize,
}

/// Source of a run's random numbers: [`Philox`], or recorded numbers in tests.
pub trait RandomSource: Send + Sync {
    /// Samples the index of a codebook row for one token. `probabilities` sum to 1.
    fn code(&self, key: RandomKey, probabilities: &[f32]) -> usize;
    /// Fills `out` with Gumbel noise, one value per codebook row.
    fn gumbel(&self, key: RandomKey, out: &mut [f32]);
    /// Fills `out` with the normal noise that the residual diffusion starts from, one value per channel.
    fn initial_noise(&self, key: RandomKey, out: &mut [f32]);
    /// Fills `out` with the normal noise of one diffusion step. `step` counts the steps taken, from 0.
    fn step_noise(&self, key: RandomKey, step: usize, out: &mut [f32]);
    /// Returns the seed of each row of the batch if the source is [`Philox`]. A GPU then generates the same numbers itself.
    fn seeds(&self) -> Option<&[u64]> {
        None
    }
}

/// The random numbers of one purpose, for all rows and tokens of a scale.
#[cfg_attr(not(any(feature = "cuda", feature = "wgpu")), allow(dead_code, reason = "read by the GPU's kernels"))]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stream<'a> {
    pub(crate) seeds: &'a [u64],
    pub(crate) scale: usize,
    pub(crate) purpose: u32,
}

impl<'a> Stream<'a> {
    /// Returns the stream of the noise that the residual diffusion starts from.
    pub(crate) fn initial_noise(seeds: &'a [u64], scale: usize) -> Self {
        Self { seeds, scale, purpose: Purpose::InitialNoise as u32 }
    }

    /// Returns the stream of the noise of one diffusion step.
    pub(crate) fn step_noise(seeds: &'a [u64], scale: usize, step: usize) -> Self {
        Self { seeds, scale, purpose: Purpose::StepNoise as u32 + step as u32 }
    }
}

/// Purpose of the words that select codes.
#[cfg_attr(not(any(feature = "cuda", feature = "wgpu")), allow(dead_code, reason = "read by the GPU's kernels"))]
pub(crate) const CODE: u32 = Purpose::Code as u32;
/// Purpose of the words that become Gumbel noise.
#[cfg_attr(not(any(feature = "cuda", feature = "wgpu")), allow(dead_code, reason = "read by the GPU's kernels"))]
pub(crate) const GUMBEL: u32 = Purpose::Gumbel as u32;

/// Use of a random number. Each purpose has its own stream, so two uses never share a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
enum Purpose {
    Code = 0,
    Gumbel = 1,
    InitialNoise = 2,
    /// Step `n` of the diffusion has the purpose `StepNoise + n`.
    StepNoise = 256,
}

/// The Philox generator, with one seed per row of the batch.
#[derive(Clone, Debug)]
pub struct Philox {
    seeds: Vec<u64>,
}

impl Philox {
    /// Creates a generator. `seeds[i]` belongs to row `i` of the batch.
    pub fn new(seeds: Vec<u64>) -> Self {
        Self { seeds }
    }

    /// Returns four random words: block `block` of the stream of a key and purpose.
    fn words(&self, key: RandomKey, purpose: u32, block: u32) -> [u32; 4] {
        let seed = self.seeds[key.image];
        philox4x32([block, key.position as u32, key.scale as u32, purpose], [seed as u32, (seed >> 32) as u32])
    }

    fn fill(&self, key: RandomKey, purpose: u32, out: &mut [f32], from_words: impl Fn([u32; 4]) -> [f32; 4]) {
        for (block, chunk) in out.chunks_mut(4).enumerate() {
            let values = from_words(self.words(key, purpose, block as u32));
            chunk.copy_from_slice(&values[..chunk.len()]);
        }
    }
}

impl RandomSource for Philox {
    fn code(&self, key: RandomKey, probabilities: &[f32]) -> usize {
        let target = uniform(self.words(key, Purpose::Code as u32, 0)[0]);
        let mut sum = 0.0;
        let mut last = 0;
        for (index, &p) in probabilities.iter().enumerate() {
            if p > 0.0 {
                sum += f64::from(p);
                last = index;
                if target < sum {
                    break;
                }
            }
        }
        last
    }

    fn gumbel(&self, key: RandomKey, out: &mut [f32]) {
        self.fill(key, Purpose::Gumbel as u32, out, |w| w.map(gumbel));
    }

    fn initial_noise(&self, key: RandomKey, out: &mut [f32]) {
        self.fill(key, Purpose::InitialNoise as u32, out, normals);
    }

    fn step_noise(&self, key: RandomKey, step: usize, out: &mut [f32]) {
        self.fill(key, Purpose::StepNoise as u32 + step as u32, out, normals);
    }

    fn seeds(&self) -> Option<&[u64]> {
        Some(&self.seeds)
    }
}

/// Maps a word to a number in the open interval (0, 1).
pub(crate) fn uniform(word: u32) -> f64 {
    (f64::from(word) + 0.5) / 4_294_967_296.0
}

/// Maps a word to a Gumbel variate, -ln(-ln u). Computed in f64, so that the result does not depend on the platform's math library.
/// [`math::ln`] would give the same values in twice the time, which is a good part of sampling a token.
fn gumbel(word: u32) -> f32 {
    -(-uniform(word).ln()).ln() as f32
}

/// Maps four words to four standard normal variates by the Box-Muller transform.
pub(crate) fn normals(words: [u32; 4]) -> [f32; 4] {
    let pair = |a: u32, b: u32| {
        let radius = (-2.0 * math::ln(uniform(a))).sqrt();
        let (sin, cos) = math::sin_cos(std::f64::consts::TAU * uniform(b));
        [(radius * cos) as f32, (radius * sin) as f32]
    };
    let ([a, b], [c, d]) = (pair(words[0], words[1]), pair(words[2], words[3]));
    [a, b, c, d]
}

/// Philox 4x32-10: ten rounds of multiplication and permutation. The constants are the paper's.
pub(crate) fn philox4x32(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
    const KEY_STEPS: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
    for _ in 0..10 {
        let a = u64::from(MULTIPLIERS[0]) * u64::from(counter[0]);
        let b = u64::from(MULTIPLIERS[1]) * u64::from(counter[2]);
        counter = [(b >> 32) as u32 ^ counter[1] ^ key[0], b as u32, (a >> 32) as u32 ^ counter[3] ^ key[1], a as u32];
        key = [key[0].wrapping_add(KEY_STEPS[0]), key[1].wrapping_add(KEY_STEPS[1])];
    }
    counter
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: RandomKey = RandomKey { image: 0, scale: 3, position: 17 };

    /// Known answers, published by the paper's authors with their code.
    #[test]
    fn philox_gives_the_published_answers() {
        assert_eq!(philox4x32([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox4x32([u32::MAX; 4], [u32::MAX; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        let pi = [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344];
        assert_eq!(philox4x32(pi, [0xa409_3822, 0x299f_31d0]), [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]);
    }

    #[test]
    fn moments_are_right() {
        let random = Philox::new(vec![7]);
        let mut normal = vec![0.0; 40_000];
        random.initial_noise(KEY, &mut normal);
        let mut gumbel = vec![0.0; 40_000];
        random.gumbel(KEY, &mut gumbel);
        let mean = |v: &[f32]| v.iter().map(|&x| f64::from(x)).sum::<f64>() / v.len() as f64;
        let variance = |v: &[f32]| mean(&v.iter().map(|&x| (x - mean(v) as f32).powi(2)).collect::<Vec<_>>());
        assert!(mean(&normal).abs() < 0.02 && (variance(&normal) - 1.0).abs() < 0.03);
        assert!((mean(&gumbel) - 0.5772).abs() < 0.03 && (variance(&gumbel) - 1.6449).abs() < 0.08);
    }

    #[test]
    fn codes_follow_their_probabilities() {
        let probabilities = [0.0, 0.25, 0.0, 0.75, 0.0];
        let random = Philox::new(vec![1]);
        let mut counts = [0usize; 5];
        for position in 0..20_000 {
            counts[random.code(RandomKey { position, ..KEY }, &probabilities)] += 1;
        }
        assert_eq!((counts[0], counts[2], counts[4]), (0, 0, 0));
        assert!((counts[1] as f64 / 20_000.0 - 0.25).abs() < 0.02, "{counts:?}");
    }

    #[test]
    fn every_key_has_its_own_numbers() {
        let random = Philox::new(vec![5, 6]);
        let take = |key: RandomKey, step: Option<usize>| {
            let mut out = [0.0; 6];
            match step {
                None => random.initial_noise(key, &mut out),
                Some(step) => random.step_noise(key, step, &mut out),
            }
            out
        };
        let all = [
            take(KEY, None),
            take(KEY, Some(0)),
            take(KEY, Some(1)),
            take(RandomKey { image: 1, ..KEY }, None),
            take(RandomKey { scale: 4, ..KEY }, None),
            take(RandomKey { position: 18, ..KEY }, None),
        ];
        for i in 0..all.len() {
            for j in 0..i {
                assert_ne!(all[i], all[j], "{i} {j}");
            }
        }
        assert_eq!(take(KEY, Some(1)), take(KEY, Some(1)));
        assert_eq!(Philox::new(vec![6]).words(KEY, 0, 0), random.words(RandomKey { image: 1, ..KEY }, 0, 0));
    }
}
