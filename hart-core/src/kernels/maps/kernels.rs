//! Kernels, and their transforms.

use std::borrow::Cow;
use std::ops::Range;

use half::bf16;
use rayon::prelude::*;

use super::super::lanes::{Job, Lanes, Level};
use super::numbers::Number;
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

/// Kernels at all points, in chunks of output channels: `[chunk][points][from][columns]`.
pub(super) struct Transformed<N> {
    chunks: Vec<Vec<N>>,
    biases: Vec<Vec<f32>>,
}

impl<N> Transformed<N> {
    /// Number of chunks.
    pub(super) fn chunks(&self) -> usize {
        self.chunks.len()
    }

    /// A chunk's kernels, `[points][from][columns]`.
    pub(super) fn chunk(&self, chunk: usize) -> &[N] {
        &self.chunks[chunk]
    }

    /// The biases of its columns, zeros for channels that aren't there.
    pub(super) fn bias(&self, chunk: usize) -> &[f32] {
        &self.biases[chunk]
    }
}

impl Kernels<'_> {
    pub(super) fn transformed<N: Number>(&self, level: Level) -> Transformed<N> {
        assert_eq!(self.weights.len(), self.to * self.from * TAPS, "a 3x3 kernel for each pair of channels");
        assert_eq!(self.bias.len(), self.to, "one bias for each output channel");
        let first: Vec<usize> = (0..self.to).step_by(CHUNK).collect();
        let chunks = first.into_par_iter().map(|first| {
            let last = self.to.min(first + CHUNK);
            let (kernels, columns) = (self.weights.of(first..last, self.from * TAPS), (last - first).next_multiple_of(STEP));
            let mut points = vec![0.0; POINTS * self.from * columns];
            level.run(Transform { kernels: &kernels, from: self.from, columns, points: &mut points });
            points.chunks(self.from * columns).flat_map(|weights| N::panel(weights, columns)).collect()
        });
        let biases = self.bias.chunks(CHUNK).map(|bias| {
            let mut bias = bias.to_vec();
            bias.resize(bias.len().next_multiple_of(STEP), 0.0);
            bias
        });
        Transformed { chunks: chunks.collect(), biases: biases.collect() }
    }
}

/// The kernels of a chunk.
struct Transform<'a> {
    /// `[to][from][taps]`
    kernels: &'a [f32],
    from: usize,
    /// Output channels, those that are not there too.
    columns: usize,
    /// `[points][from][columns]`
    points: &'a mut [f32],
}

impl Job for Transform<'_> {
    #[allow(clippy::needless_range_loop)] // Rows and columns play the same part.
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let there = self.kernels.len() / (self.from * TAPS);
        assert!(
            there <= self.columns && self.columns.is_multiple_of(STEP) && self.points.len() == POINTS * self.from * self.columns
        );
        let mut lanes = [[0.0f32; STEP]; TAPS];
        for column in (0..self.columns).step_by(L::COUNT) {
            for i in 0..self.from {
                for lane in 0..L::COUNT {
                    let kernel = self.kernels.get(((column + lane) * self.from + i) * TAPS..);
                    match kernel.and_then(|kernel| kernel.first_chunk::<TAPS>()) {
                        Some(kernel) => (0..TAPS).for_each(|tap| lanes[tap][lane] = kernel[tap]),
                        None => (0..TAPS).for_each(|tap| lanes[tap][lane] = 0.0),
                    }
                }
                // SAFETY: the processor has the lanes; there is room for each point, input and column.
                unsafe {
                    let mut g = [[L::zero(); 3]; 3];
                    for tap in 0..TAPS {
                        g[tap / 3][tap % 3] = L::load(lanes[tap].as_ptr());
                    }
                    let points = transforms::kernel(g);
                    for point in 0..POINTS {
                        let to = self.points.as_mut_ptr().add((point * self.from + i) * self.columns + column);
                        points[point / PATCH][point % PATCH].store(to);
                    }
                }
            }
        }
    }
}
