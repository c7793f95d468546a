//! The layout of packed keys and values.

/// Rows of a panel: keys in the first product, channels in the second.
pub(super) const PANEL: usize = 16;
/// Keys between two rescalings, which lie together.
pub(super) const KEYS: usize = 128;
/// Keys and values that came together, and whose head.
///
/// They lie in blocks of [`KEYS`] keys, the last one shorter. In a block all heads follow each other.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part<'a> {
    /// A block: `[heads][keys / 16][words of a key][16]`, the last key again and again behind it.
    pub(super) keys: &'a [f32],
    /// A block: `[heads][channels / 16][words of a channel][16]`, zeros behind the last channel.
    pub(super) values: &'a [f32],
    /// How many keys there are.
    pub(super) count: usize,
    /// How many heads.
    pub(super) heads: usize,
    /// Which one it is.
    pub(super) head: usize,
    /// Base-2 logarithm of how often each key counts.
    pub(super) log_weight: f32,
}

impl<'a> Part<'a> {
    /// The panels of the keys and of the values in the block that begins at key `first` and has so many, of keys with `depth` words.
    #[inline(always)]
    pub(super) fn block(&self, first: usize, count: usize, depth: usize, channels: usize, pairs: bool) -> [&'a [f32]; 2] {
        let (padded, length) = (count.next_multiple_of(PANEL), words(count, pairs));
        [
            &self.keys[share(self.heads, self.head, first, padded, depth)],
            &self.values[share(self.heads, self.head, words(first, pairs), length, channels)],
        ]
    }

    /// Whether the panels are as long as keys with `depth` words and values of so many channels make them.
    pub(super) fn fits(&self, depth: usize, channels: usize, pairs: bool) -> bool {
        let (keys, values) = (self.count.next_multiple_of(PANEL) * depth, words(self.count, pairs) * channels);
        (self.keys.len(), self.values.len()) == (self.heads * keys, self.heads * values) && self.head < self.heads
    }
}

/// A head's share of a block that begins at token `first` and has `count` tokens, of a whole with so many numbers for each token, or word
/// of two tokens.
pub(super) fn share(heads: usize, head: usize, first: usize, count: usize, numbers: usize) -> std::ops::Range<usize> {
    let start = (heads * first + head * count) * numbers;
    start..start + count * numbers
}

/// Words of so many numbers.
pub(super) fn words(numbers: usize, pairs: bool) -> usize {
    if pairs { numbers.div_ceil(2) } else { numbers }
}
