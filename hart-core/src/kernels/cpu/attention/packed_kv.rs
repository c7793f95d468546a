//! Keys and values in the layout that attention reads, packed once per scale and used by every later scale.

use rayon::prelude::*;

use super::layout::{KEY_BLOCK, PANEL_WIDTH, PackedHead, dword_count, pack_bf16};
use super::token_view::TokenView;
use crate::kernels::cpu::memory::AlignedVec;
use crate::kernels::cpu::simd::{LoopKernel, SimdLevel};
use crate::math;

/// Packed keys and values of one batch row and one scale, all heads. See [`PackedHead`] for the layout.
#[derive(Clone, Debug, Default)]
pub(crate) struct PackedKv {
    keys: AlignedVec<f32>,
    values: AlignedVec<f32>,
    heads: usize,
    tokens: usize,
    /// Base-2 logarithm of the multiplicity of each token.
    log2_multiplicity: f32,
}

impl PackedKv {
    /// Packs keys and values into the memory of `self`; with `bf16`, two bf16 to a dword.
    pub(super) fn pack(mut self, keys: &TokenView<'_>, values: &TokenView<'_>, heads: usize, head_dim: usize, bf16: bool) -> Self {
        let tokens = keys.tokens;
        (self.heads, self.tokens, self.log2_multiplicity) = (heads, tokens, 0.0);
        // Elements of a row of all heads.
        let (key_row, value_row) = (heads * dword_count(head_dim, bf16), heads * head_dim.next_multiple_of(PANEL_WIDTH));
        self.keys.resize_unspecified(tokens.next_multiple_of(PANEL_WIDTH) * key_row);
        self.values.resize_unspecified(dword_count(tokens, bf16) * value_row);
        if key_row * value_row == 0 {
            return self;
        }
        let level = SimdLevel::best();
        let key_blocks = self.keys.par_chunks_mut(KEY_BLOCK * key_row);
        let value_blocks = self.values.par_chunks_mut(dword_count(KEY_BLOCK, bf16) * value_row);
        key_blocks.zip(value_blocks).enumerate().for_each(|(block, (packed_keys, packed_values))| {
            let first = block * KEY_BLOCK;
            let count = (tokens - first).min(KEY_BLOCK);
            level.run_loop(PackBlock { keys, values, first, count, heads, head_dim, bf16, packed_keys, packed_values });
        });
        self
    }

    /// Sets the multiplicity of each token.
    pub(super) fn with_multiplicity(mut self, multiplicity: usize) -> Self {
        self.log2_multiplicity = math::log2(multiplicity as f64) as f32;
        self
    }

    /// Returns the number of heads.
    pub(super) fn heads(&self) -> usize {
        self.heads
    }

    /// Returns the number of tokens.
    pub(super) fn tokens(&self) -> usize {
        self.tokens
    }

    /// Returns one head.
    pub(super) fn head(&self, head: usize) -> PackedHead<'_> {
        PackedHead {
            keys: &self.keys,
            values: &self.values,
            tokens: self.tokens,
            heads: self.heads,
            head,
            log2_multiplicity: self.log2_multiplicity,
        }
    }
}

/// Packs one block of keys and values, all heads.
struct PackBlock<'a> {
    keys: &'a TokenView<'a>,
    values: &'a TokenView<'a>,
    /// First token of the block.
    first: usize,
    /// Tokens of the block.
    count: usize,
    heads: usize,
    head_dim: usize,
    bf16: bool,
    packed_keys: &'a mut [f32],
    packed_values: &'a mut [f32],
}

impl LoopKernel for PackBlock<'_> {
    /// Reads token by token, in the order of the source.
    #[inline(always)]
    fn run(self) {
        // The padding stays zero. With bf16 it also completes the last pair of an odd head_dim.
        let width = self.head_dim.next_multiple_of(PANEL_WIDTH);
        let (key_dwords, value_dwords) = (dword_count(self.head_dim, self.bf16), dword_count(self.count, self.bf16));
        let mut temp = vec![0.0; self.head_dim];
        let mut rows = vec![0.0; PANEL_WIDTH * width];

        // Keys: transpose 16 tokens to `[key dwords][16]`.
        let head_len = self.packed_keys.len() / self.heads;
        let panels = 0..self.count.div_ceil(PANEL_WIDTH);
        for (panel, head) in panels.flat_map(|panel| (0..self.heads).map(move |head| (panel, head))) {
            for (row, to) in rows.chunks_exact_mut(width).enumerate() {
                let token = (panel * PANEL_WIDTH + row).min(self.count - 1);
                self.keys.load(self.first + token, head, &mut temp, to);
            }
            let to = &mut self.packed_keys[head * head_len + panel * key_dwords * PANEL_WIDTH..][..key_dwords * PANEL_WIDTH];
            if self.bf16 {
                for (dword, to) in to.chunks_exact_mut(PANEL_WIDTH).enumerate() {
                    to.iter_mut()
                        .zip(rows.chunks_exact(width))
                        .for_each(|(to, from)| *to = pack_bf16(from[2 * dword], from[2 * dword + 1]));
                }
            } else {
                for (dword, to) in to.chunks_exact_mut(PANEL_WIDTH).enumerate() {
                    to.iter_mut().zip(rows.chunks_exact(width)).for_each(|(to, from)| *to = from[dword]);
                }
            }
        }

        // Values: split the channels of one token, or of a pair of tokens, over the panels.
        rows.fill(0.0);
        let (even, odd) = rows.split_at_mut(width);
        let head_len = self.packed_values.len() / self.heads;
        for (dword, head) in (0..value_dwords).flat_map(|dword| (0..self.heads).map(move |head| (dword, head))) {
            let to = &mut self.packed_values[head * head_len..][..head_len];
            let panel_rows = to.chunks_exact_mut(value_dwords * PANEL_WIDTH);
            let panel_rows = panel_rows.map(|panel| &mut panel[dword * PANEL_WIDTH..][..PANEL_WIDTH]);
            if !self.bf16 {
                self.values.load(self.first + dword, head, &mut temp, even);
                panel_rows.zip(even.chunks_exact(PANEL_WIDTH)).for_each(|(to, from)| to.copy_from_slice(from));
                continue;
            }
            self.values.load(self.first + 2 * dword, head, &mut temp, even);
            if 2 * dword + 1 < self.count {
                self.values.load(self.first + 2 * dword + 1, head, &mut temp, odd);
            } else {
                odd.fill(0.0);
            }
            for (to, (even, odd)) in panel_rows.zip(even.chunks_exact(PANEL_WIDTH).zip(odd.chunks_exact(PANEL_WIDTH))) {
                to.iter_mut().zip(even.iter().zip(odd)).for_each(|(to, (even, odd))| *to = pack_bf16(*even, *odd));
            }
        }
    }
}
