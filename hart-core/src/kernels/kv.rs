//! Keys and values that later scales look at.

use burn::prelude::*;

#[cfg(feature = "cpu")]
use super::cpu::{Panels, Waiting};
#[cfg(any(feature = "cuda", feature = "wgpu"))]
use super::gpu::InPlace;
use crate::device::Precision;

/// Rows of a batch that have as many tokens each. Groups follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Group {
    /// How many rows.
    pub(crate) rows: usize,
    /// Tokens of each.
    pub(crate) tokens: usize,
    /// How often each token counts as a key: it may stand for many that are alike.
    pub(crate) times: usize,
}

impl Group {
    /// Tokens of all rows.
    pub(crate) fn total(&self) -> usize {
        self.rows * self.tokens
    }
}

/// A group's keys and values, `[rows, heads, tokens so far, channels]`, and the logarithm of how often each counts.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(super) key: Tensor<4>,
    pub(super) value: Tensor<4>,
    pub(super) log_weights: Vec<f32>,
}

/// Keys and values of one block, all tokens so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cache {
    /// Whether they are rounded to bf16, where the device has a body for it.
    #[cfg_attr(not(feature = "cpu"), allow(dead_code, reason = "only the CPU backend asks"))]
    pub(super) bf16: bool,
    /// And to 8 bits once they wait for later scales.
    #[cfg(feature = "cpu")]
    pub(super) rounded: bool,
    /// Tokens of a row that later scales look at, all scales together.
    #[cfg_attr(not(any(feature = "cuda", feature = "wgpu")), expect(dead_code, reason = "read on GPUs"))]
    pub(crate) room: usize,
    pub(crate) kept: Kept,
}

#[derive(Clone, Debug, Default)]
#[allow(clippy::large_enum_variant, reason = "a run has one for each block")]
pub(crate) enum Kept {
    #[default]
    Nothing,
    /// For each group.
    Tensors(Vec<Seen>),
    /// For each row, what came with each scale.
    #[cfg(feature = "cpu")]
    Panels(Vec<Vec<Waiting>>),
    /// On a GPU, with room for all scales.
    #[cfg(any(feature = "cuda", feature = "wgpu"))]
    InPlace(InPlace),
}

impl Cache {
    /// An empty one for a model of this precision, and so many tokens that later scales look at.
    pub(crate) fn new(precision: Precision, room: usize) -> Self {
        Self {
            bf16: matches!(precision, Precision::Bf16 | Precision::Int8),
            #[cfg(feature = "cpu")]
            rounded: precision == Precision::Int8,
            room,
            kept: Kept::Nothing,
        }
    }

    /// The cache, to be extended by tokens that later scales look at too.
    pub(crate) fn extend(&mut self) -> Extend<'_> {
        Extend(Some(Extended { cache: self, last: None }))
    }

    /// The cache, to be extended for the last time: the new keys and values are needed only now, in memory that blocks hand on to
    /// each other.
    pub(crate) fn finish<'a>(&'a mut self, memory: &'a mut Memory) -> Extend<'a> {
        Extend(Some(Extended { cache: self, last: Some(memory) }))
    }
}

/// Memory for the last scale's keys and values, for each row.
#[derive(Clone, Debug, Default)]
pub(crate) struct Memory {
    #[cfg(feature = "cpu")]
    pub(super) panels: Vec<Panels>,
    #[cfg(any(feature = "cuda", feature = "wgpu"))]
    pub(crate) in_place: Option<InPlace>,
}

/// A cache that is about to be extended by one scale.
pub(crate) struct Extend<'a>(pub(crate) Option<Extended<'a>>);

pub(crate) struct Extended<'a> {
    pub(crate) cache: &'a mut Cache,
    /// Present with the last scale.
    pub(crate) last: Option<&'a mut Memory>,
}

impl Extend<'_> {
    /// Nothing came before and nothing is kept.
    pub(crate) fn nothing() -> Self {
        Self(None)
    }

    /// All keys and values that the new tokens may see, for each group.
    pub(super) fn with(self, new: Vec<Seen>) -> Vec<Seen> {
        let Some(Extended { cache, last }) = self.0 else { return new };
        let all = match std::mem::take(&mut cache.kept) {
            Kept::Tensors(before) => before.into_iter().zip(new).map(|(before, new)| before.followed_by(new)).collect(),
            _ => new,
        };
        if last.is_none() {
            cache.kept = Kept::Tensors(all.clone());
        }
        all
    }
}

impl Seen {
    fn followed_by(self, new: Self) -> Self {
        Self {
            key: Tensor::cat(vec![self.key, new.key], 2),
            value: Tensor::cat(vec![self.value, new.value], 2),
            log_weights: [self.log_weights, new.log_weights].concat(),
        }
    }
}
