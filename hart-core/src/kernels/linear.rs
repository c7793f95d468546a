//! Linear layers, matrix products and activations.

use burn::prelude::*;

use super::params::Weight;
use super::{PackedWeight, cpu, gpu, reference};
use crate::device::Precision;

/// Packs a weight `[in, out]` for products in `precision`. Returns `None` if the device uses the weight unpacked, or if it is
/// empty.
pub(crate) fn pack(weight: &Tensor<2>, precision: Precision) -> Option<PackedWeight> {
    cpu::pack(weight, precision)
}

/// Computes `x W + b`. On a GPU, the output has the type of the weight.
///
/// # Shapes
///
/// - x: `[batch, tokens, in]`
/// - output: `[batch, tokens, out]`
pub(crate) fn linear(x: Tensor<3>, weight: &Weight, bias: Option<&Tensor<1>>) -> Tensor<3> {
    cpu::linear(&x, weight, bias).or_else(|| gpu::linear(&x, weight, bias)).unwrap_or_else(|| reference::linear(x, weight, bias))
}

/// Like [`linear`], but the output is f32 whatever the type of the weight.
pub(crate) fn linear_to_f32(x: Tensor<3>, weight: &Weight, bias: Option<&Tensor<1>>) -> Tensor<3> {
    cpu::linear(&x, weight, bias)
        .or_else(|| gpu::linear_to_f32(&x, weight, bias))
        .unwrap_or_else(|| reference::linear(x, weight, bias))
}

/// Multiplies two matrices. On a GPU, f32 keeps its full precision; burn's products may use tensor cores, which round it to TF32.
///
/// # Shapes
///
/// - x: `[rows, in]`
/// - other: `[in, out]`
/// - output: `[rows, out]`
pub(crate) fn matmul(x: Tensor<2>, other: Tensor<2>) -> Tensor<2> {
    cpu::matmul(&x, &other).or_else(|| gpu::matmul(&x, &other)).unwrap_or_else(|| reference::matmul(x, other))
}

/// Computes `e^x` elementwise. On the CPU, the result is the same on every platform, unlike that of the C library.
pub(crate) fn exp<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    cpu::exp(x).unwrap_or_else(Tensor::exp)
}

/// Computes `x / (1 + e^-x)` elementwise.
pub(crate) fn silu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    cpu::silu(x).or_else(gpu::silu).unwrap_or_else(reference::silu)
}

/// Computes `silu(gate) * up` elementwise.
fn silu_mul(gate: Tensor<3>, up: Tensor<3>) -> Tensor<3> {
    cpu::silu_mul(gate, up).or_else(|(gate, up)| gpu::silu_mul(gate, up)).unwrap_or_else(|(gate, up)| reference::silu_mul(gate, up))
}

/// Computes the SwiGLU feed-forward layer `down(silu(gate(x)) * up(x))`, without biases.
///
/// # Shapes
///
/// - x, output: `[batch, tokens, channels]`
pub(crate) fn swi_glu(x: Tensor<3>, gate: &Weight, up: &Weight, down: &Weight) -> Tensor<3> {
    cpu::swi_glu(&x, gate, up, down).or_else(|| gpu::swi_glu(&x, gate, up, down)).unwrap_or_else(|| {
        let hidden = silu_mul(linear(x.clone(), gate, None), linear(x, up, None));
        linear(hidden, down, None)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::{assert_close, waves};
    use crate::kernels::{tensor, values};

    /// Covers whole tensors, shared tensors and views. A shared tensor keeps its values.
    #[test]
    fn faster_activations_equal_the_reference() {
        let device = Device::flex();
        let whole = tensor(waves(2 * 5 * 7, 0.7), [2, 5, 7], &device);
        let views = [whole.clone(), whole.clone().swap_dims(1, 2), whole.clone().narrow(1, 1, 3), whole.clone().narrow(0, 1, 1)];
        for x in views {
            let before = values(x.clone());
            let up = x.clone() * 0.3 + 1.0;
            assert_close(exp(x.clone()), x.clone().exp(), 2e-6);
            assert_close(silu(x.clone()), reference::silu(x.clone()), 2e-6);
            assert_close(silu_mul(x.clone(), up.clone()), reference::silu(x.clone()) * up, 2e-6);
            assert_eq!(values(x), before);
        }
        assert_close(silu(whole.clone() * 2.0), reference::silu(whole * 2.0), 2e-6);
    }
}
