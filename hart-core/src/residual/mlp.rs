//! The denoising MLP: noisy residual, step and condition in; noise and variance out (spec section 4).

use burn::module::Module;
use burn::nn::{LayerNorm, LayerNormConfig};
use burn::prelude::*;

use crate::config::Config;
use crate::kernels::{self, Modulation};
use crate::nn::StepEmbedding;
use crate::nn::{self, Linear, LinearConfig};

/// Epsilon of the layer norms.
const NORM_EPS: f64 = 1e-6;

/// A residual block: `x += gate * mlp(modulated norm(x))`.
#[derive(Module, Debug)]
struct ResidualBlock {
    norm: LayerNorm,
    /// To shift, scale and gate.
    modulator: Linear,
    hidden: Linear,
    output: Linear,
}

/// The denoiser.
#[derive(Module, Debug)]
pub struct ResidualMlp {
    step_embed: StepEmbedding,
    condition_embed: Linear,
    input: Linear,
    blocks: Vec<ResidualBlock>,
    /// To the last norm's shift and scale.
    final_modulator: Linear,
    /// To noise and variance.
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

    /// Channels of the latent, Z.
    pub fn channels(&self) -> usize {
        self.input.weight.dims()[0]
    }

    /// The part of the condition that is the same at every step.
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
    /// - steps: step numbers of the full schedule, one for all tokens or L of them
    /// - condition: `[R, L, width]`, from [`Self::embed_condition`]
    /// - output: `[R, L, Z]` each
    pub fn forward(&self, x: Tensor<3>, steps: &[f32], condition: Tensor<3>) -> (Tensor<3>, Tensor<3>) {
        let channels = x.dims()[2];
        let signal = kernels::silu(condition + self.step_embed.forward(steps));
        let signal = self.final_modulator.cast_input(signal);
        let mut x = self.input.forward(x);
        for block in &self.blocks {
            let [shift, scale, gate] = split(block.modulator.forward(signal.clone()));
            let normed = nn::layer_norm(x.clone(), Some(&block.norm), NORM_EPS, Some(&Modulation { scale, shift }));
            let y = kernels::silu(block.hidden.forward(normed));
            x = kernels::add_gated(x, block.output.forward(y), Some(&gate));
        }
        let [shift, scale] = split(self.final_modulator.forward(signal));
        let normed = nn::layer_norm(x, None, NORM_EPS, Some(&Modulation { scale, shift }));
        let out = self.output.forward(normed);
        (out.clone().narrow(2, 0, channels), out.narrow(2, channels, channels))
    }
}

/// Equal parts of the last dimension.
fn split<const N: usize>(x: Tensor<3>) -> [Tensor<3>; N] {
    let width = x.dims()[2] / N;
    std::array::from_fn(|i| x.clone().narrow(2, i * width, width))
}
