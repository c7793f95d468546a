//! Packing of transposed operands for bf16 products, in which outputs or rows are contiguous instead of inputs. Such operands are
//! weights as burn initialises them, and both operands of a weight's gradient.

use rayon::prelude::*;

use super::super::memory;
use super::super::simd::{self, LoopKernel, SimdF32};
use super::bf16::{Bf16Rows, Bf16Weights, K_GROUP, to_bf16};
use super::epilogue::load_panel;
use super::packing::NR;

impl Bf16Weights {
    /// Rounds and packs weights `[inputs, outputs]`. Returns `None` if they are empty or not whole rows.
    pub(crate) fn pack_transposed(weights: &[f32], outputs: usize) -> Option<Self> {
        if outputs == 0 || weights.is_empty() || !weights.len().is_multiple_of(outputs) {
            return None;
        }
        let (level, inputs) = (simd::SimdLevel::best(), weights.len() / outputs);
        let mut panels = vec![0u8; Self::size(inputs, outputs)];
        let panel_size = panels.len() / outputs.div_ceil(NR);
        let each = panels.par_chunks_mut(panel_size).enumerate();
        each.for_each(|(index, panel)| level.run_loop(PackPanel { weights, outputs, index, panel }));
        Self::from_parts(panels.into(), inputs, outputs)
    }
}

impl Bf16Rows {
    /// Rounds and packs a matrix `[inputs, rows]`.
    ///
    /// # Panics
    ///
    /// If the matrix does not have whole rows.
    pub(crate) fn quantize_transposed(x: &[f32], rows: usize) -> Self {
        assert!(rows > 0 && x.len().is_multiple_of(rows), "columns must be whole");
        let (level, inputs) = (simd::SimdLevel::best(), x.len() / rows);
        let mut transposed = memory::unspecified(x.len());
        let strips = transposed.par_chunks_mut(STRIP * inputs).enumerate();
        strips.for_each(|(strip, to)| level.run(TransposeStrip { from: x, columns: rows, first: strip * STRIP, to }));
        let packed = Self::quantize(&transposed, inputs);
        memory::recycle(transposed);
        packed
    }
}

/// Rounds and packs one panel of weights `[inputs, outputs]`.
struct PackPanel<'a> {
    weights: &'a [f32],
    outputs: usize,
    /// Index of the panel.
    index: usize,
    panel: &'a mut [u8],
}

impl LoopKernel for PackPanel<'_> {
    #[inline(always)]
    fn run(self) {
        let lines = self.panel.chunks_exact_mut(NR * size_of::<u32>());
        for (line, rows) in lines.zip(self.weights.chunks(K_GROUP * self.outputs)) {
            let (even, odd) = rows.split_at(self.outputs);
            let even = load_panel(even, self.index);
            let odd = if odd.is_empty() { [0.0; NR] } else { load_panel(odd, self.index) };
            for ((group, even), odd) in line.as_chunks_mut::<4>().0.iter_mut().zip(even).zip(odd) {
                *group = (u32::from(to_bf16(even)) | u32::from(to_bf16(odd)) << 16).to_le_bytes();
            }
        }
    }
}

/// Columns that are transposed together: a multiple of the lanes of every vector.
const STRIP: usize = 16;

/// Transposes some columns of a matrix.
struct TransposeStrip<'a> {
    from: &'a [f32],
    /// Columns of `from`.
    columns: usize,
    /// The first column to transpose.
    first: usize,
    /// One row for each transposed column.
    to: &'a mut [f32],
}

impl simd::SimdKernel for TransposeStrip<'_> {
    #[inline(always)]
    unsafe fn run<S: SimdF32>(self) {
        let Self { from, columns, first, to } = self;
        let (rows, mut done) = (from.len() / columns, 0);
        if to.len() == STRIP * rows && STRIP.is_multiple_of(S::LANES) {
            assert!(first + STRIP <= columns);
            while done + S::LANES <= rows {
                for column in (0..STRIP).step_by(S::LANES) {
                    // SAFETY: `from` has `LANES` more rows and columns, and `to` has room for them; the processor has the
                    // instructions.
                    unsafe {
                        let from = from.as_ptr().add(done * columns + first + column);
                        S::transpose(from, columns, to.as_mut_ptr().add(column * rows + done), rows);
                    }
                }
                done += S::LANES;
            }
        }
        for (row, values) in from.chunks_exact(columns).enumerate().skip(done) {
            for (to, value) in to.chunks_exact_mut(rows).zip(&values[first..]) {
                to[row] = *value;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::waves_f64;

    #[test]
    fn transposed_operands_become_the_same() {
        for (inputs, outputs) in [(1, 1), (2, 5), (31, 16), (70, 50), (33, 101)] {
            let rows = waves_f64(outputs * inputs, 1.3);
            let columns: Vec<f32> = (0..inputs * outputs).map(|i| rows[i % outputs * inputs + i / outputs]).collect();
            let want = Bf16Weights::pack(&rows[..], inputs).unwrap();
            let got = Bf16Weights::pack_transposed(&columns, outputs).unwrap();
            assert_eq!((got.inputs(), got.outputs()), (inputs, outputs));
            assert_eq!(got.panels(), want.panels());
            let product = |rows: &Bf16Rows| {
                let mut y = vec![];
                want.matmul(rows, None, &mut y);
                y
            };
            assert_eq!(product(&Bf16Rows::quantize_transposed(&columns, outputs)), product(&Bf16Rows::quantize(&rows, inputs)));
        }
        assert!(Bf16Weights::pack_transposed(&[], 3).is_none());
    }
}
