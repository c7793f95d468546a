//! Norms of rows, with gain, bias and modulation in one pass.

use burn::nn::{LayerNorm, RmsNorm};
use burn::prelude::Tensor;
use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::{Tensor as Strided, *};

use super::super::Modulation;
use super::{THREADS, cube_number, cube_sum, cubes, element, empty_like, primitive, tensor, whole};

/// What a norm does besides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Does {
    subtracts_mean: bool,
    gain: bool,
    bias: bool,
    modulates: bool,
}

/// One cube a row: the sums of its values and squares, then the values.
#[cube(launch)]
#[allow(clippy::too_many_arguments)]
fn norm<X: Float, M: Float, G: Float>(
    x: &[X],
    gain: &[G],
    bias: &[G],
    scale: &Strided<M>,
    shift: &Strided<M>,
    y: &mut [G],
    rows: usize,
    width: usize,
    length: usize,
    epsilon: f32,
    #[comptime] does: Does,
    #[comptime] threads: usize,
    #[define(X, M, G)] _types: [ElemType; 3],
) {
    let row = cube_number();
    if row >= rows {
        terminate!();
    }
    let unit = UNIT_POS as usize;
    let start = row * width;
    let mut mean = 0.0f32;
    if comptime!(does.subtracts_mean) {
        let mut sum = 0.0f32;
        for channel in range_stepped(unit, width, threads) {
            sum += f32::cast_from(x[start + channel]);
        }
        mean = cube_sum(sum, threads) / width as f32;
    }
    let mut squares = 0.0f32;
    for channel in range_stepped(unit, width, threads) {
        let value = f32::cast_from(x[start + channel]) - mean;
        squares += value * value;
    }
    let factor = 1.0f32 / (cube_sum(squares, threads) / width as f32 + epsilon).sqrt();
    let (batch, token) = (row / length, row % length);
    let mut at_scale = 0usize;
    let mut at_shift = 0usize;
    if comptime!(does.modulates) {
        at_scale = batch % scale.shape(0) * scale.stride(0) + token % scale.shape(1) * scale.stride(1);
        at_shift = batch % shift.shape(0) * shift.stride(0) + token % shift.shape(1) * shift.stride(1);
    }
    for channel in range_stepped(unit, width, threads) {
        let mut value = (f32::cast_from(x[start + channel]) - mean) * factor;
        if comptime!(does.gain) {
            value *= f32::cast_from(gain[channel]);
        }
        if comptime!(does.bias) {
            value += f32::cast_from(bias[channel]);
        }
        if comptime!(does.modulates) {
            let scale = f32::cast_from(scale[at_scale + channel * scale.stride(2)]);
            let shift = f32::cast_from(shift[at_shift + channel * shift.stride(2)]);
            value = value * (scale + 1.0f32) + shift;
        }
        y[start + channel] = G::cast_from(value);
    }
}

struct Norm<'a> {
    subtracts_mean: bool,
    epsilon: f64,
    gain: Option<Tensor<1>>,
    bias: Option<Tensor<1>>,
    modulation: Option<&'a Modulation>,
}

/// What a norm gives has the type of its gain: half precision in a model whose layers read that, else f32.
fn apply(x: &Tensor<3>, wanted: Norm<'_>) -> Option<Tensor<3>> {
    let [batch, length, width] = x.dims();
    let x = whole(x)?;
    let vector = |vector: &Option<Tensor<1>>| match vector {
        Some(vector) => whole(vector).map(Some),
        None => Some(None),
    };
    let (gain, bias) = (vector(&wanted.gain)?, vector(&wanted.bias)?);
    let to = gain.as_ref().map_or(DType::F32, |gain| gain.dtype);
    if bias.as_ref().is_some_and(|bias| bias.dtype != to) {
        return None;
    }
    let modulation = match wanted.modulation {
        Some(Modulation { scale, shift }) => Some((primitive(scale)?, primitive(shift)?)),
        None => None,
    };
    if modulation.as_ref().is_some_and(|(scale, shift)| scale.dtype != shift.dtype) {
        return None;
    }
    let does =
        Does { subtracts_mean: wanted.subtracts_mean, gain: gain.is_some(), bias: bias.is_some(), modulates: modulation.is_some() };
    let rows = batch * length;
    let y = empty_like(&x, [batch, length, width], to);
    if rows == 0 {
        return Some(tensor(y));
    }
    // What there is none of is never read; something must be bound in its place.
    let nothing: CubeTensor = gain.clone().or_else(|| bias.clone()).unwrap_or_else(|| empty_like(&x, [1], to));
    let unread = || (empty_like(&x, [1, 1, 1], DType::F32), empty_like(&x, [1, 1, 1], DType::F32));
    let (scale, shift) = modulation.unwrap_or_else(unread);
    let types = [element(x.dtype), element(scale.dtype), element(to)];
    norm::launch(
        &x.client.clone(),
        cubes(rows),
        CubeDim::new_1d(THREADS),
        x.into_buffer_arg(),
        gain.unwrap_or_else(|| nothing.clone()).into_buffer_arg(),
        bias.unwrap_or(nothing).into_buffer_arg(),
        scale.into_tensor_arg(),
        shift.into_tensor_arg(),
        y.clone().into_buffer_arg(),
        rows,
        width,
        length,
        wanted.epsilon as f32,
        does,
        THREADS as usize,
        types,
    );
    Some(tensor(y))
}

/// Root-mean-square norm and modulation.
pub(in super::super) fn rms_norm(x: &Tensor<3>, norm: &RmsNorm, modulation: Option<&Modulation>) -> Option<Tensor<3>> {
    let gain = Some(norm.gamma.val());
    apply(x, Norm { subtracts_mean: false, epsilon: norm.epsilon, gain, bias: None, modulation })
}

/// Layer norm and modulation.
pub(in super::super) fn layer_norm(
    x: &Tensor<3>,
    norm: Option<&LayerNorm>,
    epsilon: f64,
    modulation: Option<&Modulation>,
) -> Option<Tensor<3>> {
    let gain = norm.map(|norm| norm.gamma.val());
    let bias = norm.and_then(|norm| Some(norm.beta.as_ref()?.val()));
    apply(x, Norm { subtracts_mean: true, epsilon, gain, bias, modulation })
}
