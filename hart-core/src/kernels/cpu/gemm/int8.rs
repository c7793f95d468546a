//! Products in 8-bit integers: weights with a scale for each output, rows of x with a scale each, sums in exact 32-bit integers.
//!
//! x is rounded as it comes. Most processors multiply unsigned bytes by signed ones, so that `x ~ scale (byte - 128)`; what the 128 add to
//! a sum is known with the weights, and taken off again.

use std::sync::OnceLock;

use bytes::Bytes;
use rayon::prelude::*;

use super::super::memory::AlignedVec;
use super::super::simd::{self, LoopKernel, MAGIC_BIAS};
use super::super::tasks::SyncPtr;
use super::isa;
use super::microkernel::{self, Finish, OUTPUTS, Part, Place, of_panel};

/// Inputs in a word.
const WORD: usize = 4;
/// Of a word, the bytes whose place is even.
const EVEN: u32 = 0x00ff_00ff;
/// The largest integer of a weight or of x; the smallest is its negative, so that no sign is favoured.
const LARGEST: f32 = 127.0;
/// What is added to the integers of x where bytes have no sign.
const OFFSET: i32 = 128;
/// The same in each byte of a word: exclusive or, which carries nothing, takes it off.
const OFFSETS: u32 = 0x8080_8080;
/// Rows all of whose numbers are smaller are zeros: the inverse of their scale would overflow.
const SMALLEST: f32 = 1e-36;
/// Inputs from which on a sum might overflow.
const TOO_MANY_INPUTS: usize = (i32::MAX / (255 * 128)) as usize;

/// Weights of a linear layer.
#[derive(Clone, Debug)]
pub(crate) struct Int8Weights {
    /// Panels `[ceil(outputs / 16)][ceil(inputs / 4)][16][4]`, zeros where there is no output or input.
    panels: Bytes,
    /// What an output's integers are to be multiplied by.
    scales: Vec<f32>,
    /// 128 times the sum of an output's integers, from the first product on: a mapped file is not read before.
    offsets: OnceLock<Vec<i32>>,
    inputs: usize,
}

impl Int8Weights {
    /// Rounds rows of `inputs` weights, one for each output; None where there are none, or so many that sums might overflow.
    pub(crate) fn pack(weights: &[f32], inputs: usize) -> Option<Self> {
        if inputs == 0 || inputs >= TOO_MANY_INPUTS || weights.is_empty() || !weights.len().is_multiple_of(inputs) {
            return None;
        }
        let outputs = weights.len() / inputs;
        let mut panels = vec![0u8; Self::bytes_of(inputs, outputs)];
        let mut scales = vec![0.0; outputs];
        let panel = panels.len() / outputs.div_ceil(OUTPUTS);
        let parts = panels.par_chunks_mut(panel).zip(scales.par_chunks_mut(OUTPUTS)).zip(weights.par_chunks(OUTPUTS * inputs));
        let (level, words) = (simd::SimdLevel::best(), inputs.div_ceil(WORD));
        parts.for_each_init(Vec::new, |bytes, ((panel, scales), weights)| {
            bytes.resize(words * WORD, OFFSET as u8);
            for (output, (row, scale)) in weights.chunks(inputs).zip(scales).enumerate() {
                level.run_loop(Round { row, bytes, scale });
                let words = panel.as_chunks_mut::<WORD>().0.chunks_mut(OUTPUTS);
                for (word, bytes) in words.zip(bytes.as_chunks::<WORD>().0) {
                    word[output] = bytes.map(|byte| byte.wrapping_sub(OFFSET as u8));
                }
            }
        });
        Self::from_parts(panels.into(), scales, inputs)
    }

    /// Weights that were rounded before, such as those of a mapped file; None where the sizes don't fit together.
    pub(crate) fn from_parts(panels: Bytes, scales: Vec<f32>, inputs: usize) -> Option<Self> {
        let outputs = scales.len();
        let fits = (1..TOO_MANY_INPUTS).contains(&inputs) && outputs > 0 && panels.len() == Self::bytes_of(inputs, outputs);
        fits.then_some(Self { offsets: OnceLock::new(), panels, scales, inputs })
    }

    /// What the 128 in every byte of x add to a sum.
    fn offsets(&self) -> &[i32] {
        if let Some(offsets) = self.offsets.get() {
            return offsets;
        }
        let panel = self.panels.len() / self.outputs().div_ceil(OUTPUTS);
        let level = simd::SimdLevel::best();
        let offsets = self.panels.par_chunks(panel).flat_map_iter(|panel| {
            let mut sums = [0i32; OUTPUTS];
            level.run_loop(Sums { panel, sums: &mut sums });
            sums.map(|sum| OFFSET * sum)
        });
        // Made before the lock is taken: a thread that holds it must not wait for others, who may want it too.
        let offsets = offsets.collect();
        self.offsets.get_or_init(|| offsets)
    }

    /// Bytes of the panels.
    pub(crate) fn bytes_of(inputs: usize, outputs: usize) -> usize {
        inputs.div_ceil(WORD) * WORD * outputs.next_multiple_of(OUTPUTS)
    }

    /// The panels.
    #[allow(dead_code, reason = "for whoever stores them")]
    pub(crate) fn panels(&self) -> &Bytes {
        &self.panels
    }

    /// A scale for each output.
    #[allow(dead_code, reason = "for whoever stores them")]
    pub(crate) fn scales(&self) -> &[f32] {
        &self.scales
    }

    /// Inputs of the layer.
    pub(crate) fn inputs(&self) -> usize {
        self.inputs
    }

    /// Outputs of the layer.
    pub(crate) fn outputs(&self) -> usize {
        self.scales.len()
    }

    /// Appends `x[m] . w[n] + b[n]` to y.
    ///
    /// # Panics
    ///
    /// If x has other inputs, or there is not one bias for each output.
    pub(crate) fn product(&self, x: &Int8Rows, bias: Option<&[f32]>, y: &mut Vec<f32>) {
        let numbers = x.scales.len() * self.outputs();
        y.reserve(numbers);
        let place = Place { out: SyncPtr::new(super::spare(y)), outputs: self.outputs(), gated: false };
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
    pub(crate) fn product_gated(&self, x: &Int8Rows, bias: Option<&[f32]>, gates: &mut [f32]) {
        assert_eq!(gates.len(), x.scales.len() * self.outputs(), "one gate for each output of each row");
        let place = Place { out: SyncPtr::new(gates.as_mut_ptr()), outputs: self.outputs(), gated: true };
        // SAFETY: there is a gate in each place.
        unsafe { self.multiply(x, bias, place) };
    }

    /// # Safety
    ///
    /// There is room for all outputs of all rows, or a gate in each place.
    unsafe fn multiply(&self, x: &Int8Rows, bias: Option<&[f32]>, place: Place) {
        let (rows, outputs) = (x.scales.len(), self.outputs());
        assert!(x.inputs == self.inputs && bias.is_none_or(|bias| bias.len() == outputs), "the rows and the bias are the layer's");
        let words = self.inputs.div_ceil(WORD);
        let (by, layout) = (x.by, x.by.layout());
        let offsets = (!by.signed()).then(|| self.offsets());
        let finish = Scale { place, x, weights: self, offsets, bias };
        microkernel::parts(rows, outputs, words, layout, |rows, panels| {
            let x = &x.blocks[layout.blocks(rows.start, words)..];
            let w = &self.panels[panels.start * words * OUTPUTS * WORD..];
            by.multiply(Part { x, w, words, rows, panels, finish: &finish });
        });
    }
}

/// Rows of x, rounded for some instructions.
#[derive(Debug)]
pub(crate) struct Int8Rows {
    /// Blocks as the instructions' layout tells. A word is four bytes, or two of them are: the even ones as 16-bit integers, and the odd ones.
    blocks: AlignedVec<u32>,
    /// What a row's integers are to be multiplied by; not a number where the row has one that isn't.
    scales: Vec<f32>,
    inputs: usize,
    by: isa::Int8,
}

impl Int8Rows {
    /// Rounds rows of `inputs` numbers.
    ///
    /// # Panics
    ///
    /// If the rows are not whole.
    pub(crate) fn quantize(x: &[f32], inputs: usize) -> Self {
        Self::by(isa::Int8::best(), simd::SimdLevel::best(), x, inputs)
    }

    fn by(by: isa::Int8, level: simd::SimdLevel, x: &[f32], inputs: usize) -> Self {
        assert!(inputs > 0 && x.len().is_multiple_of(inputs), "rows must be whole");
        let (rows, words, layout) = (x.len() / inputs, inputs.div_ceil(WORD), by.layout());
        let offsets = if by.signed() { OFFSETS } else { 0 };
        let mut blocks = layout.room(rows, words);
        let mut scales = vec![0.0; rows];
        let parts = blocks.par_chunks_mut(layout.block(words)).zip(scales.par_chunks_mut(layout.rows));
        parts.zip(x.par_chunks(layout.rows * inputs)).for_each_init(Vec::new, |bytes, ((block, scales), rows)| {
            bytes.resize(words * WORD, 0);
            for (r, (row, scale)) in rows.chunks(inputs).zip(scales).enumerate() {
                level.run_loop(Round { row, bytes, scale });
                let halves = |word| [u32::from_le_bytes(word) & EVEN, u32::from_le_bytes(word) >> 8 & EVEN];
                layout.place(block, r, bytes.as_chunks::<WORD>().0, |word| u32::from_le_bytes(word) ^ offsets, halves);
            }
        });
        Self { blocks, scales, inputs, by }
    }
}

/// Adds up each output's integers.
struct Sums<'a> {
    panel: &'a [u8],
    sums: &'a mut [i32; OUTPUTS],
}

impl LoopKernel for Sums<'_> {
    #[inline(always)]
    fn run(self) {
        for words in self.panel.as_chunks::<WORD>().0.as_chunks::<OUTPUTS>().0 {
            for (sum, bytes) in self.sums.iter_mut().zip(words) {
                // By shifts of the whole word, which the compiler makes vectors of.
                let word = i32::from_le_bytes(*bytes);
                *sum += (word << 24 >> 24) + (word << 16 >> 24) + (word << 8 >> 24) + (word >> 24);
            }
        }
    }
}

/// Rounds one row to bytes, 128 larger than its integers.
struct Round<'a> {
    row: &'a [f32],
    bytes: &'a mut [u8],
    scale: &'a mut f32,
}

impl LoopKernel for Round<'_> {
    #[inline(always)]
    fn run(self) {
        let (scale, inverse) = scale_of(largest(self.row));
        *self.scale = scale;
        for (byte, x) in self.bytes.iter_mut().zip(self.row) {
            *byte = (x * inverse + (MAGIC_BIAS + OFFSET as f32)).to_bits() as u8;
        }
    }
}

/// The largest absolute value; not a number where one isn't.
#[inline(always)]
fn largest(row: &[f32]) -> f32 {
    // As integers, floats without a sign keep their order, and what is not a number lies above all.
    f32::from_bits(row.iter().fold(0, |largest: u32, x| largest.max(x.abs().to_bits())))
}

/// What the integers of a row are to be multiplied by, and what its numbers are to be multiplied by to become integers.
#[inline(always)]
fn scale_of(largest: f32) -> (f32, f32) {
    if largest < SMALLEST { (0.0, 0.0) } else { (largest / LARGEST, LARGEST / largest) }
}

/// Makes floats of the sums.
struct Scale<'a> {
    place: Place,
    x: &'a Int8Rows,
    weights: &'a Int8Weights,
    /// Where x has offsets.
    offsets: Option<&'a [i32]>,
    bias: Option<&'a [f32]>,
}

/// Of the outputs of a panel.
struct ScalePanel {
    offsets: [i32; OUTPUTS],
    scales: [f32; OUTPUTS],
    bias: [f32; OUTPUTS],
}

impl Finish<i32> for Scale<'_> {
    type Panel = ScalePanel;

    #[inline(always)]
    fn panel(&self, panel: usize) -> ScalePanel {
        ScalePanel {
            offsets: self.offsets.map_or([0; OUTPUTS], |all| *all[panel * OUTPUTS..].first_chunk().expect("made for whole panels")),
            scales: of_panel(&self.weights.scales, panel),
            bias: self.bias.map_or([0.0; OUTPUTS], |bias| of_panel(bias, panel)),
        }
    }

    #[inline(always)]
    unsafe fn finish(&self, of: &ScalePanel, row: usize, panel: usize, sums: &[i32; OUTPUTS]) {
        let scale = self.x.scales[row];
        let mut y = [0.0; OUTPUTS];
        for i in 0..OUTPUTS {
            y[i] = (sums[i] - of.offsets[i]) as f32 * scale * of.scales[i] + of.bias[i];
        }
        // SAFETY: there is room for all rows, or there are gates, and the caller's.
        unsafe { self.place.put(row, panel, y) };
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::waves;
    use super::*;

    fn product(by: isa::Int8, weights: &Int8Weights, x: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
        let mut y = vec![];
        weights.product(&Int8Rows::by(by, simd::SimdLevel::best(), x, weights.inputs), bias, &mut y);
        y
    }

    /// All instructions give the same bits, those of a plain sum of the rounded numbers, and close to what they were rounded from.
    #[test]
    fn every_width_and_count_is_a_sum_of_rounded_products() {
        for inputs in [1, 3, 4, 31, 64, 1003] {
            for (rows, outputs) in [(1, 1), (2, 5), (3, 16), (7, 50), (13, 101), (0, 3)] {
                let (x, w, bias) = (waves(rows * inputs, 0.7), waves(outputs * inputs, 1.3), waves(outputs, 0.4));
                let weights = Int8Weights::pack(&w, inputs).expect("there are weights");
                assert_eq!((weights.inputs(), weights.outputs()), (inputs, outputs));
                let first = product(isa::Int8::all().next().expect("a plain one"), &weights, &x, Some(&bias));
                assert_eq!(first.len(), rows * outputs);
                for (i, got) in first.iter().enumerate() {
                    let (m, n) = (i / outputs, i % outputs);
                    let products = (0..inputs).map(|k| f64::from(x[m * inputs + k]) * f64::from(w[n * inputs + k]));
                    let want = products.sum::<f64>() + f64::from(bias[n]);
                    let error = (f64::from(*got) - want).abs();
                    assert!(error < 8e-3 * (inputs as f64).sqrt(), "{rows} x {outputs} x {inputs}: {got} and not {want}");
                }
                for level in isa::Int8::all() {
                    let got = product(level, &weights, &x, Some(&bias));
                    assert!(
                        got.iter().zip(&first).all(|(a, b)| a.to_bits() == b.to_bits()),
                        "{level:?} {rows} x {outputs} x {inputs}"
                    );
                }
            }
        }
    }

    #[test]
    fn rounding_is_the_same_by_any_instructions() {
        let mut x = waves(9 * 1003, 0.7);
        x[1003..2006].fill(0.0);
        x[2006..3009].iter_mut().for_each(|x| *x *= 1e-38);
        let by = isa::Int8::best();
        let rounded = simd::SimdLevel::all().map(|level| Int8Rows::by(by, level, &x, 1003)).collect::<Vec<_>>();
        for other in &rounded {
            assert_eq!((&other.blocks[..], &other.scales), (&rounded[0].blocks[..], &rounded[0].scales));
        }
        assert_eq!(rounded[0].scales[1..3], [0.0; 2]);
    }

    /// Whoever looks for overflow behind a product finds it.
    #[test]
    fn a_row_that_is_not_finite_gives_nothing_finite() {
        let weights = Int8Weights::pack(&waves(5 * 40, 1.3), 40).expect("there are weights");
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = waves(2 * 40, 0.7);
            x[47] = bad;
            let y = product(isa::Int8::best(), &weights, &x, None);
            assert!(y[..5].iter().all(|y| y.is_finite()) && y[5..].iter().all(|y| !y.is_finite()), "{bad}: {y:?}");
        }
    }

    #[test]
    fn sizes_that_do_not_fit_are_refused() {
        let bytes = |count| Bytes::from(vec![0u8; count]);
        assert!(Int8Weights::from_parts(bytes(16 * 8), vec![1.0; 3], 5).is_some());
        assert!(Int8Weights::from_parts(bytes(16 * 8 - 1), vec![1.0; 3], 5).is_none());
        assert!(Int8Weights::from_parts(bytes(0), vec![], 5).is_none());
        assert!(Int8Weights::from_parts(bytes(16 * 8), vec![1.0; 3], TOO_MANY_INPUTS).is_none());
    }
}
