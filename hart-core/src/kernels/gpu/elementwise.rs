//! Elementwise operations: SiLU, the gate of SwiGLU, and gated residual sums.

use burn::prelude::Tensor;
use burn::tensor::DType;
use cubecl::prelude::{Tensor as Strided, *};

use super::{broadcast_offset, contiguous, element, elementwise_dims, empty_like, primitive, tensor, thread_index};

/// Returns `x * sigmoid(x)`.
#[cube]
pub(super) fn silu_of(x: f32) -> f32 {
    x / (1.0f32 + (-x).exp())
}

/// Computes SiLU. One thread computes one element.
#[cube(launch)]
fn silu_kernel<X: Float>(x: &[X], y: &mut [X], count: usize, #[define(X)] _type: ElemType) {
    let i = thread_index();
    if i < count {
        y[i] = X::cast_from(silu_of(f32::cast_from(x[i])));
    }
}

/// Computes `silu(gate) * up`. One thread computes one element.
#[cube(launch)]
fn silu_mul_kernel<X: Float>(gate: &[X], up: &[X], y: &mut [X], count: usize, #[define(X)] _type: ElemType) {
    let i = thread_index();
    if i < count {
        y[i] = X::cast_from(silu_of(f32::cast_from(gate[i])) * f32::cast_from(up[i]));
    }
}

/// Computes `x + gate * y`, or `x + y`. One thread computes one element.
#[cube(launch)]
#[allow(clippy::too_many_arguments)]
fn add_gated_kernel<X: Float, Y: Float, G: Float>(
    x: &[X],
    y: &[Y],
    gate: &Strided<G>,
    sum: &mut [X],
    count: usize,
    width: usize,
    tokens: usize,
    #[comptime] gated: bool,
    #[define(X, Y, G)] _types: [ElemType; 3],
) {
    let i = thread_index();
    if i < count {
        let mut value = f32::cast_from(y[i]);
        if comptime!(gated) {
            let (row, channel) = (i / width, i % width);
            let (batch, token) = (row / tokens, row % tokens);
            value *= f32::cast_from(gate[broadcast_offset(gate, batch, token) + channel * gate.stride(2)]);
        }
        sum[i] = X::cast_from(f32::cast_from(x[i]) + value);
    }
}

/// See [`crate::kernels::silu`]. The output has the type of `x`.
pub(crate) fn silu<const D: usize>(x: Tensor<D>) -> Result<Tensor<D>, Tensor<D>> {
    let Some(values) = contiguous(&x) else { return Err(x) };
    let count = values.meta.num_elements();
    let y = empty_like(&values, values.meta.shape().clone(), values.dtype);
    if count > 0 {
        let (client, dtype) = (values.client.clone(), element(values.dtype));
        let (input, output) = (values.into_buffer_arg(), y.clone().into_buffer_arg());
        let (grid, cube) = elementwise_dims(count);
        silu_kernel::launch(&client, grid, cube, input, output, count, dtype);
    }
    Ok(tensor(y))
}

/// Returns `silu(gate) * up`. Applies if both have the same type.
pub(crate) fn silu_mul(gate: Tensor<3>, up: Tensor<3>) -> Result<Tensor<3>, (Tensor<3>, Tensor<3>)> {
    let (Some(gates), Some(ups), true) = (contiguous(&gate), contiguous(&up), gate.dtype() == up.dtype()) else {
        return Err((gate, up));
    };
    let count = gates.meta.num_elements();
    let y = empty_like(&gates, gates.meta.shape().clone(), gates.dtype);
    if count > 0 {
        let (client, dtype) = (gates.client.clone(), element(gates.dtype));
        let (gates, ups, output) = (gates.into_buffer_arg(), ups.into_buffer_arg(), y.clone().into_buffer_arg());
        let (grid, cube) = elementwise_dims(count);
        silu_mul_kernel::launch(&client, grid, cube, gates, ups, output, count, dtype);
    }
    Ok(tensor(y))
}

/// See [`crate::kernels::add_gated`]. The output has the type of `x`.
pub(crate) fn add_gated(x: Tensor<3>, y: Tensor<3>, gate: Option<&Tensor<3>>) -> Result<Tensor<3>, (Tensor<3>, Tensor<3>)> {
    launch_add_gated(&x, &y, gate).ok_or((x, y))
}

fn launch_add_gated(x: &Tensor<3>, y: &Tensor<3>, gate: Option<&Tensor<3>>) -> Option<Tensor<3>> {
    let [_, tokens, width] = x.dims();
    if y.dims() != x.dims() {
        return None;
    }
    let (x, y) = (contiguous(x)?, contiguous(y)?);
    let gated = gate.is_some();
    let gate = match gate {
        Some(gate) => primitive(gate)?,
        // A kernel without a gate still binds a buffer, which it does not read.
        None => empty_like(&x, [1, 1, 1], DType::F32),
    };
    let count = x.meta.num_elements();
    let sum = empty_like(&x, x.meta.shape().clone(), x.dtype);
    if count > 0 {
        let (client, types) = (x.client.clone(), [element(x.dtype), element(y.dtype), element(gate.dtype)]);
        let (x, y, gate, output) =
            (x.into_buffer_arg(), y.into_buffer_arg(), gate.into_tensor_arg(), sum.clone().into_buffer_arg());
        let (grid, cube) = elementwise_dims(count);
        add_gated_kernel::launch(&client, grid, cube, x, y, gate, output, count, width, tokens, gated, types);
    }
    Some(tensor(sum))
}
