//! Segments of the KV cache: keys and values of one batch row and one scale, packed or quantised.

use super::layout::PackedHead;
use super::packed_kv::PackedKv;
use super::quantized_kv::{QuantizedHead, QuantizedKv};

/// A segment in the KV cache.
#[derive(Clone, Debug)]
pub(super) enum CachedSegment {
    Packed(PackedKv),
    Quantized(QuantizedKv),
}

impl CachedSegment {
    /// Borrows the segment.
    pub(super) fn segment(&self) -> Segment<'_> {
        match self {
            Self::Packed(packed) => Segment::Packed(packed),
            Self::Quantized(quantized) => Segment::Quantized(quantized),
        }
    }
}

/// A borrowed segment, all heads.
#[derive(Clone, Copy)]
pub(super) enum Segment<'a> {
    Packed(&'a PackedKv),
    Quantized(&'a QuantizedKv),
}

impl<'a> Segment<'a> {
    /// Returns one head.
    pub(super) fn head(self, head: usize) -> SegmentHead<'a> {
        match self {
            Self::Packed(packed) => SegmentHead::Packed(packed.head(head)),
            Self::Quantized(quantized) => SegmentHead::Quantized(quantized.head(head)),
        }
    }
}

/// One head of a segment.
#[derive(Clone, Copy, Debug)]
pub(super) enum SegmentHead<'a> {
    Packed(PackedHead<'a>),
    Quantized(QuantizedHead<'a>),
}

impl SegmentHead<'_> {
    /// Returns the number of tokens.
    pub(super) fn tokens(&self) -> usize {
        match self {
            Self::Packed(head) => head.tokens,
            Self::Quantized(head) => head.tokens(),
        }
    }

    /// Returns whether the segment holds keys of `key_dwords` dwords and values of `value_dim` channels. Quantised segments are
    /// always read as bf16.
    pub(super) fn fits(&self, key_dwords: usize, value_dim: usize, bf16: bool) -> bool {
        match self {
            Self::Packed(head) => head.fits(key_dwords, value_dim, bf16),
            Self::Quantized(head) => bf16 && head.fits(key_dwords, value_dim),
        }
    }
}
