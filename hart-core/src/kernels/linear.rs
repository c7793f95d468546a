//! Linear layers.

use std::sync::Arc;

use burn::module::{Module, ModuleMapper, Param};
use burn::prelude::*;
use burn::tensor::{FloatDType, module};

#[cfg(feature = "cpu")]
use super::cpu::Packed;
use crate::device::{Precision, is_cpu};

/// Without the CPU backend nothing is packed.
#[cfg(not(feature = "cpu"))]
#[derive(Debug)]
enum Packed {}

/// Sizes of a linear layer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LinearConfig {
    inputs: usize,
    outputs: usize,
    bias: bool,
}

impl LinearConfig {
    pub(crate) fn new(inputs: usize, outputs: usize) -> Self {
        Self { inputs, outputs, bias: true }
    }

    pub(crate) fn with_bias(self, bias: bool) -> Self {
        Self { bias, ..self }
    }

    /// The layer with weights that are yet to be loaded, or drawn as burn draws them.
    pub(crate) fn init(self, device: &Device) -> Linear {
        let layer = burn::nn::LinearConfig::new(self.inputs, self.outputs).with_bias(self.bias).init(device);
        Linear { weight: layer.weight, bias: layer.bias, packed: None }
    }
}

/// A linear layer, named and stored as burn's, whose weights may be packed for products in a lower precision.
#[derive(Module, Debug)]
pub struct Linear {
    /// `[in, out]`. Once packed it has no numbers any more: a packed layer can't be trained or saved.
    pub(crate) weight: Param<Tensor<2>>,
    /// `[out]`.
    pub(crate) bias: Option<Param<Tensor<1>>>,
    #[module(skip)]
    packed: Option<Arc<Packed>>,
}

impl Linear {
    /// Computes its products in another precision from now on, letting go of the f32 weight. A weight that can't be packed, such
    /// as an empty one, stays as it is.
    pub(crate) fn pack(&mut self, precision: Precision) {
        if precision == Precision::F32 {
            return;
        }
        #[cfg(feature = "cpu")]
        if self.packed.is_none()
            && let Some(packed) = super::cpu::pack(&self.weight, precision)
        {
            self.set_packed(packed);
        }
        if self.packed.is_none() {
            *self = in_half(self.clone(), precision, &self.weight.lazy_device());
        }
    }

    /// Takes weights that were packed before, such as those of a mapped file; whether they are of this layer's sizes, without
    /// which nothing changes.
    #[cfg(feature = "cpu")]
    pub(crate) fn set_packed(&mut self, packed: Packed) -> bool {
        let (device, shape) = (self.weight.lazy_device(), self.weight.lazy_shape());
        if packed.sizes() != shape.dims() {
            return false;
        }
        self.packed = Some(Arc::new(packed));
        // A parameter still, so that it is counted, but one that is never made.
        let gone = |_: &Device, _: bool| panic!("these weights are packed: open the model in f32 to train or save it");
        self.weight = Param::uninitialized(burn::module::ParamId::new(), gone, device, false, shape);
        true
    }

    /// Bytes that the weight takes less than in f32.
    pub(crate) fn saved_bytes(&self) -> u64 {
        #[cfg(feature = "cpu")]
        if let Some(packed) = &self.packed {
            let [inputs, outputs] = packed.sizes();
            return ((inputs * outputs * size_of::<f32>()) as u64).saturating_sub(packed.bytes());
        }
        match is_cpu(&self.weight.lazy_device()) {
            true => 0,
            false => {
                let weight = self.weight.val();
                (weight.shape().num_elements() * size_of::<f32>().saturating_sub(weight.dtype().size())) as u64
            }
        }
    }

    /// The packed weights, if they are packed.
    #[cfg(feature = "cpu")]
    pub(super) fn packed(&self) -> Option<&Arc<Packed>> {
        self.packed.as_ref()
    }
}

/// `x W + b`, one product for all rows: a weight is read once. On a GPU the output has the type of the weight.
///
/// # Shapes
///
/// - x: `[R, L, in]`
/// - output: `[R, L, out]`
pub(crate) fn linear(x: Tensor<3>, layer: &Linear) -> Tensor<3> {
    #[cfg(feature = "cpu")]
    if let Some(y) = super::cpu::linear(&x, layer) {
        return y;
    }
    #[cfg(all(feature = "cpu", feature = "train"))]
    if let Some(y) = super::cpu::tracked_linear(&x, layer) {
        return y;
    }
    #[cfg(any(feature = "cuda", feature = "wgpu"))]
    if let Some(y) = super::gpu::linear(&x, layer) {
        return y;
    }
    module::linear(x, layer.weight.val(), layer.bias.as_ref().map(Param::val))
}

/// As [`linear`], with an output in f32 whatever the type of the weight.
pub(crate) fn linear_to_f32(x: Tensor<3>, layer: &Linear) -> Tensor<3> {
    #[cfg(any(feature = "cuda", feature = "wgpu"))]
    if let Some(y) = super::gpu::linear_to_f32(&x, layer) {
        return y;
    }
    linear(x, layer)
}

/// The same numbers as a layer's products read them, so that what several layers read is rounded once.
pub(crate) fn as_read_by(x: Tensor<3>, layer: &Linear) -> Tensor<3> {
    if is_cpu(&x.device()) { x } else { x.cast(FloatDType::from(layer.weight.val().dtype())) }
}

/// A matrix times another one. On a GPU f32 is multiplied as it is, where burn's matrix units would round it to ten bits.
///
/// # Shapes
///
/// - x: `[rows, in]`
/// - other: `[in, out]`
pub(crate) fn matmul(x: Tensor<2>, other: Tensor<2>) -> Tensor<2> {
    #[cfg(any(feature = "cuda", feature = "wgpu"))]
    if let Some(y) = super::gpu::matmul(&x, &other) {
        return y;
    }
    x.matmul(other)
}

/// A module's parameters in half precision, where that is the precision and the device a GPU: what reads them computes in it. Those
/// that are yet to be loaded become so one by one as they arrive, so that a GPU never holds all of them in f32.
pub(crate) fn in_half<M: Module>(module: M, precision: Precision, device: &Device) -> M {
    struct Rounded(FloatDType);
    impl ModuleMapper for Rounded {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let kind = self.0;
            // Memory of their own, as they stay.
            let rounded = move |weight: Tensor<D>| {
                let device = weight.device();
                device.memory_persistent_allocations(weight, |weight| weight.cast(kind))
            };
            if param.is_initialized() { param.map(rounded) } else { param.load_mapper(rounded) }
        }
    }
    match precision {
        _ if is_cpu(device) => module,
        Precision::F16 => module.map(&mut Rounded(FloatDType::F16)),
        Precision::Bf16 => module.map(&mut Rounded(FloatDType::BF16)),
        Precision::Auto | Precision::F32 | Precision::Int8 => module,
    }
}

#[cfg(test)]
mod tests {
    use burn::module::ParamId;

    use super::*;
    use crate::kernels::{tensor, values};

    fn waves(count: usize, speed: f32) -> Vec<f32> {
        (0..count).map(|i| (i as f32 * speed).sin() * 3.0).collect()
    }

    fn assert_close(got: Tensor<3>, want: Tensor<3>, tolerance: f32) {
        assert_eq!(got.dims(), want.dims());
        let (got, want) = (values(got), values(want));
        assert!(got.iter().zip(&want).all(|(g, w)| (g - w).abs() <= tolerance * w.abs().max(1.0)), "{got:?} and not {want:?}");
    }

    /// Weights as a checkpoint has them and as burn makes them, with and without bias, few rows and many.
    #[test]
    fn a_linear_layer_is_the_same_product_either_way() {
        let device = Device::flex();
        let weight = tensor(waves(9 * 6, 0.9), [1, 9, 6], &device).squeeze_dim::<2>(0); // [out, in]
        let bias = tensor(waves(9, 0.2), [1, 1, 9], &device);
        for (rows, with_bias) in [(1, false), (3, true), (70, true), (300, false)] {
            let x = tensor(waves(2 * rows * 6, 0.31), [2, rows, 6], &device);
            let turned = weight.clone().transpose();
            let mut want = x.clone().matmul(turned.clone().unsqueeze());
            let mut layer = LinearConfig::new(6, 9).with_bias(with_bias).init(&device);
            if with_bias {
                want = want + bias.clone();
                let id = ParamId::new();
                layer.bias = Some(Param::initialized(id, bias.clone().reshape([9])));
            }
            for weight in [turned.clone(), tensor(values(turned), [6, 9], &device)] {
                layer.weight = Param::initialized(ParamId::new(), weight);
                assert_close(linear(x.clone(), &layer), want.clone(), 2e-6);
            }
        }
    }

    /// Packed, its products are close, its weight is still counted, and only then it has no numbers any more.
    #[test]
    fn a_packed_layer_is_close() {
        let device = Device::flex();
        let weight = tensor(waves(9 * 60, 0.9), [1, 9, 60], &device).squeeze_dim::<2>(0); // [out, in]
        for (precision, tolerance) in [(Precision::F32, 1e-5), (Precision::Bf16, 0.3), (Precision::Int8, 0.6)] {
            let mut layer = LinearConfig::new(60, 9).init(&device);
            layer.weight = Param::initialized(ParamId::new(), weight.clone().transpose());
            let x = tensor(waves(2 * 50 * 60, 0.31), [2, 50, 60], &device);
            let want = linear(x.clone(), &layer);
            layer.pack(precision);
            assert_eq!(layer.packed.is_some(), precision != Precision::F32);
            assert_eq!(layer.num_params(), 9 * 60 + 9);
            assert_close(linear(x, &layer), want, tolerance);
        }
    }

    #[test]
    #[should_panic(expected = "open the model in f32")]
    fn a_packed_weight_can_not_be_trained() {
        let mut layer = LinearConfig::new(6, 9).init(&Device::flex());
        layer.pack(Precision::Int8);
        layer.weight.val();
    }
}
