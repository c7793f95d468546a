//! Convolution as a matrix product, with its gradients: the left matrix is what every place looks at, read where it lies.

use burn::backend::ops::FloatTensorOps;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Cube, Dispatch, backend_extension};
use burn::prelude::Tensor;
use burn::tensor::Shape;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
#[cfg(feature = "train")]
use cubecl::prelude::*;

use super::is_here;
use super::product::{Lies, Operand, Single, Sizes, View, multiply};
use crate::kernels::params::ConvParams;

#[cfg(feature = "train")]
use burn::backend::Autodiff;

/// The operation, for which [`Dispatch`] finds the backend.
#[backend_extension(Cube, Autodiff: cfg(feature = "train"))]
pub(crate) trait Convolve: Backend {
    /// Convolution by a square kernel, with borders of zeros before and after each side.
    fn convolve(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        stride: usize,
        padding: [usize; 2],
    ) -> FloatTensor<Self>;
}

/// See [`crate::kernels::conv2d`]: the stride, the kernel and its padding are the same in both directions.
#[allow(clippy::result_large_err, reason = "an operand, not an error")]
pub(crate) fn conv2d(x: Tensor<4>, params: &ConvParams) -> Result<Tensor<4>, Tensor<4>> {
    let Some(bias) = params.bias.clone() else { return Err(x) };
    let ([stride, other], [kernel, high]) = (params.stride, params.kernel());
    let usual = stride == other && kernel == high && params.dilation == [1, 1] && params.groups == 1;
    let [padding, horizontal] = params.padding;
    let [_, _, height, width] = x.dims();
    let fits = height.min(width) + padding[0] + padding[1] >= kernel && x.shape().num_elements() > 0;
    if !usual || padding != horizontal || !fits || !is_here(&x.device().inner()) {
        return Err(x);
    }
    let weight = params.weight.clone();
    let x = if x.dtype() == weight.dtype() { x } else { x.cast(weight.dtype()) };
    let y = Dispatch::convolve(x.into_dispatch(), weight.into_dispatch(), bias.into_dispatch(), stride, padding);
    Ok(Tensor::from_dispatch(y))
}

/// Sizes of a convolution; maps lie channels last.
#[derive(Clone, Copy, Debug)]
struct Convolved {
    batch: usize,
    to: usize,
    view: View,
}

impl Convolved {
    fn of(x: &CubeTensor, weight: &CubeTensor, stride: usize, [padding, after]: [usize; 2]) -> Self {
        let (x, weight) = (x.meta.shape(), weight.meta.shape());
        let kernel = weight[2];
        let [out_height, out_width] = [x[2], x[3]].map(|side| (side + padding + after - kernel) / stride + 1);
        let view = View { height: x[2], width: x[3], channels: x[1], out_height, out_width, kernel, stride, padding };
        Self { batch: x[0], to: weight[0], view }
    }

    /// Numbers that a place looks at.
    fn seen(&self) -> usize {
        self.view.kernel * self.view.kernel * self.view.channels
    }

    /// Places of all outputs.
    fn places(&self) -> usize {
        self.batch * self.view.out_height * self.view.out_width
    }

    /// What all places look at: of kernels of one place, the map itself.
    fn seen_by_places(&self, x: CubeTensor) -> Operand {
        let View { height, width, channels, out_height, out_width, kernel, stride, padding } = self.view;
        match (kernel, stride, padding) {
            (1, 1, 0) if (out_height, out_width) == (height, width) => Operand::new(x, Lies::Deep, channels),
            _ => Operand::map(x, Lies::Places),
        }
    }
}

fn channels_last(x: CubeTensor) -> CubeTensor {
    into_contiguous(Cube::float_permute(x, &[0, 2, 3, 1]))
}

/// A map that lies channels last, `[B, h, w, C]`, as burn has them, `[B, C, h, w]`.
fn channels_first(x: CubeTensor, shape: [usize; 4]) -> CubeTensor {
    Cube::float_permute(reshaped(x, shape), &[0, 3, 1, 2])
}

fn reshaped<const D: usize>(x: CubeTensor, shape: [usize; D]) -> CubeTensor {
    Cube::float_reshape(x, Shape::from(shape))
}

/// Weights `[out, in, k, k]` as rows of what a place looks at, `[out, k k in]`: the right matrix, in columns.
fn columns_of(weight: CubeTensor, seen: usize) -> Operand {
    Operand::new(channels_last(weight), Lies::Deep, seen)
}

fn forward(x: CubeTensor, weight: CubeTensor, bias: &CubeTensor, all: Convolved, single: Single) -> CubeTensor {
    let kind = x.dtype;
    let sizes = Sizes::new(all.places(), all.to, all.seen());
    let (left, right) = (all.seen_by_places(channels_last(x)), columns_of(weight, all.seen()));
    let y = multiply(&left, &right, sizes, all.view, Some(bias), kind, single);
    channels_first(y, [all.batch, all.view.out_height, all.view.out_width, all.to])
}

impl Convolve for Cube {
    fn convolve(x: CubeTensor, weight: CubeTensor, bias: CubeTensor, stride: usize, padding: [usize; 2]) -> CubeTensor {
        let all = Convolved::of(&x, &weight, stride, padding);
        forward(x, weight, &bias, all, Single::Exact)
    }
}

#[cfg(feature = "train")]
mod gradients {
    use burn::backend::autodiff::checkpoint::base::Checkpointer;
    use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
    use burn::backend::autodiff::grads::Gradients;
    use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};

    use super::super::columns::sum_rows;
    use super::super::{element, empty_like, thread_number, threads_for};
    use super::*;

    #[derive(Debug)]
    struct Convolution;

    /// The way back from rows of what places look at: what all rows say about each number of a map, added.
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

    /// Gradient of x, `[B, from, h, w]`, from dy, `[B, h', w', to]`.
    fn of_x(dy: CubeTensor, weight: CubeTensor, all: Convolved) -> CubeTensor {
        let (view, kind) = (all.view, dy.dtype);
        let shape = [all.batch, view.height, view.width, view.channels];
        if view.stride == 1 && view.padding < view.kernel {
            // A convolution by the same weights the other way round: every place is looked at by those that it looked at.
            let weight = Cube::float_swap_dims(Cube::float_flip(weight, &[2, 3]), 0, 1);
            let padding = view.kernel - 1 - view.padding;
            let back = View { height: view.out_height, width: view.out_width, channels: all.to, padding, ..view };
            let back =
                Convolved { to: view.channels, view: View { out_height: view.height, out_width: view.width, ..back }, ..all };
            let sizes = Sizes::new(back.places(), back.to, back.seen());
            let y =
                multiply(&back.seen_by_places(dy), &columns_of(weight, back.seen()), sizes, back.view, None, kind, Single::Rounded);
            return channels_first(y, shape);
        }
        let sizes = Sizes::new(all.places(), all.seen(), all.to);
        let weight = Operand::new(channels_last(weight), Lies::Wide, all.seen());
        let rows = multiply(&Operand::new(dy, Lies::Deep, all.to), &weight, sizes, view, None, kind, Single::Rounded);
        let count = shape.iter().product();
        let x = empty_like(&rows, shape, kind);
        let (cubes, dim) = threads_for(count);
        scatter::launch(
            &rows.client.clone(),
            cubes,
            dim,
            rows.into_buffer_arg(),
            x.clone().into_buffer_arg(),
            count,
            view.height,
            view.width,
            view.channels,
            view.out_height,
            view.out_width,
            view.kernel,
            view.stride,
            view.padding,
            element(kind),
        );
        channels_first(x, shape)
    }

    /// Gradient of the weights, `[to, from, k, k]`: a sum over all places, of which shares are summed side by side, since the matrix
    /// itself is small.
    fn of_weights(x: CubeTensor, dy: CubeTensor, all: Convolved) -> CubeTensor {
        let (seen, kind) = (all.seen(), x.dtype);
        let sizes = Sizes::in_shares(all.to, seen, all.places());
        let left = Operand::new(dy, Lies::Wide, all.to).apart(sizes.share * all.to);
        let right = Operand::map(channels_last(x), Lies::PlacesWide).apart(sizes.share);
        let sums = multiply(&left, &right, sizes, all.view, None, kind, Single::Rounded);
        let sum = reshaped(sum_rows(&sums, None, all.to * seen), [all.to, all.view.kernel, all.view.kernel, all.view.channels]);
        into_contiguous(Cube::float_permute(sum, &[0, 3, 1, 2]))
    }

    impl Backward<Cube, 3> for Convolution {
        type State = (CubeTensor, CubeTensor, Convolved);

        fn backward(self, ops: Ops<Self::State, 3>, gradients: &mut Gradients, _: &mut Checkpointer) {
            let [to_x, to_weight, to_bias] = ops.parents;
            let (x, weight, all) = ops.state;
            let dy = channels_last(gradients.consume::<Cube>(&ops.node));
            if let Some(node) = to_bias {
                gradients.register::<Cube>(node.id, sum_rows(&dy, None, all.to));
            }
            if let Some(node) = to_weight {
                gradients.register::<Cube>(node.id, of_weights(x, dy.clone(), all));
            }
            if let Some(node) = to_x {
                gradients.register::<Cube>(node.id, of_x(dy, weight, all));
            }
        }
    }

    impl<C: CheckpointStrategy> Convolve for Autodiff<Cube, C> {
        fn convolve(
            x: FloatTensor<Self>,
            weight: FloatTensor<Self>,
            bias: FloatTensor<Self>,
            stride: usize,
            padding: [usize; 2],
        ) -> FloatTensor<Self> {
            match Convolution.prepare::<C>([x.node(), weight.node(), bias.node()]).compute_bound().stateful() {
                OpsKind::Tracked(prepared) => {
                    let (x, weight) = (x.primitive().clone(), weight.primitive().clone());
                    let all = Convolved::of(&x, &weight, stride, padding);
                    let y = forward(x.clone(), weight.clone(), &bias.into_primitive(), all, Single::Rounded);
                    prepared.finish((x, weight, all), y)
                }
                OpsKind::UnTracked(prepared) => {
                    let (x, weight, bias) = (x.into_primitive(), weight.into_primitive(), bias.into_primitive());
                    prepared.finish(Cube::convolve(x, weight, bias, stride, padding))
                }
            }
        }
    }
}
