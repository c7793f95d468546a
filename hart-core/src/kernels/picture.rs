//! Operations on feature maps.

use burn::nn::conv::Conv2d;
use burn::prelude::*;
use burn::tensor::module;
use burn::tensor::ops::{InterpolateMode, InterpolateOptions};

/// 2-D convolution.
///
/// # Shapes
///
/// - x: `[B, in, h, w]`
/// - output: `[B, out, h', w']`
pub(crate) fn conv2d(x: Tensor<4>, layer: &Conv2d) -> Tensor<4> {
    layer.forward(x)
}

/// Every pixel four times: `[B, C, h, w]` to `[B, C, 2h, 2w]`.
pub(crate) fn upsample_nearest(x: Tensor<4>) -> Tensor<4> {
    let [batch, channels, height, width] = x.dims();
    let x = x.reshape([batch * channels, height, 1, width, 1]).repeat_dim(4, 2).repeat_dim(2, 2);
    x.reshape([batch, channels, 2 * height, 2 * width])
}

/// Bicubic resampling to a square, a = -0.75, pixel centres aligned (align_corners false).
///
/// # Shapes
///
/// - x: `[B, C, h, w]`
/// - output: `[B, C, side, side]`
pub(crate) fn bicubic(x: Tensor<4>, side: usize) -> Tensor<4> {
    if x.dims()[2..] == [side, side] {
        return x;
    }
    let options = InterpolateOptions::new(InterpolateMode::Bicubic).with_align_corners(false).with_output_size([side, side]);
    module::interpolate(x, options)
}

/// Area resampling to a square: output i averages the inputs `floor(i n / m) .. ceil((i + 1) n / m)`.
///
/// # Shapes
///
/// - x: `[B, C, h, w]`
/// - output: `[B, C, side, side]`
pub(crate) fn area(x: Tensor<4>, side: usize) -> Tensor<4> {
    if x.dims()[2..] == [side, side] {
        return x;
    }
    module::adaptive_avg_pool2d(x, [side, side])
}
