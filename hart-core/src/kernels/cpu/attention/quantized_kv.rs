//! Keys and values of earlier scales in 8-bit integers, with one scale per token and head: half the memory of bf16.
//!
//! Attention dequantises one key block at a time, to bf16 or f32. This costs little compared with the products of the block.

use rayon::prelude::*;

use super::layout::{KEY_BLOCK, PANEL_WIDTH, PackedHead, dword_count, head_range, unpack_bf16};
use super::packed_kv::PackedKv;
use crate::kernels::cpu::memory::AlignedVec;
use crate::kernels::cpu::simd::{LoopKernel, MAGIC_BIAS, SimdLevel};

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

/// Dequantises a panel row to pairs of bf16, given the scales of its lower and upper elements.
#[inline(always)]
fn dequantize_row(from: &[i8; ROW_INTS], low: [f32; PANEL_WIDTH], high: [f32; PANEL_WIDTH], to: &mut [f32; PANEL_WIDTH]) {
    let (mut lower, mut upper) = ([0.0; PANEL_WIDTH], [0.0; PANEL_WIDTH]);
    for i in 0..PANEL_WIDTH {
        lower[i] = f32::from(from[i]) * low[i];
    }
    for i in 0..PANEL_WIDTH {
        upper[i] = f32::from(from[PANEL_WIDTH + i]) * high[i];
    }
    // Round to the nearest bf16. Ties may round either way.
    let rounded = |x: f32| x.to_bits().wrapping_add(0x8000);
    for i in 0..PANEL_WIDTH {
        to[i] = f32::from_bits(rounded(lower[i]) >> 16 | rounded(upper[i]) & 0xffff_0000);
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
    #[inline(always)]
    pub(super) fn dequantize<const BF16: bool>(&mut self, from: &QuantizedHead<'_>, first: usize, count: usize) -> PackedHead<'_> {
        let QuantizedKv { heads, key_dwords, value_dim, log2_multiplicity, .. } = *from.kv;
        let (padded, value_dwords) = (count.next_multiple_of(PANEL_WIDTH), dword_count(count, true));
        let scales = head_range(heads, from.head, first, padded, 1);
        let (key_scales, value_scales) = (&from.kv.key_scales[scales.clone()], &from.kv.value_scales[scales]);

        let keys = &from.kv.keys[head_range(heads, from.head, first, padded, 2 * key_dwords)];
        let panel_len = if BF16 { PANEL_WIDTH * key_dwords } else { ROW_INTS * key_dwords };
        self.keys.resize_unspecified(padded / PANEL_WIDTH * panel_len);
        let panels = self.keys.chunks_exact_mut(panel_len).zip(keys.chunks_exact(ROW_INTS * key_dwords));
        for ((to, from), scales) in panels.zip(key_scales.as_chunks::<PANEL_WIDTH>().0) {
            if BF16 {
                for (to, from) in to.as_chunks_mut().0.iter_mut().zip(from.as_chunks().0) {
                    dequantize_row(from, *scales, *scales, to);
                }
            } else {
                for (to, from) in to.as_chunks_mut::<PANEL_WIDTH>().0.iter_mut().zip(from.as_chunks::<PANEL_WIDTH>().0) {
                    for i in 0..PANEL_WIDTH {
                        to[i] = f32::from(from[i]) * scales[i];
                    }
                }
            }
        }

        let values = &from.kv.values[head_range(heads, from.head, dword_count(first, true), value_dwords, 2 * value_dim)];
        let panel_len = dword_count(count, BF16) * PANEL_WIDTH;
        self.values.resize_unspecified(value_dim / PANEL_WIDTH * panel_len);
        for (to, from) in self.values.chunks_exact_mut(panel_len).zip(values.chunks_exact(ROW_INTS * value_dwords)) {
            if BF16 {
                let rows = to.as_chunks_mut().0.iter_mut().zip(from.as_chunks().0);
                for ((to, from), [low, high]) in rows.zip(value_scales.as_chunks::<2>().0) {
                    dequantize_row(from, [*low; PANEL_WIDTH], [*high; PANEL_WIDTH], to);
                }
            } else {
                let rows = to.as_chunks_mut::<PANEL_WIDTH>().0.iter_mut().zip(from.as_chunks::<PANEL_WIDTH>().0);
                for ((to, from), scale) in rows.zip(value_scales) {
                    for i in 0..PANEL_WIDTH {
                        to[i] = f32::from(from[i]) * scale;
                    }
                }
            }
        }
        self.block(count, log2_multiplicity)
    }

    /// Widens a key block from bf16 to f32: the one that begins at token `first` and has `count` tokens, with keys of `key_dwords`
    /// dwords and values of `value_dim` channels.
    #[inline(always)]
    pub(super) fn widen(
        &mut self,
        from: &PackedHead<'_>,
        first: usize,
        count: usize,
        key_dwords: usize,
        value_dim: usize,
    ) -> PackedHead<'_> {
        let ([keys, values], value_dwords) = (from.block(first, count, key_dwords, value_dim, true), dword_count(count, true));
        self.keys.resize_unspecified(2 * keys.len());
        for (to, from) in self.keys.chunks_exact_mut(2 * PANEL_WIDTH).zip(keys.chunks_exact(PANEL_WIDTH)) {
            for i in 0..PANEL_WIDTH {
                [to[i], to[PANEL_WIDTH + i]] = unpack_bf16(from[i]);
            }
        }
        self.values.resize_unspecified(value_dim * count);
        for (to, from) in self.values.chunks_exact_mut(PANEL_WIDTH * count).zip(values.chunks_exact(PANEL_WIDTH * value_dwords)) {
            for (to, from) in to.chunks_mut(2 * PANEL_WIDTH).zip(from.chunks_exact(PANEL_WIDTH)) {
                let (even, odd) = to.split_at_mut(PANEL_WIDTH);
                even.iter_mut().zip(from).for_each(|(to, dword)| *to = unpack_bf16(*dword)[0]);
                odd.iter_mut().zip(from).for_each(|(to, dword)| *to = unpack_bf16(*dword)[1]);
            }
        }
        self.block(count, from.log2_multiplicity)
    }

    /// Returns the buffer as a single block of one head.
    fn block(&self, count: usize, log2_multiplicity: f32) -> PackedHead<'_> {
        PackedHead { keys: &self.keys, values: &self.values, tokens: count, heads: 1, head: 0, log2_multiplicity }
    }
}
