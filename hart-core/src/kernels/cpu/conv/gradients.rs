//! The gradients of weights and bias: products and sums over all pixels.

use rayon::prelude::*;

use super::super::simd::{SimdF32, SimdKernel, SimdLevel};
use super::{ALIGN, BLOCK, Sizes, TAPS, fill_plane};

/// Positions of one pass. With this number, a block of output channels stays in the L1 cache.
const CHUNK: usize = 512;
/// Input channels of a task.
const PART: usize = 16;
/// Maximum number of input and output values copied to planes at a time, unless one image has more.
const SLAB: usize = 8 << 20;

/// Computes the gradient of the weights, `[out, in, 3, 3]`: for each tap the products of dy and x, shifted by the tap, summed
/// over all pixels.
pub(crate) fn gradient_weights(x: &[f32], dy: &[f32], sizes: Sizes) -> Vec<f32> {
    gradient_weights_with(SimdLevel::best(), x, dy, sizes)
}

pub(super) fn gradient_weights_with(level: SimdLevel, x: &[f32], dy: &[f32], sizes: Sizes) -> Vec<f32> {
    let Sizes { batch, in_channels, out_channels, height, width } = sizes;
    let (map, stride) = (sizes.pixels(), sizes.stride());
    let mut gradient = vec![0.0; out_channels * in_channels * TAPS];
    sizes.check(x, dy);
    if x.is_empty() || dy.is_empty() {
        return gradient;
    }
    // One sum per block of output channels and part of input channels.
    let mut sums: Vec<Vec<f32>> = vec![vec![0.0; PART * TAPS * BLOCK]; out_channels.div_ceil(BLOCK) * in_channels.div_ceil(PART)];
    // The row of zeros below an image is also the one above the next image.
    let image = (height + 1) * stride;
    let images = (SLAB / (image * (in_channels + out_channels))).clamp(1, batch);
    let positions = (images * image).next_multiple_of(ALIGN);
    let plane = positions + 2 * stride + 2;
    let mut inputs = vec![0.0; in_channels * plane];
    let mut outputs = vec![0.0; out_channels.next_multiple_of(BLOCK) * positions];
    for first in (0..batch).step_by(images) {
        let images = images.min(batch - first);
        let used_positions = (images * image).next_multiple_of(ALIGN);
        inputs.par_chunks_mut(plane).enumerate().for_each(|(channel, plane)| {
            for n in 0..images {
                let map = &x[((first + n) * in_channels + channel) * map..][..map];
                fill_plane(&mut plane[n * image..(n + 1) * image + stride + 1], map, width, -1);
            }
        });
        outputs.par_chunks_mut(positions).take(out_channels).enumerate().for_each(|(channel, positions)| {
            for n in 0..images {
                let map = &dy[((first + n) * out_channels + channel) * map..][..map];
                for (to, row) in positions[n * image..].chunks_mut(stride).zip(map.chunks(width)) {
                    to[..width].copy_from_slice(row);
                }
            }
        });
        let (inputs, outputs) = (&inputs, &outputs);
        sums.par_iter_mut().enumerate().for_each(|(task, sums)| {
            let (block, part) = (task / in_channels.div_ceil(PART) * BLOCK, task % in_channels.div_ceil(PART) * PART);
            for start in (0..used_positions).step_by(CHUNK) {
                level.run(Products {
                    inputs: &inputs[part * plane..(part + PART).min(in_channels) * plane],
                    plane,
                    stride,
                    outputs: &outputs[block * positions..][..BLOCK * positions],
                    channels: BLOCK.min(out_channels - block),
                    positions,
                    start,
                    end: (start + CHUNK).min(used_positions),
                    sums,
                });
            }
        });
    }
    for (index, gradient) in gradient.iter_mut().enumerate() {
        let (o, i, tap) = (index / TAPS / in_channels, index / TAPS % in_channels, index % TAPS);
        let sums = &sums[o / BLOCK * in_channels.div_ceil(PART) + i / PART];
        *gradient = sums[(i % PART * TAPS + tap) * BLOCK + o % BLOCK];
    }
    gradient
}

/// Multiplies a block of output channels by a part of the input channels.
struct Products<'a> {
    /// Planes of the input channels.
    inputs: &'a [f32],
    /// Length of a plane.
    plane: usize,
    /// Distance from one row to the next.
    stride: usize,
    /// Rows of positions, one for each channel of the block.
    outputs: &'a [f32],
    /// Number of output channels.
    channels: usize,
    /// Length of a row of positions.
    positions: usize,
    /// Positions of this pass, a multiple of [`ALIGN`].
    start: usize,
    end: usize,
    /// `[part][taps][block]`
    sums: &'a mut [f32],
}

impl SimdKernel for Products<'_> {
    #[inline(always)]
    unsafe fn run<S: SimdF32>(mut self) {
        assert!(self.start <= self.end && self.end <= self.positions && (self.end - self.start).is_multiple_of(ALIGN));
        assert!(self.positions + 2 * self.stride + 2 <= self.plane && self.outputs.len() == BLOCK * self.positions);
        let inputs = self.inputs.len() / self.plane;
        assert!(inputs * TAPS * BLOCK <= self.sums.len());
        let mut channel = 0;
        while channel < self.channels {
            let wide = S::HAS_32_REGISTERS && self.channels - channel > 4;
            for input in 0..inputs {
                for ky in 0..3 {
                    // SAFETY: the caller guarantees the instructions; channels and rows stay within bounds.
                    unsafe {
                        if wide {
                            self.tile::<S, 8>(channel, input, ky);
                        } else {
                            self.tile::<S, 4>(channel, input, ky);
                        }
                    }
                }
            }
            channel += if wide { 8 } else { 4 };
        }
    }
}

impl Products<'_> {
    /// Multiplies `C` output channels by the three taps of a filter row.
    ///
    /// # Safety
    ///
    /// The processor has the instructions; `channel + C <= BLOCK`, `ky < 3`, and the input channel exists.
    #[allow(clippy::needless_range_loop)] // Channels and taps are indexed the same way.
    #[inline(always)]
    unsafe fn tile<S: SimdF32, const C: usize>(&mut self, channel: usize, input: usize, ky: usize) {
        // SAFETY: `run` has checked that all positions, their taps and their sums exist.
        unsafe {
            let x = self.inputs.as_ptr().add(input * self.plane + ky * self.stride);
            let dy = self.outputs.as_ptr().add(channel * self.positions);
            let mut sums = [[S::zero(); 3]; C];
            let mut p = self.start;
            while p < self.end {
                let xs: [S; 3] = std::array::from_fn(|kx| S::load(x.add(p + kx)));
                for c in 0..C {
                    let d = S::load(dy.add(c * self.positions + p));
                    for kx in 0..3 {
                        sums[c][kx] = sums[c][kx].add_product(d, xs[kx]);
                    }
                }
                p += S::LANES;
            }
            // Reduce before any branch, so that the sums stay in registers.
            let totals: [[f32; 3]; C] = std::array::from_fn(|c| std::array::from_fn(|kx| sums[c][kx].reduce_sum()));
            for (c, totals) in totals.iter().enumerate() {
                for (kx, total) in totals.iter().enumerate() {
                    *self.sums.get_unchecked_mut((input * TAPS + ky * 3 + kx) * BLOCK + channel + c) += total;
                }
            }
        }
    }
}

/// Computes the gradient of the bias: dy summed over all pixels and images.
pub(crate) fn gradient_bias(dy: &[f32], sizes: Sizes) -> Vec<f32> {
    let map = sizes.pixels();
    let sum = |channel: usize| {
        let images = (0..sizes.batch).map(|n| &dy[(n * sizes.out_channels + channel) * map..][..map]);
        images.map(|map| f64::from(sum(map))).sum::<f64>() as f32
    };
    (0..sizes.out_channels).into_par_iter().map(sum).collect()
}

/// Sums in sixteen lanes, which the compiler vectorises.
fn sum(values: &[f32]) -> f32 {
    let (chunks, rest) = values.as_chunks::<16>();
    let mut sums = [0.0; 16];
    for chunk in chunks {
        sums.iter_mut().zip(chunk).for_each(|(sum, value)| *sum += value);
    }
    sums.iter().sum::<f32>() + rest.iter().sum::<f32>()
}
