//! Conversion between tokens and feature maps, and between the sides of scales (spec section 3).

use burn::prelude::*;

use crate::kernels;

/// Converts tokens `[B, side^2, Z]` to a feature map `[B, Z, side, side]`.
pub(crate) fn to_map(rows: Tensor<3>) -> Tensor<4> {
    let [batch, tokens, channels] = rows.dims();
    let side = tokens.isqrt();
    rows.swap_dims(1, 2).reshape([batch, channels, side, side]) // [batch, channels, height, width]
}

/// Converts a feature map `[B, Z, h, w]` to tokens `[B, h w, Z]`.
pub(crate) fn to_rows(map: Tensor<4>) -> Tensor<3> {
    let [batch, channels, height, width] = map.dims();
    map.reshape([batch, channels, height * width]).swap_dims(1, 2) // [batch, tokens, channels]
}

/// Upsamples the tokens of a scale to a feature map of the latent's side, bicubically.
pub(crate) fn upsample(rows: Tensor<3>, side: usize) -> Tensor<4> {
    kernels::bicubic(to_map(rows), side)
}

/// Downsamples a feature map to the tokens of a scale, by area.
pub(crate) fn downsample(map: Tensor<4>, side: usize) -> Tensor<3> {
    to_rows(kernels::area(map, side))
}
