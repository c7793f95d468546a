//! FlashAttention of one query block with SIMD vectors.
//!
//! Computes `softmax(q k^T) v` one key block at a time, without storing all scores. Each key block updates the running maximum and
//! the running sum of every query and rescales its output so far (Dao et al., "FlashAttention", 2022; Milakov and Gimelshein,
//! "Online normalizer calculation for softmax", 2018). Where the processor has AMX, [`super::amx`] does this instead.
//!
//! Each lane of a vector holds one query of a block. The softmax therefore needs no sums across lanes, and both products
//! broadcast their other operand, an element of a key or of a value channel. `q k^T` and `p v` use the same register tile: eight
//! rows, which are keys or value channels, by up to three vectors of queries.
//!
//! A dword is 32 bits along the reduction dimension: one f32, or two bf16 (`BF16`). Two bf16 belong to two channels in `q k^T`, and
//! to two keys in `p v`. Sums and softmax are f32 in both cases. Where the processor has no dot product of bf16, bf16 keys and
//! values are widened to f32 one key block at a time.
//!
//! The result of a query consists of the same sums in the same order, whatever its position in a block and whichever thread
//! computes it.

use super::bias::add_bias;
use super::columns::{QUERY_BLOCK, QueryColumns};
use super::exp2::{exp2, exp2_for_bf16};
use super::layout::{KEY_BLOCK, PANEL_WIDTH, PackedHead, dword_count};
use super::quantized_kv::BlockBuffer;
use super::segment::SegmentHead;
use crate::kernels::cpu::simd::{SimdF32, SimdKernel};

/// Rows of a register tile.
const TILE_ROWS: usize = 8;
/// Vectors of queries in a register tile.
const TILE_VECTORS: usize = 3;
/// Rows of a register tile where there are only 16 vector registers.
const SMALL_TILE_ROWS: usize = 4;
/// Vectors of queries in such a tile.
const SMALL_TILE_VECTORS: usize = 2;
/// Initial row maximum, below any score. Differences from it do not overflow.
pub(super) const MIN_SCORE: f32 = -1e30;

/// Query blocks that share the conversion of a key block.
pub(super) const MAX_QUERY_BLOCKS: usize = 6;

/// A query block: its queries, and the state of the online softmax.
pub(super) struct QueryState {
    /// Queries, `[dwords of a query][QUERY_BLOCK]`, multiplied by the scale and log2(e), because the softmax uses powers of two.
    pub(super) query: QueryColumns,
    /// Unnormalised output accumulator, `[value_dim][QUERY_BLOCK]`.
    pub(super) acc: QueryColumns,
    /// Running sum of the unnormalised probabilities, `[1][QUERY_BLOCK]`.
    pub(super) row_sum: QueryColumns,
    /// Running maximum of the scores, `[1][QUERY_BLOCK]`.
    row_max: QueryColumns,
    /// Bias on the scores, `[keys][QUERY_BLOCK]`.
    pub(super) bias: QueryColumns,
    /// Number of queries, at most [`QUERY_BLOCK`].
    pub(super) queries: usize,
}

/// A thread's memory for some query blocks of one head.
pub(super) struct Scratch {
    pub(super) blocks: Vec<QueryState>,
    /// Scores of a query block and a key block, then their probabilities, `[KEY_BLOCK][QUERY_BLOCK]`.
    pub(super) scores: QueryColumns,
    /// A key block that had to be converted.
    pub(super) buffer: BlockBuffer,
}

impl Scratch {
    /// Allocates memory for `blocks` query blocks, with queries of `query_dwords` dwords and values of `head_dim` channels.
    pub(super) fn new(blocks: usize, query_dwords: usize, head_dim: usize) -> Self {
        let block = || QueryState {
            query: QueryColumns::new(query_dwords),
            acc: QueryColumns::new(head_dim.next_multiple_of(PANEL_WIDTH)),
            row_sum: QueryColumns::new(1),
            row_max: QueryColumns::new(1),
            bias: QueryColumns::default(),
            queries: 0,
        };
        Self {
            blocks: (0..blocks).map(|_| block()).collect(),
            scores: QueryColumns::new(KEY_BLOCK),
            buffer: BlockBuffer::default(),
        }
    }
}

/// Attention of some query blocks over all segments of their head.
pub(super) struct Attend<'a> {
    pub(super) segments: &'a [SegmentHead<'a>],
    /// `true` if keys and values are bf16.
    pub(super) bf16: bool,
    /// `true` to add the bias in the scratch to the scores of the only segment.
    pub(super) biased: bool,
    /// Query blocks, allocated for the sizes of these keys and values.
    pub(super) blocks: &'a mut [QueryState],
    pub(super) scores: &'a mut QueryColumns,
    pub(super) buffer: &'a mut BlockBuffer,
}

impl SimdKernel for Attend<'_> {
    #[inline(always)]
    unsafe fn run<S: SimdF32>(self) {
        // SAFETY: the caller guarantees that the processor has the instructions.
        unsafe { if self.bf16 && S::HAS_BF16 { self.attend::<S, true>() } else { self.attend::<S, false>() } }
    }
}

impl Attend<'_> {
    /// Runs the outer loop over the key blocks.
    ///
    /// # Safety
    ///
    /// The processor has the instructions of `S`.
    #[inline(always)]
    unsafe fn attend<S: SimdF32, const BF16: bool>(self) {
        let Some(block) = self.blocks.first() else { return };
        let (query_dwords, value_dim) = (block.query.rows(), block.acc.rows());
        let widen = self.bf16 && !BF16;
        let key_dwords = if widen { query_dwords / 2 } else { query_dwords };
        let fit = self.segments.iter().all(|segment| segment.fits(key_dwords, value_dim, self.bf16));
        assert!(fit, "segments have the head dimension of the queries");
        for block in &mut *self.blocks {
            let has_bias = |segment: &SegmentHead<'_>| segment.tokens() <= block.bias.rows();
            assert!(!self.biased || self.segments.len() == 1 && has_bias(&self.segments[0]), "every key has a bias");
            let fits = (block.query.rows(), block.acc.rows()) == (query_dwords, value_dim);
            assert!(fits && block.queries <= QUERY_BLOCK && self.scores.rows() == KEY_BLOCK);
            block.acc.fill(0.0);
            block.row_sum.fill(0.0);
            block.row_max.fill(MIN_SCORE);
        }
        for segment in self.segments {
            for first in (0..segment.tokens()).step_by(KEY_BLOCK) {
                let count = (segment.tokens() - first).min(KEY_BLOCK);
                // A converted block begins at the start of the buffer.
                // SAFETY: the caller guarantees that the processor has the instructions.
                let (kv, start) = unsafe {
                    match segment {
                        SegmentHead::Packed(head) if widen => {
                            (self.buffer.widen::<S>(head, first, count, key_dwords, value_dim), 0)
                        }
                        SegmentHead::Packed(head) => (*head, first),
                        SegmentHead::Quantized(head) => (self.buffer.dequantize::<S, BF16>(head, first, count), 0),
                    }
                };
                for block in &mut *self.blocks {
                    let bias = self.biased.then(|| block.bias.row_ptr(first).cast_const());
                    let vectors = if S::HAS_32_REGISTERS { TILE_VECTORS } else { SMALL_TILE_VECTORS };
                    let mut query = 0;
                    while query < block.queries {
                        // SAFETY: the caller guarantees that the processor has the instructions; the lengths were checked above or
                        // made by the buffer, and `query` is a multiple of the width of `vectors`.
                        unsafe {
                            match (block.queries - query).div_ceil(S::LANES).min(vectors) {
                                1 => key_block::<S, 1, BF16>(block, self.scores, &kv, start, count, query, bias),
                                TILE_VECTORS => {
                                    key_block::<S, TILE_VECTORS, BF16>(block, self.scores, &kv, start, count, query, bias)
                                }
                                _ => key_block::<S, SMALL_TILE_VECTORS, BF16>(block, self.scores, &kv, start, count, query, bias),
                            }
                        }
                        query += vectors * S::LANES;
                    }
                }
            }
        }
    }
}

/// Processes one key block for `V` vectors of queries, from `query` on.
///
/// # Safety
///
/// The processor has the instructions of `S`. The keys, values and scratch have the lengths that [`Attend`] checks. `first` is a
/// multiple of [`KEY_BLOCK`], and `count` is at most [`KEY_BLOCK`] and the number of remaining keys. `query + V * S::LANES <= QUERY_BLOCK`.
/// A bias has `count` rows of [`QUERY_BLOCK`].
#[inline(always)]
unsafe fn key_block<S: SimdF32, const V: usize, const BF16: bool>(
    block: &mut QueryState,
    scores: &mut QueryColumns,
    kv: &PackedHead<'_>,
    first: usize,
    count: usize,
    query: usize,
    bias: Option<*const f32>,
) {
    // SAFETY: the caller guarantees the conditions above.
    unsafe {
        let (query_dwords, value_dim) = (block.query.rows(), block.acc.rows());
        let q = block.query.row_ptr(0).add(query).cast_const();
        let scores = scores.row_ptr(0).add(query);
        let [keys, values] = kv.block(first, count, query_dwords, value_dim, BF16).map(<[f32]>::as_ptr);
        let value_dwords = dword_count(count, BF16);

        // S = Q K^T and its row maximum
        let mut block_max = [S::splat(MIN_SCORE); V];
        for panel in (0..count).step_by(PANEL_WIDTH) {
            let (keys, scores) = (keys.add(panel * query_dwords), scores.add(panel * QUERY_BLOCK));
            let rows = (count - panel).min(PANEL_WIDTH);
            let mut row = 0;
            while row < rows {
                let (keys, scores) = (keys.add(row), scores.add(row * QUERY_BLOCK));
                if S::HAS_32_REGISTERS {
                    block_max = qk::<S, V, TILE_ROWS, BF16>(keys, q, query_dwords, scores, block_max);
                    row += TILE_ROWS;
                } else {
                    block_max = qk::<S, V, SMALL_TILE_ROWS, BF16>(keys, q, query_dwords, scores, block_max);
                    row += SMALL_TILE_ROWS;
                }
            }
        }

        if let Some(bias) = bias {
            block_max = add_bias(scores, bias.add(query), count);
        }

        // P = exp(S - m), and the new m and l.
        let rescale = online_softmax::<S, V, BF16>(block, scores, block_max, count, kv.log2_multiplicity, query);

        // O = rescale * O + P V
        let probabilities = scores.cast_const();
        let mut channel = 0;
        while channel < value_dim {
            let values = values.add(channel / PANEL_WIDTH * PANEL_WIDTH * value_dwords + channel % PANEL_WIDTH);
            let acc = block.acc.row_ptr(channel).add(query);
            if S::HAS_32_REGISTERS {
                pv::<S, V, TILE_ROWS, BF16>(values, probabilities, value_dwords, acc, rescale);
                channel += TILE_ROWS;
            } else {
                pv::<S, V, SMALL_TILE_ROWS, BF16>(values, probabilities, value_dwords, acc, rescale);
                channel += SMALL_TILE_ROWS;
            }
        }
    }
}

/// Computes the scores of `R` keys of a panel, and the row maximum including them.
///
/// # Safety
///
/// Like [`tile`]; `scores` has `R` rows.
#[inline(always)]
unsafe fn qk<S: SimdF32, const V: usize, const R: usize, const BF16: bool>(
    keys: *const f32,
    queries: *const f32,
    key_dwords: usize,
    scores: *mut f32,
    mut row_max: [S; V],
) -> [S; V] {
    // SAFETY: the caller guarantees the conditions above.
    unsafe {
        let sums = tile::<S, V, R, BF16>([[S::zero(); V]; R], keys, queries, key_dwords);
        store(sums, scores);
        for row in &sums {
            for (row_max, score) in row_max.iter_mut().zip(row) {
                *row_max = row_max.max(*score);
            }
        }
        row_max
    }
}

/// Rescales the output of `R` channels of a panel and adds the values weighted by their probabilities.
///
/// # Safety
///
/// Like [`tile`]; `acc` has `R` rows.
#[inline(always)]
unsafe fn pv<S: SimdF32, const V: usize, const R: usize, const BF16: bool>(
    values: *const f32,
    probabilities: *const f32,
    value_dwords: usize,
    acc: *mut f32,
    rescale: [S; V],
) {
    // SAFETY: the caller guarantees the conditions above.
    unsafe {
        let mut sums = [[S::zero(); V]; R];
        for (row, sums) in sums.iter_mut().enumerate() {
            for v in 0..V {
                sums[v] = sums[v].add_product(S::load(acc.add(row * QUERY_BLOCK + v * S::LANES)), rescale[v]);
            }
        }
        store(tile::<S, V, R, BF16>(sums, values, probabilities, value_dwords), acc);
    }
}

/// Multiplies `R` rows of a panel by the columns of `V` vectors: returns `sums[r][q] + panel[0..depth][r] . columns[0..depth][q]`.
///
/// # Safety
///
/// The processor has the instructions of `S`, and both the panel and the columns have `depth` dwords.
#[inline(always)]
unsafe fn tile<S: SimdF32, const V: usize, const R: usize, const BF16: bool>(
    mut sums: [[S; V]; R],
    mut panel: *const f32,
    mut columns: *const f32,
    depth: usize,
) -> [[S; V]; R] {
    // SAFETY: the caller guarantees the conditions above.
    unsafe {
        for _ in 0..depth {
            let column: [S; V] = std::array::from_fn(|v| S::load(columns.add(v * S::LANES)));
            for (row, sums) in sums.iter_mut().enumerate() {
                let dword = *panel.add(row);
                for v in 0..V {
                    sums[v] = if BF16 { sums[v].add_bf16_dot(dword, column[v]) } else { sums[v].add_scaled(dword, column[v]) };
                }
            }
            panel = panel.add(PANEL_WIDTH);
            columns = columns.add(QUERY_BLOCK);
        }
        sums
    }
}

/// Writes a tile to `R` rows of a [`QueryColumns`].
///
/// # Safety
///
/// The processor has the instructions of `S`, and `to` has `R` rows.
#[inline(always)]
unsafe fn store<S: SimdF32, const V: usize, const R: usize>(sums: [[S; V]; R], to: *mut f32) {
    for (row, sums) in sums.iter().enumerate() {
        for (v, sum) in sums.iter().enumerate() {
            // SAFETY: the caller guarantees the conditions above.
            unsafe { sum.store(to.add(row * QUERY_BLOCK + v * S::LANES)) };
        }
    }
}

/// Replaces the scores of a key block, one column per query from `query` on, by unnormalised probabilities, updates the row maximum and the row sum, and returns the
/// factor that rescales the output so far.
///
/// # Safety
///
/// The processor has the instructions of `S`. `count <= KEY_BLOCK` and `query + V * S::LANES <= QUERY_BLOCK`.
#[inline(always)]
unsafe fn online_softmax<S: SimdF32, const V: usize, const BF16: bool>(
    block: &mut QueryState,
    scores: *mut f32,
    block_max: [S; V],
    count: usize,
    log2_multiplicity: f32,
    query: usize,
) -> [S; V] {
    // SAFETY: the caller guarantees the conditions above.
    unsafe {
        let (row_max, row_sum) = (block.row_max.row_ptr(0).add(query), block.row_sum.row_ptr(0).add(query));
        // Without closures, which do not inherit the target features.
        let (mut new_max, mut shift, mut rescale, mut sums) = (block_max, [S::zero(); V], [S::zero(); V], [S::zero(); V]);
        for v in 0..V {
            let old_max = S::load(row_max.add(v * S::LANES));
            new_max[v] = old_max.max(new_max[v].add(S::splat(log2_multiplicity)));
            shift[v] = S::splat(log2_multiplicity).add_product(S::splat(-1.0), new_max[v]);
            rescale[v] = exp2(old_max.add_product(S::splat(-1.0), new_max[v]));
            sums[v] = S::zero().add_product(S::load(row_sum.add(v * S::LANES)), rescale[v]);
        }
        for dword in 0..dword_count(count, BF16) {
            for v in 0..V {
                let from = scores.add(v * S::LANES);
                let to = from.add(dword * QUERY_BLOCK);
                if !BF16 {
                    let probability = exp2(S::load(to).add(shift[v]));
                    sums[v] = sums[v].add(probability);
                    probability.store(to);
                    continue;
                }
                let low = exp2_for_bf16(S::load(from.add(2 * dword * QUERY_BLOCK)).add(shift[v]));
                let mut high = S::zero();
                if 2 * dword + 1 < count {
                    high = exp2_for_bf16(S::load(from.add((2 * dword + 1) * QUERY_BLOCK)).add(shift[v]));
                }
                sums[v] = sums[v].add(low.add(high));
                S::interleave_bf16(low, high).store(to);
            }
        }
        for v in 0..V {
            new_max[v].store(row_max.add(v * S::LANES));
            sums[v].store(row_sum.add(v * S::LANES));
        }
        rescale
    }
}
