//! 3x3 convolution with its gradients.

use burn::backend::flex::FlexTensor;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, Flex, TensorMetadata, backend_extension};
use burn::prelude::*;

use super::super::conv::{self, Sizes};
use super::super::tensor::{flex_tensor, slice};
use super::applies_to;
use crate::kernels::params::ConvParams;

#[cfg(feature = "train")]
use burn::backend::Autodiff;

/// Smallest width at which the direct convolution is faster than burn's (docs/performance-log.md).
const MIN_WIDTH: usize = 8;

/// The operation as a backend extension; [`Dispatch`] selects the backend.
#[backend_extension(Flex, Autodiff: cfg(feature = "train"))]
pub(crate) trait Convolution: Backend {
    /// Computes a 3x3 convolution with stride 1 and zero padding; all tensors are f32.
    fn conv3x3(x: FloatTensor<Self>, weight: FloatTensor<Self>, bias: FloatTensor<Self>) -> FloatTensor<Self>;
}

/// Computes a 3x3 convolution with stride 1 and zero padding.
pub(crate) fn conv3x3(x: Tensor<4>, params: &ConvParams) -> Result<Tensor<4>, Tensor<4>> {
    let Some(bias) = params.bias.clone() else { return Err(x) };
    let [_, channels, _, width] = x.dims();
    let weight = params.weight.clone();
    let standard = params.kernel() == [3, 3] && params.is_plain() && params.padding == [[1, 1]; 2];
    let fits = standard && width >= MIN_WIDTH && weight.dims()[1] == channels;
    if !fits || !applies_to(&x) || !applies_to(&weight) || !applies_to(&bias) {
        return Err(x);
    }
    let y = <Dispatch as Convolution>::conv3x3(x.into_dispatch(), weight.into_dispatch(), bias.into_dispatch());
    Ok(Tensor::from_dispatch(y))
}

fn sizes(x: &FlexTensor, weight: &FlexTensor) -> Sizes {
    let (x, weight) = (x.shape(), weight.shape());
    Sizes { batch: x[0], in_channels: x[1], out_channels: weight[0], height: x[2], width: x[3] }
}

impl Convolution for Flex {
    fn conv3x3(x: FlexTensor, weight: FlexTensor, bias: FlexTensor) -> FlexTensor {
        let sizes = sizes(&x, &weight);
        let (x, weight, bias) = (x.to_contiguous(), weight.to_contiguous(), bias.to_contiguous());
        let y = conv::forward(slice(&x), slice(&weight), slice(&bias), sizes);
        flex_tensor(y, [sizes.batch, sizes.out_channels, sizes.height, sizes.width].into())
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
    struct Conv3x3Backward;

    impl Backward<Flex, 3> for Conv3x3Backward {
        type State = (FlexTensor, FlexTensor);

        fn backward(self, ops: Ops<Self::State, 3>, gradients: &mut Gradients, _: &mut Checkpointer) {
            let [to_x, to_weight, to_bias] = ops.parents;
            let dy = gradients.consume::<Flex>(&ops.node).to_contiguous();
            let (x, weight) = ops.state;
            let sizes = sizes(&x, &weight);
            let (dy, weights) = (slice(&dy), weight.to_contiguous());
            if let Some(node) = to_x {
                let gradient = conv::gradient_x(dy, slice(&weights), sizes);
                gradients.register::<Flex>(node.id, flex_tensor(gradient, x.shape()));
            }
            if let Some(node) = to_weight {
                let gradient = conv::gradient_weights(slice(&x.to_contiguous()), dy, sizes);
                gradients.register::<Flex>(node.id, flex_tensor(gradient, weight.shape()));
            }
            if let Some(node) = to_bias {
                gradients.register::<Flex>(node.id, flex_tensor(conv::gradient_bias(dy, sizes), [sizes.out_channels].into()));
            }
        }
    }

    impl<C: CheckpointStrategy> Convolution for Autodiff<Flex, C> {
        fn conv3x3(x: FloatTensor<Self>, weight: FloatTensor<Self>, bias: FloatTensor<Self>) -> FloatTensor<Self> {
            match Conv3x3Backward.prepare::<C>([x.node(), weight.node(), bias.node()]).compute_bound().stateful() {
                OpsKind::Tracked(prepared) => {
                    let state = (x.primitive().clone(), weight.primitive().clone());
                    let y = Flex::conv3x3(state.0.clone(), state.1.clone(), bias.into_primitive());
                    prepared.finish(state, y)
                }
                OpsKind::UnTracked(prepared) => {
                    prepared.finish(Flex::conv3x3(x.into_primitive(), weight.into_primitive(), bias.into_primitive()))
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::nn::conv::Conv2dConfig;

    use super::super::tests::assert_close;
    use super::*;
    use crate::kernels::tensor;
    use crate::kernels::testing::waves;
    use crate::nn::conv_params;
    use burn::nn::PaddingConfig2d;
    use burn::nn::conv::Conv2d;

    const SHAPES: [[usize; 5]; 7] = [
        [1, 1, 3, 8, 8],
        [2, 3, 5, 9, 17],
        [3, 5, 16, 19, 8],
        [1, 16, 33, 12, 13],
        [2, 33, 1, 8, 19],
        [2, 16, 16, 3, 10],
        [1, 5, 5, 16, 16],
    ];

    fn layer(from: usize, to: usize, device: &Device) -> Conv2d {
        Conv2dConfig::new([from, to], [3, 3]).with_padding(PaddingConfig2d::Explicit(1, 1, 1, 1)).init(device)
    }

    /// Contiguous tensors and views of larger ones.
    #[test]
    fn a_direct_convolution_equals_the_plain_one() {
        let device = Device::flex();
        for [batch, from, to, height, width] in SHAPES {
            let layer = layer(from, to, &device);
            let x = tensor(waves(batch * from * height * width, 0.7), [batch, from, height, width], &device);
            let transposed =
                tensor(waves(batch * from * height * width, 0.7), [batch, from, width, height], &device).swap_dims(2, 3);
            let wide = Tensor::cat(vec![x.clone(), x.clone()], 3).narrow(3, 5, width);
            for x in [x, transposed, wide] {
                assert_close("output", conv3x3(x.clone(), &conv_params(&layer)).unwrap(), layer.forward(x));
            }
        }
    }

    #[test]
    fn non_finite_values_stay_at_their_positions() {
        let device = Device::flex();
        let layer = layer(3, 9, &device);
        let mut x = waves(3 * 12 * 10, 0.7);
        (x[0], x[7 * 10 + 9], x[200]) = (f32::NAN, f32::INFINITY, f32::NEG_INFINITY);
        let x = tensor(x, [1, 3, 12, 10], &device);
        assert_close("output", conv3x3(x.clone(), &conv_params(&layer)).unwrap(), layer.forward(x));
    }

    #[test]
    fn other_convolutions_do_not_apply() {
        let device = Device::flex();
        let map = |width| tensor(waves(2 * 9 * width, 0.7), [1, 2, 9, width], &device);
        let same = PaddingConfig2d::Explicit(1, 1, 1, 1);
        let standard = Conv2dConfig::new([2, 2], [3, 3]).with_padding(same.clone());
        assert!(conv3x3(map(7), &conv_params(&standard.init(&device))).is_err());
        for config in [
            standard.clone().with_bias(false),
            standard.clone().with_stride([2, 2]),
            standard.clone().with_dilation([2, 2]),
            standard.clone().with_groups(2),
            standard.clone().with_padding(PaddingConfig2d::Valid),
            Conv2dConfig::new([2, 2], [1, 1]),
            Conv2dConfig::new([2, 2], [5, 5]).with_padding(same),
        ] {
            assert!(conv3x3(map(9), &conv_params(&config.init(&device))).is_err(), "{config}");
        }
    }

    /// All three gradients, and the remaining ones if some inputs are not tracked.
    #[cfg(feature = "train")]
    #[test]
    fn gradients_equal_those_of_the_plain_convolution() {
        let device = Device::flex().autodiff();
        for [batch, from, to, height, width] in SHAPES {
            let layer = layer(from, to, &device);
            let (weight, bias) = (layer.weight.val(), layer.bias.as_ref().unwrap().val());
            let x = tensor(waves(batch * from * height * width, 0.7), [batch, from, height, width], &device).require_grad();
            let transposed = tensor(waves(batch * to * height * width, 0.9), [batch, to, width, height], &device).swap_dims(2, 3);
            let gradients = |y: Tensor<4>| {
                let gradients = (y * transposed.clone()).sum().backward();
                let bias = bias.grad(&gradients).unwrap().reshape([1, 1, 1, to]);
                [x.grad(&gradients).unwrap(), weight.grad(&gradients).unwrap(), bias]
            };
            let want = gradients(layer.forward(x.clone()));
            let got = gradients(conv3x3(x.clone(), &conv_params(&layer)).unwrap());
            for ((what, got), want) in ["x", "weight", "bias"].into_iter().zip(got).zip(want.clone()) {
                assert_close(what, got, want);
            }
            let untracked = x.clone().detach();
            let gradients = (conv3x3(untracked, &conv_params(&layer)).unwrap() * transposed.clone()).sum().backward();
            assert_close("weight alone", weight.grad(&gradients).unwrap(), want[1].clone());
            let frozen = layer.valid();
            let y = conv3x3(x.clone(), &conv_params(&frozen)).unwrap();
            let gradients = (y * transposed.clone()).sum().backward();
            assert_close("x alone", x.grad(&gradients).unwrap(), want[0].clone());
        }
    }
}
