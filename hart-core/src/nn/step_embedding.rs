//! Step numbers as vectors: a sinusoid and a small MLP, used for the scales' numbers and for the diffusion's steps
//! (spec sections 2 and 4).

use burn::module::Module;
use burn::prelude::*;

use super::linear::{Linear, LinearConfig};
use crate::kernels;

/// Width of the sinusoid.
const SINUSOID: usize = 256;
/// Longest period of the sinusoid.
const MAX_PERIOD: f64 = 10_000.0;

/// `Linear -> SiLU -> Linear` of a number's sinusoid.
#[derive(Module, Debug)]
pub struct StepEmbedding {
    hidden: Linear,
    output: Linear,
}

impl StepEmbedding {
    pub(crate) fn init(width: usize, device: &Device) -> Self {
        Self { hidden: LinearConfig::new(SINUSOID, width).init(device), output: LinearConfig::new(width, width).init(device) }
    }

    /// # Shapes
    ///
    /// - output: `[1, numbers, width]`
    pub(crate) fn forward(&self, numbers: &[f32]) -> Tensor<3> {
        let device = self.hidden.weight.lazy_device();
        let values = numbers.iter().flat_map(|&n| sinusoid(n)).collect();
        let x = kernels::tensor(values, [1, numbers.len(), SINUSOID], &device);
        self.output.forward(kernels::silu(self.hidden.forward(x)))
    }
}

/// `[cos | sin]` of `n * exp(-ln(10000) i / 128)`.
fn sinusoid(number: f32) -> Vec<f32> {
    let half = SINUSOID / 2;
    let frequency = |i: usize| (-MAX_PERIOD.ln() * i as f64 / half as f64).exp() as f32;
    let angles: Vec<f64> = (0..half).map(|i| f64::from(number * frequency(i))).collect();
    let cos = angles.iter().map(|a| a.cos() as f32);
    let sin = angles.iter().map(|a| a.sin() as f32);
    cos.chain(sin).collect()
}
