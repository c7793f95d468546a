//! burn's norms, computed by [`crate::kernels`].

use burn::module::Param;
use burn::nn::{GroupNorm, LayerNorm, RmsNorm};
use burn::prelude::*;

use crate::kernels::{self, GroupNormParams, Modulation};

/// Computes `x / sqrt(mean(x^2) + epsilon) * gain`, then the modulation if there is one.
///
/// # Shapes
///
/// - x, output: `[batch, tokens, channels]`
pub(crate) fn rms_norm(x: Tensor<3>, norm: &RmsNorm, modulation: Option<&Modulation>) -> Tensor<3> {
    kernels::rms_norm(x, &norm.gamma.val(), norm.epsilon, modulation)
}

/// Normalises over the last dimension, without gain and bias if there is no layer, then applies the modulation if there is one.
///
/// # Shapes
///
/// - x, output: `[batch, tokens, channels]`
pub(crate) fn layer_norm(x: Tensor<3>, norm: Option<&LayerNorm>, epsilon: f64, modulation: Option<&Modulation>) -> Tensor<3> {
    let gain = norm.map(|norm| norm.gamma.val());
    let bias = norm.and_then(|norm| Some(norm.beta.as_ref()?.val()));
    kernels::layer_norm(x, gain.as_ref(), bias.as_ref(), epsilon, modulation)
}

/// Computes `x + gate * y` and the [`rms_norm`] of the sum; returns the sum and its norm. Without a modulation there is no gate.
///
/// # Shapes
///
/// - x, y, both outputs: `[batch, tokens, channels]`
/// - gate: `[batch, 1 or tokens, channels]`
pub(crate) fn add_norm(
    x: Tensor<3>,
    y: Tensor<3>,
    norm: &RmsNorm,
    modulation: Option<(&Tensor<3>, &Modulation)>,
) -> (Tensor<3>, Tensor<3>) {
    kernels::add_norm(x, y, &norm.gamma.val(), norm.epsilon, modulation)
}

/// Normalises each group of channels.
///
/// # Shapes
///
/// - x, output: `[batch, channels, height, width]`
pub(crate) fn group_norm(x: Tensor<4>, norm: &GroupNorm) -> Tensor<4> {
    kernels::group_norm(x, &group_norm_params(norm))
}

/// Returns the parameters of a group norm.
///
/// # Panics
///
/// If the layer has no gain or no bias. All group norms of the model have both.
pub(crate) fn group_norm_params(norm: &GroupNorm) -> GroupNormParams {
    let per_channel = |param: &Option<Param<Tensor<1>>>| param.as_ref().expect("group norms have a gain and a bias").val();
    GroupNormParams {
        gain: per_channel(&norm.gamma),
        bias: per_channel(&norm.beta),
        groups: norm.num_groups,
        epsilon: norm.epsilon,
    }
}
