//! Group norm, optionally fused with the SiLU that follows, and their gradients. Feature maps are channels-last inside.

use burn::backend::ops::FloatTensorOps;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Cube, Dispatch, backend_extension};
use burn::prelude::Tensor;
use burn::tensor::DType;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::elementwise::silu_of;
use super::{THREADS, cube_count, cube_index, cube_sum, element, elementwise_dims, empty_like, is_gpu, thread_index, vector_width};
use crate::kernels::params::GroupNormParams;

#[cfg(feature = "train")]
mod gradients;

/// Parameters of a group norm that are not tensors.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GroupNormOptions {
    groups: usize,
    epsilon: f64,
    /// `true` if SiLU follows.
    silu: bool,
}

/// The operation. [`Dispatch`] selects the backend.
#[backend_extension(Cube, Autodiff: cfg(feature = "train"))]
pub(crate) trait GroupNorm: Backend {
    /// Normalises `[batch, channels, height, width]`. All tensors and the output have one type.
    fn group_norm(
        x: FloatTensor<Self>,
        gain: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        options: GroupNormOptions,
    ) -> FloatTensor<Self>;
}

/// See [`crate::kernels::group_norm`]; with `silu`, SiLU is applied to the output.
pub(crate) fn group_norm(x: Tensor<4>, params: &GroupNormParams, silu: bool) -> Result<Tensor<4>, Tensor<4>> {
    let (gain, bias) = (params.gain.clone(), params.bias.clone());
    let dtype = x.dtype();
    if !is_gpu(&x.device().inner()) || gain.dtype() != dtype || bias.dtype() != dtype || x.shape().num_elements() == 0 {
        return Err(x);
    }
    let options = GroupNormOptions { groups: params.groups, epsilon: params.epsilon, silu };
    let y = <Dispatch as GroupNorm>::group_norm(x.into_dispatch(), gain.into_dispatch(), bias.into_dispatch(), options);
    Ok(Tensor::from_dispatch(y))
}

/// Pixels of a map that one cube sums.
const CHUNK_PIXELS: usize = 512;

/// Computes every group's sum and sum of squares over a chunk of pixels of one map, `[batch, chunks, groups, 2]`. One cube computes one
/// chunk, and a thread one channel of every `pixel_threads`th pixel.
///
/// The group's first value is subtracted from all others, so that a mean far from zero does not cancel the digits of the squares.
#[cube(launch)]
#[allow(clippy::too_many_arguments)]
fn partial_sums_kernel<X: Float>(
    x: &[X],
    sums: &mut [f32],
    total_chunks: usize,
    pixels: usize,
    chunks: usize,
    channels: usize,
    #[comptime] groups: usize,
    #[comptime] threads: usize,
    #[define(X)] _type: ElemType,
) {
    let cube = cube_index();
    if cube >= total_chunks {
        terminate!();
    }
    let unit = UNIT_POS as usize;
    let (batch, chunk) = (cube / chunks, cube % chunks);
    let first = chunk * CHUNK_PIXELS;
    let end = min(first + CHUNK_PIXELS, pixels);
    let group_channels = channels / groups;
    // Threads form a grid of `channel_threads` x `pixel_threads`.
    let channel_threads = min(channels, threads);
    let pixel_threads = threads / channel_threads;
    let (channel_thread, pixel_thread) = (unit % channel_threads, unit / channel_threads);
    let mut values = Shared::<[f32]>::new_slice(threads);
    let mut squares = Shared::<[f32]>::new_slice(threads);
    let mut group_sums = Shared::<[f32]>::new_slice(2 * groups);
    for group in range_stepped(unit, 2 * groups, threads) {
        group_sums[group] = 0.0f32;
    }
    sync_cube();
    for from in range_stepped(0usize, channels, channel_threads) {
        let channel = from + channel_thread;
        let mut value = 0.0f32;
        let mut square = 0.0f32;
        if channel < channels && pixel_thread < pixel_threads {
            let shift = f32::cast_from(x[batch * pixels * channels + channel / group_channels * group_channels]);
            for pixel in range_stepped(first + pixel_thread, end, pixel_threads) {
                let x = f32::cast_from(x[(batch * pixels + pixel) * channels + channel]) - shift;
                value += x;
                square += x * x;
            }
        }
        values[unit] = value;
        squares[unit] = square;
        sync_cube();
        // One thread adds a group's channels in order.
        for group in range_stepped(unit, groups, threads) {
            let begin = max(group * group_channels, from);
            let end = min((group + 1) * group_channels, from + channel_threads);
            let mut value = group_sums[2 * group];
            let mut square = group_sums[2 * group + 1];
            for channel in range_stepped(begin, end, 1usize) {
                for thread in 0..pixel_threads {
                    value += values[thread * channel_threads + channel - from];
                    square += squares[thread * channel_threads + channel - from];
                }
            }
            group_sums[2 * group] = value;
            group_sums[2 * group + 1] = square;
        }
        sync_cube();
    }
    for group in range_stepped(unit, 2 * groups, threads) {
        sums[cube * 2 * groups + group] = group_sums[group];
    }
}

/// Computes every group's mean and inverse standard deviation, `[batch, groups, 2]`. One cube computes one group.
#[cube(launch)]
#[allow(clippy::too_many_arguments)]
fn statistics_kernel<X: Float>(
    x: &[X],
    sums: &[f32],
    statistics: &mut [f32],
    count: usize,
    pixels: usize,
    channels: usize,
    chunks: usize,
    groups: usize,
    epsilon: f32,
    #[comptime] threads: usize,
    #[define(X)] _type: ElemType,
) {
    let i = cube_index();
    if i >= count {
        terminate!();
    }
    let (batch, group) = (i / groups, i % groups);
    let unit = UNIT_POS as usize;
    let mut value = 0.0f32;
    let mut square = 0.0f32;
    for chunk in range_stepped(unit, chunks, threads) {
        let at = 2 * ((batch * chunks + chunk) * groups + group);
        value += sums[at];
        square += sums[at + 1];
    }
    value = cube_sum(value, threads);
    square = cube_sum(square, threads);
    if unit == 0 {
        let group_channels = channels / groups;
        let elements = f32::cast_from((pixels * group_channels) as u32);
        let mean = value / elements;
        statistics[2 * i] = f32::cast_from(x[batch * pixels * channels + group * group_channels]) + mean;
        statistics[2 * i + 1] = 1.0f32 / (max(square / elements - mean * mean, 0.0f32) + epsilon).sqrt();
    }
}

/// Pixels that a thread normalises.
const THREAD_PIXELS: usize = 8;

/// Applies mean, inverse standard deviation, gain, bias and SiLU if `fuse_silu`. One thread computes one vector of channels of
/// [`THREAD_PIXELS`] pixels.
#[cube(launch)]
#[allow(clippy::too_many_arguments)]
fn normalize_kernel<X: Float, N: Size>(
    x: &[Vector<X, N>],
    statistics: &[f32],
    gain: &[Vector<X, N>],
    bias: &[Vector<X, N>],
    y: &mut [Vector<X, N>],
    batch: usize,
    pixels: usize,
    channels: usize,
    groups: usize,
    #[comptime] width: usize,
    #[comptime] fuse_silu: bool,
    #[define(X)] _type: ElemType,
) {
    let i = thread_index();
    let vectors = channels / width;
    let chunks = (pixels + comptime!(THREAD_PIXELS - 1)) / THREAD_PIXELS;
    let (vector, rest) = (i % vectors, i / vectors);
    let (chunk, map) = (rest % chunks, rest / chunks);
    if map < batch {
        let group_channels = channels / groups;
        let (gain, bias) = (Vector::<f32, N>::cast_from(gain[vector]), Vector::<f32, N>::cast_from(bias[vector]));
        let mut mean = Vector::<f32, N>::from_int(0);
        let mut inverse_std = Vector::<f32, N>::from_int(0);
        #[unroll]
        for channel in 0..width {
            let at = 2 * (map * groups + (vector * width + channel) / group_channels);
            mean.insert(channel, statistics[at]);
            inverse_std.insert(channel, statistics[at + 1]);
        }
        let first = chunk * THREAD_PIXELS;
        for pixel in first..min(first + THREAD_PIXELS, pixels) {
            let at = (map * pixels + pixel) * vectors + vector;
            let mut value = (Vector::<f32, N>::cast_from(x[at]) - mean) * inverse_std * gain + bias;
            if comptime!(fuse_silu) {
                #[unroll]
                for channel in 0..width {
                    value.insert(channel, silu_of(value.extract(channel)));
                }
            }
            y[at] = Vector::cast_from(value);
        }
    }
}

/// Permutes `[batch, channels, height, width]` to contiguous `[batch, height, width, channels]`.
fn channels_last(x: CubeTensor) -> CubeTensor {
    into_contiguous(Cube::float_permute(x, &[0, 2, 3, 1]))
}

/// Permutes `[batch, height, width, channels]` to the view `[batch, channels, height, width]`.
fn channels_first(x: CubeTensor) -> CubeTensor {
    Cube::float_permute(x, &[0, 3, 1, 2])
}

/// Returns the norm of a channels-last map, and the statistics of every group, `[batch, groups, 2]`.
fn forward(x: CubeTensor, gain: CubeTensor, bias: CubeTensor, options: GroupNormOptions) -> (CubeTensor, CubeTensor) {
    let GroupNormOptions { groups, epsilon, silu } = options;
    let (gain, bias) = (into_contiguous(gain), into_contiguous(bias));
    let (batch, channels, dtype) = (x.meta.shape()[0], x.meta.shape()[3], element(x.dtype));
    let pixels = x.meta.shape()[1] * x.meta.shape()[2];
    let chunks = pixels.div_ceil(CHUNK_PIXELS);
    let sums = empty_like(&x, [batch, chunks, groups, 2], DType::F32);
    let statistics = empty_like(&x, [batch, groups, 2], DType::F32);
    let y = empty_like(&x, x.meta.shape().clone(), x.dtype);
    let client = x.client.clone();
    partial_sums_kernel::launch(
        &client,
        cube_count(batch * chunks),
        CubeDim::new_1d(THREADS),
        x.clone().into_buffer_arg(),
        sums.clone().into_buffer_arg(),
        batch * chunks,
        pixels,
        chunks,
        channels,
        groups,
        THREADS as usize,
        dtype,
    );
    statistics_kernel::launch(
        &client,
        cube_count(batch * groups),
        CubeDim::new_1d(THREADS),
        x.clone().into_buffer_arg(),
        sums.into_buffer_arg(),
        statistics.clone().into_buffer_arg(),
        batch * groups,
        pixels,
        channels,
        chunks,
        groups,
        epsilon as f32,
        THREADS as usize,
        dtype,
    );
    let width = vector_width(channels);
    let (grid, cube) = elementwise_dims(batch * pixels.div_ceil(THREAD_PIXELS) * (channels / width));
    normalize_kernel::launch(
        &client,
        grid,
        cube,
        width,
        x.into_buffer_arg(),
        statistics.clone().into_buffer_arg(),
        gain.into_buffer_arg(),
        bias.into_buffer_arg(),
        y.clone().into_buffer_arg(),
        batch,
        pixels,
        channels,
        groups,
        width,
        silu,
        dtype,
    );
    (y, statistics)
}

impl GroupNorm for Cube {
    fn group_norm(x: CubeTensor, gain: CubeTensor, bias: CubeTensor, options: GroupNormOptions) -> CubeTensor {
        channels_first(forward(channels_last(x), gain, bias, options).0)
    }
}
