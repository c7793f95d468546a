//! Operations on feature maps.

use burn::module::{Module, ModuleMapper, Param};
use burn::nn::GroupNorm;
use burn::nn::conv::Conv2d;
use burn::prelude::*;
use burn::tensor::ops::{InterpolateMode, InterpolateOptions};
use burn::tensor::{DType, module};

#[cfg(feature = "cpu")]
use super::cpu::{self, Before};

/// 2-D convolution.
///
/// # Shapes
///
/// - x: `[B, in, h, w]`
/// - output: `[B, out, h', w']`
pub(crate) fn conv2d(x: Tensor<4>, layer: &Conv2d) -> Tensor<4> {
    #[cfg(feature = "cpu")]
    let x = match cpu::conv2d(x, Before::Nothing, layer, None) {
        Ok(y) => return y,
        Err((x, _)) => x,
    };
    #[cfg(any(feature = "cuda", feature = "wgpu"))]
    let x = match super::gpu::conv2d(x, layer) {
        Ok(y) => return y,
        Err(x) => x,
    };
    if layer.weight.val().dtype() != DType::F32 {
        let mut layer = layer.clone();
        layer.weight = layer.weight.map(|weight| weight.cast(DType::F32));
        return conv2d(x, &layer);
    }
    #[cfg(feature = "cpu")]
    let x = match super::cpu::conv3x3(x, layer) {
        Ok(y) => return y,
        Err(x) => x,
    };
    layer.forward(x)
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

/// `plus + conv2d(silu(group_norm(x)))`, by a layer that keeps the map's sides.
///
/// # Shapes
///
/// - x: `[B, in, h, w]`
/// - plus, output: `[B, out, h, w]`
pub(crate) fn norm_silu_conv2d(x: Tensor<4>, norm: &GroupNorm, layer: &Conv2d, plus: Option<Tensor<4>>) -> Tensor<4> {
    #[cfg(feature = "cpu")]
    let (x, plus) = match cpu::conv2d(x, Before::Norm(norm), layer, plus) {
        Ok(y) => return y,
        Err(back) => back,
    };
    let y = conv2d(super::group_norm_silu(x, norm), layer);
    match plus {
        Some(plus) => plus + y,
        None => y,
    }
}

/// Doubles a map's sides, by nearest neighbour and then a convolution.
///
/// # Shapes
///
/// - x: `[B, in, h, w]`
/// - output: `[B, out, 2h, 2w]`
pub(crate) fn upsample_conv2d(x: Tensor<4>, layer: &Conv2d) -> Tensor<4> {
    #[cfg(feature = "cpu")]
    let x = match cpu::conv2d(x, Before::Doubling, layer, None) {
        Ok(y) => return y,
        Err((x, _)) => x,
    };
    conv2d(upsample_nearest(x), layer)
}

/// Every pixel four times: `[B, C, h, w]` to `[B, C, 2h, 2w]`.
fn upsample_nearest(x: Tensor<4>) -> Tensor<4> {
    #[cfg(any(feature = "cuda", feature = "wgpu"))]
    if let Some(y) = super::gpu::upsample_nearest(&x) {
        return y;
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::{tensor, values};

    const SIZES: [(usize, usize); 9] = [(1, 5), (2, 7), (3, 8), (5, 7), (7, 3), (8, 3), (9, 4), (13, 18), (16, 13)];

    /// A map with no symmetry.
    fn map(side: usize) -> Vec<f32> {
        (0..side * side).map(|i| ((i * i) as f32 * 0.37 + i as f32).sin()).collect()
    }

    fn check(what: &str, from: usize, to: usize, got: Tensor<4>, want: impl Fn(&[f32], usize, usize) -> f64) {
        let (input, got) = (map(from), values(got));
        for y in 0..to {
            for x in 0..to {
                let want = want(&input, y, x);
                let got = f64::from(got[y * to + x]);
                assert!((got - want).abs() < 1e-5, "{what} {from} -> {to} at ({y}, {x}): {got} and not {want}");
            }
        }
    }

    #[test]
    fn area_averages_the_inputs_that_an_output_covers() {
        for (from, to) in SIZES {
            let got = area(tensor(map(from), [1, 1, from, from], &Device::flex()), to);
            let covered = |i: usize| i * from / to..((i + 1) * from).div_ceil(to);
            check("area", from, to, got, |input, y, x| {
                let places: Vec<(usize, usize)> = covered(y).flat_map(|r| covered(x).map(move |c| (r, c))).collect();
                places.iter().map(|(r, c)| f64::from(input[r * from + c])).sum::<f64>() / places.len() as f64
            });
        }
    }

    #[test]
    fn bicubic_is_keys_kernel_with_clamped_edges() {
        // Keys 1981, a = -0.75.
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
            check("bicubic", from, to, got, |input, y, x| {
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
