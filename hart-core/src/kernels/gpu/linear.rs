//! Linear layers and matrix products, with their gradients.

use burn::backend::Cube;
use burn::backend::ops::FloatTensorOps;
#[cfg(feature = "train")]
use burn::backend::tensor::FloatTensor;
#[cfg(feature = "train")]
use burn::backend::{Backend, Dispatch, backend_extension};
use burn::prelude::*;
use burn::tensor::{DType, FloatDType};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;

#[cfg(feature = "train")]
use super::broadcast::add_row;
use super::gemm::{ConvGeometry, F32Mode, GemmShape, Layout, Operand, gemm};
use super::{is_gpu, primitive, tensor};
use crate::kernels::params::Weight;

/// See [`crate::kernels::linear`].
pub(crate) fn linear(x: &Tensor<3>, weight: &Weight, bias: Option<&Tensor<1>>) -> Option<Tensor<3>> {
    let Weight::Dense(weight) = weight else { return None };
    linear_to(x, weight, bias, weight.dtype())
}

/// See [`crate::kernels::linear_to_f32`].
pub(crate) fn linear_to_f32(x: &Tensor<3>, weight: &Weight, bias: Option<&Tensor<1>>) -> Option<Tensor<3>> {
    let Weight::Dense(weight) = weight else { return None };
    linear_to(x, weight, bias, DType::F32)
}

/// Multiplies matrices `[rows, in]` and `[in, out]` in f32, without tensor cores.
pub(crate) fn matmul(x: &Tensor<2>, other: &Tensor<2>) -> Option<Tensor<2>> {
    let applies = is_gpu(&x.device()) && [x, other].iter().all(|matrix| matrix.dtype() == DType::F32);
    applies.then(|| Some(tensor(multiply(primitive(x)?, primitive(other)?, None, DType::F32, F32Mode::Full)))).flatten()
}

/// Computes a linear layer with an output of type `to`; in training, of the type of `x`.
fn linear_to(x: &Tensor<3>, weight: &Tensor<2>, bias: Option<&Tensor<1>>, to: DType) -> Option<Tensor<3>> {
    #[cfg(feature = "train")]
    if x.device().is_autodiff() {
        return is_gpu(&x.device().inner()).then(|| tracked(x.clone(), weight, bias));
    }
    if !is_gpu(&x.device()) {
        return None;
    }
    let [rows, length, inputs] = x.dims();
    let [_, outputs] = weight.dims();
    let x = primitive(&x.clone().cast(FloatDType::from(weight.dtype())).reshape([rows * length, inputs]))?;
    let bias = match bias {
        Some(bias) => Some(primitive(bias)?),
        None => None,
    };
    let y: Tensor<2> = tensor(multiply(x, primitive(weight)?, bias, to, F32Mode::Full));
    Some(y.reshape([rows, length, outputs])) // [rows, tokens, out]
}

/// Multiplies `[rows, in]` by `[in, out]`, both of one type, and adds the bias. The output has type `to`.
fn multiply(x: CubeTensor, weight: CubeTensor, bias: Option<CubeTensor>, to: DType, mode: F32Mode) -> CubeTensor {
    let (rows, [inputs, outputs]) = (x.meta.shape()[0], [0, 1].map(|i| weight.meta.shape()[i]));
    let shape = GemmShape::new(rows, outputs, inputs);
    let y = gemm(&operand(x, 1), &operand(weight, 0), shape, ConvGeometry::default(), bias.as_ref(), to, mode);
    Cube::float_reshape(y, Shape::from([rows, outputs]))
}

/// Returns a matrix as an operand whose dimension `k_dim` is K. A transposed view, such as a checkpoint's weight, is read in place; any
/// other view is made contiguous.
fn operand(matrix: CubeTensor, k_dim: usize) -> Operand {
    let (shape, strides) = (matrix.meta.shape(), matrix.meta.strides());
    let (matrix, contiguous_dim) =
        if [strides[0], strides[1]] == [1, shape[0]] { (matrix, 0) } else { (into_contiguous(matrix), 1) };
    let leading_dim = matrix.meta.shape()[contiguous_dim];
    Operand::new(matrix, if contiguous_dim == k_dim { Layout::KMajor } else { Layout::MnMajor }, leading_dim)
}

/// The product of a linear layer in training. [`Dispatch`] selects the backend.
#[cfg(feature = "train")]
#[backend_extension(Cube, Autodiff)]
pub(crate) trait Multiply: Backend {
    /// Multiplies `[rows, in]` by `[in, out]` with operands in bf16.
    fn multiply_rows(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self>;
}

#[cfg(feature = "train")]
impl Multiply for Cube {
    fn multiply_rows(x: CubeTensor, weight: CubeTensor) -> CubeTensor {
        let dtype = x.dtype;
        multiply(x, weight, None, dtype, F32Mode::Bf16)
    }
}

/// Computes a linear layer whose gradients are tracked.
#[cfg(feature = "train")]
fn tracked(x: Tensor<3>, weight: &Tensor<2>, bias: Option<&Tensor<1>>) -> Tensor<3> {
    let ([rows, length, inputs], [_, outputs]) = (x.dims(), weight.dims());
    let x: Tensor<2> = x.reshape([rows * length, inputs]); // [rows * tokens, in]
    let y = Tensor::<2>::from_dispatch(Dispatch::multiply_rows(x.into_dispatch(), weight.clone().into_dispatch()));
    let y = match bias {
        Some(bias) => add_row(y, bias.clone()),
        None => y,
    };
    y.reshape([rows, length, outputs]) // [rows, tokens, out]
}

#[cfg(feature = "train")]
mod gradients {
    use burn::backend::Autodiff;
    use burn::backend::autodiff::checkpoint::base::Checkpointer;
    use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
    use burn::backend::autodiff::grads::Gradients;
    use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};

    use super::super::broadcast::sum_rows;
    use super::*;

    /// Backward pass of [`Multiply::multiply_rows`].
    #[derive(Debug)]
    struct MultiplyBackward;

    impl Backward<Cube, 2> for MultiplyBackward {
        /// `x` and the weight.
        type State = (CubeTensor, CubeTensor);

        fn backward(self, ops: Ops<Self::State, 2>, gradients: &mut Gradients, _: &mut Checkpointer) {
            let ([x_node, weight_node], (x, weight)) = (ops.parents, ops.state);
            let dy = into_contiguous(gradients.consume::<Cube>(&ops.node));
            let (rows, [inputs, outputs]) = (x.meta.shape()[0], [0, 1].map(|i| weight.meta.shape()[i]));
            let (conv, dtype) = (ConvGeometry::default(), dy.dtype);
            let reshape = |x: CubeTensor, shape: [usize; 2]| Cube::float_reshape(x, Shape::from(shape));
            if let Some(node) = weight_node {
                // dw = x^T dy
                let shape = GemmShape::split_k(inputs, outputs, rows);
                let a = Operand::new(into_contiguous(x), Layout::MnMajor, inputs).with_batch_stride(shape.slice_k * inputs);
                let b = Operand::new(dy.clone(), Layout::MnMajor, outputs).with_batch_stride(shape.slice_k * outputs);
                let slices = gemm(&a, &b, shape, conv, None, dtype, F32Mode::Bf16);
                gradients.register::<Cube>(node.id, reshape(sum_rows(&slices, None, inputs * outputs), [inputs, outputs]));
            }
            if let Some(node) = x_node {
                // dx = dy w^T
                let shape = GemmShape::new(rows, inputs, outputs);
                let dx = gemm(&operand(dy, 1), &operand(weight, 1), shape, conv, None, dtype, F32Mode::Bf16);
                gradients.register::<Cube>(node.id, reshape(dx, [rows, inputs]));
            }
        }
    }

    impl<C: CheckpointStrategy> Multiply for Autodiff<Cube, C> {
        fn multiply_rows(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
            match MultiplyBackward.prepare::<C>([x.node(), weight.node()]).compute_bound().stateful() {
                OpsKind::Tracked(prepared) => {
                    let (x, weight) = (x.into_primitive(), weight.into_primitive());
                    prepared.finish((x.clone(), weight.clone()), Cube::multiply_rows(x, weight))
                }
                OpsKind::UnTracked(prepared) => prepared.finish(Cube::multiply_rows(x.into_primitive(), weight.into_primitive())),
            }
        }
    }
}
