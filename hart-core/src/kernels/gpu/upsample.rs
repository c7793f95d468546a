//! Nearest-neighbour upsampling of channels-last feature maps.

use burn::prelude::Tensor;
use cubecl::prelude::*;

use super::{contiguous, element, elementwise_dims, empty_like, tensor, thread_index, vector_width};

/// Doubles height and width. One thread copies one vector of channels of one output pixel.
#[cube(launch)]
fn upsample_kernel<X: Float, N: Size>(
    x: &[Vector<X, N>],
    y: &mut [Vector<X, N>],
    count: usize,
    height: usize,
    width: usize,
    vectors: usize,
    #[define(X)] _type: ElemType,
) {
    let i = thread_index();
    if i < count {
        let (vector, pixel) = (i % vectors, i / vectors);
        let (column, row) = (pixel % (2 * width), pixel / (2 * width));
        let (row, batch) = (row % (2 * height), row / (2 * height));
        y[i] = x[((batch * height + row / 2) * width + column / 2) * vectors + vector];
    }
}

/// See [`crate::kernels::upsample_nearest`]. The output is a channels-last view.
pub(crate) fn upsample_nearest(x: &Tensor<4>) -> Option<Tensor<4>> {
    let [batch, channels, height, width] = x.dims();
    let x = contiguous(&x.clone().permute([0, 2, 3, 1]))?;
    let y = empty_like(&x, [batch, 2 * height, 2 * width, channels], x.dtype);
    let width_of_vector = vector_width(channels);
    let vectors = channels / width_of_vector;
    let count = 4 * batch * height * width * vectors;
    if count > 0 {
        let (grid, cube) = elementwise_dims(count);
        let (client, dtype) = (x.client.clone(), element(x.dtype));
        upsample_kernel::launch(
            &client,
            grid,
            cube,
            width_of_vector,
            x.into_buffer_arg(),
            y.clone().into_buffer_arg(),
            count,
            height,
            width,
            vectors,
            dtype,
        );
    }
    Some(tensor::<4>(y).permute([0, 3, 1, 2]))
}
