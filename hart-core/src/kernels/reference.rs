//! Reference implementations in burn's own operations. They run on every device and in every float type, and have gradients.

use burn::prelude::*;
use burn::tensor::ops::{AttentionModuleOptions, ConvOptions};
use burn::tensor::{DType, activation, module};

use super::params::{ConvParams, GroupNormParams, Modulation, Rotary, Weight};
use super::tensors::to_f32;
use crate::device::is_cpu;

pub(super) fn linear(x: Tensor<3>, weight: &Weight, bias: Option<&Tensor<1>>) -> Tensor<3> {
    module::linear(x, weight.dense(), bias.cloned())
}

pub(super) fn matmul(x: Tensor<2>, other: Tensor<2>) -> Tensor<2> {
    x.matmul(other)
}

pub(super) fn silu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    activation::silu(x)
}

pub(super) fn silu_mul(gate: Tensor<3>, up: Tensor<3>) -> Tensor<3> {
    activation::silu(gate) * up
}

pub(super) fn rms_norm(x: Tensor<3>, gain: &Tensor<1>, epsilon: f64, modulation: Option<&Modulation>) -> Tensor<3> {
    let dtype = x.dtype();
    let rms = (to_f32(x.clone()).square().mean_dim(2) + epsilon).sqrt();
    modulate((x / rms.cast(dtype)) * gain.clone().unsqueeze(), modulation)
}

pub(super) fn layer_norm(
    x: Tensor<3>,
    gain: Option<&Tensor<1>>,
    bias: Option<&Tensor<1>>,
    epsilon: f64,
    modulation: Option<&Modulation>,
) -> Tensor<3> {
    let normalized = match gain {
        Some(gain) => module::layer_norm(x, gain.clone(), bias.cloned(), epsilon),
        None => {
            let centred = x.clone() - x.mean_dim(2);
            let variance = centred.clone().powf_scalar(2.0).mean_dim(2);
            centred / (variance + epsilon).sqrt()
        }
    };
    modulate(normalized, modulation)
}

/// Computes `x * (1 + scale) + shift`.
pub(super) fn modulate(x: Tensor<3>, modulation: Option<&Modulation>) -> Tensor<3> {
    match modulation {
        None => x,
        Some(Modulation { scale, shift }) => x * (scale.clone() + 1.0) + shift.clone(),
    }
}

pub(super) fn add_gated(x: Tensor<3>, y: Tensor<3>, gate: Option<&Tensor<3>>) -> Tensor<3> {
    match gate {
        None => x + y,
        Some(gate) => x + y * gate.clone(),
    }
}

pub(super) fn group_norm(x: Tensor<4>, params: &GroupNormParams, silu: bool) -> Tensor<4> {
    let shape = x.dims();
    let [batch, channels, height, width] = shape;
    let grouped = x.reshape([batch, params.groups, channels / params.groups * height * width]); // [batch, groups, values]
    let centred = grouped.clone() - grouped.mean_dim(2);
    let variance = centred.clone().square().mean_dim(2);
    let normalized = centred / (variance + params.epsilon).sqrt(); // [batch, groups, values]
    let per_channel = |x: &Tensor<1>| x.clone().reshape([1, channels, 1, 1]);
    let y = normalized.reshape(shape) * per_channel(&params.gain) + per_channel(&params.bias); // [batch, channels, height, width]
    if silu { self::silu(y) } else { y }
}

pub(super) fn conv2d(x: Tensor<4>, params: &ConvParams) -> Tensor<4> {
    let padding = params.padding.map(|[before, after]| (before, after));
    let options = ConvOptions::new_with_padding(params.stride, padding, params.dilation, params.groups);
    module::conv2d(x, params.weight.clone(), params.bias.clone(), options)
}

pub(super) fn upsample_nearest(x: Tensor<4>) -> Tensor<4> {
    let [batch, channels, height, width] = x.dims();
    let x = x.reshape([batch * channels, height, 1, width, 1]).repeat_dim(4, 2).repeat_dim(2, 2);
    x.reshape([batch, channels, 2 * height, 2 * width]) // [batch, channels, 2 height, 2 width]
}

pub(super) fn rotate(x: Tensor<4>, Rotary { cos, sin }: Rotary<'_>) -> Tensor<4> {
    let half = x.dims()[3] / 2;
    let rotated = Tensor::cat(vec![x.clone().narrow(3, half, half).neg(), x.clone().narrow(3, 0, half)], 3); // (-x2, x1)
    x * cos.clone() + rotated * sin.clone()
}

pub(super) fn attention(operands: [Tensor<4>; 3], bias: Option<&Tensor<4>>, scale: f64) -> Tensor<4> {
    let dtype = operands[0].dtype();
    let [query, key, value] = operands.map(to_f32);
    // burn's GPU backend requires as many key heads as query heads.
    let repeats = if is_cpu(&query.device()) { 1 } else { query.dims()[1] / key.dims()[1].max(1) };
    let (key, value) = (repeat_heads(key, repeats), repeat_heads(value, repeats));
    let options = AttentionModuleOptions { scale: Some(scale), ..Default::default() };
    let output = module::attention(query, key, value, None, bias.cloned(), options);
    if dtype == DType::F32 { output } else { output.cast(dtype) }
}

/// Repeats every head `times` times.
fn repeat_heads(x: Tensor<4>, times: usize) -> Tensor<4> {
    if times <= 1 {
        return x;
    }
    let [batch, heads, keys, head_dim] = x.dims();
    let x = x.reshape([batch, heads, 1, keys * head_dim]).repeat_dim(2, times); // [batch, heads, times, keys * head_dim]
    x.reshape([batch, heads * times, keys, head_dim]) // [batch, heads * times, keys, head_dim]
}
