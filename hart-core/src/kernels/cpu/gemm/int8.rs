//! Products of 8-bit integers: one scale for each output of w and one for each row of x, sums in exact 32-bit integers.
//!
//! x is quantised dynamically, row by row. Most instruction sets multiply unsigned int8 of x by signed int8 of w, so x then has a zero
//! point of 128: `x ~ scale * (q - 128)`. What the zero point adds to an output is computed from w once and subtracted in the epilogue.

use std::sync::OnceLock;

use bytes::Bytes;
use rayon::prelude::*;

use super::super::memory::AlignedVec;
use super::super::simd::{self, LoopKernel, MAGIC_BIAS};
use super::super::tasks::SyncPtr;
use super::epilogue::{Epilogue, OutputMatrix, load_panel};
use super::isa::Int8Isa;
use super::microkernel::{self, MacroBlock};
use super::packing::NR;

/// Inputs in a k-group.
const K_GROUP: usize = 4;
/// The even bytes of a k-group.
const EVEN_BYTES: u32 = 0x00ff_00ff;
/// Largest quantised absolute value. -128 is unused, so that the range is symmetric.
const MAX_QUANTIZED: f32 = 127.0;
/// Zero point of unsigned x.
const ZERO_POINT: i32 = 128;
/// The zero point in each byte of a dword: exclusive or makes unsigned bytes signed.
const ZERO_POINTS: u32 = 0x8080_8080;
/// Rows whose largest absolute value is smaller become zero: the inverse of their scale would overflow.
const MIN_ABS_MAX: f32 = 1e-36;
/// Number of inputs from which on a sum could overflow.
const OVERFLOWING_INPUTS: usize = (i32::MAX / (255 * 128)) as usize;

/// Weights of a linear layer, quantised and packed.
#[derive(Clone, Debug)]
pub(crate) struct Int8Weights {
    /// `[ceil(outputs / 16), ceil(inputs / 4), 16, 4]`, zeros where there is no output or input.
    panels: Bytes,
    /// Scale of each output.
    scales: Vec<f32>,
    /// Zero-point compensation of each output: 128 times the sum of its quantised weights. Computed in the first product, so that
    /// opening a model does not read a mapped file.
    compensation: OnceLock<Vec<i32>>,
    inputs: usize,
}

impl Int8Weights {
    /// Quantises and packs weights `[outputs, inputs]`. Returns `None` if they are empty or not whole rows, or if sums could overflow.
    pub(crate) fn pack(weights: &[f32], inputs: usize) -> Option<Self> {
        if inputs == 0 || inputs >= OVERFLOWING_INPUTS || weights.is_empty() || !weights.len().is_multiple_of(inputs) {
            return None;
        }
        let outputs = weights.len() / inputs;
        let mut panels = vec![0u8; Self::size(inputs, outputs)];
        let mut scales = vec![0.0; outputs];
        let panel_size = panels.len() / outputs.div_ceil(NR);
        let parts = panels.par_chunks_mut(panel_size).zip(scales.par_chunks_mut(NR)).zip(weights.par_chunks(NR * inputs));
        let (level, k_groups) = (simd::SimdLevel::best(), inputs.div_ceil(K_GROUP));
        parts.for_each_init(Vec::new, |quantized, ((panel, scales), weights)| {
            quantized.resize(k_groups * K_GROUP, ZERO_POINT as u8);
            for (output, (row, scale)) in weights.chunks(inputs).zip(scales).enumerate() {
                level.run_loop(QuantizeRow { row, quantized, scale });
                let lines = panel.as_chunks_mut::<K_GROUP>().0.chunks_mut(NR);
                for (line, group) in lines.zip(quantized.as_chunks::<K_GROUP>().0) {
                    line[output] = group.map(|byte| byte.wrapping_sub(ZERO_POINT as u8));
                }
            }
        });
        Self::from_parts(panels.into(), scales, inputs)
    }

    /// Builds weights from packed panels, such as those of a mapped file. Returns `None` if the sizes do not fit together.
    pub(crate) fn from_parts(panels: Bytes, scales: Vec<f32>, inputs: usize) -> Option<Self> {
        let outputs = scales.len();
        let fits = (1..OVERFLOWING_INPUTS).contains(&inputs) && outputs > 0 && panels.len() == Self::size(inputs, outputs);
        fits.then_some(Self { compensation: OnceLock::new(), panels, scales, inputs })
    }

    /// Returns the zero-point compensation of the outputs of all panels.
    fn compensation(&self) -> &[i32] {
        if let Some(compensation) = self.compensation.get() {
            return compensation;
        }
        let panel_size = self.panels.len() / self.outputs().div_ceil(NR);
        let level = simd::SimdLevel::best();
        let compensation = self.panels.par_chunks(panel_size).flat_map_iter(|panel| {
            let mut sums = [0i32; NR];
            level.run_loop(SumPanel { panel, sums: &mut sums });
            sums.map(|sum| ZERO_POINT * sum)
        });
        // Compute before taking the lock: a thread that holds it must not wait for rayon tasks, which may need the lock too.
        let compensation = compensation.collect();
        self.compensation.get_or_init(|| compensation)
    }

    /// Returns the bytes of the panels.
    pub(crate) fn size(inputs: usize, outputs: usize) -> usize {
        inputs.div_ceil(K_GROUP) * K_GROUP * outputs.next_multiple_of(NR)
    }

    /// Returns the packed panels.
    #[allow(dead_code, reason = "read when weights are stored")]
    pub(crate) fn panels(&self) -> &Bytes {
        &self.panels
    }

    /// Returns the scale of each output.
    #[allow(dead_code, reason = "read when weights are stored")]
    pub(crate) fn scales(&self) -> &[f32] {
        &self.scales
    }

    /// Returns the number of inputs.
    pub(crate) fn inputs(&self) -> usize {
        self.inputs
    }

    /// Returns the number of outputs.
    pub(crate) fn outputs(&self) -> usize {
        self.scales.len()
    }

    /// Appends `x[m] . w[n] + bias[n]` to y.
    ///
    /// # Panics
    ///
    /// If x has a different number of inputs, or there is not one bias for each output.
    pub(crate) fn matmul(&self, x: &Int8Rows, bias: Option<&[f32]>, y: &mut Vec<f32>) {
        let len = x.scales.len() * self.outputs();
        y.reserve(len);
        let matrix = OutputMatrix { y: SyncPtr::new(super::spare(y)), outputs: self.outputs(), gated: false };
        // SAFETY: the memory is reserved, and `matmul_into` initialises all of it.
        unsafe {
            self.matmul_into(x, bias, matrix);
            y.set_len(y.len() + len);
        }
    }

    /// Replaces each gate by `silu(gate) * (x[m] . w[n] + bias[n])`.
    ///
    /// # Panics
    ///
    /// Same as [`Self::matmul`], or if there is not one gate for each output of each row.
    pub(crate) fn matmul_gated(&self, x: &Int8Rows, bias: Option<&[f32]>, gates: &mut [f32]) {
        assert_eq!(gates.len(), x.scales.len() * self.outputs(), "one gate for each output of each row");
        let matrix = OutputMatrix { y: SyncPtr::new(gates.as_mut_ptr()), outputs: self.outputs(), gated: true };
        // SAFETY: there is a gate for each output.
        unsafe { self.matmul_into(x, bias, matrix) };
    }

    /// Stores the outputs to a matrix.
    ///
    /// # Safety
    ///
    /// The matrix has room for all outputs of all rows; if it is gated, the gates are initialised.
    unsafe fn matmul_into(&self, x: &Int8Rows, bias: Option<&[f32]>, matrix: OutputMatrix) {
        let (rows, outputs) = (x.scales.len(), self.outputs());
        assert!(x.inputs == self.inputs && bias.is_none_or(|bias| bias.len() == outputs), "x and the bias match the weights");
        let k_groups = self.inputs.div_ceil(K_GROUP);
        let (isa, layout) = (x.isa, x.isa.x_layout());
        let compensation = (!isa.x_is_signed()).then(|| self.compensation());
        let epilogue = Dequantize { matrix, x, weights: self, compensation, bias };
        microkernel::for_each_macro_block(rows, outputs, k_groups, layout, |rows, panels| {
            let x = &x.panels[layout.len(rows.start, k_groups)..];
            let w = &self.panels[panels.start * k_groups * NR * K_GROUP..];
            // SAFETY: no two tasks share rows and panels.
            unsafe { isa.macro_kernel(MacroBlock { x, w, k_dwords: k_groups, rows, panels, epilogue: &epilogue }) };
        });
    }
}

/// Rows of x, quantised and packed for an instruction set.
#[derive(Debug)]
pub(crate) struct Int8Rows {
    /// Panels in the layout of `isa`. A dword holds four int8, or two of them widened to 16 bits.
    panels: AlignedVec<u32>,
    /// Scale of each row. NaN or infinite if the row has such a value.
    scales: Vec<f32>,
    inputs: usize,
    isa: Int8Isa,
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

    fn quantize_for(isa: Int8Isa, level: simd::SimdLevel, x: &[f32], inputs: usize) -> Self {
        assert!(inputs > 0 && x.len().is_multiple_of(inputs), "rows must be whole");
        let (rows, k_groups, layout) = (x.len() / inputs, inputs.div_ceil(K_GROUP), isa.x_layout());
        let zero_points = if isa.x_is_signed() { ZERO_POINTS } else { 0 };
        let mut panels = layout.alloc(rows, k_groups);
        let mut scales = vec![0.0; rows];
        let parts = panels.par_chunks_mut(layout.panel_len(k_groups)).zip(scales.par_chunks_mut(layout.mr));
        parts.zip(x.par_chunks(layout.mr * inputs)).for_each_init(Vec::new, |quantized, ((panel, scales), rows)| {
            quantized.resize(k_groups * K_GROUP, 0);
            for (r, (row, scale)) in rows.chunks(inputs).zip(scales).enumerate() {
                level.run_loop(QuantizeRow { row, quantized, scale });
                let dword = |group| u32::from_le_bytes(group) ^ zero_points;
                let widened = |group| [u32::from_le_bytes(group) & EVEN_BYTES, u32::from_le_bytes(group) >> 8 & EVEN_BYTES];
                layout.pack_row(panel, r, quantized.as_chunks::<K_GROUP>().0, dword, widened);
            }
        });
        Self { panels, scales, inputs, isa }
    }
}

/// Sums the quantised weights of each output of a panel.
struct SumPanel<'a> {
    panel: &'a [u8],
    sums: &'a mut [i32; NR],
}

impl LoopKernel for SumPanel<'_> {
    #[inline(always)]
    fn run(self) {
        for line in self.panel.as_chunks::<K_GROUP>().0.as_chunks::<NR>().0 {
            for (sum, group) in self.sums.iter_mut().zip(line) {
                // Shifts of the whole dword, which the compiler vectorises.
                let dword = i32::from_le_bytes(*group);
                *sum += (dword << 24 >> 24) + (dword << 16 >> 24) + (dword << 8 >> 24) + (dword >> 24);
            }
        }
    }
}

/// Quantises one row to unsigned bytes with a zero point of 128.
struct QuantizeRow<'a> {
    row: &'a [f32],
    quantized: &'a mut [u8],
    scale: &'a mut f32,
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

/// Subtracts the zero-point compensation, applies the scales and adds the bias.
struct Dequantize<'a> {
    matrix: OutputMatrix,
    x: &'a Int8Rows,
    weights: &'a Int8Weights,
    /// `None` if x is signed.
    compensation: Option<&'a [i32]>,
    bias: Option<&'a [f32]>,
}

/// Parameters of a panel's outputs.
struct DequantizeParams {
    compensation: [i32; NR],
    scales: [f32; NR],
    bias: [f32; NR],
}

impl Epilogue<i32> for Dequantize<'_> {
    type PanelParams = DequantizeParams;

    #[inline(always)]
    fn panel_params(&self, panel: usize) -> DequantizeParams {
        let compensation = |all: &[i32]| *all[panel * NR..].first_chunk().expect("computed for whole panels");
        DequantizeParams {
            compensation: self.compensation.map_or([0; NR], compensation),
            scales: load_panel(&self.weights.scales, panel),
            bias: self.bias.map_or([0.0; NR], |bias| load_panel(bias, panel)),
        }
    }

    #[inline(always)]
    unsafe fn store(&self, params: &DequantizeParams, row: usize, panel: usize, accumulators: &[i32; NR]) {
        let scale = self.x.scales[row];
        let mut y = [0.0; NR];
        for i in 0..NR {
            y[i] = (accumulators[i] - params.compensation[i]) as f32 * scale * params.scales[i] + params.bias[i];
        }
        // SAFETY: the caller upholds the contract of this function; the matrix has room for all rows, and gates if it is gated.
        unsafe { self.matrix.store(row, panel, y) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::waves_f64;

    fn matmul(isa: Int8Isa, weights: &Int8Weights, x: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
        let mut y = vec![];
        weights.matmul(&Int8Rows::quantize_for(isa, simd::SimdLevel::best(), x, weights.inputs), bias, &mut y);
        y
    }

    /// All instruction sets return the same bits as a plain sum of quantised products, which is close to the sum before quantisation.
    #[test]
    fn every_size_is_a_sum_of_quantized_products() {
        for inputs in [1, 3, 4, 31, 64, 1003] {
            for (rows, outputs) in [(1, 1), (2, 5), (3, 16), (7, 50), (13, 101), (0, 3)] {
                let (x, w, bias) = (waves_f64(rows * inputs, 0.7), waves_f64(outputs * inputs, 1.3), waves_f64(outputs, 0.4));
                let weights = Int8Weights::pack(&w, inputs).expect("there are weights");
                assert_eq!((weights.inputs(), weights.outputs()), (inputs, outputs));
                let first = matmul(Int8Isa::all().next().expect("there is a plain one"), &weights, &x, Some(&bias));
                assert_eq!(first.len(), rows * outputs);
                for (i, got) in first.iter().enumerate() {
                    let (m, n) = (i / outputs, i % outputs);
                    let products = (0..inputs).map(|k| f64::from(x[m * inputs + k]) * f64::from(w[n * inputs + k]));
                    let want = products.sum::<f64>() + f64::from(bias[n]);
                    let error = (f64::from(*got) - want).abs();
                    assert!(error < 8e-3 * (inputs as f64).sqrt(), "{rows} x {outputs} x {inputs}: {got} and not {want}");
                }
                for isa in Int8Isa::all() {
                    let got = matmul(isa, &weights, &x, Some(&bias));
                    assert!(
                        got.iter().zip(&first).all(|(a, b)| a.to_bits() == b.to_bits()),
                        "{isa:?} {rows} x {outputs} x {inputs}"
                    );
                }
            }
        }
    }

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

    /// Callers detect an overflow in the outputs.
    #[test]
    fn a_row_that_is_not_finite_gives_nothing_finite() {
        let weights = Int8Weights::pack(&waves_f64(5 * 40, 1.3), 40).expect("there are weights");
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = waves_f64(2 * 40, 0.7);
            x[47] = bad;
            let y = matmul(Int8Isa::best(), &weights, &x, None);
            assert!(y[..5].iter().all(|y| y.is_finite()) && y[5..].iter().all(|y| !y.is_finite()), "{bad}: {y:?}");
        }
    }

    #[test]
    fn sizes_that_do_not_fit_are_refused() {
        let bytes = |count| Bytes::from(vec![0u8; count]);
        assert!(Int8Weights::from_parts(bytes(16 * 8), vec![1.0; 3], 5).is_some());
        assert!(Int8Weights::from_parts(bytes(16 * 8 - 1), vec![1.0; 3], 5).is_none());
        assert!(Int8Weights::from_parts(bytes(0), vec![], 5).is_none());
        assert!(Int8Weights::from_parts(bytes(16 * 8), vec![1.0; 3], OVERFLOWING_INPUTS).is_none());
    }
}
