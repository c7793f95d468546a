//! Rows of x for [`super::int8`], quantised row by row. For rows with outliers, the quantisation error is quantised too.

use rayon::prelude::*;

use super::super::memory::AlignedVec;
use super::super::simd::{self, LoopKernel, MAGIC_BIAS};
use super::isa::Int8Isa;

/// Inputs in a k-group.
pub(super) const K_GROUP: usize = 4;
/// Zero point of unsigned x.
pub(super) const ZERO_POINT: i32 = 128;
/// The even bytes of a k-group.
const EVEN_BYTES: u32 = 0x00ff_00ff;
/// Largest quantised absolute value. -128 is unused, so that the range is symmetric.
const MAX_QUANTIZED: f32 = 127.0;
/// The zero point in each byte of a dword. XOR with it makes unsigned bytes signed.
const ZERO_POINTS: u32 = 0x8080_8080;
/// Rows whose largest absolute value is smaller become zero: the inverse of their scale would overflow.
const MIN_ABS_MAX: f32 = 1e-36;
/// Ratio of the largest to the mean absolute value above which a row is multiplied twice. Normally distributed rows of 1536
/// channels have a ratio of 5, hidden rows of SwiGLU one of 15.
const OUTLIER_RATIO: f32 = 32.0;

/// Rows of x, quantised and packed for an instruction set.
#[derive(Debug)]
pub(crate) struct Int8Rows {
    /// Panels in the layout of `isa`. A dword holds four int8, or two of them widened to 16 bits.
    pub(super) panels: AlignedVec<u32>,
    /// Scale of each row. NaN or infinite if the row has such a value.
    pub(super) scales: Vec<f32>,
    /// Quantisation errors of the rows with outliers; `None` if there are none.
    pub(super) remainder: Option<Box<Remainder>>,
    pub(super) inputs: usize,
    pub(super) isa: Int8Isa,
}

/// Quantisation errors of some rows, which are quantised too.
#[derive(Debug)]
pub(super) struct Remainder {
    /// Indices of the rows.
    pub(super) indices: Vec<usize>,
    pub(super) rows: Int8Rows,
}

impl Remainder {
    /// Returns these rows of a matrix with `columns` columns.
    pub(super) fn select(&self, matrix: &[f32], columns: usize) -> Vec<f32> {
        self.indices.iter().flat_map(|&index| &matrix[index * columns..][..columns]).copied().collect()
    }
}

impl Int8Rows {
    /// Quantises and packs rows of `inputs` values.
    ///
    /// # Panics
    ///
    /// If the rows are not whole.
    pub(crate) fn quantize(x: &[f32], inputs: usize) -> Self {
        Self::quantize_for(Int8Isa::best(), simd::SimdLevel::best(), x, inputs)
    }

    pub(super) fn quantize_for(isa: Int8Isa, level: simd::SimdLevel, x: &[f32], inputs: usize) -> Self {
        let (rows, outliers) = Self::quantize_once(isa, level, x, inputs);
        let indices: Vec<usize> = (0..outliers.len()).filter(|&row| outliers[row]).collect();
        if indices.is_empty() {
            return rows;
        }
        let remainders = indices.par_iter().flat_map_iter(|&index| remainder(level, &x[index * inputs..][..inputs]));
        let remainders: Vec<f32> = remainders.collect();
        let (remainders, _) = Self::quantize_once(isa, level, &remainders, inputs);
        Self { remainder: Some(Box::new(Remainder { indices, rows: remainders })), ..rows }
    }

    /// Quantises and packs rows, and returns which of them have outliers.
    fn quantize_once(isa: Int8Isa, level: simd::SimdLevel, x: &[f32], inputs: usize) -> (Self, Vec<bool>) {
        assert!(inputs > 0 && x.len().is_multiple_of(inputs), "rows must be whole");
        let (rows, k_groups, layout) = (x.len() / inputs, inputs.div_ceil(K_GROUP), isa.x_layout());
        let zero_points = if isa.x_is_signed() { ZERO_POINTS } else { 0 };
        let mut panels = layout.alloc(rows, k_groups);
        let mut scales = vec![0.0; rows];
        let mut outliers = vec![false; rows];
        let statistics = scales.par_chunks_mut(layout.mr).zip(outliers.par_chunks_mut(layout.mr));
        let parts = panels.par_chunks_mut(layout.panel_len(k_groups)).zip(statistics);
        parts.zip(x.par_chunks(layout.mr * inputs)).for_each_init(Vec::new, |quantized, ((panel, (scales, outliers)), rows)| {
            quantized.resize(k_groups * K_GROUP, 0);
            for (r, ((row, scale), has_outliers)) in rows.chunks(inputs).zip(scales).zip(outliers).enumerate() {
                level.run_loop(QuantizeRow { row, quantized, scale });
                level.run_loop(FindOutliers { quantized: &quantized[..inputs], found: has_outliers });
                let dword = |group| u32::from_le_bytes(group) ^ zero_points;
                let widened = |group| [u32::from_le_bytes(group) & EVEN_BYTES, u32::from_le_bytes(group) >> 8 & EVEN_BYTES];
                layout.pack_row(panel, r, quantized.as_chunks::<K_GROUP>().0, dword, widened);
            }
        });
        (Self { panels, scales, remainder: None, inputs, isa }, outliers)
    }
}

/// Finds out whether the values of a quantised row are small compared with the largest one, which is 127.
struct FindOutliers<'a> {
    quantized: &'a [u8],
    found: &'a mut bool,
}

impl LoopKernel for FindOutliers<'_> {
    #[inline(always)]
    fn run(self) {
        let sum: u32 = self.quantized.iter().map(|byte| u32::from(byte.abs_diff(ZERO_POINT as u8))).sum();
        *self.found = sum > 0 && (sum as f32) * OUTLIER_RATIO < MAX_QUANTIZED * self.quantized.len() as f32;
    }
}

/// Returns the quantisation errors of a row.
fn remainder(level: simd::SimdLevel, row: &[f32]) -> Vec<f32> {
    let (mut quantized, mut scale) = (vec![0; row.len()], 0.0);
    level.run_loop(QuantizeRow { row, quantized: &mut quantized, scale: &mut scale });
    let left = |(x, byte): (&f32, &u8)| x - scale * f32::from(i16::from(*byte) - ZERO_POINT as i16);
    row.iter().zip(&quantized).map(left).collect()
}

/// Quantises one row to unsigned bytes with a zero point of 128.
pub(super) struct QuantizeRow<'a> {
    pub(super) row: &'a [f32],
    pub(super) quantized: &'a mut [u8],
    pub(super) scale: &'a mut f32,
}

impl LoopKernel for QuantizeRow<'_> {
    #[inline(always)]
    fn run(self) {
        let (scale, inverse) = scale_and_inverse(abs_max(self.row));
        *self.scale = scale;
        for (byte, x) in self.quantized.iter_mut().zip(self.row) {
            *byte = (x * inverse + (MAGIC_BIAS + ZERO_POINT as f32)).to_bits() as u8;
        }
    }
}

/// Returns the largest absolute value, or NaN if there is one.
#[inline(always)]
fn abs_max(row: &[f32]) -> f32 {
    // The bits of non-negative floats are ordered like the floats, and NaN is larger than all.
    f32::from_bits(row.iter().fold(0, |largest: u32, x| largest.max(x.abs().to_bits())))
}

/// Returns the scale of a row and the factor by which it is quantised.
#[inline(always)]
fn scale_and_inverse(abs_max: f32) -> (f32, f32) {
    if abs_max < MIN_ABS_MAX { (0.0, 0.0) } else { (abs_max / MAX_QUANTIZED, MAX_QUANTIZED / abs_max) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::waves_f64;

    #[test]
    fn quantization_is_the_same_at_any_level() {
        let mut x = waves_f64(9 * 1003, 0.7);
        x[1003..2006].fill(0.0);
        x[2006..3009].iter_mut().for_each(|x| *x *= 1e-38);
        let isa = Int8Isa::best();
        let quantized = simd::SimdLevel::all().map(|level| Int8Rows::quantize_for(isa, level, &x, 1003)).collect::<Vec<_>>();
        for other in &quantized {
            assert_eq!((&other.panels[..], &other.scales), (&quantized[0].panels[..], &quantized[0].scales));
        }
        assert_eq!(quantized[0].scales[1..3], [0.0; 2]);
    }
}
