//! Group norm with SiLU behind it, and their gradients, over maps that lie channels last.

use burn::backend::ops::FloatTensorOps;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Cube, Dispatch, backend_extension};
use burn::prelude::Tensor;
use burn::tensor::DType;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::elementwise::silu_of;
use super::{THREADS, cube_number, cube_sum, cubes, element, empty_like, is_here, side_by_side, thread_number, threads_for};
use crate::kernels::params::GroupNormParams;

#[cfg(feature = "train")]
mod gradients;

/// What is no tensor about a norm.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    groups: usize,
    epsilon: f64,
    /// Whether SiLU follows.
    silu: bool,
}

/// The operation, for which [`Dispatch`] finds the backend.
#[backend_extension(Cube, Autodiff: cfg(feature = "train"))]
pub(crate) trait Norms: Backend {
    /// Group norm of `[B, C, h, w]`, in the type of all three tensors.
    fn group_norm(x: FloatTensor<Self>, gain: FloatTensor<Self>, bias: FloatTensor<Self>, options: Options) -> FloatTensor<Self>;
}

/// See [`crate::kernels::group_norm`]; SiLU follows if `silu`.
#[allow(clippy::result_large_err, reason = "an operand, not an error")]
pub(crate) fn group_norm(x: Tensor<4>, params: &GroupNormParams, silu: bool) -> Result<Tensor<4>, Tensor<4>> {
    let (gain, bias) = (params.gain.clone(), params.bias.clone());
    let kind = x.dtype();
    if !is_here(&x.device().inner()) || gain.dtype() != kind || bias.dtype() != kind || x.shape().num_elements() == 0 {
        return Err(x);
    }
    let options = Options { groups: params.groups, epsilon: params.epsilon, silu };
    let y = <Dispatch as Norms>::group_norm(x.into_dispatch(), gain.into_dispatch(), bias.into_dispatch(), options);
    Ok(Tensor::from_dispatch(y))
}

/// Places of a map whose sums one cube makes.
const PLACES: usize = 512;

/// The sums of every group's values and squares, over some places of one map: `[batch, parts, groups, 2]`. All are seen from the group's
/// first value, so that squares don't lose their digits to a mean far from zero.
#[cube(launch)]
#[allow(clippy::too_many_arguments)]
fn partial_sums<X: Float>(
    x: &[X],
    sums: &mut [f32],
    cubes: usize,
    places: usize,
    parts: usize,
    channels: usize,
    #[comptime] groups: usize,
    #[comptime] threads: usize,
    #[define(X)] _type: ElemType,
) {
    let number = cube_number();
    if number >= cubes {
        terminate!();
    }
    let unit = UNIT_POS as usize;
    let (batch, part) = (number / parts, number % parts);
    let first = part * PLACES;
    let end = min(first + PLACES, places);
    let of_group = channels / groups;
    // So many channels side by side, and as many places as there are threads for.
    let lanes = min(channels, threads);
    let lines = threads / lanes;
    let (lane, line) = (unit % lanes, unit / lanes);
    let mut values = Shared::<[f32]>::new_slice(threads);
    let mut squares = Shared::<[f32]>::new_slice(threads);
    let mut of_all = Shared::<[f32]>::new_slice(2 * groups);
    for group in range_stepped(unit, 2 * groups, threads) {
        of_all[group] = 0.0f32;
    }
    sync_cube();
    for from in range_stepped(0usize, channels, lanes) {
        let channel = from + lane;
        let mut value = 0.0f32;
        let mut square = 0.0f32;
        if channel < channels && line < lines {
            let about = f32::cast_from(x[batch * places * channels + channel / of_group * of_group]);
            for place in range_stepped(first + line, end, lines) {
                let x = f32::cast_from(x[(batch * places + place) * channels + channel]) - about;
                value += x;
                square += x * x;
            }
        }
        values[unit] = value;
        squares[unit] = square;
        sync_cube();
        // A group's channels lie side by side, and are added in order.
        for group in range_stepped(unit, groups, threads) {
            let begin = max(group * of_group, from);
            let end = min((group + 1) * of_group, from + lanes);
            let mut value = of_all[2 * group];
            let mut square = of_all[2 * group + 1];
            for channel in range_stepped(begin, end, 1usize) {
                for line in 0..lines {
                    value += values[line * lanes + channel - from];
                    square += squares[line * lanes + channel - from];
                }
            }
            of_all[2 * group] = value;
            of_all[2 * group + 1] = square;
        }
        sync_cube();
    }
    for group in range_stepped(unit, 2 * groups, threads) {
        sums[number * 2 * groups + group] = of_all[group];
    }
}

/// One cube a group: its mean and factor, `[batch, groups, 2]`.
#[cube(launch)]
#[allow(clippy::too_many_arguments)]
fn statistics<X: Float>(
    x: &[X],
    sums: &[f32],
    found: &mut [f32],
    count: usize,
    places: usize,
    channels: usize,
    parts: usize,
    groups: usize,
    epsilon: f32,
    #[comptime] threads: usize,
    #[define(X)] _type: ElemType,
) {
    let i = cube_number();
    if i >= count {
        terminate!();
    }
    let (batch, group) = (i / groups, i % groups);
    let unit = UNIT_POS as usize;
    let mut value = 0.0f32;
    let mut square = 0.0f32;
    for part in range_stepped(unit, parts, threads) {
        let at = 2 * ((batch * parts + part) * groups + group);
        value += sums[at];
        square += sums[at + 1];
    }
    value = cube_sum(value, threads);
    square = cube_sum(square, threads);
    if unit == 0 {
        let of_group = channels / groups;
        let numbers = f32::cast_from((places * of_group) as u32);
        let mean = value / numbers;
        found[2 * i] = f32::cast_from(x[batch * places * channels + group * of_group]) + mean;
        found[2 * i + 1] = 1.0f32 / (max(square / numbers - mean * mean, 0.0f32) + epsilon).sqrt();
    }
}

/// Places that a thread norms, one below the other.
const PLACES_OF_THREAD: usize = 8;

#[cube(launch)]
#[allow(clippy::too_many_arguments)]
fn normalise<X: Float, N: Size>(
    x: &[Vector<X, N>],
    found: &[f32],
    gain: &[Vector<X, N>],
    bias: &[Vector<X, N>],
    y: &mut [Vector<X, N>],
    batch: usize,
    places: usize,
    channels: usize,
    groups: usize,
    #[comptime] side: usize,
    #[comptime] then_silu: bool,
    #[define(X)] _type: ElemType,
) {
    let i = thread_number();
    let vectors = channels / side;
    let parts = (places + comptime!(PLACES_OF_THREAD - 1)) / PLACES_OF_THREAD;
    let (lane, rest) = (i % vectors, i / vectors);
    let (part, map) = (rest % parts, rest / parts);
    if map < batch {
        let of_group = channels / groups;
        let (gain, bias) = (Vector::<f32, N>::cast_from(gain[lane]), Vector::<f32, N>::cast_from(bias[lane]));
        let mut mean = Vector::<f32, N>::from_int(0);
        let mut factor = Vector::<f32, N>::from_int(0);
        #[unroll]
        for channel in 0..side {
            let at = 2 * (map * groups + (lane * side + channel) / of_group);
            mean.insert(channel, found[at]);
            factor.insert(channel, found[at + 1]);
        }
        let first = part * PLACES_OF_THREAD;
        for place in first..min(first + PLACES_OF_THREAD, places) {
            let at = (map * places + place) * vectors + lane;
            let mut value = (Vector::<f32, N>::cast_from(x[at]) - mean) * factor * gain + bias;
            if comptime!(then_silu) {
                #[unroll]
                for channel in 0..side {
                    value.insert(channel, silu_of(value.extract(channel)));
                }
            }
            y[at] = Vector::cast_from(value);
        }
    }
}

/// The map channels last, and back.
fn channels_last(x: CubeTensor) -> CubeTensor {
    into_contiguous(Cube::float_permute(x, &[0, 2, 3, 1]))
}

fn channels_first(x: CubeTensor) -> CubeTensor {
    Cube::float_permute(x, &[0, 3, 1, 2])
}

/// The norm of a map that lies channels last, and mean and factor of every group.
fn forward(x: CubeTensor, gain: CubeTensor, bias: CubeTensor, options: Options) -> (CubeTensor, CubeTensor) {
    let Options { groups, epsilon, silu } = options;
    let (gain, bias) = (into_contiguous(gain), into_contiguous(bias));
    let (batch, channels, kind) = (x.meta.shape()[0], x.meta.shape()[3], element(x.dtype));
    let places = x.meta.shape()[1] * x.meta.shape()[2];
    let parts = places.div_ceil(PLACES);
    let sums = empty_like(&x, [batch, parts, groups, 2], DType::F32);
    let found = empty_like(&x, [batch, groups, 2], DType::F32);
    let y = empty_like(&x, x.meta.shape().clone(), x.dtype);
    let client = x.client.clone();
    partial_sums::launch(
        &client,
        cubes(batch * parts),
        CubeDim::new_1d(THREADS),
        x.clone().into_buffer_arg(),
        sums.clone().into_buffer_arg(),
        batch * parts,
        places,
        parts,
        channels,
        groups,
        THREADS as usize,
        kind,
    );
    statistics::launch(
        &client,
        cubes(batch * groups),
        CubeDim::new_1d(THREADS),
        x.clone().into_buffer_arg(),
        sums.into_buffer_arg(),
        found.clone().into_buffer_arg(),
        batch * groups,
        places,
        channels,
        parts,
        groups,
        epsilon as f32,
        THREADS as usize,
        kind,
    );
    let side = side_by_side(channels);
    let (all, dim) = threads_for(batch * places.div_ceil(PLACES_OF_THREAD) * (channels / side));
    normalise::launch(
        &client,
        all,
        dim,
        side,
        x.into_buffer_arg(),
        found.clone().into_buffer_arg(),
        gain.into_buffer_arg(),
        bias.into_buffer_arg(),
        y.clone().into_buffer_arg(),
        batch,
        places,
        channels,
        groups,
        side,
        silu,
        kind,
    );
    (y, found)
}

impl Norms for Cube {
    fn group_norm(x: CubeTensor, gain: CubeTensor, bias: CubeTensor, options: Options) -> CubeTensor {
        channels_first(forward(channels_last(x), gain, bias, options).0)
    }
}
