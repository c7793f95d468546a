//! Which scale a token belongs to, as a vector.

use burn::module::Module;
use burn::nn::{Embedding, EmbeddingConfig};
use burn::prelude::*;

use crate::config::{LevelEmbeddingKind, TransformerConfig};
use crate::nn::StepEmbedding;

/// The embedding of a scale's number.
#[derive(Module, Debug)]
#[expect(clippy::large_enum_variant, reason = "a model has one")]
pub(super) enum LevelEmbedding {
    Sinusoid(StepEmbedding),
    Table(Embedding),
}

impl LevelEmbedding {
    pub(super) fn init(config: &TransformerConfig, device: &Device) -> Self {
        match config.level_embedding {
            LevelEmbeddingKind::Sinusoid => Self::Sinusoid(StepEmbedding::init(config.embed_dim, device)),
            LevelEmbeddingKind::Table => Self::Table(EmbeddingConfig::new(config.sides.len(), config.embed_dim).init(device)),
        }
    }

    /// # Shapes
    ///
    /// - output: `[1, 1, C]`
    pub(super) fn forward(&self, scale: usize) -> Tensor<3> {
        match self {
            Self::Sinusoid(mlp) => mlp.forward(&[scale as f32]),
            Self::Table(table) => table.weight.val().narrow(0, scale, 1).unsqueeze(),
        }
    }
}
