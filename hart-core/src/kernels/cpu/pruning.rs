//! The operations of pruned scales.

use burn::prelude::*;
use half::bf16;
use rayon::prelude::*;

use super::memory::{self, PooledVec};
use super::simd::{LoopKernel, SimdLevel};
use super::tensor::{modify, primitive, slice, tensor};
use crate::device::Precision;
use crate::kernels::params::{KeptTokens, SCALED_CHANNELS, covered};

/// Tokens whose sum is computed in one task.
const SUMMED_TOKENS: usize = 64;
/// Tokens whose distances are computed in one task.
const TASK_TOKENS: usize = 32;
/// Partial sums of a reduction, so that the compiler may vectorise it.
const LANES: usize = 16;
/// The largest magnitude of a quantised value.
const MAX_INT: f32 = 127.0;

/// A map in bf16 or 8 bits, `[rows, tokens, channels]`.
#[derive(Clone, Debug)]
pub(crate) enum CompactMap {
    Bf16(Vec<bf16>),
    Int8 {
        values: Vec<i8>,
        /// One for each [`SCALED_CHANNELS`] channels of a token.
        scales: Vec<f32>,
    },
}

/// Returns a map in bf16 or 8 bits; `None` if it stays in f32.
pub(crate) fn compact_map(outputs: &Tensor<3>, precision: Precision) -> Option<CompactMap> {
    let width = outputs.dims()[2];
    match precision {
        Precision::Bf16 => {
            let outputs = primitive(outputs)?.to_contiguous();
            let values: Vec<bf16> = slice(&outputs).par_iter().with_min_len(1 << 14).map(|&value| bf16::from_f32(value)).collect();
            Some(CompactMap::Bf16(values))
        }
        Precision::Int8 => {
            let outputs = primitive(outputs)?.to_contiguous();
            let outputs = slice(&outputs);
            let (level, groups) = (SimdLevel::best(), width.div_ceil(SCALED_CHANNELS));
            let tokens = outputs.len().checked_div(width)?;
            let (mut values, mut scales) = (vec![0; outputs.len()], vec![0.0; tokens * groups]);
            let tasks = outputs.par_chunks(width).zip(values.par_chunks_mut(width)).zip(scales.par_chunks_mut(groups));
            tasks.with_min_len(TASK_TOKENS).for_each(|((from, to), scales)| level.run_loop(QuantizeToken { from, to, scales }));
            Some(CompactMap::Int8 { values, scales })
        }
        Precision::Auto | Precision::F32 | Precision::F16 => None,
    }
}

/// Quantises one token.
struct QuantizeToken<'a> {
    from: &'a [f32],
    to: &'a mut [i8],
    scales: &'a mut [f32],
}

impl LoopKernel for QuantizeToken<'_> {
    #[inline(always)]
    fn run(self) {
        let groups = self.from.chunks(SCALED_CHANNELS).zip(self.to.chunks_mut(SCALED_CHANNELS));
        for ((from, to), scale) in groups.zip(self.scales) {
            let max = from.iter().fold(0f32, |max, value| max.max(value.abs()));
            let inverse = if max > f32::MIN_POSITIVE * MAX_INT { MAX_INT / max } else { 0.0 };
            *scale = if inverse > 0.0 { max / MAX_INT } else { 0.0 };
            to.iter_mut().zip(from).for_each(|(to, value)| *to = (value * inverse).round_ties_even() as i8);
        }
    }
}

/// See [`crate::kernels::squared_distances`]. The order of the sums does not depend on the number of rows or threads.
pub(crate) fn squared_distances(x: &Tensor<3>) -> Option<Vec<f32>> {
    let [rows, tokens, width] = x.dims();
    let x = primitive(x)?.to_contiguous();
    if rows * tokens * width == 0 {
        return None;
    }
    let (x, level) = (slice(&x), SimdLevel::best());
    let mean = |row: &[f32]| {
        let mut sums = PooledVec::new(tokens.div_ceil(SUMMED_TOKENS) * width);
        row.par_chunks(SUMMED_TOKENS * width).zip(sums.par_chunks_mut(width)).for_each(|(tokens, sum): (_, &mut [f32])| {
            sum.fill(0.0);
            level.run_loop(SumTokens { tokens, sum });
        });
        let mut mean = vec![0.0; width];
        level.run_loop(SumTokens { tokens: &sums, sum: &mut mean });
        mean.iter_mut().for_each(|value| *value /= tokens as f32);
        mean
    };
    let mut distances = vec![0.0; rows * tokens];
    for (row, distances) in x.chunks(tokens * width).zip(distances.chunks_mut(tokens)) {
        let mean = &mean(row);
        let tasks = row.par_chunks(TASK_TOKENS * width).zip(distances.par_chunks_mut(TASK_TOKENS));
        tasks.for_each(|(tokens, distances)| level.run_loop(Distances { tokens, mean, distances }));
    }
    Some(distances)
}

/// Adds tokens to a sum.
struct SumTokens<'a> {
    tokens: &'a [f32],
    sum: &'a mut [f32],
}

impl LoopKernel for SumTokens<'_> {
    #[inline(always)]
    fn run(self) {
        for token in self.tokens.chunks_exact(self.sum.len()) {
            self.sum.iter_mut().zip(token).for_each(|(sum, value)| *sum += value);
        }
    }
}

/// Computes the squared distances of tokens to a mean.
struct Distances<'a> {
    tokens: &'a [f32],
    mean: &'a [f32],
    distances: &'a mut [f32],
}

impl LoopKernel for Distances<'_> {
    #[inline(always)]
    fn run(self) {
        let (means, mean_rest) = self.mean.as_chunks::<LANES>();
        for (token, distance) in self.tokens.chunks_exact(self.mean.len()).zip(self.distances) {
            let (chunks, rest) = token.as_chunks::<LANES>();
            let mut sums = [0.0; LANES];
            for (chunk, mean) in chunks.iter().zip(means) {
                for i in 0..LANES {
                    let difference = chunk[i] - mean[i];
                    sums[i] += difference * difference;
                }
            }
            let rest = rest.iter().zip(mean_rest).map(|(value, mean)| (value - mean) * (value - mean)).sum::<f32>();
            *distance = sums.iter().sum::<f32>() + rest;
        }
    }
}

/// See [`crate::kernels::select_tokens`]. The output has pooled memory: otherwise the gaps that it leaves in the heap would be filled by
/// cached keys and values, and the heap would grow from block to block.
pub(crate) fn select_tokens(x: &Tensor<3>, kept: &KeptTokens) -> Option<Tensor<3>> {
    let [rows, tokens, width] = x.dims();
    let x = primitive(x)?.to_contiguous();
    let (x, count) = (slice(&x), kept.count());
    if count * width == 0 {
        return None;
    }
    let mut out = memory::unspecified(rows * count * width);
    out.par_chunks_mut(width).with_min_len(TASK_TOKENS).enumerate().for_each(|(index, to)| {
        let (row, position) = (index / count, kept.positions()[index / count][index % count] as usize);
        to.copy_from_slice(&x[(row * tokens + position) * width..][..width]);
    });
    Some(tensor(out, vec![rows, count, width]))
}

/// See [`crate::kernels::add_restored`], for a map in f32.
pub(crate) fn add_restored(
    x: Tensor<3>,
    y: &Tensor<3>,
    map: &Tensor<3>,
    side: usize,
    kept: &KeptTokens,
) -> Result<Tensor<3>, Tensor<3>> {
    match primitive(map).map(|map| map.to_contiguous()) {
        Some(map) => add(x, y, MapView::F32(slice(&map)), side, kept),
        None => Err(x),
    }
}

/// See [`crate::kernels::add_restored`], for a map in fewer bits.
pub(crate) fn add_compact_restored(
    x: Tensor<3>,
    y: &Tensor<3>,
    map: &CompactMap,
    side: usize,
    kept: &KeptTokens,
) -> Result<Tensor<3>, Tensor<3>> {
    let map = match map {
        CompactMap::Bf16(values) => MapView::Bf16(values),
        CompactMap::Int8 { values, scales } => MapView::Int8 { values, scales },
    };
    add(x, y, map, side, kept)
}

/// The values of a map.
#[derive(Clone, Copy)]
enum MapView<'a> {
    F32(&'a [f32]),
    Bf16(&'a [bf16]),
    Int8 { values: &'a [i8], scales: &'a [f32] },
}

impl MapView<'_> {
    /// Adds a token of the map to `to`.
    #[inline(always)]
    fn add_token(self, token: usize, to: &mut [f32]) {
        let width = to.len();
        match self {
            Self::F32(values) => to.iter_mut().zip(&values[token * width..][..width]).for_each(|(to, value)| *to += value),
            Self::Bf16(values) => {
                // A bf16 is the upper half of an f32.
                let wide = |value: &bf16| f32::from_bits(u32::from(value.to_bits()) << 16);
                to.iter_mut().zip(&values[token * width..][..width]).for_each(|(to, value)| *to += wide(value));
            }
            Self::Int8 { values, scales } => {
                let groups = width.div_ceil(SCALED_CHANNELS);
                let values = values[token * width..][..width].chunks(SCALED_CHANNELS);
                let scales = &scales[token * groups..][..groups];
                for ((to, values), scale) in to.chunks_mut(SCALED_CHANNELS).zip(values).zip(scales) {
                    to.iter_mut().zip(values).for_each(|(to, value)| *to += f32::from(*value) * scale);
                }
            }
        }
    }
}

/// Adds the outputs of kept tokens and the area averages of a map to x, in place if its memory is not shared.
fn add(x: Tensor<3>, y: &Tensor<3>, map: MapView<'_>, map_side: usize, kept: &KeptTokens) -> Result<Tensor<3>, Tensor<3>> {
    let ([_, tokens, width], count) = (x.dims(), kept.count());
    let (Some(y), Some(primitive)) = (primitive(y), primitive(&x)) else { return Err(x) };
    drop(x);
    let (y, side, level) = (y.to_contiguous(), tokens.isqrt(), SimdLevel::best());
    let y = slice(&y);
    let sum = modify(primitive, |x| {
        let lines = x.par_chunks_mut(side * width).enumerate();
        lines.for_each(|(line, x)| {
            let (row, line) = (line / side, line % side);
            let positions = &kept.positions()[row];
            let [begin, end] = [line * side, (line + 1) * side].map(|at| positions.partition_point(|&p| (p as usize) < at));
            level.run_loop(AddLine {
                x,
                y: &y[(row * count + begin) * width..(row * count + end) * width],
                positions: &positions[begin..end],
                map,
                first_of_map: row * map_side * map_side,
                map_side,
                line,
                side,
                sum: &mut memory::unspecified(width),
            });
        });
    });
    Ok(Tensor::from_primitive::<burn::backend::Flex>(sum))
}

/// One line of tokens of [`add`].
struct AddLine<'a> {
    x: &'a mut [f32],
    /// Outputs of the line's kept tokens.
    y: &'a [f32],
    /// Positions of the line's kept tokens.
    positions: &'a [u32],
    map: MapView<'a>,
    /// First token of the row in the map.
    first_of_map: usize,
    map_side: usize,
    line: usize,
    side: usize,
    /// Memory for one token.
    sum: &'a mut [f32],
}

impl LoopKernel for AddLine<'_> {
    #[inline(always)]
    fn run(self) {
        let width = self.sum.len();
        let mut kept = self.positions.iter().zip(self.y.chunks_exact(width)).peekable();
        let [top, bottom] = covered(self.line, self.map_side, self.side);
        for (column, x) in self.x.chunks_exact_mut(width).enumerate() {
            let position = self.line * self.side + column;
            if let Some((_, y)) = kept.next_if(|(kept, _)| **kept as usize == position) {
                x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
                continue;
            }
            let [left, right] = covered(column, self.map_side, self.side);
            self.sum.fill(0.0);
            for line in top..=bottom {
                for column in left..=right {
                    self.map.add_token(self.first_of_map + line * self.map_side + column, self.sum);
                }
            }
            let factor = 1.0 / ((bottom - top + 1) * (right - left + 1)) as f32;
            x.iter_mut().zip(&*self.sum).for_each(|(x, sum)| *x += sum * factor);
        }
    }
}
