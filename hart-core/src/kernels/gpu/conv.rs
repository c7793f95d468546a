//! Convolution as an implicit GEMM, with its gradients. Feature maps are channels-last inside.

use burn::backend::ops::FloatTensorOps;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Cube, Dispatch, backend_extension};
use burn::prelude::Tensor;
use burn::tensor::Shape;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
#[cfg(feature = "train")]
use cubecl::prelude::*;

use super::gemm::{ConvGeometry, F32Mode, GemmShape, Layout, Operand, gemm};
use super::is_gpu;
use crate::kernels::params::ConvParams;

#[cfg(feature = "train")]
use burn::backend::Autodiff;

/// The operation. [`Dispatch`] selects the backend.
#[backend_extension(Cube, Autodiff: cfg(feature = "train"))]
pub(crate) trait Convolve: Backend {
    /// Convolves `[batch, in, height, width]` with square kernels `[out, in, k, k]`. `padding` is the number of zeros before and after
    /// each dimension.
    fn convolve(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        stride: usize,
        padding: [usize; 2],
    ) -> FloatTensor<Self>;
}

/// See [`crate::kernels::conv2d`]. Applies if there is a bias, one group, no dilation, and if kernel, stride and padding are the same in
/// both directions.
pub(crate) fn conv2d(x: Tensor<4>, params: &ConvParams) -> Result<Tensor<4>, Tensor<4>> {
    let Some(bias) = params.bias.clone() else { return Err(x) };
    let ([stride, stride_x], [kernel, kernel_x]) = (params.stride, params.kernel());
    let square = stride == stride_x && kernel == kernel_x && params.dilation == [1, 1] && params.groups == 1;
    let [padding, padding_x] = params.padding;
    let [_, _, height, width] = x.dims();
    let fits = height.min(width) + padding[0] + padding[1] >= kernel && x.shape().num_elements() > 0;
    if !square || padding != padding_x || !fits || !is_gpu(&x.device().inner()) {
        return Err(x);
    }
    let weight = params.weight.clone();
    let x = if x.dtype() == weight.dtype() { x } else { x.cast(weight.dtype()) };
    let y = Dispatch::convolve(x.into_dispatch(), weight.into_dispatch(), bias.into_dispatch(), stride, padding);
    Ok(Tensor::from_dispatch(y))
}

/// Sizes of a convolution.
#[derive(Clone, Copy, Debug)]
struct ConvShape {
    batch: usize,
    out_channels: usize,
    geometry: ConvGeometry,
}

impl ConvShape {
    /// Creates the sizes from `x` `[batch, in, height, width]` and `weight` `[out, in, k, k]`.
    fn of(x: &CubeTensor, weight: &CubeTensor, stride: usize, [padding, after]: [usize; 2]) -> Self {
        let (x, weight) = (x.meta.shape(), weight.meta.shape());
        let kernel = weight[2];
        let [out_height, out_width] = [x[2], x[3]].map(|side| (side + padding + after - kernel) / stride + 1);
        let geometry = ConvGeometry { height: x[2], width: x[3], channels: x[1], out_height, out_width, kernel, stride, padding };
        Self { batch: x[0], out_channels: weight[0], geometry }
    }

    /// Returns the number of elements of a patch: the columns of the im2col matrix.
    fn patch_len(&self) -> usize {
        self.geometry.kernel * self.geometry.kernel * self.geometry.channels
    }

    /// Returns the number of output pixels of the whole batch: the rows of the im2col matrix.
    fn pixels(&self) -> usize {
        self.batch * self.geometry.out_height * self.geometry.out_width
    }

    /// Returns the im2col matrix of a channels-last map. With a 1 x 1 kernel it is the map itself.
    fn im2col(&self, x: CubeTensor) -> Operand {
        let ConvGeometry { height, width, channels, out_height, out_width, kernel, stride, padding } = self.geometry;
        match (kernel, stride, padding) {
            (1, 1, 0) if (out_height, out_width) == (height, width) => Operand::new(x, Layout::KMajor, channels),
            _ => Operand::im2col(x, Layout::Im2colKMajor),
        }
    }
}

/// Permutes `[batch, channels, height, width]` to contiguous `[batch, height, width, channels]`.
fn channels_last(x: CubeTensor) -> CubeTensor {
    into_contiguous(Cube::float_permute(x, &[0, 2, 3, 1]))
}

/// Reshapes to `[batch, height, width, channels]` and returns the view `[batch, channels, height, width]`.
fn channels_first(x: CubeTensor, shape: [usize; 4]) -> CubeTensor {
    Cube::float_permute(reshape(x, shape), &[0, 3, 1, 2])
}

fn reshape<const D: usize>(x: CubeTensor, shape: [usize; D]) -> CubeTensor {
    Cube::float_reshape(x, Shape::from(shape))
}

/// Returns weights `[out, in, k, k]` as the operand `b`, `[k * k * in, out]`.
fn filters(weight: CubeTensor, patch_len: usize) -> Operand {
    Operand::new(channels_last(weight), Layout::KMajor, patch_len)
}

fn forward(x: CubeTensor, weight: CubeTensor, bias: &CubeTensor, conv: ConvShape, mode: F32Mode) -> CubeTensor {
    let dtype = x.dtype;
    let shape = GemmShape::new(conv.pixels(), conv.out_channels, conv.patch_len());
    let (a, b) = (conv.im2col(channels_last(x)), filters(weight, conv.patch_len()));
    let y = gemm(&a, &b, shape, conv.geometry, Some(bias), dtype, mode);
    channels_first(y, [conv.batch, conv.geometry.out_height, conv.geometry.out_width, conv.out_channels])
}

impl Convolve for Cube {
    fn convolve(x: CubeTensor, weight: CubeTensor, bias: CubeTensor, stride: usize, padding: [usize; 2]) -> CubeTensor {
        let conv = ConvShape::of(&x, &weight, stride, padding);
        forward(x, weight, &bias, conv, F32Mode::Full)
    }
}

#[cfg(feature = "train")]
mod gradients {
    use burn::backend::autodiff::checkpoint::base::Checkpointer;
    use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
    use burn::backend::autodiff::grads::Gradients;
    use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};

    use super::super::broadcast::sum_rows;
    use super::super::{element, elementwise_dims, empty_like, thread_index};
    use super::*;

    /// Backward pass of [`Convolve::convolve`].
    #[derive(Debug)]
    struct ConvolveBackward;

    /// Sums the rows of an im2col matrix `[output pixels, kernel, kernel, channels]` to a channels-last map. One thread computes
    /// one element of the map, from all patches that contain it.
    #[cube(launch)]
    #[allow(clippy::too_many_arguments)]
    fn col2im<X: Float>(
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
        let i = thread_index();
        if i < count {
            let (channel, rest) = (i % channels, i / channels);
            let (column, rest) = (rest % width, rest / width);
            let (row, batch) = (rest % height, rest / height);
            let mut sum = 0.0f32;
            for dy in 0..kernel {
                for dx in 0..kernel {
                    // The output pixel whose patch has this element at (dy, dx), if there is one.
                    if row + padding >= dy && column + padding >= dx {
                        let (origin_row, origin_column) = (row + padding - dy, column + padding - dx);
                        let (out_row, out_column) = (origin_row / stride, origin_column / stride);
                        let exact = out_row * stride == origin_row && out_column * stride == origin_column;
                        if exact && out_row < out_height && out_column < out_width {
                            let pixel = (batch * out_height + out_row) * out_width + out_column;
                            sum += f32::cast_from(rows[((pixel * kernel + dy) * kernel + dx) * channels + channel]);
                        }
                    }
                }
            }
            x[i] = X::cast_from(sum);
        }
    }

    /// Returns the gradient of the input, `[batch, in, height, width]`, from `dy` `[batch, out height, out width, out]`.
    fn input_gradient(dy: CubeTensor, weight: CubeTensor, conv: ConvShape) -> CubeTensor {
        let (geometry, dtype) = (conv.geometry, dy.dtype);
        let shape = [conv.batch, geometry.height, geometry.width, geometry.channels];
        if geometry.stride == 1 && geometry.padding < geometry.kernel {
            // A convolution of dy with the flipped kernels, whose input and output channels are swapped.
            let weight = Cube::float_swap_dims(Cube::float_flip(weight, &[2, 3]), 0, 1);
            let transposed = ConvGeometry {
                height: geometry.out_height,
                width: geometry.out_width,
                channels: conv.out_channels,
                out_height: geometry.height,
                out_width: geometry.width,
                padding: geometry.kernel - 1 - geometry.padding,
                ..geometry
            };
            let transposed = ConvShape { out_channels: geometry.channels, geometry: transposed, ..conv };
            let patch_len = transposed.patch_len();
            let gemm_shape = GemmShape::new(transposed.pixels(), transposed.out_channels, patch_len);
            let (a, b) = (transposed.im2col(dy), filters(weight, patch_len));
            let dx = gemm(&a, &b, gemm_shape, transposed.geometry, None, dtype, F32Mode::Bf16);
            return channels_first(dx, shape);
        }
        let gemm_shape = GemmShape::new(conv.pixels(), conv.patch_len(), conv.out_channels);
        let a = Operand::new(dy, Layout::KMajor, conv.out_channels);
        let b = Operand::new(channels_last(weight), Layout::MnMajor, conv.patch_len());
        let rows = gemm(&a, &b, gemm_shape, geometry, None, dtype, F32Mode::Bf16);
        let count = shape.iter().product();
        let x = empty_like(&rows, shape, dtype);
        let (grid, cube) = elementwise_dims(count);
        col2im::launch(
            &rows.client.clone(),
            grid,
            cube,
            rows.into_buffer_arg(),
            x.clone().into_buffer_arg(),
            count,
            geometry.height,
            geometry.width,
            geometry.channels,
            geometry.out_height,
            geometry.out_width,
            geometry.kernel,
            geometry.stride,
            geometry.padding,
            element(dtype),
        );
        channels_first(x, shape)
    }

    /// Returns the gradient of the weights, `[out, in, k, k]`: `dy^T` times the im2col matrix, a sum over all pixels. The output is
    /// small and K is long, so K is split.
    fn weight_gradient(x: CubeTensor, dy: CubeTensor, conv: ConvShape) -> CubeTensor {
        let (patch_len, dtype) = (conv.patch_len(), x.dtype);
        let shape = GemmShape::split_k(conv.out_channels, patch_len, conv.pixels());
        let a = Operand::new(dy, Layout::MnMajor, conv.out_channels).with_batch_stride(shape.slice_k * conv.out_channels);
        let b = Operand::im2col(channels_last(x), Layout::Im2colMnMajor).with_batch_stride(shape.slice_k);
        let slices = gemm(&a, &b, shape, conv.geometry, None, dtype, F32Mode::Bf16);
        let kernel = conv.geometry.kernel;
        let sum = sum_rows(&slices, None, conv.out_channels * patch_len);
        let sum = reshape(sum, [conv.out_channels, kernel, kernel, conv.geometry.channels]); // [out, k, k, in]
        into_contiguous(Cube::float_permute(sum, &[0, 3, 1, 2])) // [out, in, k, k]
    }

    impl Backward<Cube, 3> for ConvolveBackward {
        /// `x`, the weights and the sizes.
        type State = (CubeTensor, CubeTensor, ConvShape);

        fn backward(self, ops: Ops<Self::State, 3>, gradients: &mut Gradients, _: &mut Checkpointer) {
            let [x_node, weight_node, bias_node] = ops.parents;
            let (x, weight, conv) = ops.state;
            let dy = channels_last(gradients.consume::<Cube>(&ops.node));
            if let Some(node) = bias_node {
                gradients.register::<Cube>(node.id, sum_rows(&dy, None, conv.out_channels));
            }
            if let Some(node) = weight_node {
                gradients.register::<Cube>(node.id, weight_gradient(x, dy.clone(), conv));
            }
            if let Some(node) = x_node {
                gradients.register::<Cube>(node.id, input_gradient(dy, weight, conv));
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
            match ConvolveBackward.prepare::<C>([x.node(), weight.node(), bias.node()]).compute_bound().stateful() {
                OpsKind::Tracked(prepared) => {
                    let (x, weight) = (x.primitive().clone(), weight.primitive().clone());
                    let conv = ConvShape::of(&x, &weight, stride, padding);
                    let y = forward(x.clone(), weight.clone(), &bias.into_primitive(), conv, F32Mode::Bf16);
                    prepared.finish((x, weight, conv), y)
                }
                OpsKind::UnTracked(prepared) => {
                    let (x, weight, bias) = (x.into_primitive(), weight.into_primitive(), bias.into_primitive());
                    prepared.finish(Cube::convolve(x, weight, bias, stride, padding))
                }
            }
        }
    }
}
