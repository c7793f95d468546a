//! The kernels against the bodies for the CPU, on the device that `HART_TEST_DEVICE` names, or the first one of wgpu or CUDA.

use burn::nn::{GroupNormConfig, LayerNormConfig};
use burn::prelude::*;
use burn::tensor::FloatDType;

use crate::device::Precision;
use crate::kernels::testing::{gpu as device, on, wave, waves};
use crate::kernels::{AttentionParams, KvScratch, KvStore, Modulation, RowGroup, self_attention, tensor, to_f32, values};
use crate::nn::{RotaryEmbedding, conv_params, group_norm_params};
use crate::rng::{Philox, RandomKey, RandomSource, Stream};

/// What products in f32 may be off by.
const IN_F32: f32 = 1e-4;

/// Numbers that bf16 holds, to which training rounds the operands of products: what it computes of them is exact.
fn held<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    let shape: [usize; D] = x.dims();
    let device = x.device();
    tensor(values(x).into_iter().map(|value| half::bf16::from_f32(value).to_f32()).collect(), shape, &device)
}

#[track_caller]
fn assert_close<const D: usize>(what: &str, got: Tensor<D>, want: Tensor<D>, tolerance: f32) {
    assert_eq!(got.dims(), want.dims(), "{what}");
    let (got, want) = (values(to_f32(got)), values(want));
    let error = got.iter().zip(&want).map(|(g, w)| (g - w).abs() / w.abs().max(1.0)).fold(0.0, f32::max);
    assert!(error <= tolerance && got.iter().all(|v| v.is_finite()), "{what}: off by {error}");
}

/// The same to a part of the largest number.
#[cfg(feature = "train")]
#[track_caller]
fn assert_close_in_all<const D: usize>(what: &str, got: Tensor<D>, want: Tensor<D>) {
    let largest = values(want.clone().abs().max())[0];
    assert_close(what, got / largest, want / largest, IN_F32);
}

/// All of them.
#[cfg(feature = "train")]
#[track_caller]
fn assert_all_close<const D: usize, const N: usize>(got: [Tensor<D>; N], want: [Tensor<D>; N]) {
    for (index, (got, want)) in got.into_iter().zip(want).enumerate() {
        assert_close_in_all(&format!("number {index}"), on(&got, &want.device()), want);
    }
}

#[test]
fn norms_and_sums_equal_the_cpus() {
    let (gpu, cpu) = (device(), Device::flex());
    for width in [6, 300] {
        let (gain, bias) = (wave([width], 1.1, &cpu), wave([width], 0.3, &cpu));
        let (gain_there, bias_there) = (on(&gain, &gpu), on(&bias, &gpu));
        let wide = wave([2, 5, 3 * width], 0.9, &cpu);
        let part = |index: usize| wide.clone().narrow(2, index * width, width);
        let both = |scale: Tensor<3>, shift: Tensor<3>| Modulation { scale, shift };
        let modulations = [
            None,
            Some(both(part(0), part(2))),
            Some(both(part(1).narrow(1, 2, 1), wave([2, 1, width], 0.4, &cpu))),
            Some(both(wave([1, 1, width], 0.8, &cpu), wave([1, 1, width], 0.4, &cpu))),
        ];
        for modulation in &modulations {
            let x = wave([2, 5, width], 0.7, &cpu);
            let there = modulation.as_ref().map(|m| both(on(&m.scale, &gpu), on(&m.shift, &gpu)));
            let (here, there) = (modulation.as_ref(), there.as_ref());
            let y = on(&x, &gpu);
            let norm = crate::kernels::rms_norm;
            let normalized = norm(x.clone(), &gain, 1e-5, here);
            assert_close("rms", norm(y.clone(), &gain_there, 1e-5, there), normalized.clone(), 1e-5);
            let norm = crate::kernels::layer_norm;
            let want = norm(x.clone(), Some(&gain), Some(&bias), 1e-5, here);
            assert_close("layer", norm(y.clone(), Some(&gain_there), Some(&bias_there), 1e-5, there), want, 1e-5);
            let want = norm(x.clone(), None, None, 1e-5, here);
            assert_close("bare", norm(y.clone(), None, None, 1e-5, there), want, 1e-5);
            let (more, gate) = (wave([2, 5, width], 0.3, &cpu), here.map(|m| m.scale.clone()));
            let want = crate::kernels::add_gated(x.clone(), more.clone(), gate.as_ref());
            let gate = gate.map(|gate| on(&gate, &gpu));
            assert_close("sum", crate::kernels::add_gated(y.clone(), on(&more, &gpu), gate.as_ref()), want.clone(), 1e-6);
            // Both at once, gated by a part of a wider tensor.
            let between = here.map(|m| (&m.scale, m));
            let on_gpu = gate.as_ref().zip(there);
            let (sum, normed) = super::add_norm(y.clone(), on(&more, &gpu), &gain_there, 1e-5, on_gpu).unwrap();
            assert_close("sum", sum, want, 1e-6);
            let (_, want) = crate::kernels::add_norm(x.clone(), more, &gain, 1e-5, between);
            assert_close("its norm", normed, want, 1e-5);
            // A norm whose gain is in half precision gives that.
            let half = gain_there.clone().cast(FloatDType::F16);
            assert_close("half", crate::kernels::rms_norm(y, &half, 1e-5, there), normalized, 2e-3);
        }
    }
}

#[test]
fn gates_equal_the_cpus() {
    let (gpu, cpu) = (device(), Device::flex());
    let (gate, up) = (wave([2, 50, 7], 0.7, &cpu) * 6.0, wave([2, 50, 7], 0.3, &cpu));
    assert_close("silu", super::silu(on(&gate, &gpu)).unwrap(), crate::kernels::silu(gate.clone()), 1e-5);
    let half = on(&gate, &gpu).cast(FloatDType::F16);
    assert_close("silu in half", super::silu(half).unwrap(), crate::kernels::silu(gate.clone()), 2e-3);
    let want = crate::kernels::silu(gate.clone()) * up.clone();
    assert_close("gated", super::silu_mul(on(&gate, &gpu), on(&up, &gpu)).unwrap(), want, 1e-5);
}

#[test]
fn maps_equal_the_cpus() {
    let (gpu, cpu) = (device(), Device::flex());
    for (channels, groups, side) in [(32, 32, 5), (64, 32, 33), (320, 32, 9)] {
        let norm = |device: &Device| GroupNormConfig::new(groups, channels).with_epsilon(1e-6).init(device);
        let x = wave([2, channels, side, side], 0.7, &cpu) + 0.3;
        for (map, what) in [(on(&x, &gpu), "whole"), (on(&x.clone().swap_dims(2, 3), &gpu).swap_dims(2, 3), "view")] {
            assert_close(
                what,
                super::group_norm(map.clone(), &group_norm_params(&norm(&gpu)), false).unwrap(),
                norm(&cpu).forward(x.clone()),
                2e-4,
            );
            let want = crate::kernels::silu(norm(&cpu).forward(x.clone()));
            assert_close(what, super::group_norm(map.clone(), &group_norm_params(&norm(&gpu)), true).unwrap(), want, 2e-4);
            let want = x.clone().repeat_dim(2, 1).reshape([2 * channels, side, 1, side, 1]).repeat_dim(4, 2).repeat_dim(2, 2);
            let want = want.reshape([2, channels, 2 * side, 2 * side]);
            assert_close(what, super::upsample_nearest(&map).unwrap(), want, 0.0);
        }
    }
}

/// Both operands either way round, sizes that fit nothing, sums in shares, in f32 and in half precision.
#[test]
fn products_equal_the_cpus() {
    use super::product::{Lies, Operand, Single, Sizes, View, multiply};
    let (gpu, cpu) = (device(), Device::flex());
    for (rows, columns, depth, shared) in
        [(5, 7, 3, false), (130, 72, 64, false), (64, 136, 264, false), (40, 168, 4100, true), (300, 300, 48, false)]
    {
        let (x, w) = (held(wave([rows, depth], 0.7, &cpu)), held(wave([depth, columns], 0.3, &cpu)));
        let b: Tensor<1> = wave([columns], 0.9, &cpu);
        let most = values(x.clone().matmul(w.clone()).abs().max())[0].max(1.0);
        for (left_lies, right_lies) in
            [(Lies::Deep, Lies::Wide), (Lies::Deep, Lies::Deep), (Lies::Wide, Lies::Wide), (Lies::Wide, Lies::Deep)]
        {
            let ways = [
                (FloatDType::F32, Single::Exact, 1e-5),
                (FloatDType::F32, Single::Rounded, IN_F32),
                (FloatDType::F16, Single::Exact, 5e-3),
            ];
            for (kind, single, tolerance) in ways {
                let laid = |x: &Tensor<2>, as_it_is: bool| {
                    let x = if as_it_is { x.clone() } else { x.clone().transpose() };
                    super::whole(&on(&x, &gpu).cast(kind)).unwrap()
                };
                let in_kind = |x: &Tensor<2>| to_f32(x.clone().cast(kind));
                let want = in_kind(&x).matmul(in_kind(&w));
                let sizes = if shared { Sizes::in_shares(rows, columns, depth) } else { Sizes::new(rows, columns, depth) };
                let share = sizes.share;
                let operand = |x: &Tensor<2>, lies, deep, across| {
                    let (line, apart) = if lies == Lies::Deep { (depth, share) } else { (across, share * across) };
                    Operand::new(laid(x, (lies == Lies::Deep) == deep), lies, line).apart(apart)
                };
                let (left, right) = (operand(&x, left_lies, true, rows), operand(&w, right_lies, false, columns));
                let bias = super::whole(&on(&b, &gpu)).unwrap();
                let bias = (!shared).then_some(&bias);
                let got: Tensor<3> = super::tensor(multiply(&left, &right, sizes, View::default(), bias, kind.into(), single));
                let got = on(&to_f32(got).sum_dim(0).reshape([rows, columns]), &cpu);
                let want = if !shared { want.clone() + b.clone().unsqueeze() } else { want.clone() };
                let what = format!("{rows} x {columns} x {depth}, {left_lies:?} by {right_lies:?}, {kind:?}, {single:?}");
                assert_close(&what, got / most, want / most, tolerance);
            }
        }
    }
}

/// Every tile, filled and not, and steps of its depth that are whole and not.
#[test]
fn products_in_every_tile_equal_the_cpus() {
    use super::product::{Lies, Operand, Single, Sizes, TILES, View, multiply};
    let (gpu, cpu) = (device(), Device::flex());
    for tile in TILES {
        for (rows, columns, depth) in [(tile.0 + 3, tile.1 + 8, 96), (tile.0, 2 * tile.1, 40)] {
            let (x, w) = (held(wave([rows, depth], 0.7, &cpu)), held(wave([depth, columns], 0.3, &cpu)));
            let want = x.clone().matmul(w.clone());
            let most = values(want.clone().abs().max())[0];
            let on_gpu = |x: &Tensor<2>| super::whole(&on(x, &gpu).cast(FloatDType::F16)).unwrap();
            let left = Operand::new(on_gpu(&x), Lies::Deep, depth);
            for (right, lies, line) in [(w.clone(), Lies::Wide, columns), (w.clone().transpose(), Lies::Deep, depth)] {
                let right = Operand::new(on_gpu(&right), lies, line);
                let (sizes, to) = (Sizes::new(rows, columns, depth).in_tile(tile), FloatDType::F32.into());
                let got = multiply(&left, &right, sizes, View::default(), None, to, Single::Exact);
                let got = on(&super::tensor::<3>(got).reshape([rows, columns]), &cpu);
                assert_close(&format!("{tile:?}, {lies:?}, depth {depth}"), got / most, want.clone() / most, 1e-5);
            }
        }
    }
}

/// A tracked layer's output and gradients, also where its bias is summed over many rows.
#[cfg(feature = "train")]
#[test]
fn gradients_of_layers_equal_the_cpus() {
    use burn::module::{Param, ParamId};
    let found = |device: &Device| {
        let device = device.clone().autodiff();
        let x = held(wave([4300, 40], 0.7, &device)).require_grad();
        let weight = held(wave([40, 24], 0.3, &device)).require_grad();
        let bias = wave::<1>([24], 0.4, &device).require_grad();
        let mut layer = crate::nn::LinearConfig::new(40, 24).init(&device);
        layer.weight = Param::initialized(ParamId::new(), weight.clone());
        layer.bias = Some(Param::initialized(ParamId::new(), bias.clone()));
        let y = layer.forward(x.clone().reshape([43, 100, 40]));
        let gradients = (y.clone() * held(wave(y.dims(), 1.1, &device))).sum().backward();
        let [of_x, of_weight] = [&x, &weight].map(|of| of.grad(&gradients).unwrap().reshape([1, -1]));
        [y.inner().reshape([1, -1]), of_x, of_weight, bias.grad(&gradients).unwrap().reshape([1, -1])]
    };
    assert_all_close(found(&device()), found(&Device::flex()));
}

/// Tracked norms' output and gradients.
#[cfg(feature = "train")]
#[test]
fn gradients_of_norms_equal_the_cpus() {
    use burn::module::{Param, ParamId};
    let found = |device: &Device| {
        let device = device.clone().autodiff();
        let x = wave([43, 100, 24], 0.7, &device).require_grad();
        let gain = wave::<1>([24], 0.8, &device).require_grad();
        let norm = burn::nn::RmsNorm { gamma: Param::initialized(ParamId::new(), gain.clone()), epsilon: 1e-6 };
        let y = crate::nn::rms_norm(x.clone(), &norm, None);
        let norm = LayerNormConfig::new(24).with_epsilon(1e-6).init(&device);
        let both = Modulation { scale: wave([1, 1, 24], 0.8, &device), shift: wave([1, 1, 24], 0.4, &device) };
        let y = crate::nn::layer_norm(y * 2.0 + 0.5, Some(&norm), 1e-6, Some(&both));
        let gradients = (y.clone() * wave(y.dims(), 1.1, &device)).sum().backward();
        let of_x = x.grad(&gradients).unwrap();
        [y.inner().reshape([1, -1]), of_x.reshape([1, -1]), gain.grad(&gradients).unwrap().reshape([1, -1])]
    };
    assert_all_close(found(&device()), found(&Device::flex()));
}

/// Groups of one channel and of many, with SiLU behind them and without.
#[cfg(feature = "train")]
#[test]
fn gradients_of_group_norms_equal_the_cpus() {
    use burn::module::{Param, ParamId};
    let cpu = Device::flex();
    for (channels, groups, side) in [(32, 32, 5), (64, 32, 33), (48, 8, 9)] {
        for silu in [false, true] {
            let found = |device: &Device| {
                let device = device.clone().autodiff();
                let mut norm = GroupNormConfig::new(groups, channels).with_epsilon(1e-6).init(&device);
                let (gain, bias) =
                    (wave::<1>([channels], 0.3, &device).require_grad(), wave::<1>([channels], 0.8, &device).require_grad());
                norm.gamma = Some(Param::initialized(ParamId::new(), gain.clone()));
                norm.beta = Some(Param::initialized(ParamId::new(), bias.clone()));
                let x = (wave([3, channels, side, side], 0.7, &device) + 0.3).detach().require_grad();
                let y = if silu {
                    crate::kernels::norm::group_norm_silu(x.clone(), &group_norm_params(&norm))
                } else {
                    crate::nn::group_norm(x.clone(), &norm)
                };
                let gradients = (y * wave([3, channels, side, side], 1.1, &device)).sum().backward();
                let rows = [gain.grad(&gradients), bias.grad(&gradients)].map(|g| on(&g.unwrap().reshape([1, -1]), &cpu));
                [vec![on(&x.grad(&gradients).unwrap().reshape([1, -1]), &cpu)], rows.to_vec()].concat()
            };
            for (what, (got, want)) in ["x", "gain", "bias"].iter().zip(found(&device()).into_iter().zip(found(&cpu))) {
                assert_close(&format!("{channels} channels, SiLU {silu}: {what}"), got, want, 2e-3);
            }
        }
    }
}

/// Sizes that fit nothing, strides, kernels of one and three, and both gradients.
#[test]
fn convolutions_equal_the_cpus() {
    use burn::nn::PaddingConfig2d;
    use burn::nn::conv::Conv2dConfig;
    let (gpu, cpu) = (device(), Device::flex());
    for (from, to, kernel, stride, padding) in
        [(3, 32, 3, 1, [1, 1]), (32, 5, 3, 1, [1, 1]), (16, 24, 1, 1, [0, 0]), (8, 8, 3, 2, [1, 1]), (8, 8, 3, 2, [0, 1])]
    {
        let [before, after] = padding;
        let padding = PaddingConfig2d::Explicit(before, before, after, after);
        let config = Conv2dConfig::new([from, to], [kernel, kernel]).with_stride([stride, stride]).with_padding(padding);
        let here = config.init(&cpu);
        let mut there = config.init(&gpu);
        there.weight = there.weight.map(|_| on(&here.weight.val(), &gpu));
        there.bias = there.bias.map(|bias| bias.map(|_| on(&here.bias.as_ref().unwrap().val(), &gpu)));
        let x = wave([2, from, 9, 13], 0.7, &cpu);
        let got = super::conv2d(on(&x, &gpu), &conv_params(&there)).unwrap();
        assert_close("output", got, here.forward(x.clone()), IN_F32);
        #[cfg(feature = "train")]
        {
            use burn::module::{Module, Param, ParamId};
            let gradients = |device: Device, by: &dyn Fn(Tensor<4>, &burn::nn::conv::Conv2d) -> Tensor<4>| {
                let device = device.autodiff();
                let tracked = |x: Tensor<4>| on(&x, &device).require_grad();
                let mut layer = config.init(&device);
                let weight = tracked(held(here.weight.val()));
                layer.weight = Param::initialized(ParamId::new(), weight.clone());
                let bias = on(&here.bias.as_ref().unwrap().val(), &device).require_grad();
                layer.bias = Some(Param::initialized(ParamId::new(), bias.clone()));
                let _ = layer.num_params();
                let x = tracked(held(x.clone()));
                let y = by(x.clone(), &layer);
                let dy = held(wave(y.dims(), 1.1, &device));
                let gradients = (y * dy).sum().backward();
                let all = (x.grad(&gradients).unwrap(), weight.grad(&gradients).unwrap(), bias.grad(&gradients).unwrap());
                (on(&all.0, &cpu), on(&all.1, &cpu), on(&all.2, &cpu))
            };
            let want = gradients(cpu.clone(), &|x, layer| layer.forward(x));
            let got = gradients(gpu.clone(), &|x, layer| super::conv2d(x, &conv_params(layer)).unwrap());
            assert_close_in_all("gradient of x", got.0, want.0);
            assert_close_in_all("gradient of the weights", got.1, want.1);
            assert_close_in_all("gradient of the bias", got.2, want.2);
        }
    }
}

/// Three scales with the cache kept in place, in f32 and in half precision.
#[test]
fn self_attention_equals_the_cpus() {
    let (gpu, cpu) = (device(), Device::flex());
    let heads = 3;
    for (channels, normalised, longest) in [(16, false, 49), (16, true, 49), (64, true, 149), (512, true, 5)] {
        let width = heads * channels;
        let params = |device: &Device| AttentionParams {
            heads,
            query_bias: tensor(waves(width, 0.3), [width], device),
            value_bias: tensor(waves(width, 0.5), [width], device),
            norms: normalised.then(|| tensor(vec![3.0, 4.0, 5.0], [1, heads, 1, 1], device)),
            scale: if normalised { 1.0 } else { 0.3 },
        };
        for (precision, tolerance) in [(Precision::F32, IN_F32), (Precision::F16, 2e-2)] {
            let (mut there, mut here) = (KvStore::new(precision, 11), KvStore::new(Precision::F32, 11));
            let mut scratch = KvScratch::default();
            for (index, length) in [7, 4, longest].into_iter().enumerate() {
                let qkv = wave([4, length, 3 * width], 0.37 + index as f32, &cpu);
                let positions: Vec<Vec<f32>> = (0..4).map(|row| (0..length).map(|p| (p * 2 + row) as f32).collect()).collect();
                let groups = [RowGroup { rows: 2, tokens: length, multiplicity: 1 }; 2];
                let mut kv = if index == 2 { there.append_last(&mut scratch) } else { there.append() };
                let rotation = |device: &Device| RotaryEmbedding::sequence(&positions, channels, 100.0, device);
                let given = on(&qkv, &gpu);
                let given = if precision == Precision::F16 { given.cast(FloatDType::F16) } else { given };
                let part = kv.gpu().expect("the GPU computed the past");
                let got = super::self_attention(&given, &params(&gpu), rotation(&gpu).tables(), &groups, part, None);
                let got = got.expect("it is the GPU's");
                let want = self_attention(qkv, &params(&cpu), rotation(&cpu).tables(), &groups, here.append(), None);
                assert_close(
                    &format!("{channels} channels, normalised {normalised}, {precision}, scale {index}"),
                    got,
                    want,
                    tolerance,
                );
            }
        }
    }
}

/// Heads that share keys, some at a time; without a bias, with one for all heads and with one for each row. Scores are far from what ten
/// bits hold.
#[test]
fn attention_equals_the_cpus() {
    let (gpu, cpu) = (device(), Device::flex());
    let (rows, heads, groups, length, tokens, channels) = (2, 4, 2, 70, 90, 24);
    let part = |heads, length, speed| wave::<4>([rows, heads, length, channels], speed, &cpu) * 3.0;
    let of = [part(heads, length, 0.7), part(groups, tokens, 0.31), part(groups, tokens, 1.3)];
    let biases = [None, Some([1, 1, 1, tokens]), Some([1, 1, length, tokens]), Some([rows, 1, length, tokens])];
    for shape in biases {
        let bias = shape.map(|shape| wave::<4>(shape, 0.11, &cpu) * 2.0);
        let [query, key, value] = of.clone();
        let want = crate::kernels::attention(query, key, value, bias.as_ref(), 0.3);
        let bias = bias.map(|bias| on(&bias, &gpu));
        for (kind, tolerance) in [(FloatDType::F32, 1e-5), (FloatDType::F16, 1e-2)] {
            let there = of.each_ref().map(|part| on(part, &gpu).cast(kind));
            let got = super::attention(there.each_ref(), bias.as_ref(), 0.3).unwrap();
            assert_close(&format!("{shape:?}, {kind:?}"), got, want.clone(), tolerance);
        }
    }
}

/// Means far from zero, which squares in f32 would swallow.
#[test]
fn groups_far_from_zero_are_normed_as_on_the_cpu() {
    let (gpu, cpu) = (device(), Device::flex());
    let norm = |device: &Device| GroupNormConfig::new(4, 8).with_epsilon(1e-6).init(device);
    let x = wave([2, 8, 40, 40], 0.7, &cpu) * 0.5 + 300.0;
    assert_close(
        "far",
        super::group_norm(on(&x, &gpu), &group_norm_params(&norm(&gpu)), false).unwrap(),
        norm(&cpu).forward(x),
        2e-3,
    );
}

/// A kernel of one place with zeros behind the last places only.
#[test]
fn zeros_behind_are_not_read_from_elsewhere() {
    use burn::nn::PaddingConfig2d;
    use burn::nn::conv::Conv2dConfig;
    let (gpu, cpu) = (device(), Device::flex());
    let config = Conv2dConfig::new([4, 6], [1, 1]).with_padding(PaddingConfig2d::Explicit(0, 0, 1, 1));
    let mut layer = config.init(&gpu);
    layer.weight = layer.weight.map(|weight| on(&wave(weight.dims(), 0.3, &cpu), &gpu));
    let x = wave([2, 4, 3, 5], 0.7, &cpu);
    let got = on(&super::conv2d(on(&x, &gpu), &conv_params(&layer)).unwrap(), &cpu);
    assert_eq!(got.dims(), [2, 6, 4, 6]);
    let mut usual = Conv2dConfig::new([4, 6], [1, 1]).init(&cpu);
    usual.weight = usual.weight.map(|_| on(&layer.weight.val(), &cpu));
    usual.bias = usual.bias.map(|bias| bias.map(|_| on(&layer.bias.as_ref().unwrap().val(), &cpu)));
    assert_close("inside", got.clone().narrow(2, 0, 3).narrow(3, 0, 5), usual.forward(x.clone()), IN_F32);
    assert_close("behind", got.narrow(2, 3, 1).narrow(3, 0, 5), usual.forward(x.narrow(2, 0, 1) * 0.0), IN_F32);
}

/// The same words make the same noise, to a few last digits.
#[test]
fn noise_equals_the_hosts() {
    let seeds = [7, u64::MAX - 3];
    let (length, channels) = (50, 7);
    let got = super::normals(&Stream::step_noise(&seeds, 3, 2), [2, length, channels], &device()).unwrap();
    let draws = Philox::new(seeds.to_vec());
    let mut want = vec![0.0; 2 * length * channels];
    for (token, out) in want.chunks_mut(channels).enumerate() {
        draws.step_noise(RandomKey { image: token / length, scale: 3, position: token % length }, 2, out);
    }
    assert_close("noise", got, tensor(want, [2, length, channels], &Device::flex()), 1e-5);
}
