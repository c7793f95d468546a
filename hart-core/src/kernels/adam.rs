//! An AdamW step over a flat vector of parameters.

use burn::prelude::*;

use super::gpu;
use super::params::{AdamRows, AdamStep};

/// Returns parameters, average and moments after one step, or `None` if the device has no kernel for it.
pub(crate) fn adam(rows: &AdamRows, gradient: &Tensor<1>, step: AdamStep) -> Option<AdamRows> {
    gpu::adam(rows, gradient, step)
}
