//! Matrix products of 8-bit integers. Each output of w and each row of x has a scale. Sums are exact 32-bit integers.
//!
//! x is quantised dynamically, row by row. Text models have rows in which a few values are far larger than the others. Such a row
//! is multiplied twice: once quantised, and once for its quantisation error, which is quantised with a scale of its own.
//!
//! Most instruction sets multiply unsigned int8 of x by signed int8 of w. x then has a zero point of 128: `x ~ scale * (q - 128)`.
//! The contribution of the zero point to an output is computed from w once and subtracted in the epilogue.

use std::sync::OnceLock;

use bytes::Bytes;
use rayon::prelude::*;

use super::super::simd::{self, LoopKernel};
use super::super::tasks::SyncPtr;
use super::epilogue::{Epilogue, OutputMatrix, load_panel};
use super::int8_rows::{Int8Rows, K_GROUP, QuantizeRow, Remainder, ZERO_POINT};
use super::microkernel::{self, MacroBlock};
use super::packing::NR;
use super::stored::StoredRows;

/// Smallest number of inputs with which a sum could overflow.
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
    pub(crate) fn pack<'a>(weights: impl Into<StoredRows<'a>>, inputs: usize) -> Option<Self> {
        let weights = weights.into();
        if inputs == 0 || inputs >= OVERFLOWING_INPUTS || weights.len() == 0 || !weights.len().is_multiple_of(inputs) {
            return None;
        }
        let outputs = weights.len() / inputs;
        let mut panels = vec![0u8; Self::size(inputs, outputs)];
        let mut scales = vec![0.0; outputs];
        let panel_size = panels.len() / outputs.div_ceil(NR);
        let parts = panels.par_chunks_mut(panel_size).zip(scales.par_chunks_mut(NR)).enumerate();
        let (level, k_groups) = (simd::SimdLevel::best(), inputs.div_ceil(K_GROUP));
        parts.for_each_init(Default::default, |(quantized, wide): &mut (Vec<u8>, Vec<f32>), (index, (panel, scales))| {
            quantized.resize(k_groups * K_GROUP, ZERO_POINT as u8);
            for (output, scale) in scales.iter_mut().enumerate() {
                let row = weights.row(index * NR + output, inputs, wide);
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

    /// Returns the size of the panels in bytes.
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
        if let Some(remainder) = &x.remainder {
            let start = y.len() - len;
            let mut products = Vec::new();
            self.matmul(&remainder.rows, None, &mut products);
            self.add_rows(remainder, &products, &mut y[start..]);
        }
    }

    /// Replaces each gate by `silu(gate) * (x[m] . w[n] + bias[n])`.
    ///
    /// # Panics
    ///
    /// Same as [`Self::matmul`], or if there is not one gate for each output of each row.
    pub(crate) fn matmul_gated(&self, x: &Int8Rows, bias: Option<&[f32]>, gates: &mut [f32]) {
        assert_eq!(gates.len(), x.scales.len() * self.outputs(), "one gate for each output of each row");
        let remainder = x.remainder.as_deref().map(|remainder| (remainder, remainder.select(gates, self.outputs())));
        let matrix = OutputMatrix { y: SyncPtr::new(gates.as_mut_ptr()), outputs: self.outputs(), gated: true };
        // SAFETY: there is a gate for each output.
        unsafe { self.matmul_into(x, bias, matrix) };
        if let Some((remainder, mut products)) = remainder {
            self.matmul_gated(&remainder.rows, None, &mut products);
            self.add_rows(remainder, &products, gates);
        }
    }

    /// Adds the products of the remainders to their rows of y, the products of all rows.
    fn add_rows(&self, remainder: &Remainder, products: &[f32], y: &mut [f32]) {
        let outputs = self.outputs();
        for (index, products) in remainder.indices.iter().zip(products.chunks(outputs)) {
            y[index * outputs..][..outputs].iter_mut().zip(products).for_each(|(y, product)| *y += product);
        }
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
    use super::super::isa::Int8Isa;
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
            for (rows, outputs) in [(1, 1), (2, 5), (3, 16), (7, 50), (13, 101), (29, 20), (0, 3)] {
                let (x, w, bias) = (waves_f64(rows * inputs, 0.7), waves_f64(outputs * inputs, 1.3), waves_f64(outputs, 0.4));
                let weights = Int8Weights::pack(&w[..], inputs).expect("there are weights");
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

    /// If some channels are 100 times the median, the error of the other channels is as small as in a row without such channels.
    #[test]
    fn outliers_do_not_blur_the_other_values_of_their_row() {
        let (rows, inputs, outputs) = (5, 1536, 40);
        let (mut x, w) = (waves_f64(rows * inputs, 0.7), waves_f64(outputs * inputs, 1.3));
        for channel in [7, 300, 1535] {
            // The second row has none.
            (0..rows).filter(|row| *row != 1).for_each(|row| x[row * inputs + channel] *= 100.0);
        }
        let weights = Int8Weights::pack(&w[..], inputs).expect("there are weights");
        let wide: Vec<f64> = w.iter().map(|w| f64::from(*w)).collect();
        let scale = |n: usize| f64::from(weights.scales[n]);
        let quantized = |n: usize, k: usize| (wide[n * inputs + k] / scale(n)).round_ties_even() * scale(n);
        let first = matmul(Int8Isa::all().next().expect("there is a plain one"), &weights, &x, None);
        for (i, got) in first.iter().enumerate() {
            let (m, n) = (i / outputs, i % outputs);
            let want: f64 = (0..inputs).map(|k| f64::from(x[m * inputs + k]) * quantized(n, k)).sum();
            let error = (f64::from(*got) - want).abs();
            assert!(error < 5e-3 * (inputs as f64).sqrt(), "row {m}: {got} and not {want}");
        }
        for isa in Int8Isa::all() {
            let same = matmul(isa, &weights, &x, None).iter().zip(&first).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same, "{isa:?}");
        }
        assert_eq!(Int8Rows::quantize(&x, inputs).remainder.expect("four rows have outliers").indices, [0, 2, 3, 4]);
        assert!(Int8Rows::quantize(&vec![0.0; inputs], inputs).remainder.is_none());
    }

    /// Callers detect an overflow in the outputs.
    #[test]
    fn a_row_that_is_not_finite_gives_nothing_finite() {
        let weights = Int8Weights::pack(&waves_f64(5 * 40, 1.3)[..], 40).expect("there are weights");
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
