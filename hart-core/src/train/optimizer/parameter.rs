//! The optimizer's state for each parameter, and the hyperparameters of one step.

use burn::module::ParamId;
use burn::optim::AdamWState;
use burn::prelude::*;

use super::options::{OptimizerOptions, learning_rate};
use crate::kernels;

/// One flattened parameter with its optimizer state.
#[derive(Clone)]
pub(super) struct Parameter {
    /// Path of the parameter in the module.
    pub(super) name: String,
    pub(super) id: ParamId,
    /// Rows and columns if Muon updates the parameter; `None` if AdamW does.
    pub(super) matrix: Option<[usize; 2]>,
    /// `[elements]`
    pub(super) value: Tensor<1>,
    /// Exponential moving average of the value, `[elements]`.
    pub(super) ema: Tensor<1>,
    pub(super) state: OptimizerState,
}

/// State that an optimizer carries from one step to the next.
#[allow(clippy::large_enum_variant, reason = "both variants are tensor handles")]
#[derive(Clone)]
pub(super) enum OptimizerState {
    /// The parameter has not been updated yet.
    Empty,
    /// First and second moment, `[elements]` each.
    AdamW(AdamWState<1>),
    /// Velocity, `[elements]`.
    Muon(Tensor<1>),
}

/// Reshapes a parameter or gradient to `[elements]`.
pub(super) fn flatten<const D: usize>(tensor: Tensor<D>) -> Tensor<1> {
    let elements = tensor.shape().num_elements();
    tensor.reshape([elements]) // [elements]
}

/// AdamW's decay of the first moment.
pub(super) const BETA_1: f32 = 0.9;
/// AdamW's epsilon, added to the denominator.
pub(super) const EPSILON: f32 = 1e-8;
/// Muon's momentum: the decay of its velocity.
pub(super) const MOMENTUM: f64 = 0.95;
/// Smallest number of rows or columns of a matrix that Muon updates. AdamW updates smaller ones, which are input and output layers.
pub(super) const MIN_MATRIX_SIDE: usize = 32;

/// Hyperparameters of one step.
pub(super) struct StepOptions {
    pub(super) options: OptimizerOptions,
    pub(super) learning_rate: f64,
    /// Decay of the exponential moving average of the weights.
    pub(super) ema_decay: f64,
}

impl StepOptions {
    pub(super) fn new(options: OptimizerOptions, step: u64) -> Self {
        // Like TensorFlow's ExponentialMovingAverage: the decay is smaller in early steps.
        let ema_decay = options.average.min((1.0 + step as f64) / (10.0 + step as f64));
        Self { options, learning_rate: learning_rate(&options, step), ema_decay }
    }

    /// Returns the factor that clips gradients with the given global norm.
    pub(super) fn clip_factor(&self, norm: f32) -> f32 {
        const MIN_NORM: f32 = 1e-6;
        (self.options.clip / (norm + MIN_NORM)).min(1.0)
    }

    /// Returns the hyperparameters of the fused AdamW kernel. `time` counts the updates of the moments, this one included.
    pub(super) fn adam(&self, time: usize, clip_factor: f32) -> kernels::AdamStep {
        let OptimizerOptions { beta_2, weight_decay, .. } = self.options;
        let (rate, average, scale) = (self.learning_rate, self.ema_decay, clip_factor);
        kernels::AdamStep { beta_1: BETA_1, beta_2, epsilon: EPSILON, time, rate, weight_decay, scale, average }
    }
}
