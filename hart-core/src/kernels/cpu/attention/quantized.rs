//! Keys and values that wait for later scales in 8-bit integers, a scale for each token of each head: half of what bf16 takes. Whoever
//! asks has them back a block of keys at a time, as two bf16 or one f32 a word, beside whose products that is little work.

use rayon::prelude::*;

use super::layout::{KEYS, PANEL, Part, share, words};
use super::panels::Panels;
use crate::kernels::cpu::memory::AlignedVec;
use crate::kernels::cpu::simd::{LoopKernel, MAGIC_BIAS, SimdLevel};

/// The largest integer; the smallest is its negative.
const LARGEST: f32 = 127.0;
/// Bytes of a row of a panel: the lower numbers of its words, then the higher ones.
const ROW: usize = 2 * PANEL;

/// What [`Panels`] of pairs hold, rounded, in the same order.
#[derive(Clone, Debug)]
pub(crate) struct Rounded {
    keys: Vec<i8>,
    values: Vec<i8>,
    /// `[heads][tokens, whole panels]` for each block.
    key_scales: Vec<f32>,
    value_scales: Vec<f32>,
    heads: usize,
    tokens: usize,
    /// Words of a key.
    depth: usize,
    /// Channels of a value, whole panels.
    channels: usize,
    log_weight: f32,
}

/// One head's.
#[derive(Clone, Copy, Debug)]
pub(super) struct RoundedPart<'a> {
    of: &'a Rounded,
    head: usize,
}

/// Keys and values of one head as they are kept.
#[derive(Clone, Copy, Debug)]
pub(super) enum Source<'a> {
    Packed(Part<'a>),
    Rounded(RoundedPart<'a>),
}

impl Source<'_> {
    pub(super) fn count(&self) -> usize {
        match self {
            Self::Packed(part) => part.count,
            Self::Rounded(part) => part.count(),
        }
    }
}

/// Where a block is read back to.
#[derive(Default)]
pub(super) struct Decoded {
    keys: AlignedVec<f32>,
    values: AlignedVec<f32>,
}

/// What to multiply integers by, and numbers to become integers; of the largest number's bits, without a sign.
#[inline(always)]
fn scale_of(largest: u32) -> (f32, f32) {
    let largest = f32::from_bits(largest << 16);
    if largest <= f32::MIN_POSITIVE * LARGEST { (0.0, 0.0) } else { (largest / LARGEST, LARGEST / largest) }
}

/// The two bf16 of a word.
#[inline(always)]
fn unpaired(word: f32) -> [f32; 2] {
    [f32::from_bits(word.to_bits() << 16), f32::from_bits(word.to_bits() & 0xffff_0000)]
}

impl Rounded {
    /// Rounds panels of pairs, whose keys have so many channels.
    pub(super) fn of(panels: &Panels, channels: usize) -> Self {
        let (heads, tokens, part) = (panels.heads(), panels.tokens(), panels.part(0));
        let (depth, channels) = (words(channels, true), channels.next_multiple_of(PANEL));
        let (padded, length) = (tokens.next_multiple_of(PANEL), words(tokens, true));
        let mut all = Self {
            keys: vec![0; heads * padded * 2 * depth],
            values: vec![0; heads * length * 2 * channels],
            key_scales: vec![0.0; heads * padded],
            value_scales: vec![0.0; heads * padded],
            heads,
            tokens,
            depth,
            channels,
            log_weight: part.log_weight,
        };
        let level = SimdLevel::best();
        // Blocks lie one behind the other, and a block's heads too; only the last block is shorter.
        let keys = all.keys.par_chunks_mut(heads * KEYS * 2 * depth).zip(all.key_scales.par_chunks_mut(heads * KEYS));
        let values =
            all.values.par_chunks_mut(heads * words(KEYS, true) * 2 * channels).zip(all.value_scales.par_chunks_mut(heads * KEYS));
        keys.zip(values).enumerate().for_each(|(block, ((keys, key_scales), (values, value_scales)))| {
            let first = block * KEYS;
            let count = (tokens - first).min(KEYS);
            let (padded, length) = (count.next_multiple_of(PANEL), words(count, true));
            let keys = keys.par_chunks_mut(padded * 2 * depth).zip(key_scales.par_chunks_mut(padded));
            let values = values.par_chunks_mut(length * 2 * channels).zip(value_scales.par_chunks_mut(padded));
            keys.zip(values).enumerate().for_each(|(head, ((keys, key_scales), (values, value_scales)))| {
                let from_keys = &part.keys[share(heads, head, first, padded, depth)];
                let from_values = &part.values[share(heads, head, words(first, true), length, channels)];
                level.run_loop(RoundKeys { from: from_keys, to: keys, scales: key_scales, depth });
                level.run_loop(RoundValues { from: from_values, to: values, scales: value_scales, length });
            });
        });
        all
    }

    /// One head's.
    pub(super) fn part(&self, head: usize) -> RoundedPart<'_> {
        assert!(head < self.heads, "there are {} heads", self.heads);
        RoundedPart { of: self, head }
    }
}

/// Bits of bf16 without their sign: as whole numbers they keep their order, and what is not a number lies above all.
const SIZE: u32 = 0x7fff;

/// Panels of keys, each with a scale.
struct RoundKeys<'a> {
    from: &'a [f32],
    to: &'a mut [i8],
    scales: &'a mut [f32],
    depth: usize,
}

impl LoopKernel for RoundKeys<'_> {
    #[inline(always)]
    fn run(self) {
        let panels = self.from.chunks_exact(PANEL * self.depth).zip(self.to.chunks_exact_mut(ROW * self.depth));
        for ((from, to), scales) in panels.zip(self.scales.as_chunks_mut::<PANEL>().0) {
            let mut largest = [0; PANEL];
            for row in from.as_chunks::<PANEL>().0 {
                for (largest, word) in largest.iter_mut().zip(row) {
                    *largest = (word.to_bits() & SIZE).max(word.to_bits() >> 16 & SIZE).max(*largest);
                }
            }
            let inverses: [f32; PANEL] = largest.map(|largest| scale_of(largest).1);
            *scales = largest.map(|largest| scale_of(largest).0);
            for (from, to) in from.as_chunks::<PANEL>().0.iter().zip(to.as_chunks_mut::<ROW>().0) {
                round(from, inverses, inverses, to);
            }
        }
    }
}

/// Panels of values, whose tokens have a scale in all panels.
struct RoundValues<'a> {
    from: &'a [f32],
    to: &'a mut [i8],
    scales: &'a mut [f32],
    /// Words of a panel's channel.
    length: usize,
}

impl LoopKernel for RoundValues<'_> {
    #[inline(always)]
    fn run(self) {
        let (from, to) = (self.from.as_chunks::<PANEL>().0, self.to.as_chunks_mut::<ROW>().0);
        for (word, scales) in (0..self.length).zip(self.scales.as_chunks_mut::<2>().0) {
            let mut largest = [[0; PANEL]; 2];
            for row in from[word..].iter().step_by(self.length) {
                for i in 0..PANEL {
                    largest[0][i] = (row[i].to_bits() & SIZE).max(largest[0][i]);
                    largest[1][i] = (row[i].to_bits() >> 16 & SIZE).max(largest[1][i]);
                }
            }
            let [low, high] = largest.map(|lanes| scale_of(lanes.into_iter().fold(0, u32::max)));
            *scales = [low.0, high.0];
            for (from, to) in from[word..].iter().step_by(self.length).zip(to[word..].iter_mut().step_by(self.length)) {
                round(from, [low.1; PANEL], [high.1; PANEL], to);
            }
        }
    }
}

/// The nearest integers of a row of words, times what brings them between -127 and 127.
#[inline(always)]
fn round(from: &[f32; PANEL], low: [f32; PANEL], high: [f32; PANEL], to: &mut [i8; ROW]) {
    let (lower, upper) = to.split_at_mut(PANEL);
    // One after the other, of which the compiler makes vectors.
    for i in 0..PANEL {
        lower[i] = (unpaired(from[i])[0] * low[i] + MAGIC_BIAS).to_bits() as i8;
    }
    for i in 0..PANEL {
        upper[i] = (unpaired(from[i])[1] * high[i] + MAGIC_BIAS).to_bits() as i8;
    }
}

/// And back.
#[inline(always)]
fn widen(from: &[i8; ROW], low: [f32; PANEL], high: [f32; PANEL], to: &mut [f32; PANEL]) {
    let (mut lower, mut upper) = ([0.0; PANEL], [0.0; PANEL]);
    for i in 0..PANEL {
        lower[i] = f32::from(from[i]) * low[i];
    }
    for i in 0..PANEL {
        upper[i] = f32::from(from[PANEL + i]) * high[i];
    }
    // To the nearest bf16; which one of two equally near ones, doesn't matter here.
    let rounded = |x: f32| x.to_bits().wrapping_add(0x8000);
    for i in 0..PANEL {
        to[i] = f32::from_bits(rounded(lower[i]) >> 16 | rounded(upper[i]) & 0xffff_0000);
    }
}

impl<'a> RoundedPart<'a> {
    pub(super) fn count(&self) -> usize {
        self.of.tokens
    }

    /// Whether queries of so many words may ask for values of so many channels.
    pub(super) fn fits(&self, depth: usize, channels: usize) -> bool {
        (self.of.depth, self.of.channels) == (depth, channels)
    }
}

impl Decoded {
    /// The block of rounded keys and values that begins at token `first` and has `count` tokens; `PAIRS`: two bf16 a word.
    #[inline(always)]
    pub(super) fn read<const PAIRS: bool>(&mut self, part: &RoundedPart<'_>, first: usize, count: usize) -> Part<'_> {
        let Rounded { heads, depth, channels, log_weight, .. } = *part.of;
        let (padded, length) = (count.next_multiple_of(PANEL), words(count, true));
        let scales = share(heads, part.head, first, padded, 1);
        let (key_scales, value_scales) = (&part.of.key_scales[scales.clone()], &part.of.value_scales[scales]);
        let keys = &part.of.keys[share(heads, part.head, first, padded, 2 * depth)];
        let panel = if PAIRS { PANEL * depth } else { ROW * depth };
        self.keys.resize_unspecified(padded / PANEL * panel);
        let panels = self.keys.chunks_exact_mut(panel).zip(keys.chunks_exact(ROW * depth));
        for ((to, from), scales) in panels.zip(key_scales.as_chunks::<PANEL>().0) {
            if PAIRS {
                for (to, from) in to.as_chunks_mut().0.iter_mut().zip(from.as_chunks().0) {
                    widen(from, *scales, *scales, to);
                }
            } else {
                for (to, from) in to.as_chunks_mut::<PANEL>().0.iter_mut().zip(from.as_chunks::<PANEL>().0) {
                    for i in 0..PANEL {
                        to[i] = f32::from(from[i]) * scales[i];
                    }
                }
            }
        }
        let values = &part.of.values[share(heads, part.head, words(first, true), length, 2 * channels)];
        let panel = words(count, PAIRS) * PANEL;
        self.values.resize_unspecified(channels / PANEL * panel);
        for (to, from) in self.values.chunks_exact_mut(panel).zip(values.chunks_exact(ROW * length)) {
            if PAIRS {
                let rows = to.as_chunks_mut().0.iter_mut().zip(from.as_chunks().0);
                for ((to, from), [low, high]) in rows.zip(value_scales.as_chunks::<2>().0) {
                    widen(from, [*low; PANEL], [*high; PANEL], to);
                }
            } else {
                let rows = to.as_chunks_mut::<PANEL>().0.iter_mut().zip(from.as_chunks::<PANEL>().0);
                for ((to, from), scale) in rows.zip(value_scales) {
                    for i in 0..PANEL {
                        to[i] = f32::from(from[i]) * scale;
                    }
                }
            }
        }
        self.part(count, log_weight)
    }

    /// The block of pairs that begins at token `first` and has `count` tokens as f32, of keys of `depth` words and so many channels.
    #[inline(always)]
    pub(super) fn widened(&mut self, part: &Part<'_>, first: usize, count: usize, depth: usize, channels: usize) -> Part<'_> {
        let ([keys, values], length) = (part.block(first, count, depth, channels, true), words(count, true));
        self.keys.resize_unspecified(2 * keys.len());
        for (to, from) in self.keys.chunks_exact_mut(ROW).zip(keys.chunks_exact(PANEL)) {
            for i in 0..PANEL {
                [to[i], to[PANEL + i]] = unpaired(from[i]);
            }
        }
        self.values.resize_unspecified(channels * count);
        for (to, from) in self.values.chunks_exact_mut(PANEL * count).zip(values.chunks_exact(PANEL * length)) {
            for (to, from) in to.chunks_mut(ROW).zip(from.chunks_exact(PANEL)) {
                let (even, odd) = to.split_at_mut(PANEL);
                even.iter_mut().zip(from).for_each(|(to, word)| *to = unpaired(*word)[0]);
                odd.iter_mut().zip(from).for_each(|(to, word)| *to = unpaired(*word)[1]);
            }
        }
        self.part(count, part.log_weight)
    }

    fn part(&self, count: usize, log_weight: f32) -> Part<'_> {
        Part { keys: &self.keys, values: &self.values, count, heads: 1, head: 0, log_weight }
    }
}
