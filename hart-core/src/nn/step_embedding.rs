//! The sinusoidal embedding of scale indices and diffusion timesteps (spec sections 2 and 4).

use burn::module::Module;
use burn::prelude::*;

use super::linear::{Linear, LinearConfig};
use crate::kernels;
use crate::math;

/// Number of channels of the sinusoid.
const SINUSOID_WIDTH: usize = 256;
/// Longest period of the sinusoid.
const MAX_PERIOD: f64 = 10_000.0;

/// `Linear -> SiLU -> Linear` of a sinusoid.
#[derive(Module, Debug)]
pub struct StepEmbedding {
    hidden: Linear,
    output: Linear,
}

impl StepEmbedding {
    pub(crate) fn init(width: usize, device: &Device) -> Self {
        Self { hidden: LinearConfig::new(SINUSOID_WIDTH, width).init(device), output: LinearConfig::new(width, width).init(device) }
    }

    /// Returns the embeddings of steps, `[1, steps, width]`.
    pub(crate) fn forward(&self, steps: &[f32]) -> Tensor<3> {
        let device = self.hidden.weight.lazy_device();
        let values = steps.iter().flat_map(|&step| sinusoid(step)).collect();
        let x = kernels::tensor(values, [1, steps.len(), SINUSOID_WIDTH], &device);
        self.output.forward(kernels::silu(self.hidden.forward(x)))
    }
}

/// Returns `[cos | sin]` of `step * exp(-ln(10000) i / 128)` for `i < 128`.
fn sinusoid(step: f32) -> Vec<f32> {
    let half = SINUSOID_WIDTH / 2;
    let frequency = |i: usize| math::exp(-math::ln(MAX_PERIOD) * i as f64 / half as f64) as f32;
    let angles: Vec<f64> = (0..half).map(|i| f64::from(step * frequency(i))).collect();
    let cos = angles.iter().map(|a| math::cos(*a) as f32);
    let sin = angles.iter().map(|a| math::sin(*a) as f32);
    cos.chain(sin).collect()
}
