//! The classifier over codebook rows (spec section 3).

use burn::module::Module;
use burn::nn::{RmsNorm, RmsNormConfig};
use burn::prelude::*;

use crate::config::TransformerConfig;
use crate::kernels::{self, Modulation};
use crate::nn::{self, Linear, LinearConfig};

/// A norm that the context modulates, and a linear layer.
#[derive(Module, Debug)]
pub(super) struct Head {
    norm: RmsNorm,
    modulator: Linear,
    logits: Linear,
}

impl Head {
    pub(super) fn init(config: &TransformerConfig, vocab_size: usize, device: &Device) -> Self {
        let width = config.embed_dim;
        Self {
            norm: RmsNormConfig::new(width).with_epsilon(config.norm_eps).init(device),
            modulator: LinearConfig::new(width, 2 * width).init(device),
            logits: LinearConfig::new(width, vocab_size).init(device),
        }
    }

    /// Computes the norm's modulation from the embedded context `[R, T, C]`, max-pooled over all tokens including padding.
    pub(super) fn modulation(&self, context: &Tensor<3>) -> Modulation {
        let vectors = self.modulator.forward(kernels::silu(context.clone().max_dim(1))); // [rows, 1, 2 channels]
        let width = vectors.dims()[2] / 2;
        Modulation { scale: vectors.clone().narrow(2, 0, width), shift: vectors.narrow(2, width, width) }
    }

    /// Computes the logits of all codebook rows.
    ///
    /// # Shapes
    ///
    /// - x: `[R, L, C]`
    /// - output: `[R, L, V]`
    pub(super) fn forward(&self, x: Tensor<3>, modulation: &Modulation) -> Tensor<3> {
        self.logits.forward_to_f32(nn::rms_norm(x, &self.norm, Some(modulation)))
    }
}
