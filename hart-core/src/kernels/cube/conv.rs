//! Convolution as a matrix product, with its gradients: a kernel lays what every place looks at into a row, and the rows are multiplied
//! by the weights.

use burn::backend::ops::FloatTensorOps;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Cube, Dispatch, backend_extension};
use burn::nn::PaddingConfig2d;
use burn::nn::conv::Conv2d;
use burn::prelude::Tensor;
use burn::tensor::Shape;
#[cfg(feature = "train")]
use burn::tensor::Slice;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::linear::product;
use super::{THREADS, cube_number, cubes, element, empty_like, is_here};
#[cfg(feature = "train")]
use super::{thread_number, threads_for};

#[cfg(feature = "train")]
use burn::backend::Autodiff;

/// Most numbers of rows that lie ready at once.
const MOST: usize = 1 << 28;

/// The operation, for which [`Dispatch`] finds the backend.
#[backend_extension(Cube, Autodiff: cfg(feature = "train"))]
pub(in super::super) trait Convolve: Backend {
    /// Convolution by a square kernel, with borders of zeros.
    fn convolve(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        stride: usize,
        padding: usize,
    ) -> FloatTensor<Self>;
}

/// Convolution by a layer; x comes back where this doesn't apply.
#[allow(clippy::result_large_err)] // What comes back is a tensor, not an error.
pub(in super::super) fn conv2d(x: Tensor<4>, layer: &Conv2d) -> Result<Tensor<4>, Tensor<4>> {
    let Some(bias) = &layer.bias else { return Err(x) };
    let ([stride, other], [kernel, high]) = (layer.stride, layer.kernel_size);
    let usual = stride == other && kernel == high && layer.dilation == [1, 1] && layer.groups == 1;
    let padding = match &layer.padding {
        PaddingConfig2d::Explicit(a, b, c, d) if [a, b, c] == [b, c, d] => *a,
        PaddingConfig2d::Same if stride == 1 && kernel % 2 == 1 => kernel / 2,
        PaddingConfig2d::Valid => 0,
        _ => return Err(x),
    };
    let [_, _, height, width] = x.dims();
    let fits = height.min(width) + 2 * padding >= kernel && x.shape().num_elements() > 0;
    if !usual || !fits || !is_here(&x.device().inner()) {
        return Err(x);
    }
    let (weight, bias) = (layer.weight.val(), bias.val());
    let x = if x.dtype() == weight.dtype() { x } else { x.cast(weight.dtype()) };
    let y = Dispatch::convolve(x.into_dispatch(), weight.into_dispatch(), bias.into_dispatch(), stride, padding);
    Ok(Tensor::from_dispatch(y))
}

/// Sizes of a convolution; maps lie channels last.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    batch: usize,
    height: usize,
    width: usize,
    from: usize,
    to: usize,
    kernel: usize,
    stride: usize,
    padding: usize,
}

impl Sizes {
    fn of(x: &CubeTensor, weight: &CubeTensor, stride: usize, padding: usize) -> Self {
        let (x, weight) = (x.meta.shape(), weight.meta.shape());
        Self { batch: x[0], from: x[1], height: x[2], width: x[3], to: weight[0], kernel: weight[2], stride, padding }
    }

    /// Sides of the output.
    fn out(&self) -> [usize; 2] {
        [self.height, self.width].map(|side| (side + 2 * self.padding - self.kernel) / self.stride + 1)
    }

    /// Numbers that a place looks at.
    fn seen(&self) -> usize {
        self.kernel * self.kernel * self.from
    }

    /// Places of one picture's output.
    fn places(&self) -> usize {
        let [height, width] = self.out();
        height * width
    }

    /// Whether every place looks at itself alone.
    fn is_pointwise(&self) -> bool {
        (self.kernel, self.stride, self.padding) == (1, 1, 0)
    }
}

/// What the places from `first` on look at, row by row: `[places, kernel, kernel, channels]`. One cube a place.
#[cube(launch)]
#[allow(clippy::too_many_arguments)]
fn gather<X: Float>(
    x: &[X],
    rows: &mut [X],
    count: usize,
    first: usize,
    height: usize,
    width: usize,
    channels: usize,
    out_height: usize,
    out_width: usize,
    kernel: usize,
    stride: usize,
    padding: usize,
    #[comptime] threads: usize,
    #[define(X)] _type: ElemType,
) {
    let number = cube_number();
    if number >= count {
        terminate!();
    }
    let place = number + first;
    let (column, rest) = (place % out_width, place / out_width);
    let (row, batch) = (rest % out_height, rest / out_height);
    let seen = kernel * kernel * channels;
    for i in range_stepped(UNIT_POS as usize, seen, threads) {
        let (channel, tap) = (i % channels, i / channels);
        // Counted from the padding's edge.
        let (row, column) = (row * stride + tap / kernel, column * stride + tap % kernel);
        let inside = row >= padding && column >= padding && row < height + padding && column < width + padding;
        let mut value = X::from_int(0);
        if inside {
            value = x[((batch * height + row - padding) * width + column - padding) * channels + channel];
        }
        rows[number * seen + i] = value;
    }
}

/// The way back: what all rows say about each number of a map, added.
#[cfg(feature = "train")]
#[cube(launch)]
#[allow(clippy::too_many_arguments)]
fn scatter<X: Float>(
    rows: &[X],
    x: &mut [X],
    count: usize,
    height: usize,
    width: usize,
    channels: usize,
    out_height: usize,
    out_width: usize,
    kernel: usize,
    stride: usize,
    padding: usize,
    #[define(X)] _type: ElemType,
) {
    let i = thread_number();
    if i < count {
        let (channel, rest) = (i % channels, i / channels);
        let (column, rest) = (rest % width, rest / width);
        let (row, batch) = (rest % height, rest / height);
        let mut sum = 0.0f32;
        for down in 0..kernel {
            for across in 0..kernel {
                // The place that has this number so far down and across, if there is one.
                if row + padding >= down && column + padding >= across {
                    let (from_row, from_column) = (row + padding - down, column + padding - across);
                    let (place_row, place_column) = (from_row / stride, from_column / stride);
                    let exact = place_row * stride == from_row && place_column * stride == from_column;
                    if exact && place_row < out_height && place_column < out_width {
                        let place = (batch * out_height + place_row) * out_width + place_column;
                        sum += f32::cast_from(rows[((place * kernel + down) * kernel + across) * channels + channel]);
                    }
                }
            }
        }
        x[i] = X::cast_from(sum);
    }
}

/// Rows of `count` places from `first` on, `[count, seen]`, of a map `[B, h, w, from]`.
fn rows_of(x: &CubeTensor, sizes: Sizes, first: usize, count: usize) -> CubeTensor {
    let rows = empty_like(x, [count, sizes.seen()], x.dtype);
    let [out_height, out_width] = sizes.out();
    gather::launch(
        &x.client,
        cubes(count),
        CubeDim::new_1d(THREADS),
        x.clone().into_buffer_arg(),
        rows.clone().into_buffer_arg(),
        count,
        first,
        sizes.height,
        sizes.width,
        sizes.from,
        out_height,
        out_width,
        sizes.kernel,
        sizes.stride,
        sizes.padding,
        THREADS as usize,
        element(x.dtype),
    );
    rows
}

fn channels_last(x: CubeTensor) -> CubeTensor {
    into_contiguous(Cube::float_permute(x, &[0, 2, 3, 1]))
}

fn reshaped<const D: usize>(x: CubeTensor, shape: [usize; D]) -> CubeTensor {
    Cube::float_reshape(x, Shape::from(shape))
}

/// Weights `[out, in, k, k]` as rows of what a place looks at, `[out, k k in]`.
fn rows_of_weights(weight: CubeTensor, sizes: Sizes) -> CubeTensor {
    reshaped(channels_last(weight), [sizes.to, sizes.seen()])
}

/// Some rows of a matrix.
#[cfg(feature = "train")]
fn part(x: CubeTensor, first: usize, count: usize) -> CubeTensor {
    let width = x.meta.shape()[1];
    into_contiguous(Cube::float_slice(x, &[Slice::from(first..first + count), Slice::from(0..width)]))
}

impl Convolve for Cube {
    fn convolve(x: CubeTensor, weight: CubeTensor, bias: CubeTensor, stride: usize, padding: usize) -> CubeTensor {
        let sizes = Sizes::of(&x, &weight, stride, padding);
        let (x, weight) = (channels_last(x), Cube::float_swap_dims(rows_of_weights(weight, sizes), 0, 1));
        let all = sizes.batch * sizes.places();
        let kind = x.dtype;
        let y = if sizes.is_pointwise() {
            product(reshaped(x, [all, sizes.from]), weight, kind)
        } else {
            let at_once = (MOST / sizes.seen()).clamp(1, all);
            let bands = (0..all).step_by(at_once);
            let bands = bands.map(|first| product(rows_of(&x, sizes, first, at_once.min(all - first)), weight.clone(), kind));
            let mut bands: Vec<CubeTensor> = bands.collect();
            if bands.len() == 1 { bands.swap_remove(0) } else { Cube::float_cat(bands, 0) }
        };
        let y = Cube::float_add(y, reshaped(bias, [1, sizes.to]));
        let [height, width] = sizes.out();
        Cube::float_permute(reshaped(y, [sizes.batch, height, width, sizes.to]), &[0, 3, 1, 2])
    }
}

#[cfg(feature = "train")]
mod gradients {
    use burn::backend::autodiff::checkpoint::base::Checkpointer;
    use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
    use burn::backend::autodiff::grads::Gradients;
    use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};

    use super::*;

    #[derive(Debug)]
    struct Convolution;

    /// Gradient of x, `[B, from, h, w]`, from dy, `[places of all, to]`: so many pictures at once as fit.
    fn of_x(dy: &CubeTensor, weight: CubeTensor, sizes: Sizes) -> CubeTensor {
        let weight = rows_of_weights(weight, sizes);
        let places = sizes.places();
        let at_once = (MOST / (sizes.seen() * places)).clamp(1, sizes.batch);
        let some = |first: usize| {
            let batch = at_once.min(sizes.batch - first);
            let rows = product(part(dy.clone(), first * places, batch * places), weight.clone(), dy.dtype);
            let x = empty_like(&rows, [batch, sizes.height, sizes.width, sizes.from], rows.dtype);
            let count = batch * sizes.height * sizes.width * sizes.from;
            let ([out_height, out_width], (all, dim)) = (sizes.out(), threads_for(count));
            scatter::launch(
                &rows.client.clone(),
                all,
                dim,
                rows.clone().into_buffer_arg(),
                x.clone().into_buffer_arg(),
                count,
                sizes.height,
                sizes.width,
                sizes.from,
                out_height,
                out_width,
                sizes.kernel,
                sizes.stride,
                sizes.padding,
                element(rows.dtype),
            );
            x
        };
        let parts: Vec<CubeTensor> = (0..sizes.batch).step_by(at_once).map(some).collect();
        Cube::float_permute(Cube::float_cat(parts, 0), &[0, 3, 1, 2])
    }

    /// Gradient of the weights, `[to, from, k, k]`.
    fn of_weights(x: CubeTensor, dy: &CubeTensor, sizes: Sizes) -> CubeTensor {
        let x = channels_last(x);
        let all = sizes.batch * sizes.places();
        let at_once = (MOST / sizes.seen()).clamp(1, all);
        let some = |first: usize| {
            let count = at_once.min(all - first);
            let dy = Cube::float_swap_dims(part(dy.clone(), first, count), 0, 1);
            product(dy, rows_of(&x, sizes, first, count), x.dtype)
        };
        let sum = (0..all).step_by(at_once).map(some).reduce(Cube::float_add).expect("there is a place");
        let sum = reshaped(sum, [sizes.to, sizes.kernel, sizes.kernel, sizes.from]);
        into_contiguous(Cube::float_permute(sum, &[0, 3, 1, 2]))
    }

    impl Backward<Cube, 3> for Convolution {
        type State = (CubeTensor, CubeTensor, Sizes);

        fn backward(self, ops: Ops<Self::State, 3>, gradients: &mut Gradients, _: &mut Checkpointer) {
            let [to_x, to_weight, to_bias] = ops.parents;
            let (x, weight, sizes) = ops.state;
            let dy = channels_last(gradients.consume::<Cube>(&ops.node));
            let dy = reshaped(dy, [sizes.batch * sizes.places(), sizes.to]);
            if let Some(node) = to_x {
                gradients.register::<Cube>(node.id, of_x(&dy, weight, sizes));
            }
            if let Some(node) = to_weight {
                gradients.register::<Cube>(node.id, of_weights(x, &dy, sizes));
            }
            if let Some(node) = to_bias {
                gradients.register::<Cube>(node.id, reshaped(Cube::float_sum_dim(dy, 0), [sizes.to]));
            }
        }
    }

    impl<C: CheckpointStrategy> Convolve for Autodiff<Cube, C> {
        fn convolve(
            x: FloatTensor<Self>,
            weight: FloatTensor<Self>,
            bias: FloatTensor<Self>,
            stride: usize,
            padding: usize,
        ) -> FloatTensor<Self> {
            match Convolution.prepare::<C>([x.node(), weight.node(), bias.node()]).compute_bound().stateful() {
                OpsKind::Tracked(prepared) => {
                    let (x, weight) = (x.primitive().clone(), weight.primitive().clone());
                    let sizes = Sizes::of(&x, &weight, stride, padding);
                    let y = Cube::convolve(x.clone(), weight.clone(), bias.into_primitive(), stride, padding);
                    prepared.finish((x, weight, sizes), y)
                }
                OpsKind::UnTracked(prepared) => {
                    let (x, weight, bias) = (x.into_primitive(), weight.into_primitive(), bias.into_primitive());
                    prepared.finish(Cube::convolve(x, weight, bias, stride, padding))
                }
            }
        }
    }
}
