//! Feature maps on burn's CPU backend without gradients: convolutions, with the group norm and SiLU or the doubling before them, and
//! the addition behind.
//!
//! Maps lie channels last, `[B, h, w, C]`, so that all channels of a place are computed side by side, and come as tensors turned to
//! `[B, C, h, w]`. What is between two maps is computed as one is read or the other is written, and never kept.

mod bf16_gemm;
mod element;
mod gemm;
mod group_norm;
mod patches;
mod pointwise;
mod transforms;
mod weights;
mod winograd;

use burn::backend::Flex;
use burn::backend::TensorMetadata;
use burn::backend::flex::FlexTensor;
use burn::module::Param;
use burn::nn::conv::Conv2d;
use burn::nn::{GroupNorm, PaddingConfig2d};
use burn::prelude::*;
use burn::tensor::DType;
use half::bf16;

use super::simd::Level;
use super::tensor::of_values;
use element::Pair;
use group_norm::{Norm, Normed};
use patches::{Input, Source};
use weights::{Kernels, Weights};

/// Side of a tile: places that are computed together.
const TILE: usize = 4;
/// Side of a patch: places that a tile depends on. Also the points of a row.
const PATCH: usize = TILE + 2;
/// Points of a patch.
const POINTS: usize = PATCH * PATCH;
/// Channels are laid out in multiples of this, which all vectors divide.
const STEP: usize = 16;
/// Output channels that are computed together.
const CHUNK: usize = 5 * STEP;

/// Where tasks write, each in its own places.
struct Out<N>(*mut N);

// SAFETY: tasks write to places of their own.
unsafe impl<N: Send> Sync for Out<N> {}

/// What stands between a map and the convolution that reads it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Before<'a> {
    /// Nothing.
    Nothing,
    /// Every place four times: sides are doubled.
    Doubling,
    /// Group norm, then SiLU.
    Norm(&'a GroupNorm),
}

/// What comes back where [`conv2d`] doesn't apply: the map, and what was to be added.
type Back = (Tensor<4>, Option<Tensor<4>>);

/// Convolution by a layer that keeps a map's sides, with what stands before it, and `plus` added: in `plus`'s place if nobody else
/// holds it.
#[allow(clippy::result_large_err)] // What comes back are tensors, not an error.
pub(crate) fn conv2d(x: Tensor<4>, before: Before<'_>, layer: &Conv2d, plus: Option<Tensor<4>>) -> Result<Tensor<4>, Back> {
    if !applies(&x, before, layer, plus.as_ref()) {
        return Err((x, plus));
    }
    let [batch, from, height, width] = x.dims();
    let (weights, bias) = (parameter(&layer.weight), layer.bias.as_ref().map(parameter));
    let to = weights.shape()[0];
    let bias = bias.as_ref().map_or(&[][..], slice);
    let (level, image) = (Level::best(), height * width * from);
    let x = channels_last(x);
    if layer.kernel_size == [1, 1] {
        return Ok(channels_second(pointwise::convolve(level, slice(&x), slice(&weights), bias), [batch, height, width, to]));
    }
    let weights = match weights.as_slice::<bf16>() {
        Some(weights) => Weights::Bf16(weights),
        None => Weights::F32(slice(&weights)),
    };
    let factor = if matches!(before, Before::Doubling) { 2 } else { 1 };
    let shape = [batch, height * factor, width * factor, to];
    let add = plus.is_some();
    let mut y = plus.map_or_else(|| of_values(vec![0.0; shape.iter().product()], shape.into()), own);
    let kernels = Kernels { weights, bias, from, to };
    let values = y.try_storage_mut::<f32>().expect("made here, or `own`ed");
    for (map, y) in slice(&x).chunks(image).zip(values.chunks_mut(image / from * factor * factor * to)) {
        let mut convolve = |source| {
            let x = Input { map, height, width, channels: from, source };
            match weights {
                Weights::Bf16(_) if bf16_gemm::available() => winograd::convolve::<Pair>(level, &x, &kernels, y, add),
                _ => winograd::convolve::<f32>(level, &x, &kernels, y, add),
            }
        };
        match before {
            Before::Nothing => convolve(Source::Itself),
            Before::Doubling => convolve(Source::Doubled),
            Before::Norm(norm) => convolve(Source::Normed(&normed(norm, level, map))),
        }
    }
    Ok(turned(y))
}

fn applies(x: &Tensor<4>, before: Before<'_>, layer: &Conv2d, plus: Option<&Tensor<4>>) -> bool {
    let Some(bias) = &layer.bias else { return false };
    let [to, from, _, _] = layer.weight.shape().dims();
    let [batch, channels, height, width] = x.dims();
    let usual = layer.stride == [1, 1] && layer.dilation == [1, 1] && layer.groups == 1 && from == channels;
    let kernel = match (layer.kernel_size, &layer.padding) {
        ([3, 3], PaddingConfig2d::Explicit(1, 1, 1, 1)) => true,
        ([1, 1], PaddingConfig2d::Explicit(0, 0, 0, 0) | PaddingConfig2d::Valid) => {
            matches!(before, Before::Nothing) && plus.is_none()
        }
        _ => false,
    };
    let norm = match before {
        Before::Norm(GroupNorm { gamma: Some(gamma), beta: Some(beta), num_channels, affine: true, .. }) => {
            *num_channels == channels && here(&gamma.val()) && here(&beta.val())
        }
        Before::Norm(_) => false,
        _ => true,
    };
    let sum =
        plus.is_none_or(|plus| plus.dims() == [batch, to, height, width] && !matches!(before, Before::Doubling) && here(plus));
    let weight = layer.weight.val();
    let weights = here(&weight) || layer.kernel_size == [3, 3] && weight.dtype() == DType::BF16 && on_cpu(&weight);
    let all = usual && kernel && norm && sum && x.shape().num_elements() > 0 && to > 0;
    all && weights && here(x) && here(&bias.val())
}

/// Whether a tensor is the CPU backend's, f32 and without gradients.
fn here<const D: usize>(x: &Tensor<D>) -> bool {
    x.dtype() == DType::F32 && on_cpu(x)
}

fn on_cpu<const D: usize>(x: &Tensor<D>) -> bool {
    let device = x.device();
    device == Device::flex() && !device.is_autodiff()
}

fn primitive<const D: usize>(x: Tensor<D>) -> FlexTensor {
    x.try_into_primitive::<Flex>().expect("the CPU backend's, as `applies` has seen").to_contiguous()
}

fn parameter<const D: usize>(parameter: &Param<Tensor<D>>) -> FlexTensor {
    primitive(parameter.val())
}

/// The values of a tensor in row-major order.
fn slice(x: &FlexTensor) -> &[f32] {
    x.as_slice().expect("made contiguous, and f32 as `applies` has seen")
}

/// `[B, C, h, w]` as `[B, h, w, C]`: for a map that comes from here it is only turned back.
fn channels_last(x: Tensor<4>) -> FlexTensor {
    primitive(x.permute([0, 2, 3, 1]))
}

/// A map as other operations see it.
fn turned(map: FlexTensor) -> Tensor<4> {
    Tensor::<4>::from_primitive::<Flex>(map).permute([0, 3, 1, 2])
}

fn channels_second(values: Vec<f32>, shape: [usize; 4]) -> Tensor<4> {
    turned(of_values(values, shape.into()))
}

/// A map to write to.
fn own(x: Tensor<4>) -> FlexTensor {
    let mut map = channels_last(x);
    let shape = map.shape();
    match map.try_storage_mut::<f32>() {
        // Not a part of something larger.
        Some(values) if values.len() == shape.num_elements() => map,
        _ => of_values(slice(&map).to_vec(), shape),
    }
}

fn normed(layer: &GroupNorm, level: Level, map: &[f32]) -> Normed {
    let of = |numbers: &Option<Param<Tensor<1>>>| numbers.as_ref().map(parameter).expect("there, as `applies` has seen");
    let (scale, shift) = (of(&layer.gamma), of(&layer.beta));
    let (scale, shift) = (slice(&scale), slice(&shift));
    Norm { scale, shift, groups: layer.num_groups, epsilon: layer.epsilon }.of(level, map)
}

#[cfg(test)]
mod tests;
