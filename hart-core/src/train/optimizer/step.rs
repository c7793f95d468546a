//! What is kept about a parameter, and the numbers of one step.

use burn::module::ParamId;
use burn::optim::AdamWState;
use burn::prelude::*;

use super::options::{OptimizerOptions, learning_rate};
use crate::kernels;

/// One parameter, as a row of numbers, and what is kept about it.
#[derive(Clone)]
pub(crate) struct Slot {
    pub(super) name: String,
    pub(super) id: ParamId,
    /// Rows and columns, if it is a matrix that Muon changes.
    pub(crate) matrix: Option<[usize; 2]>,
    pub(crate) value: Tensor<1>,
    pub(crate) average: Tensor<1>,
    pub(crate) state: State,
}

/// What an optimizer keeps about a parameter.
#[allow(clippy::large_enum_variant, reason = "handles; the numbers lie elsewhere")]
#[derive(Clone)]
pub(crate) enum State {
    New,
    Moments(AdamWState<1>),
    Velocity(Tensor<1>),
}

/// Decay of AdamW's averaged gradients.
pub(super) const BETA_1: f32 = 0.9;
/// What AdamW adds to the root that it divides by.
pub(super) const EPSILON: f32 = 1e-8;
/// Decay of Muon's velocity.
pub(crate) const MOMENTUM: f64 = 0.95;
/// A matrix with fewer rows or columns leads into the model or out of it, and is AdamW's.
pub(super) const SMALLEST_MATRIX: usize = 32;

/// Numbers of one step.
pub(crate) struct StepOptions {
    pub(crate) options: OptimizerOptions,
    pub(crate) rate: f64,
    /// Decay of the running average.
    pub(crate) average: f64,
}

impl StepOptions {
    pub(super) fn new(options: OptimizerOptions, step: u64) -> Self {
        // As TensorFlow's moving average does: young averages forget quickly.
        let average = options.average.min((1.0 + step as f64) / (10.0 + step as f64));
        Self { options, rate: learning_rate(&options, step), average }
    }

    /// What gradients of such a norm are multiplied by, so that they measure no more than they may.
    pub(crate) fn scale(&self, norm: f32) -> f32 {
        const SMALLEST_NORM: f32 = 1e-6;
        (self.options.clip / (norm + SMALLEST_NORM)).min(1.0)
    }

    pub(crate) fn adam(&self, time: usize, scale: f32) -> kernels::AdamStep {
        let OptimizerOptions { beta_2, weight_decay, .. } = self.options;
        let (rate, average) = (self.rate, self.average);
        kernels::AdamStep { beta_1: BETA_1, beta_2, epsilon: EPSILON, time, rate, weight_decay, scale, average }
    }
}
