//! Feature maps, channels last, as convolutions leave them: doubling.

use burn::prelude::Tensor;
use cubecl::prelude::*;

use super::{element, empty_like, side_by_side, tensor, thread_number, threads_for, whole};

#[cube(launch)]
fn double<X: Float, N: Size>(
    x: &[Vector<X, N>],
    y: &mut [Vector<X, N>],
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

/// Every place four times.
pub(crate) fn upsample_nearest(x: &Tensor<4>) -> Option<Tensor<4>> {
    let [batch, channels, height, width] = x.dims();
    let x = whole(&x.clone().permute([0, 2, 3, 1]))?;
    let y = empty_like(&x, [batch, 2 * height, 2 * width, channels], x.dtype);
    let side = side_by_side(channels);
    let channels = channels / side;
    let count = 4 * batch * height * width * channels;
    if count > 0 {
        let (all, dim) = threads_for(count);
        let (client, kind) = (x.client.clone(), element(x.dtype));
        double::launch(
            &client,
            all,
            dim,
            side,
            x.into_buffer_arg(),
            y.clone().into_buffer_arg(),
            count,
            height,
            width,
            channels,
            kind,
        );
    }
    Some(tensor::<4>(y).permute([0, 3, 1, 2]))
}
