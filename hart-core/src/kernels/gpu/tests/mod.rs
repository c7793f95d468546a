//! Tests of the kernels against those of the CPU, on the GPU that `HART_TEST_DEVICE` names, or the default one of wgpu or CUDA.

mod attention;
mod conv;
mod elementwise;
mod gemm;
mod group_norm;
mod noise;
mod norm;

use burn::prelude::*;

#[cfg(feature = "train")]
use crate::kernels::testing::on;
use crate::kernels::{tensor, to_f32, values};

/// Tolerance of products in f32.
const F32_TOLERANCE: f32 = 1e-4;

/// Rounds to values that bf16 represents exactly. Training rounds the operands of products to bf16, which does not change these.
fn round_to_bf16<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    let shape: [usize; D] = x.dims();
    let device = x.device();
    tensor(values(x).into_iter().map(|value| half::bf16::from_f32(value).to_f32()).collect(), shape, &device)
}

/// Asserts that two tensors differ by at most `tolerance * max(1, |want|)`.
#[track_caller]
fn assert_close<const D: usize>(what: &str, got: Tensor<D>, want: Tensor<D>, tolerance: f32) {
    assert_eq!(got.dims(), want.dims(), "{what}");
    let (got, want) = (values(to_f32(got)), values(want));
    let error = got.iter().zip(&want).map(|(g, w)| (g - w).abs() / w.abs().max(1.0)).fold(0.0, f32::max);
    assert!(error <= tolerance && got.iter().all(|v| v.is_finite()), "{what}: off by {error}");
}

/// Asserts that two tensors differ by at most [`F32_TOLERANCE`] of the largest expected value.
#[cfg(feature = "train")]
#[track_caller]
fn assert_close_to_max<const D: usize>(what: &str, got: Tensor<D>, want: Tensor<D>) {
    let largest = values(want.clone().abs().max())[0];
    assert_close(what, got / largest, want / largest, F32_TOLERANCE);
}

/// Asserts [`assert_close_to_max`] of every pair.
#[cfg(feature = "train")]
#[track_caller]
fn assert_all_close_to_max<const D: usize, const N: usize>(got: [Tensor<D>; N], want: [Tensor<D>; N]) {
    for (index, (got, want)) in got.into_iter().zip(want).enumerate() {
        assert_close_to_max(&format!("tensor {index}"), on(&got, &want.device()), want);
    }
}
