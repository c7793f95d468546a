//! Normalisation, and the operations fused with it.

use burn::prelude::*;

use super::params::{GroupNormParams, Modulation};
use super::{cpu, gpu, reference};

/// Computes `x / sqrt(mean(x^2) + epsilon) * gain`, and applies the modulation if there is one.
///
/// # Shapes
///
/// - x, output: `[batch, tokens, channels]`
/// - gain: `[channels]`
/// - scale, shift: `[batch, 1 or tokens, channels]`
pub(crate) fn rms_norm(x: Tensor<3>, gain: &Tensor<1>, epsilon: f64, modulation: Option<&Modulation>) -> Tensor<3> {
    cpu::rms_norm(&x, gain, epsilon, modulation)
        .or_else(|| gpu::rms_norm(&x, gain, epsilon, modulation))
        .unwrap_or_else(|| reference::rms_norm(x, gain, epsilon, modulation))
}

/// Normalises the last dimension to mean 0 and variance 1, and applies gain, bias and modulation if there are any.
///
/// # Shapes
///
/// - x, output: `[batch, tokens, channels]`
/// - gain, bias: `[channels]`
/// - scale, shift: `[batch, 1 or tokens, channels]`
pub(crate) fn layer_norm(
    x: Tensor<3>,
    gain: Option<&Tensor<1>>,
    bias: Option<&Tensor<1>>,
    epsilon: f64,
    modulation: Option<&Modulation>,
) -> Tensor<3> {
    cpu::layer_norm(&x, gain, bias, epsilon, modulation)
        .or_else(|| gpu::layer_norm(&x, gain, bias, epsilon, modulation))
        .unwrap_or_else(|| reference::layer_norm(x, gain, bias, epsilon, modulation))
}

/// Computes `x + gate * y`, or `x + y` without a gate.
///
/// # Shapes
///
/// - x, y, output: `[batch, tokens, channels]`
/// - gate: `[batch, 1 or tokens, channels]`
pub(crate) fn add_gated(x: Tensor<3>, y: Tensor<3>, gate: Option<&Tensor<3>>) -> Tensor<3> {
    cpu::add_gated(x, y, gate)
        .or_else(|(x, y)| gpu::add_gated(x, y, gate))
        .unwrap_or_else(|(x, y)| reference::add_gated(x, y, gate))
}

/// Computes [`add_gated`] and the [`rms_norm`] of the sum. Returns the sum and the normalised sum.
///
/// `modulation` is the gate of `y`, and the modulation of the normalised sum.
///
/// # Shapes
///
/// - x, y, both outputs: `[batch, tokens, channels]`
/// - gate, scale, shift: `[batch, 1 or tokens, channels]`
pub(crate) fn add_norm(
    x: Tensor<3>,
    y: Tensor<3>,
    gain: &Tensor<1>,
    epsilon: f64,
    modulation: Option<(&Tensor<3>, &Modulation)>,
) -> (Tensor<3>, Tensor<3>) {
    cpu::add_norm(x, y, gain, epsilon, modulation).or_else(|(x, y)| gpu::add_norm(x, y, gain, epsilon, modulation)).unwrap_or_else(
        |(x, y)| {
            let sum = add_gated(x, y, modulation.map(|(gate, _)| gate));
            let normalized = rms_norm(sum.clone(), gain, epsilon, modulation.map(|(_, modulation)| modulation));
            (sum, normalized)
        },
    )
}

/// Normalises each group of channels to mean 0 and variance 1, and applies gain and bias.
///
/// # Shapes
///
/// - x, output: `[batch, channels, height, width]`
pub(crate) fn group_norm(x: Tensor<4>, params: &GroupNormParams) -> Tensor<4> {
    cpu::group_norm(x, params, false)
        .or_else(|x| gpu::group_norm(x, params, false))
        .unwrap_or_else(|x| reference::group_norm(x, params, false))
}

/// Computes `silu(group_norm(x))`.
///
/// # Shapes
///
/// - x, output: `[batch, channels, height, width]`
pub(crate) fn group_norm_silu(x: Tensor<4>, params: &GroupNormParams) -> Tensor<4> {
    cpu::group_norm(x, params, true)
        .or_else(|x| gpu::group_norm(x, params, true))
        .unwrap_or_else(|x| reference::group_norm(x, params, true))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::{self, assert_close};
    use crate::kernels::{tensor, values};

    /// Returns a wave with a mean of about 0.2.
    fn waves(shape: [usize; 3], speed: f32) -> Tensor<3> {
        testing::wave(shape, speed, &Device::flex()) + 0.2
    }

    /// Covers modulation per row and per token, in whole tensors and in views; x is a view as well.
    #[test]
    fn faster_norms_equal_the_reference() {
        let device = Device::flex();
        let (gain, bias) = (tensor(testing::waves(6, 1.1), [6], &device), tensor(testing::waves(6, 0.3), [6], &device));
        let wide = waves([2, 5, 18], 0.9);
        let part = |x: &Tensor<3>, index: usize| x.clone().narrow(2, 6 * index, 6);
        let modulations = [
            None,
            Some(Modulation { scale: part(&wide, 0), shift: part(&wide, 2) }),
            Some(Modulation { scale: part(&wide, 1).narrow(1, 2, 1), shift: waves([2, 1, 6], 0.4) }),
            Some(Modulation { scale: waves([1, 1, 6], 0.8), shift: waves([1, 1, 6], 0.4) }),
        ];
        for x in [waves([2, 5, 6], 0.7), waves([2, 9, 6], 0.7).narrow(1, 3, 5), waves([2, 6, 5], 0.7).swap_dims(1, 2)] {
            for modulation in &modulations {
                let m = modulation.as_ref();
                assert_close(rms_norm(x.clone(), &gain, 1e-5, m), reference::rms_norm(x.clone(), &gain, 1e-5, m), 1e-5);
                for (gain, bias) in [(None, None), (Some(&gain), None), (Some(&gain), Some(&bias))] {
                    let want = reference::layer_norm(x.clone(), gain, bias, 1e-5, m);
                    assert_close(layer_norm(x.clone(), gain, bias, 1e-5, m), want, 1e-5);
                }
                let gate = modulation.as_ref().map(|m| &m.scale);
                let (before, y) = (values(x.clone()), waves([2, 5, 6], 0.3));
                let want = x.clone() + gate.map_or(y.clone(), |gate| y.clone() * gate.clone());
                assert_close(add_gated(x.clone(), y, gate), want, 1e-5);
                assert_eq!(values(x.clone()), before);
            }
        }
    }
}
