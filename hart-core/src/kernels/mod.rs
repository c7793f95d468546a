//! The performance-critical operations, with an implementation for each backend.
//!
//! An operation is a pure function of tensors, scalars and [`Weight`]s; it never takes a layer. Other modules call the functions of
//! this file, which try the backends in turn. Each backend has a function of the same name and signature:
//!
//! - `cpu` for burn's CPU backend, and `gpu` for CUDA, Vulkan, Metal and DX12. A function that borrows its operands returns `None`
//!   where it does not apply. A function that may reuse the memory of its operands takes them by value and returns them as `Err`.
//! - `reference` in burn's own operations, for every device.
//! - `absent` in place of a backend that is not compiled in. It never applies.
//!
//! `float_state` sets the floating-point state that all of them assume, and `stack` measures the stack that they need.
//!
//! Besides memory mapping, this is the only module with `unsafe` code.

#![allow(clippy::result_large_err, reason = "an operation returns its operands, not an error")]

#[allow(dead_code, reason = "backends that are compiled in use some of it")]
mod absent;
#[cfg(feature = "train")]
mod adam;
mod conv;
#[cfg(feature = "cpu")]
mod cpu;
mod float_state;
#[cfg(any(feature = "cuda", feature = "wgpu"))]
#[allow(unsafe_code)] // Kernel launches on buffers whose sizes are known.
mod gpu;
mod kv;
mod linear;
mod norm;
mod params;
mod pruning;
mod reference;
mod self_attention;
mod stack;
mod tensors;
#[cfg(test)]
pub(crate) mod testing;

#[cfg(not(feature = "cpu"))]
use absent as cpu;
#[cfg(not(any(feature = "cuda", feature = "wgpu")))]
use absent as gpu;

#[cfg(feature = "train")]
pub(crate) use adam::adam;
pub(crate) use conv::{area, bicubic, compact_res_block, compact_upsample_conv2d, conv2d, norm_silu_conv2d, upsample_conv2d};
pub(crate) use cpu::PackedWeight;
pub(crate) use float_state::set_default_float_state;
pub use float_state::with_default_float_state;
pub(crate) use kv::{KvAppend, KvScratch, KvStore};
pub(crate) use linear::{exp, linear, linear_to_f32, matmul, pack, silu, swi_glu};
pub(crate) use norm::{add_gated, add_norm, group_norm, layer_norm, rms_norm};
#[cfg(feature = "train")]
pub(crate) use params::{AdamRows, AdamStep};
pub(crate) use params::{AttentionParams, ConvParams, GroupNormParams, KeptTokens, Modulation, Rotary, RowGroup, Weight};
pub(crate) use pruning::{TokenMap, add_restored, select_tokens, squared_distances, token_map_bytes};
pub(crate) use self_attention::{attention, rotate, self_attention};
pub use stack::with_enough_stack;
pub(crate) use stack::{is_stack_short, thread_builder};
pub(crate) use tensors::{indices, integers, tensor, to_f32, values};

use burn::prelude::*;

use crate::rng::Stream;

/// Lets CPU kernels reuse each other's memory until the returned guard is dropped.
pub(crate) fn reuse_memory() -> impl Sized {
    cpu::PoolGuard::new()
}

/// Reserves pages for tensors of up to `bytes` bytes in a GPU's allocator. Does nothing on the CPU.
pub(crate) fn reserve_pool(device: &Device, bytes: u64) {
    gpu::reserve_pool(device, bytes);
}

/// Draws standard normal noise on the device. Returns `None` if the device has no kernel for it.
///
/// # Shapes
///
/// - output: `[batch, tokens, channels]`
pub(crate) fn normals(stream: &Stream<'_>, shape: [usize; 3], device: &Device) -> Option<Tensor<3>> {
    gpu::normals(stream, shape, device)
}

/// Samples the codes of one scale on the device. Returns `None` if the device has no kernel for it.
///
/// `top_k` and `top_p` filter the logits; 0 keeps all codes. `smoothing` is the factor and the temperature of Gumbel-softmax
/// smoothing. `scale` is the index of the scale, and `seeds` has one seed per image.
///
/// # Shapes
///
/// - logits: `[batch, tokens, vocabulary]`
/// - codebook: `[vocabulary, channels]`
/// - output: codes `[batch, tokens]` and their features `[batch, tokens, channels]`
pub(crate) fn sample(
    logits: &Tensor<3>,
    codebook: &Tensor<2>,
    top_k: usize,
    top_p: f64,
    smoothing: Option<[f64; 2]>,
    scale: usize,
    seeds: &[u64],
) -> Option<(Tensor<2, Int>, Tensor<3>)> {
    gpu::sample(logits, codebook, top_k, top_p, smoothing, scale, seeds)
}
