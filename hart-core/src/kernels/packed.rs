//! Weights rounded to a lower precision and rearranged for its instructions.

use super::gemm::{Bf16Rows, Bf16Weights, Int8Rows, Int8Weights};
use crate::device::Precision;

/// A linear layer's weights in a lower precision.
#[derive(Clone, Debug)]
pub(crate) enum Packed {
    /// See [`Precision::Bf16`].
    Bf16(Bf16Weights),
    /// See [`Precision::Int8`].
    Int8(Int8Weights),
}

/// Rows of x, rounded as some packed weights want them.
pub(super) enum Rounded {
    Bf16(Bf16Rows),
    Int8(Int8Rows),
}

impl Packed {
    /// Packs rows of `inputs` weights, one for each output; None where the precision is f32, or they can't be packed.
    pub(super) fn of_rows(precision: Precision, weights: &[f32], inputs: usize) -> Option<Self> {
        match precision {
            Precision::Auto | Precision::F32 => None,
            Precision::Bf16 => Bf16Weights::of_rows(weights, inputs).map(Self::Bf16),
            Precision::Int8 => Int8Weights::of_rows(weights, inputs).map(Self::Int8),
        }
    }

    /// Inputs and outputs of the layer.
    pub(super) fn sizes(&self) -> [usize; 2] {
        match self {
            Self::Bf16(weights) => [weights.inputs(), weights.outputs()],
            Self::Int8(weights) => [weights.inputs(), weights.outputs()],
        }
    }

    /// Rounds rows of x for these weights.
    pub(super) fn round(&self, x: &[f32]) -> Rounded {
        match self {
            Self::Bf16(weights) => Rounded::Bf16(Bf16Rows::of(x, weights.inputs())),
            Self::Int8(weights) => Rounded::Int8(Int8Rows::of(x, weights.inputs())),
        }
    }

    /// Appends `x[m] . w[n] + b[n]` to y.
    ///
    /// # Panics
    ///
    /// If x was rounded for weights of another kind or of other inputs, or there is not one bias for each output.
    pub(super) fn product(&self, x: &Rounded, bias: Option<&[f32]>, y: &mut Vec<f32>) {
        match (self, x) {
            (Self::Bf16(weights), Rounded::Bf16(x)) => weights.product(x, bias, y),
            (Self::Int8(weights), Rounded::Int8(x)) => weights.product(x, bias, y),
            _ => panic!("rows are rounded for the weights that they meet"),
        }
    }
}
