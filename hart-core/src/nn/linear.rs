//! Linear layers.

use burn::module::{Module, Param};
use burn::prelude::*;
use burn::tensor::{DType, FloatDType};

use super::packed::packed;
use crate::device::{Precision, is_cpu};
use crate::kernels::{self, Weight};

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
        Linear { weight: layer.weight, bias: layer.bias }
    }
}

/// A linear layer, named and stored like burn's, whose weight may be [packed](super::pack).
#[derive(Module, Debug)]
pub struct Linear {
    /// `[in, out]`.
    pub(crate) weight: Param<Tensor<2>>,
    /// `[out]`.
    pub(crate) bias: Option<Param<Tensor<1>>>,
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
        match packed(&self.weight) {
            Some(packed) => Weight::Packed(packed.clone()),
            None => Weight::Dense(self.weight.val()),
        }
    }

    /// Returns the precision of the layer's products. A CPU widens weights that are not packed to f32.
    pub(crate) fn precision(&self) -> Precision {
        match self.weight() {
            Weight::Packed(packed) => packed.precision(),
            Weight::Dense(weight) if is_cpu(&weight.device()) => Precision::F32,
            Weight::Dense(weight) => match weight.dtype() {
                DType::F16 => Precision::F16,
                DType::BF16 => Precision::Bf16,
                _ => Precision::F32,
            },
        }
    }

    fn bias(&self) -> Option<Tensor<1>> {
        self.bias.as_ref().map(Param::val)
    }
}

#[cfg(test)]
mod tests {
    use burn::module::ParamId;

    use super::*;
    use crate::kernels::testing::{assert_close, wave};
    use crate::kernels::{tensor, values};

    /// Covers weights in the layout of a checkpoint and in that of burn, with and without bias, for few rows and for many.
    #[test]
    fn a_linear_layer_is_the_same_product_either_way() {
        let device = Device::flex();
        let weight = wave([9, 6], 0.9, &device) * 3.0; // [out, in]
        let bias = wave([9], 0.2, &device) * 3.0;
        for (rows, with_bias) in [(1, false), (3, true), (70, true), (300, false)] {
            let x = wave([2, rows, 6], 0.31, &device) * 3.0;
            let transposed = weight.clone().transpose();
            let mut want = x.clone().matmul(transposed.clone().unsqueeze());
            let mut layer = LinearConfig::new(6, 9).with_bias(with_bias).init(&device);
            if with_bias {
                want = want + bias.clone().unsqueeze();
                layer.bias = Some(Param::initialized(ParamId::new(), bias.clone()));
            }
            for weight in [transposed.clone(), tensor(values(transposed), [6, 9], &device)] {
                layer.weight = Param::initialized(ParamId::new(), weight);
                assert_close(layer.forward(x.clone()), want.clone(), 2e-6);
            }
        }
    }
}
