//! Group norm, alone and followed by SiLU.

use burn::backend::flex::FlexTensor;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, Flex, TensorMetadata, backend_extension};
use burn::prelude::*;

use super::super::group_norm::{Norm, Statistics};
use super::super::tensor::{flex_tensor, slice};
use super::applies_to;
use crate::kernels::params::GroupNormParams;

#[cfg(feature = "train")]
use burn::backend::Autodiff;

/// Parameters of a group norm that are not tensors.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    groups: usize,
    epsilon: f64,
    /// `true` if SiLU follows.
    silu: bool,
}

/// The operation as a backend extension; [`Dispatch`] selects the backend.
#[backend_extension(Flex, Autodiff: cfg(feature = "train"))]
pub(crate) trait Norms: Backend {
    /// Computes the group norm of `[B, C, h, w]`; all tensors are f32.
    fn group_norm(x: FloatTensor<Self>, scale: FloatTensor<Self>, shift: FloatTensor<Self>, options: Options) -> FloatTensor<Self>;
}

/// See [`crate::kernels::group_norm`]; SiLU follows if `silu`.
pub(crate) fn group_norm(x: Tensor<4>, params: &GroupNormParams, silu: bool) -> Result<Tensor<4>, Tensor<4>> {
    let (scale, shift) = (params.gain.clone(), params.bias.clone());
    let fits = x.dims()[1] == scale.dims()[0] && x.shape().num_elements() > 0;
    if !fits || !applies_to(&x) || !applies_to(&scale) || !applies_to(&shift) {
        return Err(x);
    }
    let options = Options { groups: params.groups, epsilon: params.epsilon, silu };
    let y = <Dispatch as Norms>::group_norm(x.into_dispatch(), scale.into_dispatch(), shift.into_dispatch(), options);
    Ok(Tensor::from_dispatch(y))
}

/// Returns the norm over contiguous tensors.
fn norm<'a>(x: &FlexTensor, scale: &'a FlexTensor, shift: &'a FlexTensor, options: Options) -> Norm<'a> {
    let Options { groups, epsilon, silu } = options;
    let shape = x.shape();
    Norm { scale: slice(scale), shift: slice(shift), pixels: shape[2] * shape[3], groups, epsilon, silu }
}

fn forward(x: &FlexTensor, scale: &FlexTensor, shift: &FlexTensor, options: Options) -> (FlexTensor, Vec<Statistics>) {
    let (scale, shift) = (scale.to_contiguous(), shift.to_contiguous());
    let (y, statistics) = norm(x, &scale, &shift, options).forward(slice(&x.to_contiguous()));
    (flex_tensor(y, x.shape()), statistics)
}

impl Norms for Flex {
    fn group_norm(x: FlexTensor, scale: FlexTensor, shift: FlexTensor, options: Options) -> FlexTensor {
        forward(&x, &scale, &shift, options).0
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
    struct GroupNormBackward;

    #[derive(Clone, Debug)]
    struct State {
        x: FlexTensor,
        scale: FlexTensor,
        shift: FlexTensor,
        options: Options,
        statistics: Vec<Statistics>,
    }

    impl Backward<Flex, 3> for GroupNormBackward {
        type State = State;

        fn backward(self, ops: Ops<Self::State, 3>, gradients: &mut Gradients, _: &mut Checkpointer) {
            let [to_x, to_scale, to_shift] = ops.parents;
            let dy = gradients.consume::<Flex>(&ops.node).to_contiguous();
            let State { x, scale, shift, options, statistics } = ops.state;
            let (scale, shift) = (scale.to_contiguous(), shift.to_contiguous());
            let norm = norm(&x, &scale, &shift, options);
            let all = norm.gradients(slice(&x.to_contiguous()), slice(&dy), &statistics);
            if let Some(node) = to_x {
                gradients.register::<Flex>(node.id, flex_tensor(all.x, x.shape()));
            }
            if let Some(node) = to_scale {
                gradients.register::<Flex>(node.id, flex_tensor(all.scale, scale.shape()));
            }
            if let Some(node) = to_shift {
                gradients.register::<Flex>(node.id, flex_tensor(all.shift, shift.shape()));
            }
        }
    }

    impl<C: CheckpointStrategy> Norms for Autodiff<Flex, C> {
        fn group_norm(
            x: FloatTensor<Self>,
            scale: FloatTensor<Self>,
            shift: FloatTensor<Self>,
            options: Options,
        ) -> FloatTensor<Self> {
            let nodes = [x.node(), scale.node(), shift.node()];
            let (x, scale, shift) = (x.into_primitive(), scale.into_primitive(), shift.into_primitive());
            let (y, statistics) = forward(&x, &scale, &shift, options);
            match GroupNormBackward.prepare::<C>(nodes).compute_bound().stateful() {
                OpsKind::Tracked(prepared) => prepared.finish(State { x, scale, shift, options, statistics }, y),
                OpsKind::UnTracked(prepared) => prepared.finish(y),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::module::{Param, ParamId};
    use burn::nn::{GroupNorm, GroupNormConfig};
    use burn::tensor::activation;

    use super::super::tests::assert_close;
    use super::*;
    use crate::kernels::tensor;
    use crate::kernels::testing::waves;
    use crate::nn::group_norm_params;

    const SHAPES: [[usize; 5]; 4] = [[1, 4, 2, 3, 5], [3, 6, 6, 9, 8], [2, 8, 1, 7, 7], [2, 4, 2, 80, 70]];

    fn layer(channels: usize, groups: usize, device: &Device) -> GroupNorm {
        let mut layer = GroupNormConfig::new(groups, channels).with_epsilon(1e-6).init(device);
        let of = |speed, offset| {
            let values: Tensor<1> = tensor(waves(channels, speed), [channels], device) + offset;
            Some(Param::initialized(ParamId::new(), if device.is_autodiff() { values.require_grad() } else { values }))
        };
        (layer.gamma, layer.beta) = (of(1.3, 1.5), of(0.3, 0.0));
        layer
    }

    fn map([batch, channels, _, height, width]: [usize; 5], device: &Device) -> Tensor<4> {
        tensor(waves(batch * channels * height * width, 0.7), [batch, channels, height, width], device) * 2.0 + 3.0
    }

    /// With and without SiLU; contiguous tensors and transposed views.
    #[test]
    fn a_fused_norm_equals_the_plain_one() {
        let device = Device::flex();
        for shape in SHAPES {
            let layer = layer(shape[1], shape[2], &device);
            let x = map(shape, &device);
            for x in [x.clone(), x.swap_dims(2, 3)] {
                let want = layer.forward(x.clone());
                assert_close("norm", group_norm(x.clone(), &group_norm_params(&layer), false).unwrap(), want.clone());
                assert_close("and SiLU", group_norm(x, &group_norm_params(&layer), true).unwrap(), activation::silu(want));
            }
        }
    }

    #[cfg(feature = "train")]
    #[test]
    fn gradients_equal_those_of_the_plain_norm() {
        let device = Device::flex().autodiff();
        for shape in SHAPES {
            let layer = layer(shape[1], shape[2], &device);
            let (scale, shift) = (layer.gamma.as_ref().unwrap().val(), layer.beta.as_ref().unwrap().val());
            let x = map(shape, &device).require_grad();
            let dy = (map(shape, &device) * 5.0).sin();
            let gradients = |y: Tensor<4>| {
                let gradients = (y * dy.clone()).sum().backward();
                let channels = |x: &Tensor<1>| x.grad(&gradients).unwrap().reshape([1, shape[1], 1, 1]);
                [x.grad(&gradients).unwrap(), channels(&scale), channels(&shift)]
            };
            for silu in [false, true] {
                let want = layer.forward(x.clone());
                let want = gradients(if silu { activation::silu(want) } else { want });
                let got = gradients(group_norm(x.clone(), &group_norm_params(&layer), silu).unwrap());
                for ((what, got), want) in ["x", "scale", "shift"].into_iter().zip(got).zip(want) {
                    assert_close(what, got, want);
                }
            }
        }
    }

    #[test]
    fn a_norm_is_the_same_bits_with_any_number_of_threads() {
        let device = Device::flex();
        let with = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let layer = layer(4, 2, &device);
            pool.install(|| crate::kernels::values(group_norm(map(SHAPES[3], &device), &group_norm_params(&layer), true).unwrap()))
        };
        assert!(with(1).iter().zip(with(3)).all(|(a, b)| a.to_bits() == b.to_bits()));
    }
}
