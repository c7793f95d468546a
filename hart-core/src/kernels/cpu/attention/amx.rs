//! The same as [`super::flash`] where the processor multiplies whole matrices: scores and answers are products of 32 queries, each with
//! its words in a row, with the panels of keys and of values as they lie. A softmax goes along the rows. Where all scores of 32 queries and
//! a block of keys are small, as they usually are, no largest one is looked for and taken off: their powers don't overflow.

use super::flash::{NO_SCORE, exp2};
use super::layout::{KEYS, PANEL, words};
use super::quantized::{Decoded, Source};
use crate::kernels::cpu::amx::{AmxToken, TILE_ROWS, Tdpbf16ps, TileGuard, TileOperands, TileProduct};
use crate::kernels::cpu::memory::AlignedVec;
use crate::kernels::cpu::simd::{MAGIC_BIAS, SimdF32, SimdKernel};

pub(super) use crate::kernels::cpu::amx::TILE_DWORDS;

/// Queries that go over the same keys, which may have to be read back for it.
pub(super) const QUERIES: usize = 512;
/// Queries that are multiplied together.
const TOGETHER: usize = 2 * TILE_ROWS;
/// Words of so many keys' weights.
const WEIGHTS: usize = KEYS / 2;
/// Scores this near zero need no largest one taken off: f32 holds their powers and the sums of them.
const TAME: f32 = 60.0;

/// What a task works in: its queries before, their mixes of values after.
pub(super) struct Scratch {
    /// `[QUERIES][words]`, times the scale and log2(e): a softmax over powers of two.
    query: AlignedVec<f32>,
    /// `[QUERIES][channels]`: sums of weighted values.
    mixed: AlignedVec<f32>,
    /// `[QUERIES][TILE_DWORDS]`: sums of weights, lane by lane.
    sums: AlignedVec<f32>,
    /// What is taken off the scores: the largest so far, or zero where none is large.
    off: [f32; QUERIES],
    /// `[TOGETHER][KEYS]`
    scores: AlignedVec<f32>,
    /// `[TOGETHER][WEIGHTS]`: scores become weights.
    weights: AlignedVec<f32>,
    /// Values with zeros behind, where their words don't fill a register.
    values: AlignedVec<f32>,
    channels: usize,
}

impl Scratch {
    /// For queries of so many channels, whose words fill registers.
    pub(super) fn new(channels: usize) -> Self {
        assert!(channels > 0 && channels.is_multiple_of(2 * TILE_DWORDS), "keys fill registers");
        Self {
            query: AlignedVec::new(QUERIES * channels / 2),
            mixed: AlignedVec::new(QUERIES * channels),
            sums: AlignedVec::new(QUERIES * TILE_DWORDS),
            off: [NO_SCORE; QUERIES],
            scores: AlignedVec::new(TOGETHER * KEYS),
            weights: AlignedVec::new(TOGETHER * WEIGHTS),
            values: AlignedVec::new(WEIGHTS * channels),
            channels,
        }
    }

    /// A query's words.
    pub(super) fn query(&mut self, query: usize) -> &mut [f32] {
        &mut self.query[query * self.channels / 2..][..self.channels / 2]
    }

    /// A query's sum of weights, and its weighted sum of values.
    pub(super) fn mixed(&self, query: usize) -> (f32, &[f32]) {
        (self.sums[query * TILE_DWORDS..][..TILE_DWORDS].iter().sum(), &self.mixed[query * self.channels..][..self.channels])
    }
}

/// A block of queries over all parts of one head, whose words are two bf16.
pub(super) struct Block<'a> {
    pub(super) token: AmxToken,
    /// How many queries there are, at most [`QUERIES`].
    pub(super) queries: usize,
    pub(super) parts: &'a [Source<'a>],
    pub(super) scratch: &'a mut Scratch,
    pub(super) decoded: &'a mut Decoded,
}

impl SimdKernel for Block<'_> {
    #[inline(always)]
    unsafe fn run<S: SimdF32>(self) {
        let Self { token, queries, parts, scratch, decoded } = self;
        assert!(queries <= QUERIES && S::HAS_BF16);
        let (depth, channels) = (scratch.channels / 2, scratch.channels);
        let ready = TileGuard::new(token);
        scratch.mixed.fill(0.0);
        scratch.sums.fill(0.0);
        scratch.off.fill(NO_SCORE);
        for source in parts {
            let fits = match source {
                Source::Packed(part) => part.fits(depth, channels, true),
                Source::Rounded(part) => part.fits(depth, channels),
            };
            assert!(fits, "a part has its panels");
            for first in (0..source.count()).step_by(KEYS) {
                let count = (source.count() - first).min(KEYS);
                let (part, first) = match source {
                    Source::Packed(part) => (*part, first),
                    Source::Rounded(part) => (decoded.read::<true>(part, first, count), 0),
                };
                let [keys, values] = part.block(first, count, depth, channels, true);
                let length = words(count, true);
                let whole = length.next_multiple_of(TILE_DWORDS);
                if length < whole {
                    let panels = scratch.values.chunks_exact_mut(whole * PANEL).zip(values.chunks_exact(length * PANEL));
                    for (to, from) in panels {
                        let (to, rest) = to.split_at_mut(from.len());
                        to.copy_from_slice(from);
                        rest.fill(0.0);
                    }
                }
                for row in (0..queries).step_by(TOGETHER) {
                    // SAFETY: the processor has the lanes, and the block is as long as that.
                    unsafe {
                        ask(&ready, scratch, keys, row);
                        softmax::<S>(scratch, row, (queries - row).min(TOGETHER), count, part.log_weight);
                        answer(&ready, scratch, if length < whole { None } else { Some(values) }, whole, row);
                    }
                }
            }
        }
    }
}

/// Scores of 32 queries from `row` on, for all panels of keys.
fn ask(_: &TileGuard, scratch: &mut Scratch, keys: &[f32], row: usize) {
    let depth = scratch.channels / 2;
    let panels = keys.len() / (depth * PANEL);
    assert!(panels * PANEL <= KEYS && keys.len().is_multiple_of(depth * PANEL) && row + TOGETHER <= QUERIES);
    for panel in (0..panels).step_by(2) {
        let two = panel + 1 < panels;
        let (y, c_row_stride) = (scratch.scores[panel * PANEL..].as_mut_ptr().cast::<u8>(), KEYS * size_of::<f32>());
        let operands = TileOperands {
            a: [row, row + TILE_ROWS].map(|row| scratch.query[row * depth..].as_ptr().cast()),
            a_row_stride: depth * size_of::<f32>(),
            a_tile_stride: TILE_DWORDS * size_of::<f32>(),
            b: [panel, panel + usize::from(two)].map(|panel| keys[panel * depth * PANEL..].as_ptr().cast()),
            b_row_stride: PANEL * size_of::<f32>(),
            b_tile_stride: TILE_DWORDS * PANEL * size_of::<f32>(),
            k_tiles: depth / TILE_DWORDS,
            c: [y, y.wrapping_add(TILE_ROWS * c_row_stride)],
            c_row_stride,
        };
        // SAFETY: the registers are ready; so many queries and panels are there, whose words are whole registers, and room for scores.
        unsafe { if two { Tdpbf16ps::product_32x32(operands) } else { Tdpbf16ps::product_32x16(operands) } }
    }
}

/// Scores to weights for the first of 32 queries from `row` on. Where there is a larger score to take off, their sums so far shrink.
///
/// # Safety
///
/// The processor has the lanes.
#[inline(always)]
unsafe fn softmax<S: SimdF32>(scratch: &mut Scratch, row: usize, rows: usize, count: usize, log_weight: f32) {
    let whole = count.next_multiple_of(2 * S::LANES);
    assert!(whole <= KEYS && S::LANES == TILE_DWORDS && rows <= TOGETHER);
    // SAFETY: as this function's.
    let tame = unsafe { farthest::<S>(&scratch.scores[..rows * KEYS], count.next_multiple_of(PANEL)) } <= TAME;
    let (scores, weights) = (scratch.scores.chunks_exact_mut(KEYS), scratch.weights.chunks_exact_mut(WEIGHTS));
    let sums = scratch.sums.as_chunks_mut::<TILE_DWORDS>().0.iter_mut().zip(&mut scratch.off);
    let sums = sums.zip(scratch.mixed.chunks_exact_mut(scratch.channels)).skip(row);
    for ((scores, weights), ((sums, off), mixed)) in scores.zip(weights).zip(sums).take(rows) {
        scores[count..whole].fill(NO_SCORE);
        // SAFETY: as this function's; so many scores are there, and half as many words of weights.
        unsafe {
            let (scores, weights, sums) = (scores.as_ptr(), weights.as_mut_ptr(), sums.as_mut_ptr());
            let largest = off.max(if tame { 0.0 } else { largest::<S>(scores, whole) + log_weight });
            if largest != *off {
                let shrink = exp2(S::splat(*off - largest));
                S::zero().add_product(S::load(sums), shrink).store(sums);
                for channels in mixed.as_chunks_mut::<TILE_DWORDS>().0 {
                    S::zero().add_product(S::load(channels.as_ptr()), shrink).store(channels.as_mut_ptr());
                }
                *off = largest;
            }
            let less = S::splat(log_weight - largest);
            let (mut low_sum, mut high_sum) = (S::load(sums), S::zero());
            let mut key = 0;
            while key < whole {
                let low = power(S::load(scores.add(key)).add(less));
                let high = power(S::load(scores.add(key + S::LANES)).add(less));
                (low_sum, high_sum) = (low_sum.add(low), high_sum.add(high));
                S::concat_bf16(low, high).store(weights.add(key / 2));
                key += 2 * S::LANES;
            }
            low_sum.add(high_sum).store(sums);
        }
    }
}

/// How far from zero the first `count` scores of all rows are, but for those that are not numbers.
///
/// # Safety
///
/// The processor has the lanes.
#[inline(always)]
unsafe fn farthest<S: SimdF32>(scores: &[f32], count: usize) -> f32 {
    assert!(count <= KEYS && count.is_multiple_of(S::LANES));
    // SAFETY: as this function's; so many scores are there.
    unsafe {
        let (mut even, mut odd) = (S::zero(), S::zero());
        for scores in scores.chunks_exact(KEYS) {
            let mut key = 0;
            while key + S::LANES < count {
                let (low, high) = (S::load(scores.as_ptr().add(key)), S::load(scores.as_ptr().add(key + S::LANES)));
                even = S::zero().add_product(low, low).max(even);
                odd = S::zero().add_product(high, high).max(odd);
                key += 2 * S::LANES;
            }
            if key < count {
                let last = S::load(scores.as_ptr().add(key));
                even = S::zero().add_product(last, last).max(even);
            }
        }
        even.max(odd).reduce_max().sqrt()
    }
}

/// The largest of so many scores, pairs of vectors.
///
/// # Safety
///
/// The processor has the lanes, and the scores are there.
#[inline(always)]
unsafe fn largest<S: SimdF32>(scores: *const f32, whole: usize) -> f32 {
    // SAFETY: as this function's.
    unsafe {
        let (mut top, mut other) = (S::splat(NO_SCORE), S::splat(NO_SCORE));
        for key in (0..whole).step_by(2 * S::LANES) {
            top = top.max(S::load(scores.add(key)));
            other = other.max(S::load(scores.add(key + S::LANES)));
        }
        top.max(other).reduce_max()
    }
}

/// Adds weights times values, whose panels have so many words, to the mixes of 32 queries from `row` on.
fn answer(_: &TileGuard, scratch: &mut Scratch, values: Option<&[f32]>, length: usize, row: usize) {
    let channels = scratch.channels;
    let values = values.unwrap_or(&scratch.values);
    assert!(
        length <= WEIGHTS && length.is_multiple_of(TILE_DWORDS) && values.len() >= length * channels && row + TOGETHER <= QUERIES
    );
    for panel in (0..channels / PANEL).step_by(2) {
        let y = scratch.mixed[row * channels + panel * PANEL..].as_mut_ptr().cast::<u8>();
        let c_row_stride = channels * size_of::<f32>();
        let operands = TileOperands {
            a: [0, TILE_ROWS].map(|row| scratch.weights[row * WEIGHTS..].as_ptr().cast()),
            a_row_stride: WEIGHTS * size_of::<f32>(),
            a_tile_stride: TILE_DWORDS * size_of::<f32>(),
            b: [panel, panel + 1].map(|panel| values[panel * length * PANEL..].as_ptr().cast()),
            b_row_stride: PANEL * size_of::<f32>(),
            b_tile_stride: TILE_DWORDS * PANEL * size_of::<f32>(),
            k_tiles: length / TILE_DWORDS,
            c: [y, y.wrapping_add(TILE_ROWS * c_row_stride)],
            c_row_stride,
        };
        // SAFETY: the registers are ready; weights and panels are there, the latter even in number, and the mixes.
        unsafe { Tdpbf16ps::accumulate_32x32(operands) }
    }
}

/// `2^x` to 8e-5, a twentieth of what a bf16 rounds away, for x below 127: x is a whole number and a rest of at most 1/2, whose power
/// is the polynomial of degree 3 with the least relative error. Below the range of f32 it stays at the end; NaN stays NaN.
///
/// # Safety
///
/// The processor has the lanes.
#[inline(always)]
unsafe fn power<S: SimdF32>(x: S) -> S {
    // SAFETY: as this function's.
    unsafe {
        let x = S::splat(-126.0).max(x);
        let whole = x.add(S::splat(MAGIC_BIAS));
        let rest = x.add_product(S::splat(-1.0), whole.add(S::splat(-MAGIC_BIAS)));
        let mut power = S::splat(0.055_171_67);
        for coefficient in [0.242_611_12, 0.693_261, 0.999_928_1] {
            power = S::splat(coefficient).add_product(power, rest);
        }
        power.ldexp(whole)
    }
}
