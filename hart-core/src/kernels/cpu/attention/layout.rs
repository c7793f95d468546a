//! Memory layout of packed keys and values.
//!
//! A dword is 32 bits along the reduction dimension of a product: one f32, or two bf16 (the VNNI layout). It holds one or two
//! channels of a key, and one or two tokens of a value channel.

/// Width of a packed panel: keys in `q k^T`, channels in `p v`.
pub(super) const PANEL_WIDTH: usize = 16;
/// Keys of a key block, between two updates of the running row maximum.
pub(super) const KEY_BLOCK: usize = 128;

/// Packed keys and values of one head.
///
/// The tokens are split into blocks of [`KEY_BLOCK`]; the last one may be shorter. In a block, the heads are contiguous.
#[derive(Clone, Copy, Debug)]
pub(super) struct PackedHead<'a> {
    /// Keys of all heads. A block is `[heads][tokens / 16][key dwords][16]`; its last panel is filled up with the last key.
    pub(super) keys: &'a [f32],
    /// Values of all heads. A block is `[heads][value_dim / 16][value dwords][16]`; its last panel is filled up with zeros.
    pub(super) values: &'a [f32],
    /// Number of tokens.
    pub(super) tokens: usize,
    /// Number of heads.
    pub(super) heads: usize,
    /// Index of this head.
    pub(super) head: usize,
    /// Base-2 logarithm of the multiplicity of each key, added to its scores.
    pub(super) log2_multiplicity: f32,
}

impl<'a> PackedHead<'a> {
    /// Returns the panels of keys and of values of the key block that begins at `first` and has `count` keys.
    #[inline(always)]
    pub(super) fn block(&self, first: usize, count: usize, key_dwords: usize, value_dim: usize, bf16: bool) -> [&'a [f32]; 2] {
        let (padded, value_dwords) = (count.next_multiple_of(PANEL_WIDTH), dword_count(count, bf16));
        [
            &self.keys[head_range(self.heads, self.head, first, padded, key_dwords)],
            &self.values[head_range(self.heads, self.head, dword_count(first, bf16), value_dwords, value_dim)],
        ]
    }

    /// Returns whether the panels have the length of keys of `key_dwords` dwords and values of `value_dim` channels.
    pub(super) fn fits(&self, key_dwords: usize, value_dim: usize, bf16: bool) -> bool {
        let (keys, values) = (self.tokens.next_multiple_of(PANEL_WIDTH) * key_dwords, dword_count(self.tokens, bf16) * value_dim);
        (self.keys.len(), self.values.len()) == (self.heads * keys, self.heads * values) && self.head < self.heads
    }
}

/// Returns the range of a head in the block that begins at row `first` and has `count` rows of `width` elements per head.
pub(super) fn head_range(heads: usize, head: usize, first: usize, count: usize, width: usize) -> std::ops::Range<usize> {
    let start = (heads * first + head * count) * width;
    start..start + count * width
}

/// Returns the number of dwords that hold `count` elements.
pub(super) fn dword_count(count: usize, bf16: bool) -> usize {
    if bf16 { count.div_ceil(2) } else { count }
}

/// Packs two values, rounded to bf16 with ties to even, into a dword. The canonical NaN stays NaN.
#[inline(always)]
pub(super) fn pack_bf16(low: f32, high: f32) -> f32 {
    let rounded = |x: f32| x.to_bits().wrapping_add(0x7fff + (x.to_bits() >> 16 & 1));
    f32::from_bits(rounded(low) >> 16 | rounded(high) & 0xffff_0000)
}

/// Returns the two bf16 of a dword.
#[inline(always)]
pub(super) fn unpack_bf16(dword: f32) -> [f32; 2] {
    [f32::from_bits(dword.to_bits() << 16), f32::from_bits(dword.to_bits() & 0xffff_0000)]
}
