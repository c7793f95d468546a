//! The embedding of the scale that a token belongs to.

use burn::module::Module;
use burn::nn::{Embedding, EmbeddingConfig};
use burn::prelude::*;

use crate::config::{LevelEmbeddingKind, TransformerConfig};
use crate::nn::StepEmbedding;

/// The embedding of a scale's index.
#[derive(Module, Debug)]
#[expect(clippy::large_enum_variant, reason = "a model has one")]
pub(super) enum LevelEmbedding {
    /// An MLP of the index's sinusoid.
    Sinusoid(StepEmbedding),
    /// A learned table with one row for each scale.
    Table(Embedding),
}

impl LevelEmbedding {
    pub(super) fn init(config: &TransformerConfig, device: &Device) -> Self {
        match config.level_embedding {
            LevelEmbeddingKind::Sinusoid => Self::Sinusoid(StepEmbedding::init(config.embed_dim, device)),
            LevelEmbeddingKind::Table => Self::Table(EmbeddingConfig::new(config.sides.len(), config.embed_dim).init(device)),
        }
    }

    /// Returns the embedding of a scale, `[1, 1, C]`.
    pub(super) fn forward(&self, scale: usize) -> Tensor<3> {
        match self {
            Self::Sinusoid(mlp) => mlp.forward(&[scale as f32]),
            Self::Table(table) => table.weight.val().narrow(0, scale, 1).unsqueeze(),
        }
    }
}
