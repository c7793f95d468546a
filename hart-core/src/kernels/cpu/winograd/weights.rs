//! Kernels, and their transforms.

use std::borrow::Cow;
use std::ops::Range;

use half::bf16;
use rayon::prelude::*;

use super::super::simd::{SimdF32, SimdKernel, SimdLevel};
use super::element::Number;
use super::{CHUNK, PATCH, POINTS, STEP, transforms};

/// Taps of a kernel.
const TAPS: usize = 9;

/// Weights of a layer, `[to][from][taps]`.
#[derive(Clone, Copy, Debug)]
pub(super) enum Weights<'a> {
    F32(&'a [f32]),
    /// Products of these are taken in bfloat16 too, if the processor has instructions for that.
    Bf16(&'a [bf16]),
}

impl<'a> Weights<'a> {
    fn len(&self) -> usize {
        match self {
            Self::F32(weights) => weights.len(),
            Self::Bf16(weights) => weights.len(),
        }
    }

    /// Those of some output channels, of `size` weights each.
    fn of(self, channels: Range<usize>, size: usize) -> Cow<'a, [f32]> {
        let range = channels.start * size..channels.end * size;
        match self {
            Self::F32(weights) => Cow::Borrowed(&weights[range]),
            Self::Bf16(weights) => Cow::Owned(weights[range].iter().map(|weight| weight.to_f32()).collect()),
        }
    }
}

/// 3x3 kernels for each pair of channels.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kernels<'a> {
    pub(super) weights: Weights<'a>,
    /// One for each output channel.
    pub(super) bias: &'a [f32],
    /// Input channels.
    pub(super) from: usize,
    /// Output channels.
    pub(super) to: usize,
}

impl Kernels<'_> {
    fn check(&self) {
        assert_eq!(self.weights.len(), self.to * self.from * TAPS, "a 3x3 kernel for each pair of channels");
        assert_eq!(self.bias.len(), self.to, "one bias for each output channel");
    }

    /// Chunks of output channels.
    pub(super) fn chunks(&self) -> usize {
        self.to.div_ceil(CHUNK)
    }

    /// A chunk's output channels.
    pub(super) fn channels(&self, chunk: usize) -> Range<usize> {
        chunk * CHUNK..self.to.min((chunk + 1) * CHUNK)
    }

    /// A chunk's biases, and zeros to whole vectors: that many columns its kernels have at all points.
    pub(super) fn bias(&self, chunk: usize) -> Vec<f32> {
        let mut bias = self.bias[self.channels(chunk)].to_vec();
        bias.resize(bias.len().next_multiple_of(STEP), 0.0);
        bias
    }

    /// A chunk's kernels at all points, `[points][from / N::CHANNELS, rounded up][columns]`.
    pub(super) fn transform<N: Number>(&self, level: SimdLevel, chunk: usize, transformed: &mut Vec<N>) {
        self.check();
        let (channels, columns) = (self.channels(chunk), self.channels(chunk).len().next_multiple_of(STEP));
        let kernels = self.weights.of(channels, self.from * TAPS);
        transformed.resize(POINTS * self.from.div_ceil(N::CHANNELS) * columns, N::default());
        level.run(Transform { kernels: &kernels, from: self.from, columns, transformed });
    }

    /// All chunks' kernels.
    pub(super) fn transform_all<N: Number>(&self, level: SimdLevel) -> Vec<Vec<N>> {
        let transform = |chunk| {
            let mut transformed = Vec::new();
            self.transform(level, chunk, &mut transformed);
            transformed
        };
        (0..self.chunks()).into_par_iter().map(transform).collect()
    }
}

/// The kernels of a chunk.
struct Transform<'a, N> {
    /// `[to][from][taps]`
    kernels: &'a [f32],
    from: usize,
    /// Output channels, those that are not there too.
    columns: usize,
    /// `[points][from / N::CHANNELS, rounded up][columns]`
    transformed: &'a mut [N],
}

impl<N: Number> SimdKernel for Transform<'_, N> {
    #[inline(always)]
    unsafe fn run<S: SimdF32>(self) {
        let rows = self.from.div_ceil(N::CHANNELS);
        assert!(self.columns.is_multiple_of(STEP) && self.transformed.len() == POINTS * rows * self.columns);
        for column in (0..self.columns).step_by(S::LANES) {
            for row in 0..rows {
                // SAFETY: the processor has the lanes; there is room for each point, row and column.
                unsafe {
                    let first = self.at_points::<S>(column, row * N::CHANNELS);
                    let second = if N::CHANNELS == 2 { self.at_points::<S>(column, row * 2 + 1) } else { first };
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
    /// A vector's kernels for input channel i; zeros where there is no output or input channel.
    ///
    /// # Safety
    ///
    /// The processor has the lanes.
    #[inline(always)]
    unsafe fn at_points<S: SimdF32>(&self, column: usize, i: usize) -> [[S; PATCH]; PATCH] {
        let mut lanes = [[0.0f32; STEP]; TAPS];
        for lane in 0..S::LANES {
            let at = ((column + lane) * self.from + i) * TAPS;
            if let Some(kernel) = self.kernels.get(at..at + TAPS).filter(|_| i < self.from) {
                for (lanes, weight) in lanes.iter_mut().zip(kernel) {
                    lanes[lane] = *weight;
                }
            }
        }
        // SAFETY: the caller's; no vector is longer than `STEP`.
        unsafe {
            let mut g = [[S::zero(); 3]; 3];
            for (tap, lanes) in lanes.iter().enumerate() {
                g[tap / 3][tap % 3] = S::load(lanes.as_ptr());
            }
            transforms::kernel(g)
        }
    }
}
