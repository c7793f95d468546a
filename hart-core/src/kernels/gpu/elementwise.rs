//! Element by element: SiLU, the gate of a gated layer, and gated sums.

#![allow(clippy::result_large_err, reason = "operands, not errors")]

use burn::prelude::Tensor;
use burn::tensor::DType;
use cubecl::prelude::{Tensor as Strided, *};

use super::{element, empty_like, primitive, row_of, tensor, thread_number, threads_for, whole};

#[cube]
pub(super) fn silu_of(x: f32) -> f32 {
    x / (1.0f32 + (-x).exp())
}

#[cube(launch)]
fn silu_kernel<X: Float>(x: &[X], y: &mut [X], count: usize, #[define(X)] _type: ElemType) {
    let i = thread_number();
    if i < count {
        y[i] = X::cast_from(silu_of(f32::cast_from(x[i])));
    }
}

#[cube(launch)]
fn silu_mul_kernel<X: Float>(gate: &[X], up: &[X], y: &mut [X], count: usize, #[define(X)] _type: ElemType) {
    let i = thread_number();
    if i < count {
        y[i] = X::cast_from(silu_of(f32::cast_from(gate[i])) * f32::cast_from(up[i]));
    }
}

#[cube(launch)]
#[allow(clippy::too_many_arguments)]
fn add_gated_kernel<X: Float, Y: Float, G: Float>(
    x: &[X],
    y: &[Y],
    gate: &Strided<G>,
    sum: &mut [X],
    count: usize,
    width: usize,
    length: usize,
    #[comptime] gated: bool,
    #[define(X, Y, G)] _types: [ElemType; 3],
) {
    let i = thread_number();
    if i < count {
        let mut value = f32::cast_from(y[i]);
        if comptime!(gated) {
            let (row, channel) = (i / width, i % width);
            let (batch, token) = (row / length, row % length);
            value *= f32::cast_from(gate[row_of(gate, batch, token) + channel * gate.stride(2)]);
        }
        sum[i] = X::cast_from(f32::cast_from(x[i]) + value);
    }
}

/// See [`crate::kernels::silu`]; in the type of x.
pub(crate) fn silu<const D: usize>(x: Tensor<D>) -> Result<Tensor<D>, Tensor<D>> {
    let Some(values) = whole(&x) else { return Err(x) };
    let count = values.meta.num_elements();
    let y = empty_like(&values, values.meta.shape().clone(), values.dtype);
    if count > 0 {
        let (client, kind) = (values.client.clone(), element(values.dtype));
        let (from, to) = (values.into_buffer_arg(), y.clone().into_buffer_arg());
        let (all, dim) = threads_for(count);
        silu_kernel::launch(&client, all, dim, from, to, count, kind);
    }
    Ok(tensor(y))
}

/// Computes `silu(gate) * up` in the type of both.
pub(crate) fn silu_mul(gate: Tensor<3>, up: Tensor<3>) -> Result<Tensor<3>, (Tensor<3>, Tensor<3>)> {
    let (Some(gates), Some(ups), true) = (whole(&gate), whole(&up), gate.dtype() == up.dtype()) else { return Err((gate, up)) };
    let count = gates.meta.num_elements();
    let y = empty_like(&gates, gates.meta.shape().clone(), gates.dtype);
    if count > 0 {
        let (client, kind) = (gates.client.clone(), element(gates.dtype));
        let (gates, ups, to) = (gates.into_buffer_arg(), ups.into_buffer_arg(), y.clone().into_buffer_arg());
        let (all, dim) = threads_for(count);
        silu_mul_kernel::launch(&client, all, dim, gates, ups, to, count, kind);
    }
    Ok(tensor(y))
}

/// See [`crate::kernels::add_gated`]; in the type of x.
pub(crate) fn add_gated(x: Tensor<3>, y: Tensor<3>, gate: Option<&Tensor<3>>) -> Result<Tensor<3>, (Tensor<3>, Tensor<3>)> {
    sum_gated(&x, &y, gate).ok_or((x, y))
}

fn sum_gated(x: &Tensor<3>, y: &Tensor<3>, gate: Option<&Tensor<3>>) -> Option<Tensor<3>> {
    let [_, length, width] = x.dims();
    if y.dims() != x.dims() {
        return None;
    }
    let (x, y) = (whole(x)?, whole(y)?);
    let gated = gate.is_some();
    let gate = match gate {
        Some(gate) => primitive(gate)?,
        None => empty_like(&x, [1, 1, 1], DType::F32),
    };
    let count = x.meta.num_elements();
    let sum = empty_like(&x, x.meta.shape().clone(), x.dtype);
    if count > 0 {
        let (client, types) = (x.client.clone(), [element(x.dtype), element(y.dtype), element(gate.dtype)]);
        let (x, y, gate, to) = (x.into_buffer_arg(), y.into_buffer_arg(), gate.into_tensor_arg(), sum.clone().into_buffer_arg());
        let (all, dim) = threads_for(count);
        add_gated_kernel::launch(&client, all, dim, x, y, gate, to, count, width, length, gated, types);
    }
    Some(tensor(sum))
}
