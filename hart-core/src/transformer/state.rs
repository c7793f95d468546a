//! What one run knows and changes: the conditioning and the cache of keys and values.

use burn::prelude::*;

use super::block::BlockModulation;
use crate::kernels::Modulation;

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
}

/// One run's state.
#[derive(Clone, Debug)]
pub struct State {
    pub(super) conditioning: Conditioning,
    pub(super) caches: Vec<Cache>,
}

impl State {
    /// The state before the first scale.
    pub fn new(conditioning: Conditioning) -> Self {
        let caches = vec![Cache::default(); conditioning.modulations.len()];
        Self { conditioning, caches }
    }

    /// What the context decides.
    pub fn conditioning(&self) -> &Conditioning {
        &self.conditioning
    }
}

/// Keys and values of one block, `[R, H, tokens so far, d]`.
#[derive(Clone, Debug, Default)]
pub(super) struct Cache(Option<(Tensor<4>, Tensor<4>)>);

impl Cache {
    /// The cache, to be extended; `keep` says whether a later scale will need the new entries.
    pub(super) fn extend(&mut self, keep: bool) -> Extend<'_> {
        Extend { cache: Some(self), keep }
    }
}

/// A cache that is about to be extended by one scale.
pub(super) struct Extend<'a> {
    cache: Option<&'a mut Cache>,
    keep: bool,
}

impl Extend<'_> {
    /// Nothing came before and nothing is kept.
    pub(super) fn nothing() -> Self {
        Self { cache: None, keep: false }
    }

    /// All keys and values that the new tokens may see.
    pub(super) fn with(self, key: Tensor<4>, value: Tensor<4>) -> (Tensor<4>, Tensor<4>) {
        let Some(cache) = self.cache else { return (key, value) };
        let all = match cache.0.take() {
            None => (key, value),
            Some((k, v)) => (Tensor::cat(vec![k, key], 2), Tensor::cat(vec![v, value], 2)),
        };
        cache.0 = self.keep.then(|| all.clone());
        all
    }
}
