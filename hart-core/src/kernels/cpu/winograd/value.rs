//! Values of maps: f32, or bf16 in half the memory. Sums are in f32 for both.

use burn::backend::flex::{FlexTensor, Layout};
use burn::tensor::{Bytes, DType, Shape};
use bytemuck::{Pod, zeroed_vec};
use half::bf16;
use rayon::prelude::*;

use super::super::simd::{LoopKernel, SimdLevel};
use super::super::tensor::flex_tensor;
use super::bf16_gemm::round_to_bf16;

/// Values that a task rounds.
const CHUNK: usize = 16 * 1024;

/// The type of a map's values.
pub(super) trait Value: Pod + burn::tensor::Element + Send + Sync {
    /// Returns the value in f32.
    fn widen(self) -> f32;

    /// Returns the nearest value.
    fn round(value: f32) -> Self;

    /// Returns values in f32: in place if they already are, otherwise widened into `space`.
    fn widen_all<'a>(values: &'a [Self], space: &'a mut Vec<f32>) -> &'a [f32];

    /// Returns the values if they are f32.
    fn as_f32(values: &mut [Self]) -> Option<&mut [f32]>;

    /// Returns zeros. Their memory is not touched.
    fn zeros(count: usize) -> Vec<Self> {
        zeroed_vec(count)
    }

    /// Returns a tensor of values in row-major order.
    fn into_tensor(values: Vec<Self>, shape: Shape) -> FlexTensor;
}

impl Value for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }

    #[inline(always)]
    fn round(value: f32) -> Self {
        value
    }

    fn widen_all<'a>(values: &'a [Self], _: &'a mut Vec<f32>) -> &'a [f32] {
        values
    }

    fn as_f32(values: &mut [Self]) -> Option<&mut [f32]> {
        Some(values)
    }

    fn into_tensor(values: Vec<Self>, shape: Shape) -> FlexTensor {
        flex_tensor(values, shape)
    }
}

impl Value for bf16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        // Without `to_f32`'s case for NaN, so that the compiler vectorises it.
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    #[inline(always)]
    fn round(value: f32) -> Self {
        Self::from_bits(round_to_bf16(value))
    }

    fn widen_all<'a>(values: &'a [Self], space: &'a mut Vec<f32>) -> &'a [f32] {
        space.clear();
        space.extend(values.iter().map(|value| value.widen()));
        space
    }

    fn as_f32(_: &mut [Self]) -> Option<&mut [f32]> {
        None
    }

    fn into_tensor(values: Vec<Self>, shape: Shape) -> FlexTensor {
        FlexTensor::new(Bytes::from_elems(values), Layout::contiguous(shape), DType::BF16)
    }
}

/// Computes `y = x`, or `y += x` if `add`, on all threads, and rounds the result.
///
/// # Panics
///
/// If the lengths differ.
pub(super) fn round_all<X: Value, Y: Value>(level: SimdLevel, x: &[X], y: &mut [Y], add: bool) {
    assert_eq!(x.len(), y.len(), "equal lengths");
    y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(y, x)| level.run_loop(Round { x, y, add }));
}

/// A chunk of [`round_all`].
struct Round<'a, X, Y> {
    x: &'a [X],
    y: &'a mut [Y],
    add: bool,
}

impl<X: Value, Y: Value> LoopKernel for Round<'_, X, Y> {
    #[inline(always)]
    fn run(self) {
        let pairs = self.y.iter_mut().zip(self.x);
        if self.add {
            pairs.for_each(|(y, x)| *y = Y::round(y.widen() + x.widen()));
        } else {
            pairs.for_each(|(y, x)| *y = Y::round(x.widen()));
        }
    }
}
