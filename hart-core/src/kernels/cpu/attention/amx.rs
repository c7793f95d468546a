//! FlashAttention of one query block with AMX tiles.
//!
//! The steps are those of [`super::flash`], but queries are stored as rows: `q k^T` and `p v` multiply 32 queries at a time by the
//! packed panels of keys and values, and the softmax runs along the rows. If all scores of 32 queries and a key block are small, as
//! they usually are, zero is used instead of the row maximum, which is not computed. Powers of two of small scores cannot overflow.

use super::exp2::{exp2, exp2_for_bf16};
use super::flash::MIN_SCORE;
use super::layout::{KEY_BLOCK, PANEL_WIDTH, dword_count};
use super::quantized_kv::BlockBuffer;
use super::segment::SegmentHead;
use crate::kernels::cpu::amx::{AmxToken, TILE_ROWS, Tdpbf16ps, TileGuard, TileOperands, TileProduct};
use crate::kernels::cpu::memory::AlignedVec;
use crate::kernels::cpu::simd::{SimdF32, SimdKernel};

pub(super) use crate::kernels::cpu::amx::TILE_DWORDS;

/// Queries of a query block. It is large, because a key block may have to be dequantised for each query block.
pub(super) const QUERY_BLOCK: usize = 512;
/// Queries that are multiplied together: two tiles.
const QUERY_TILE: usize = 2 * TILE_ROWS;
/// Dwords of a query's probabilities for a key block.
const PROBABILITY_DWORDS: usize = KEY_BLOCK / 2;
/// Largest magnitude of scores that are used without subtracting their maximum: neither their powers of two nor the sums of
/// these overflow f32.
const MAX_SMALL_SCORE: f32 = 60.0;

/// A thread's memory for one query block: its queries, and the state of the online softmax.
pub(super) struct Scratch {
    /// Queries, `[QUERY_BLOCK][head_dim / 2]`, pairs of bf16, multiplied by the scale and log2(e), because the softmax uses powers
    /// of two.
    query: AlignedVec<f32>,
    /// Unnormalised output accumulator, `[QUERY_BLOCK][head_dim]`.
    acc: AlignedVec<f32>,
    /// Running sum of the unnormalised probabilities, one for each lane, `[QUERY_BLOCK][TILE_DWORDS]`.
    row_sum: AlignedVec<f32>,
    /// Running maximum that is subtracted from the scores, or zero while all scores are small.
    row_max: [f32; QUERY_BLOCK],
    /// `[QUERY_TILE][KEY_BLOCK]`.
    scores: AlignedVec<f32>,
    /// Pairs of bf16, `[QUERY_TILE][PROBABILITY_DWORDS]`.
    probabilities: AlignedVec<f32>,
    /// Values of a short key block, whose dwords are filled up with zeros to whole tiles.
    padded_values: AlignedVec<f32>,
    head_dim: usize,
}

impl Scratch {
    /// Allocates memory for queries of `head_dim` channels, which fill whole tiles.
    pub(super) fn new(head_dim: usize) -> Self {
        assert!(head_dim > 0 && head_dim.is_multiple_of(2 * TILE_DWORDS), "keys fill whole tiles");
        Self {
            query: AlignedVec::new(QUERY_BLOCK * head_dim / 2),
            acc: AlignedVec::new(QUERY_BLOCK * head_dim),
            row_sum: AlignedVec::new(QUERY_BLOCK * TILE_DWORDS),
            row_max: [MIN_SCORE; QUERY_BLOCK],
            scores: AlignedVec::new(QUERY_TILE * KEY_BLOCK),
            probabilities: AlignedVec::new(QUERY_TILE * PROBABILITY_DWORDS),
            padded_values: AlignedVec::new(PROBABILITY_DWORDS * head_dim),
            head_dim,
        }
    }

    /// Returns the dwords of a query.
    pub(super) fn query_mut(&mut self, query: usize) -> &mut [f32] {
        &mut self.query[query * self.head_dim / 2..][..self.head_dim / 2]
    }

    /// Returns the row sum of a query and its unnormalised output.
    pub(super) fn output(&self, query: usize) -> (f32, &[f32]) {
        (self.row_sum[query * TILE_DWORDS..][..TILE_DWORDS].iter().sum(), &self.acc[query * self.head_dim..][..self.head_dim])
    }
}

/// Attention of one query block over all segments of its head, which are bf16.
pub(super) struct Attend<'a> {
    pub(super) token: AmxToken,
    /// Number of queries, at most [`QUERY_BLOCK`].
    pub(super) queries: usize,
    pub(super) segments: &'a [SegmentHead<'a>],
    pub(super) scratch: &'a mut Scratch,
    pub(super) buffer: &'a mut BlockBuffer,
}

impl SimdKernel for Attend<'_> {
    #[inline(always)]
    unsafe fn run<S: SimdF32>(self) {
        let Self { token, queries, segments, scratch, buffer } = self;
        assert!(queries <= QUERY_BLOCK && S::HAS_BF16);
        let (key_dwords, head_dim) = (scratch.head_dim / 2, scratch.head_dim);
        let tiles = TileGuard::new(token);
        scratch.acc.fill(0.0);
        scratch.row_sum.fill(0.0);
        scratch.row_max.fill(MIN_SCORE);
        for segment in segments {
            assert!(segment.fits(key_dwords, head_dim, true), "segments have the head dimension of the queries");
            for first in (0..segment.tokens()).step_by(KEY_BLOCK) {
                let count = (segment.tokens() - first).min(KEY_BLOCK);
                // A dequantised block begins at the start of the buffer.
                let (kv, first) = match segment {
                    SegmentHead::Packed(head) => (*head, first),
                    // SAFETY: the caller guarantees that the processor has the instructions.
                    SegmentHead::Quantized(head) => (unsafe { buffer.dequantize::<S, true>(head, first, count) }, 0),
                };
                let [keys, values] = kv.block(first, count, key_dwords, head_dim, true);
                let value_dwords = dword_count(count, true);
                let padded_dwords = value_dwords.next_multiple_of(TILE_DWORDS);
                if value_dwords < padded_dwords {
                    let padded = scratch.padded_values.chunks_exact_mut(padded_dwords * PANEL_WIDTH);
                    for (to, from) in padded.zip(values.chunks_exact(value_dwords * PANEL_WIDTH)) {
                        let (to, rest) = to.split_at_mut(from.len());
                        to.copy_from_slice(from);
                        rest.fill(0.0);
                    }
                }
                for row in (0..queries).step_by(QUERY_TILE) {
                    // S = Q K^T
                    qk(&tiles, scratch, keys, row);
                    // P = exp(S - m), the new m and l, and O = rescale * O
                    // SAFETY: the caller guarantees that the processor has the instructions.
                    unsafe { online_softmax::<S>(scratch, row, (queries - row).min(QUERY_TILE), count, kv.log2_multiplicity) };
                    // O = O + P V
                    pv(&tiles, scratch, if value_dwords < padded_dwords { None } else { Some(values) }, padded_dwords, row);
                }
            }
        }
    }
}

/// Computes the scores of 32 queries from `row` on for all panels of keys.
fn qk(_: &TileGuard, scratch: &mut Scratch, keys: &[f32], row: usize) {
    let key_dwords = scratch.head_dim / 2;
    let panels = keys.len() / (key_dwords * PANEL_WIDTH);
    assert!(panels * PANEL_WIDTH <= KEY_BLOCK && keys.len().is_multiple_of(key_dwords * PANEL_WIDTH));
    assert!(row + QUERY_TILE <= QUERY_BLOCK);
    for panel in (0..panels).step_by(2) {
        let two = panel + 1 < panels;
        let (c, c_row_stride) = (scratch.scores[panel * PANEL_WIDTH..].as_mut_ptr().cast::<u8>(), KEY_BLOCK * size_of::<f32>());
        let operands = TileOperands {
            a: [row, row + TILE_ROWS].map(|row| scratch.query[row * key_dwords..].as_ptr().cast()),
            a_row_stride: key_dwords * size_of::<f32>(),
            a_tile_stride: TILE_DWORDS * size_of::<f32>(),
            b: [panel, panel + usize::from(two)].map(|panel| keys[panel * key_dwords * PANEL_WIDTH..].as_ptr().cast()),
            b_row_stride: PANEL_WIDTH * size_of::<f32>(),
            b_tile_stride: TILE_DWORDS * PANEL_WIDTH * size_of::<f32>(),
            k_tiles: key_dwords / TILE_DWORDS,
            c: [c, c.wrapping_add(TILE_ROWS * c_row_stride)],
            c_row_stride,
        };
        // SAFETY: `TileGuard` shows that the tiles are configured. The queries and panels are as long as asserted, their dwords
        // fill whole tiles, and the scores have a column for each key.
        unsafe { if two { Tdpbf16ps::product_32x32(operands) } else { Tdpbf16ps::product_32x16(operands) } }
    }
}

/// Turns the scores of the first `rows` of 32 queries from `row` on into unnormalised probabilities, and updates their row maximum
/// and row sum. Where the maximum grows, the row sum and the output so far are rescaled.
///
/// # Safety
///
/// The processor has the instructions of `S`.
#[inline(always)]
unsafe fn online_softmax<S: SimdF32>(scratch: &mut Scratch, row: usize, rows: usize, count: usize, log2_multiplicity: f32) {
    let padded = count.next_multiple_of(2 * S::LANES);
    assert!(padded <= KEY_BLOCK && S::LANES == TILE_DWORDS && rows <= QUERY_TILE);
    // SAFETY: the caller guarantees that the processor has the instructions.
    let max_abs = unsafe { max_abs::<S>(&scratch.scores[..rows * KEY_BLOCK], count.next_multiple_of(PANEL_WIDTH)) };
    let small = max_abs <= MAX_SMALL_SCORE;
    let scores = scratch.scores.chunks_exact_mut(KEY_BLOCK);
    let tile = scores.zip(scratch.probabilities.chunks_exact_mut(PROBABILITY_DWORDS));
    let state = scratch.row_sum.as_chunks_mut::<TILE_DWORDS>().0.iter_mut().zip(&mut scratch.row_max);
    let state = state.zip(scratch.acc.chunks_exact_mut(scratch.head_dim)).skip(row);
    for ((scores, probabilities), ((row_sum, row_max), acc)) in tile.zip(state).take(rows) {
        scores[count..padded].fill(MIN_SCORE);
        // SAFETY: the caller guarantees that the processor has the instructions; there are `padded` scores and half as many dwords
        // of probabilities.
        unsafe {
            let (scores, probabilities, row_sum) = (scores.as_ptr(), probabilities.as_mut_ptr(), row_sum.as_mut_ptr());
            let new_max = row_max.max(if small { 0.0 } else { max::<S>(scores, padded) + log2_multiplicity });
            if new_max != *row_max {
                let rescale = exp2(S::splat(*row_max - new_max));
                S::zero().add_product(S::load(row_sum), rescale).store(row_sum);
                for channels in acc.as_chunks_mut::<TILE_DWORDS>().0 {
                    S::zero().add_product(S::load(channels.as_ptr()), rescale).store(channels.as_mut_ptr());
                }
                *row_max = new_max;
            }
            let shift = S::splat(log2_multiplicity - new_max);
            let (mut low_sum, mut high_sum) = (S::load(row_sum), S::zero());
            let mut key = 0;
            while key < padded {
                let low = exp2_for_bf16(S::load(scores.add(key)).add(shift));
                let high = exp2_for_bf16(S::load(scores.add(key + S::LANES)).add(shift));
                (low_sum, high_sum) = (low_sum.add(low), high_sum.add(high));
                S::concat_bf16(low, high).store(probabilities.add(key / 2));
                key += 2 * S::LANES;
            }
            low_sum.add(high_sum).store(row_sum);
        }
    }
}

/// Returns the largest magnitude of the first `count` scores of all rows. NaN is ignored.
///
/// # Safety
///
/// The processor has the instructions of `S`.
#[inline(always)]
unsafe fn max_abs<S: SimdF32>(scores: &[f32], count: usize) -> f32 {
    assert!(count <= KEY_BLOCK && count.is_multiple_of(S::LANES));
    // SAFETY: the caller guarantees that the processor has the instructions; every row has at least `count` scores.
    unsafe {
        let (mut even, mut odd) = (S::zero(), S::zero());
        for scores in scores.chunks_exact(KEY_BLOCK) {
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

/// Returns the maximum of `count` scores, a multiple of two vectors.
///
/// # Safety
///
/// The processor has the instructions of `S`, and there are `count` scores.
#[inline(always)]
unsafe fn max<S: SimdF32>(scores: *const f32, count: usize) -> f32 {
    // SAFETY: the caller guarantees the conditions above.
    unsafe {
        let (mut even, mut odd) = (S::splat(MIN_SCORE), S::splat(MIN_SCORE));
        for key in (0..count).step_by(2 * S::LANES) {
            even = even.max(S::load(scores.add(key)));
            odd = odd.max(S::load(scores.add(key + S::LANES)));
        }
        even.max(odd).reduce_max()
    }
}

/// Adds probabilities times values to the output of 32 queries from `row` on. The panels of `values` have `value_dwords` dwords;
/// `None` selects the padded values.
fn pv(_: &TileGuard, scratch: &mut Scratch, values: Option<&[f32]>, value_dwords: usize, row: usize) {
    let head_dim = scratch.head_dim;
    let values = values.unwrap_or(&scratch.padded_values);
    assert!(
        value_dwords <= PROBABILITY_DWORDS && value_dwords.is_multiple_of(TILE_DWORDS) && values.len() >= value_dwords * head_dim
    );
    assert!(row + QUERY_TILE <= QUERY_BLOCK);
    for panel in (0..head_dim / PANEL_WIDTH).step_by(2) {
        let c = scratch.acc[row * head_dim + panel * PANEL_WIDTH..].as_mut_ptr().cast::<u8>();
        let c_row_stride = head_dim * size_of::<f32>();
        let operands = TileOperands {
            a: [0, TILE_ROWS].map(|row| scratch.probabilities[row * PROBABILITY_DWORDS..].as_ptr().cast()),
            a_row_stride: PROBABILITY_DWORDS * size_of::<f32>(),
            a_tile_stride: TILE_DWORDS * size_of::<f32>(),
            b: [panel, panel + 1].map(|panel| values[panel * value_dwords * PANEL_WIDTH..].as_ptr().cast()),
            b_row_stride: PANEL_WIDTH * size_of::<f32>(),
            b_tile_stride: TILE_DWORDS * PANEL_WIDTH * size_of::<f32>(),
            k_tiles: value_dwords / TILE_DWORDS,
            c: [c, c.wrapping_add(TILE_ROWS * c_row_stride)],
            c_row_stride,
        };
        // SAFETY: `TileGuard` shows that the tiles are configured. The probabilities, panels and outputs are as long as asserted,
        // and the number of panels is even.
        unsafe { Tdpbf16ps::accumulate_32x32(operands) }
    }
}
