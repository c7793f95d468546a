//! Kernels for burn's CPU backend.
//!
//! An operation returns `None`, or its operands as `Err`, where it does not apply: on another device, for another type, or for a
//! layout that it does not read.

#[allow(unsafe_code)] // Assembly.
mod amx;
mod attention;
mod autodiff;
#[allow(unsafe_code)] // SIMD over slices whose lengths are checked first.
mod conv;
mod elementwise;
#[allow(unsafe_code)] // SIMD over slices whose lengths are checked first.
mod gemm;
mod group_norm;
mod linear;
#[allow(unsafe_code)] // The memory that burn's tensors hold.
mod memory;
mod norm;
mod packed;
mod pruning;
#[allow(unsafe_code)] // SIMD.
mod simd;
#[allow(unsafe_code)] // A pointer that tasks share.
mod tasks;
mod tensor;
#[allow(unsafe_code)] // SIMD over slices whose lengths are checked first.
mod winograd;

pub(super) use super::absent::{add_norm, matmul, upsample_nearest};
pub(super) use attention::{CachedKv, KvScratch, attention, self_attention};
pub(super) use autodiff::{group_norm, silu, silu_mul};
pub(super) use linear::{linear, pack, swi_glu};
pub(super) use memory::PoolGuard;
pub(super) use norm::{add_gated, layer_norm, rms_norm};
pub(crate) use packed::PackedWeight;
pub(crate) use pruning::CompactMap;
pub(super) use pruning::{add_compact_restored, add_restored, compact_map, select_tokens, squared_distances};
pub(super) use winograd::{compact_res_block, compact_upsample_conv2d, norm_silu_conv2d, upsample_conv2d};

use burn::backend::Flex;
use burn::prelude::Tensor;

use super::params::ConvParams;

/// See [`super::exp`].
pub(super) fn exp<const D: usize>(x: Tensor<D>) -> Result<Tensor<D>, Tensor<D>> {
    let Some(primitive) = tensor::primitive(&x) else { return Err(x) };
    drop(x);
    Ok(Tensor::from_primitive::<Flex>(tensor::modify(primitive, elementwise::exp_in_place)))
}

/// See [`super::conv2d`].
pub(super) fn conv2d(x: Tensor<4>, params: &ConvParams) -> Result<Tensor<4>, Tensor<4>> {
    winograd::conv2d(x, params).or_else(|x| autodiff::conv3x3(x, params))
}
