//! Keys and values as [`super::flash`] reads them: packed once, when they come, and used by every later scale.

use rayon::prelude::*;

use super::super::lanes::{Level, Loop};
use super::flash::{PANEL, Part, words};
use super::rows::{Rows, pair};

/// Keys and values of one row's tokens that came together, all heads.
#[derive(Clone, Debug, Default)]
pub(crate) struct Panels {
    /// `[heads][tokens / 8][words of a key][8]`.
    keys: Vec<f32>,
    /// `[heads][channels / 8][words of a channel][8]`.
    values: Vec<f32>,
    channels: usize,
    tokens: usize,
    pairs: bool,
    /// Base-2 logarithm of how often each token counts.
    log_weight: f32,
}

impl Panels {
    /// Packs keys and values, in the memory of earlier ones; `pairs`: two bf16 a word.
    pub(super) fn packed(mut self, keys: &Rows<'_>, values: &Rows<'_>, heads: usize, channels: usize, pairs: bool) -> Self {
        (self.channels, self.tokens, self.pairs, self.log_weight) = (channels, keys.tokens, pairs, 0.0);
        let (for_keys, for_values) = self.lengths();
        self.keys.resize(heads * for_keys, 0.0);
        self.values.resize(heads * for_values, 0.0);
        if self.tokens == 0 || channels == 0 {
            return self;
        }
        let level = Level::best();
        let packed = self.keys.par_chunks_mut(for_keys).zip(self.values.par_chunks_mut(for_values));
        packed.enumerate().for_each(|(head, (to_keys, to_values))| {
            level.run_loop(Pack { keys, values, head, channels, pairs, to_keys, to_values });
        });
        self
    }

    /// Lets every token count several times.
    pub(super) fn counting(mut self, times: usize) -> Self {
        self.log_weight = (times as f64).log2() as f32;
        self
    }

    /// One head's.
    pub(super) fn part(&self, head: usize) -> Part<'_> {
        let (for_keys, for_values) = self.lengths();
        Part {
            keys: &self.keys[head * for_keys..][..for_keys],
            values: &self.values[head * for_values..][..for_values],
            count: self.tokens,
            log_weight: self.log_weight,
        }
    }

    /// Words of a head's keys and values.
    fn lengths(&self) -> (usize, usize) {
        let keys = self.tokens.next_multiple_of(PANEL) * words(self.channels, self.pairs);
        (keys, self.channels.next_multiple_of(PANEL) * words(self.tokens, self.pairs))
    }
}

/// One head's tokens into panels.
struct Pack<'a> {
    keys: &'a Rows<'a>,
    values: &'a Rows<'a>,
    head: usize,
    channels: usize,
    pairs: bool,
    to_keys: &'a mut [f32],
    to_values: &'a mut [f32],
}

impl Loop for Pack<'_> {
    #[inline(always)]
    fn run(self) {
        // One more than there are channels where two are a word, zeros behind the last.
        let width = self.channels.next_multiple_of(PANEL);
        let (tokens, depth) = (self.keys.tokens, words(self.channels, self.pairs));
        let length = words(tokens, self.pairs);
        let mut bare = vec![0.0; self.channels];
        let mut eight = vec![0.0; PANEL * width];
        for (panel, to) in self.to_keys.chunks_mut(depth * PANEL).enumerate() {
            for (row, to) in eight.chunks_mut(width).enumerate() {
                self.keys.prepare((panel * PANEL + row).min(tokens - 1), self.head, &mut bare, to);
            }
            for (word, to) in to.chunks_mut(PANEL).enumerate() {
                for (row, to) in to.iter_mut().enumerate() {
                    let from = &eight[row * width..][..width];
                    *to = if self.pairs { pair(from[2 * word], from[2 * word + 1]) } else { from[word] };
                }
            }
        }
        eight.fill(0.0);
        let (even, odd) = eight.split_at_mut(width);
        for word in 0..length {
            let first = if self.pairs { 2 * word } else { word };
            self.values.prepare(first, self.head, &mut bare, even);
            if self.pairs && first + 1 < tokens {
                self.values.prepare(first + 1, self.head, &mut bare, odd);
            } else {
                odd[..width].fill(0.0);
            }
            for panel in 0..width / PANEL {
                let to = &mut self.to_values[(panel * length + word) * PANEL..][..PANEL];
                let (even, odd) = (&even[panel * PANEL..][..PANEL], &odd[panel * PANEL..][..PANEL]);
                for (to, (even, odd)) in to.iter_mut().zip(even.iter().zip(odd)) {
                    *to = if self.pairs { pair(*even, *odd) } else { *even };
                }
            }
        }
    }
}
