//! Matrix products.

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::prelude::*;
use burn::tensor::activation;

/// `x W + b`, one product for all rows: a weight is read once.
///
/// # Shapes
///
/// - x: `[R, L, in]`
/// - output: `[R, L, out]`
pub(crate) fn linear(x: Tensor<3>, layer: &Linear) -> Tensor<3> {
    #[cfg(feature = "cpu")]
    if let Some(y) = super::flex::linear(&x, layer) {
        return y;
    }
    layer.forward(x)
}

/// `x / (1 + e^-x)`, element by element.
pub(crate) fn silu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    #[cfg(feature = "cpu")]
    let x = match super::extension::silu(x) {
        Ok(y) => return y,
        Err(x) => x,
    };
    activation::silu(x)
}

/// `silu(gate) up`, element by element.
fn silu_mul(gate: Tensor<3>, up: Tensor<3>) -> Tensor<3> {
    #[cfg(feature = "cpu")]
    let (gate, up) = match super::extension::silu_mul(gate, up) {
        Ok(y) => return y,
        Err(both) => both,
    };
    activation::silu(gate) * up
}

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

    /// # Shapes
    ///
    /// - x: `[B, L, C]`
    /// - output: `[B, L, C]`
    pub(crate) fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let gate = linear(x.clone(), &self.gate);
        linear(silu_mul(gate, linear(x, &self.up)), &self.down)
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

    /// Whole tensors, shared ones, and views of larger ones; a shared tensor stays as it was.
    #[test]
    fn faster_bodies_equal_the_plain_ones() {
        let device = Device::flex();
        let whole = tensor(waves(2 * 5 * 7, 0.7), [2, 5, 7], &device);
        let views = [whole.clone(), whole.clone().swap_dims(1, 2), whole.clone().narrow(1, 1, 3), whole.clone().narrow(0, 1, 1)];
        for x in views {
            let before = values(x.clone());
            let up = x.clone() * 0.3 + 1.0;
            assert_close(silu(x.clone()), activation::silu(x.clone()));
            assert_close(silu_mul(x.clone(), up.clone()), activation::silu(x.clone()) * up);
            assert_eq!(values(x), before);
        }
        assert_close(silu(whole.clone() * 2.0), activation::silu(whole * 2.0));
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
                let id = burn::module::ParamId::new();
                layer.bias = Some(burn::module::Param::initialized(id, bias.clone().reshape([9])));
            }
            for weight in [turned.clone(), tensor(values(turned), [6, 9], &device)] {
                layer.weight = burn::module::Param::initialized(burn::module::ParamId::new(), weight);
                assert_close(linear(x.clone(), &layer), want.clone());
            }
        }
    }
}
