use burn::nn::PaddingConfig2d;
use burn::nn::conv::Conv2dConfig;
use burn::prelude::*;

use super::super::conv2d;
use super::{F32_TOLERANCE, assert_close};
#[cfg(feature = "train")]
use super::{assert_close_to_max, round_to_bf16};
use crate::kernels::testing::{gpu as device, on, wave};
use crate::nn::conv_params;

/// Sizes that are not multiples of a tile, strides, kernels of 1 x 1 and 3 x 3, and all gradients.
#[test]
fn convolutions_equal_the_cpus() {
    let (gpu, cpu) = (device(), Device::flex());
    for (inputs, outputs, kernel, stride, padding) in
        [(3, 32, 3, 1, [1, 1]), (32, 5, 3, 1, [1, 1]), (16, 24, 1, 1, [0, 0]), (8, 8, 3, 2, [1, 1]), (8, 8, 3, 2, [0, 1])]
    {
        let [before, after] = padding;
        let padding = PaddingConfig2d::Explicit(before, before, after, after);
        let config = Conv2dConfig::new([inputs, outputs], [kernel, kernel]).with_stride([stride, stride]).with_padding(padding);
        let cpu_conv = config.init(&cpu);
        let mut gpu_conv = config.init(&gpu);
        gpu_conv.weight = gpu_conv.weight.map(|_| on(&cpu_conv.weight.val(), &gpu));
        gpu_conv.bias = gpu_conv.bias.map(|bias| bias.map(|_| on(&cpu_conv.bias.as_ref().unwrap().val(), &gpu)));
        let x = wave([2, inputs, 9, 13], 0.7, &cpu);
        let got = conv2d(on(&x, &gpu), &conv_params(&gpu_conv)).unwrap();
        assert_close("output", got, cpu_conv.forward(x.clone()), F32_TOLERANCE);
        #[cfg(feature = "train")]
        {
            use burn::module::{Module, Param, ParamId};
            let gradients = |device: Device, forward: &dyn Fn(Tensor<4>, &burn::nn::conv::Conv2d) -> Tensor<4>| {
                let device = device.autodiff();
                let tracked = |x: Tensor<4>| on(&x, &device).require_grad();
                let mut layer = config.init(&device);
                let weight = tracked(round_to_bf16(cpu_conv.weight.val()));
                layer.weight = Param::initialized(ParamId::new(), weight.clone());
                let bias = on(&cpu_conv.bias.as_ref().unwrap().val(), &device).require_grad();
                layer.bias = Some(Param::initialized(ParamId::new(), bias.clone()));
                let _ = layer.num_params();
                let x = tracked(round_to_bf16(x.clone()));
                let y = forward(x.clone(), &layer);
                let dy = round_to_bf16(wave(y.dims(), 1.1, &device));
                let gradients = (y * dy).sum().backward();
                let all = (x.grad(&gradients).unwrap(), weight.grad(&gradients).unwrap(), bias.grad(&gradients).unwrap());
                (on(&all.0, &cpu), on(&all.1, &cpu), on(&all.2, &cpu))
            };
            let want = gradients(cpu.clone(), &|x, layer| layer.forward(x));
            let got = gradients(gpu.clone(), &|x, layer| conv2d(x, &conv_params(layer)).unwrap());
            assert_close_to_max("gradient of x", got.0, want.0);
            assert_close_to_max("gradient of the weights", got.1, want.1);
            assert_close_to_max("gradient of the bias", got.2, want.2);
        }
    }
}

/// A 1 x 1 kernel with padding below and to the right only.
#[test]
fn padding_behind_the_map_is_zero() {
    let (gpu, cpu) = (device(), Device::flex());
    let config = Conv2dConfig::new([4, 6], [1, 1]).with_padding(PaddingConfig2d::Explicit(0, 0, 1, 1));
    let mut layer = config.init(&gpu);
    layer.weight = layer.weight.map(|weight| on(&wave(weight.dims(), 0.3, &cpu), &gpu));
    let x = wave([2, 4, 3, 5], 0.7, &cpu);
    let got = on(&conv2d(on(&x, &gpu), &conv_params(&layer)).unwrap(), &cpu);
    assert_eq!(got.dims(), [2, 6, 4, 6]);
    let mut unpadded = Conv2dConfig::new([4, 6], [1, 1]).init(&cpu);
    unpadded.weight = unpadded.weight.map(|_| on(&layer.weight.val(), &cpu));
    unpadded.bias = unpadded.bias.map(|bias| bias.map(|_| on(&layer.bias.as_ref().unwrap().val(), &cpu)));
    let (inside, below) = (got.clone().narrow(2, 0, 3).narrow(3, 0, 5), got.narrow(2, 3, 1).narrow(3, 0, 5));
    assert_close("inside", inside, unpadded.forward(x.clone()), F32_TOLERANCE);
    assert_close("below", below, unpadded.forward(x.narrow(2, 0, 1) * 0.0), F32_TOLERANCE);
}
