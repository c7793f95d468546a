//! Linear layers, with their gradients.

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
use super::columns::add_row;
use super::product::{Lies, Operand, Single, Sizes, View, multiply};
use super::{is_here, primitive, tensor};
use crate::kernels::params::Weight;

/// See [`crate::kernels::linear`].
pub(crate) fn linear(x: &Tensor<3>, weight: &Weight, bias: Option<&Tensor<1>>) -> Option<Tensor<3>> {
    let Weight::Dense(weight) = weight else { return None };
    product_to(x, weight, bias, weight.dtype())
}

/// See [`crate::kernels::linear_to_f32`].
pub(crate) fn linear_to_f32(x: &Tensor<3>, weight: &Weight, bias: Option<&Tensor<1>>) -> Option<Tensor<3>> {
    let Weight::Dense(weight) = weight else { return None };
    product_to(x, weight, bias, DType::F32)
}

/// A matrix `[rows, in]` times a matrix `[in, out]`, in f32 as it is.
pub(crate) fn matmul(x: &Tensor<2>, other: &Tensor<2>) -> Option<Tensor<2>> {
    let here = is_here(&x.device()) && [x, other].iter().all(|matrix| matrix.dtype() == DType::F32);
    here.then(|| Some(tensor(product(primitive(x)?, primitive(other)?, None, DType::F32, Single::Exact)))).flatten()
}

fn product_to(x: &Tensor<3>, weight: &Tensor<2>, bias: Option<&Tensor<1>>, to: DType) -> Option<Tensor<3>> {
    #[cfg(feature = "train")]
    if x.device().is_autodiff() {
        return is_here(&x.device().inner()).then(|| tracked(x.clone(), weight, bias));
    }
    if !is_here(&x.device()) {
        return None;
    }
    let [rows, length, inputs] = x.dims();
    let [_, outputs] = weight.dims();
    // One product for all rows.
    let x = primitive(&x.clone().cast(FloatDType::from(weight.dtype())).reshape([rows * length, inputs]))?;
    let bias = match bias {
        Some(bias) => Some(primitive(bias)?),
        None => None,
    };
    Some(tensor::<2>(product(x, primitive(weight)?, bias, to, Single::Exact)).reshape([rows, length, outputs]))
}

/// Rows `[rows, in]` times a matrix `[in, out]`, of one type, to another or the same, plus a bias.
fn product(x: CubeTensor, weight: CubeTensor, bias: Option<CubeTensor>, to: DType, single: Single) -> CubeTensor {
    let (rows, [inputs, outputs]) = (x.meta.shape()[0], [0, 1].map(|i| weight.meta.shape()[i]));
    let sizes = Sizes::new(rows, outputs, inputs);
    let y = multiply(&matrix(x, 1), &matrix(weight, 0), sizes, View::default(), bias.as_ref(), to, single);
    Cube::float_reshape(y, Shape::from([rows, outputs]))
}

/// A matrix, of which a product sums over dimension `depth`, read as it lies: by rows or, as a checkpoint's weights, by columns.
fn matrix(tensor: CubeTensor, depth: usize) -> Operand {
    let (shape, strides) = (tensor.meta.shape(), tensor.meta.strides());
    let (tensor, along) = if [strides[0], strides[1]] == [1, shape[0]] { (tensor, 0) } else { (into_contiguous(tensor), 1) };
    let line = tensor.meta.shape()[along];
    Operand::new(tensor, if along == depth { Lies::Deep } else { Lies::Wide }, line)
}

/// The operation in training, for which [`Dispatch`] finds the backend.
#[cfg(feature = "train")]
#[backend_extension(Cube, Autodiff)]
pub(crate) trait Multiply: Backend {
    /// `[rows, in]` times `[in, out]`.
    fn multiply_rows(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self>;
}

#[cfg(feature = "train")]
impl Multiply for Cube {
    fn multiply_rows(x: CubeTensor, weight: CubeTensor) -> CubeTensor {
        let kind = x.dtype;
        product(x, weight, None, kind, Single::Rounded)
    }
}

#[cfg(feature = "train")]
fn tracked(x: Tensor<3>, weight: &Tensor<2>, bias: Option<&Tensor<1>>) -> Tensor<3> {
    let ([rows, length, inputs], [_, outputs]) = (x.dims(), weight.dims());
    let x: Tensor<2> = x.reshape([rows * length, inputs]);
    let y = Tensor::<2>::from_dispatch(Dispatch::multiply_rows(x.into_dispatch(), weight.clone().into_dispatch()));
    let y = match bias {
        Some(bias) => add_row(y, bias.clone()),
        None => y,
    };
    y.reshape([rows, length, outputs])
}

#[cfg(feature = "train")]
mod gradients {
    use burn::backend::Autodiff;
    use burn::backend::autodiff::checkpoint::base::Checkpointer;
    use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
    use burn::backend::autodiff::grads::Gradients;
    use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};

    use super::super::columns::sum_rows;
    use super::*;

    #[derive(Debug)]
    struct Multiplication;

    impl Backward<Cube, 2> for Multiplication {
        type State = (CubeTensor, CubeTensor);

        fn backward(self, ops: Ops<Self::State, 2>, gradients: &mut Gradients, _: &mut Checkpointer) {
            let ([to_x, to_weight], (x, weight)) = (ops.parents, ops.state);
            let dy = into_contiguous(gradients.consume::<Cube>(&ops.node));
            let (rows, [inputs, outputs]) = (x.meta.shape()[0], [0, 1].map(|i| weight.meta.shape()[i]));
            let (view, kind) = (View::default(), dy.dtype);
            let reshaped = |x: CubeTensor, shape: [usize; 2]| Cube::float_reshape(x, Shape::from(shape));
            if let Some(node) = to_weight {
                let sizes = Sizes::in_shares(inputs, outputs, rows);
                let left = Operand::new(into_contiguous(x), Lies::Wide, inputs).apart(sizes.share * inputs);
                let right = Operand::new(dy.clone(), Lies::Wide, outputs).apart(sizes.share * outputs);
                let sums = multiply(&left, &right, sizes, view, None, kind, Single::Rounded);
                gradients.register::<Cube>(node.id, reshaped(sum_rows(&sums, None, inputs * outputs), [inputs, outputs]));
            }
            if let Some(node) = to_x {
                let sizes = Sizes::new(rows, inputs, outputs);
                let dx = multiply(&matrix(dy, 1), &matrix(weight, 1), sizes, view, None, kind, Single::Rounded);
                gradients.register::<Cube>(node.id, reshaped(dx, [rows, inputs]));
            }
        }
    }

    impl<C: CheckpointStrategy> Multiply for Autodiff<Cube, C> {
        fn multiply_rows(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
            match Multiplication.prepare::<C>([x.node(), weight.node()]).compute_bound().stateful() {
                OpsKind::Tracked(prepared) => {
                    let (x, weight) = (x.into_primitive(), weight.into_primitive());
                    prepared.finish((x.clone(), weight.clone()), Cube::multiply_rows(x, weight))
                }
                OpsKind::UnTracked(prepared) => prepared.finish(Cube::multiply_rows(x.into_primitive(), weight.into_primitive())),
            }
        }
    }
}
