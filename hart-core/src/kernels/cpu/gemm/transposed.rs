//! Operands of bf16 products that lie the other way, the numbers of one input side by side: weights as burn makes them, and both operands
//! of a weight's gradient.

use rayon::prelude::*;

use super::super::memory;
use super::super::simd::{self, LoopKernel, SimdF32};
use super::bf16::{Bf16Rows, Bf16Weights, WORD, rounded};
use super::microkernel::{OUTPUTS, of_panel};

impl Bf16Weights {
    /// Rounds a matrix `[inputs, outputs]`; None where it has no numbers.
    pub(crate) fn pack_transposed(weights: &[f32], outputs: usize) -> Option<Self> {
        if outputs == 0 || weights.is_empty() || !weights.len().is_multiple_of(outputs) {
            return None;
        }
        let (level, inputs) = (simd::SimdLevel::best(), weights.len() / outputs);
        let mut panels = vec![0u8; Self::bytes_of(inputs, outputs)];
        let size = panels.len() / outputs.div_ceil(OUTPUTS);
        let each = panels.par_chunks_mut(size).enumerate();
        each.for_each(|(panel, words)| level.run_loop(Interleave { weights, outputs, panel, words }));
        Self::from_parts(panels.into(), inputs, outputs)
    }
}

impl Bf16Rows {
    /// Rounds the columns of a matrix `[inputs, rows]`.
    ///
    /// # Panics
    ///
    /// If the matrix is not whole.
    pub(crate) fn quantize_transposed(x: &[f32], rows: usize) -> Self {
        assert!(rows > 0 && x.len().is_multiple_of(rows), "columns must be whole");
        let (level, inputs) = (simd::SimdLevel::best(), x.len() / rows);
        let mut turned = memory::unspecified(x.len());
        let strips = turned.par_chunks_mut(STRIP * inputs).enumerate();
        strips.for_each(|(strip, to)| level.run(Turn { from: x, columns: rows, first: strip * STRIP, to }));
        let rounded = Self::quantize(&turned, inputs);
        memory::recycle(turned);
        rounded
    }
}

/// Rounds a panel's columns of a matrix `[inputs, outputs]`, two inputs in a word.
struct Interleave<'a> {
    weights: &'a [f32],
    outputs: usize,
    panel: usize,
    words: &'a mut [u8],
}

impl LoopKernel for Interleave<'_> {
    #[inline(always)]
    fn run(self) {
        let lines = self.words.chunks_exact_mut(OUTPUTS * size_of::<u32>());
        for (line, rows) in lines.zip(self.weights.chunks(WORD * self.outputs)) {
            let (even, odd) = rows.split_at(self.outputs);
            let even = of_panel(even, self.panel);
            let odd = if odd.is_empty() { [0.0; OUTPUTS] } else { of_panel(odd, self.panel) };
            for ((word, even), odd) in line.as_chunks_mut::<4>().0.iter_mut().zip(even).zip(odd) {
                *word = (u32::from(rounded(even)) | u32::from(rounded(odd)) << 16).to_le_bytes();
            }
        }
    }
}

/// Columns that are turned at once: as many as the widest vector holds, or several times as many.
const STRIP: usize = 16;

/// Makes rows of some columns.
struct Turn<'a> {
    from: &'a [f32],
    /// Of `from`.
    columns: usize,
    /// The first column to turn.
    first: usize,
    /// A row for each.
    to: &'a mut [f32],
}

impl simd::SimdKernel for Turn<'_> {
    #[inline(always)]
    unsafe fn run<S: SimdF32>(self) {
        let Self { from, columns, first, to } = self;
        let (rows, mut done) = (from.len() / columns, 0);
        if to.len() == STRIP * rows && STRIP.is_multiple_of(S::LANES) {
            assert!(first + STRIP <= columns);
            while done + S::LANES <= rows {
                for column in (0..STRIP).step_by(S::LANES) {
                    // SAFETY: so many columns and rows are there, and places for them; the processor has the lanes.
                    unsafe {
                        let square = from.as_ptr().add(done * columns + first + column);
                        S::transpose(square, columns, to.as_mut_ptr().add(column * rows + done), rows);
                    }
                }
                done += S::LANES;
            }
        }
        for (row, numbers) in from.chunks_exact(columns).enumerate().skip(done) {
            for (to, number) in to.chunks_exact_mut(rows).zip(&numbers[first..]) {
                to[row] = *number;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::waves;
    use super::*;

    /// Matrices that lie the other way become the same.
    #[test]
    fn columns_are_rounded_as_rows_are() {
        for (inputs, outputs) in [(1, 1), (2, 5), (31, 16), (70, 50), (33, 101)] {
            let rows = waves(outputs * inputs, 1.3);
            let columns: Vec<f32> = (0..inputs * outputs).map(|i| rows[i % outputs * inputs + i / outputs]).collect();
            let (want, got) = (Bf16Weights::pack(&rows, inputs).unwrap(), Bf16Weights::pack_transposed(&columns, outputs).unwrap());
            assert_eq!((got.inputs(), got.outputs()), (inputs, outputs));
            assert_eq!(got.panels(), want.panels());
            let product = |rows: &Bf16Rows| {
                let mut y = vec![];
                want.product(rows, None, &mut y);
                y
            };
            assert_eq!(product(&Bf16Rows::quantize_transposed(&columns, outputs)), product(&Bf16Rows::quantize(&rows, inputs)));
        }
        assert!(Bf16Weights::pack_transposed(&[], 3).is_none());
    }
}
