//! The convolution, computed in strips of output rows, and the gradient of x, which is a convolution with transposed filters.

use rayon::prelude::*;

use super::super::simd::{SimdF32, SimdKernel, SimdLevel};
use super::{ALIGN, BLOCK, Sizes, TAPS, fill_plane};

/// Input values that a task copies to planes, which stay in the L2 cache.
const TASK: usize = 96 * 1024;
/// Minimum number of output rows of a task, which copies two more input rows.
const MIN_ROWS: usize = 4;

/// Computes `y[o] = b[o] + sum over i of x[i] * w[o][i]`, with x `[B, in, H, W]`, w `[out, in, 3, 3]` and y `[B, out, H, W]`.
pub(crate) fn forward(x: &[f32], weights: &[f32], bias: &[f32], sizes: Sizes) -> Vec<f32> {
    forward_with(SimdLevel::best(), x, weights, bias, sizes)
}

pub(super) fn forward_with(level: SimdLevel, x: &[f32], weights: &[f32], bias: &[f32], sizes: Sizes) -> Vec<f32> {
    assert_eq!(bias.len(), sizes.out_channels, "one bias per output channel");
    let (in_channels, out_channels) = (sizes.in_channels, sizes.out_channels);
    assert_eq!(weights.len(), out_channels * in_channels * TAPS, "a 3x3 filter for each pair of channels");
    let packed = pack(out_channels, in_channels, bias, |o, i, tap| weights[(o * in_channels + i) * TAPS + tap]);
    convolve(level, x, &packed, sizes)
}

/// Computes the gradient of x: `dy` convolved with the filters rotated by 180 degrees and their channels swapped.
#[cfg(any(test, feature = "train"))]
pub(crate) fn gradient_x(dy: &[f32], weights: &[f32], sizes: Sizes) -> Vec<f32> {
    gradient_x_with(SimdLevel::best(), dy, weights, sizes)
}

#[cfg(any(test, feature = "train"))]
pub(super) fn gradient_x_with(level: SimdLevel, dy: &[f32], weights: &[f32], sizes: Sizes) -> Vec<f32> {
    let (in_channels, out_channels) = (sizes.in_channels, sizes.out_channels);
    assert_eq!(weights.len(), out_channels * in_channels * TAPS, "a 3x3 filter for each pair of channels");
    let packed = pack(in_channels, out_channels, &vec![0.0; in_channels], |i, o, tap| {
        weights[(o * in_channels + i) * TAPS + TAPS - 1 - tap]
    });
    convolve(level, dy, &packed, Sizes { in_channels: out_channels, out_channels: in_channels, ..sizes })
}

/// Packed weights `[in][taps][block]` and biases of a block of output channels, zero-padded.
struct FilterBlock {
    weights: Vec<f32>,
    bias: [f32; BLOCK],
}

fn pack(
    out_channels: usize,
    in_channels: usize,
    bias: &[f32],
    weight: impl Fn(usize, usize, usize) -> f32 + Sync,
) -> Vec<FilterBlock> {
    let block = |first: usize| {
        let channel = |o: usize| (first + o < out_channels).then_some(first + o);
        let mut weights = Vec::with_capacity(in_channels * TAPS * BLOCK);
        for i in 0..in_channels {
            for tap in 0..TAPS {
                weights.extend((0..BLOCK).map(|o| channel(o).map_or(0.0, |o| weight(o, i, tap))));
            }
        }
        FilterBlock { weights, bias: std::array::from_fn(|o| channel(o).map_or(0.0, |o| bias[o])) }
    };
    (0..out_channels).into_par_iter().step_by(BLOCK).map(block).collect()
}

fn convolve(level: SimdLevel, x: &[f32], packed: &[FilterBlock], sizes: Sizes) -> Vec<f32> {
    let Sizes { batch, in_channels, out_channels, height, width } = sizes;
    let (map, stride) = (sizes.pixels(), sizes.stride());
    let mut y = vec![0.0; batch * out_channels * map];
    sizes.check(x, &y);
    if y.is_empty() {
        return y;
    }
    // Output rows of a task.
    let rows = (TASK / (in_channels.max(1) * stride)).max(MIN_ROWS).min(height);
    let strips = height.div_ceil(rows);
    let positions = (rows * stride).next_multiple_of(ALIGN);
    let plane = positions + 2 * stride + 2;
    // The rows of each channel that a task writes.
    let mut parts: Vec<Vec<&mut [f32]>> = (0..batch * strips).map(|_| Vec::with_capacity(out_channels)).collect();
    for (index, channel) in y.chunks_mut(map).enumerate() {
        for (strip, part) in channel.chunks_mut(rows * width).enumerate() {
            parts[index / out_channels * strips + strip].push(part);
        }
    }
    parts.into_par_iter().enumerate().for_each_init(
        || (vec![0.0; in_channels * plane], vec![0.0; BLOCK * positions]),
        |(input, output), (task, mut parts)| {
            let (image, first) = (task / strips, task % strips * rows);
            let maps = x[image * in_channels * map..][..in_channels * map].chunks(map);
            for (plane, map) in input.chunks_mut(plane).zip(maps) {
                fill_plane(plane, map, width, first as isize - 1);
            }
            // The last strip may have fewer rows.
            let positions = (parts[0].len() / width * stride).next_multiple_of(ALIGN);
            for (packed, parts) in packed.iter().zip(parts.chunks_mut(BLOCK)) {
                level.run(Strip { input, plane, stride, packed, channels: parts.len(), positions, output });
                for (part, channel) in parts.iter_mut().zip(output.chunks(positions)) {
                    for (row, computed) in part.chunks_mut(width).zip(channel.chunks(stride)) {
                        row.copy_from_slice(&computed[..width]);
                    }
                }
            }
        },
    );
    y
}

/// Computes a block of output channels of a strip.
struct Strip<'a> {
    /// Planes of the input channels.
    input: &'a [f32],
    /// Length of a plane.
    plane: usize,
    /// Distance from one row to the next.
    stride: usize,
    packed: &'a FilterBlock,
    /// Number of output channels.
    channels: usize,
    /// Positions of the output, a multiple of [`ALIGN`].
    positions: usize,
    /// Rows of positions, one for each channel of the block.
    output: &'a mut [f32],
}

impl SimdKernel for Strip<'_> {
    #[inline(always)]
    unsafe fn run<S: SimdF32>(mut self) {
        assert!(self.positions + 2 * self.stride + 2 <= self.plane && self.positions.is_multiple_of(ALIGN));
        assert!(self.input.len().is_multiple_of(self.plane) && self.output.len() >= BLOCK * self.positions);
        assert_eq!(self.packed.weights.len(), self.input.len() / self.plane * TAPS * BLOCK);
        let vectors = self.positions / S::LANES;
        let mut channel = 0;
        while channel < self.channels {
            let wide = S::HAS_32_REGISTERS && self.channels - channel > 4;
            let mut vector = 0;
            while vector < vectors {
                let p = vector * S::LANES;
                // SAFETY: the caller guarantees the instructions; channel and positions stay within the bounds that `tile` requires.
                unsafe {
                    match (vectors - vector, wide) {
                        (1, true) => self.tile::<S, 8, 1>(channel, p),
                        (2, true) => self.tile::<S, 8, 2>(channel, p),
                        (_, true) => self.tile::<S, 8, 3>(channel, p),
                        (1, false) => self.tile::<S, 4, 1>(channel, p),
                        (2, false) => self.tile::<S, 4, 2>(channel, p),
                        (_, false) => self.tile::<S, 4, 3>(channel, p),
                    }
                }
                vector += (vectors - vector).min(3);
            }
            channel += if wide { 8 } else { 4 };
        }
    }
}

impl Strip<'_> {
    /// Computes a register block: `C` channels at `V` vectors of positions from p on.
    ///
    /// # Safety
    ///
    /// The processor has the instructions; `channel + C <= BLOCK` and `p + V * S::LANES <= self.positions`.
    #[allow(clippy::needless_range_loop)] // Channels and vectors are indexed the same way.
    #[inline(always)]
    unsafe fn tile<S: SimdF32, const C: usize, const V: usize>(&mut self, channel: usize, p: usize) {
        // SAFETY: the furthest tap is `2 * stride + 2` after a position. `run` has checked that planes are that long, and that every
        // plane has weights and every position an output.
        unsafe {
            let mut sums = [[S::zero(); V]; C];
            for (c, sums) in sums.iter_mut().enumerate() {
                *sums = [S::splat(*self.packed.bias.get_unchecked(channel + c)); V];
            }
            let mut plane = self.input.as_ptr().add(p);
            let mut weights = self.packed.weights.as_ptr().add(channel);
            for _ in 0..self.input.len() / self.plane {
                for ky in 0..3 {
                    for kx in 0..3 {
                        let from = plane.add(ky * self.stride + kx);
                        let xs: [S; V] = std::array::from_fn(|v| S::load(from.add(v * S::LANES)));
                        for c in 0..C {
                            let w = S::splat(*weights.add(c));
                            for v in 0..V {
                                sums[c][v] = sums[c][v].add_product(w, xs[v]);
                            }
                        }
                        weights = weights.add(BLOCK);
                    }
                }
                plane = plane.add(self.plane);
            }
            for c in 0..C {
                let to = self.output.as_mut_ptr().add((channel + c) * self.positions + p);
                for v in 0..V {
                    sums[c][v].store(to.add(v * S::LANES));
                }
            }
        }
    }
}
