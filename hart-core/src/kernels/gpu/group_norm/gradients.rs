//! Backward pass of group norm: sums of each channel, means of each group, then the gradient of every element.

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::tensor::{Shape, Slice};

use super::super::broadcast::{COLUMN_THREADS, CUBE_COLUMNS, CUBE_ROWS, sum_rows};
use super::*;

/// Returns the gradient of `value` from `dy`, the gradient of `silu(value)`; `dy` itself without SiLU.
#[cube]
fn silu_gradient(dy: f32, value: f32, #[comptime] fuse_silu: bool) -> f32 {
    let mut gradient = dy;
    if comptime!(fuse_silu) {
        let gate = 1.0f32 / (1.0f32 + (-value).exp());
        gradient = dy * gate * (1.0f32 + value * (1.0f32 - gate));
    }
    gradient
}

/// Computes the gradients of bias and gain over a chunk of pixels, `[batch, chunks, 2, channels]`: sums of the gradient of the
/// normalised and scaled values, and of its product with the normalised values. One cube computes one chunk of [`CUBE_COLUMNS`]
/// channels, and a thread one channel of every [`COLUMN_THREADS`]th pixel.
#[cube(launch)]
#[allow(clippy::too_many_arguments)]
fn channel_sums_kernel<X: Float>(
    x: &[X],
    dy: &[X],
    statistics: &[f32],
    gain: &[X],
    bias: &[X],
    sums: &mut [f32],
    pixels: usize,
    channels: usize,
    groups: usize,
    #[comptime] fuse_silu: bool,
    #[define(X)] _type: ElemType,
) {
    let mut sums_shared = Shared::<[f32]>::new_slice(THREADS as usize);
    let mut products_shared = Shared::<[f32]>::new_slice(THREADS as usize);
    let channel = CUBE_POS_X as usize * CUBE_COLUMNS as usize + UNIT_POS_X as usize;
    let first = CUBE_POS_Y as usize * CUBE_ROWS;
    let batch = CUBE_POS_Z as usize;
    let mut sum = 0.0f32;
    let mut product_sum = 0.0f32;
    if channel < channels {
        let at = 2 * (batch * groups + channel / (channels / groups));
        let (mean, inverse_std) = (statistics[at], statistics[at + 1]);
        let (gain, bias) = (f32::cast_from(gain[channel]), f32::cast_from(bias[channel]));
        for pixel in range_stepped(first + UNIT_POS_Y as usize, min(first + CUBE_ROWS, pixels), COLUMN_THREADS as usize) {
            let at = (batch * pixels + pixel) * channels + channel;
            let normed = (f32::cast_from(x[at]) - mean) * inverse_std;
            let gradient = silu_gradient(f32::cast_from(dy[at]), normed * gain + bias, fuse_silu);
            sum += gradient;
            product_sum += gradient * normed;
        }
    }
    sums_shared[UNIT_POS as usize] = sum;
    products_shared[UNIT_POS as usize] = product_sum;
    sync_cube();
    if UNIT_POS_Y == 0 && channel < channels {
        let mut sum = 0.0f32;
        let mut product_sum = 0.0f32;
        for thread in 0..COLUMN_THREADS as usize {
            let at = thread * CUBE_COLUMNS as usize + UNIT_POS_X as usize;
            sum += sums_shared[at];
            product_sum += products_shared[at];
        }
        let at = (batch * CUBE_COUNT_Y as usize + CUBE_POS_Y as usize) * 2 * channels + channel;
        sums[at] = sum;
        sums[at + channels] = product_sum;
    }
}

/// Computes every group's mean gradient of the normalised values, and the mean of its product with them, `[batch, groups, 2]`. One
/// thread computes one group.
#[cube(launch)]
#[allow(clippy::too_many_arguments)]
fn group_means_kernel<X: Float>(
    sums: &[f32],
    gain: &[X],
    means: &mut [f32],
    count: usize,
    chunks: usize,
    channels: usize,
    groups: usize,
    elements: f32,
    #[define(X)] _type: ElemType,
) {
    let i = thread_index();
    if i < count {
        let (batch, group_channels) = (i / groups, channels / groups);
        let first = i % groups * group_channels;
        let mut sum = 0.0f32;
        let mut product_sum = 0.0f32;
        for chunk in 0..chunks {
            for channel in first..first + group_channels {
                let at = (batch * chunks + chunk) * 2 * channels + channel;
                let gain = f32::cast_from(gain[channel]);
                sum += gain * sums[at];
                product_sum += gain * sums[at + channels];
            }
        }
        means[2 * i] = sum / elements;
        means[2 * i + 1] = product_sum / elements;
    }
}

/// Computes the gradient of `x`. One thread computes one element.
#[cube(launch)]
#[allow(clippy::too_many_arguments)]
fn input_gradient_kernel<X: Float>(
    x: &[X],
    dy: &[X],
    statistics: &[f32],
    means: &[f32],
    gain: &[X],
    bias: &[X],
    dx: &mut [X],
    count: usize,
    pixels: usize,
    channels: usize,
    groups: usize,
    #[comptime] fuse_silu: bool,
    #[define(X)] _type: ElemType,
) {
    let i = thread_index();
    if i < count {
        let (channel, pixel) = (i % channels, i / channels);
        let at = 2 * (pixel / pixels * groups + channel / (channels / groups));
        let gain = f32::cast_from(gain[channel]);
        let normed = (f32::cast_from(x[i]) - statistics[at]) * statistics[at + 1];
        let gradient = silu_gradient(f32::cast_from(dy[i]), normed * gain + f32::cast_from(bias[channel]), fuse_silu);
        dx[i] = X::cast_from(statistics[at + 1] * (gradient * gain - means[at] - normed * means[at + 1]));
    }
}

/// Backward pass of [`GroupNorm::group_norm`].
#[derive(Debug)]
struct GroupNormBackward;

/// Tensors and options of the forward pass that the backward pass reads.
#[derive(Clone, Debug)]
struct GroupNormState {
    /// `[batch, height, width, channels]`.
    x: CubeTensor,
    /// Mean and inverse standard deviation of every group, `[batch, groups, 2]`.
    statistics: CubeTensor,
    gain: CubeTensor,
    bias: CubeTensor,
    options: GroupNormOptions,
}

impl Backward<Cube, 3> for GroupNormBackward {
    type State = GroupNormState;

    fn backward(self, ops: Ops<GroupNormState, 3>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let [x_node, gain_node, bias_node] = ops.parents;
        let dy = channels_last(gradients.consume::<Cube>(&ops.node));
        let GroupNormState { x, statistics, gain, bias, options: GroupNormOptions { groups, silu, .. } } = ops.state;
        let (gain, bias, dtype) = (into_contiguous(gain), into_contiguous(bias), element(x.dtype));
        let (batch, channels) = (x.meta.shape()[0], x.meta.shape()[3]);
        let pixels = x.meta.shape()[1] * x.meta.shape()[2];
        let chunks = pixels.div_ceil(CUBE_ROWS);
        let (client, sums) = (x.client.clone(), empty_like(&x, [batch * chunks, 2 * channels], DType::F32));
        channel_sums_kernel::launch(
            &client,
            CubeCount::Static((channels as u32).div_ceil(CUBE_COLUMNS), chunks as u32, batch as u32),
            CubeDim::new_2d(CUBE_COLUMNS, COLUMN_THREADS),
            x.clone().into_buffer_arg(),
            dy.clone().into_buffer_arg(),
            statistics.clone().into_buffer_arg(),
            gain.clone().into_buffer_arg(),
            bias.clone().into_buffer_arg(),
            sums.clone().into_buffer_arg(),
            pixels,
            channels,
            groups,
            silu,
            dtype,
        );
        let channel_sums = sum_rows(&sums, None, 2 * channels);
        let slice = |first: usize| Cube::float_slice(channel_sums.clone(), &[Slice::from(first..first + channels)]);
        if let Some(node) = bias_node {
            gradients.register::<Cube>(node.id, slice(0));
        }
        if let Some(node) = gain_node {
            gradients.register::<Cube>(node.id, slice(channels));
        }
        let Some(node) = x_node else { return };
        let means = empty_like(&x, [batch, groups, 2], DType::F32);
        let (grid, cube) = elementwise_dims(batch * groups);
        let elements = (pixels * (channels / groups)) as f32;
        group_means_kernel::launch(
            &client,
            grid,
            cube,
            sums.into_buffer_arg(),
            gain.clone().into_buffer_arg(),
            means.clone().into_buffer_arg(),
            batch * groups,
            chunks,
            channels,
            groups,
            elements,
            dtype,
        );
        let dx = empty_like(&x, Shape::clone(x.meta.shape()), x.dtype);
        let count = batch * pixels * channels;
        let (grid, cube) = elementwise_dims(count);
        input_gradient_kernel::launch(
            &client,
            grid,
            cube,
            x.into_buffer_arg(),
            dy.into_buffer_arg(),
            statistics.into_buffer_arg(),
            means.into_buffer_arg(),
            gain.into_buffer_arg(),
            bias.into_buffer_arg(),
            dx.clone().into_buffer_arg(),
            count,
            pixels,
            channels,
            groups,
            silu,
            dtype,
        );
        gradients.register::<Cube>(node.id, channels_first(dx));
    }
}

impl<C: CheckpointStrategy> GroupNorm for Autodiff<Cube, C> {
    fn group_norm(
        x: FloatTensor<Self>,
        gain: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        options: GroupNormOptions,
    ) -> FloatTensor<Self> {
        let nodes = [x.node(), gain.node(), bias.node()];
        let (x, gain, bias) = (channels_last(x.into_primitive()), gain.into_primitive(), bias.into_primitive());
        let (y, statistics) = forward(x.clone(), gain.clone(), bias.clone(), options);
        let y = channels_first(y);
        match GroupNormBackward.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prepared) => prepared.finish(GroupNormState { x, statistics, gain, bias, options }, y),
            OpsKind::UnTracked(prepared) => prepared.finish(y),
        }
    }
}
