//! 3x3 convolution with stride 1 and zero padding by Winograd's minimal filtering, F(4x4, 3x3): 36 products for 16 outputs instead of
//! 144 (Lavin and Gray, 2016).
//!
//! Maps are channels-last, `[h, w, C]`, so that vectors hold channels. The map is processed in bands of tile rows. For each band the
//! padded input is copied, and normalised or upsampled; its 6x6 input tiles are transformed; 36 matrix products follow; and
//! the results are transformed to 4x4 output tiles, with the bias and the residual added.
//!
//! Every output is the sum of the same products in the same order, wherever bands end: results do not depend on the number of threads.

use std::mem::take;
use std::ops::Range;

use rayon::prelude::*;

use super::super::amx::{AmxToken, TileGuard};
use super::super::memory::AlignedVec;
use super::super::simd::{SimdF32, SimdKernel, SimdLevel};
use super::super::tasks::{self, SyncPtr};
use super::band::{Band, Input};
use super::bf16_gemm;
use super::element::Element;
use super::gemm::Product;
use super::value::{Value, round_all};
use super::weights::Filters;
use super::{ALIGN, CHUNK, PATCH, POINTS, TILE, transforms};

/// Tiles of one matrix product. With this number, its output stays in the L2 cache.
const TILES_AT_ONCE: usize = 30;
/// Elements of a band's transformed input tiles. With this number, the tiles stay in the shared cache.
const BAND: usize = 1 << 21;

/// Convolves one map: `y = convolution + bias`, or `y += convolution + bias` if `add`.
///
/// # Panics
///
/// If the lengths do not fit together.
pub(super) fn convolve<N: Element, X: Value, Y: Value>(
    level: SimdLevel,
    x: &Input<'_, X>,
    filters: &Filters<'_>,
    y: &mut [Y],
    add: bool,
) {
    let size = x.output();
    assert_eq!(y.len(), size[0] * size[1] * filters.out_channels, "y holds one value per pixel and output channel");
    if y.is_empty() {
        return;
    }
    let mut convolution = Convolution::<N>::new(level, filters, size, band_rows::<N>(filters.in_channels, size));
    for band in 0..convolution.bands() {
        convolution.read(x, band);
        let values = convolution.values(band);
        convolution.write(&mut y[values], add);
    }
}

/// Returns the number of tile rows of a band for a convolution with this height and width.
pub(super) fn band_rows<N: Element>(in_channels: usize, [height, width]: [usize; 2]) -> usize {
    let row = POINTS * width.div_ceil(TILE) * in_channels.next_multiple_of(ALIGN);
    (BAND * N::CHANNELS / row).clamp(1, height.div_ceil(TILE))
}

/// A convolution of one map, band by band. A band is read before it is written, so that the output may replace the input.
pub(super) struct Convolution<'a, N: Element> {
    level: SimdLevel,
    filters: &'a Filters<'a>,
    /// Height and width of the output.
    size: [usize; 2],
    /// Tile rows of a band.
    rows: usize,
    /// Transformed filters of each chunk; empty if there is only one band.
    transformed: Vec<Vec<N>>,
    biases: Vec<Vec<f32>>,
    input: Band,
    domain: WinogradDomain<N>,
    /// The band that was read last.
    band: usize,
    /// The values of a band in f32 before they are rounded.
    unrounded: Vec<f32>,
}

impl<'a, N: Element> Convolution<'a, N> {
    /// Creates a convolution with this height and width, in bands of `rows` tile rows.
    pub(super) fn new(level: SimdLevel, filters: &'a Filters<'a>, size: [usize; 2], rows: usize) -> Self {
        let (channels, tiles_across) = (filters.in_channels, size[1].div_ceil(TILE));
        // If there is one band, each task transforms its own filters, which stay in the cache.
        let single_band = rows >= size[0].div_ceil(TILE);
        let amx = N::amx(level, channels.div_ceil(N::CHANNELS));
        Self {
            level,
            filters,
            size,
            rows,
            transformed: if single_band { Vec::new() } else { filters.transform_all(level) },
            biases: (0..filters.chunks()).map(|chunk| filters.bias(chunk)).collect(),
            input: Band::new(channels, rows, tiles_across),
            domain: WinogradDomain::new(amx, rows * tiles_across, channels.next_multiple_of(ALIGN)),
            band: 0,
            unrounded: Vec::new(),
        }
    }

    /// Returns the number of bands.
    pub(super) fn bands(&self) -> usize {
        self.size[0].div_ceil(TILE * self.rows)
    }

    /// Returns the range of a band's values in the output.
    pub(super) fn values(&self, band: usize) -> Range<usize> {
        let ([height, width], rows) = (self.size, TILE * self.rows);
        let row = width * self.filters.out_channels;
        band * rows * row..height.min((band + 1) * rows) * row
    }

    /// Returns the number of tiles of the band that was read last.
    fn tiles(&self) -> usize {
        let [height, width] = self.size;
        self.rows.min(height.div_ceil(TILE) - self.band * self.rows) * width.div_ceil(TILE)
    }

    /// Reads and transforms the input of a band. Bands are read in order.
    ///
    /// # Panics
    ///
    /// If the input has another size.
    pub(super) fn read<T: Value>(&mut self, x: &Input<'_, T>, band: usize) {
        assert_eq!((x.channels, x.output()), (self.filters.in_channels, self.size), "a map of the convolution's size");
        self.band = band;
        self.input.fill(self.level, x, band * self.rows);
        self.domain.fill(self.level, &self.input, self.tiles(), self.size[1].div_ceil(TILE));
    }

    /// Computes the output of the band that was read last: `y = convolution + bias`, or `y += convolution + bias` if `add`.
    ///
    /// # Panics
    ///
    /// If y does not have the band's length.
    pub(super) fn write<T: Value>(&mut self, y: &mut [T], add: bool) {
        if let Some(y) = T::as_f32(y) {
            self.write_f32(y, add);
            return;
        }
        let mut values = take(&mut self.unrounded);
        values.resize(y.len(), 0.0);
        self.write_f32(&mut values, false);
        round_all(self.level, &values, y, add);
        self.unrounded = values;
    }

    fn write_f32(&self, y: &mut [f32], add: bool) {
        let Self { level, filters, size: [height, width], .. } = *self;
        assert_eq!(y.len(), self.values(self.band).len(), "y holds one value per pixel and output channel");
        let (tiles, tiles_across, product_tiles) = (self.tiles(), width.div_ceil(TILE), self.domain.tiles_at_once());
        let height = height - self.band * self.rows * TILE; // from the band on
        let scratch = || (vec![0.0; POINTS * product_tiles * CHUNK], Vec::new());
        let out = SyncPtr::new(y.as_mut_ptr());
        // Tiles of a task, which multiplies them by one chunk of filters.
        let part = if self.transformed.is_empty() { tiles } else { product_tiles };
        let parts = tiles.div_ceil(part);
        tasks::for_each(filters.chunks() * parts, scratch, |(products, task_panels), task| {
            let (chunk, start) = (task / parts, task % parts * part);
            let panels = match self.transformed.get(chunk) {
                Some(panels) => panels,
                None => {
                    filters.transform(level, chunk, task_panels);
                    &*task_panels
                }
            };
            let (bias, channels) = (&self.biases[chunk], filters.channels(chunk));
            for start in (start..tiles.min(start + part)).step_by(product_tiles) {
                let count = product_tiles.min(tiles - start);
                self.domain.multiply(level, start, count, panels, bias.len(), products);
                for tile in 0..count {
                    let (row, column) = ((start + tile) / tiles_across * TILE, (start + tile) % tiles_across * TILE);
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

    /// Returns the number of tiles of one matrix product.
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
