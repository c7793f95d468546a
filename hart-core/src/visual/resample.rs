//! Between token rows and feature maps, and between sizes (spec section 3).

use burn::prelude::*;

use crate::kernels;

/// Token rows `[B, side^2, Z]` to a feature map `[B, Z, side, side]`.
pub(crate) fn to_map(rows: Tensor<3>) -> Tensor<4> {
    let [batch, tokens, channels] = rows.dims();
    let side = tokens.isqrt();
    rows.swap_dims(1, 2).reshape([batch, channels, side, side])
}

/// A feature map `[B, Z, h, w]` to token rows `[B, h w, Z]`.
pub(crate) fn to_rows(map: Tensor<4>) -> Tensor<3> {
    let [batch, channels, height, width] = map.dims();
    map.reshape([batch, channels, height * width]).swap_dims(1, 2)
}

/// Token rows of any scale to a feature map of the latent's side: bicubic.
pub(crate) fn enlarge(rows: Tensor<3>, side: usize) -> Tensor<4> {
    kernels::bicubic(to_map(rows), side)
}

/// A feature map to the token rows of a scale: area averages.
pub(crate) fn shrink(map: Tensor<4>, side: usize) -> Tensor<3> {
    to_rows(kernels::area(map, side))
}
