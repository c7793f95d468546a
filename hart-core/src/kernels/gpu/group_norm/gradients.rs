//! Gradients of the norm: sums over channels, means over groups, and then every number.

use burn::backend::Autodiff;
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
    fn group_norm(x: FloatTensor<Self>, gain: FloatTensor<Self>, bias: FloatTensor<Self>, options: Options) -> FloatTensor<Self> {
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
