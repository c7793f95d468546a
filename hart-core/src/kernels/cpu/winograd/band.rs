//! Bands of the padded input, from which input tiles are read.

use rayon::prelude::*;

use super::super::elementwise::silu_of;
use super::super::simd::{LoopKernel, SimdLevel};
use super::group_norm::Normalization;
use super::value::Value;
use super::{ALIGN, PATCH, TILE};

/// The operation applied to a map as the convolution reads it.
#[derive(Clone, Copy, Debug)]
pub(super) enum InputOp<'a> {
    Identity,
    /// Nearest-neighbour upsampling by two.
    Upsample,
    /// Group norm with known statistics, then SiLU.
    NormSilu(&'a Normalization),
}

/// A channels-last map and the operation applied to it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Input<'a, T> {
    /// `[height][width][channels]`, or a ring of fewer rows: row i is at i modulo their number.
    pub(super) map: &'a [T],
    pub(super) height: usize,
    pub(super) width: usize,
    pub(super) channels: usize,
    pub(super) op: InputOp<'a>,
}

impl<T> Input<'_, T> {
    /// Returns the height and width of the convolution.
    pub(super) fn output(&self) -> [usize; 2] {
        let factor = if matches!(self.op, InputOp::Upsample) { 2 } else { 1 };
        [self.height * factor, self.width * factor]
    }
}

/// Rows of the padded input: `[tile rows * 4 + 2][tiles * 4 + 2][channels, zero-padded to a multiple of ALIGN]`.
pub(super) struct Band {
    values: Vec<f32>,
    row_stride: usize,
    padded: usize,
}

impl Band {
    /// Creates a band for `rows` rows of `tiles_across` output tiles.
    pub(super) fn new(channels: usize, rows: usize, tiles_across: usize) -> Self {
        let padded = channels.next_multiple_of(ALIGN);
        let row_stride = (tiles_across * TILE + 2) * padded;
        Self { values: vec![0.0; (rows * TILE + 2) * row_stride], row_stride, padded }
    }

    /// Returns the distance from one row to the next.
    pub(super) fn row_stride(&self) -> usize {
        self.row_stride
    }

    /// Returns the values from the first one of an input tile on.
    pub(super) fn input_tile(&self, row: usize, column: usize) -> &[f32] {
        &self.values[row * TILE * self.row_stride + column * TILE * self.padded..]
    }

    /// Fills the band from tile row `first` on. Bands are filled in order.
    pub(super) fn fill<T: Value>(&mut self, level: SimdLevel, x: &Input<'_, T>, first: usize) {
        let count = self.values.len() / self.row_stride;
        let shared = if first == 0 { 0 } else { PATCH - TILE };
        // The last rows of the previous band are the first ones of this band.
        self.values.copy_within((count - shared) * self.row_stride.., 0);
        let padded = self.padded;
        self.values.par_chunks_mut(self.row_stride).enumerate().skip(shared).for_each(|(row, values)| {
            // The padding is one row of zeros above the map.
            let at = (first * TILE + row).checked_sub(1).filter(|at| *at < x.output()[0]);
            match at {
                Some(at) => level.run_loop(Row { x, at, values: &mut values[padded..], padded }),
                None => values.fill(0.0),
            }
        });
    }
}

/// One row of the input, without its padding.
struct Row<'a, T> {
    x: &'a Input<'a, T>,
    /// Index of the row.
    at: usize,
    values: &'a mut [f32],
    padded: usize,
}

impl<T: Value> LoopKernel for Row<'_, T> {
    #[inline(always)]
    fn run(self) {
        let Input { map, width, channels, op, .. } = *self.x;
        let held = map.len() / (width * channels);
        let row = |at: usize| map[at % held * width * channels..][..width * channels].chunks(channels);
        let pixels = self.values.chunks_mut(self.padded).map(|pixel| &mut pixel[..channels]);
        match op {
            InputOp::Identity => pixels.zip(row(self.at)).for_each(|(pixel, x)| copy(pixel, x)),
            InputOp::Upsample => {
                let twice = row(self.at / 2).flat_map(|x| [x, x]);
                pixels.zip(twice).for_each(|(pixel, x)| copy(pixel, x));
            }
            InputOp::NormSilu(Normalization { mean, factor, shift }) => {
                let (mean, factor, shift) = (&mean[..channels], &factor[..channels], &shift[..channels]);
                for (pixel, x) in pixels.zip(row(self.at)) {
                    // Equal lengths let the compiler drop the bounds checks.
                    let (pixel, x) = (&mut pixel[..channels], &x[..channels]);
                    for i in 0..channels {
                        pixel[i] = silu_of((x[i].widen() - mean[i]) * factor[i] + shift[i]);
                    }
                }
            }
        }
    }
}

#[inline(always)]
fn copy<T: Value>(to: &mut [f32], from: &[T]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to = from.widen());
}
