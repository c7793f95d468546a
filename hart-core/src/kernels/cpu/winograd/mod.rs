//! Convolutions without gradients: 3x3 by Winograd's algorithm and 1x1 as a matrix product, fused with the group norm and SiLU or the
//! upsampling before them and the residual addition after them.
//!
//! Maps are channels-last, `[B, h, w, C]`, so that vectors hold channels; the tensors are views of them permuted to `[B, C, h, w]`.
//! Fused operations are computed while a map is read or written, so no intermediate map exists.

mod band;
mod bf16_gemm;
mod conv3x3;
mod element;
mod gemm;
mod group_norm;
mod pointwise;
mod transforms;
mod weights;

use burn::backend::Flex;
use burn::backend::TensorMetadata;
use burn::backend::flex::FlexTensor;
use burn::prelude::*;
use burn::tensor::DType;
use half::bf16;

use super::simd::SimdLevel;
use super::tensor::flex_tensor;
use crate::kernels::params::{ConvParams, GroupNormParams};
use band::{Input, InputOp};
use bf16_gemm::Pair;
use group_norm::{GroupNormArgs, Normalization};
use weights::{Filters, Weights};

/// Side of an output tile.
const TILE: usize = 4;
/// Side of an input tile: an output tile and the pixels that the filter reaches. Also the interpolation points of a row.
const PATCH: usize = TILE + 2;
/// Interpolation points of a tile.
const POINTS: usize = PATCH * PATCH;
/// Channels are padded to a multiple of this, the lanes of the widest vector.
const ALIGN: usize = 16;
/// Output channels of one matrix product.
const CHUNK: usize = 5 * ALIGN;

/// The operation between a map and the convolution that reads it.
#[derive(Clone, Copy, Debug)]
enum Prologue<'a> {
    None,
    /// Nearest-neighbour upsampling by two.
    Upsample,
    /// Group norm, then SiLU.
    NormSilu(&'a GroupNormParams),
}

/// See [`crate::kernels::conv2d`].
pub(crate) fn conv2d(x: Tensor<4>, params: &ConvParams) -> Result<Tensor<4>, Tensor<4>> {
    convolve(x, Prologue::None, params, None).map_err(|(x, _)| x)
}

/// See [`crate::kernels::upsample_conv2d`].
pub(crate) fn upsample_conv2d(x: Tensor<4>, params: &ConvParams) -> Result<Tensor<4>, Tensor<4>> {
    convolve(x, Prologue::Upsample, params, None).map_err(|(x, _)| x)
}

/// See [`crate::kernels::norm_silu_conv2d`].
pub(crate) fn norm_silu_conv2d(
    x: Tensor<4>,
    norm: &GroupNormParams,
    params: &ConvParams,
    residual: Option<Tensor<4>>,
) -> Result<Tensor<4>, Operands> {
    convolve(x, Prologue::NormSilu(norm), params, residual)
}

/// The map, and the residual that is added.
type Operands = (Tensor<4>, Option<Tensor<4>>);

/// Convolves a map after its prologue and adds the residual, in the residual's memory if that is not shared.
fn convolve(x: Tensor<4>, prologue: Prologue<'_>, params: &ConvParams, residual: Option<Tensor<4>>) -> Result<Tensor<4>, Operands> {
    if !applies(&x, prologue, params, residual.as_ref()) {
        return Err((x, residual));
    }
    let [batch, in_channels, height, width] = x.dims();
    let (weights, bias) = (primitive(params.weight.clone()), params.bias.clone().map(primitive));
    let out_channels = weights.shape()[0];
    let bias = bias.as_ref().map_or(&[][..], slice);
    let (level, image) = (SimdLevel::best(), height * width * in_channels);
    let x = channels_last(x);
    if params.kernel() == [1, 1] {
        return Ok(channels_first_tensor(
            pointwise::convolve(level, slice(&x), slice(&weights), bias),
            [batch, height, width, out_channels],
        ));
    }
    let weights = match weights.as_slice::<bf16>() {
        Some(weights) => Weights::Bf16(weights),
        None => Weights::F32(slice(&weights)),
    };
    let factor = if matches!(prologue, Prologue::Upsample) { 2 } else { 1 };
    let shape = [batch, height * factor, width * factor, out_channels];
    let add = residual.is_some();
    let mut y = residual.map_or_else(|| flex_tensor(vec![0.0; shape.iter().product()], shape.into()), owned);
    let filters = Filters { weights, bias, in_channels, out_channels };
    let values = y.try_storage_mut::<f32>().expect("the storage is not shared");
    for (map, y) in slice(&x).chunks(image).zip(values.chunks_mut(image / in_channels * factor * factor * out_channels)) {
        let mut convolve = |op| {
            let x = Input { map, height, width, channels: in_channels, op };
            match weights {
                Weights::Bf16(_) if bf16_gemm::available() => conv3x3::convolve::<Pair>(level, &x, &filters, y, add),
                _ => conv3x3::convolve::<f32>(level, &x, &filters, y, add),
            }
        };
        match prologue {
            Prologue::None => convolve(InputOp::Identity),
            Prologue::Upsample => convolve(InputOp::Upsample),
            Prologue::NormSilu(norm) => convolve(InputOp::NormSilu(&normalization(norm, level, map))),
        }
    }
    Ok(channels_first(y))
}

fn applies(x: &Tensor<4>, prologue: Prologue<'_>, params: &ConvParams, residual: Option<&Tensor<4>>) -> bool {
    let Some(bias) = &params.bias else { return false };
    let [out_channels, in_channels, _, _] = params.weight.dims();
    let [batch, channels, height, width] = x.dims();
    let kernel = match (params.kernel(), params.padding) {
        ([3, 3], [[1, 1], [1, 1]]) => true,
        ([1, 1], [[0, 0], [0, 0]]) => matches!(prologue, Prologue::None) && residual.is_none(),
        _ => false,
    };
    let norm = match prologue {
        Prologue::NormSilu(norm) => norm.gain.dims() == [channels] && is_cpu_f32(&norm.gain) && is_cpu_f32(&norm.bias),
        _ => true,
    };
    let sum = residual.is_none_or(|residual| {
        residual.dims() == [batch, out_channels, height, width] && !matches!(prologue, Prologue::Upsample) && is_cpu_f32(residual)
    });
    let weight = &params.weight;
    let weights = is_cpu_f32(weight) || params.kernel() == [3, 3] && weight.dtype() == DType::BF16 && on_cpu(weight);
    let fits = params.is_plain() && in_channels == channels && x.shape().num_elements() > 0 && out_channels > 0;
    fits && kernel && norm && sum && weights && is_cpu_f32(x) && is_cpu_f32(bias)
}

/// Returns whether a tensor is f32, on the CPU and not tracked by autodiff.
fn is_cpu_f32<const D: usize>(x: &Tensor<D>) -> bool {
    x.dtype() == DType::F32 && on_cpu(x)
}

fn on_cpu<const D: usize>(x: &Tensor<D>) -> bool {
    let device = x.device();
    device == Device::flex() && !device.is_autodiff()
}

fn primitive<const D: usize>(x: Tensor<D>) -> FlexTensor {
    x.try_into_primitive::<Flex>().expect("on the CPU backend, as `applies` checks").to_contiguous()
}

/// Returns the values of a tensor in row-major order.
fn slice(x: &FlexTensor) -> &[f32] {
    x.as_slice().expect("contiguous, and f32 as `applies` checks")
}

/// Returns `[B, C, h, w]` as contiguous `[B, h, w, C]`, without a copy if it is a view of such a map.
fn channels_last(x: Tensor<4>) -> FlexTensor {
    primitive(x.permute([0, 2, 3, 1]))
}

/// Returns a channels-last map as a tensor `[B, C, h, w]`.
fn channels_first(map: FlexTensor) -> Tensor<4> {
    Tensor::<4>::from_primitive::<Flex>(map).permute([0, 3, 1, 2])
}

/// Returns channels-last values as a tensor `[B, C, h, w]`.
fn channels_first_tensor(values: Vec<f32>, shape: [usize; 4]) -> Tensor<4> {
    channels_first(flex_tensor(values, shape.into()))
}

/// Returns a channels-last map whose storage is not shared.
fn owned(x: Tensor<4>) -> FlexTensor {
    let mut map = channels_last(x);
    let shape = map.shape();
    match map.try_storage_mut::<f32>() {
        // The tensor is not a view of a larger one.
        Some(values) if values.len() == shape.num_elements() => map,
        _ => flex_tensor(slice(&map).to_vec(), shape),
    }
}

fn normalization(norm: &GroupNormParams, level: SimdLevel, map: &[f32]) -> Normalization {
    let (scale, shift) = (primitive(norm.gain.clone()), primitive(norm.bias.clone()));
    let (scale, shift) = (slice(&scale), slice(&shift));
    GroupNormArgs { scale, shift, groups: norm.groups, epsilon: norm.epsilon }.normalization(level, map)
}

#[cfg(test)]
mod tests;
