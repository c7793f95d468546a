//! The state of a run: the conditioning and the KV cache.

use burn::prelude::*;

use super::block::BlockModulation;
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
    /// An empty cache.
    pub(super) cache: KvCache,
}

/// The state of a run between two scales.
#[derive(Clone, Debug)]
pub struct State {
    pub(super) conditioning: Conditioning,
    pub(super) cache: KvCache,
}

impl State {
    /// Creates the state before the first scale.
    pub fn new(conditioning: Conditioning) -> Self {
        let cache = conditioning.cache.clone();
        Self { conditioning, cache }
    }

    /// Returns the conditioning.
    pub fn conditioning(&self) -> &Conditioning {
        &self.conditioning
    }
}
