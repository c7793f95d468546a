//! Inputs and comparisons shared by the tests of kernels.

use burn::prelude::*;

use super::{tensor, values};

/// Returns `count` samples of a sine wave, `speed` radians apart.
pub(crate) fn waves(count: usize, speed: f32) -> Vec<f32> {
    (0..count).map(|i| (i as f32 * speed).sin()).collect()
}

/// Like [`waves`], with the phase in f64, which stays exact for long vectors.
#[cfg_attr(not(feature = "cpu"), allow(dead_code, reason = "used by tests of the CPU's kernels"))]
pub(crate) fn waves_f64(count: usize, speed: f64) -> Vec<f32> {
    (0..count).map(|i| (i as f64 * speed).sin() as f32).collect()
}

/// Returns a tensor of [`waves`].
pub(crate) fn wave<const D: usize>(shape: [usize; D], speed: f32, device: &Device) -> Tensor<D> {
    tensor(waves(shape.iter().product(), speed), shape, device)
}

/// Asserts that two tensors differ by at most `tolerance * max(1, |want|)`.
#[track_caller]
pub(crate) fn assert_close<const D: usize>(got: Tensor<D>, want: Tensor<D>, tolerance: f32) {
    assert_eq!(got.dims(), want.dims());
    let (got, want) = (values(got), values(want));
    let close = |(got, want): (&f32, &f32)| (got - want).abs() <= tolerance * want.abs().max(1.0);
    if let Some(at) = got.iter().zip(&want).position(|pair| !close(pair)) {
        panic!("value {at} is {}, expected {} within {tolerance}", got[at], want[at]);
    }
}

/// Returns the GPU named by `HART_TEST_DEVICE`, or the default one of wgpu or CUDA.
#[cfg(any(feature = "cuda", feature = "wgpu"))]
pub(crate) fn gpu() -> Device {
    let name = std::env::var("HART_TEST_DEVICE").ok().filter(|name| name != "cpu");
    let name = name.unwrap_or_else(|| if cfg!(feature = "wgpu") { "wgpu" } else { "cuda" }.into());
    let kind: crate::device::DeviceKind = name.parse().unwrap();
    kind.open().unwrap_or_else(|error| panic!("{error} (these tests need a GPU, or Mesa's software Vulkan)"))
}

/// Copies a tensor to another device.
#[cfg(any(feature = "cuda", feature = "wgpu"))]
pub(crate) fn on<const D: usize>(x: &Tensor<D>, device: &Device) -> Tensor<D> {
    let shape: [usize; D] = x.dims();
    tensor(values(x.clone()), shape, device)
}
