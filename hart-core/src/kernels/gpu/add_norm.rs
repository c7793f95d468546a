//! A sum and its norm in one pass: the residual stream, and what the next layer reads of it.

use burn::prelude::Tensor;
use burn::tensor::DType;
use cubecl::prelude::{Tensor as Strided, *};

use super::{THREADS, cube_number, cube_sum, cubes, element, empty_like, primitive, row_of, tensor, whole};
use crate::kernels::params::Modulation;

/// One cube a row.
#[cube(launch)]
#[allow(clippy::too_many_arguments)]
fn add_and_norm<X: Float, Y: Float, M: Float, G: Float>(
    x: &[X],
    y: &[Y],
    gate: &Strided<M>,
    gain: &[G],
    scale: &Strided<M>,
    shift: &Strided<M>,
    sum: &mut [X],
    normed: &mut [G],
    rows: usize,
    width: usize,
    length: usize,
    epsilon: f32,
    #[comptime] modulates: bool,
    #[comptime] threads: usize,
    #[define(X, Y, M, G)] _types: [ElemType; 4],
) {
    let row = cube_number();
    if row >= rows {
        terminate!();
    }
    let (unit, start) = (UNIT_POS as usize, row * width);
    let (batch, token) = (row / length, row % length);
    let mut of_gate = 0usize;
    let mut of_scale = 0usize;
    let mut of_shift = 0usize;
    if modulates {
        of_gate = row_of(gate, batch, token);
        of_scale = row_of(scale, batch, token);
        of_shift = row_of(shift, batch, token);
    }
    let mut squares = 0.0f32;
    for channel in range_stepped(unit, width, threads) {
        let mut value = f32::cast_from(y[start + channel]);
        if modulates {
            value *= f32::cast_from(gate[of_gate + channel * gate.stride(2)]);
        }
        value += f32::cast_from(x[start + channel]);
        sum[start + channel] = X::cast_from(value);
        squares += value * value;
    }
    let factor = 1.0f32 / (cube_sum(squares, threads) / width as f32 + epsilon).sqrt();
    for channel in range_stepped(unit, width, threads) {
        let mut value = f32::cast_from(sum[start + channel]) * factor * f32::cast_from(gain[channel]);
        if modulates {
            let scale = f32::cast_from(scale[of_scale + channel * scale.stride(2)]);
            let shift = f32::cast_from(shift[of_shift + channel * shift.stride(2)]);
            value = value * (scale + 1.0f32) + shift;
        }
        normed[start + channel] = G::cast_from(value);
    }
}

/// See [`crate::kernels::add_norm`]: the sum in the type of x, its norm in the type of the gain.
#[allow(clippy::result_large_err, reason = "operands, not errors")]
pub(crate) fn add_norm(
    x: Tensor<3>,
    y: Tensor<3>,
    gain: &Tensor<1>,
    epsilon: f64,
    modulation: Option<(&Tensor<3>, &Modulation)>,
) -> Result<(Tensor<3>, Tensor<3>), (Tensor<3>, Tensor<3>)> {
    sum_and_norm(&x, &y, gain, epsilon, modulation).ok_or((x, y))
}

fn sum_and_norm(
    x: &Tensor<3>,
    y: &Tensor<3>,
    gain: &Tensor<1>,
    epsilon: f64,
    modulation: Option<(&Tensor<3>, &Modulation)>,
) -> Option<(Tensor<3>, Tensor<3>)> {
    let [batch, length, width] = x.dims();
    if x.dims() != y.dims() || batch * length * width == 0 {
        return None;
    }
    let (x, y, gain) = (whole(x)?, whole(y)?, whole(gain)?);
    // What there is none of is never read; something must be bound in its place.
    let [gate, scale, shift] = match modulation {
        Some((gate, Modulation { scale, shift })) => [primitive(gate)?, primitive(scale)?, primitive(shift)?],
        None => [(); 3].map(|()| empty_like(&x, [1, 1, 1], DType::F32)),
    };
    if gate.dtype != scale.dtype || gate.dtype != shift.dtype {
        return None;
    }
    let (sum, normed) = (empty_like(&x, [batch, length, width], x.dtype), empty_like(&x, [batch, length, width], gain.dtype));
    let types = [x.dtype, y.dtype, gate.dtype, gain.dtype].map(element);
    add_and_norm::launch(
        &x.client.clone(),
        cubes(batch * length),
        CubeDim::new_1d(THREADS),
        x.into_buffer_arg(),
        y.into_buffer_arg(),
        gate.into_tensor_arg(),
        gain.into_buffer_arg(),
        scale.into_tensor_arg(),
        shift.into_tensor_arg(),
        sum.clone().into_buffer_arg(),
        normed.clone().into_buffer_arg(),
        batch * length,
        width,
        length,
        epsilon as f32,
        modulation.is_some(),
        THREADS as usize,
        types,
    );
    Some((tensor(sum), tensor(normed)))
}
