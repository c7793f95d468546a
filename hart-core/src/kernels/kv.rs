//! Keys and values of one block, as the backends store them from scale to scale.

use burn::prelude::*;

use super::{cpu, gpu};
use crate::device::Precision;

/// Rows of a batch that have equally many tokens. Groups follow each other in a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RowGroup {
    /// Number of rows.
    pub(crate) rows: usize,
    /// Tokens of each row.
    pub(crate) tokens: usize,
    /// How often each token counts as a key: it may stand for several that are equal.
    pub(crate) multiplicity: usize,
}

impl RowGroup {
    /// Returns the tokens of all rows.
    pub(crate) fn total(&self) -> usize {
        self.rows * self.tokens
    }
}

/// Keys and values of one group as plain tensors.
#[derive(Clone, Debug)]
pub(super) struct PlainKv {
    /// `[rows, heads, tokens, head_dim]`.
    pub(super) key: Tensor<4>,
    /// `[rows, heads, tokens, head_dim]`.
    pub(super) value: Tensor<4>,
    /// Logarithm of each token's multiplicity.
    pub(super) log_weights: Vec<f32>,
}

impl PlainKv {
    fn append(self, new: Self) -> Self {
        Self {
            key: Tensor::cat(vec![self.key, new.key], 2),
            value: Tensor::cat(vec![self.value, new.value], 2),
            log_weights: [self.log_weights, new.log_weights].concat(),
        }
    }
}

/// Keys and values of one block, all tokens so far.
#[derive(Clone, Debug)]
pub(crate) struct KvStore {
    /// Whether they are rounded to bf16 where the backend supports it.
    #[cfg_attr(not(feature = "cpu"), allow(dead_code, reason = "read by the CPU's kernels"))]
    pub(super) bf16: bool,
    /// Whether they are quantised to 8 bits while they wait for later scales.
    #[cfg_attr(not(feature = "cpu"), allow(dead_code, reason = "read by the CPU's kernels"))]
    pub(super) int8: bool,
    /// Tokens of a row that later scales attend to, all scales together.
    #[cfg_attr(not(any(feature = "cuda", feature = "wgpu")), allow(dead_code, reason = "read by the GPU's kernels"))]
    pub(super) capacity: usize,
    pub(super) stored: Stored,
}

/// The past keys and values in the form of the backend that computed them.
#[derive(Clone, Debug, Default)]
#[allow(clippy::large_enum_variant, reason = "a run has one for each block")]
pub(super) enum Stored {
    #[default]
    Empty,
    /// One for each group.
    Tensors(Vec<PlainKv>),
    #[cfg_attr(not(feature = "cpu"), allow(dead_code, reason = "never constructed without the CPU backend"))]
    Cpu(cpu::CachedKv),
    #[cfg_attr(not(any(feature = "cuda", feature = "wgpu")), allow(dead_code, reason = "never constructed without a GPU backend"))]
    Gpu(gpu::CachedKv),
}

/// Memory for the last scale's keys and values, which blocks hand on to each other.
#[derive(Clone, Debug, Default)]
pub(crate) struct KvScratch {
    #[cfg_attr(not(feature = "cpu"), allow(dead_code, reason = "used by the CPU's kernels"))]
    pub(super) cpu: cpu::KvScratch,
    #[cfg_attr(not(any(feature = "cuda", feature = "wgpu")), allow(dead_code, reason = "used by the GPU's kernels"))]
    pub(super) gpu: gpu::KvScratch,
}

impl KvStore {
    /// Creates an empty store for a model of this precision; later scales attend to at most `capacity` tokens of a row.
    pub(crate) fn new(precision: Precision, capacity: usize) -> Self {
        Self {
            bf16: matches!(precision, Precision::Bf16 | Precision::Int8),
            int8: precision == Precision::Int8,
            capacity,
            stored: Stored::Empty,
        }
    }

    /// Returns the store as the destination of one scale's keys and values, which later scales attend to.
    pub(crate) fn append(&mut self) -> KvAppend<'_> {
        KvAppend(Some(Append { store: self, last: None }))
    }

    /// Returns the store as the past of the last scale, whose keys and values live in `scratch` and are not stored.
    pub(crate) fn append_last<'a>(&'a mut self, scratch: &'a mut KvScratch) -> KvAppend<'a> {
        KvAppend(Some(Append { store: self, last: Some(scratch) }))
    }
}

/// The past keys and values of a block, and where one scale's new ones go.
pub(crate) struct KvAppend<'a>(pub(super) Option<Append<'a>>);

/// See [`KvAppend`].
pub(super) struct Append<'a> {
    pub(super) store: &'a mut KvStore,
    /// `Some` with the last scale.
    pub(super) last: Option<&'a mut KvScratch>,
}

impl KvAppend<'_> {
    /// No past, and nothing is stored.
    pub(crate) fn none() -> Self {
        Self(None)
    }

    /// Returns all keys and values that the new tokens attend to, one for each group, and stores the new ones.
    pub(super) fn append(self, new: Vec<PlainKv>) -> Vec<PlainKv> {
        let Some(Append { store, last }) = self.0 else { return new };
        let all = match std::mem::take(&mut store.stored) {
            Stored::Tensors(past) => past.into_iter().zip(new).map(|(past, new)| past.append(new)).collect(),
            _ => new,
        };
        if last.is_none() {
            store.stored = Stored::Tensors(all.clone());
        }
        all
    }
}
