//! The operations that cost time: pure functions over weights and tensors, and the only code with `unsafe` besides memory mapping.
//!
//! An operation takes tensors, plain numbers and [`Weight`]s, never a layer. Every backend has a function of the same name and
//! signature: `cpu` for burn's CPU backend, `gpu` for CUDA, Vulkan, Metal and DX12, and `reference` in burn's own operations, which
//! is right on any device. A function of `cpu` or `gpu` that borrows its operands returns `None` where it does not apply; one that
//! may reuse an operand's memory takes it by value and returns it as `Err`. A backend that is not compiled in is `absent`, which
//! never applies. Modules outside of this folder call the functions of this file and never name a backend.

#[allow(dead_code, reason = "backends that are compiled in use some of it")]
mod absent;
#[cfg(feature = "train")]
mod adam;
mod conv;
#[cfg(feature = "cpu")]
mod cpu;
#[cfg(any(feature = "cuda", feature = "wgpu"))]
#[allow(unsafe_code)] // Buffers that were just made are described to kernels.
mod gpu;
mod kv;
mod linear;
mod norm;
mod params;
mod reference;
mod self_attention;
mod tensors;
#[cfg(test)]
pub(crate) mod testing;

#[cfg(not(feature = "cpu"))]
use absent as cpu;
#[cfg(not(any(feature = "cuda", feature = "wgpu")))]
use absent as gpu;

#[cfg(feature = "train")]
pub(crate) use adam::adam;
pub(crate) use conv::{area, bicubic, conv2d, norm_silu_conv2d, upsample_conv2d};
pub(crate) use cpu::PackedWeight;
pub(crate) use kv::{KvAppend, KvScratch, KvStore};
pub(crate) use linear::{linear, linear_to_f32, matmul, pack, silu, swi_glu};
pub(crate) use norm::{add_gated, add_norm, group_norm, layer_norm, rms_norm};
#[cfg(feature = "train")]
pub(crate) use params::{AdamRows, AdamStep};
pub(crate) use params::{AttentionParams, ConvParams, GroupNormParams, Modulation, Rotary, RowGroup, Weight};
pub(crate) use self_attention::{attention, rotate, self_attention};
pub(crate) use tensors::{indices, integers, tensor, to_f32, values};

use burn::prelude::*;

use crate::rng::Stream;

/// Lets kernels on the CPU reuse each other's memory until the guard is dropped.
pub(crate) fn reuse_memory() -> impl Sized {
    cpu::PoolGuard::new()
}

/// Makes a GPU's allocator reserve pages for tensors of up to `bytes` bytes; does nothing on the CPU.
pub(crate) fn reserve_pool(device: &Device, bytes: u64) {
    gpu::reserve_pool(device, bytes);
}

/// Draws standard normal noise on the device; `None` if the device has no kernel for it.
///
/// # Shapes
///
/// - output: `[batch, tokens, channels]`
pub(crate) fn normals(stream: &Stream<'_>, shape: [usize; 3], device: &Device) -> Option<Tensor<3>> {
    gpu::normals(stream, shape, device)
}

/// Draws the codes of one scale on the device; `None` if the device has no kernel for it.
///
/// `smoothing` is the factor and the temperature of Gumbel-softmax smoothing.
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
