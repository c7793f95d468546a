//! Norms, with what follows them.

use burn::nn::{GroupNorm, LayerNorm, RmsNorm};
use burn::prelude::*;

/// Scale and shift of a normed tensor, broadcast over its rows.
#[derive(Clone, Debug)]
pub(crate) struct Modulation {
    pub(crate) scale: Tensor<3>,
    pub(crate) shift: Tensor<3>,
}

/// `x / sqrt(mean(x^2) + eps) * g`, then `* (1 + scale) + shift` where there is a modulation.
///
/// # Shapes
///
/// - x, output: `[B, L, C]`; scale, shift: `[B, 1 or L, C]`
pub(crate) fn rms_norm(x: Tensor<3>, norm: &RmsNorm, modulation: Option<&Modulation>) -> Tensor<3> {
    #[cfg(feature = "cpu")]
    if let Some(y) = super::cpu::rms_norm(&x, norm, modulation) {
        return y;
    }
    #[cfg(any(feature = "cuda", feature = "wgpu"))]
    if let Some(y) = super::gpu::rms_norm(&x, norm, modulation) {
        return y;
    }
    #[cfg(all(any(feature = "cuda", feature = "wgpu"), feature = "train"))]
    if let Some(y) = super::gpu::normed(&x, false, norm.epsilon) {
        return modulate(super::gpu::scale_by_row(y, norm.gamma.val()), modulation);
    }
    modulate(norm.forward(x), modulation)
}

/// Layer norm over the last dimension, without gain and bias where there is no layer, then modulated.
///
/// # Shapes
///
/// - x, output: `[B, L, C]`; scale, shift: `[B, 1 or L, C]`
pub(crate) fn layer_norm(x: Tensor<3>, norm: Option<&LayerNorm>, epsilon: f64, modulation: Option<&Modulation>) -> Tensor<3> {
    #[cfg(feature = "cpu")]
    if let Some(y) = super::cpu::layer_norm(&x, norm, epsilon, modulation) {
        return y;
    }
    #[cfg(any(feature = "cuda", feature = "wgpu"))]
    if let Some(y) = super::gpu::layer_norm(&x, norm, epsilon, modulation) {
        return y;
    }
    #[cfg(all(any(feature = "cuda", feature = "wgpu"), feature = "train"))]
    if let Some(y) = super::gpu::normed(&x, true, epsilon) {
        let y = match norm.map(|norm| (norm.gamma.val(), norm.beta.as_ref().map(|beta| beta.val()))) {
            None => y,
            Some((gain, None)) => super::gpu::scale_by_row(y, gain),
            Some((gain, Some(bias))) => super::gpu::add_row(super::gpu::scale_by_row(y, gain), bias),
        };
        return modulate(y, modulation);
    }
    let normed = match norm {
        Some(norm) => norm.forward(x),
        None => {
            let centred = x.clone() - x.mean_dim(2);
            let variance = centred.clone().powf_scalar(2.0).mean_dim(2);
            centred / (variance + epsilon).sqrt()
        }
    };
    modulate(normed, modulation)
}

fn modulate(x: Tensor<3>, modulation: Option<&Modulation>) -> Tensor<3> {
    match modulation {
        None => x,
        Some(Modulation { scale, shift }) => x * (scale.clone() + 1.0) + shift.clone(),
    }
}

/// `x + gate * y`, or `x + y` where there is no gate.
///
/// # Shapes
///
/// - x, y, output: `[B, L, C]`; gate: `[B, 1 or L, C]`
pub(crate) fn add_gated(x: Tensor<3>, y: Tensor<3>, gate: Option<&Tensor<3>>) -> Tensor<3> {
    #[cfg(feature = "cpu")]
    let (x, y) = match super::cpu::add_gated(x, y, gate) {
        Ok(sum) => return sum,
        Err(both) => both,
    };
    #[cfg(any(feature = "cuda", feature = "wgpu"))]
    if let Some(sum) = super::gpu::add_gated(&x, &y, gate) {
        return sum;
    }
    match gate {
        None => x + y,
        Some(gate) => x + y * gate.clone(),
    }
}

/// [`add_gated`], and [`rms_norm`] of the sum: the sum and its norm.
///
/// # Shapes
///
/// - x, y, both outputs: `[B, L, C]`; the gate, scale and shift: `[B, 1 or L, C]`
pub(crate) fn add_norm(
    x: Tensor<3>,
    y: Tensor<3>,
    norm: &RmsNorm,
    modulation: Option<(&Tensor<3>, &Modulation)>,
) -> (Tensor<3>, Tensor<3>) {
    #[cfg(any(feature = "cuda", feature = "wgpu"))]
    if let Some(both) = super::gpu::add_norm(&x, &y, norm, modulation) {
        return both;
    }
    let sum = add_gated(x, y, modulation.map(|(gate, _)| gate));
    let normed = rms_norm(sum.clone(), norm, modulation.map(|(_, modulation)| modulation));
    (sum, normed)
}

/// Each group of channels to mean 0 and variance 1, then scaled and shifted channel by channel.
///
/// # Shapes
///
/// - x, output: `[B, C, h, w]`
pub(crate) fn group_norm(x: Tensor<4>, norm: &GroupNorm) -> Tensor<4> {
    #[cfg(feature = "cpu")]
    let x = match super::cpu::group_norm(x, norm, false) {
        Ok(y) => return y,
        Err(x) => x,
    };
    #[cfg(any(feature = "cuda", feature = "wgpu"))]
    if let Some(y) = super::gpu::group_norm(&x, norm, false) {
        return y;
    }
    norm.forward(x)
}

/// `silu(group_norm(x))`.
///
/// # Shapes
///
/// - x, output: `[B, C, h, w]`
pub(crate) fn group_norm_silu(x: Tensor<4>, norm: &GroupNorm) -> Tensor<4> {
    #[cfg(feature = "cpu")]
    let x = match super::cpu::group_norm(x, norm, true) {
        Ok(y) => return y,
        Err(x) => x,
    };
    #[cfg(any(feature = "cuda", feature = "wgpu"))]
    if let Some(y) = super::gpu::group_norm(&x, norm, true) {
        return y;
    }
    super::silu(norm.forward(x))
}

#[cfg(test)]
mod tests {
    use burn::nn::{LayerNormConfig, RmsNormConfig};

    use super::*;
    use crate::kernels::{tensor, values};

    fn waves(shape: [usize; 3], speed: f32) -> Tensor<3> {
        tensor((0..shape.iter().product()).map(|i| (i as f32 * speed).sin() + 0.2).collect(), shape, &Device::flex())
    }

    fn assert_close(got: Tensor<3>, want: Tensor<3>) {
        assert_eq!(got.dims(), want.dims());
        let (got, want) = (values(got), values(want));
        assert!(got.iter().zip(&want).all(|(g, w)| (g - w).abs() <= 1e-5 * w.abs().max(1.0)), "{got:?} and not {want:?}");
    }

    /// Modulations of a row and of a token, by themselves and as parts of something larger; x as a part too.
    #[test]
    fn faster_bodies_equal_the_plain_ones() {
        let device = Device::flex();
        let (rms, layer) = (RmsNormConfig::new(6).init(&device), LayerNormConfig::new(6).init(&device));
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
                assert_close(rms_norm(x.clone(), &rms, m), modulate(rms.forward(x.clone()), m));
                let plain = layer.forward(x.clone());
                assert_close(layer_norm(x.clone(), Some(&layer), 1e-5, m), modulate(plain.clone(), m));
                assert_close(layer_norm(x.clone(), None, 1e-5, m), modulate(plain, m));
                let gate = modulation.as_ref().map(|m| &m.scale);
                let (before, y) = (values(x.clone()), waves([2, 5, 6], 0.3));
                let want = x.clone() + gate.map_or(y.clone(), |gate| y.clone() * gate.clone());
                assert_close(add_gated(x.clone(), y, gate), want);
                assert_eq!(values(x.clone()), before);
            }
        }
    }
}
