//! Stands in for a backend that is not compiled in. No operation applies.

use std::convert::Infallible;

use burn::prelude::*;
use bytes::Bytes;

#[cfg(feature = "train")]
use super::params::{AdamRows, AdamStep};
use super::params::{AttentionParams, ConvParams, GroupNormParams, KeptTokens, KvPart, Modulation, Rotary, RowGroup, Weight};
use crate::device::Precision;
use crate::rng::Stream;

/// Past keys and values. There are none.
#[derive(Clone, Debug)]
pub(crate) enum CachedKv {}

/// Memory of the last scale's keys and values.
pub(crate) type KvScratch = ();

/// A map in fewer bits. There are none.
#[derive(Clone, Debug)]
pub(crate) enum CompactMap {}

/// A packed weight. There are none.
#[derive(Clone, Debug)]
pub(crate) struct PackedWeight(Infallible);

/// A packed weight as stored in a file.
pub(crate) struct StoredPackedWeight<'a> {
    pub(crate) panels: &'a Bytes,
    pub(crate) scales: Option<&'a [f32]>,
}

impl PackedWeight {
    pub(crate) fn stored_shape(_: Precision, _: [usize; 2]) -> Option<[usize; 4]> {
        None
    }

    pub(crate) fn from_stored(_: [usize; 2], _: Bytes, _: Option<Vec<f32>>) -> Option<Self> {
        None
    }

    pub(crate) fn pack(_: Precision, _: &[f32], _: usize) -> Option<Self> {
        None
    }

    pub(crate) fn stored(&self) -> StoredPackedWeight<'_> {
        match self.0 {}
    }

    pub(crate) fn precision(&self) -> Precision {
        match self.0 {}
    }

    pub(crate) fn size(_: Precision, _: [usize; 2]) -> Option<u64> {
        None
    }

    pub(crate) fn dims(&self) -> [usize; 2] {
        match self.0 {}
    }
}

/// Guard of the memory pool. There is none.
pub(crate) struct PoolGuard;

impl PoolGuard {
    pub(crate) fn new() -> Self {
        Self
    }
}

pub(crate) fn reserve_pool(_: &Device, _: u64) {}

pub(crate) fn pack(_: &Tensor<2>, _: Precision) -> Option<PackedWeight> {
    None
}

pub(crate) fn linear(_: &Tensor<3>, _: &Weight, _: Option<&Tensor<1>>) -> Option<Tensor<3>> {
    None
}

pub(crate) fn linear_to_f32(_: &Tensor<3>, _: &Weight, _: Option<&Tensor<1>>) -> Option<Tensor<3>> {
    None
}

pub(crate) fn matmul(_: &Tensor<2>, _: &Tensor<2>) -> Option<Tensor<2>> {
    None
}

pub(crate) fn exp<const D: usize>(x: Tensor<D>) -> Result<Tensor<D>, Tensor<D>> {
    Err(x)
}

pub(crate) fn silu<const D: usize>(x: Tensor<D>) -> Result<Tensor<D>, Tensor<D>> {
    Err(x)
}

pub(crate) fn silu_mul(gate: Tensor<3>, up: Tensor<3>) -> Result<Tensor<3>, (Tensor<3>, Tensor<3>)> {
    Err((gate, up))
}

pub(crate) fn swi_glu(_: &Tensor<3>, _: &Weight, _: &Weight, _: &Weight) -> Option<Tensor<3>> {
    None
}

pub(crate) fn rms_norm(_: &Tensor<3>, _: &Tensor<1>, _: f64, _: Option<&Modulation>) -> Option<Tensor<3>> {
    None
}

pub(crate) fn layer_norm(
    _: &Tensor<3>,
    _: Option<&Tensor<1>>,
    _: Option<&Tensor<1>>,
    _: f64,
    _: Option<&Modulation>,
) -> Option<Tensor<3>> {
    None
}

pub(crate) fn add_gated(x: Tensor<3>, y: Tensor<3>, _: Option<&Tensor<3>>) -> Result<Tensor<3>, (Tensor<3>, Tensor<3>)> {
    Err((x, y))
}

pub(crate) fn add_norm(
    x: Tensor<3>,
    y: Tensor<3>,
    _: &Tensor<1>,
    _: f64,
    _: Option<(&Tensor<3>, &Modulation)>,
) -> Result<(Tensor<3>, Tensor<3>), (Tensor<3>, Tensor<3>)> {
    Err((x, y))
}

pub(crate) fn group_norm(x: Tensor<4>, _: &GroupNormParams, _: bool) -> Result<Tensor<4>, Tensor<4>> {
    Err(x)
}

pub(crate) fn conv2d(x: Tensor<4>, _: &ConvParams) -> Result<Tensor<4>, Tensor<4>> {
    Err(x)
}

pub(crate) fn norm_silu_conv2d(
    x: Tensor<4>,
    _: &GroupNormParams,
    _: &ConvParams,
    residual: Option<Tensor<4>>,
) -> Result<Tensor<4>, (Tensor<4>, Option<Tensor<4>>)> {
    Err((x, residual))
}

pub(crate) fn upsample_conv2d(x: Tensor<4>, _: &ConvParams) -> Result<Tensor<4>, Tensor<4>> {
    Err(x)
}

pub(crate) fn compact_upsample_conv2d(x: Tensor<4>, _: &ConvParams) -> Result<Tensor<4>, Tensor<4>> {
    Err(x)
}

pub(crate) fn compact_res_block(
    x: Tensor<4>,
    residual: Option<Tensor<4>>,
    _: [&GroupNormParams; 2],
    _: [&ConvParams; 2],
) -> Result<Tensor<4>, (Tensor<4>, Option<Tensor<4>>)> {
    Err((x, residual))
}

pub(crate) fn upsample_nearest(_: &Tensor<4>) -> Option<Tensor<4>> {
    None
}

pub(crate) fn attention(_: [&Tensor<4>; 3], _: Option<&Tensor<4>>, _: f64) -> Option<Tensor<4>> {
    None
}

pub(crate) fn self_attention(
    _: &Tensor<3>,
    _: &AttentionParams,
    _: Rotary<'_>,
    _: &[RowGroup],
    _: KvPart<'_, CachedKv, KvScratch>,
    _: Option<&Tensor<4>>,
) -> Option<Tensor<3>> {
    None
}

pub(crate) fn squared_distances(_: &Tensor<3>) -> Option<Vec<f32>> {
    None
}

pub(crate) fn select_tokens(_: &Tensor<3>, _: &KeptTokens) -> Option<Tensor<3>> {
    None
}

pub(crate) fn compact_map(_: &Tensor<3>, _: Precision) -> Option<CompactMap> {
    None
}

pub(crate) fn add_restored(x: Tensor<3>, _: &Tensor<3>, _: &Tensor<3>, _: usize, _: &KeptTokens) -> Result<Tensor<3>, Tensor<3>> {
    Err(x)
}

pub(crate) fn add_compact_restored(
    _: Tensor<3>,
    _: &Tensor<3>,
    map: &CompactMap,
    _: usize,
    _: &KeptTokens,
) -> Result<Tensor<3>, Tensor<3>> {
    match *map {}
}

pub(crate) fn normals(_: &Stream<'_>, _: [usize; 3], _: &Device) -> Option<Tensor<3>> {
    None
}

pub(crate) fn sample(
    _: &Tensor<3>,
    _: &Tensor<2>,
    _: usize,
    _: f64,
    _: Option<[f64; 2]>,
    _: usize,
    _: &[u64],
) -> Option<(Tensor<2, Int>, Tensor<3>)> {
    None
}

#[cfg(feature = "train")]
pub(crate) fn adam(_: &AdamRows, _: &Tensor<1>, _: AdamStep) -> Option<AdamRows> {
    None
}
