//! Convolutions without gradients: 3x3 by Winograd's algorithm and 1x1 as a matrix product, fused with the group norm and SiLU or the
//! upsampling before them and the residual addition after them.
//!
//! Maps are channels-last, `[B, h, w, C]`, so that vectors hold channels; the tensors are views of them permuted to `[B, C, h, w]`.
//! Fused operations are computed while a map is read or written, so no intermediate map exists. Maps are f32 or bf16.

mod band;
mod bf16_gemm;
mod compact;
mod conv3x3;
mod element;
mod gemm;
mod group_norm;
mod pointwise;
mod transforms;
mod value;
mod weights;

use burn::backend::Flex;
use burn::backend::TensorMetadata;
use burn::backend::flex::FlexTensor;
use burn::prelude::*;
use burn::tensor::DType;
use half::bf16;

use super::simd::SimdLevel;
use crate::kernels::params::{ConvParams, GroupNormParams};
use band::{Input, InputOp};
use bf16_gemm::Pair;
use group_norm::GroupNormArgs;
use value::{Value, round_all};
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

/// See [`crate::kernels::compact_upsample_conv2d`].
pub(crate) fn compact_upsample_conv2d(x: Tensor<4>, params: &ConvParams) -> Result<Tensor<4>, Tensor<4>> {
    let [out_channels, in_channels, _, _] = params.weight.dims();
    if !applies(&x, Prologue::Upsample, params, None) || in_channels > 4 * out_channels {
        return Err(x);
    }
    Ok(match params.weight.dtype() {
        DType::BF16 => upsample_in_place::<bf16>(x, params),
        _ => upsample_in_place::<f32>(x, params),
    })
}

fn upsample_in_place<T: Value>(x: Tensor<4>, params: &ConvParams) -> Tensor<4> {
    let layer = Layer::new(params);
    let filters = layer.filters();
    let ([batch, _, height, width], level) = (x.dims(), SimdLevel::best());
    let shape = [batch, 2 * height, 2 * width, filters.out_channels];
    let mut y = T::zeros(shape.iter().product());
    let x = channels_last(x);
    let tail = y.len() - x.shape().num_elements();
    match x.as_slice::<bf16>() {
        Some(x) => round_all(level, x, &mut y[tail..], false),
        None => round_all(level, slice::<f32>(&x), &mut y[tail..], false),
    }
    drop(x);
    if filters.as_pairs() {
        compact::upsample::<Pair, T>(level, &mut y, [height, width], &filters);
    } else {
        compact::upsample::<f32, T>(level, &mut y, [height, width], &filters);
    }
    channels_first(T::into_tensor(y, shape.into()))
}

/// See [`crate::kernels::compact_res_block`].
pub(crate) fn compact_res_block(
    x: Tensor<4>,
    residual: Option<Tensor<4>>,
    norms: [&GroupNormParams; 2],
    convs: [&ConvParams; 2],
) -> Result<Tensor<4>, Operands> {
    let [in_channels, hidden] = convs.map(|conv| conv.weight.dims()[1]);
    let y = residual.as_ref().unwrap_or(&x);
    let [batch, out_channels, height, width] = y.dims();
    let applies = applies(&x, Prologue::NormSilu(norms[0]), convs[0], None)
        && is_plain_conv3x3(convs[1])
        && norm_applies(norms[1], hidden)
        && convs[0].weight.dims()[0] == hidden
        && convs[1].weight.dims()[0] == out_channels
        && convs[0].weight.dtype() == convs[1].weight.dtype()
        && x.dims() == [batch, in_channels, height, width]
        && y.dtype() == x.dtype()
        && is_cpu_map(y);
    match x.dtype() {
        _ if !applies => Err((x, residual)),
        DType::BF16 => Ok(res_block::<bf16>(x, residual, norms, convs)),
        _ => Ok(res_block::<f32>(x, residual, norms, convs)),
    }
}

fn res_block<T: Value>(
    x: Tensor<4>,
    residual: Option<Tensor<4>>,
    norms: [&GroupNormParams; 2],
    convs: [&ConvParams; 2],
) -> Tensor<4> {
    let [_, channels, height, width] = x.dims();
    let (layers, norms) = (convs.map(Layer::new), norms.map(Norm::new));
    let filters = [layers[0].filters(), layers[1].filters()];
    let (x, y) = match residual {
        Some(residual) => (Some(channels_last(x)), residual),
        None => (None, x),
    };
    let mut y = owned::<T>(y);
    let (pixels, level) = (height * width, SimdLevel::best());
    let block = compact::Block { norms: [norms[0].args(), norms[1].args()], filters, size: [height, width] };
    let values = y.try_storage_mut::<T>().expect("the storage is not shared");
    for (index, y) in values.chunks_mut(pixels * filters[1].out_channels).enumerate() {
        let x = x.as_ref().map(|x| &slice::<T>(x)[index * pixels * channels..][..pixels * channels]);
        if filters[0].as_pairs() {
            block.run::<Pair, T>(level, x, y);
        } else {
            block.run::<f32, T>(level, x, y);
        }
    }
    channels_first(y)
}

/// Convolves a map after its prologue and adds the residual, in the residual's memory if that is not shared.
fn convolve(x: Tensor<4>, prologue: Prologue<'_>, params: &ConvParams, residual: Option<Tensor<4>>) -> Result<Tensor<4>, Operands> {
    if !applies(&x, prologue, params, residual.as_ref()) {
        return Err((x, residual));
    }
    Ok(match (x.dtype(), output_type(&x, params)) {
        (DType::BF16, DType::BF16) => convolve_as::<bf16, bf16>(x, prologue, params, residual),
        (DType::BF16, _) => convolve_as::<bf16, f32>(x, prologue, params, residual),
        _ => convolve_as::<f32, f32>(x, prologue, params, residual),
    })
}

/// Like [`convolve`], from values of type X to Y.
fn convolve_as<X: Value, Y: Value>(
    x: Tensor<4>,
    prologue: Prologue<'_>,
    params: &ConvParams,
    residual: Option<Tensor<4>>,
) -> Tensor<4> {
    let [batch, in_channels, height, width] = x.dims();
    let (layer, level, image) = (Layer::new(params), SimdLevel::best(), height * width * in_channels);
    let x = channels_last(x);
    if params.kernel() == [1, 1] {
        let y = pointwise::convolve::<X>(level, slice(&x), slice(&layer.weights), layer.bias());
        return channels_first(X::into_tensor(y, [batch, height, width, layer.bias().len()].into()));
    }
    let filters = layer.filters();
    let factor = if matches!(prologue, Prologue::Upsample) { 2 } else { 1 };
    let shape = [batch, height * factor, width * factor, filters.out_channels];
    let add = residual.is_some();
    let mut y = residual.map_or_else(|| Y::into_tensor(Y::zeros(shape.iter().product()), shape.into()), owned::<Y>);
    let values = y.try_storage_mut::<Y>().expect("the storage is not shared");
    for (map, y) in slice::<X>(&x).chunks(image).zip(values.chunks_mut(shape[1..].iter().product())) {
        let mut convolve = |op| {
            let x = Input { map, height, width, channels: in_channels, op };
            if filters.as_pairs() {
                conv3x3::convolve::<Pair, X, Y>(level, &x, &filters, y, add);
            } else {
                conv3x3::convolve::<f32, X, Y>(level, &x, &filters, y, add);
            }
        };
        match prologue {
            Prologue::None => convolve(InputOp::Identity),
            Prologue::Upsample => convolve(InputOp::Upsample),
            Prologue::NormSilu(norm) => convolve(InputOp::NormSilu(&Norm::new(norm).args().normalization(level, map))),
        }
    }
    channels_first(y)
}

/// The tensors of a convolution, contiguous.
struct Layer {
    weights: FlexTensor,
    bias: Option<FlexTensor>,
    in_channels: usize,
    out_channels: usize,
}

impl Layer {
    fn new(params: &ConvParams) -> Self {
        let [out_channels, in_channels, _, _] = params.weight.dims();
        Self { weights: primitive(params.weight.clone()), bias: params.bias.clone().map(primitive), in_channels, out_channels }
    }

    fn bias(&self) -> &[f32] {
        self.bias.as_ref().map_or(&[], slice)
    }

    /// Returns the filters of a 3x3 convolution.
    fn filters(&self) -> Filters<'_> {
        let weights = match self.weights.as_slice::<bf16>() {
            Some(weights) => Weights::Bf16(weights),
            None => Weights::F32(slice(&self.weights)),
        };
        Filters { weights, bias: self.bias(), in_channels: self.in_channels, out_channels: self.out_channels }
    }
}

/// The tensors of a group norm, contiguous.
struct Norm {
    scale: FlexTensor,
    shift: FlexTensor,
    groups: usize,
    epsilon: f64,
}

impl Norm {
    fn new(params: &GroupNormParams) -> Self {
        let (scale, shift) = (primitive(params.gain.clone()), primitive(params.bias.clone()));
        Self { scale, shift, groups: params.groups, epsilon: params.epsilon }
    }

    fn args(&self) -> GroupNormArgs<'_> {
        GroupNormArgs { scale: slice(&self.scale), shift: slice(&self.shift), groups: self.groups, epsilon: self.epsilon }
    }
}

/// Returns the type of a convolution's output: bf16 if its map is, unless a 3x3 kernel is in f32.
fn output_type(x: &Tensor<4>, params: &ConvParams) -> DType {
    if params.kernel() == [1, 1] || params.weight.dtype() == DType::BF16 { x.dtype() } else { DType::F32 }
}

fn applies(x: &Tensor<4>, prologue: Prologue<'_>, params: &ConvParams, residual: Option<&Tensor<4>>) -> bool {
    let [out_channels, in_channels, _, _] = params.weight.dims();
    let [batch, channels, height, width] = x.dims();
    let is_point = matches!(prologue, Prologue::None) && residual.is_none() && is_plain_conv1x1(params);
    let norm = match prologue {
        Prologue::NormSilu(norm) => norm_applies(norm, channels),
        _ => true,
    };
    let sum = residual.is_none_or(|residual| {
        residual.dims() == [batch, out_channels, height, width]
            && !matches!(prologue, Prologue::Upsample)
            && is_cpu_map(residual)
            && residual.dtype() == output_type(x, params)
    });
    let fits = in_channels == channels && x.shape().num_elements() > 0;
    fits && (is_point || is_plain_conv3x3(params)) && norm && sum && is_cpu_map(x)
}

/// Returns whether a convolution has a 3x3 kernel in f32 or bf16, keeps the map's sides and has a bias.
fn is_plain_conv3x3(params: &ConvParams) -> bool {
    let shape = params.kernel() == [3, 3] && params.padding == [[1, 1], [1, 1]];
    shape && is_plain(params) && is_cpu_map(&params.weight)
}

/// Returns whether a convolution has a 1x1 kernel in f32 and a bias.
fn is_plain_conv1x1(params: &ConvParams) -> bool {
    let shape = params.kernel() == [1, 1] && params.padding == [[0, 0], [0, 0]];
    shape && is_plain(params) && is_cpu_f32(&params.weight)
}

fn is_plain(params: &ConvParams) -> bool {
    params.is_plain() && params.weight.dims()[0] > 0 && params.bias.as_ref().is_some_and(is_cpu_f32)
}

fn norm_applies(norm: &GroupNormParams, channels: usize) -> bool {
    norm.gain.dims() == [channels] && is_cpu_f32(&norm.gain) && is_cpu_f32(&norm.bias)
}

/// Returns whether a tensor is f32 or bf16, on the CPU and not tracked by autodiff.
fn is_cpu_map(x: &Tensor<4>) -> bool {
    matches!(x.dtype(), DType::F32 | DType::BF16) && on_cpu(x)
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
fn slice<T: Value>(x: &FlexTensor) -> &[T] {
    x.as_slice().expect("contiguous, and of the type that `applies` checks")
}

/// Returns `[B, C, h, w]` as contiguous `[B, h, w, C]`, without a copy if it is a view of such a map.
fn channels_last(x: Tensor<4>) -> FlexTensor {
    primitive(x.permute([0, 2, 3, 1]))
}

/// Returns a channels-last map as a tensor `[B, C, h, w]`.
fn channels_first(map: FlexTensor) -> Tensor<4> {
    Tensor::<4>::from_primitive::<Flex>(map).permute([0, 3, 1, 2])
}

/// Returns a channels-last map whose storage is not shared.
fn owned<T: Value>(x: Tensor<4>) -> FlexTensor {
    let mut map = channels_last(x);
    let shape = map.shape();
    match map.try_storage_mut::<T>() {
        // The tensor is not a view of a larger one.
        Some(values) if values.len() == shape.num_elements() => map,
        _ => T::into_tensor(slice::<T>(&map).to_vec(), shape),
    }
}

#[cfg(test)]
mod tests;
