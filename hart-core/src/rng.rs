//! Random numbers, counter-based: every draw is a function of (seed, image, scale, purpose, position) and of nothing else, so a
//! picture doesn't depend on its batch, on the number of threads or on the device.
//!
//! The generator is Philox 4x32 with 10 rounds (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011). The key is
//! the picture's seed; picture `i` of a prompt has the seed `seed + i`, so it can be had again alone.

/// One draw's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Which row of the batch, from 0.
    pub image: usize,
    /// Which scale, from 0.
    pub scale: usize,
    /// Which token of the scale, row by row.
    pub position: usize,
}

/// Where a run's random numbers come from. Tests replay recorded ones through it.
pub trait Draws: Send + Sync {
    /// Draws a codebook row for one token; `probabilities` sum to 1.
    fn code(&self, place: Place, probabilities: &[f32]) -> usize;
    /// Fills `out` with Gumbel noise, one value a codebook row.
    fn gumbel(&self, place: Place, out: &mut [f32]);
    /// Fills `out` with the normal noise that the residual diffusion starts from, one value a channel.
    fn initial_noise(&self, place: Place, out: &mut [f32]);
    /// Fills `out` with the normal noise of one diffusion step; `step` counts from the first step taken.
    fn step_noise(&self, place: Place, step: usize, out: &mut [f32]);
    /// The seed of each row of the batch, if all numbers are those of [`Seeded`]: a GPU then makes them itself.
    fn seeds(&self) -> Option<&[u64]> {
        None
    }
}

/// One stream of numbers, of all rows and tokens of a scale.
#[cfg(any(feature = "cuda", feature = "wgpu"))]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stream<'a> {
    pub(crate) seeds: &'a [u64],
    pub(crate) scale: usize,
    pub(crate) purpose: u32,
}

#[cfg(any(feature = "cuda", feature = "wgpu"))]
impl<'a> Stream<'a> {
    /// The normal noise that the residual diffusion starts from.
    pub(crate) fn initial_noise(seeds: &'a [u64], scale: usize) -> Self {
        Self { seeds, scale, purpose: Purpose::InitialNoise as u32 }
    }

    /// The normal noise of one diffusion step.
    pub(crate) fn step_noise(seeds: &'a [u64], scale: usize, step: usize) -> Self {
        Self { seeds, scale, purpose: Purpose::StepNoise as u32 + step as u32 }
    }
}

/// Purpose of the words that codes are drawn with.
#[cfg(any(feature = "cuda", feature = "wgpu"))]
pub(crate) const CODE: u32 = Purpose::Code as u32;
/// Purpose of the words that Gumbel noise is made of.
#[cfg(any(feature = "cuda", feature = "wgpu"))]
pub(crate) const GUMBEL: u32 = Purpose::Gumbel as u32;

/// What a number is for. A purpose has its own stream, so that no two uses ever share a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
enum Purpose {
    Code = 0,
    Gumbel = 1,
    InitialNoise = 2,
    /// Step `n` of the diffusion is purpose `StepNoise + n`.
    StepNoise = 256,
}

/// The generator behind every real run: one seed a row of the batch.
#[derive(Clone, Debug)]
pub struct Seeded {
    seeds: Vec<u64>,
}

impl Seeded {
    /// `seeds[i]` belongs to row `i` of the batch.
    pub fn new(seeds: Vec<u64>) -> Self {
        Self { seeds }
    }

    /// The `block`-th four random words of a place and purpose.
    fn words(&self, place: Place, purpose: u32, block: u32) -> [u32; 4] {
        let seed = self.seeds[place.image];
        philox4x32([block, place.position as u32, place.scale as u32, purpose], [seed as u32, (seed >> 32) as u32])
    }

    fn fill(&self, place: Place, purpose: u32, out: &mut [f32], from_words: impl Fn([u32; 4]) -> [f32; 4]) {
        for (block, chunk) in out.chunks_mut(4).enumerate() {
            let values = from_words(self.words(place, purpose, block as u32));
            chunk.copy_from_slice(&values[..chunk.len()]);
        }
    }
}

impl Draws for Seeded {
    fn code(&self, place: Place, probabilities: &[f32]) -> usize {
        let target = uniform(self.words(place, Purpose::Code as u32, 0)[0]);
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

    fn gumbel(&self, place: Place, out: &mut [f32]) {
        self.fill(place, Purpose::Gumbel as u32, out, |w| w.map(gumbel));
    }

    fn initial_noise(&self, place: Place, out: &mut [f32]) {
        self.fill(place, Purpose::InitialNoise as u32, out, normals);
    }

    fn step_noise(&self, place: Place, step: usize, out: &mut [f32]) {
        self.fill(place, Purpose::StepNoise as u32 + step as u32, out, normals);
    }

    fn seeds(&self) -> Option<&[u64]> {
        Some(&self.seeds)
    }
}

/// Uniform in (0, 1), never either end.
pub(crate) fn uniform(word: u32) -> f64 {
    (f64::from(word) + 0.5) / 4_294_967_296.0
}

/// -ln(-ln u). In f64, so that the last bit doesn't depend on a platform's mathematics library.
fn gumbel(word: u32) -> f32 {
    -(-uniform(word).ln()).ln() as f32
}

/// Box-Muller: two pairs of words to four normal numbers.
pub(crate) fn normals(words: [u32; 4]) -> [f32; 4] {
    let pair = |a: u32, b: u32| {
        let radius = (-2.0 * uniform(a).ln()).sqrt();
        let (sin, cos) = (std::f64::consts::TAU * uniform(b)).sin_cos();
        [(radius * cos) as f32, (radius * sin) as f32]
    };
    let ([a, b], [c, d]) = (pair(words[0], words[1]), pair(words[2], words[3]));
    [a, b, c, d]
}

/// Philox 4x32-10: ten rounds of multiplication and exchange; the constants are the paper's.
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

    const PLACE: Place = Place { image: 0, scale: 3, position: 17 };

    /// The known answers that the paper's authors publish with their code.
    #[test]
    fn philox_gives_the_published_answers() {
        assert_eq!(philox4x32([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox4x32([u32::MAX; 4], [u32::MAX; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        let pi = [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344];
        assert_eq!(philox4x32(pi, [0xa409_3822, 0x299f_31d0]), [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]);
    }

    #[test]
    fn moments_are_right() {
        let draws = Seeded::new(vec![7]);
        let mut normal = vec![0.0; 40_000];
        draws.initial_noise(PLACE, &mut normal);
        let mut gumbel = vec![0.0; 40_000];
        draws.gumbel(PLACE, &mut gumbel);
        let mean = |v: &[f32]| v.iter().map(|&x| f64::from(x)).sum::<f64>() / v.len() as f64;
        let variance = |v: &[f32]| mean(&v.iter().map(|&x| (x - mean(v) as f32).powi(2)).collect::<Vec<_>>());
        assert!(mean(&normal).abs() < 0.02 && (variance(&normal) - 1.0).abs() < 0.03);
        assert!((mean(&gumbel) - 0.5772).abs() < 0.03 && (variance(&gumbel) - 1.6449).abs() < 0.08);
    }

    #[test]
    fn codes_follow_their_probabilities_and_never_take_a_zero() {
        let probabilities = [0.0, 0.25, 0.0, 0.75, 0.0];
        let draws = Seeded::new(vec![1]);
        let mut counts = [0usize; 5];
        for position in 0..20_000 {
            counts[draws.code(Place { position, ..PLACE }, &probabilities)] += 1;
        }
        assert_eq!((counts[0], counts[2], counts[4]), (0, 0, 0));
        assert!((counts[1] as f64 / 20_000.0 - 0.25).abs() < 0.02, "{counts:?}");
    }

    #[test]
    fn every_address_has_its_own_numbers() {
        let draws = Seeded::new(vec![5, 6]);
        let take = |place: Place, step: Option<usize>| {
            let mut out = [0.0; 6];
            match step {
                None => draws.initial_noise(place, &mut out),
                Some(step) => draws.step_noise(place, step, &mut out),
            }
            out
        };
        let all = [
            take(PLACE, None),
            take(PLACE, Some(0)),
            take(PLACE, Some(1)),
            take(Place { image: 1, ..PLACE }, None),
            take(Place { scale: 4, ..PLACE }, None),
            take(Place { position: 18, ..PLACE }, None),
        ];
        for i in 0..all.len() {
            for j in 0..i {
                assert_ne!(all[i], all[j], "{i} {j}");
            }
        }
        assert_eq!(take(PLACE, Some(1)), take(PLACE, Some(1)));
        assert_eq!(Seeded::new(vec![6]).words(PLACE, 0, 0), draws.words(Place { image: 1, ..PLACE }, 0, 0));
    }
}
