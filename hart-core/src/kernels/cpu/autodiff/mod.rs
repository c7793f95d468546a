//! Operations with custom gradients for burn's CPU backend, as backend extensions. Inference and training use them.

mod conv3x3;
mod group_norm;
#[cfg(feature = "train")]
mod linear;
mod silu;

#[cfg(not(feature = "train"))]
pub(crate) use crate::kernels::absent::linear;
pub(crate) use conv3x3::conv3x3;
pub(crate) use group_norm::group_norm;
#[cfg(feature = "train")]
pub(crate) use linear::linear;
pub(crate) use silu::{silu, silu_mul};

use burn::prelude::*;
use burn::tensor::DType;

/// Returns whether a tensor is f32 and on the CPU. Without the feature `train`, it must not be tracked by autodiff.
fn applies_to<const D: usize>(x: &Tensor<D>) -> bool {
    let device = x.device();
    x.dtype() == DType::F32 && device == Device::flex() && (cfg!(feature = "train") || !device.is_autodiff())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::values;

    /// Asserts equality within 1e-4 of the largest value.
    pub(super) fn assert_close<const D: usize>(what: &str, got: Tensor<D>, want: Tensor<D>) {
        assert_eq!(got.dims(), want.dims());
        let (got, want) = (values(got), values(want));
        let largest = want.iter().filter(|w| w.is_finite()).fold(0f32, |largest, w| largest.max(w.abs()));
        let close = |(g, w): (&f32, &f32)| (g - w).abs() <= 1e-4 * largest || g.is_nan() && w.is_nan() || g == w;
        assert!(got.iter().zip(&want).all(close), "{what}: {got:?} and not {want:?}");
    }
}
