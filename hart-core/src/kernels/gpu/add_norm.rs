//! The residual sum fused with the RMSNorm and the modulation that follow it.

use burn::prelude::Tensor;
use burn::tensor::DType;
use cubecl::prelude::{Tensor as Strided, *};

use super::{THREADS, broadcast_offset, contiguous, cube_count, cube_index, cube_sum, element, empty_like, primitive, tensor};
use crate::kernels::params::Modulation;

/// Computes `sum = x + gate * y` and `normed = modulate(rms_norm(sum))`. One cube computes one row, and its threads every `threads`th
/// channel of it.
#[cube(launch)]
#[allow(clippy::too_many_arguments)]
fn add_norm_kernel<X: Float, Y: Float, M: Float, G: Float>(
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
    tokens: usize,
    epsilon: f32,
    #[comptime] modulate: bool,
    #[comptime] threads: usize,
    #[define(X, Y, M, G)] _types: [ElemType; 4],
) {
    let row = cube_index();
    if row >= rows {
        terminate!();
    }
    let (unit, start) = (UNIT_POS as usize, row * width);
    let (batch, token) = (row / tokens, row % tokens);
    let mut gate_start = 0usize;
    let mut scale_start = 0usize;
    let mut shift_start = 0usize;
    if modulate {
        gate_start = broadcast_offset(gate, batch, token);
        scale_start = broadcast_offset(scale, batch, token);
        shift_start = broadcast_offset(shift, batch, token);
    }
    let mut squares = 0.0f32;
    for channel in range_stepped(unit, width, threads) {
        let mut value = f32::cast_from(y[start + channel]);
        if modulate {
            value *= f32::cast_from(gate[gate_start + channel * gate.stride(2)]);
        }
        value += f32::cast_from(x[start + channel]);
        sum[start + channel] = X::cast_from(value);
        squares += value * value;
    }
    let inverse_rms = 1.0f32 / (cube_sum(squares, threads) / width as f32 + epsilon).sqrt();
    for channel in range_stepped(unit, width, threads) {
        let mut value = f32::cast_from(sum[start + channel]) * inverse_rms * f32::cast_from(gain[channel]);
        if modulate {
            let scale = f32::cast_from(scale[scale_start + channel * scale.stride(2)]);
            let shift = f32::cast_from(shift[shift_start + channel * shift.stride(2)]);
            value = value * (scale + 1.0f32) + shift;
        }
        normed[start + channel] = G::cast_from(value);
    }
}

/// See [`crate::kernels::add_norm`]. The sum has the type of `x`, the norm that of the gain.
pub(crate) fn add_norm(
    x: Tensor<3>,
    y: Tensor<3>,
    gain: &Tensor<1>,
    epsilon: f64,
    modulation: Option<(&Tensor<3>, &Modulation)>,
) -> Result<(Tensor<3>, Tensor<3>), (Tensor<3>, Tensor<3>)> {
    launch_add_norm(&x, &y, gain, epsilon, modulation).ok_or((x, y))
}

fn launch_add_norm(
    x: &Tensor<3>,
    y: &Tensor<3>,
    gain: &Tensor<1>,
    epsilon: f64,
    modulation: Option<(&Tensor<3>, &Modulation)>,
) -> Option<(Tensor<3>, Tensor<3>)> {
    let [batch, tokens, width] = x.dims();
    if x.dims() != y.dims() || batch * tokens * width == 0 {
        return None;
    }
    let (x, y, gain) = (contiguous(x)?, contiguous(y)?, contiguous(gain)?);
    // A kernel without modulation still binds buffers, which it does not read.
    let [gate, scale, shift] = match modulation {
        Some((gate, Modulation { scale, shift })) => [primitive(gate)?, primitive(scale)?, primitive(shift)?],
        None => [(); 3].map(|()| empty_like(&x, [1, 1, 1], DType::F32)),
    };
    if gate.dtype != scale.dtype || gate.dtype != shift.dtype {
        return None;
    }
    let (sum, normed) = (empty_like(&x, [batch, tokens, width], x.dtype), empty_like(&x, [batch, tokens, width], gain.dtype));
    let types = [x.dtype, y.dtype, gate.dtype, gain.dtype].map(element);
    add_norm_kernel::launch(
        &x.client.clone(),
        cube_count(batch * tokens),
        CubeDim::new_1d(THREADS),
        x.into_buffer_arg(),
        y.into_buffer_arg(),
        gate.into_tensor_arg(),
        gain.into_buffer_arg(),
        scale.into_tensor_arg(),
        shift.into_tensor_arg(),
        sum.clone().into_buffer_arg(),
        normed.clone().into_buffer_arg(),
        batch * tokens,
        width,
        tokens,
        epsilon as f32,
        modulation.is_some(),
        THREADS as usize,
        types,
    );
    Some((tensor(sum), tensor(normed)))
}
