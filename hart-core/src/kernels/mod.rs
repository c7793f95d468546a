//! The operations that cost time, one function each: modules call these and never a backend.
//!
//! Every operation has a body in plain tensor operations, right on any device; faster bodies for one backend stand beside it and
//! are tested to be equal (`flex.rs` holds those for burn's CPU backend). This folder is also the only place of the library with
//! `unsafe`: the mapping of a file, and SIMD.

mod attention;
#[cfg(feature = "cpu")]
#[allow(unsafe_code)] // SIMD over slices whose lengths are checked first.
mod conv;
#[cfg(feature = "cpu")]
mod elementwise;
#[cfg(feature = "cpu")]
mod extension;
#[cfg(feature = "cpu")]
mod flex;
#[cfg(feature = "cpu")]
#[allow(unsafe_code)] // SIMD over slices whose lengths are checked first.
mod gemm;
#[cfg(feature = "cpu")]
mod group_norm;
#[cfg(feature = "cpu")]
#[allow(unsafe_code)] // SIMD.
mod lanes;
mod linear;
mod mapping;
#[cfg(feature = "cpu")]
#[allow(unsafe_code)] // SIMD over slices whose lengths are checked first.
mod maps;
mod norm;
#[cfg(feature = "cpu")]
mod norm_rows;
#[cfg(feature = "cpu")]
mod packed;
mod picture;
mod swi_glu;

pub(crate) use attention::{Cache, Extend, Group, Memory, Rotation, SelfAttention, attention};
pub(crate) use linear::{Linear, LinearConfig, linear};
pub(crate) use mapping::{Mapped, map_file};
pub(crate) use norm::{Modulation, add_gated, group_norm, group_norm_silu, layer_norm, rms_norm};
#[cfg(feature = "cpu")]
pub(crate) use packed::Packed;
pub(crate) use picture::{area, bicubic, conv2d, convolutions_in_bf16, norm_silu_conv2d, upsample_conv2d};
pub(crate) use swi_glu::{SwiGlu, silu};

use burn::prelude::*;
use burn::tensor::DType;

/// A float tensor from values in row-major order. All arithmetic is f32, whatever the device's default is.
pub(crate) fn tensor<const D: usize>(values: Vec<f32>, shape: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values, shape), (device, DType::F32))
}

/// Places along a dimension.
pub(crate) fn indices(places: &[usize], device: &Device) -> Tensor<1, Int> {
    let places: Vec<i32> = places.iter().map(|&place| place as i32).collect();
    let count = places.len();
    Tensor::from_data(TensorData::new(places, [count]), device)
}

/// The values of a tensor in row-major order.
pub(crate) fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    let data = tensor.into_data().convert::<f32>();
    data.try_into_vec().expect("converted to f32 just above")
}
