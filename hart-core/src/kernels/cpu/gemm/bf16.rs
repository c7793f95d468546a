//! Products of bf16 with sums in f32.

use bytes::Bytes;
use rayon::prelude::*;

use super::super::memory::AlignedVec;
use super::super::simd::{self, LoopKernel};
use super::super::tasks::SyncPtr;
use super::epilogue::{Epilogue, OutputMatrix, load_panel};
use super::isa::Bf16Isa;
use super::microkernel::{self, MacroBlock};
use super::packing::NR;
use super::stored::StoredRows;

/// Inputs in a k-group.
pub(super) const K_GROUP: usize = 2;

/// Weights of a linear layer, rounded to bf16 and packed.
#[derive(Clone, Debug)]
pub(crate) struct Bf16Weights {
    /// `[ceil(outputs / 16), ceil(inputs / 2), 16, 2]`, zeros where there is no output or input.
    panels: Bytes,
    inputs: usize,
    outputs: usize,
}

impl Bf16Weights {
    /// Rounds and packs weights `[outputs, inputs]`. Returns `None` if they are empty or not whole rows.
    pub(crate) fn pack<'a>(weights: impl Into<StoredRows<'a>>, inputs: usize) -> Option<Self> {
        let weights = weights.into();
        if inputs == 0 || weights.len() == 0 || !weights.len().is_multiple_of(inputs) {
            return None;
        }
        let outputs = weights.len() / inputs;
        let mut panels = vec![0u8; Self::size(inputs, outputs)];
        let panel_size = panels.len() / outputs.div_ceil(NR);
        let level = simd::SimdLevel::best();
        let parts = panels.par_chunks_mut(panel_size).enumerate();
        parts.for_each_init(Default::default, |(rounded, wide): &mut (Vec<u16>, Vec<f32>), (index, panel)| {
            rounded.resize(inputs.next_multiple_of(K_GROUP), 0);
            for output in 0..NR.min(outputs - index * NR) {
                level.run_loop(RoundRow { row: weights.row(index * NR + output, inputs, wide), quantized: rounded });
                let lines = panel.as_chunks_mut::<4>().0.chunks_mut(NR);
                for (line, [even, odd]) in lines.zip(rounded.as_chunks::<K_GROUP>().0) {
                    line[output] = (u32::from(*even) | u32::from(*odd) << 16).to_le_bytes();
                }
            }
        });
        Self::from_parts(panels.into(), inputs, outputs)
    }

    /// Builds weights from packed panels, such as those of a mapped file. Returns `None` if the sizes do not fit together.
    pub(crate) fn from_parts(panels: Bytes, inputs: usize, outputs: usize) -> Option<Self> {
        // The sizes may come from a file. Compare them first, so that their product does not overflow.
        let plausible = (1..=panels.len()).contains(&inputs) && (1..=panels.len()).contains(&outputs);
        let fits = plausible && panels.len() == Self::size(inputs, outputs);
        fits.then_some(Self { panels, inputs, outputs })
    }

    /// Returns the size of the panels in bytes.
    pub(crate) fn size(inputs: usize, outputs: usize) -> usize {
        inputs.div_ceil(K_GROUP) * K_GROUP * 2 * outputs.next_multiple_of(NR)
    }

    /// Returns the packed panels.
    #[allow(dead_code, reason = "read when weights are stored")]
    pub(crate) fn panels(&self) -> &Bytes {
        &self.panels
    }

    /// Returns the number of inputs.
    pub(crate) fn inputs(&self) -> usize {
        self.inputs
    }

    /// Returns the number of outputs.
    pub(crate) fn outputs(&self) -> usize {
        self.outputs
    }

    /// Appends `x[m] . w[n] + bias[n]` to y.
    ///
    /// # Panics
    ///
    /// If x has a different number of inputs, or there is not one bias for each output.
    pub(crate) fn matmul(&self, x: &Bf16Rows, bias: Option<&[f32]>, y: &mut Vec<f32>) {
        let len = x.rows * self.outputs;
        y.reserve(len);
        let matrix = OutputMatrix { y: SyncPtr::new(super::spare(y)), outputs: self.outputs, gated: false };
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
    pub(crate) fn matmul_gated(&self, x: &Bf16Rows, bias: Option<&[f32]>, gates: &mut [f32]) {
        assert_eq!(gates.len(), x.rows * self.outputs, "one gate for each output of each row");
        let matrix = OutputMatrix { y: SyncPtr::new(gates.as_mut_ptr()), outputs: self.outputs, gated: true };
        // SAFETY: there is a gate for each output.
        unsafe { self.matmul_into(x, bias, matrix) };
    }

    /// Stores the outputs to a matrix.
    ///
    /// # Safety
    ///
    /// The matrix has room for all outputs of all rows; if it is gated, the gates are initialised.
    unsafe fn matmul_into(&self, x: &Bf16Rows, bias: Option<&[f32]>, matrix: OutputMatrix) {
        let (rows, outputs) = (x.rows, self.outputs);
        assert!(x.inputs == self.inputs && bias.is_none_or(|bias| bias.len() == outputs), "x and the bias match the weights");
        let k_groups = self.inputs.div_ceil(K_GROUP);
        let epilogue = AddBias { matrix, bias };
        let (isa, layout) = (x.isa, x.isa.x_layout());
        microkernel::for_each_macro_block(rows, outputs, k_groups, layout, |rows, panels| {
            let x = &x.panels[layout.len(rows.start, k_groups)..];
            let w = &self.panels[panels.start * k_groups * NR * 4..];
            // SAFETY: no two tasks share rows and panels.
            unsafe { isa.macro_kernel(MacroBlock { x, w, k_dwords: k_groups, rows, panels, epilogue: &epilogue }) };
        });
    }
}

/// Rows of x, rounded to bf16 and packed for an instruction set.
#[derive(Debug)]
pub(crate) struct Bf16Rows {
    /// Panels in the layout of `isa`. A dword holds two bf16, or one widened to f32.
    panels: AlignedVec<u32>,
    rows: usize,
    inputs: usize,
    isa: Bf16Isa,
}

impl Bf16Rows {
    /// Rounds and packs rows of `inputs` values.
    ///
    /// # Panics
    ///
    /// If the rows are not whole.
    pub(crate) fn quantize(x: &[f32], inputs: usize) -> Self {
        Self::quantize_for(Bf16Isa::best(), x, inputs)
    }

    fn quantize_for(isa: Bf16Isa, x: &[f32], inputs: usize) -> Self {
        assert!(inputs > 0 && x.len().is_multiple_of(inputs), "rows must be whole");
        let (level, rows, k_groups, layout) = (simd::SimdLevel::best(), x.len() / inputs, inputs.div_ceil(K_GROUP), isa.x_layout());
        let mut panels = layout.alloc(rows, k_groups);
        let parts = panels.par_chunks_mut(layout.panel_len(k_groups)).zip(x.par_chunks(layout.mr * inputs));
        parts.for_each_init(Vec::new, |quantized, (panel, rows)| {
            quantized.resize(k_groups * K_GROUP, 0);
            for (r, row) in rows.chunks(inputs).enumerate() {
                level.run_loop(RoundRow { row, quantized });
                let widened = |[even, odd]: [u16; K_GROUP]| [u32::from(even) << 16, u32::from(odd) << 16];
                let dword = |group| widened(group)[0] >> 16 | widened(group)[1];
                layout.pack_row(panel, r, quantized.as_chunks::<K_GROUP>().0, dword, widened);
            }
        });
        Self { panels, rows, inputs, isa }
    }
}

/// Rounds one row to bf16.
struct RoundRow<'a> {
    row: &'a [f32],
    quantized: &'a mut [u16],
}

impl LoopKernel for RoundRow<'_> {
    #[inline(always)]
    fn run(self) {
        for (to, x) in self.quantized.iter_mut().zip(self.row) {
            *to = to_bf16(*x);
        }
    }
}

/// Returns the bits of the nearest bf16. Ties round to even.
#[inline(always)]
pub(super) fn to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
    // Rounding could carry a NaN over into infinity. Make it a quiet NaN instead.
    (if x.is_nan() { bits | 0x40_0000 } else { rounded } >> 16) as u16
}

/// Adds the bias.
struct AddBias<'a> {
    matrix: OutputMatrix,
    bias: Option<&'a [f32]>,
}

impl Epilogue<f32> for AddBias<'_> {
    /// Biases.
    type PanelParams = [f32; NR];

    #[inline(always)]
    fn panel_params(&self, panel: usize) -> [f32; NR] {
        self.bias.map_or([0.0; NR], |bias| load_panel(bias, panel))
    }

    #[inline(always)]
    unsafe fn store(&self, bias: &[f32; NR], row: usize, panel: usize, accumulators: &[f32; NR]) {
        let mut y = *accumulators;
        for (y, bias) in y.iter_mut().zip(bias) {
            *y += bias;
        }
        // SAFETY: the caller upholds the contract of this function; the matrix has room for all rows, and gates if it is gated.
        unsafe { self.matrix.store(row, panel, y) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::waves_f64;

    fn matmul(isa: Bf16Isa, weights: &Bf16Weights, x: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
        let mut y = vec![];
        weights.matmul(&Bf16Rows::quantize_for(isa, x, weights.inputs), bias, &mut y);
        y
    }

    /// Covers all instruction sets. AVX512_BF16 rounds sums slightly differently and flushes denormals to zero.
    #[test]
    fn every_size_is_a_sum_of_rounded_products() {
        let exact = |x: f32| f64::from(half::bf16::from_f32(x).to_f32());
        for isa in Bf16Isa::all() {
            for inputs in [1, 3, 31, 64, 1003] {
                for (rows, outputs) in [(1, 1), (2, 5), (3, 16), (7, 50), (13, 101), (29, 20), (0, 3)] {
                    let (x, w, bias) = (waves_f64(rows * inputs, 0.7), waves_f64(outputs * inputs, 1.3), waves_f64(outputs, 0.4));
                    let weights = Bf16Weights::pack(&w[..], inputs).expect("there are weights");
                    assert_eq!((weights.inputs(), weights.outputs()), (inputs, outputs));
                    let got = matmul(isa, &weights, &x, Some(&bias));
                    assert_eq!(got.len(), rows * outputs);
                    for (i, got) in got.iter().enumerate() {
                        let (m, n) = (i / outputs, i % outputs);
                        let products = (0..inputs).map(|k| exact(x[m * inputs + k]) * exact(w[n * inputs + k]));
                        let want = products.sum::<f64>() + f64::from(bias[n]);
                        let error = (f64::from(*got) - want).abs();
                        assert!(
                            error < 2e-6 * (inputs as f64).sqrt().max(4.0),
                            "{isa:?} {rows} x {outputs} x {inputs}: {got} and not {want}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn a_row_is_the_same_in_any_batch() {
        let weights = Bf16Weights::pack(&waves_f64(61 * 348, 1.3)[..], 348).expect("there are weights");
        let x = waves_f64(97 * 348, 0.7);
        let all = matmul(Bf16Isa::best(), &weights, &x, None);
        for count in [1, 2, 3, 5, 64] {
            let last = matmul(Bf16Isa::best(), &weights, &x[(97 - count) * 348..], None);
            assert_eq!(last, all[(97 - count) * 61..]);
        }
    }

    #[test]
    fn rounding_is_to_the_nearest_and_keeps_nan() {
        for bits in (0..u32::MAX).step_by(65_521).chain([0x7f80_0000, 0x7f80_0001, 0x7fff_ffff, 0xffff_ffff, 0x7f7f_ffff, 1]) {
            let x = f32::from_bits(bits);
            assert_eq!(to_bf16(x), half::bf16::from_f32(x).to_bits(), "{x}");
        }
    }

    #[test]
    fn sizes_that_do_not_fit_are_refused() {
        let bytes = |count| Bytes::from(vec![0u8; count]);
        assert!(Bf16Weights::from_parts(bytes(16 * 12), 5, 3).is_some());
        assert!(Bf16Weights::from_parts(bytes(16 * 12 - 1), 5, 3).is_none());
        assert!(Bf16Weights::from_parts(bytes(0), 5, 0).is_none());
        assert!(Bf16Weights::from_parts(bytes(16), usize::MAX, usize::MAX).is_none());
    }
}
