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
    use super::*;
    use crate::kernels::{tensor, values};

    fn waves(count: usize, speed: f32) -> Vec<f32> {
        (0..count).map(|i| (i as f32 * speed).sin() * 3.0).collect()
    }

    fn assert_close(got: Tensor<3>, want: Tensor<3>) {
        assert_eq!(got.dims(), want.dims());
        let (got, want) = (values(got), values(want));
        assert!(got.iter().zip(&want).all(|(g, w)| (g - w).abs() <= 2e-6 * w.abs().max(1.0)), "{got:?} and not {want:?}");
    }

    /// Few rows and so many that they are done in parts.
    #[test]
    fn the_gated_layer_in_one_equals_its_three_products() {
        let device = Device::flex();
        let layer = SwiGlu::init(7, 19, &device);
        for rows in [1, 70, 1500] {
            let x = tensor(waves(2 * rows * 7, 0.31), [2, rows, 7], &device);
            let gate = burn::tensor::activation::silu(x.clone().matmul(layer.gate.weight.val().unsqueeze()));
            let want = (gate * x.clone().matmul(layer.up.weight.val().unsqueeze())).matmul(layer.down.weight.val().unsqueeze());
            assert_close(layer.forward(x.clone()), want.clone());
            let mut turned = layer.clone();
            for layer in [&mut turned.gate, &mut turned.up, &mut turned.down] {
                let rows = tensor(
                    values(layer.weight.val().transpose()),
                    layer.weight.dims().into_iter().rev().collect::<Vec<_>>().try_into().expect("two"),
                    &device,
                );
                layer.weight = burn::module::Param::initialized(burn::module::ParamId::new(), rows.transpose());
            }
            assert_close(turned.forward(x), want);
        }
    }
}
