//! Linear layers in training. Operands are rounded to bf16 if the processor has instructions for it, sums are f32. A layer
//! computes three products, two of them for the gradients.

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::flex::FlexTensor;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, TensorMetadata, backend_extension};
use burn::prelude::*;

use super::super::gemm::{self, Bf16Rows, Bf16Weights};
use super::super::memory;
use super::super::tensor::{flex_tensor, slice};
use super::applies_to;
use crate::kernels::params::Weight;

/// The operation as a backend extension; [`Dispatch`] selects the backend.
#[backend_extension(Flex, Autodiff)]
pub(crate) trait Matmul: Backend {
    /// Multiplies `[rows, in]` by `[in, out]`, both f32 and not empty.
    fn matmul(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self>;
}

/// See [`crate::kernels::linear`]; `None` if nothing is tracked, or bf16 is not faster.
pub(crate) fn linear(x: &Tensor<3>, weight: &Weight, bias: Option<&Tensor<1>>) -> Option<Tensor<3>> {
    if !x.device().is_autodiff() || !applies_to(x) || !gemm::bf16_is_fast() {
        return None;
    }
    let Weight::Dense(weight) = weight else { return None };
    let ([batch, length, inputs], [_, outputs]) = (x.dims(), weight.dims());
    if !applies_to(weight) || [batch, length, inputs, outputs].contains(&0) {
        return None;
    }
    let x: Tensor<2> = x.clone().reshape([batch * length, inputs]);
    let y = Tensor::<2>::from_dispatch(<Dispatch as Matmul>::matmul(x.into_dispatch(), weight.clone().into_dispatch()));
    let y = y.reshape([batch, length, outputs]);
    Some(match bias {
        Some(bias) => y + bias.clone().unsqueeze(),
        None => y,
    })
}

fn multiply(rows: &Bf16Rows, weights: Option<Bf16Weights>, shape: [usize; 2]) -> FlexTensor {
    let mut y = memory::with_capacity(shape[0] * shape[1]);
    weights.expect("neither is empty").matmul(rows, None, &mut y);
    flex_tensor(y, shape.into())
}

impl Matmul for Flex {
    fn matmul(x: FlexTensor, weight: FlexTensor) -> FlexTensor {
        let ([rows, inputs], [_, outputs]) = (sizes(&x), sizes(&weight));
        let (x, weight) = (x.to_contiguous(), weight.to_contiguous());
        multiply(&Bf16Rows::quantize(slice(&x), inputs), Bf16Weights::pack_transposed(slice(&weight), outputs), [rows, outputs])
    }
}

fn sizes(matrix: &FlexTensor) -> [usize; 2] {
    matrix.shape().dims()
}

#[derive(Debug)]
struct MatmulBackward;

impl Backward<Flex, 2> for MatmulBackward {
    type State = (FlexTensor, FlexTensor);

    fn backward(self, ops: Ops<Self::State, 2>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let ([to_x, to_weight], (x, weight)) = (ops.parents, ops.state);
        let ([rows, inputs], [_, outputs]) = (sizes(&x), sizes(&weight));
        let dy = gradients.consume::<Flex>(&ops.node).to_contiguous();
        let dy = slice(&dy);
        if let Some(node) = to_weight {
            let columns = Bf16Rows::quantize_transposed(slice(&x.to_contiguous()), inputs);
            gradients.register::<Flex>(node.id, multiply(&columns, Bf16Weights::pack_transposed(dy, outputs), [inputs, outputs]));
        }
        if let Some(node) = to_x {
            let weights = Bf16Weights::pack(slice(&weight.to_contiguous()), outputs);
            gradients.register::<Flex>(node.id, multiply(&Bf16Rows::quantize(dy, outputs), weights, [rows, inputs]));
        }
    }
}

impl<C: CheckpointStrategy> Matmul for Autodiff<Flex, C> {
    fn matmul(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        match MatmulBackward.prepare::<C>([x.node(), weight.node()]).compute_bound().stateful() {
            OpsKind::Tracked(prepared) => {
                let (x, weight) = (x.into_primitive(), weight.into_primitive());
                prepared.finish((x.clone(), weight.clone()), Flex::matmul(x, weight))
            }
            OpsKind::UnTracked(prepared) => prepared.finish(Flex::matmul(x.into_primitive(), weight.into_primitive())),
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::module::{Param, ParamId};

    use super::super::tests::assert_close;
    use super::*;
    use crate::kernels::tensor;
    use crate::kernels::testing::waves;
    use crate::nn::LinearConfig;

    /// Returns values that bf16 represents: their products equal those in f32.
    fn rounded(count: usize, speed: f32) -> Vec<f32> {
        waves(count, speed).into_iter().map(|x| half::bf16::from_f32(x).to_f32()).collect()
    }

    #[test]
    fn products_and_gradients_equal_the_plain_ones() {
        let device = Device::flex().autodiff();
        for [batch, length, inputs, outputs] in [[1, 1, 1, 1], [2, 3, 5, 7], [2, 40, 33, 50], [3, 1, 16, 96], [1, 70, 128, 16]] {
            let mut layer = LinearConfig::new(inputs, outputs).init(&device);
            let weight = tensor(rounded(inputs * outputs, 1.3), [1, inputs, outputs], &device).squeeze_dim::<2>(0);
            layer.weight = Param::initialized(ParamId::new(), weight.require_grad());
            let x = tensor(rounded(batch * length * inputs, 0.7), [batch, length, inputs], &device).require_grad();
            let dy = tensor(rounded(batch * length * outputs, 1.1), [batch, outputs, length], &device).swap_dims(1, 2);
            let (weight, bias) = (layer.weight.val(), layer.bias.as_ref().unwrap().val());
            let gradients = |y: Tensor<3>| {
                let gradients = (y * dy.clone()).sum().backward();
                let weight = weight.grad(&gradients).unwrap().reshape([1, inputs, outputs]);
                (x.grad(&gradients), weight, bias.grad(&gradients).unwrap().reshape([1, 1, outputs]))
            };
            let plain = x.clone().matmul(weight.clone().unsqueeze()) + bias.clone().unsqueeze();
            let by_layer = |x: &Tensor<3>| layer.forward(x.clone());
            assert_close("output", by_layer(&x), plain.clone());
            let (want, got) = (gradients(plain), gradients(by_layer(&x)));
            assert_close("x", got.0.unwrap(), want.0.unwrap());
            assert_close("weight", got.1, want.1.clone());
            assert_close("bias", got.2, want.2);
            // Only the weight is tracked.
            let got = gradients(by_layer(&x.clone().detach()));
            assert!(got.0.is_none());
            assert_close("weight alone", got.1, want.1);
        }
    }

    #[test]
    fn untracked_tensors_do_not_apply() {
        let layer = LinearConfig::new(6, 9).init(&Device::flex());
        assert!(linear(&tensor(waves(12, 0.3), [1, 2, 6], &Device::flex()), &layer.weight(), None).is_none());
    }
}
