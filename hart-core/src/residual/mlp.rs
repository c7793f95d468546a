//! The denoising MLP: predicts noise and variance from the noisy residual, the timestep and the condition (spec section 4).

use burn::module::Module;
use burn::nn::{LayerNorm, LayerNormConfig};
use burn::prelude::*;

use crate::config::Config;
use crate::kernels::{self, Modulation};
use crate::nn::StepEmbedding;
use crate::nn::{self, Linear, LinearConfig};

/// Epsilon of the layer norms.
const NORM_EPS: f64 = 1e-6;

/// A residual block: `x += gate * mlp(norm(x))`, whose norm is modulated.
#[derive(Module, Debug)]
struct ResidualBlock {
    norm: LayerNorm,
    /// Computes shift, scale and gate.
    modulator: Linear,
    hidden: Linear,
    output: Linear,
}

/// The denoising MLP.
#[derive(Module, Debug)]
pub struct ResidualMlp {
    step_embed: StepEmbedding,
    condition_embed: Linear,
    input: Linear,
    blocks: Vec<ResidualBlock>,
    /// Computes shift and scale of the last norm.
    final_modulator: Linear,
    /// Computes noise and variance.
    output: Linear,
}

impl ResidualMlp {
    pub(super) fn init(config: &Config, device: &Device) -> Self {
        let width = config.residual.width;
        let channels = config.visual.z_channels;
        let linear = |from, to| LinearConfig::new(from, to).init(device);
        let block = |_| ResidualBlock {
            norm: LayerNormConfig::new(width).with_epsilon(NORM_EPS).init(device),
            modulator: linear(width, 3 * width),
            hidden: linear(width, width),
            output: linear(width, width),
        };
        Self {
            step_embed: StepEmbedding::init(width, device),
            condition_embed: linear(config.transformer.embed_dim, width),
            input: linear(channels, width),
            blocks: (0..config.residual.depth).map(block).collect(),
            final_modulator: linear(width, 2 * width),
            output: linear(width, 2 * channels),
        }
    }

    /// Returns the number of channels of the latent, Z.
    pub fn channels(&self) -> usize {
        self.input.weight.dims()[0]
    }

    /// Embeds the condition, which is the same at every step.
    ///
    /// # Shapes
    ///
    /// - condition: `[R, L, C]`
    /// - output: `[R, L, width]`
    pub fn embed_condition(&self, condition: Tensor<3>) -> Tensor<3> {
        self.condition_embed.forward_to_f32(condition)
    }

    /// Predicts noise and variance.
    ///
    /// # Shapes
    ///
    /// - x: `[R, L, Z]`
    /// - steps: timesteps of the full schedule, one for all tokens or one for each, `[1]` or `[L]`
    /// - condition: `[R, L, width]`, from [`Self::embed_condition`]
    /// - both outputs: `[R, L, Z]`
    pub fn forward(&self, x: Tensor<3>, steps: &[f32], condition: Tensor<3>) -> (Tensor<3>, Tensor<3>) {
        let channels = x.dims()[2];
        let embedding = kernels::silu(condition + self.step_embed.forward(steps));
        let embedding = self.final_modulator.cast_input(embedding);
        let mut x = self.input.forward(x);
        for block in &self.blocks {
            let [shift, scale, gate] = split(block.modulator.forward(embedding.clone()));
            let normed = nn::layer_norm(x.clone(), Some(&block.norm), NORM_EPS, Some(&Modulation { scale, shift }));
            let y = kernels::silu(block.hidden.forward(normed));
            x = kernels::add_gated(x, block.output.forward(y), Some(&gate));
        }
        // The last norm has no gain and bias of its own.
        let [shift, scale] = split(self.final_modulator.forward(embedding));
        let normed = nn::layer_norm(x, None, NORM_EPS, Some(&Modulation { scale, shift }));
        let out = self.output.forward(normed); // [rows, tokens, 2 latent channels]
        (out.clone().narrow(2, 0, channels), out.narrow(2, channels, channels))
    }
}

/// Splits the last dimension into N equal parts.
fn split<const N: usize>(x: Tensor<3>) -> [Tensor<3>; N] {
    let width = x.dims()[2] / N;
    std::array::from_fn(|i| x.clone().narrow(2, i * width, width))
}
