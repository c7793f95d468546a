//! What one run knows and changes: the conditioning, the cache of keys and values, and how a scale's tokens lie.

use burn::prelude::*;

use super::block::BlockModulation;
use crate::device::is_cpu;
use crate::kernels::{self, Modulation, RowGroup};
use crate::nn::KvCache;
use crate::text::Context;

/// What the context decides for a whole run.
#[derive(Clone, Debug)]
pub struct Conditioning {
    /// Embedded context, `[R, T, C]`.
    pub(super) embedded: Tensor<3>,
    /// A block's modulation, where the model has one.
    pub(super) modulations: Vec<BlockModulation>,
    /// Modulation of the head's norm.
    pub(super) head: Modulation,
    /// Position of each context token, `[R][T]`.
    pub(super) positions: Vec<Vec<i64>>,
    /// How the context tokens lie when they run through the blocks.
    pub(super) first: Batch,
    /// An empty cache.
    pub(super) cache: KvCache,
}

/// One run's state.
#[derive(Clone, Debug)]
pub struct State {
    pub(super) conditioning: Conditioning,
    pub(super) cache: KvCache,
}

impl State {
    /// The state before the first scale.
    pub fn new(conditioning: Conditioning) -> Self {
        let cache = conditioning.cache.clone();
        Self { conditioning, cache }
    }

    /// What the context decides.
    pub fn conditioning(&self) -> &Conditioning {
        &self.conditioning
    }
}

/// How a scale's tokens lie in a batch.
///
/// The tokens of an unconditional row's context are all alike: the same zeros at the same position, seeing the same keys. So one of
/// them runs through the blocks for all T, and as a key it counts T multiplicity: `ln T` is added to its scores.
#[derive(Clone, Debug)]
pub(super) struct Batch {
    /// Rows, those before the unconditional ones first.
    pub(super) groups: Vec<RowGroup>,
    /// Tokens of each row outside of the blocks.
    tokens: usize,
}

impl Batch {
    /// A context's tokens.
    pub(super) fn of_context(context: &Context) -> Self {
        let (rows, tokens) = (context.rows(), context.mask.first().map_or(0, Vec::len));
        // A GPU does rows of one length sooner than fewer tokens.
        let together = tokens > 0 && is_cpu(&context.hidden.device());
        let alike = if together { context.unconditional.min(rows) } else { 0 };
        let groups =
            [RowGroup { rows: rows - alike, tokens, multiplicity: 1 }, RowGroup { rows: alike, tokens: 1, multiplicity: tokens }];
        Self { groups: groups.into_iter().filter(|group| group.rows > 0).collect(), tokens }
    }

    /// As many tokens in every row, of the same rows.
    pub(super) fn of_scale(&self, tokens: usize) -> Self {
        let groups = self.groups.iter().map(|group| RowGroup { tokens, multiplicity: 1, ..*group }).collect();
        Self { groups, tokens }
    }

    /// Tokens that run through the blocks.
    pub(super) fn total(&self) -> usize {
        self.groups.iter().map(RowGroup::total).sum()
    }

    /// Whether some tokens stand for others.
    pub(super) fn is_packed(&self) -> bool {
        self.groups.iter().any(|group| group.tokens != self.tokens)
    }

    /// `[R, L, C]` to the tokens that run through the blocks, `[1, N, C]`, if some stand for others.
    pub(super) fn pack(&self, x: Tensor<3>) -> Tensor<3> {
        if !self.is_packed() {
            return x;
        }
        let mut first = 0;
        let of = |group: &RowGroup| {
            let part = x.clone().narrow(0, first, group.rows).narrow(1, 0, group.tokens);
            first += group.rows;
            part.reshape([1, group.total(), x.dims()[2]])
        };
        Tensor::cat(self.groups.iter().map(of).collect(), 1)
    }

    /// The way back.
    pub(super) fn unpack(&self, x: Tensor<3>) -> Tensor<3> {
        if !self.is_packed() {
            return x;
        }
        let mut first = 0;
        let of = |group: &RowGroup| {
            let part = x.clone().narrow(1, first, group.total()).reshape([group.rows, group.tokens, x.dims()[2]]);
            first += group.total();
            part.repeat_dim(1, self.tokens / group.tokens)
        };
        Tensor::cat(self.groups.iter().map(of).collect(), 0)
    }

    /// Something of each token, `[R][L]`, as [`Self::pack`] does it.
    pub(super) fn pack_list<T: Copy>(&self, rows: &[Vec<T>]) -> Vec<Vec<T>> {
        if !self.is_packed() {
            return rows.to_vec();
        }
        let tokens = self.groups.iter().flat_map(|group| vec![group.tokens; group.rows]);
        vec![rows.iter().zip(tokens).flat_map(|(row, tokens)| row[..tokens].iter().copied()).collect()]
    }

    /// What modulates a block, for the tokens as they lie.
    pub(super) fn modulation(&self, modulation: &BlockModulation, device: &Device) -> BlockModulation {
        let branches = modulation.as_ref()?;
        if !self.is_packed() {
            return Some(branches.clone());
        }
        let tokens = self.groups.iter().flat_map(|group| vec![group.tokens; group.rows]);
        let rows: Vec<usize> = tokens.enumerate().flat_map(|(row, tokens)| vec![row; tokens]).collect();
        let rows = kernels::indices(&rows, device);
        Some([branches[0].of_tokens(&rows), branches[1].of_tokens(&rows)])
    }
}
