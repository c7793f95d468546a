//! One AdamW step over flat rows of parameters.

use burn::prelude::*;

use super::gpu;

/// Settings of one AdamW step.
#[cfg_attr(not(any(feature = "cuda", feature = "wgpu")), allow(dead_code, reason = "read by the GPU's kernels"))]
#[derive(Clone, Copy, Debug)]
pub(crate) struct AdamStep {
    pub(crate) beta_1: f32,
    pub(crate) beta_2: f32,
    pub(crate) epsilon: f32,
    /// Steps that the moments have seen, this one included.
    pub(crate) time: usize,
    /// Learning rate.
    pub(crate) rate: f64,
    pub(crate) weight_decay: f32,
    /// Factor of the gradients.
    pub(crate) scale: f32,
    /// Decay of the running average of the parameters.
    pub(crate) average: f64,
}

/// Parameters with their running average and moments, all of one length.
#[cfg_attr(not(any(feature = "cuda", feature = "wgpu")), allow(dead_code, reason = "read by the GPU's kernels"))]
pub(crate) struct AdamRows {
    pub(crate) value: Tensor<1>,
    pub(crate) average: Tensor<1>,
    pub(crate) moment_1: Tensor<1>,
    pub(crate) moment_2: Tensor<1>,
}

/// Returns the rows after one step; `None` if the device has no kernel for it.
pub(crate) fn adam(rows: &AdamRows, gradient: &Tensor<1>, step: AdamStep) -> Option<AdamRows> {
    gpu::adam(rows, gradient, step)
}
