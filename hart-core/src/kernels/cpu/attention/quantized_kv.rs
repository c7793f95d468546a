//! Keys and values of earlier scales in 8-bit integers, with one scale per token and head: half the memory of bf16.
//!
//! Attention dequantises one key block at a time, to bf16 or f32. This costs little compared with the products of the block.

use rayon::prelude::*;

use super::layout::{KEY_BLOCK, PANEL_WIDTH, PackedHead, dword_count, head_range, unpack_bf16};
use super::packed_kv::PackedKv;
use crate::kernels::cpu::memory::AlignedVec;
use crate::kernels::cpu::simd::{LoopKernel, MAGIC_BIAS, SimdF32, SimdLevel};

/// Largest integer; the smallest is its negative.
const MAX_INT: f32 = 127.0;
/// Integers of a panel row: the lower elements of its dwords, then the upper ones.
const ROW_INTS: usize = 2 * PANEL_WIDTH;
/// The bits of a bf16 without its sign. As integers they are in the order of the magnitudes, with NaN above all others.
const MAGNITUDE: u32 = 0x7fff;

/// Keys and values of a [`PackedKv`] of bf16, quantised in the same order.
#[derive(Clone, Debug)]
pub(crate) struct QuantizedKv {
    keys: Vec<i8>,
    values: Vec<i8>,
    /// `[heads][tokens]` for each key block, with the tokens filled up to whole panels.
    key_scales: Vec<f32>,
    /// Like `key_scales`.
    value_scales: Vec<f32>,
    heads: usize,
    tokens: usize,
    /// Dwords of a key.
    key_dwords: usize,
    /// Channels of a value, filled up to whole panels.
    value_dim: usize,
    log2_multiplicity: f32,
}

/// Quantised keys and values of one head.
#[derive(Clone, Copy, Debug)]
pub(super) struct QuantizedHead<'a> {
    kv: &'a QuantizedKv,
    head: usize,
}

impl QuantizedKv {
    /// Quantises packed bf16 keys and values of `head_dim` channels.
    pub(super) fn quantize(packed: &PackedKv, head_dim: usize) -> Self {
        let (heads, tokens, source) = (packed.heads(), packed.tokens(), packed.head(0));
        let (key_dwords, value_dim) = (dword_count(head_dim, true), head_dim.next_multiple_of(PANEL_WIDTH));
        let (padded, value_dwords) = (tokens.next_multiple_of(PANEL_WIDTH), dword_count(tokens, true));
        let mut quantized = Self {
            keys: vec![0; heads * padded * 2 * key_dwords],
            values: vec![0; heads * value_dwords * 2 * value_dim],
            key_scales: vec![0.0; heads * padded],
            value_scales: vec![0.0; heads * padded],
            heads,
            tokens,
            key_dwords,
            value_dim,
            log2_multiplicity: source.log2_multiplicity,
        };
        let level = SimdLevel::best();
        // Blocks are contiguous, and so are the heads in a block. Only the last block is shorter.
        let keys = quantized.keys.par_chunks_mut(heads * KEY_BLOCK * 2 * key_dwords);
        let keys = keys.zip(quantized.key_scales.par_chunks_mut(heads * KEY_BLOCK));
        let values = quantized.values.par_chunks_mut(heads * dword_count(KEY_BLOCK, true) * 2 * value_dim);
        let values = values.zip(quantized.value_scales.par_chunks_mut(heads * KEY_BLOCK));
        keys.zip(values).enumerate().for_each(|(block, ((keys, key_scales), (values, value_scales)))| {
            let first = block * KEY_BLOCK;
            let count = (tokens - first).min(KEY_BLOCK);
            let (padded, value_dwords) = (count.next_multiple_of(PANEL_WIDTH), dword_count(count, true));
            let keys = keys.par_chunks_mut(padded * 2 * key_dwords).zip(key_scales.par_chunks_mut(padded));
            let values = values.par_chunks_mut(value_dwords * 2 * value_dim).zip(value_scales.par_chunks_mut(padded));
            keys.zip(values).enumerate().for_each(|(head, ((keys, key_scales), (values, value_scales)))| {
                let from_keys = &source.keys[head_range(heads, head, first, padded, key_dwords)];
                let from_values = &source.values[head_range(heads, head, dword_count(first, true), value_dwords, value_dim)];
                level.run_loop(QuantizeKeys { from: from_keys, to: keys, scales: key_scales, key_dwords });
                level.run_loop(QuantizeValues { from: from_values, to: values, scales: value_scales, value_dwords });
            });
        });
        quantized
    }

    /// Returns one head.
    pub(super) fn head(&self, head: usize) -> QuantizedHead<'_> {
        assert!(head < self.heads, "there are {} heads", self.heads);
        QuantizedHead { kv: self, head }
    }
}

impl QuantizedHead<'_> {
    /// Returns the number of tokens.
    pub(super) fn tokens(&self) -> usize {
        self.kv.tokens
    }

    /// Returns whether the keys have `key_dwords` dwords and the values `value_dim` channels.
    pub(super) fn fits(&self, key_dwords: usize, value_dim: usize) -> bool {
        (self.kv.key_dwords, self.kv.value_dim) == (key_dwords, value_dim)
    }
}

/// Returns the scale of integers and its inverse, for the magnitude bits of the largest element; 0 and 0 if that is too small.
#[inline(always)]
fn scale_and_inverse(max_magnitude: u32) -> (f32, f32) {
    let max = f32::from_bits(max_magnitude << 16);
    if max <= f32::MIN_POSITIVE * MAX_INT { (0.0, 0.0) } else { (max / MAX_INT, MAX_INT / max) }
}

/// Quantises the keys of one head and block; each key has a scale.
struct QuantizeKeys<'a> {
    from: &'a [f32],
    to: &'a mut [i8],
    scales: &'a mut [f32],
    key_dwords: usize,
}

impl LoopKernel for QuantizeKeys<'_> {
    #[inline(always)]
    fn run(self) {
        let from = self.from.chunks_exact(PANEL_WIDTH * self.key_dwords);
        let panels = from.zip(self.to.chunks_exact_mut(ROW_INTS * self.key_dwords));
        for ((from, to), scales) in panels.zip(self.scales.as_chunks_mut::<PANEL_WIDTH>().0) {
            let mut max = [0; PANEL_WIDTH];
            for row in from.as_chunks::<PANEL_WIDTH>().0 {
                for (max, dword) in max.iter_mut().zip(row) {
                    *max = (dword.to_bits() & MAGNITUDE).max(dword.to_bits() >> 16 & MAGNITUDE).max(*max);
                }
            }
            let inverses: [f32; PANEL_WIDTH] = max.map(|max| scale_and_inverse(max).1);
            *scales = max.map(|max| scale_and_inverse(max).0);
            for (from, to) in from.as_chunks::<PANEL_WIDTH>().0.iter().zip(to.as_chunks_mut::<ROW_INTS>().0) {
                quantize_row(from, inverses, inverses, to);
            }
        }
    }
}

/// Quantises the values of one head and block; each token has a scale, the same in all panels.
struct QuantizeValues<'a> {
    from: &'a [f32],
    to: &'a mut [i8],
    scales: &'a mut [f32],
    /// Dwords of a channel.
    value_dwords: usize,
}

impl LoopKernel for QuantizeValues<'_> {
    #[inline(always)]
    fn run(self) {
        let (from, to) = (self.from.as_chunks::<PANEL_WIDTH>().0, self.to.as_chunks_mut::<ROW_INTS>().0);
        for (dword, scales) in (0..self.value_dwords).zip(self.scales.as_chunks_mut::<2>().0) {
            let mut max = [[0; PANEL_WIDTH]; 2];
            for row in from[dword..].iter().step_by(self.value_dwords) {
                for i in 0..PANEL_WIDTH {
                    max[0][i] = (row[i].to_bits() & MAGNITUDE).max(max[0][i]);
                    max[1][i] = (row[i].to_bits() >> 16 & MAGNITUDE).max(max[1][i]);
                }
            }
            let [low, high] = max.map(|max| scale_and_inverse(max.into_iter().fold(0, u32::max)));
            *scales = [low.0, high.0];
            let rows = from[dword..].iter().step_by(self.value_dwords).zip(to[dword..].iter_mut().step_by(self.value_dwords));
            for (from, to) in rows {
                quantize_row(from, [low.1; PANEL_WIDTH], [high.1; PANEL_WIDTH], to);
            }
        }
    }
}

/// Quantises a panel row to the nearest integers, given the inverse scales of its lower and upper elements.
#[inline(always)]
fn quantize_row(from: &[f32; PANEL_WIDTH], low: [f32; PANEL_WIDTH], high: [f32; PANEL_WIDTH], to: &mut [i8; ROW_INTS]) {
    let (lower, upper) = to.split_at_mut(PANEL_WIDTH);
    // Two loops, because the compiler vectorises each of them.
    for i in 0..PANEL_WIDTH {
        lower[i] = (unpack_bf16(from[i])[0] * low[i] + MAGIC_BIAS).to_bits() as i8;
    }
    for i in 0..PANEL_WIDTH {
        upper[i] = (unpack_bf16(from[i])[1] * high[i] + MAGIC_BIAS).to_bits() as i8;
    }
}

/// Dequantises a vector of the lower elements of a panel row and one of the upper elements. With `BF16` both go to `to` as pairs of
/// bf16, rounded to the nearest with ties away from zero; otherwise the upper elements go to the following row.
///
/// # Safety
///
/// The processor has the instructions of `S`. `from` holds a panel row from some lane on, and `to` as many rows as are written.
#[inline(always)]
unsafe fn dequantize_lanes<S: SimdF32, const BF16: bool>(from: *const i8, low: S, high: S, to: *mut f32) {
    // SAFETY: the caller guarantees the conditions above.
    unsafe {
        let lower = S::zero().add_product(S::load_int8(from), low);
        let upper = S::zero().add_product(S::load_int8(from.add(PANEL_WIDTH)), high);
        if BF16 {
            S::interleave_bf16(lower, upper).store(to);
        } else {
            lower.store(to);
            upper.store(to.add(PANEL_WIDTH));
        }
    }
}

/// Memory for one key block, converted to the type that the kernel multiplies.
#[derive(Default)]
pub(super) struct BlockBuffer {
    keys: AlignedVec<f32>,
    values: AlignedVec<f32>,
}

impl BlockBuffer {
    /// Dequantises the key block that begins at token `first` and has `count` tokens: to bf16 with `BF16`, else to f32.
    ///
    /// # Safety
    ///
    /// The processor has the instructions of `S`, and with `BF16` also [`SimdF32::HAS_BF16`].
    #[inline(always)]
    pub(super) unsafe fn dequantize<S: SimdF32, const BF16: bool>(
        &mut self,
        from: &QuantizedHead<'_>,
        first: usize,
        count: usize,
    ) -> PackedHead<'_> {
        let QuantizedKv { heads, key_dwords, value_dim, log2_multiplicity, .. } = *from.kv;
        let (padded, value_dwords) = (count.next_multiple_of(PANEL_WIDTH), dword_count(count, true));
        let scales = head_range(heads, from.head, first, padded, 1);
        let (key_scales, value_scales) = (&from.kv.key_scales[scales.clone()], &from.kv.value_scales[scales]);
        let keys = &from.kv.keys[head_range(heads, from.head, first, padded, 2 * key_dwords)];
        let values = &from.kv.values[head_range(heads, from.head, dword_count(first, true), value_dwords, 2 * value_dim)];
        // Rows of the buffer for a row of integers.
        let rows = if BF16 { 1 } else { 2 };

        self.keys.resize_unspecified(padded * key_dwords * rows);
        let panels = self.keys.chunks_exact_mut(rows * PANEL_WIDTH * key_dwords).zip(keys.chunks_exact(ROW_INTS * key_dwords));
        for ((to, from), scales) in panels.zip(key_scales.as_chunks::<PANEL_WIDTH>().0) {
            for lane in (0..PANEL_WIDTH).step_by(S::LANES) {
                // SAFETY: the caller guarantees that the processor has the instructions. Both panels have a row for each dword.
                unsafe {
                    let scales = S::load(scales.as_ptr().add(lane));
                    for row in 0..key_dwords {
                        let to = to.as_mut_ptr().add(row * rows * PANEL_WIDTH + lane);
                        dequantize_lanes::<S, BF16>(from.as_ptr().add(row * ROW_INTS + lane), scales, scales, to);
                    }
                }
            }
        }

        // An odd last token leaves room for another one in f32, which ends the buffer of the last panel.
        let panel_len = dword_count(count, BF16) * PANEL_WIDTH;
        let panels = value_dim / PANEL_WIDTH;
        self.values.resize_unspecified(panels * panel_len + PANEL_WIDTH);
        assert!(values.len() == panels * value_dwords * ROW_INTS && value_scales.len() >= 2 * value_dwords);
        for (panel, from) in values.chunks_exact(ROW_INTS * value_dwords).enumerate() {
            for (row, [low, high]) in value_scales.as_chunks::<2>().0.iter().enumerate().take(value_dwords) {
                for lane in (0..PANEL_WIDTH).step_by(S::LANES) {
                    // SAFETY: as above. A row after the panel belongs to the next one, which is written later, or to the end.
                    unsafe {
                        let to = self.values.as_mut_ptr().add(panel * panel_len + row * rows * PANEL_WIDTH + lane);
                        dequantize_lanes::<S, BF16>(from.as_ptr().add(row * ROW_INTS + lane), S::splat(*low), S::splat(*high), to);
                    }
                }
            }
        }
        self.block(count, panels * panel_len, log2_multiplicity)
    }

    /// Widens a key block from bf16 to f32: the one that begins at token `first` and has `count` tokens, with keys of `key_dwords`
    /// dwords and values of `value_dim` channels.
    ///
    /// # Safety
    ///
    /// The processor has the instructions of `S`.
    #[inline(always)]
    pub(super) unsafe fn widen<S: SimdF32>(
        &mut self,
        from: &PackedHead<'_>,
        first: usize,
        count: usize,
        key_dwords: usize,
        value_dim: usize,
    ) -> PackedHead<'_> {
        let ([keys, values], value_dwords) = (from.block(first, count, key_dwords, value_dim, true), dword_count(count, true));
        self.keys.resize_unspecified(2 * keys.len());
        let (panels, panel_len) = (value_dim / PANEL_WIDTH, count * PANEL_WIDTH);
        // As above, for an odd last token.
        self.values.resize_unspecified(panels * panel_len + PANEL_WIDTH);
        assert!(keys.len().is_multiple_of(PANEL_WIDTH) && values.len() == panels * value_dwords * PANEL_WIDTH);
        // SAFETY: the caller guarantees that the processor has the instructions. The buffers hold two rows for each row, but for the
        // upper elements of an odd last token, which lie in the next panel, which is written later, or at the end.
        unsafe {
            for row in 0..keys.len() / PANEL_WIDTH {
                widen_row::<S>(keys.as_ptr().add(row * PANEL_WIDTH), self.keys.as_mut_ptr().add(2 * row * PANEL_WIDTH));
            }
            for panel in 0..panels {
                for row in 0..value_dwords {
                    let from = values.as_ptr().add((panel * value_dwords + row) * PANEL_WIDTH);
                    widen_row::<S>(from, self.values.as_mut_ptr().add(panel * panel_len + 2 * row * PANEL_WIDTH));
                }
            }
        }
        self.block(count, panels * panel_len, from.log2_multiplicity)
    }

    /// Returns the buffer as a single block of one head, with the first `values_len` elements of the values.
    fn block(&self, count: usize, values_len: usize, log2_multiplicity: f32) -> PackedHead<'_> {
        PackedHead { keys: &self.keys, values: &self.values[..values_len], tokens: count, heads: 1, head: 0, log2_multiplicity }
    }
}

/// Widens a panel row of pairs of bf16 to two rows of f32.
///
/// # Safety
///
/// The processor has the instructions of `S`; there is a row behind `from`, and two behind `to`.
#[inline(always)]
unsafe fn widen_row<S: SimdF32>(from: *const f32, to: *mut f32) {
    for lane in (0..PANEL_WIDTH).step_by(S::LANES) {
        // SAFETY: the caller guarantees the conditions above.
        unsafe {
            let [low, high] = S::load_bf16_pairs(from.add(lane).cast());
            low.store(to.add(lane));
            high.store(to.add(PANEL_WIDTH + lane));
        }
    }
}
