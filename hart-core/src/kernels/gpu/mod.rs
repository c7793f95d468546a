//! Kernels for burn's GPU backend (CUDA, Vulkan, Metal and DX12), written in CubeCL.
//!
//! A function that borrows its operands returns `None` where it does not apply, and one that takes ownership returns them as `Err`;
//! [`super::reference`] is then used instead.
//!
//! Kernels read and write f32, f16 and bf16 in any combination and compute in f32. The residual stream, norms, softmax and logits stay
//! in f32; the operands of matrix products may have half precision.
//!
//! CubeCL's terms: a *cube* is a thread block (workgroup), a *plane* is a warp (subgroup), a *unit* is a thread, and `#[comptime]`
//! parameters are compiled into the kernel like template parameters. "Thread", "tile", "fragment" and "stage" are used as in CUTLASS.

#[cfg(feature = "train")]
mod adam;
mod add_norm;
mod attention;
#[cfg(feature = "train")]
mod broadcast;
mod cached_kv;
mod conv;
mod elementwise;
mod flash;
#[cfg_attr(not(feature = "train"), allow(dead_code, reason = "gradients need all of it"))]
mod gemm;
mod group_norm;
mod linear;
mod noise;
mod norm;
mod sample;
mod upsample;

pub(super) use super::absent::{compact_res_block, compact_upsample_conv2d, norm_silu_conv2d, swi_glu, upsample_conv2d};
#[cfg(feature = "train")]
pub(super) use adam::adam;
pub(super) use add_norm::add_norm;
pub(super) use attention::{attention, self_attention};
pub(super) use cached_kv::{CachedKv, KvScratch};
pub(super) use conv::conv2d;
pub(super) use elementwise::{add_gated, silu, silu_mul};
pub(super) use group_norm::group_norm;
pub(super) use linear::{linear, linear_to_f32, matmul};
pub(super) use noise::normals;
pub(super) use norm::{layer_norm, rms_norm};
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

/// Threads per cube, unless a kernel says otherwise.
const THREADS: u32 = 256;
/// Threads per plane that kernels with tensor cores require.
const PLANE: usize = 32;

/// Returns the backend's tensor, contiguous in row-major order, or `None` if it is another backend's.
fn contiguous<const D: usize>(tensor: &Tensor<D>) -> Option<CubeTensor> {
    primitive(tensor).map(into_contiguous)
}

/// Returns the backend's tensor with its strides, or `None` if it is another backend's.
fn primitive<const D: usize>(tensor: &Tensor<D>) -> Option<CubeTensor> {
    tensor.clone().try_into_primitive::<Cube>().ok()
}

/// Returns whether the device belongs to the GPU backend.
pub(super) fn is_gpu(device: &Device) -> bool {
    matches!(device.as_dispatch(), burn::backend::DispatchDevice::Cube(_))
}

/// Allocates a tensor on the device of another one. Its values are undefined.
fn empty_like(like: &CubeTensor, shape: impl Into<Shape>, dtype: DType) -> CubeTensor {
    let shape: Shape = shape.into();
    let handle: Handle = like.client.empty(shape.num_elements() * dtype.size());
    CubeTensor::new_contiguous(like.client.clone(), like.device.clone(), shape, handle, dtype)
}

/// Makes the GPU's allocator use pages of `bytes` bytes from now on, and frees its smaller pages.
///
/// The allocator's pages are as large as the largest allocation so far, and free space on smaller pages is not used again. The largest
/// allocation should therefore come first.
pub(crate) fn reserve_pool(device: &Device, bytes: u64) {
    let like = is_gpu(device).then(|| primitive(&Tensor::<1>::empty([1], device))).flatten();
    if let Some(like) = like {
        drop(like.client.empty(bytes.min(like.client.properties().memory.max_page_size) as usize));
        device.memory_cleanup();
    }
}

/// Wraps the backend's tensor.
fn tensor<const D: usize>(tensor: CubeTensor) -> Tensor<D> {
    Tensor::from_primitive::<Cube>(tensor)
}

/// Returns the element type of a kernel argument.
fn element(dtype: DType) -> ElemType {
    ElemType::Float(match dtype {
        DType::F16 => FloatKind::F16,
        DType::BF16 => FloatKind::BF16,
        _ => FloatKind::F32,
    })
}

/// Returns a two-dimensional grid of at least `count` cubes, since one dimension is limited to 65,535.
fn grid_dims(count: usize) -> (u32, u32) {
    const MAX_X: usize = 1 << 15;
    (count.min(MAX_X) as u32, count.div_ceil(MAX_X).max(1) as u32)
}

/// Returns the grid of [`grid_dims`] as a launch argument. Kernels check [`cube_index`], since there may be more cubes.
fn cube_count(count: usize) -> CubeCount {
    let (x, y) = grid_dims(count);
    CubeCount::Static(x, y, 1)
}

/// Returns this cube's index in the grid of [`cube_count`].
#[cube]
fn cube_index() -> usize {
    (CUBE_POS_Y * CUBE_COUNT_X + CUBE_POS_X) as usize
}

/// Returns grid and cube dimensions with at least one thread for each of `count` elements.
fn elementwise_dims(count: usize) -> (CubeCount, CubeDim) {
    (cube_count(count.div_ceil(THREADS as usize)), CubeDim::new_1d(THREADS))
}

/// Returns this thread's index in the launch of [`elementwise_dims`].
#[cube]
fn thread_index() -> usize {
    cube_index() * CUBE_DIM_X as usize + UNIT_POS as usize
}

/// Returns the number of channels of a channels-last feature map that one thread loads as a vector.
fn vector_width(channels: usize) -> usize {
    if channels.is_multiple_of(4) { 4 } else { 1 }
}

/// Returns the offset of a token's row in a tensor `[batch or 1, tokens or 1, channels]` that is broadcast.
#[cube]
fn broadcast_offset<M: Float>(tensor: &Strided<M>, batch: usize, token: usize) -> usize {
    batch % tensor.shape(0) * tensor.stride(0) + token % tensor.shape(1) * tensor.stride(1)
}

/// A reduction over the threads of a cube.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Reduction {
    Sum,
    Max,
}

/// Reduces one value per thread as a tree in shared memory and returns the result to every thread. `threads` is a power of two.
#[cube]
fn cube_reduce(value: f32, #[comptime] threads: usize, #[comptime] reduction: Reduction) -> f32 {
    let mut shared = Shared::<[f32]>::new_slice(threads);
    let unit = UNIT_POS as usize;
    shared[unit] = value;
    sync_cube();
    #[unroll]
    for step in 0..comptime!(threads.ilog2()) {
        let half = comptime!(threads >> (step + 1));
        if unit < half {
            let (one, other) = (shared[unit], shared[unit + half]);
            if comptime!(reduction == Reduction::Sum) {
                shared[unit] = one + other;
            } else {
                shared[unit] = max(one, other);
            }
        }
        sync_cube();
    }
    let result = shared[0];
    // The next reduction may reuse the shared memory.
    sync_cube();
    result
}

/// Returns the sum over all threads of a cube.
#[cube]
fn cube_sum(value: f32, #[comptime] threads: usize) -> f32 {
    cube_reduce(value, threads, Reduction::Sum)
}

/// Returns the maximum over all threads of a cube.
#[cube]
fn cube_max(value: f32, #[comptime] threads: usize) -> f32 {
    cube_reduce(value, threads, Reduction::Max)
}

#[cfg(test)]
mod tests;
