//! Norms, with what follows them.

use burn::nn::{GroupNorm, LayerNorm, RmsNorm};
use burn::prelude::*;

/// Scale and shift of a normed tensor, broadcast over its rows.
#[derive(Clone, Debug)]
pub(crate) struct Modulation {
    pub(crate) scale: Tensor<3>,
    pub(crate) shift: Tensor<3>,
}

/// `x / sqrt(mean(x^2) + eps) * g`.
///
/// # Shapes
///
/// - x, output: `[B, L, C]`
pub(crate) fn rms_norm(x: Tensor<3>, norm: &RmsNorm) -> Tensor<3> {
    norm.forward(x)
}

/// `x * (1 + scale) + shift`, or x where there is no modulation.
///
/// # Shapes
///
/// - x, output: `[B, L, C]`; scale, shift: `[B, 1 or L, C]`
pub(crate) fn modulate(x: Tensor<3>, modulation: Option<&Modulation>) -> Tensor<3> {
    match modulation {
        None => x,
        Some(Modulation { scale, shift }) => x * (scale.clone() + 1.0) + shift.clone(),
    }
}

/// Layer norm over the last dimension.
///
/// # Shapes
///
/// - x, output: `[B, L, C]`
pub(crate) fn layer_norm(x: Tensor<3>, norm: &LayerNorm) -> Tensor<3> {
    norm.forward(x)
}

/// Each group of channels to mean 0 and variance 1, then scaled and shifted channel by channel.
///
/// # Shapes
///
/// - x, output: `[B, C, h, w]`
pub(crate) fn group_norm(x: Tensor<4>, norm: &GroupNorm) -> Tensor<4> {
    #[cfg(feature = "cpu")]
    let x = match super::extension::group_norm(x, norm, false) {
        Ok(y) => return y,
        Err(x) => x,
    };
    norm.forward(x)
}

/// `silu(group_norm(x))`.
///
/// # Shapes
///
/// - x, output: `[B, C, h, w]`
pub(crate) fn group_norm_silu(x: Tensor<4>, norm: &GroupNorm) -> Tensor<4> {
    #[cfg(feature = "cpu")]
    let x = match super::extension::group_norm(x, norm, true) {
        Ok(y) => return y,
        Err(x) => x,
    };
    super::silu(norm.forward(x))
}
