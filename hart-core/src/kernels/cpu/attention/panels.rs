//! Keys and values as [`super::flash`] reads them: packed once, when they come, and used by every later scale.

use rayon::prelude::*;

use super::layout::{KEYS, PANEL, Part, words};
use super::rows::{Rows, pair};
use crate::kernels::cpu::memory::AlignedVec;
use crate::kernels::cpu::simd::{LoopKernel, SimdLevel};

/// Keys and values of one row's tokens that came together, all heads, in blocks as [`Part`] tells.
#[derive(Clone, Debug, Default)]
pub(crate) struct Panels {
    keys: AlignedVec<f32>,
    values: AlignedVec<f32>,
    heads: usize,
    tokens: usize,
    /// Base-2 logarithm of how often each token counts.
    log_weight: f32,
}

impl Panels {
    /// Packs keys and values, in the memory of earlier ones; `pairs`: two bf16 a word.
    pub(super) fn packed(mut self, keys: &Rows<'_>, values: &Rows<'_>, heads: usize, channels: usize, pairs: bool) -> Self {
        let tokens = keys.tokens;
        (self.heads, self.tokens, self.log_weight) = (heads, tokens, 0.0);
        // Words of a token in all heads.
        let (key, value) = (heads * words(channels, pairs), heads * channels.next_multiple_of(PANEL));
        self.keys.resize_unspecified(tokens.next_multiple_of(PANEL) * key);
        self.values.resize_unspecified(words(tokens, pairs) * value);
        if key * value == 0 {
            return self;
        }
        let level = SimdLevel::best();
        let blocks = self.keys.par_chunks_mut(KEYS * key).zip(self.values.par_chunks_mut(words(KEYS, pairs) * value));
        blocks.enumerate().for_each(|(block, (to_keys, to_values))| {
            let first = block * KEYS;
            let count = (tokens - first).min(KEYS);
            level.run_loop(Pack { keys, values, first, count, heads, channels, pairs, to_keys, to_values });
        });
        self
    }

    /// Lets every token count several times.
    pub(super) fn counting(mut self, times: usize) -> Self {
        self.log_weight = (times as f64).log2() as f32;
        self
    }

    pub(super) fn heads(&self) -> usize {
        self.heads
    }

    pub(super) fn tokens(&self) -> usize {
        self.tokens
    }

    /// One head's.
    pub(super) fn part(&self, head: usize) -> Part<'_> {
        Part { keys: &self.keys, values: &self.values, count: self.tokens, heads: self.heads, head, log_weight: self.log_weight }
    }
}

/// A block of tokens into panels.
struct Pack<'a> {
    keys: &'a Rows<'a>,
    values: &'a Rows<'a>,
    first: usize,
    count: usize,
    heads: usize,
    channels: usize,
    pairs: bool,
    to_keys: &'a mut [f32],
    to_values: &'a mut [f32],
}

impl LoopKernel for Pack<'_> {
    /// Token by token, as they lie.
    #[inline(always)]
    fn run(self) {
        // Zeros behind the last channel, at least one where two are a word.
        let width = self.channels.next_multiple_of(PANEL);
        let (depth, length) = (words(self.channels, self.pairs), words(self.count, self.pairs));
        let mut bare = vec![0.0; self.channels];
        let mut rows = vec![0.0; PANEL * width];
        let to_keys = self.to_keys.len() / self.heads;
        for (panel, head) in (0..self.count.div_ceil(PANEL)).flat_map(|panel| (0..self.heads).map(move |head| (panel, head))) {
            for (row, to) in rows.chunks_exact_mut(width).enumerate() {
                let token = (panel * PANEL + row).min(self.count - 1);
                self.keys.prepare(self.first + token, head, &mut bare, to);
            }
            let to = &mut self.to_keys[head * to_keys + panel * depth * PANEL..][..depth * PANEL];
            if self.pairs {
                for (word, to) in to.chunks_exact_mut(PANEL).enumerate() {
                    to.iter_mut()
                        .zip(rows.chunks_exact(width))
                        .for_each(|(to, from)| *to = pair(from[2 * word], from[2 * word + 1]));
                }
            } else {
                for (word, to) in to.chunks_exact_mut(PANEL).enumerate() {
                    to.iter_mut().zip(rows.chunks_exact(width)).for_each(|(to, from)| *to = from[word]);
                }
            }
        }
        rows.fill(0.0);
        let (even, odd) = rows.split_at_mut(width);
        let to_values = self.to_values.len() / self.heads;
        for (word, head) in (0..length).flat_map(|word| (0..self.heads).map(move |head| (word, head))) {
            let to = &mut self.to_values[head * to_values..][..to_values];
            let places = to.chunks_exact_mut(length * PANEL).map(|panel| &mut panel[word * PANEL..][..PANEL]);
            if !self.pairs {
                self.values.prepare(self.first + word, head, &mut bare, even);
                places.zip(even.chunks_exact(PANEL)).for_each(|(to, from)| to.copy_from_slice(from));
                continue;
            }
            self.values.prepare(self.first + 2 * word, head, &mut bare, even);
            if 2 * word + 1 < self.count {
                self.values.prepare(self.first + 2 * word + 1, head, &mut bare, odd);
            } else {
                odd.fill(0.0);
            }
            for (to, (even, odd)) in places.zip(even.chunks_exact(PANEL).zip(odd.chunks_exact(PANEL))) {
                to.iter_mut().zip(even.iter().zip(odd)).for_each(|(to, (even, odd))| *to = pair(*even, *odd));
            }
        }
    }
}
