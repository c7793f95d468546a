//! Convolution with a 3x3 kernel, stride 1 and a border of zeros by Winograd's minimal filtering, F(4x4, 3x3): 36 products for 16
//! places and not 144 (Lavin and Gray 2016).
//!
//! Maps lie channels last, `[h, w, C]`, so that all channels of a place are computed side by side. A map is gone through in bands of
//! rows of tiles: what is convolved is laid out with its border (normed, or with doubled sides, as it is read), its patches are
//! transformed, the products are 36 matrix products, and their results are transformed back, with the bias and what is added.
//!
//! Every number is the sum of the same products in the same order, wherever bands end and whoever computes it: results don't depend on
//! the number of threads.

use rayon::prelude::*;

use super::super::amx::{AmxToken, TileGuard};
use super::super::memory::AlignedVec;
use super::super::simd::{SimdF32, SimdKernel, SimdLevel};
use super::super::tasks::{self, SyncPtr};
use super::bf16_gemm;
use super::element::Number;
use super::gemm::Product;
use super::patches::{Band, Input};
use super::weights::Kernels;
use super::{CHUNK, PATCH, POINTS, STEP, TILE, transforms};

/// Tiles that are multiplied together: what comes out stays in a core's second cache.
const RUN: usize = 30;
/// Numbers of a band's transformed patches: they stay in the cache that cores share.
const BAND: usize = 1 << 21;

/// Convolves one image: `y = convolution + bias`, or `y += ` that, if `add`.
///
/// # Panics
///
/// If lengths don't fit together.
pub(super) fn convolve<N: Number>(level: SimdLevel, x: &Input<'_>, kernels: &Kernels<'_>, y: &mut [f32], add: bool) {
    let [height, width] = x.output();
    assert_eq!(x.channels, kernels.from, "kernels for all channels");
    assert_eq!(y.len(), height * width * kernels.to, "one output for each place");
    if y.is_empty() {
        return;
    }
    let (across, down) = (width.div_ceil(TILE), height.div_ceil(TILE));
    let padded = x.channels.next_multiple_of(STEP);
    let rows = (BAND * N::CHANNELS / (POINTS * across * padded)).clamp(1, down);
    // Kernels that are used for one band only are transformed where they are used, and stay in the cache.
    let once = rows == down;
    let transformed: Vec<Vec<N>> = if once { Vec::new() } else { kernels.transform_all(level) };
    let biases: Vec<Vec<f32>> = (0..kernels.chunks()).map(|chunk| kernels.bias(chunk)).collect();
    let mut band = x.band(rows, across);
    let mut points = Points::<N>::new(N::matrices(level, x.channels.div_ceil(N::CHANNELS)), rows * across, padded);
    let run = points.run();
    let room = || (vec![0.0; POINTS * run * CHUNK], Vec::new());
    for first in (0..down).step_by(rows) {
        let tiles = rows.min(down - first) * across;
        band.fill(level, x, first);
        points.fill(level, &band, tiles, across);
        let out = SyncPtr::new(y.as_mut_ptr());
        // Tiles that a task multiplies with a chunk of kernels.
        let part = if once { tiles } else { run };
        let parts = tiles.div_ceil(part);
        tasks::for_each(kernels.chunks() * parts, room, |(products, scratch), task| {
            let (chunk, start) = (task / parts, task % parts * part);
            let panels = match transformed.get(chunk) {
                Some(panels) => panels,
                None => {
                    kernels.transform(level, chunk, scratch);
                    &*scratch
                }
            };
            let (bias, channels) = (&biases[chunk], kernels.channels(chunk));
            for start in (start..tiles.min(start + part)).step_by(run) {
                let count = run.min(tiles - start);
                points.multiply(level, start, count, panels, bias.len(), products);
                for tile in 0..count {
                    let (row, column) = ((start + tile) / across + first, (start + tile) % across);
                    let (row, column) = (row * TILE, column * TILE);
                    // SAFETY: this task alone writes these channels of the tile's places.
                    let to = unsafe { out.get().add((row * width + column) * kernels.to + channels.start) };
                    level.run(Tile {
                        products: &products[tile * bias.len()..],
                        stride: run * bias.len(),
                        bias,
                        channels: channels.len(),
                        height: TILE.min(height - row),
                        width: TILE.min(width - column),
                        to,
                        place: kernels.to,
                        row: width * kernels.to,
                        add,
                    });
                }
            }
        });
    }
}

/// A band's patches at all points, `[points][tiles][channels as laid out]`.
struct Points<N: Number> {
    numbers: AlignedVec<N>,
    /// From one point to the next: a little more than the tiles take, since distances of whole pages meet in the same places of the
    /// cache.
    stride: usize,
    /// Numbers of a tile.
    row: usize,
    /// Registers for matrices, that multiply whole [`bf16_gemm::ROWS`].
    matrices: Option<AmxToken>,
}

impl<N: Number> Points<N> {
    fn new(matrices: Option<AmxToken>, tiles: usize, padded: usize) -> Self {
        let row = padded / N::CHANNELS;
        let stride = tiles * row + STEP;
        // A last run that is not whole is multiplied with what lies behind it.
        let behind = if matrices.is_some() { bf16_gemm::ROWS * row } else { 0 };
        Self { numbers: AlignedVec::new(POINTS * stride + behind), stride, row, matrices }
    }

    /// Tiles that are multiplied together.
    fn run(&self) -> usize {
        if self.matrices.is_some() { bf16_gemm::ROWS } else { RUN }
    }

    /// Transforms the patches of the first `tiles` of a band with rows of `across`.
    fn fill(&mut self, level: SimdLevel, band: &Band, tiles: usize, across: usize) {
        assert!(tiles * self.row <= self.stride, "room for all tiles");
        let out = SyncPtr::new(self.numbers.as_mut_ptr());
        let (row, stride) = (self.row, self.stride);
        (0..tiles).into_par_iter().for_each(|tile| {
            let patch = band.patch(tile / across, tile % across);
            // SAFETY: this task alone writes the tile's numbers, of which there are `row` for each point.
            let to = unsafe { out.get().add(tile * row) };
            level.run(Patch { patch, padded: row * N::CHANNELS, row: band.row(), to, stride });
        });
    }

    /// Tiles from `start` on times a chunk of kernels, `[points][from][columns]`: `[points][run][columns]`.
    fn multiply(&self, level: SimdLevel, start: usize, count: usize, panels: &[N], columns: usize, products: &mut [f32]) {
        let depth = panels.len() / POINTS / columns;
        let ready = self.matrices.map(TileGuard::new);
        let (run, rows) = (self.run(), if ready.is_some() { bf16_gemm::ROWS } else { count });
        for (point, panel) in panels.chunks(depth * columns).enumerate() {
            let x = &self.numbers[point * self.stride + start * self.row..][..rows * self.row];
            let y = &mut products[point * run * columns..][..rows * columns];
            N::multiply(level, ready.as_ref(), Product { x, stride: self.row, rows, panel, depth, columns, y });
        }
    }
}

/// A patch to its points.
struct Patch<'a, N> {
    /// From the patch's first number on.
    patch: &'a [f32],
    /// Channels as laid out.
    padded: usize,
    /// From one row to the next.
    row: usize,
    /// Where the first point's numbers go; there is room for all.
    to: *mut N,
    /// From one point to the next.
    stride: usize,
}

impl<N: Number> SimdKernel for Patch<'_, N> {
    #[allow(clippy::needless_range_loop)] // Rows and columns play the same part.
    #[inline(always)]
    unsafe fn run<S: SimdF32>(self) {
        assert!(self.patch.len() >= (PATCH - 1) * self.row + PATCH * self.padded && self.padded.is_multiple_of(STEP));
        // SAFETY: the processor has the lanes; the patch is as long as that, and there is room for its points.
        unsafe {
            let mut channel = 0;
            while channel < self.padded {
                let mut d = [[S::zero(); PATCH]; PATCH];
                for i in 0..PATCH {
                    for j in 0..PATCH {
                        d[i][j] = S::load(self.patch.as_ptr().add(i * self.row + j * self.padded + channel));
                    }
                }
                let points = transforms::patch(d);
                for i in 0..PATCH {
                    for j in 0..PATCH {
                        N::write(points[i][j], self.to.add((i * PATCH + j) * self.stride + channel / N::CHANNELS));
                    }
                }
                channel += S::LANES;
            }
        }
    }
}

/// Products at all points to a tile of some channels.
struct Tile<'a> {
    products: &'a [f32],
    /// From one point to the next.
    stride: usize,
    /// As many as channels, and zeros to a multiple of [`STEP`].
    bias: &'a [f32],
    /// Channels that are there.
    channels: usize,
    /// Rows and columns of the tile that are there.
    height: usize,
    width: usize,
    /// Where they go: there is room for them.
    to: *mut f32,
    /// From one place to the next.
    place: usize,
    /// From one row to the next.
    row: usize,
    /// Whether they are added to what is there.
    add: bool,
}

impl SimdKernel for Tile<'_> {
    #[allow(clippy::needless_range_loop)] // Rows and columns play the same part.
    #[inline(always)]
    unsafe fn run<S: SimdF32>(self) {
        let columns = self.bias.len();
        assert!(self.products.len() >= (POINTS - 1) * self.stride + columns && columns.is_multiple_of(STEP));
        assert!(self.channels <= columns && self.height <= TILE && self.width <= TILE);
        // SAFETY: the processor has the lanes; products are there, and there is room for the channels of the tile's places.
        unsafe {
            let mut channel = 0;
            while channel < self.channels {
                let mut m = [[S::zero(); PATCH]; PATCH];
                for i in 0..PATCH {
                    for j in 0..PATCH {
                        m[i][j] = S::load(self.products.as_ptr().add((i * PATCH + j) * self.stride + channel));
                    }
                }
                let bias = S::load(self.bias.as_ptr().add(channel));
                let places = transforms::tile(m);
                let there = self.channels - channel;
                for i in 0..self.height {
                    for j in 0..self.width {
                        let to = self.to.add(i * self.row + j * self.place + channel);
                        let one = S::splat(1.0);
                        let mut numbers = places[i][j].add_product(bias, one);
                        if there >= S::LANES {
                            if self.add {
                                numbers = numbers.add_product(S::load(to), one);
                            }
                            numbers.store(to);
                        } else {
                            if self.add {
                                numbers = numbers.add_product(S::load_partial(to, there), one);
                            }
                            let mut all = [0.0; STEP];
                            numbers.store(all.as_mut_ptr());
                            to.copy_from_nonoverlapping(all.as_ptr(), there);
                        }
                    }
                }
                channel += S::LANES;
            }
        }
    }
}
