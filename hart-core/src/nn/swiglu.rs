//! The gated feed-forward layer.

use burn::module::Module;
use burn::prelude::*;

use super::linear::{Linear, LinearConfig};
use crate::kernels;

/// The gated feed-forward layer of Llama and Qwen2, `down(silu(gate(x)) * up(x))`, without biases.
#[derive(Module, Debug)]
pub struct SwiGlu {
    gate: Linear,
    up: Linear,
    down: Linear,
}

impl SwiGlu {
    pub(crate) fn init(width: usize, hidden: usize, device: &Device) -> Self {
        let linear = |from, to| LinearConfig::new(from, to).with_bias(false).init(device);
        Self { gate: linear(width, hidden), up: linear(width, hidden), down: linear(hidden, width) }
    }

    /// Computes the layer.
    ///
    /// # Shapes
    ///
    /// - x, output: `[batch, tokens, channels]`
    pub(crate) fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        kernels::swi_glu(x, &self.gate.weight(), &self.up.weight(), &self.down.weight())
    }
}

#[cfg(test)]
mod tests {
    use burn::module::{Param, ParamId};
    use burn::tensor::activation;

    use super::*;
    use crate::kernels::testing::{assert_close, wave};
    use crate::kernels::{tensor, values};

    /// Covers few rows, and enough of them to be computed in parts, with weights in the layout of burn and in that of a checkpoint.
    #[test]
    fn the_gated_layer_in_one_equals_its_three_products() {
        let device = Device::flex();
        let layer = SwiGlu::init(7, 19, &device);
        for rows in [1, 70, 1500] {
            let x = wave([2, rows, 7], 0.31, &device) * 3.0;
            let gate = activation::silu(x.clone().matmul(layer.gate.weight.val().unsqueeze()));
            let want = (gate * x.clone().matmul(layer.up.weight.val().unsqueeze())).matmul(layer.down.weight.val().unsqueeze());
            assert_close(layer.forward(x.clone()), want.clone(), 2e-6);
            let mut transposed = layer.clone();
            for layer in [&mut transposed.gate, &mut transposed.up, &mut transposed.down] {
                let [inputs, outputs] = layer.weight.dims();
                let rows = tensor(values(layer.weight.val().transpose()), [outputs, inputs], &device);
                layer.weight = Param::initialized(ParamId::new(), rows.transpose());
            }
            assert_close(transposed.forward(x), want, 2e-6);
        }
    }
}
