//! Weights of linear layers, quantised and packed for the instructions of their precision.

use bytes::Bytes;

use super::gemm::{Bf16Rows, Bf16Weights, Int8Rows, Int8Weights, NR, StoredRows};
use crate::device::Precision;

/// The weight of a linear layer in bf16 or int8, packed in panels.
#[derive(Clone, Debug)]
pub(crate) enum PackedWeight {
    /// See [`Precision::Bf16`].
    Bf16(Bf16Weights),
    /// See [`Precision::Int8`].
    Int8(Int8Weights),
}

/// Rows of x, quantised for a [`PackedWeight`] of the same precision.
pub(super) enum Quantized {
    Bf16(Bf16Rows),
    Int8(Int8Rows),
}

/// A [`PackedWeight`] as a checkpoint file stores it.
pub(crate) struct StoredPackedWeight<'a> {
    /// `[ceil(out / 16), ceil(in / n), 16, n]` of bf16 (n = 2) or int8 (n = 4), zeros where there is no output or input.
    pub(crate) panels: &'a Bytes,
    /// Scale of each output, `[out]`; `None` for bf16.
    pub(crate) scales: Option<&'a [f32]>,
}

impl PackedWeight {
    /// Returns the shape in which a weight `[in, out]` is stored; `None` if the precision is not packed.
    pub(crate) fn stored_shape(precision: Precision, [inputs, outputs]: [usize; 2]) -> Option<[usize; 4]> {
        let k_group = match precision {
            Precision::Auto | Precision::F32 | Precision::F16 => return None,
            Precision::Bf16 => 2,
            Precision::Int8 => 4,
        };
        Some([outputs.div_ceil(NR), inputs.div_ceil(k_group), NR, k_group])
    }

    /// Builds a weight `[in, out]` from what a file stores. Returns `None` if the sizes do not fit together.
    pub(crate) fn from_stored(dims: [usize; 2], panels: Bytes, scales: Option<Vec<f32>>) -> Option<Self> {
        let [inputs, outputs] = dims;
        match scales {
            None => Bf16Weights::from_parts(panels, inputs, outputs).map(Self::Bf16),
            Some(scales) if scales.len() == outputs => Int8Weights::from_parts(panels, scales, inputs).map(Self::Int8),
            Some(_) => None,
        }
    }

    /// Returns the weight as a file stores it.
    pub(crate) fn stored(&self) -> StoredPackedWeight<'_> {
        match self {
            Self::Bf16(weights) => StoredPackedWeight { panels: weights.panels(), scales: None },
            Self::Int8(weights) => StoredPackedWeight { panels: weights.panels(), scales: Some(weights.scales()) },
        }
    }

    /// Returns the precision of its products.
    pub(crate) fn precision(&self) -> Precision {
        match self {
            Self::Bf16(_) => Precision::Bf16,
            Self::Int8(_) => Precision::Int8,
        }
    }

    /// Returns the size in bytes of the panels and scales of a weight `[in, out]`; `None` if the precision is not packed.
    pub(crate) fn size(precision: Precision, dims: [usize; 2]) -> Option<u64> {
        let dwords: usize = Self::stored_shape(precision, dims)?[..3].iter().product();
        let scales = if precision == Precision::Int8 { dims[1] } else { 0 };
        Some((size_of::<f32>() * (dwords + scales)) as u64)
    }

    /// Quantises and packs weights `[out, in]`. Returns `None` if the precision is not packed, or the weights are empty or not whole rows.
    pub(crate) fn pack<'a>(precision: Precision, weights: impl Into<StoredRows<'a>>, inputs: usize) -> Option<Self> {
        match precision {
            Precision::Auto | Precision::F32 | Precision::F16 => None,
            Precision::Bf16 => Bf16Weights::pack(weights, inputs).map(Self::Bf16),
            Precision::Int8 => Int8Weights::pack(weights, inputs).map(Self::Int8),
        }
    }

    /// Returns the sizes `[in, out]`.
    pub(crate) fn dims(&self) -> [usize; 2] {
        match self {
            Self::Bf16(weights) => [weights.inputs(), weights.outputs()],
            Self::Int8(weights) => [weights.inputs(), weights.outputs()],
        }
    }

    /// Quantises rows of x for this weight.
    pub(super) fn quantize(&self, x: &[f32]) -> Quantized {
        match self {
            Self::Bf16(weights) => Quantized::Bf16(Bf16Rows::quantize(x, weights.inputs())),
            Self::Int8(weights) => Quantized::Int8(Int8Rows::quantize(x, weights.inputs())),
        }
    }

    /// Appends `x[m] . w[n] + bias[n]` to y.
    ///
    /// # Panics
    ///
    /// If x was quantised for another precision or number of inputs, or there is not one bias for each output.
    pub(super) fn matmul(&self, x: &Quantized, bias: Option<&[f32]>, y: &mut Vec<f32>) {
        match (self, x) {
            (Self::Bf16(weights), Quantized::Bf16(x)) => weights.matmul(x, bias, y),
            (Self::Int8(weights), Quantized::Int8(x)) => weights.matmul(x, bias, y),
            _ => panic!("x is quantised for the precision of the weight"),
        }
    }

    /// Replaces each gate by `silu(gate) * (x[m] . w[n] + bias[n])`.
    ///
    /// # Panics
    ///
    /// Same as [`Self::matmul`], or if there is not one gate for each output of each row.
    pub(super) fn matmul_gated(&self, x: &Quantized, bias: Option<&[f32]>, gates: &mut [f32]) {
        match (self, x) {
            (Self::Bf16(weights), Quantized::Bf16(x)) => weights.matmul_gated(x, bias, gates),
            (Self::Int8(weights), Quantized::Int8(x)) => weights.matmul_gated(x, bias, gates),
            _ => panic!("x is quantised for the precision of the weight"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::elementwise;
    use super::*;
    use crate::kernels::testing::waves_f64;

    #[test]
    fn a_gated_product_is_a_product_and_a_gate() {
        for (rows, inputs, outputs) in [(1, 3, 5), (35, 70, 50), (3, 64, 16)] {
            let (x, w, bias, gates) = (
                waves_f64(rows * inputs, 0.7),
                waves_f64(outputs * inputs, 1.3),
                waves_f64(outputs, 0.4),
                waves_f64(rows * outputs, 2.1),
            );
            for precision in [Precision::Bf16, Precision::Int8] {
                let weights = PackedWeight::pack(precision, &w[..], inputs).expect("there are weights");
                let (x, mut plain, mut want, mut got) = (weights.quantize(&x), Vec::new(), gates.clone(), gates.clone());
                weights.matmul(&x, Some(&bias), &mut plain);
                elementwise::silu_mul(&mut want, &plain);
                weights.matmul_gated(&x, Some(&bias), &mut got);
                let close = |(got, want): (&f32, &f32)| (got - want).abs() <= 1e-6 * want.abs();
                assert!(got.iter().zip(&want).all(close), "{precision:?}, {rows} x {inputs} x {outputs}: {got:?} and not {want:?}");
            }
        }
    }

    /// A row with an outlier is multiplied twice, with its gate each time.
    #[test]
    fn a_gated_product_of_a_row_with_an_outlier_is_a_product_and_a_gate() {
        let (rows, inputs, outputs) = (3, 640, 16);
        let (mut x, w, gates) = (waves_f64(rows * inputs, 0.7), waves_f64(outputs * inputs, 1.3), waves_f64(rows * outputs, 2.1));
        x[inputs + 5] = 100.0;
        let weights = PackedWeight::pack(Precision::Int8, &w[..], inputs).expect("there are weights");
        let (x, mut plain, mut want, mut got) = (weights.quantize(&x), Vec::new(), gates.clone(), gates.clone());
        weights.matmul(&x, None, &mut plain);
        elementwise::silu_mul(&mut want, &plain);
        weights.matmul_gated(&x, None, &mut got);
        // Outputs of the row are up to 100, and rounded once more.
        let close = |(got, want): (&f32, &f32)| (got - want).abs() <= 1e-6 * want.abs().max(100.0);
        assert!(got.iter().zip(&want).all(close), "{got:?} and not {want:?}");
    }
}
