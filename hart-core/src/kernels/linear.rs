//! Matrix products.

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::prelude::*;
use burn::tensor::activation;

/// `x W + b`, one product for all rows: a weight is read once.
///
/// # Shapes
///
/// - x: `[R, L, in]`
/// - output: `[R, L, out]`
pub(crate) fn linear(x: Tensor<3>, layer: &Linear) -> Tensor<3> {
    #[cfg(feature = "cpu")]
    if let Some(y) = super::flex::linear(&x, layer) {
        return y;
    }
    layer.forward(x)
}

/// The gated feed-forward layer of Llama and Qwen2, `down(silu(gate(x)) * up(x))`, without biases.
#[derive(Module, Debug)]
pub struct SwiGlu {
    gate: Linear,
    up: Linear,
    down: Linear,
}

impl SwiGlu {
    pub(crate) fn init(width: usize, hidden: usize, device: &Device) -> Self {
        let linear = |from, to| LinearConfig::new(from, to).with_bias(false).init(device);
        Self { gate: linear(width, hidden), up: linear(width, hidden), down: linear(hidden, width) }
    }

    /// # Shapes
    ///
    /// - x: `[B, L, C]`
    /// - output: `[B, L, C]`
    pub(crate) fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let gate = activation::silu(linear(x.clone(), &self.gate));
        linear(gate * linear(x, &self.up), &self.down)
    }
}
