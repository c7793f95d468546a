//! One AdamW step over flat rows of parameters.

use burn::prelude::*;

use super::gpu;
use super::params::{AdamRows, AdamStep};

/// Returns the rows after one step; `None` if the device has no kernel for it.
pub(crate) fn adam(rows: &AdamRows, gradient: &Tensor<1>, step: AdamStep) -> Option<AdamRows> {
    gpu::adam(rows, gradient, step)
}
