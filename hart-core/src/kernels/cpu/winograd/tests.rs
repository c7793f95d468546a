//! Tests of every variant of the convolution against plain loops in f64 and against burn.

use burn::module::Param;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{GroupNorm, GroupNormConfig, PaddingConfig2d};

use super::element::Element;
use super::gemm::Product;
use super::*;
use crate::kernels::cpu::amx::TileGuard;
use crate::kernels::testing::waves_f64;
use crate::kernels::{tensor, values};
use crate::nn::{self, conv_params, group_norm_params};

/// Height, width, input and output channels. They cover multiples of tiles, chunks and vectors, other sizes, and a map of several
/// bands.
const SIZES: [[usize; 4]; 10] = [
    [8, 8, 16, 16],
    [9, 13, 5, 3],
    [1, 1, 1, 1],
    [6, 6, 33, 85],
    [2, 21, 4, 33],
    [7, 3, 48, 49],
    [5, 6, 7, 64],
    [71, 300, 40, 3],
    [13, 70, 64, 85],
    [6, 9, 25, 8],
];

/// Returns 0.5 plus the convolution, in f64 and plain loops.
fn plain_loops(
    x: &[f32],
    weights: &[f32],
    bias: &[f32],
    [height, width, in_channels, out_channels]: [usize; 4],
    factor: usize,
) -> Vec<f64> {
    let (tall, wide) = (height * factor, width * factor);
    let mut y: Vec<f64> = (0..tall * wide * out_channels).map(|i| 0.5 + f64::from(bias[i % out_channels])).collect();
    for (pixel, y) in y.chunks_mut(out_channels).enumerate() {
        for tap in 0..9 {
            let (row, column) = (pixel / wide + tap / 3, pixel % wide + tap % 3); // offset by the padding
            if (1..=tall).contains(&row) && (1..=wide).contains(&column) {
                let x = &x[((row - 1) / factor * width + (column - 1) / factor) * in_channels..][..in_channels];
                for (o, y) in y.iter_mut().enumerate() {
                    let products =
                        x.iter().enumerate().map(|(i, x)| f64::from(*x) * f64::from(weights[(o * in_channels + i) * 9 + tap]));
                    *y += products.sum::<f64>();
                }
            }
        }
    }
    y
}

#[test]
fn convolutions_are_sums_of_products() {
    for sizes in SIZES {
        let [height, width, in_channels, out_channels] = sizes;
        let (map, weights, bias) = (
            waves_f64(height * width * in_channels, 0.7),
            waves_f64(out_channels * in_channels * 9, 1.3),
            waves_f64(out_channels, 0.4),
        );
        let filters = Filters { weights: Weights::F32(&weights), bias: &bias, in_channels, out_channels };
        for (op, factor) in [(InputOp::Identity, 1), (InputOp::Upsample, 2)] {
            let x = Input { map: &map, height, width, channels: in_channels, op };
            let want = plain_loops(&map, &weights, &bias, sizes, factor);
            // Errors are relative to the largest value, or to the standard deviation of such sums where they cancel.
            let size = want.iter().fold((in_channels as f64 * 9.0 / 4.0).sqrt(), |largest, want| largest.max(want.abs()));
            for level in SimdLevel::all() {
                for (pairs, tolerance) in [(false, 1e-5), (true, 0.06)] {
                    let mut y = vec![0.5; want.len()];
                    if pairs {
                        conv3x3::convolve::<Pair, f32, f32>(level, &x, &filters, &mut y, true);
                    } else {
                        conv3x3::convolve::<f32, f32, f32>(level, &x, &filters, &mut y, true);
                    }
                    let error = y.iter().zip(&want).map(|(y, want)| (f64::from(*y) - want).abs()).fold(0.0, f64::max) / size;
                    assert!(error < tolerance, "{level:?} {sizes:?}, {op:?}, pairs {pairs}: off by {error}");
                }
            }
        }
    }
}

#[test]
fn products_of_pairs_are_those_of_their_values() {
    for (rows, depth, columns) in [(1, 1, 16), (13, 7, 80), (6, 20, 64), (9, 3, 48), (17, 5, 32), (64, 32, 80)] {
        let halves = |count: usize, speed| -> Vec<f32> {
            waves_f64(count, speed).into_iter().map(|value| bf16::from_f32(value).to_f32()).collect()
        };
        let (x, weights) = (halves(rows * 2 * depth, 0.7), halves(2 * depth * columns, 1.3));
        let x_pairs: Vec<Pair> = x.chunks(2).map(|x| Pair::new(x[0], x[1])).collect();
        let row = |k: usize| &weights[k * columns..][..columns];
        let panel: Vec<Pair> =
            (0..depth).flat_map(|k| row(2 * k).iter().zip(row(2 * k + 1)).map(|(a, b)| Pair::new(*a, *b))).collect();
        let at_levels = SimdLevel::all().map(|level| move |product: Product<'_, Pair>| bf16_gemm::multiply(level, product));
        let at_levels: Vec<_> = at_levels.collect();
        let at_levels = at_levels.iter().map(|multiply| multiply as &dyn Fn(Product<'_, Pair>));
        let token = Pair::amx(SimdLevel::best(), depth).filter(|_| rows.is_multiple_of(bf16_gemm::ROWS));
        let on_amx = token.map(|token| move |product: Product<'_, Pair>| bf16_gemm::multiply_amx(&TileGuard::new(token), product));
        let on_amx = on_amx.iter().map(|multiply| multiply as &dyn Fn(Product<'_, Pair>));
        for multiply in at_levels.chain(on_amx) {
            let mut y = vec![0.0; rows * columns];
            multiply(Product { x: &x_pairs, stride: depth, rows, panel: &panel, depth, columns, y: &mut y });
            for (i, y) in y.iter().enumerate() {
                let (row, column) = (i / columns, i % columns);
                let want: f32 = (0..2 * depth).map(|k| x[row * 2 * depth + k] * weights[k * columns + column]).sum();
                assert!((y - want).abs() < 1e-5, "{rows} x {depth} x {columns}: {y} and not {want}");
            }
        }
    }
}

fn layer(in_channels: usize, out_channels: usize, kernel: usize) -> Conv2d {
    let half = kernel / 2;
    let padding = PaddingConfig2d::Explicit(half, half, half, half);
    Conv2dConfig::new([in_channels, out_channels], [kernel, kernel]).with_padding(padding).init(&Device::flex())
}

fn group_norm(channels: usize, groups: usize) -> GroupNorm {
    let mut norm = GroupNormConfig::new(groups, channels).with_epsilon(1e-6).init(&Device::flex());
    let of = |speed, offset| Some(Param::from_tensor(tensor(waves_f64(channels, speed), [channels], &Device::flex()) + offset));
    (norm.gamma, norm.beta) = (of(1.3, 1.5), of(0.3, 0.0));
    norm
}

/// Asserts equality within a fraction of the largest value.
fn assert_close(what: &str, got: Tensor<4>, want: Tensor<4>, part: f32) {
    assert_eq!(got.dims(), want.dims());
    let (got, want) = (values(got), values(want));
    let largest = want.iter().fold(0f32, |largest, w| largest.max(w.abs()));
    assert!(got.iter().zip(&want).all(|(g, w)| (g - w).abs() <= part * largest), "{what}: {got:?} and not {want:?}");
}

/// Contiguous maps, channels-last maps and views of larger ones; shared tensors do not change.
#[test]
fn fused_convolutions_equal_plain_operations() {
    for [batch, in_channels, out_channels, height, width, groups] in
        [[1, 4, 6, 9, 7, 2], [2, 32, 48, 24, 17, 16], [3, 6, 6, 5, 5, 3]]
    {
        let map = |channels: usize| {
            tensor(waves_f64(batch * channels * height * width, 0.7), [batch, channels, height, width], &Device::flex())
        };
        let (residual, conv, norm) =
            (map(out_channels) * 3.0, layer(in_channels, out_channels, 3), group_norm(in_channels, groups));
        let x = map(in_channels) * 2.0 + 3.0;
        let channels_last_view = channels_first(channels_last(x.clone()));
        let part = Tensor::cat(vec![x.clone(), x.clone()], 3).narrow(3, 4, width);
        for x in [x, channels_last_view, part] {
            let before = values(x.clone());
            let normed = burn::tensor::activation::silu(norm.forward(x.clone()));
            let want = residual.clone() + conv.forward(normed);
            let (convolution, params) = (conv_params(&conv), group_norm_params(&norm));
            let get = |residual: Tensor<4>| norm_silu_conv2d(x.clone(), &params, &convolution, Some(residual)).unwrap();
            assert_close("norm", get(residual.clone()), want.clone(), 1e-5);
            assert_close("in place", get(residual.clone() * 1.0), want.clone(), 1e-5);
            assert_close("in place, channels last", get(channels_first(channels_last(residual.clone() * 1.0))), want, 1e-5);
            assert_close("plain", conv2d(x.clone(), &conv_params(&conv)).unwrap(), conv.forward(x.clone()), 1e-5);
            let twice = x.clone().reshape([batch * in_channels, height, 1, width, 1]).repeat_dim(4, 2).repeat_dim(2, 2);
            let twice = conv.forward(twice.reshape([batch, in_channels, 2 * height, 2 * width]));
            assert_close("upsampled", upsample_conv2d(x.clone(), &conv_params(&conv)).unwrap(), twice, 1e-5);
            let point = layer(in_channels, out_channels, 1);
            assert_close("1x1", conv2d(x.clone(), &conv_params(&point)).unwrap(), point.forward(x.clone()), 1e-5);
            assert_eq!(values(x), before);
        }
        assert_eq!(values(residual), values(map(out_channels) * 3.0));
    }
}

/// Rounds the weight of a convolution to bf16.
fn in_bf16(conv: Conv2d) -> Conv2d {
    Conv2d { weight: conv.weight.map(|weight| weight.cast(DType::BF16)), ..conv }
}

#[test]
fn weights_in_bf16_give_nearly_the_same() {
    let (conv, x) = (layer(24, 20, 3), tensor(waves_f64(24 * 19 * 18, 0.7), [1, 24, 19, 18], &Device::flex()));
    let rounded = in_bf16(conv.clone());
    assert_eq!(rounded.weight.val().dtype(), DType::BF16);
    let want = conv.forward(x.clone());
    assert_close("on this device", conv2d(x.clone(), &conv_params(&rounded)).unwrap(), want.clone(), 0.02);
    // A stride has no fast path, so the weights are widened.
    let strided = Conv2d { stride: [2, 2], ..conv.clone() };
    let rounded = Conv2d { stride: [2, 2], ..rounded };
    assert_close("widened", nn::conv2d(x.clone(), &rounded), strided.forward(x), 0.01);
}

/// Returns a map, two norms and two convolutions between `channels` and `hidden` channels.
fn res_block_of(
    [batch, channels, hidden, height, width]: [usize; 5],
    groups: usize,
    bf16: bool,
) -> (Tensor<4>, [GroupNormParams; 2], [ConvParams; 2]) {
    let x = tensor(waves_f64(batch * channels * height * width, 0.7), [batch, channels, height, width], &Device::flex());
    let norms = [channels, hidden].map(|channels| group_norm_params(&group_norm(channels, groups)));
    let convs = [layer(channels, hidden, 3), layer(hidden, channels, 3)];
    (x * 2.0 + 1.0, norms, convs.map(|conv| conv_params(&if bf16 { in_bf16(conv) } else { conv })))
}

#[test]
fn compact_residual_blocks_equal_two_convolutions() {
    for (sizes, groups) in [([2, 6, 10, 9, 7], 2), ([1, 32, 32, 24, 17], 16), ([2, 5, 5, 1, 1], 5), ([1, 40, 48, 71, 300], 8)] {
        for in_bf16 in [false, true] {
            let (x, [norm1, norm2], [conv1, conv2]) = res_block_of(sizes, groups, in_bf16);
            let before = values(x.clone());
            let whole = |x: &Tensor<4>, residual: &Tensor<4>| {
                let hidden = norm_silu_conv2d(x.clone(), &norm1, &conv1, None).unwrap();
                values(norm_silu_conv2d(hidden, &norm2, &conv2, Some(residual.clone())).unwrap())
            };
            let compact = |x: Tensor<4>, residual: Option<Tensor<4>>| {
                compact_res_block(x, residual, [&norm1, &norm2], [&conv1, &conv2]).unwrap()
            };
            let residual = x.clone().neg() + 3.0;
            assert_eq!(values(compact(x.clone(), None)), whole(&x, &x), "{sizes:?}");
            assert_eq!(values(compact(x.clone() * 1.0, None)), whole(&x, &x), "{sizes:?} in place");
            assert_eq!(values(compact(x.clone(), Some(residual.clone()))), whole(&x, &residual), "{sizes:?} with a residual");
            assert_eq!(values(x.clone()), before);

            // With a map in bf16, only the sum is rounded.
            let x = x.cast(DType::BF16);
            let y = compact(x.clone(), None);
            assert_eq!(y.dtype(), DType::BF16);
            let x = x.cast(DType::F32);
            let want: Vec<f32> = whole(&x, &x).into_iter().map(|value| bf16::from_f32(value).to_f32()).collect();
            assert_eq!(values(y), want, "{sizes:?} in bf16");
        }
    }
}

#[test]
fn compact_upsampling_equals_upsampling() {
    for [batch, in_channels, out_channels, height, width] in
        [[1, 4, 6, 9, 7], [2, 48, 40, 24, 17], [3, 7, 2, 5, 5], [2, 5, 5, 1, 1], [1, 40, 40, 40, 190]]
    {
        let x = tensor(waves_f64(batch * in_channels * height * width, 0.7), [batch, in_channels, height, width], &Device::flex());
        let conv = layer(in_channels, out_channels, 3);
        let want = upsample_conv2d(x.clone(), &conv_params(&conv)).unwrap();
        let got = compact_upsample_conv2d(x.clone(), &conv_params(&conv)).unwrap();
        assert_eq!(values(got), values(want));
        let rounded = conv_params(&in_bf16(conv));
        let got = compact_upsample_conv2d(x.clone(), &rounded).unwrap();
        assert_eq!(got.dtype(), DType::BF16);
        let x = x.cast(DType::BF16);
        assert_eq!(values(compact_upsample_conv2d(x.clone(), &rounded).unwrap()), values(got.clone()));
        let want = values(upsample_conv2d(x.cast(DType::F32), &rounded).unwrap());
        assert_eq!(values(got), want.into_iter().map(|value| bf16::from_f32(value).to_f32()).collect::<Vec<_>>());
    }
    // The maps do not fit into their output.
    let x = tensor(waves_f64(9 * 16, 0.7), [1, 9, 4, 4], &Device::flex());
    assert!(compact_upsample_conv2d(x, &conv_params(&layer(9, 2, 3))).is_err());
}

/// Largest error of rounding to bf16, relative to a value: half the distance between neighbours.
const BF16_ERROR: f32 = 1.0 / 256.0;

#[test]
fn maps_in_bf16_are_widened_as_they_are_read() {
    let (x, [norm, _], [in_bf16, _]) = res_block_of([2, 24, 20, 19, 18], 4, true);
    let (_, _, [in_f32, _]) = res_block_of([2, 24, 20, 19, 18], 4, false);
    let narrow = x.cast(DType::BF16);
    let x = narrow.clone().cast(DType::F32);
    let point = conv_params(&layer(24, 20, 1));
    let residual = tensor(waves_f64(2 * 20 * 19 * 18, 0.4), [2, 20, 19, 18], &Device::flex()).cast(DType::BF16);
    let wide_residual = residual.clone().cast(DType::F32);
    for (got, want, dtype) in [
        (conv2d(narrow.clone(), &in_f32), conv2d(x.clone(), &in_f32), DType::F32),
        (conv2d(narrow.clone(), &in_bf16), conv2d(x.clone(), &in_bf16), DType::BF16),
        (conv2d(narrow.clone(), &point), conv2d(x.clone(), &point), DType::BF16),
        (upsample_conv2d(narrow.clone(), &in_bf16), upsample_conv2d(x.clone(), &in_bf16), DType::BF16),
    ] {
        let got = got.unwrap();
        assert_eq!(got.dtype(), dtype);
        assert_close("map in bf16", got, want.unwrap(), BF16_ERROR);
    }
    let got = norm_silu_conv2d(narrow, &norm, &in_bf16, Some(residual)).unwrap();
    assert_close("sum in bf16", got, norm_silu_conv2d(x, &norm, &in_bf16, Some(wide_residual)).unwrap(), BF16_ERROR);
}

#[test]
fn other_convolutions_do_not_apply() {
    let map = |channels| tensor(waves_f64(channels * 81, 0.7), [1, channels, 9, 9], &Device::flex());
    let same = PaddingConfig2d::Explicit(1, 1, 1, 1);
    let usual = Conv2dConfig::new([2, 2], [3, 3]).with_padding(same.clone());
    for config in [
        usual.clone().with_bias(false),
        usual.clone().with_stride([2, 2]),
        usual.clone().with_dilation([2, 2]),
        usual.clone().with_groups(2),
        usual.clone().with_padding(PaddingConfig2d::Valid),
        Conv2dConfig::new([2, 2], [5, 5]).with_padding(same.clone()),
        Conv2dConfig::new([2, 2], [1, 1]).with_padding(same),
    ] {
        assert!(conv2d(map(2), &conv_params(&config.init(&Device::flex()))).is_err(), "{config}");
    }
    let (three, one) = (conv_params(&layer(2, 3, 3)), conv_params(&layer(2, 3, 1)));
    let norm = |channels, groups| group_norm_params(&group_norm(channels, groups));
    assert!(norm_silu_conv2d(map(2), &norm(2, 2), &three, Some(map(2))).is_err());
    assert!(norm_silu_conv2d(map(2), &norm(4, 2), &three, None).is_err());
    assert!(upsample_conv2d(map(2), &one).is_err());
    assert!(norm_silu_conv2d(map(2), &norm(2, 2), &three, Some(map(3).cast(DType::BF16))).is_err());
    let (x, [norm1, norm2], [conv1, conv2]) = res_block_of([1, 4, 6, 9, 9], 2, false);
    let block = |x: Tensor<4>, residual, norms, convs| compact_res_block(x, residual, norms, convs).is_ok();
    assert!(block(x.clone(), None, [&norm1, &norm2], [&conv1, &conv2]));
    assert!(!block(x.clone(), None, [&norm2, &norm1], [&conv1, &conv2]));
    assert!(!block(x.clone(), None, [&norm1, &norm2], [&conv2, &conv1]));
    assert!(!block(x.clone(), None, [&norm1, &norm1], [&conv1, &three]));
    assert!(!block(x.clone(), Some(map(2)), [&norm1, &norm2], [&conv1, &conv2]));
    assert!(!block(x.clone(), Some(x.cast(DType::BF16)), [&norm1, &norm2], [&conv1, &conv2]));
    #[cfg(feature = "train")]
    assert!(conv2d(tensor(waves_f64(162, 0.7), [1, 2, 9, 9], &Device::flex().autodiff()), &three).is_err());
}

#[test]
fn same_bits_with_any_number_of_threads() {
    let [height, width, in_channels, out_channels] = [90, 310, 48, 100];
    let (x, conv, norm) =
        (waves_f64(height * width * in_channels, 0.7), layer(in_channels, out_channels, 3), group_norm(in_channels, 3));
    let x = tensor(x, [1, in_channels, height, width], &Device::flex());
    for conv in [conv.clone(), in_bf16(conv)] {
        let with = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| values(norm_silu_conv2d(x.clone(), &group_norm_params(&norm), &conv_params(&conv), None).unwrap()))
        };
        let one = with(1);
        assert!([2, 5].into_iter().all(|threads| one.iter().zip(with(threads)).all(|(a, b)| a.to_bits() == b.to_bits())));
    }
}
