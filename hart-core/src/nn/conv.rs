//! burn's convolutions, computed by [`crate::kernels`].

use burn::module::{Module, ModuleMapper, Param};
use burn::nn::conv::Conv2d;
use burn::nn::{GroupNorm, PaddingConfig2d};
use burn::prelude::*;
use burn::tensor::DType;

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

/// All 3x3 convolutions of a module with their weights in bfloat16: what reads them rounds its operands to that too where that is
/// faster, and sums in f32.
pub(crate) fn convolutions_in_bf16<M: Module>(module: M) -> M {
    struct Rounded;
    impl ModuleMapper for Rounded {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let is_kernel = matches!(param.shape().as_slice(), [_, _, 3, 3]);
            if is_kernel { param.map(|weight| weight.cast(DType::BF16)) } else { param }
        }
    }
    module.map(&mut Rounded)
}

/// Returns the parameters of a layer.
///
/// # Panics
///
/// If the layer is padded to keep its sides with a stride: none of the model's is.
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
