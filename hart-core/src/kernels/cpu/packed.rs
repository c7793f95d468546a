//! Weights rounded to a lower precision and rearranged for its instructions.

use bytes::Bytes;

use super::gemm::{Bf16Rows, Bf16Weights, Int8Rows, Int8Weights, OUTPUTS};
use crate::device::Precision;

/// A linear layer's weights in a lower precision.
#[derive(Clone, Debug)]
pub(crate) enum PackedWeight {
    /// See [`Precision::Bf16`].
    Bf16(Bf16Weights),
    /// See [`Precision::Int8`].
    Int8(Int8Weights),
}

/// Rows of x, rounded as some packed weights want them.
pub(super) enum Quantized {
    Bf16(Bf16Rows),
    Int8(Int8Rows),
}

/// Packed weights as a checkpoint file holds them.
pub(crate) struct StoredPackedWeight<'a> {
    /// `[ceil(out / 16), ceil(in / n), 16, n]`, with n inputs in 4 bytes; zeros where there is no output or input. bfloat16 or 8-bit
    /// integers.
    pub(crate) panels: &'a Bytes,
    /// What an output's integers are to be multiplied by, `[out]`; none for bfloat16.
    pub(crate) scales: Option<&'a [f32]>,
}

impl PackedWeight {
    /// The shape in which weights of these sizes are stored; None where the precision is f32.
    pub(crate) fn stored_shape(precision: Precision, [inputs, outputs]: [usize; 2]) -> Option<[usize; 4]> {
        let word = match precision {
            Precision::Auto | Precision::F32 | Precision::F16 => return None,
            Precision::Bf16 => 2,
            Precision::Int8 => 4,
        };
        Some([outputs.div_ceil(OUTPUTS), inputs.div_ceil(word), OUTPUTS, word])
    }

    /// Weights `[in, out]` from what a file holds; None where the sizes don't fit together.
    pub(crate) fn from_stored(sizes: [usize; 2], panels: Bytes, scales: Option<Vec<f32>>) -> Option<Self> {
        let [inputs, outputs] = sizes;
        match scales {
            None => Bf16Weights::from_parts(panels, inputs, outputs).map(Self::Bf16),
            Some(scales) if scales.len() == outputs => Int8Weights::from_parts(panels, scales, inputs).map(Self::Int8),
            Some(_) => None,
        }
    }

    /// As a file holds it.
    pub(crate) fn stored(&self) -> StoredPackedWeight<'_> {
        match self {
            Self::Bf16(weights) => StoredPackedWeight { panels: weights.panels(), scales: None },
            Self::Int8(weights) => StoredPackedWeight { panels: weights.panels(), scales: Some(weights.scales()) },
        }
    }

    /// What it was packed for.
    pub(crate) fn precision(&self) -> Precision {
        match self {
            Self::Bf16(_) => Precision::Bf16,
            Self::Int8(_) => Precision::Int8,
        }
    }

    /// Bytes that it takes.
    pub(crate) fn bytes(&self) -> u64 {
        let stored = self.stored();
        (stored.panels.len() + stored.scales.map_or(0, size_of_val)) as u64
    }

    /// Packs rows of `inputs` weights, one for each output; None where the precision is f32, or they can't be packed.
    pub(crate) fn pack(precision: Precision, weights: &[f32], inputs: usize) -> Option<Self> {
        match precision {
            Precision::Auto | Precision::F32 | Precision::F16 => None,
            Precision::Bf16 => Bf16Weights::pack(weights, inputs).map(Self::Bf16),
            Precision::Int8 => Int8Weights::pack(weights, inputs).map(Self::Int8),
        }
    }

    /// Inputs and outputs of the layer.
    pub(crate) fn dims(&self) -> [usize; 2] {
        match self {
            Self::Bf16(weights) => [weights.inputs(), weights.outputs()],
            Self::Int8(weights) => [weights.inputs(), weights.outputs()],
        }
    }

    /// Rounds rows of x for these weights.
    pub(super) fn quantize(&self, x: &[f32]) -> Quantized {
        match self {
            Self::Bf16(weights) => Quantized::Bf16(Bf16Rows::quantize(x, weights.inputs())),
            Self::Int8(weights) => Quantized::Int8(Int8Rows::quantize(x, weights.inputs())),
        }
    }

    /// Appends `x[m] . w[n] + b[n]` to y.
    ///
    /// # Panics
    ///
    /// If x was rounded for weights of another kind or of other inputs, or there is not one bias for each output.
    pub(super) fn product(&self, x: &Quantized, bias: Option<&[f32]>, y: &mut Vec<f32>) {
        match (self, x) {
            (Self::Bf16(weights), Quantized::Bf16(x)) => weights.product(x, bias, y),
            (Self::Int8(weights), Quantized::Int8(x)) => weights.product(x, bias, y),
            _ => panic!("rows are rounded for the weights that they meet"),
        }
    }

    /// `silu(gate) (x[m] . w[n] + b[n])` in the gate's place.
    ///
    /// # Panics
    ///
    /// As [`Self::product`], or if there is not one gate for each output of each row.
    pub(super) fn product_gated(&self, x: &Quantized, bias: Option<&[f32]>, gates: &mut [f32]) {
        match (self, x) {
            (Self::Bf16(weights), Quantized::Bf16(x)) => weights.product_gated(x, bias, gates),
            (Self::Int8(weights), Quantized::Int8(x)) => weights.product_gated(x, bias, gates),
            _ => panic!("rows are rounded for the weights that they meet"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::elementwise;
    use super::*;

    fn waves(count: usize, speed: f64) -> Vec<f32> {
        (0..count).map(|i| (i as f64 * speed).sin() as f32).collect()
    }

    #[test]
    fn a_gated_product_is_a_product_and_a_gate() {
        for (rows, inputs, outputs) in [(1, 3, 5), (35, 70, 50), (3, 64, 16)] {
            let (x, w, bias, gates) =
                (waves(rows * inputs, 0.7), waves(outputs * inputs, 1.3), waves(outputs, 0.4), waves(rows * outputs, 2.1));
            for precision in [Precision::Bf16, Precision::Int8] {
                let weights = PackedWeight::pack(precision, &w, inputs).expect("there are weights");
                let (x, mut plain, mut want, mut got) = (weights.quantize(&x), Vec::new(), gates.clone(), gates.clone());
                weights.product(&x, Some(&bias), &mut plain);
                elementwise::silu_mul(&mut want, &plain);
                weights.product_gated(&x, Some(&bias), &mut got);
                let close = |(got, want): (&f32, &f32)| (got - want).abs() <= 1e-6 * want.abs();
                assert!(got.iter().zip(&want).all(close), "{precision:?}, {rows} x {inputs} x {outputs}: {got:?} and not {want:?}");
            }
        }
    }
}
