//! Keys and values that wait for later scales in 8-bit integers, a scale for each token of each head: half of what bf16 takes. Whoever
//! asks has them back a block of keys at a time, as two bf16 or one f32 a word, beside whose products that is little work.

use rayon::prelude::*;

use super::super::lanes::{Level, Loop, ROUND};
use super::flash::{KEYS, PANEL, Part, words};
use super::panels::Panels;
use super::rows::pair;

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

/// Where a block is read back to.
#[derive(Default)]
pub(super) struct Decoded {
    keys: Vec<f32>,
    values: Vec<f32>,
}

/// A head's share of a block that begins at token `first` and has `count` tokens, of a whole with so many numbers for each token, or word
/// of two tokens.
fn share(heads: usize, head: usize, first: usize, count: usize, numbers: usize) -> std::ops::Range<usize> {
    let start = (heads * first + head * count) * numbers;
    start..start + count * numbers
}

/// What to multiply integers by, and numbers to become integers.
fn scale_of(largest: f32) -> (f32, f32) {
    if largest > f32::MIN_POSITIVE * LARGEST { (largest / LARGEST, LARGEST / largest) } else { (0.0, 0.0) }
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
        let level = Level::best();
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

/// Panels of keys, each with a scale.
struct RoundKeys<'a> {
    from: &'a [f32],
    to: &'a mut [i8],
    scales: &'a mut [f32],
    depth: usize,
}

impl Loop for RoundKeys<'_> {
    #[inline(always)]
    fn run(self) {
        let panels = self.from.chunks_exact(PANEL * self.depth).zip(self.to.chunks_exact_mut(ROW * self.depth));
        for ((from, to), scales) in panels.zip(self.scales.as_chunks_mut::<PANEL>().0) {
            let mut largest = [0.0f32; PANEL];
            for row in from.as_chunks::<PANEL>().0 {
                for (largest, word) in largest.iter_mut().zip(row) {
                    let [low, high] = unpaired(*word);
                    *largest = largest.max(low.abs()).max(high.abs());
                }
            }
            let inverses: [f32; PANEL] = std::array::from_fn(|i| scale_of(largest[i]).1);
            *scales = largest.map(|largest| scale_of(largest).0);
            for (from, to) in from.as_chunks::<PANEL>().0.iter().zip(to.as_chunks_mut::<ROW>().0) {
                for i in 0..PANEL {
                    let [low, high] = unpaired(from[i]);
                    (to[i], to[PANEL + i]) = (nearest(low * inverses[i]), nearest(high * inverses[i]));
                }
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

impl Loop for RoundValues<'_> {
    #[inline(always)]
    fn run(self) {
        let panels = |from: &'_ [f32]| from.len() / (PANEL * self.length);
        let row = |panel: usize, word: usize| (panel * self.length + word) * PANEL;
        for (word, scales) in (0..self.length).zip(self.scales.as_chunks_mut::<2>().0) {
            let mut largest = [[0.0f32; PANEL]; 2];
            for panel in 0..panels(self.from) {
                let from = &self.from[row(panel, word)..][..PANEL];
                for i in 0..PANEL {
                    let [low, high] = unpaired(from[i]);
                    (largest[0][i], largest[1][i]) = (largest[0][i].max(low.abs()), largest[1][i].max(high.abs()));
                }
            }
            let largest = largest.map(|lanes| lanes.into_iter().fold(0.0, f32::max));
            let inverses = largest.map(|largest| scale_of(largest).1);
            *scales = largest.map(|largest| scale_of(largest).0);
            for panel in 0..panels(self.from) {
                let from = &self.from[row(panel, word)..][..PANEL];
                let to = &mut self.to[2 * row(panel, word)..][..ROW];
                for i in 0..PANEL {
                    let [low, high] = unpaired(from[i]);
                    (to[i], to[PANEL + i]) = (nearest(low * inverses[0]), nearest(high * inverses[1]));
                }
            }
        }
    }
}

/// The nearest integer, of a number between -127 and 127.
#[inline(always)]
fn nearest(x: f32) -> i8 {
    (x + ROUND).to_bits() as i8
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
        self.keys.resize(padded / PANEL * panel, 0.0);
        let panels = self.keys.chunks_exact_mut(panel).zip(keys.chunks_exact(ROW * depth));
        for ((to, from), scales) in panels.zip(key_scales.chunks_exact(PANEL)) {
            if PAIRS {
                for (to, from) in to.chunks_exact_mut(PANEL).zip(from.chunks_exact(ROW)) {
                    for i in 0..PANEL {
                        to[i] = pair(f32::from(from[i]) * scales[i], f32::from(from[PANEL + i]) * scales[i]);
                    }
                }
            } else {
                for (to, from) in to.chunks_exact_mut(PANEL).zip(from.chunks_exact(PANEL)) {
                    for i in 0..PANEL {
                        to[i] = f32::from(from[i]) * scales[i];
                    }
                }
            }
        }
        let values = &part.of.values[share(heads, part.head, words(first, true), length, 2 * channels)];
        let panel = words(count, PAIRS) * PANEL;
        self.values.resize(channels / PANEL * panel, 0.0);
        for (to, from) in self.values.chunks_exact_mut(panel).zip(values.chunks_exact(ROW * length)) {
            if PAIRS {
                let rows = to.chunks_exact_mut(PANEL).zip(from.chunks_exact(ROW));
                for ((to, from), scales) in rows.zip(value_scales.chunks_exact(2)) {
                    for i in 0..PANEL {
                        to[i] = pair(f32::from(from[i]) * scales[0], f32::from(from[PANEL + i]) * scales[1]);
                    }
                }
            } else {
                for ((to, from), scale) in to.chunks_exact_mut(PANEL).zip(from.chunks_exact(PANEL)).zip(value_scales) {
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
        let (padded, length) = (count.next_multiple_of(PANEL), words(count, true));
        let keys = &part.keys[share(part.heads, part.head, first, padded, depth)];
        self.keys.resize(2 * keys.len(), 0.0);
        for (to, from) in self.keys.chunks_exact_mut(ROW).zip(keys.chunks_exact(PANEL)) {
            for i in 0..PANEL {
                [to[i], to[PANEL + i]] = unpaired(from[i]);
            }
        }
        let values = &part.values[share(part.heads, part.head, words(first, true), length, channels)];
        self.values.resize(channels * count, 0.0);
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
