//! Group norm with SiLU behind it, and their gradients, over maps that lie channels last.

use burn::backend::ops::FloatTensorOps;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Cube, Dispatch, backend_extension};
use burn::nn::GroupNorm;
use burn::prelude::Tensor;
use burn::tensor::DType;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::pointwise::silu_of;
use super::{THREADS, cube_number, cubes, element, empty_like, is_here, thread_number, threads_for};

#[cfg(feature = "train")]
use burn::backend::Autodiff;

/// What is no tensor about a norm.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Options {
    groups: usize,
    epsilon: f64,
    /// Whether SiLU follows.
    silu: bool,
}

/// The operation, for which [`Dispatch`] finds the backend.
#[backend_extension(Cube, Autodiff: cfg(feature = "train"))]
pub(in super::super) trait Norms: Backend {
    /// Group norm of `[B, C, h, w]`, in the type of all three tensors.
    fn group_norm(x: FloatTensor<Self>, gain: FloatTensor<Self>, bias: FloatTensor<Self>, options: Options) -> FloatTensor<Self>;
}

/// Group norm by a layer, with SiLU behind it if asked for; None where this doesn't apply.
pub(in super::super) fn group_norm(x: &Tensor<4>, norm: &GroupNorm, silu: bool) -> Option<Tensor<4>> {
    let (gain, bias) = (norm.gamma.as_ref()?.val(), norm.beta.as_ref()?.val());
    let kind = x.dtype();
    if !is_here(&x.device().inner()) || gain.dtype() != kind || bias.dtype() != kind || x.shape().num_elements() == 0 {
        return None;
    }
    let options = Options { groups: norm.num_groups, epsilon: norm.epsilon, silu };
    let y = <Dispatch as Norms>::group_norm(x.clone().into_dispatch(), gain.into_dispatch(), bias.into_dispatch(), options);
    Some(Tensor::from_dispatch(y))
}

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
            value = silu_of(value);
        }
        y[i] = X::cast_from(value);
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
    let (all, dim) = threads_for(batch * groups);
    let numbers = (places * (channels / groups)) as f32;
    let (sums, to) = (sums.into_buffer_arg(), found.clone().into_buffer_arg());
    statistics::launch(&client, all, dim, sums, to, batch * groups, parts, groups, numbers, epsilon as f32);
    let count = batch * places * channels;
    let (all, dim) = threads_for(count);
    normalise::launch(
        &client,
        all,
        dim,
        x.into_buffer_arg(),
        found.clone().into_buffer_arg(),
        gain.into_buffer_arg(),
        bias.into_buffer_arg(),
        y.clone().into_buffer_arg(),
        count,
        places,
        channels,
        groups,
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

#[cfg(feature = "train")]
mod gradients {
    use burn::backend::autodiff::checkpoint::base::Checkpointer;
    use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
    use burn::backend::autodiff::grads::Gradients;
    use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
    use burn::tensor::{Shape, Slice};

    use super::super::columns::{COLUMNS, LINES, ROWS, sum_rows};
    use super::*;

    /// Gradient of what SiLU is taken of, from that of SiLU.
    #[cube]
    fn before_silu(dy: f32, value: f32, #[comptime] then_silu: bool) -> f32 {
        let mut gradient = dy;
        if comptime!(then_silu) {
            let gate = 1.0f32 / (1.0f32 + (-value).exp());
            gradient = dy * gate * (1.0f32 + value * (1.0f32 - gate));
        }
        gradient
    }

    /// Sums over some places of the gradient of the scaled and shifted numbers, and of its products with the normed ones:
    /// `[batch, parts, 2, channels]`.
    #[cube(launch)]
    #[allow(clippy::too_many_arguments)]
    fn channel_sums<X: Float>(
        x: &[X],
        dy: &[X],
        found: &[f32],
        gain: &[X],
        bias: &[X],
        sums: &mut [f32],
        places: usize,
        channels: usize,
        groups: usize,
        #[comptime] then_silu: bool,
        #[define(X)] _type: ElemType,
    ) {
        let mut plain = Shared::<[f32]>::new_slice(THREADS as usize);
        let mut times = Shared::<[f32]>::new_slice(THREADS as usize);
        let channel = CUBE_POS_X as usize * COLUMNS as usize + UNIT_POS_X as usize;
        let first = CUBE_POS_Y as usize * ROWS;
        let batch = CUBE_POS_Z as usize;
        let mut sum = 0.0f32;
        let mut of_products = 0.0f32;
        if channel < channels {
            let at = 2 * (batch * groups + channel / (channels / groups));
            let (mean, factor) = (found[at], found[at + 1]);
            let (gain, bias) = (f32::cast_from(gain[channel]), f32::cast_from(bias[channel]));
            for place in range_stepped(first + UNIT_POS_Y as usize, min(first + ROWS, places), LINES as usize) {
                let at = (batch * places + place) * channels + channel;
                let normed = (f32::cast_from(x[at]) - mean) * factor;
                let gradient = before_silu(f32::cast_from(dy[at]), normed * gain + bias, then_silu);
                sum += gradient;
                of_products += gradient * normed;
            }
        }
        plain[UNIT_POS as usize] = sum;
        times[UNIT_POS as usize] = of_products;
        sync_cube();
        if UNIT_POS_Y == 0 && channel < channels {
            let mut sum = 0.0f32;
            let mut of_products = 0.0f32;
            for line in 0..LINES as usize {
                let at = line * COLUMNS as usize + UNIT_POS_X as usize;
                sum += plain[at];
                of_products += times[at];
            }
            let at = (batch * CUBE_COUNT_Y as usize + CUBE_POS_Y as usize) * 2 * channels + channel;
            sums[at] = sum;
            sums[at + channels] = of_products;
        }
    }

    /// Means over each group of the gradients of the normed numbers, and of their products with them: `[batch, groups, 2]`.
    #[cube(launch)]
    #[allow(clippy::too_many_arguments)]
    fn group_means<X: Float>(
        sums: &[f32],
        gain: &[X],
        means: &mut [f32],
        count: usize,
        parts: usize,
        channels: usize,
        groups: usize,
        numbers: f32,
        #[define(X)] _type: ElemType,
    ) {
        let i = thread_number();
        if i < count {
            let (batch, of_group) = (i / groups, channels / groups);
            let first = i % groups * of_group;
            let mut sum = 0.0f32;
            let mut of_products = 0.0f32;
            for part in 0..parts {
                for channel in first..first + of_group {
                    let at = (batch * parts + part) * 2 * channels + channel;
                    let gain = f32::cast_from(gain[channel]);
                    sum += gain * sums[at];
                    of_products += gain * sums[at + channels];
                }
            }
            means[2 * i] = sum / numbers;
            means[2 * i + 1] = of_products / numbers;
        }
    }

    #[cube(launch)]
    #[allow(clippy::too_many_arguments)]
    fn gradient_of_x<X: Float>(
        x: &[X],
        dy: &[X],
        found: &[f32],
        means: &[f32],
        gain: &[X],
        bias: &[X],
        dx: &mut [X],
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
            let gain = f32::cast_from(gain[channel]);
            let normed = (f32::cast_from(x[i]) - found[at]) * found[at + 1];
            let gradient = before_silu(f32::cast_from(dy[i]), normed * gain + f32::cast_from(bias[channel]), then_silu);
            dx[i] = X::cast_from(found[at + 1] * (gradient * gain - means[at] - normed * means[at + 1]));
        }
    }

    #[derive(Debug)]
    struct GroupNormed;

    #[derive(Clone, Debug)]
    struct State {
        /// Channels last, as `dy` is taken.
        x: CubeTensor,
        found: CubeTensor,
        gain: CubeTensor,
        bias: CubeTensor,
        options: Options,
    }

    impl Backward<Cube, 3> for GroupNormed {
        type State = State;

        fn backward(self, ops: Ops<State, 3>, gradients: &mut Gradients, _: &mut Checkpointer) {
            let [to_x, to_gain, to_bias] = ops.parents;
            let dy = channels_last(gradients.consume::<Cube>(&ops.node));
            let State { x, found, gain, bias, options: Options { groups, silu, .. } } = ops.state;
            let (gain, bias, kind) = (into_contiguous(gain), into_contiguous(bias), element(x.dtype));
            let (batch, channels) = (x.meta.shape()[0], x.meta.shape()[3]);
            let places = x.meta.shape()[1] * x.meta.shape()[2];
            let parts = places.div_ceil(ROWS);
            let (client, sums) = (x.client.clone(), empty_like(&x, [batch * parts, 2 * channels], DType::F32));
            channel_sums::launch(
                &client,
                CubeCount::Static((channels as u32).div_ceil(COLUMNS), parts as u32, batch as u32),
                CubeDim::new_2d(COLUMNS, LINES),
                x.clone().into_buffer_arg(),
                dy.clone().into_buffer_arg(),
                found.clone().into_buffer_arg(),
                gain.clone().into_buffer_arg(),
                bias.clone().into_buffer_arg(),
                sums.clone().into_buffer_arg(),
                places,
                channels,
                groups,
                silu,
                kind,
            );
            let of_all = sum_rows(&sums, None, 2 * channels);
            let part = |first: usize| Cube::float_slice(of_all.clone(), &[Slice::from(first..first + channels)]);
            if let Some(node) = to_bias {
                gradients.register::<Cube>(node.id, part(0));
            }
            if let Some(node) = to_gain {
                gradients.register::<Cube>(node.id, part(channels));
            }
            let Some(node) = to_x else { return };
            let means = empty_like(&x, [batch, groups, 2], DType::F32);
            let (all, dim) = threads_for(batch * groups);
            let numbers = (places * (channels / groups)) as f32;
            group_means::launch(
                &client,
                all,
                dim,
                sums.into_buffer_arg(),
                gain.clone().into_buffer_arg(),
                means.clone().into_buffer_arg(),
                batch * groups,
                parts,
                channels,
                groups,
                numbers,
                kind,
            );
            let dx = empty_like(&x, Shape::clone(x.meta.shape()), x.dtype);
            let count = batch * places * channels;
            let (all, dim) = threads_for(count);
            gradient_of_x::launch(
                &client,
                all,
                dim,
                x.into_buffer_arg(),
                dy.into_buffer_arg(),
                found.into_buffer_arg(),
                means.into_buffer_arg(),
                gain.into_buffer_arg(),
                bias.into_buffer_arg(),
                dx.clone().into_buffer_arg(),
                count,
                places,
                channels,
                groups,
                silu,
                kind,
            );
            gradients.register::<Cube>(node.id, channels_first(dx));
        }
    }

    impl<C: CheckpointStrategy> Norms for Autodiff<Cube, C> {
        fn group_norm(
            x: FloatTensor<Self>,
            gain: FloatTensor<Self>,
            bias: FloatTensor<Self>,
            options: Options,
        ) -> FloatTensor<Self> {
            let nodes = [x.node(), gain.node(), bias.node()];
            let (x, gain, bias) = (channels_last(x.into_primitive()), gain.into_primitive(), bias.into_primitive());
            let (y, found) = forward(x.clone(), gain.clone(), bias.clone(), options);
            let y = channels_first(y);
            match GroupNormed.prepare::<C>(nodes).compute_bound().stateful() {
                OpsKind::Tracked(prepared) => prepared.finish(State { x, found, gain, bias, options }, y),
                OpsKind::UnTracked(prepared) => prepared.finish(y),
            }
        }
    }
}
