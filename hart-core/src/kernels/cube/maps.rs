//! Feature maps, channels last, as convolutions leave them: group norm with SiLU, and doubling.

use burn::nn::GroupNorm;
use burn::prelude::Tensor;
use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::{THREADS, cube_number, cubes, element, empty_like, tensor, thread_number, threads_for, whole};

/// Places of a map whose sums one cube makes.
const PLACES: usize = 512;

/// The sums of values and squares of every group, over some places of one map: `[batch, parts, groups, 2]`.
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
            for place in range_stepped(first + line, end, lines) {
                let x = f32::cast_from(x[(batch * places + place) * channels + channel]);
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

/// Mean and factor of every group: `[batch, groups, 2]`.
#[cube(launch)]
fn statistics(sums: &[f32], found: &mut [f32], count: usize, parts: usize, groups: usize, numbers: f32, epsilon: f32) {
    let i = thread_number();
    if i < count {
        let (batch, group) = (i / groups, i % groups);
        let mut value = 0.0f32;
        let mut square = 0.0f32;
        for part in 0..parts {
            let at = 2 * ((batch * parts + part) * groups + group);
            value += sums[at];
            square += sums[at + 1];
        }
        let mean = value / numbers;
        found[2 * i] = mean;
        found[2 * i + 1] = 1.0f32 / (max(square / numbers - mean * mean, 0.0f32) + epsilon).sqrt();
    }
}

#[cube(launch)]
#[allow(clippy::too_many_arguments)]
fn normalise<X: Float>(
    x: &[X],
    found: &[f32],
    gain: &[X],
    bias: &[X],
    y: &mut [X],
    count: usize,
    places: usize,
    channels: usize,
    groups: usize,
    #[comptime] then_silu: bool,
    #[define(X)] _type: ElemType,
) {
    let i = thread_number();
    if i < count {
        let (channel, place) = (i % channels, i / channels);
        let at = 2 * (place / places * groups + channel / (channels / groups));
        let value = (f32::cast_from(x[i]) - found[at]) * found[at + 1];
        let mut value = value * f32::cast_from(gain[channel]) + f32::cast_from(bias[channel]);
        if comptime!(then_silu) {
            value = value / (1.0f32 + (-value).exp());
        }
        y[i] = X::cast_from(value);
    }
}

#[cube(launch)]
fn double<X: Float>(
    x: &[X],
    y: &mut [X],
    count: usize,
    height: usize,
    width: usize,
    channels: usize,
    #[define(X)] _type: ElemType,
) {
    let i = thread_number();
    if i < count {
        let (channel, place) = (i % channels, i / channels);
        let (column, row) = (place % (2 * width), place / (2 * width));
        let (row, batch) = (row % (2 * height), row / (2 * height));
        y[i] = x[((batch * height + row / 2) * width + column / 2) * channels + channel];
    }
}

fn channels_last(x: &Tensor<4>) -> Option<CubeTensor> {
    whole(&x.clone().permute([0, 2, 3, 1]))
}

fn channels_first(y: CubeTensor) -> Tensor<4> {
    tensor::<4>(y).permute([0, 3, 1, 2])
}

/// Group norm, with SiLU behind it if asked for, in the type of x.
pub(in super::super) fn group_norm(x: &Tensor<4>, norm: &GroupNorm, then_silu: bool) -> Option<Tensor<4>> {
    let [batch, channels, height, width] = x.dims();
    let (places, groups) = (height * width, norm.num_groups);
    let x = channels_last(x)?;
    let parameter = |parameter: &Option<burn::module::Param<Tensor<1>>>| {
        whole(&parameter.as_ref()?.val()).filter(|parameter| parameter.dtype == x.dtype)
    };
    let (gain, bias) = (parameter(&norm.gamma)?, parameter(&norm.beta)?);
    let count = batch * places * channels;
    if count == 0 {
        return None;
    }
    let parts = places.div_ceil(PLACES);
    let sums = empty_like(&x, [batch, parts, groups, 2], DType::F32);
    let found = empty_like(&x, [batch, groups, 2], DType::F32);
    let y = empty_like(&x, [batch, height, width, channels], x.dtype);
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
        element(x.dtype),
    );
    let (all, dim) = threads_for(batch * groups);
    let numbers = (places * (channels / groups)) as f32;
    let epsilon = norm.epsilon as f32;
    let (sums, to) = (sums.into_buffer_arg(), found.clone().into_buffer_arg());
    statistics::launch(&client, all, dim, sums, to, batch * groups, parts, groups, numbers, epsilon);
    let (all, dim) = threads_for(count);
    let kind = element(x.dtype);
    normalise::launch(
        &client,
        all,
        dim,
        x.into_buffer_arg(),
        found.into_buffer_arg(),
        gain.into_buffer_arg(),
        bias.into_buffer_arg(),
        y.clone().into_buffer_arg(),
        count,
        places,
        channels,
        groups,
        then_silu,
        kind,
    );
    Some(channels_first(y))
}

/// Every place four times.
pub(in super::super) fn upsample_nearest(x: &Tensor<4>) -> Option<Tensor<4>> {
    let [batch, channels, height, width] = x.dims();
    let x = channels_last(x)?;
    let y = empty_like(&x, [batch, 2 * height, 2 * width, channels], x.dtype);
    let count = 4 * batch * height * width * channels;
    if count > 0 {
        let (all, dim) = threads_for(count);
        let (client, kind) = (x.client.clone(), element(x.dtype));
        double::launch(&client, all, dim, x.into_buffer_arg(), y.clone().into_buffer_arg(), count, height, width, channels, kind);
    }
    Some(channels_first(y))
}
