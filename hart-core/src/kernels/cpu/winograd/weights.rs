//! Filters and their transforms.

use std::borrow::Cow;
use std::ops::Range;

use half::bf16;
use rayon::prelude::*;

use super::super::simd::{SimdF32, SimdKernel, SimdLevel};
use super::bf16_gemm;
use super::element::Element;
use super::{ALIGN, CHUNK, PATCH, POINTS, transforms};

/// Weights of a 3x3 filter.
const TAPS: usize = 9;

/// Weights of a layer, `[out][in][9]`.
#[derive(Clone, Copy, Debug)]
pub(super) enum Weights<'a> {
    F32(&'a [f32]),
    /// Products are computed in bf16 as well if the processor has instructions for it.
    Bf16(&'a [bf16]),
}

impl<'a> Weights<'a> {
    fn len(&self) -> usize {
        match self {
            Self::F32(weights) => weights.len(),
            Self::Bf16(weights) => weights.len(),
        }
    }

    /// Returns the weights of some output channels, `size` each.
    fn slice(self, channels: Range<usize>, size: usize) -> Cow<'a, [f32]> {
        let range = channels.start * size..channels.end * size;
        match self {
            Self::F32(weights) => Cow::Borrowed(&weights[range]),
            Self::Bf16(weights) => Cow::Owned(weights[range].iter().map(|weight| weight.to_f32()).collect()),
        }
    }
}

/// A 3x3 filter for each pair of channels, and a bias for each output channel.
#[derive(Clone, Copy, Debug)]
pub(super) struct Filters<'a> {
    pub(super) weights: Weights<'a>,
    /// `[out]`.
    pub(super) bias: &'a [f32],
    /// Input channels.
    pub(super) in_channels: usize,
    /// Output channels.
    pub(super) out_channels: usize,
}

impl Filters<'_> {
    fn check(&self) {
        assert_eq!(self.weights.len(), self.out_channels * self.in_channels * TAPS, "a 3x3 filter for each pair of channels");
        assert_eq!(self.bias.len(), self.out_channels, "one bias for each output channel");
    }

    /// Returns whether products are computed in bf16.
    pub(super) fn as_pairs(&self) -> bool {
        matches!(self.weights, Weights::Bf16(_)) && bf16_gemm::available()
    }

    /// Returns the number of chunks of output channels.
    pub(super) fn chunks(&self) -> usize {
        self.out_channels.div_ceil(CHUNK)
    }

    /// Returns the output channels of a chunk.
    pub(super) fn channels(&self, chunk: usize) -> Range<usize> {
        chunk * CHUNK..self.out_channels.min((chunk + 1) * CHUNK)
    }

    /// Returns the biases of a chunk, zero-padded to whole vectors. Their number is the chunk's number of columns.
    pub(super) fn bias(&self, chunk: usize) -> Vec<f32> {
        let mut bias = self.bias[self.channels(chunk)].to_vec();
        bias.resize(bias.len().next_multiple_of(ALIGN), 0.0);
        bias
    }

    /// Transforms the filters of a chunk to `[points][in / N::CHANNELS, rounded up][columns]`.
    pub(super) fn transform<N: Element>(&self, level: SimdLevel, chunk: usize, transformed: &mut Vec<N>) {
        self.check();
        let (channels, columns) = (self.channels(chunk), self.channels(chunk).len().next_multiple_of(ALIGN));
        let filters = self.weights.slice(channels, self.in_channels * TAPS);
        transformed.resize(POINTS * self.in_channels.div_ceil(N::CHANNELS) * columns, N::default());
        level.run(Transform { filters: &filters, in_channels: self.in_channels, columns, transformed });
    }

    /// Transforms the filters of all chunks.
    pub(super) fn transform_all<N: Element>(&self, level: SimdLevel) -> Vec<Vec<N>> {
        let transform = |chunk| {
            let mut transformed = Vec::new();
            self.transform(level, chunk, &mut transformed);
            transformed
        };
        (0..self.chunks()).into_par_iter().map(transform).collect()
    }
}

/// Transforms the filters of a chunk.
struct Transform<'a, N> {
    /// `[out][in][9]`
    filters: &'a [f32],
    in_channels: usize,
    /// Output channels, zero-padded to whole vectors.
    columns: usize,
    /// `[points][in / N::CHANNELS, rounded up][columns]`
    transformed: &'a mut [N],
}

impl<N: Element> SimdKernel for Transform<'_, N> {
    #[inline(always)]
    unsafe fn run<S: SimdF32>(self) {
        let rows = self.in_channels.div_ceil(N::CHANNELS);
        assert!(self.columns.is_multiple_of(ALIGN) && self.transformed.len() == POINTS * rows * self.columns);
        for column in (0..self.columns).step_by(S::LANES) {
            for row in 0..rows {
                // SAFETY: the caller guarantees the instructions; `transformed` holds each point, row and column.
                unsafe {
                    let first = self.transformed_filter::<S>(column, row * N::CHANNELS);
                    let second = if N::CHANNELS == 2 { self.transformed_filter::<S>(column, row * 2 + 1) } else { first };
                    for point in 0..POINTS {
                        let to = self.transformed.as_mut_ptr().add((point * rows + row) * self.columns + column);
                        let (y, x) = (point / PATCH, point % PATCH);
                        N::write_weights(first[y][x], second[y][x], to);
                    }
                }
            }
        }
    }
}

impl<N> Transform<'_, N> {
    /// Transforms a vector of filters of input channel i; zeros for channels beyond the last.
    ///
    /// # Safety
    ///
    /// The processor has the instructions of `S`.
    #[inline(always)]
    unsafe fn transformed_filter<S: SimdF32>(&self, column: usize, i: usize) -> [[S; PATCH]; PATCH] {
        let mut lanes = [[0.0f32; ALIGN]; TAPS];
        for lane in 0..S::LANES {
            let at = ((column + lane) * self.in_channels + i) * TAPS;
            if let Some(filter) = self.filters.get(at..at + TAPS).filter(|_| i < self.in_channels) {
                for (lanes, weight) in lanes.iter_mut().zip(filter) {
                    lanes[lane] = *weight;
                }
            }
        }
        // SAFETY: the caller's guarantee; no vector is longer than `ALIGN`.
        unsafe {
            let mut g = [[S::zero(); 3]; 3];
            for (tap, lanes) in lanes.iter().enumerate() {
                g[tap / 3][tap % 3] = S::load(lanes.as_ptr());
            }
            transforms::filter(g)
        }
    }
}
