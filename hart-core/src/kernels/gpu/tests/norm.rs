//! RMSNorm, LayerNorm and residual sums.

#[cfg(feature = "train")]
use burn::nn::LayerNormConfig;
use burn::prelude::*;
use burn::tensor::FloatDType;

#[cfg(feature = "train")]
use super::assert_all_close_to_max;
use super::assert_close;
use crate::kernels::testing::{gpu as device, on, wave};
use crate::kernels::{Modulation, add_gated, add_norm, layer_norm, rms_norm};

#[test]
fn norms_and_sums_equal_the_cpus() {
    let (gpu, cpu) = (device(), Device::flex());
    for width in [6, 300] {
        let (gain, bias) = (wave([width], 1.1, &cpu), wave([width], 0.3, &cpu));
        let (gpu_gain, gpu_bias) = (on(&gain, &gpu), on(&bias, &gpu));
        // Modulations are slices of a wider tensor, or broadcast over tokens, or over the batch too.
        let wide = wave([2, 5, 3 * width], 0.9, &cpu);
        let slice = |index: usize| wide.clone().narrow(2, index * width, width);
        let modulation = |scale: Tensor<3>, shift: Tensor<3>| Modulation { scale, shift };
        let modulations = [
            None,
            Some(modulation(slice(0), slice(2))),
            Some(modulation(slice(1).narrow(1, 2, 1), wave([2, 1, width], 0.4, &cpu))),
            Some(modulation(wave([1, 1, width], 0.8, &cpu), wave([1, 1, width], 0.4, &cpu))),
        ];
        for cpu_modulation in &modulations {
            let x = wave([2, 5, width], 0.7, &cpu);
            let gpu_modulation = cpu_modulation.as_ref().map(|m| modulation(on(&m.scale, &gpu), on(&m.shift, &gpu)));
            let (cpu_modulation, gpu_modulation) = (cpu_modulation.as_ref(), gpu_modulation.as_ref());
            let gpu_x = on(&x, &gpu);
            let normalized = rms_norm(x.clone(), &gain, 1e-5, cpu_modulation);
            let got = rms_norm(gpu_x.clone(), &gpu_gain, 1e-5, gpu_modulation);
            assert_close("rms_norm", got, normalized.clone(), 1e-5);
            let want = layer_norm(x.clone(), Some(&gain), Some(&bias), 1e-5, cpu_modulation);
            let got = layer_norm(gpu_x.clone(), Some(&gpu_gain), Some(&gpu_bias), 1e-5, gpu_modulation);
            assert_close("layer_norm", got, want, 1e-5);
            let want = layer_norm(x.clone(), None, None, 1e-5, cpu_modulation);
            let got = layer_norm(gpu_x.clone(), None, None, 1e-5, gpu_modulation);
            assert_close("layer_norm without gain and bias", got, want, 1e-5);
            let (y, gate) = (wave([2, 5, width], 0.3, &cpu), cpu_modulation.map(|m| m.scale.clone()));
            let want = add_gated(x.clone(), y.clone(), gate.as_ref());
            let gpu_gate = gate.map(|gate| on(&gate, &gpu));
            assert_close("add_gated", add_gated(gpu_x.clone(), on(&y, &gpu), gpu_gate.as_ref()), want.clone(), 1e-6);
            // The fused operation.
            let gpu_gated = gpu_gate.as_ref().zip(gpu_modulation);
            let (sum, normed) = super::super::add_norm(gpu_x.clone(), on(&y, &gpu), &gpu_gain, 1e-5, gpu_gated).unwrap();
            assert_close("sum of add_norm", sum, want, 1e-6);
            let (_, want) = add_norm(x.clone(), y, &gain, 1e-5, cpu_modulation.map(|m| (&m.scale, m)));
            assert_close("norm of add_norm", normed, want, 1e-5);
            // The output has the type of the gain.
            let half = gpu_gain.clone().cast(FloatDType::F16);
            assert_close("rms_norm in f16", rms_norm(gpu_x, &half, 1e-5, gpu_modulation), normalized, 2e-3);
        }
    }
}

/// The output and the gradients of norms in training.
#[cfg(feature = "train")]
#[test]
fn gradients_of_norms_equal_the_cpus() {
    use burn::module::{Param, ParamId};
    let results = |device: &Device| {
        let device = device.clone().autodiff();
        let x = wave([43, 100, 24], 0.7, &device).require_grad();
        let gain = wave::<1>([24], 0.8, &device).require_grad();
        let norm = burn::nn::RmsNorm { gamma: Param::initialized(ParamId::new(), gain.clone()), epsilon: 1e-6 };
        let y = crate::nn::rms_norm(x.clone(), &norm, None);
        let norm = LayerNormConfig::new(24).with_epsilon(1e-6).init(&device);
        let modulation = Modulation { scale: wave([1, 1, 24], 0.8, &device), shift: wave([1, 1, 24], 0.4, &device) };
        let y = crate::nn::layer_norm(y * 2.0 + 0.5, Some(&norm), 1e-6, Some(&modulation));
        let gradients = (y.clone() * wave(y.dims(), 1.1, &device)).sum().backward();
        let dx = x.grad(&gradients).unwrap();
        [y.inner().reshape([1, -1]), dx.reshape([1, -1]), gain.grad(&gradients).unwrap().reshape([1, -1])]
    };
    assert_all_close_to_max(results(&device()), results(&Device::flex()));
}
