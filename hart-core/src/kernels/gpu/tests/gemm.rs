use burn::prelude::*;
use burn::tensor::FloatDType;

use super::super::gemm::{ConvGeometry, F32Mode, GemmShape, Layout, Operand, TILES, gemm};
use super::super::{contiguous, tensor};
#[cfg(feature = "train")]
use super::assert_all_close_to_max;
use super::{F32_TOLERANCE, assert_close, round_to_bf16};
use crate::kernels::testing::{gpu as device, on, wave};
use crate::kernels::{to_f32, values};

/// Both layouts of both operands, sizes that are not multiples of a tile, split-K, f32 and half precision.
#[test]
fn products_equal_the_cpus() {
    let (gpu, cpu) = (device(), Device::flex());
    for (m, n, k, split_k) in
        [(5, 7, 3, false), (130, 72, 64, false), (64, 136, 264, false), (40, 168, 4100, true), (300, 300, 48, false)]
    {
        let (x, w) = (round_to_bf16(wave([m, k], 0.7, &cpu)), round_to_bf16(wave([k, n], 0.3, &cpu)));
        let b: Tensor<1> = wave([n], 0.9, &cpu);
        let largest = values(x.clone().matmul(w.clone()).abs().max())[0].max(1.0);
        for (a_layout, b_layout) in [
            (Layout::KMajor, Layout::MnMajor),
            (Layout::KMajor, Layout::KMajor),
            (Layout::MnMajor, Layout::MnMajor),
            (Layout::MnMajor, Layout::KMajor),
        ] {
            let modes = [
                (FloatDType::F32, F32Mode::Full, 1e-5),
                (FloatDType::F32, F32Mode::Bf16, F32_TOLERANCE),
                (FloatDType::F16, F32Mode::Full, 5e-3),
            ];
            for (dtype, mode, tolerance) in modes {
                let stored = |x: &Tensor<2>, transposed: bool| {
                    let x = if transposed { x.clone().transpose() } else { x.clone() };
                    contiguous(&on(&x, &gpu).cast(dtype)).unwrap()
                };
                let rounded = |x: &Tensor<2>| to_f32(x.clone().cast(dtype));
                let want = rounded(&x).matmul(rounded(&w));
                let shape = if split_k { GemmShape::split_k(m, n, k) } else { GemmShape::new(m, n, k) };
                let slice_k = shape.slice_k;
                // `x` is stored K-major, `w` MN-major.
                let operand = |x: &Tensor<2>, layout, stored_as, mn| {
                    let (leading_dim, batch_stride) = if layout == Layout::KMajor { (k, slice_k) } else { (mn, slice_k * mn) };
                    Operand::new(stored(x, layout != stored_as), layout, leading_dim).with_batch_stride(batch_stride)
                };
                let (left, right) = (operand(&x, a_layout, Layout::KMajor, m), operand(&w, b_layout, Layout::MnMajor, n));
                let bias = contiguous(&on(&b, &gpu)).unwrap();
                let bias = (!split_k).then_some(&bias);
                let got: Tensor<3> = tensor(gemm(&left, &right, shape, ConvGeometry::default(), bias, dtype.into(), mode));
                let got = on(&to_f32(got).sum_dim(0).reshape([m, n]), &cpu);
                let want = if !split_k { want.clone() + b.clone().unsqueeze() } else { want.clone() };
                let what = format!("{m} x {n} x {k}, {a_layout:?} by {b_layout:?}, {dtype:?}, {mode:?}");
                assert_close(&what, got / largest, want / largest, tolerance);
            }
        }
    }
}

/// Every tile, full and partial, with a K that is and is not a multiple of the K block.
#[test]
fn products_in_every_tile_equal_the_cpus() {
    let (gpu, cpu) = (device(), Device::flex());
    for tile in TILES {
        for (m, n, k) in [(tile.m + 3, tile.n + 8, 96), (tile.m, 2 * tile.n, 40)] {
            let (x, w) = (round_to_bf16(wave([m, k], 0.7, &cpu)), round_to_bf16(wave([k, n], 0.3, &cpu)));
            let want = x.clone().matmul(w.clone());
            let largest = values(want.clone().abs().max())[0];
            let on_gpu = |x: &Tensor<2>| contiguous(&on(x, &gpu).cast(FloatDType::F16)).unwrap();
            let a = Operand::new(on_gpu(&x), Layout::KMajor, k);
            for (matrix, layout, leading_dim) in [(w.clone(), Layout::MnMajor, n), (w.clone().transpose(), Layout::KMajor, k)] {
                let b = Operand::new(on_gpu(&matrix), layout, leading_dim);
                let (shape, to) = (GemmShape::new(m, n, k).with_tile(tile), FloatDType::F32.into());
                let got = gemm(&a, &b, shape, ConvGeometry::default(), None, to, F32Mode::Full);
                let got = on(&tensor::<3>(got).reshape([m, n]), &cpu);
                assert_close(&format!("{tile:?}, {layout:?}, K {k}"), got / largest, want.clone() / largest, 1e-5);
            }
        }
    }
}

/// The output and the gradients of a linear layer in training, with a bias whose gradient is a sum over many rows.
#[cfg(feature = "train")]
#[test]
fn gradients_of_layers_equal_the_cpus() {
    use burn::module::{Param, ParamId};
    let results = |device: &Device| {
        let device = device.clone().autodiff();
        let x = round_to_bf16(wave([4300, 40], 0.7, &device)).require_grad();
        let weight = round_to_bf16(wave([40, 24], 0.3, &device)).require_grad();
        let bias = wave::<1>([24], 0.4, &device).require_grad();
        let mut layer = crate::nn::LinearConfig::new(40, 24).init(&device);
        layer.weight = Param::initialized(ParamId::new(), weight.clone());
        layer.bias = Some(Param::initialized(ParamId::new(), bias.clone()));
        let y = layer.forward(x.clone().reshape([43, 100, 40]));
        let gradients = (y.clone() * round_to_bf16(wave(y.dims(), 1.1, &device))).sum().backward();
        let [dx, dw] = [&x, &weight].map(|of| of.grad(&gradients).unwrap().reshape([1, -1]));
        [y.inner().reshape([1, -1]), dx, dw, bias.grad(&gradients).unwrap().reshape([1, -1])]
    };
    assert_all_close_to_max(results(&device()), results(&Device::flex()));
}
