//! 3x3 convolution with stride 1 and zero padding by Winograd's minimal filtering, F(4x4, 3x3): 36 products for 16 outputs instead of
//! 144 (Lavin and Gray, 2016).
//!
//! Maps are channels-last, `[h, w, C]`, so that vectors hold channels. The map is processed in bands of tile rows. For each band the
//! padded input is copied, and normalised or upsampled; its 6x6 input tiles are transformed; 36 matrix products follow; and
//! the results are transformed to 4x4 output tiles, with the bias and the residual added.
//!
//! Every output is the sum of the same products in the same order, wherever bands end: results do not depend on the number of threads.

use rayon::prelude::*;

use super::super::amx::{AmxToken, TileGuard};
use super::super::memory::AlignedVec;
use super::super::simd::{SimdF32, SimdKernel, SimdLevel};
use super::super::tasks::{self, SyncPtr};
use super::band::{Band, Input};
use super::bf16_gemm;
use super::element::Element;
use super::gemm::Product;
use super::weights::Filters;
use super::{ALIGN, CHUNK, PATCH, POINTS, TILE, transforms};

/// Tiles of one matrix product: its output stays in the L2 cache.
const TILES_AT_ONCE: usize = 30;
/// Elements of a band's transformed input tiles: they stay in the shared cache.
const BAND: usize = 1 << 21;

/// Convolves one map: `y = convolution + bias`, or `y += convolution + bias` if `add`.
///
/// # Panics
///
/// If the lengths do not fit together.
pub(super) fn convolve<N: Element>(level: SimdLevel, x: &Input<'_>, filters: &Filters<'_>, y: &mut [f32], add: bool) {
    let [height, width] = x.output();
    assert_eq!(x.channels, filters.in_channels, "filters for all channels");
    assert_eq!(y.len(), height * width * filters.out_channels, "y holds one value per pixel and output channel");
    if y.is_empty() {
        return;
    }
    let (tiles_across, tiles_down) = (width.div_ceil(TILE), height.div_ceil(TILE));
    let padded = x.channels.next_multiple_of(ALIGN);
    let rows = (BAND * N::CHANNELS / (POINTS * tiles_across * padded)).clamp(1, tiles_down);
    // If there is one band, each task transforms its own filters, which stay in the cache.
    let single_band = rows == tiles_down;
    let transformed: Vec<Vec<N>> = if single_band { Vec::new() } else { filters.transform_all(level) };
    let biases: Vec<Vec<f32>> = (0..filters.chunks()).map(|chunk| filters.bias(chunk)).collect();
    let mut band = x.band(rows, tiles_across);
    let mut domain = WinogradDomain::<N>::new(N::amx(level, x.channels.div_ceil(N::CHANNELS)), rows * tiles_across, padded);
    let product_tiles = domain.tiles_at_once();
    let scratch = || (vec![0.0; POINTS * product_tiles * CHUNK], Vec::new());
    for first in (0..tiles_down).step_by(rows) {
        let tiles = rows.min(tiles_down - first) * tiles_across;
        band.fill(level, x, first);
        domain.fill(level, &band, tiles, tiles_across);
        let out = SyncPtr::new(y.as_mut_ptr());
        // Tiles of a task, which multiplies them by one chunk of filters.
        let part = if single_band { tiles } else { product_tiles };
        let parts = tiles.div_ceil(part);
        tasks::for_each(filters.chunks() * parts, scratch, |(products, task_panels), task| {
            let (chunk, start) = (task / parts, task % parts * part);
            let panels = match transformed.get(chunk) {
                Some(panels) => panels,
                None => {
                    filters.transform(level, chunk, task_panels);
                    &*task_panels
                }
            };
            let (bias, channels) = (&biases[chunk], filters.channels(chunk));
            for start in (start..tiles.min(start + part)).step_by(product_tiles) {
                let count = product_tiles.min(tiles - start);
                domain.multiply(level, start, count, panels, bias.len(), products);
                for tile in 0..count {
                    let (row, column) = ((start + tile) / tiles_across + first, (start + tile) % tiles_across);
                    let (row, column) = (row * TILE, column * TILE);
                    // SAFETY: no other task writes these channels of the tile's pixels.
                    let to = unsafe { out.get().add((row * width + column) * filters.out_channels + channels.start) };
                    level.run(OutputTile {
                        products: &products[tile * bias.len()..],
                        point_stride: product_tiles * bias.len(),
                        bias,
                        channels: channels.len(),
                        height: TILE.min(height - row),
                        width: TILE.min(width - column),
                        to,
                        pixel_stride: filters.out_channels,
                        row_stride: width * filters.out_channels,
                        add,
                    });
                }
            }
        });
    }
}

/// The transformed input tiles of a band, `[points][tiles][padded channels]`.
struct WinogradDomain<N: Element> {
    values: AlignedVec<N>,
    /// Distance from one point to the next: a little more than the tiles take, since multiples of the page size share cache sets.
    point_stride: usize,
    /// Elements of a tile.
    tile_len: usize,
    /// With AMX, products have a multiple of [`bf16_gemm::ROWS`] rows.
    amx: Option<AmxToken>,
}

impl<N: Element> WinogradDomain<N> {
    fn new(amx: Option<AmxToken>, tiles: usize, padded: usize) -> Self {
        let tile_len = padded / N::CHANNELS;
        let point_stride = tiles * tile_len + ALIGN;
        // The last product reads whole rows beyond the last tile.
        let padding = if amx.is_some() { bf16_gemm::ROWS * tile_len } else { 0 };
        Self { values: AlignedVec::new(POINTS * point_stride + padding), point_stride, tile_len, amx }
    }

    /// Returns the tiles of one matrix product.
    fn tiles_at_once(&self) -> usize {
        if self.amx.is_some() { bf16_gemm::ROWS } else { TILES_AT_ONCE }
    }

    /// Transforms the first `tiles` input tiles of a band, `tiles_across` in a row.
    fn fill(&mut self, level: SimdLevel, band: &Band, tiles: usize, tiles_across: usize) {
        assert!(tiles * self.tile_len <= self.point_stride, "the domain holds all tiles");
        let out = SyncPtr::new(self.values.as_mut_ptr());
        let (tile_len, point_stride) = (self.tile_len, self.point_stride);
        (0..tiles).into_par_iter().for_each(|tile| {
            let input = band.input_tile(tile / tiles_across, tile % tiles_across);
            // SAFETY: no other task writes the tile's elements, `tile_len` for each point.
            let to = unsafe { out.get().add(tile * tile_len) };
            level.run(InputTile { input, padded: tile_len * N::CHANNELS, row_stride: band.row_stride(), to, point_stride });
        });
    }

    /// Multiplies tiles from `start` on by a chunk of filters, `[points][in][columns]`, to `[points][tiles][columns]`.
    fn multiply(&self, level: SimdLevel, start: usize, count: usize, panels: &[N], columns: usize, products: &mut [f32]) {
        let depth = panels.len() / POINTS / columns;
        let amx = self.amx.map(TileGuard::new);
        let (product_tiles, rows) = (self.tiles_at_once(), if amx.is_some() { bf16_gemm::ROWS } else { count });
        for (point, panel) in panels.chunks(depth * columns).enumerate() {
            let x = &self.values[point * self.point_stride + start * self.tile_len..][..rows * self.tile_len];
            let y = &mut products[point * product_tiles * columns..][..rows * columns];
            N::multiply(level, amx.as_ref(), Product { x, stride: self.tile_len, rows, panel, depth, columns, y });
        }
    }
}

/// Transforms one input tile.
struct InputTile<'a, N> {
    /// The band from the tile's first value on.
    input: &'a [f32],
    /// Padded channels.
    padded: usize,
    /// Distance from one row to the next.
    row_stride: usize,
    /// Destination of the first point, with space for all of them.
    to: *mut N,
    /// Distance from one point to the next.
    point_stride: usize,
}

impl<N: Element> SimdKernel for InputTile<'_, N> {
    #[allow(clippy::needless_range_loop)] // Rows and columns are indexed the same way.
    #[inline(always)]
    unsafe fn run<S: SimdF32>(self) {
        assert!(self.input.len() >= (PATCH - 1) * self.row_stride + PATCH * self.padded && self.padded.is_multiple_of(ALIGN));
        // SAFETY: the caller guarantees the instructions; the input has the asserted length, and `to` has space for all points.
        unsafe {
            let mut channel = 0;
            while channel < self.padded {
                let mut d = [[S::zero(); PATCH]; PATCH];
                for i in 0..PATCH {
                    for j in 0..PATCH {
                        d[i][j] = S::load(self.input.as_ptr().add(i * self.row_stride + j * self.padded + channel));
                    }
                }
                let points = transforms::input(d);
                for i in 0..PATCH {
                    for j in 0..PATCH {
                        N::write(points[i][j], self.to.add((i * PATCH + j) * self.point_stride + channel / N::CHANNELS));
                    }
                }
                channel += S::LANES;
            }
        }
    }
}

/// Transforms products to one output tile of some channels.
struct OutputTile<'a> {
    products: &'a [f32],
    /// Distance from one point to the next.
    point_stride: usize,
    /// `[channels]`, zero-padded to a multiple of [`ALIGN`].
    bias: &'a [f32],
    /// Number of channels.
    channels: usize,
    /// Rows of the tile inside the map.
    height: usize,
    /// Columns of the tile inside the map.
    width: usize,
    /// Destination of the first pixel, with space for all of them.
    to: *mut f32,
    /// Distance from one pixel to the next.
    pixel_stride: usize,
    /// Distance from one row to the next.
    row_stride: usize,
    /// `true` if the destination holds a residual to add to.
    add: bool,
}

impl SimdKernel for OutputTile<'_> {
    #[allow(clippy::needless_range_loop)] // Rows and columns are indexed the same way.
    #[inline(always)]
    unsafe fn run<S: SimdF32>(self) {
        let columns = self.bias.len();
        assert!(self.products.len() >= (POINTS - 1) * self.point_stride + columns && columns.is_multiple_of(ALIGN));
        assert!(self.channels <= columns && self.height <= TILE && self.width <= TILE);
        // SAFETY: the caller guarantees the instructions; the products have the asserted length, and `to` has space for the tile.
        unsafe {
            let mut channel = 0;
            while channel < self.channels {
                let mut m = [[S::zero(); PATCH]; PATCH];
                for i in 0..PATCH {
                    for j in 0..PATCH {
                        m[i][j] = S::load(self.products.as_ptr().add((i * PATCH + j) * self.point_stride + channel));
                    }
                }
                let bias = S::load(self.bias.as_ptr().add(channel));
                let pixels = transforms::output(m);
                let left = self.channels - channel;
                for i in 0..self.height {
                    for j in 0..self.width {
                        let to = self.to.add(i * self.row_stride + j * self.pixel_stride + channel);
                        let one = S::splat(1.0);
                        let mut values = pixels[i][j].add_product(bias, one);
                        if left >= S::LANES {
                            if self.add {
                                values = values.add_product(S::load(to), one);
                            }
                            values.store(to);
                        } else {
                            if self.add {
                                values = values.add_product(S::load_partial(to, left), one);
                            }
                            let mut all = [0.0; ALIGN];
                            values.store(all.as_mut_ptr());
                            to.copy_from_nonoverlapping(all.as_ptr(), left);
                        }
                    }
                }
                channel += S::LANES;
            }
        }
    }
}
