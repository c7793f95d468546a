//! The state of a run: the conditioning and the KV cache.

use burn::prelude::*;

use super::block::BlockModulation;
use super::pruning::PrunedRun;
use super::row_groups::RowGroups;
use crate::kernels::Modulation;
use crate::nn::KvCache;

/// The values that are computed from the context alone. They are the same for all scales of a run.
#[derive(Clone, Debug)]
pub struct Conditioning {
    /// Embedded context, `[R, T, C]`.
    pub(super) embedded: Tensor<3>,
    /// Modulation of each block.
    pub(super) modulations: Vec<BlockModulation>,
    /// Modulation of the head's norm.
    pub(super) head: Modulation,
    /// Position of each context token, `[R][T]`.
    pub(super) positions: Vec<Vec<i64>>,
    /// Groups of the context tokens.
    pub(super) groups: RowGroups,
}

/// The state of a run between two scales, created by [`Transformer::begin`](super::Transformer::begin).
#[derive(Clone, Debug)]
pub struct State {
    pub(super) conditioning: Conditioning,
    pub(super) cache: KvCache,
    /// `None` if no scale is pruned.
    pub(super) pruned: Option<PrunedRun>,
}

impl State {
    /// Returns the conditioning.
    pub fn conditioning(&self) -> &Conditioning {
        &self.conditioning
    }

    /// Returns the positions of the tokens that the attention and the feed-forward branch of a block computed at the latest scale that was
    /// pruned, `[R][kept]` in ascending order. `None` before such a scale.
    pub fn kept_tokens(&self, block: usize) -> Option<[&[Vec<u32>]; 2]> {
        self.pruned.as_ref()?.kept_tokens(block)
    }
}
