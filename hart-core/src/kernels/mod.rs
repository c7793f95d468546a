//! The operations that cost time, one function each: modules call these and never a backend.
//!
//! Every operation has a body in plain tensor operations, right on any device; faster bodies for one backend stand beside it and
//! are tested to be equal (`cpu` holds those for burn's CPU backend, `gpu` those for GPUs). This folder is also the only place
//! of the library with `unsafe`: the mapping of a file, SIMD, and what a GPU's kernels are given.

mod attention;
#[cfg(feature = "cpu")]
mod cpu;
#[cfg(any(feature = "cuda", feature = "wgpu"))]
#[allow(unsafe_code)] // Buffers that were just made are described to kernels.
pub(crate) mod gpu;
mod kv;
mod linear;
mod norm;
mod picture;
mod swi_glu;

pub(crate) use attention::{SelfAttention, attention};
#[cfg(feature = "cpu")]
pub(crate) use cpu::Packed;
pub(crate) use kv::{Cache, Extend, Group, Memory};
pub(crate) use linear::{Linear, LinearConfig, as_read_by, in_half, linear, linear_to_f32, matmul};
pub(crate) use norm::{Modulation, add_gated, add_norm, group_norm, group_norm_silu, layer_norm, rms_norm};
pub(crate) use picture::{area, bicubic, conv2d, convolutions_in_bf16, norm_silu_conv2d, upsample_conv2d};
pub(crate) use swi_glu::{SwiGlu, silu};

use burn::prelude::*;
use burn::tensor::DType;

/// While its answer is held, kernels on the CPU use each other's memory again.
pub(crate) fn reuse_memory() -> impl Sized {
    #[cfg(feature = "cpu")]
    return cpu::Reuse::begin();
}

/// A float tensor from values in row-major order. All arithmetic is f32, whatever the device's default is.
pub(crate) fn tensor<const D: usize>(values: Vec<f32>, shape: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values, shape), (device, DType::F32))
}

/// The same numbers in f32.
pub(crate) fn to_f32<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    if x.dtype() == DType::F32 { x } else { x.cast(DType::F32) }
}

/// Places along a dimension.
pub(crate) fn indices(places: &[usize], device: &Device) -> Tensor<1, Int> {
    let places: Vec<i32> = places.iter().map(|&place| place as i32).collect();
    let count = places.len();
    Tensor::from_data(TensorData::new(places, [count]), device)
}

/// Codes and the like in row-major order.
pub(crate) fn integers<const D: usize>(values: Vec<u32>, shape: [usize; D], device: &Device) -> Tensor<D, Int> {
    let values: Vec<i32> = values.into_iter().map(|value| value as i32).collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}

/// The values of a tensor in row-major order.
pub(crate) fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    let data = tensor.into_data().convert::<f32>();
    data.try_into_vec().expect("converted to f32 just above")
}
