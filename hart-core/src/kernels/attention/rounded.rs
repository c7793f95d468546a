//! Keys and values that wait for later scales in 8-bit integers, a scale for each token of each head: half of what bf16 takes. Whoever
//! asks has them back a block of keys at a time, as two bf16 or one f32 a word, beside whose products that is little work.

use rayon::prelude::*;

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
        let (heads, tokens, log_weight) = (panels.heads(), panels.tokens(), panels.part(0).log_weight);
        let (depth, channels) = (words(channels, true), channels.next_multiple_of(PANEL));
        let places: Vec<(usize, usize, usize)> = (0..tokens)
            .step_by(KEYS)
            .flat_map(|first| (0..heads).map(move |head| (first, (tokens - first).min(KEYS), head)))
            .collect();
        let part = panels.part(0);
        let round = |&(first, count, head): &(usize, usize, usize)| {
            let (padded, length) = (count.next_multiple_of(PANEL), words(count, true));
            let keys = &part.keys[share(heads, head, first, padded, depth)];
            let values = &part.values[share(heads, head, words(first, true), length, channels)];
            let (mut key_scales, mut value_scales) = (vec![0.0f32; padded], vec![0.0f32; padded]);
            for (panel, scales) in keys.chunks_exact(PANEL * depth).zip(key_scales.chunks_exact_mut(PANEL)) {
                for (index, word) in panel.iter().enumerate() {
                    let [low, high] = unpaired(*word);
                    scales[index % PANEL] = scales[index % PANEL].max(low.abs()).max(high.abs());
                }
            }
            for panel in values.chunks_exact(PANEL * length) {
                for (index, word) in panel.iter().enumerate() {
                    let place = index / PANEL * 2;
                    for (scale, number) in value_scales[place..].iter_mut().zip(unpaired(*word)) {
                        *scale = scale.max(number.abs());
                    }
                }
            }
            let inverses = |scales: &mut [f32]| -> Vec<f32> {
                let inverse = |scale: &mut f32| {
                    let (step, inverse) = scale_of(*scale);
                    *scale = step;
                    inverse
                };
                scales.iter_mut().map(inverse).collect()
            };
            let (of_keys, of_values) = (inverses(&mut key_scales), inverses(&mut value_scales));
            let mut bytes = [Vec::with_capacity(2 * keys.len()), Vec::with_capacity(2 * values.len())];
            let [to_keys, to_values] = &mut bytes;
            for (panel, inverses) in keys.chunks_exact(PANEL * depth).zip(of_keys.chunks_exact(PANEL)) {
                for row in panel.chunks_exact(PANEL) {
                    for half in 0..2 {
                        to_keys.extend(
                            row.iter().zip(inverses).map(|(word, inverse)| (unpaired(*word)[half] * inverse).round() as i8),
                        );
                    }
                }
            }
            for panel in values.chunks_exact(PANEL * length) {
                for (row, inverses) in panel.chunks_exact(PANEL).zip(of_values.chunks_exact(2)) {
                    for (half, inverse) in inverses.iter().enumerate() {
                        to_values.extend(row.iter().map(|word| (unpaired(*word)[half] * inverse).round() as i8));
                    }
                }
            }
            (bytes, key_scales, value_scales)
        };
        let mut all = Self {
            keys: Vec::new(),
            values: Vec::new(),
            key_scales: Vec::new(),
            value_scales: Vec::new(),
            heads,
            tokens,
            depth,
            channels,
            log_weight,
        };
        let rounded: Vec<_> = places.par_iter().map(round).collect();
        all.keys.reserve_exact(rounded.iter().map(|part| part.0[0].len()).sum());
        all.values.reserve_exact(rounded.iter().map(|part| part.0[1].len()).sum());
        for ([keys, values], key_scales, value_scales) in rounded {
            all.keys.extend(keys);
            all.values.extend(values);
            all.key_scales.extend(key_scales);
            all.value_scales.extend(value_scales);
        }
        all
    }

    /// One head's.
    pub(super) fn part(&self, head: usize) -> RoundedPart<'_> {
        assert!(head < self.heads, "there are {} heads", self.heads);
        RoundedPart { of: self, head }
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
