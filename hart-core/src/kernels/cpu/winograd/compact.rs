//! Operations on the largest maps with less memory: the map between the two convolutions of a residual block exists only in part, and
//! an upsampled map is written over its input.

use super::super::simd::SimdLevel;
use super::TILE;
use super::band::{Input, InputOp};
use super::conv3x3::{Convolution, band_rows};
use super::element::Element;
use super::group_norm::{GroupNormArgs, Normalization, PIXELS, PartialSums};
use super::value::Value;
use super::weights::Filters;

/// A residual block without its shortcut.
#[derive(Clone, Copy, Debug)]
pub(super) struct Block<'a> {
    pub(super) norms: [GroupNormArgs<'a>; 2],
    pub(super) filters: [Filters<'a>; 2],
    /// Height and width.
    pub(super) size: [usize; 2],
}

impl Block<'_> {
    /// Computes `y += conv2(silu(norm2(conv1(silu(norm1(x))))))` for one map. If x is `None`, it is y itself.
    ///
    /// The first convolution is computed twice: once for the statistics of the second norm, and once in step with the second
    /// convolution, one band ahead of it. The second convolution therefore never overwrites a row of x that is still to be read.
    /// The result is the same to the bit as with a whole f32 map between the convolutions.
    ///
    /// # Panics
    ///
    /// If the lengths do not fit together.
    pub(super) fn run<N: Element, T: Value>(&self, level: SimdLevel, x: Option<&[T]>, y: &mut [T]) {
        let [rows, hidden_rows] = self.filters.map(|filters| band_rows::<N>(filters.in_channels, self.size));
        self.run_in_bands::<N, T>(level, rows.min(hidden_rows), x, y);
    }

    /// Like [`Self::run`], in bands of `rows` tile rows.
    fn run_in_bands<N: Element, T: Value>(&self, level: SimdLevel, rows: usize, x: Option<&[T]>, y: &mut [T]) {
        let [first, second] = &self.filters;
        let norm = self.norms[0].normalization(level, x.unwrap_or(y));
        let mut conv1 = Convolution::<N>::new(level, first, self.size, rows);
        let (bands, row) = (conv1.bands(), self.size[1] * first.out_channels);
        // Room for a band and the pixels before it that are not summed yet, and later for two bands: the one that the second
        // convolution processes and the next one, whose first row it reads too.
        let band = rows * TILE * row;
        let mut hidden = vec![0.0; band + band.max(PIXELS * first.out_channels)];

        let mut sums = PartialSums::new(level, first.out_channels);
        let mut pending = 0; // values that are not summed yet
        for index in 0..bands {
            conv1.read(&self.input(x.unwrap_or(y), first, &norm), index);
            let end = pending + conv1.values(index).len();
            conv1.write(&mut hidden[pending..end], false);
            let part = PIXELS * first.out_channels;
            let whole = if index + 1 == bands { end } else { end / part * part };
            if whole > 0 {
                sums.add(&hidden[..whole]);
            }
            hidden.copy_within(whole..end, 0);
            pending = end - whole;
        }

        let hidden_norm = self.norms[1].normalization_of(&sums);
        let mut conv2 = Convolution::<N>::new(level, second, self.size, rows);
        let ring = &mut hidden[..2 * band];
        for index in 0..=bands {
            if index < bands {
                conv1.read(&self.input(x.unwrap_or(y), first, &norm), index);
                let start = index % 2 * band;
                conv1.write(&mut ring[start..start + conv1.values(index).len()], false);
            }
            if let Some(before) = index.checked_sub(1) {
                conv2.read(&self.input(ring, second, &hidden_norm), before);
                let values = conv2.values(before);
                conv2.write(&mut y[values], true);
            }
        }
    }

    fn input<'a, T>(&self, map: &'a [T], filters: &Filters<'_>, norm: &'a Normalization) -> Input<'a, T> {
        let [height, width] = self.size;
        Input { map, height, width, channels: filters.in_channels, op: InputOp::NormSilu(norm) }
    }
}

/// Upsamples maps by two and convolves them, from the end of their output's memory to its beginning.
///
/// The last values of `y` are the maps, `[batch][height][width][in]`; all of it becomes `[batch][2 height][2 width][out]`.
///
/// # Panics
///
/// If the lengths do not fit together, or the maps are longer than the output.
pub(super) fn upsample<N: Element, T: Value>(level: SimdLevel, y: &mut [T], [height, width]: [usize; 2], filters: &Filters<'_>) {
    upsample_in_bands::<N, T>(level, band_rows::<N>(filters.in_channels, [2 * height, 2 * width]), y, [height, width], filters);
}

/// Like [`upsample`], in bands of `rows` tile rows.
fn upsample_in_bands<N: Element, T: Value>(
    level: SimdLevel,
    rows: usize,
    y: &mut [T],
    [height, width]: [usize; 2],
    filters: &Filters<'_>,
) {
    let (image, channels, size) = (height * width * filters.in_channels, filters.in_channels, [2 * height, 2 * width]);
    let output = 4 * height * width * filters.out_channels;
    let images = y.len() / output;
    assert!(image <= output && y.len() == images * output, "whole maps, no longer than the output");
    let tail = images * (output - image);
    for index in 0..images {
        let mut convolution = Convolution::<N>::new(level, filters, size, rows);
        for band in 0..convolution.bands() {
            // Rows that are still to be read lie beyond the band: after a band, the same fraction of the input is read as of the
            // output is written, and both end at the same address.
            let map = &y[tail + index * image..][..image];
            convolution.read(&Input { map, height, width, channels, op: InputOp::Upsample }, band);
            let values = convolution.values(band);
            convolution.write(&mut y[index * output..][values], false);
        }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::super::bf16_gemm::Pair;
    use super::super::conv3x3::convolve;
    use super::super::weights::Weights;
    use super::*;
    use crate::kernels::testing::waves_f64;

    /// Height, width, channels and hidden channels. They cover whole and partial tiles, parts of the statistics, and vectors.
    const SIZES: [[usize; 4]; 6] =
        [[16, 16, 16, 16], [9, 13, 6, 4], [1, 1, 2, 2], [37, 21, 4, 34], [4, 70, 48, 6], [21, 300, 2, 8]];

    struct Operands {
        x: Vec<f32>,
        weights: [Vec<f32>; 2],
        bias: Vec<f32>,
    }

    impl Operands {
        fn new([height, width, channels, hidden]: [usize; 4]) -> Self {
            let weights = |speed| waves_f64(hidden * channels * 9, speed);
            let x = waves_f64(height * width * channels, 0.7).iter().map(|x| bf16::from_f32(2.0 * x + 1.0).to_f32()).collect();
            Self { x, weights: [weights(1.3), weights(0.9)], bias: waves_f64(channels.max(hidden), 0.4) }
        }

        fn block(&self, [height, width, channels, hidden]: [usize; 4]) -> Block<'_> {
            let norm =
                |channels| GroupNormArgs { scale: &self.bias[..channels], shift: &self.bias[..channels], groups: 2, epsilon: 1e-6 };
            let filters = |weights, in_channels, out_channels| Filters {
                weights: Weights::F32(weights),
                bias: &self.bias[..out_channels],
                in_channels,
                out_channels,
            };
            Block {
                norms: [norm(channels), norm(hidden)],
                filters: [filters(&self.weights[0], channels, hidden), filters(&self.weights[1], hidden, channels)],
                size: [height, width],
            }
        }
    }

    /// Computes the block with the whole map between the convolutions.
    fn run_whole<N: Element>(level: SimdLevel, block: &Block<'_>, x: &[f32]) -> Vec<f32> {
        let [first, second] = &block.filters;
        let mut hidden = vec![0.0; block.size[0] * block.size[1] * first.out_channels];
        convolve::<N, f32, f32>(level, &block.input(x, first, &block.norms[0].normalization(level, x)), first, &mut hidden, false);
        let mut y = x.to_vec();
        let norm = block.norms[1].normalization(level, &hidden);
        convolve::<N, f32, f32>(level, &block.input(&hidden, second, &norm), second, &mut y, true);
        y
    }

    fn rounded(values: &[f32]) -> Vec<bf16> {
        values.iter().map(|value| bf16::from_f32(*value)).collect()
    }

    fn assert_blocks_equal<N: Element>(level: SimdLevel, sizes: [usize; 4]) {
        let operands = Operands::new(sizes);
        let block = operands.block(sizes);
        let want = run_whole::<N>(level, &block, &operands.x);
        for rows in [1, 2, 3, 100] {
            let rows = rows.min(sizes[0].div_ceil(TILE));
            let mut y = operands.x.clone();
            block.run_in_bands::<N, f32>(level, rows, None, &mut y);
            assert!(y == want, "{level:?} {sizes:?} in bands of {rows}");
            let mut y = operands.x.clone();
            block.run_in_bands::<N, f32>(level, rows, Some(&operands.x), &mut y);
            assert!(y == want, "{level:?} {sizes:?} in bands of {rows}, with another map");
            let mut y = rounded(&operands.x);
            block.run_in_bands::<N, bf16>(level, rows, None, &mut y);
            assert!(y == rounded(&want), "{level:?} {sizes:?} in bands of {rows}, in bf16");
        }
    }

    #[test]
    fn blocks_equal_those_with_a_whole_hidden_map_to_the_bit() {
        for (level, sizes) in SimdLevel::all().flat_map(|level| SIZES.map(|sizes| (level, sizes))) {
            assert_blocks_equal::<f32>(level, sizes);
            assert_blocks_equal::<Pair>(level, sizes);
        }
    }

    fn assert_upsampling_equal<N: Element>(level: SimdLevel, sizes: [usize; 4]) {
        let [height, width, channels, _] = sizes;
        let operands = Operands::new(sizes);
        let filters = operands.block(sizes).filters[0];
        let maps = [&operands.x[..], &operands.x.iter().map(|x| bf16::from_f32(3.0 - x).to_f32()).collect::<Vec<_>>()].concat();
        let image = 4 * height * width * filters.out_channels;
        let mut want = vec![0.0; 2 * image];
        for (y, map) in want.chunks_mut(image).zip(maps.chunks(maps.len() / 2)) {
            convolve::<N, f32, f32>(level, &Input { map, height, width, channels, op: InputOp::Upsample }, &filters, y, false);
        }
        for rows in [1, 2, 100] {
            let rows = rows.min((2 * height).div_ceil(TILE));
            let mut y = vec![0.5; want.len()];
            let tail = y.len() - maps.len();
            y[tail..].copy_from_slice(&maps);
            let mut y_bf16 = rounded(&y);
            upsample_in_bands::<N, f32>(level, rows, &mut y, [height, width], &filters);
            assert!(y == want, "{level:?} {sizes:?} in bands of {rows}");
            upsample_in_bands::<N, bf16>(level, rows, &mut y_bf16, [height, width], &filters);
            assert!(y_bf16 == rounded(&want), "{level:?} {sizes:?} in bands of {rows}, in bf16");
        }
    }

    #[test]
    fn upsampling_in_place_equals_upsampling_to_the_bit() {
        for (level, sizes) in SimdLevel::all().flat_map(|level| SIZES.map(|sizes| (level, sizes))) {
            if sizes[2] <= 4 * sizes[3] {
                assert_upsampling_equal::<f32>(level, sizes);
                assert_upsampling_equal::<Pair>(level, sizes);
            }
        }
    }
}
