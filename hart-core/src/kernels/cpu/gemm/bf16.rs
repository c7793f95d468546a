//! Products in bf16, sums in f32.

use bytes::Bytes;
use rayon::prelude::*;

use super::super::memory::AlignedVec;
use super::super::simd::{self, LoopKernel};
use super::super::tasks::SyncPtr;
use super::isa;
use super::microkernel::{self, Finish, OUTPUTS, Part, Place, of_panel};

/// Inputs in a word.
pub(super) const WORD: usize = 2;

/// Weights of a linear layer.
#[derive(Clone, Debug)]
pub(crate) struct Bf16Weights {
    /// Panels `[ceil(outputs / 16)][ceil(inputs / 2)][16][2]`, zeros where there is no output or input.
    panels: Bytes,
    inputs: usize,
    outputs: usize,
}

impl Bf16Weights {
    /// Rounds rows of `inputs` weights, one for each output; None where there are none.
    pub(crate) fn pack(weights: &[f32], inputs: usize) -> Option<Self> {
        if inputs == 0 || weights.is_empty() || !weights.len().is_multiple_of(inputs) {
            return None;
        }
        let outputs = weights.len() / inputs;
        let mut panels = vec![0u8; Self::bytes_of(inputs, outputs)];
        let panel = panels.len() / outputs.div_ceil(OUTPUTS);
        panels.par_chunks_mut(panel).zip(weights.par_chunks(OUTPUTS * inputs)).for_each(|(panel, weights)| {
            let numbers = panel.as_chunks_mut::<2>().0;
            for (output, row) in weights.chunks(inputs).enumerate() {
                for (input, weight) in row.iter().enumerate() {
                    numbers[(input / WORD * OUTPUTS + output) * WORD + input % WORD] = rounded(*weight).to_le_bytes();
                }
            }
        });
        Self::from_parts(panels.into(), inputs, outputs)
    }

    /// Weights that were rounded before, such as those of a mapped file; None where the sizes don't fit together.
    pub(crate) fn from_parts(panels: Bytes, inputs: usize, outputs: usize) -> Option<Self> {
        // Sizes may be a file's, and anything.
        let some = (1..=panels.len()).contains(&inputs) && (1..=panels.len()).contains(&outputs);
        let fits = some && panels.len() == Self::bytes_of(inputs, outputs);
        fits.then_some(Self { panels, inputs, outputs })
    }

    /// Bytes of the panels.
    pub(crate) fn bytes_of(inputs: usize, outputs: usize) -> usize {
        inputs.div_ceil(WORD) * WORD * 2 * outputs.next_multiple_of(OUTPUTS)
    }

    /// The panels.
    #[allow(dead_code, reason = "for whoever stores them")]
    pub(crate) fn panels(&self) -> &Bytes {
        &self.panels
    }

    /// Inputs of the layer.
    pub(crate) fn inputs(&self) -> usize {
        self.inputs
    }

    /// Outputs of the layer.
    pub(crate) fn outputs(&self) -> usize {
        self.outputs
    }

    /// Appends `x[m] . w[n] + b[n]` to y.
    ///
    /// # Panics
    ///
    /// If x has other inputs, or there is not one bias for each output.
    pub(crate) fn product(&self, x: &Bf16Rows, bias: Option<&[f32]>, y: &mut Vec<f32>) {
        let numbers = x.rows * self.outputs;
        y.reserve(numbers);
        let place = Place { out: SyncPtr::new(super::spare(y)), outputs: self.outputs, gated: false };
        // SAFETY: there is room, and all of it is written.
        unsafe {
            self.multiply(x, bias, place);
            y.set_len(y.len() + numbers);
        }
    }

    /// `silu(gate) (x[m] . w[n] + b[n])` in the gate's place.
    ///
    /// # Panics
    ///
    /// As [`Self::product`], or if there is not one gate for each output of each row.
    pub(crate) fn product_gated(&self, x: &Bf16Rows, bias: Option<&[f32]>, gates: &mut [f32]) {
        assert_eq!(gates.len(), x.rows * self.outputs, "one gate for each output of each row");
        let place = Place { out: SyncPtr::new(gates.as_mut_ptr()), outputs: self.outputs, gated: true };
        // SAFETY: there is a gate in each place.
        unsafe { self.multiply(x, bias, place) };
    }

    /// # Safety
    ///
    /// There is room for all outputs of all rows, or a gate in each place.
    unsafe fn multiply(&self, x: &Bf16Rows, bias: Option<&[f32]>, place: Place) {
        let (rows, outputs) = (x.rows, self.outputs);
        assert!(x.inputs == self.inputs && bias.is_none_or(|bias| bias.len() == outputs), "the rows and the bias are the layer's");
        let words = self.inputs.div_ceil(WORD);
        let finish = Biased { place, bias };
        let (by, layout) = (x.by, x.by.layout());
        microkernel::parts(rows, outputs, words, layout, |rows, panels| {
            let x = &x.blocks[layout.blocks(rows.start, words)..];
            let w = &self.panels[panels.start * words * OUTPUTS * 4..];
            by.multiply(Part { x, w, words, rows, panels, finish: &finish });
        });
    }
}

/// Rows of x, rounded for some instructions.
#[derive(Debug)]
pub(crate) struct Bf16Rows {
    /// Blocks as the instructions' layout tells. A word is two bf16, or two are: an f32 each.
    blocks: AlignedVec<u32>,
    rows: usize,
    inputs: usize,
    by: isa::Bf16,
}

impl Bf16Rows {
    /// Rounds rows of `inputs` numbers.
    ///
    /// # Panics
    ///
    /// If the rows are not whole.
    pub(crate) fn quantize(x: &[f32], inputs: usize) -> Self {
        Self::by(isa::Bf16::best(), x, inputs)
    }

    fn by(by: isa::Bf16, x: &[f32], inputs: usize) -> Self {
        assert!(inputs > 0 && x.len().is_multiple_of(inputs), "rows must be whole");
        let (level, rows, words, layout) = (simd::SimdLevel::best(), x.len() / inputs, inputs.div_ceil(WORD), by.layout());
        let mut blocks = layout.room(rows, words);
        let parts = blocks.par_chunks_mut(layout.block(words)).zip(x.par_chunks(layout.rows * inputs));
        parts.for_each_init(Vec::new, |halves, (block, rows)| {
            halves.resize(words * WORD, 0);
            for (r, row) in rows.chunks(inputs).enumerate() {
                level.run_loop(Round { row, halves });
                let words = |[even, odd]: [u16; WORD]| [u32::from(even) << 16, u32::from(odd) << 16];
                layout.place(block, r, halves.as_chunks::<WORD>().0, |word| words(word)[0] >> 16 | words(word)[1], words);
            }
        });
        Self { blocks, rows, inputs, by }
    }
}

/// Rounds one row.
struct Round<'a> {
    row: &'a [f32],
    halves: &'a mut [u16],
}

impl LoopKernel for Round<'_> {
    #[inline(always)]
    fn run(self) {
        for (half, x) in self.halves.iter_mut().zip(self.row) {
            *half = rounded(*x);
        }
    }
}

/// The nearest bf16's bits, the even one of two.
#[inline(always)]
pub(super) fn rounded(x: f32) -> u16 {
    let bits = x.to_bits();
    // What is not a number stays so: rounding might carry it over into infinity.
    let carried = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
    (if x.is_nan() { bits | 0x40_0000 } else { carried } >> 16) as u16
}

/// Adds the bias.
struct Biased<'a> {
    place: Place,
    bias: Option<&'a [f32]>,
}

impl Finish<f32> for Biased<'_> {
    type Panel = [f32; OUTPUTS];

    #[inline(always)]
    fn panel(&self, panel: usize) -> [f32; OUTPUTS] {
        self.bias.map_or([0.0; OUTPUTS], |bias| of_panel(bias, panel))
    }

    #[inline(always)]
    unsafe fn finish(&self, bias: &[f32; OUTPUTS], row: usize, panel: usize, sums: &[f32; OUTPUTS]) {
        let mut y = *sums;
        for (y, bias) in y.iter_mut().zip(bias) {
            *y += bias;
        }
        // SAFETY: there is room for all rows, or there are gates, and the caller's.
        unsafe { self.place.put(row, panel, y) };
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::waves;
    use super::*;

    fn product(by: isa::Bf16, weights: &Bf16Weights, x: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
        let mut y = vec![];
        weights.product(&Bf16Rows::by(by, x, weights.inputs), bias, &mut y);
        y
    }

    /// By all instructions; those of AVX-512 round sums a little differently, and take the smallest numbers for zeros.
    #[test]
    fn every_width_and_count_is_a_sum_of_rounded_products() {
        let exact = |x: f32| f64::from(half::bf16::from_f32(x).to_f32());
        for level in isa::Bf16::all() {
            for inputs in [1, 3, 31, 64, 1003] {
                for (rows, outputs) in [(1, 1), (2, 5), (3, 16), (7, 50), (13, 101), (0, 3)] {
                    let (x, w, bias) = (waves(rows * inputs, 0.7), waves(outputs * inputs, 1.3), waves(outputs, 0.4));
                    let weights = Bf16Weights::pack(&w, inputs).expect("there are weights");
                    assert_eq!((weights.inputs(), weights.outputs()), (inputs, outputs));
                    let got = product(level, &weights, &x, Some(&bias));
                    assert_eq!(got.len(), rows * outputs);
                    for (i, got) in got.iter().enumerate() {
                        let (m, n) = (i / outputs, i % outputs);
                        let products = (0..inputs).map(|k| exact(x[m * inputs + k]) * exact(w[n * inputs + k]));
                        let want = products.sum::<f64>() + f64::from(bias[n]);
                        let error = (f64::from(*got) - want).abs();
                        assert!(
                            error < 2e-6 * (inputs as f64).sqrt().max(4.0),
                            "{level:?} {rows} x {outputs} x {inputs}: {got} and not {want}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn a_row_is_the_same_in_any_batch() {
        let weights = Bf16Weights::pack(&waves(61 * 348, 1.3), 348).expect("there are weights");
        let x = waves(97 * 348, 0.7);
        let all = product(isa::Bf16::best(), &weights, &x, None);
        for count in [1, 2, 3, 5, 64] {
            let last = product(isa::Bf16::best(), &weights, &x[(97 - count) * 348..], None);
            assert_eq!(last, all[(97 - count) * 61..]);
        }
    }

    #[test]
    fn rounding_is_to_the_nearest_and_keeps_what_is_not_a_number() {
        for bits in (0..u32::MAX).step_by(65_521).chain([0x7f80_0000, 0x7f80_0001, 0x7fff_ffff, 0xffff_ffff, 0x7f7f_ffff, 1]) {
            let x = f32::from_bits(bits);
            assert_eq!(rounded(x), half::bf16::from_f32(x).to_bits(), "{x}");
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
