//! A bias on the scores of one batch row, such as a mask.

use super::columns::{QUERY_BLOCK, QueryColumns};
use super::flash::MIN_SCORE;
use crate::kernels::cpu::simd::{LoopKernel, SimdF32};

/// A bias on the scores, `[queries][keys]`.
#[derive(Clone, Copy)]
pub(super) struct ScoreBias<'a> {
    pub(super) values: &'a [f32],
    pub(super) keys: usize,
}

/// Loads the biases of a query block, one column per query, multiplied by log2(e). The most negative float, which masks a key,
/// becomes the minimum score.
pub(super) struct LoadBiasColumns<'a> {
    pub(super) bias: ScoreBias<'a>,
    /// First query of the block.
    pub(super) first: usize,
    /// Number of queries.
    pub(super) count: usize,
    pub(super) to: &'a mut QueryColumns,
}

impl LoopKernel for LoadBiasColumns<'_> {
    #[inline(always)]
    fn run(self) {
        let Self { bias: ScoreBias { values, keys }, first, count, to } = self;
        to.resize(keys);
        for query in 0..count {
            let row = &values[(first + query) * keys..][..keys];
            to.set_column(query, row.iter().map(|bias| (bias * std::f32::consts::LOG2_E).max(MIN_SCORE)));
        }
    }
}

/// Adds the bias to the scores of a key block for `V` vectors of queries, and returns the largest score of each query.
///
/// # Safety
///
/// The processor has the instructions of `S`. `scores` and `bias` have `count` rows of [`QUERY_BLOCK`] queries.
#[inline(always)]
pub(super) unsafe fn add_bias<S: SimdF32, const V: usize>(scores: *mut f32, bias: *const f32, count: usize) -> [S; V] {
    // SAFETY: the caller guarantees the conditions above.
    unsafe {
        let mut row_max = [S::splat(MIN_SCORE); V];
        for row in 0..count {
            for (v, row_max) in row_max.iter_mut().enumerate() {
                let at = row * QUERY_BLOCK + v * S::LANES;
                let score = S::load(scores.add(at)).add(S::load(bias.add(at)));
                score.store(scores.add(at));
                *row_max = row_max.max(score);
            }
        }
        row_max
    }
}
