//! Convolutions and resampling of feature maps.

use burn::prelude::*;
use burn::tensor::ops::{InterpolateMode, InterpolateOptions};
use burn::tensor::{DType, module};

use super::norm::group_norm_silu;
use super::params::{ConvParams, GroupNormParams};
use super::{cpu, gpu, reference};

/// Computes a 2-D convolution.
///
/// # Shapes
///
/// - x: `[batch, in, height, width]`
/// - output: `[batch, out, height', width']`
pub(crate) fn conv2d(x: Tensor<4>, params: &ConvParams) -> Tensor<4> {
    let x = match cpu::conv2d(x, params).or_else(|x| gpu::conv2d(x, params)) {
        Ok(y) => return y,
        Err(x) => x,
    };
    if params.weight.dtype() != DType::F32 {
        return conv2d(x, &ConvParams { weight: params.weight.clone().cast(DType::F32), ..params.clone() });
    }
    reference::conv2d(x, params)
}

/// Computes `residual + conv2d(silu(group_norm(x)))` for a convolution that keeps height and width.
///
/// # Shapes
///
/// - x: `[batch, in, height, width]`
/// - residual, output: `[batch, out, height, width]`
pub(crate) fn norm_silu_conv2d(
    x: Tensor<4>,
    norm: &GroupNormParams,
    params: &ConvParams,
    residual: Option<Tensor<4>>,
) -> Tensor<4> {
    cpu::norm_silu_conv2d(x, norm, params, residual)
        .or_else(|(x, residual)| gpu::norm_silu_conv2d(x, norm, params, residual))
        .unwrap_or_else(|(x, residual)| {
            let y = conv2d(group_norm_silu(x, norm), params);
            match residual {
                Some(residual) => residual + y,
                None => y,
            }
        })
}

/// Upsamples a feature map by 2 with nearest neighbour, then convolves it.
///
/// # Shapes
///
/// - x: `[batch, in, height, width]`
/// - output: `[batch, out, 2 height, 2 width]`
pub(crate) fn upsample_conv2d(x: Tensor<4>, params: &ConvParams) -> Tensor<4> {
    cpu::upsample_conv2d(x, params)
        .or_else(|x| gpu::upsample_conv2d(x, params))
        .unwrap_or_else(|x| conv2d(upsample_nearest(x), params))
}

/// Like [`upsample_conv2d`], with less memory where the CPU's kernel applies: the output is written over the input, and it is bf16 if the
/// weights are.
///
/// # Shapes
///
/// - x: `[batch, in, height, width]`
/// - output: `[batch, out, 2 height, 2 width]`
pub(crate) fn compact_upsample_conv2d(x: Tensor<4>, params: &ConvParams) -> Tensor<4> {
    cpu::compact_upsample_conv2d(x, params)
        .or_else(|x| gpu::compact_upsample_conv2d(x, params))
        .unwrap_or_else(|x| upsample_conv2d(x, params))
}

/// Computes `residual + conv2(silu(norm2(conv1(silu(norm1(x))))))` for convolutions that keep height and width. Where the CPU's kernel
/// applies, the map between them is never held as a whole, but computed twice. Without a residual, x is added.
///
/// # Shapes
///
/// - x: `[batch, in, height, width]`
/// - residual, output: `[batch, out, height, width]`
pub(crate) fn compact_res_block(
    x: Tensor<4>,
    residual: Option<Tensor<4>>,
    norms: [&GroupNormParams; 2],
    convs: [&ConvParams; 2],
) -> Tensor<4> {
    cpu::compact_res_block(x, residual, norms, convs)
        .or_else(|(x, residual)| gpu::compact_res_block(x, residual, norms, convs))
        .unwrap_or_else(|(x, residual)| {
            let hidden = norm_silu_conv2d(x.clone(), norms[0], convs[0], None);
            norm_silu_conv2d(hidden, norms[1], convs[1], Some(residual.unwrap_or(x)))
        })
}

/// Upsamples a feature map by 2 with nearest neighbour.
///
/// # Shapes
///
/// - x: `[batch, channels, height, width]`
/// - output: `[batch, channels, 2 height, 2 width]`
fn upsample_nearest(x: Tensor<4>) -> Tensor<4> {
    cpu::upsample_nearest(&x).or_else(|| gpu::upsample_nearest(&x)).unwrap_or_else(|| reference::upsample_nearest(x))
}

/// Resamples to a square with bicubic interpolation: Keys' kernel with a = -0.75, `align_corners` false.
///
/// # Shapes
///
/// - x: `[batch, channels, height, width]`
/// - output: `[batch, channels, side, side]`
pub(crate) fn bicubic(x: Tensor<4>, side: usize) -> Tensor<4> {
    if x.dims()[2..] == [side, side] {
        return x;
    }
    let options = InterpolateOptions::new(InterpolateMode::Bicubic).with_align_corners(false).with_output_size([side, side]);
    module::interpolate(x, options)
}

/// Resamples to a square by area averaging. From n to m positions, output `i` is the mean of the inputs
/// `floor(i n / m) .. ceil((i + 1) n / m)`.
///
/// # Shapes
///
/// - x: `[batch, channels, height, width]`
/// - output: `[batch, channels, side, side]`
pub(crate) fn area(x: Tensor<4>, side: usize) -> Tensor<4> {
    if x.dims()[2..] == [side, side] {
        return x;
    }
    module::adaptive_avg_pool2d(x, [side, side])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::{tensor, values};

    const SIZES: [(usize, usize); 9] = [(1, 5), (2, 7), (3, 8), (5, 7), (7, 3), (8, 3), (9, 4), (13, 18), (16, 13)];

    /// Returns a feature map without symmetry.
    fn map(side: usize) -> Vec<f32> {
        (0..side * side).map(|i| ((i * i) as f32 * 0.37 + i as f32).sin()).collect()
    }

    fn assert_resampled(method: &str, from: usize, to: usize, got: Tensor<4>, want: impl Fn(&[f32], usize, usize) -> f64) {
        let (input, got) = (map(from), values(got));
        for y in 0..to {
            for x in 0..to {
                let want = want(&input, y, x);
                let got = f64::from(got[y * to + x]);
                assert!((got - want).abs() < 1e-5, "{method} {from} -> {to} at ({y}, {x}): got {got}, expected {want}");
            }
        }
    }

    #[test]
    fn area_averages_the_inputs_that_an_output_covers() {
        for (from, to) in SIZES {
            let got = area(tensor(map(from), [1, 1, from, from], &Device::flex()), to);
            let covered = |i: usize| i * from / to..((i + 1) * from).div_ceil(to);
            assert_resampled("area", from, to, got, |input, y, x| {
                let inputs: Vec<(usize, usize)> = covered(y).flat_map(|r| covered(x).map(move |c| (r, c))).collect();
                inputs.iter().map(|(r, c)| f64::from(input[r * from + c])).sum::<f64>() / inputs.len() as f64
            });
        }
    }

    #[test]
    fn bicubic_is_keys_kernel_with_clamped_edges() {
        // Keys, "Cubic convolution interpolation for digital image processing", 1981.
        const A: f64 = -0.75;
        let weight = |distance: f64| match distance.abs() {
            d if d <= 1.0 => ((A + 2.0) * d - (A + 3.0)) * d * d + 1.0,
            d if d < 2.0 => ((d - 5.0) * d + 8.0) * A * d - 4.0 * A,
            _ => 0.0,
        };
        for (from, to) in SIZES {
            let got = bicubic(tensor(map(from), [1, 1, from, from], &Device::flex()), to);
            let taps = |i: usize| {
                let centre = (i as f64 + 0.5) * from as f64 / to as f64 - 0.5;
                let first = centre.floor() as i64 - 1;
                let clamp = |p: i64| p.clamp(0, from as i64 - 1) as usize;
                (first..first + 4).map(move |p| (clamp(p), weight(centre - p as f64))).collect::<Vec<_>>()
            };
            assert_resampled("bicubic", from, to, got, |input, y, x| {
                let row =
                    |&(r, wy): &(usize, f64)| taps(x).iter().map(|(c, wx)| wy * wx * f64::from(input[r * from + c])).sum::<f64>();
                taps(y).iter().map(row).sum()
            });
        }
    }

    #[test]
    fn nearest_doubles_every_pixel() {
        let got = values(upsample_nearest(tensor(vec![1.0, 2.0, 3.0, 4.0], [1, 1, 2, 2], &Device::flex())));
        assert_eq!(got, [1.0, 1.0, 2.0, 2.0, 1.0, 1.0, 2.0, 2.0, 3.0, 3.0, 4.0, 4.0, 3.0, 3.0, 4.0, 4.0]);
    }
}
