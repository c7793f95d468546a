//! SiLU, alone and times the other half of a gated layer, with their gradients.

use burn::backend::flex::FlexTensor;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, Flex, backend_extension};
use burn::prelude::*;

use super::super::elementwise;
use super::super::tensor::{modify, slice};
use super::applies_to;

#[cfg(feature = "train")]
use burn::backend::Autodiff;

/// The operations as a backend extension; [`Dispatch`] selects the backend.
#[backend_extension(Flex, Autodiff: cfg(feature = "train"))]
pub(crate) trait Silu: Backend {
    /// Computes `silu(x)`, f32.
    fn silu(x: FloatTensor<Self>) -> FloatTensor<Self>;

    /// Computes `silu(gate) * up`; both have one shape and are f32.
    fn silu_mul(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self>;
}

/// See [`crate::kernels::silu`].
pub(crate) fn silu<const D: usize>(x: Tensor<D>) -> Result<Tensor<D>, Tensor<D>> {
    if !applies_to(&x) {
        return Err(x);
    }
    Ok(Tensor::from_dispatch(<Dispatch as Silu>::silu(x.into_dispatch())))
}

/// Computes `silu(gate) * up` for two tensors of one shape.
pub(crate) fn silu_mul(gate: Tensor<3>, up: Tensor<3>) -> Result<Tensor<3>, (Tensor<3>, Tensor<3>)> {
    if !applies_to(&gate) || !applies_to(&up) || gate.dims() != up.dims() {
        return Err((gate, up));
    }
    Ok(Tensor::from_dispatch(<Dispatch as Silu>::silu_mul(gate.into_dispatch(), up.into_dispatch())))
}

impl Silu for Flex {
    fn silu(x: FlexTensor) -> FlexTensor {
        modify(x, elementwise::silu)
    }

    fn silu_mul(gate: FlexTensor, up: FlexTensor) -> FlexTensor {
        let up = up.to_contiguous();
        modify(gate, |gate| elementwise::silu_mul(gate, slice(&up)))
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
    struct SiluBackward;

    impl Backward<Flex, 1> for SiluBackward {
        type State = FlexTensor;

        fn backward(self, ops: Ops<Self::State, 1>, gradients: &mut Gradients, _: &mut Checkpointer) {
            let [to_x] = ops.parents;
            let dy = gradients.consume::<Flex>(&ops.node);
            if let Some(node) = to_x {
                let x = ops.state.to_contiguous();
                gradients.register::<Flex>(node.id, modify(dy, |dy| elementwise::silu_gradient(dy, slice(&x))));
            }
        }
    }

    #[derive(Debug)]
    struct SiluMulBackward;

    impl Backward<Flex, 2> for SiluMulBackward {
        type State = (FlexTensor, FlexTensor);

        fn backward(self, ops: Ops<Self::State, 2>, gradients: &mut Gradients, _: &mut Checkpointer) {
            let [to_gate, to_up] = ops.parents;
            let dy = gradients.consume::<Flex>(&ops.node).to_contiguous();
            let (gate, up) = (ops.state.0.to_contiguous(), ops.state.1.to_contiguous());
            if let Some(node) = to_up {
                let gradient = modify(gate.clone(), |gate| elementwise::silu_mul(gate, slice(&dy)));
                gradients.register::<Flex>(node.id, gradient);
            }
            if let Some(node) = to_gate {
                let gradient = modify(dy, |dy| elementwise::silu_mul_gradient(dy, slice(&gate), slice(&up)));
                gradients.register::<Flex>(node.id, gradient);
            }
        }
    }

    impl<C: CheckpointStrategy> Silu for Autodiff<Flex, C> {
        fn silu(x: FloatTensor<Self>) -> FloatTensor<Self> {
            match SiluBackward.prepare::<C>([x.node()]).compute_bound().stateful() {
                OpsKind::Tracked(prepared) => {
                    let x = x.into_primitive();
                    prepared.finish(x.clone(), Flex::silu(x))
                }
                OpsKind::UnTracked(prepared) => prepared.finish(Flex::silu(x.into_primitive())),
            }
        }

        fn silu_mul(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
            match SiluMulBackward.prepare::<C>([gate.node(), up.node()]).compute_bound().stateful() {
                OpsKind::Tracked(prepared) => {
                    let state = (gate.into_primitive(), up.into_primitive());
                    prepared.finish(state.clone(), Flex::silu_mul(state.0, state.1))
                }
                OpsKind::UnTracked(prepared) => prepared.finish(Flex::silu_mul(gate.into_primitive(), up.into_primitive())),
            }
        }
    }

    #[cfg(test)]
    mod tests {
        use burn::tensor::activation;

        use super::super::super::tests::assert_close;
        use super::super::*;
        use crate::kernels::tensor;
        use crate::kernels::testing::waves;

        #[test]
        fn gradients_equal_those_of_the_plain_operations() {
            let device = Device::flex().autodiff();
            let wave = |speed| tensor(waves(3 * 5 * 7, speed), [3, 5, 7], &device) * 6.0;
            let (x, up, dy) = (wave(0.7).require_grad(), wave(0.3).require_grad(), wave(1.1).swap_dims(1, 2));
            let gradients = |x: &Tensor<3>, up: &Tensor<3>, y: Tensor<3>| {
                let gradients = (y.swap_dims(1, 2) * dy.clone()).sum().backward();
                (x.grad(&gradients), up.grad(&gradients))
            };
            let want = gradients(&x, &up, activation::silu(x.clone())).0.unwrap();
            assert_close("alone", gradients(&x, &up, silu(x.clone()).unwrap()).0.unwrap(), want);
            let want = gradients(&x, &up, activation::silu(x.clone()) * up.clone());
            let got = gradients(&x, &up, silu_mul(x.clone(), up.clone()).unwrap());
            assert_close("gate", got.0.unwrap(), want.0.clone().unwrap());
            assert_close("up", got.1.unwrap(), want.1.clone().unwrap());
            // Only one of the two is tracked.
            let got = gradients(&x, &up, silu_mul(x.clone().detach(), up.clone()).unwrap());
            assert!(got.0.is_none());
            assert_close("up alone", got.1.unwrap(), want.1.unwrap());
            let got = gradients(&x, &up, silu_mul(x.clone(), up.clone().detach()).unwrap());
            assert!(got.1.is_none());
            assert_close("gate alone", got.0.unwrap(), want.0.unwrap());
        }
    }
}
