//! Faster bodies for burn's GPU backend, through CUDA or wgpu: kernels in CubeCL. Each answers None where it doesn't apply, and the
//! plain body does the work.
//!
//! Kernels read and write f32, f16 and bf16 side by side and compute in f32: the residual stream, norms, softmax and logits stay in
//! f32 while products have operands of half precision.

mod add_norm;
mod attention;
#[cfg(feature = "train")]
mod columns;
mod conv;
mod elementwise;
mod flash;
mod group_norm;
mod linear;
mod noise;
mod norm;
#[cfg(feature = "train")]
mod optimizer;
#[cfg_attr(not(feature = "train"), allow(dead_code, reason = "gradients need all of it"))]
mod product;
mod sample;
mod upsample;

pub(super) use super::absent::{norm_silu_conv2d, swi_glu, upsample_conv2d};
pub(super) use add_norm::add_norm;
pub(super) use attention::{CachedKv, KvScratch, attention, self_attention};
pub(super) use conv::conv2d;
pub(super) use elementwise::{add_gated, silu, silu_mul};
pub(super) use group_norm::group_norm;
pub(super) use linear::{linear, linear_to_f32, matmul};
pub(super) use noise::normals;
pub(super) use norm::{layer_norm, rms_norm};
#[cfg(feature = "train")]
pub(super) use optimizer::adam;
pub(super) use sample::sample;
pub(super) use upsample::upsample_nearest;

use burn::backend::Cube;
use burn::prelude::{Device, Tensor};
use burn::tensor::{DType, Shape};
use burn_cubecl::cubecl::server::Handle;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::ir::{ElemType, FloatKind};
use cubecl::prelude::{Tensor as Strided, *};

/// Threads of a cube.
const THREADS: u32 = 256;

/// The tensor as the GPU backend has it, whole and in row-major order, if it is that backend's.
fn whole<const D: usize>(tensor: &Tensor<D>) -> Option<CubeTensor> {
    primitive(tensor).map(into_contiguous)
}

/// The tensor as the GPU backend has it, also a view, if it is that backend's.
fn primitive<const D: usize>(tensor: &Tensor<D>) -> Option<CubeTensor> {
    tensor.clone().try_into_primitive::<Cube>().ok()
}

/// Whether it is the GPU backend's.
pub(super) fn is_here(device: &Device) -> bool {
    matches!(device.as_dispatch(), burn::backend::DispatchDevice::Cube(_))
}

/// A new tensor beside another one, yet without values.
fn empty_like(like: &CubeTensor, shape: impl Into<Shape>, dtype: DType) -> CubeTensor {
    let shape: Shape = shape.into();
    let handle: Handle = like.client.empty(shape.num_elements() * dtype.size());
    CubeTensor::new_contiguous(like.client.clone(), like.device.clone(), shape, handle, dtype)
}

/// Has a GPU's allocator carve pages for so many bytes from now on, and give back those that it carved for less. Its pages are as large
/// as the largest allocation so far, and what is free on smaller ones serves nothing more: so the largest one had better come first.
pub(crate) fn reserve_pool(device: &Device, bytes: u64) {
    let like = is_here(device).then(|| primitive(&Tensor::<1>::empty([1], device))).flatten();
    if let Some(like) = like {
        drop(like.client.empty(bytes.min(like.client.properties().memory.max_page_size) as usize));
        device.memory_cleanup();
    }
}

fn tensor<const D: usize>(tensor: CubeTensor) -> Tensor<D> {
    Tensor::from_primitive::<Cube>(tensor)
}

/// How a kernel names a number's type.
fn element(dtype: DType) -> ElemType {
    ElemType::Float(match dtype {
        DType::F16 => FloatKind::F16,
        DType::BF16 => FloatKind::BF16,
        _ => FloatKind::F32,
    })
}

/// So many cubes, or a few more, in two dimensions, since one alone is limited to 65,535.
fn fold(count: usize) -> (u32, u32) {
    const LIMIT: usize = 1 << 15;
    (count.min(LIMIT) as u32, count.div_ceil(LIMIT).max(1) as u32)
}

/// The same as cubes are counted.
fn cubes(count: usize) -> CubeCount {
    let (x, y) = fold(count);
    CubeCount::Static(x, y, 1)
}

/// This cube's number among [`cubes`].
#[cube]
fn cube_number() -> usize {
    (CUBE_POS_Y * CUBE_COUNT_X + CUBE_POS_X) as usize
}

/// A thread for each of so many numbers: the cubes, and their threads.
fn threads_for(count: usize) -> (CubeCount, CubeDim) {
    (cubes(count.div_ceil(THREADS as usize)), CubeDim::new_1d(THREADS))
}

/// This thread's number among [`threads_for`].
#[cube]
fn thread_number() -> usize {
    cube_number() * CUBE_DIM_X as usize + UNIT_POS as usize
}

/// How many of a map's channels a thread takes side by side.
fn side_by_side(channels: usize) -> usize {
    if channels.is_multiple_of(4) { 4 } else { 1 }
}

/// Where the row begins that a token of a batch is modulated by: there may be one for all of them.
#[cube]
fn row_of<M: Float>(of: &Strided<M>, batch: usize, token: usize) -> usize {
    batch % of.shape(0) * of.stride(0) + token % of.shape(1) * of.stride(1)
}

/// How the numbers of a cube's threads become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Fold {
    Sum,
    Greatest,
}

/// One number of those of all threads of a cube, for each of them.
#[cube]
fn cube_fold(value: f32, #[comptime] threads: usize, #[comptime] fold: Fold) -> f32 {
    let mut shared = Shared::<[f32]>::new_slice(threads);
    let unit = UNIT_POS as usize;
    shared[unit] = value;
    sync_cube();
    #[unroll]
    for step in 0..comptime!(threads.ilog2()) {
        let half = comptime!(threads >> (step + 1));
        if unit < half {
            let (one, other) = (shared[unit], shared[unit + half]);
            if comptime!(fold == Fold::Sum) {
                shared[unit] = one + other;
            } else {
                shared[unit] = max(one, other);
            }
        }
        sync_cube();
    }
    let folded = shared[0];
    sync_cube();
    folded
}

/// The sum over all threads of a cube, for each of them.
#[cube]
fn cube_sum(value: f32, #[comptime] threads: usize) -> f32 {
    cube_fold(value, threads, Fold::Sum)
}

/// The greatest over all threads of a cube, for each of them.
#[cube]
fn cube_max(value: f32, #[comptime] threads: usize) -> f32 {
    cube_fold(value, threads, Fold::Greatest)
}

#[cfg(test)]
mod tests;
