//! burn's convolutions, computed by [`crate::kernels`].

use burn::module::Param;
use burn::nn::conv::Conv2d;
use burn::nn::{GroupNorm, PaddingConfig2d};
use burn::prelude::*;

use super::norm::group_norm_params;
use crate::kernels::{self, ConvParams};

/// Computes a 2-D convolution.
///
/// # Shapes
///
/// - x: `[batch, in, height, width]`
/// - output: `[batch, out, height', width']`
pub(crate) fn conv2d(x: Tensor<4>, layer: &Conv2d) -> Tensor<4> {
    kernels::conv2d(x, &conv_params(layer))
}

/// Computes `residual + conv2d(silu(group_norm(x)))` for a layer that keeps the map's sides.
///
/// # Shapes
///
/// - x: `[batch, in, height, width]`
/// - residual, output: `[batch, out, height, width]`
pub(crate) fn norm_silu_conv2d(x: Tensor<4>, norm: &GroupNorm, layer: &Conv2d, residual: Option<Tensor<4>>) -> Tensor<4> {
    kernels::norm_silu_conv2d(x, &group_norm_params(norm), &conv_params(layer), residual)
}

/// Doubles a map's sides by nearest neighbour, then convolves it.
///
/// # Shapes
///
/// - x: `[batch, in, height, width]`
/// - output: `[batch, out, 2 height, 2 width]`
pub(crate) fn upsample_conv2d(x: Tensor<4>, layer: &Conv2d) -> Tensor<4> {
    kernels::upsample_conv2d(x, &conv_params(layer))
}

/// Like [`upsample_conv2d`], with less memory on the CPU: the output is bf16 if the kernels are.
///
/// # Shapes
///
/// - x: `[batch, in, height, width]`
/// - output: `[batch, out, 2 height, 2 width]`
pub(crate) fn compact_upsample_conv2d(x: Tensor<4>, layer: &Conv2d) -> Tensor<4> {
    kernels::compact_upsample_conv2d(x, &conv_params(layer))
}

/// Computes `residual + conv2(silu(norm2(conv1(silu(norm1(x))))))` for layers that keep the map's sides, with less memory on the CPU.
/// Without a residual, x is added.
///
/// # Shapes
///
/// - x: `[batch, in, height, width]`
/// - residual, output: `[batch, out, height, width]`
pub(crate) fn compact_res_block(
    x: Tensor<4>,
    residual: Option<Tensor<4>>,
    norms: [&GroupNorm; 2],
    layers: [&Conv2d; 2],
) -> Tensor<4> {
    let ([norm1, norm2], [conv1, conv2]) = (norms.map(group_norm_params), layers.map(conv_params));
    kernels::compact_res_block(x, residual, [&norm1, &norm2], [&conv1, &conv2])
}

/// Returns the parameters of a layer.
///
/// # Panics
///
/// If the layer has a stride and padding that keeps the sides. No layer of the model has both.
pub(crate) fn conv_params(layer: &Conv2d) -> ConvParams {
    let [_, _, height, width] = layer.weight.lazy_shape().dims();
    let padding = match &layer.padding {
        PaddingConfig2d::Explicit(top, left, bottom, right) => [[*top, *bottom], [*left, *right]],
        PaddingConfig2d::Valid => [[0; 2]; 2],
        PaddingConfig2d::Same => {
            assert_eq!(layer.stride, [1, 1], "padding that keeps the sides has no stride");
            [height, width].map(|side| [(side - 1) / 2, side / 2])
        }
    };
    ConvParams {
        weight: layer.weight.val(),
        bias: layer.bias.as_ref().map(Param::val),
        stride: layer.stride,
        padding,
        dilation: layer.dilation,
        groups: layer.groups,
    }
}
