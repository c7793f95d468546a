//! Online softmax of a block of scores in registers.

use cubecl::prelude::*;

use super::{BLOCK_N, MMA_N};

/// A score of a masked key, less than any other.
pub(super) const MASKED: f32 = -1e30;

/// Masks the scores of keys from `valid_keys` on in the last block.
#[cube]
pub(super) fn mask_tail<N2: Size>(scores: &mut Array<Vector<f32, N2>>, column: usize, valid_keys: usize) {
    #[unroll]
    for i in 0..comptime!(2 * BLOCK_N / MMA_N) {
        let mut pair = scores[i];
        #[unroll]
        for element in 0..2usize {
            if comptime!(i / 2 * MMA_N) + column + element >= valid_keys {
                pair.insert(element, MASKED);
            }
        }
        scores[i] = pair;
    }
}

/// Updates each row's maximum and sum with a block of scores, replaces the scores by `exp(scale (score - row_max))`, and rescales the
/// accumulator to the new maximum.
#[cube]
pub(super) fn online_softmax<N2: Size>(
    scores: &mut Array<Vector<f32, N2>>,
    accumulator: &mut Array<Vector<f32, N2>>,
    row_max: &mut Array<f32>,
    row_sum: &mut Array<f32>,
    scale: f32,
    #[comptime] head_dim: usize,
) {
    // The upper and the lower row.
    #[unroll]
    for half in 0..2usize {
        let mut new_max = row_max[half];
        #[unroll]
        for tile in 0..comptime!(BLOCK_N / MMA_N) {
            let pair = scores[comptime!(2 * tile + half)];
            new_max = max(new_max, max(pair.extract(0usize), pair.extract(1usize)));
        }
        // Four lanes share a row.
        new_max = max(new_max, plane_shuffle_xor(new_max, 1u32));
        new_max = max(new_max, plane_shuffle_xor(new_max, 2u32));
        let rescale = ((row_max[half] - new_max) * scale).exp();
        row_max[half] = new_max;
        let (factor, shift) = (Vector::<f32, N2>::new(scale), Vector::<f32, N2>::new(-new_max * scale));
        let mut sum = row_sum[half] * rescale;
        #[unroll]
        for tile in 0..comptime!(BLOCK_N / MMA_N) {
            // A single fused multiply-add scales and subtracts the maximum.
            let pair = fma(scores[comptime!(2 * tile + half)], factor, shift).exp();
            sum += pair.extract(0usize) + pair.extract(1usize);
            scores[comptime!(2 * tile + half)] = pair;
        }
        row_sum[half] = sum;
        #[unroll]
        for tile in 0..comptime!(head_dim / MMA_N) {
            let rescaled = accumulator[comptime!(2 * tile + half)] * Vector::<f32, N2>::new(rescale);
            accumulator[comptime!(2 * tile + half)] = rescaled;
        }
    }
}
