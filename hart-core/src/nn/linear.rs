//! Linear layers.

use std::sync::Arc;

use burn::module::{Module, ModuleMapper, Param};
use burn::prelude::*;
use burn::tensor::FloatDType;

use crate::device::{Precision, is_cpu};
use crate::kernels::{self, PackedWeight, Weight};

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

    /// Creates the layer with weights that are yet to be loaded, or initialised like burn's.
    pub(crate) fn init(self, device: &Device) -> Linear {
        let layer = burn::nn::LinearConfig::new(self.inputs, self.outputs).with_bias(self.bias).init(device);
        Linear { weight: layer.weight, bias: layer.bias, packed: None }
    }
}

/// A linear layer, named and stored like burn's, whose weight may be packed for products in a lower precision.
#[derive(Module, Debug)]
pub struct Linear {
    /// `[in, out]`. Once packed it has no values any more: a packed layer can't be trained or saved.
    pub(crate) weight: Param<Tensor<2>>,
    /// `[out]`.
    pub(crate) bias: Option<Param<Tensor<1>>>,
    #[module(skip)]
    packed: Option<Arc<PackedWeight>>,
}

impl Linear {
    /// Computes `x W + b`. On a GPU the output has the type of the weight.
    ///
    /// # Shapes
    ///
    /// - x: `[batch, tokens, in]`
    /// - output: `[batch, tokens, out]`
    pub(crate) fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        kernels::linear(x, &self.weight(), self.bias().as_ref())
    }

    /// Like [`Self::forward`], with an output in f32 whatever the type of the weight.
    pub(crate) fn forward_to_f32(&self, x: Tensor<3>) -> Tensor<3> {
        kernels::linear_to_f32(x, &self.weight(), self.bias().as_ref())
    }

    /// Returns x in the type that the layer's product reads, so that several layers can share one conversion.
    pub(crate) fn cast_input(&self, x: Tensor<3>) -> Tensor<3> {
        if is_cpu(&x.device()) { x } else { x.cast(FloatDType::from(self.weight.val().dtype())) }
    }

    /// Returns the weight as kernels read it.
    pub(crate) fn weight(&self) -> Weight {
        match &self.packed {
            Some(packed) => Weight::Packed(packed.clone()),
            None => Weight::Dense(self.weight.val()),
        }
    }

    fn bias(&self) -> Option<Tensor<1>> {
        self.bias.as_ref().map(Param::val)
    }

    /// Packs the weight for products in `precision` and frees the f32 weight. A weight that can't be packed, such as an empty one,
    /// stays as it is.
    pub(crate) fn pack(&mut self, precision: Precision) {
        if precision == Precision::F32 || self.packed.is_some() {
            return;
        }
        match kernels::pack(&self.weight.val(), precision) {
            Some(packed) => {
                self.set_packed(packed);
            }
            None => *self = in_half(self.clone(), precision, &self.weight.lazy_device()),
        }
    }

    /// Takes weights that were packed before, such as those of a mapped file. Returns whether they have this layer's sizes;
    /// otherwise nothing changes.
    pub(crate) fn set_packed(&mut self, packed: PackedWeight) -> bool {
        let (device, shape) = (self.weight.lazy_device(), self.weight.lazy_shape());
        if packed.dims() != shape.dims() {
            return false;
        }
        self.packed = Some(Arc::new(packed));
        // Still a parameter, so that it is counted, but one without values.
        let gone = |_: &Device, _: bool| panic!("these weights are packed: open the model in f32 to train or save it");
        self.weight = Param::uninitialized(burn::module::ParamId::new(), gone, device, false, shape);
        true
    }

    /// Returns by how many bytes the weight is smaller than in f32.
    pub(crate) fn saved_bytes(&self) -> u64 {
        let (elements, bytes) = match &self.packed {
            Some(packed) => (packed.dims().iter().product(), packed.bytes()),
            None if is_cpu(&self.weight.lazy_device()) => return 0,
            None => {
                let weight = self.weight.val();
                let elements = weight.shape().num_elements();
                (elements, (elements * weight.dtype().size()) as u64)
            }
        };
        ((elements * size_of::<f32>()) as u64).saturating_sub(bytes)
    }
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
                assert_close(layer.forward(x.clone()), want.clone(), 2e-6);
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
            let want = layer.forward(x.clone());
            layer.pack(precision);
            assert_eq!(layer.packed.is_some(), precision != Precision::F32);
            assert_eq!(layer.num_params(), 9 * 60 + 9);
            assert_close(layer.forward(x), want, tolerance);
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
