//! Operand types of the kernels: weights, parameters and options.

use std::sync::Arc;

use burn::prelude::*;

use super::PackedWeight;
use super::tensors::indices;

/// The weight of a linear layer, `[in, out]`.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant, reason = "short-lived, and a tensor is as large everywhere else")]
pub(crate) enum Weight {
    /// A tensor in f32, or on a GPU in half precision.
    Dense(Tensor<2>),
    /// Quantised and rearranged for the CPU's instructions.
    #[cfg_attr(not(feature = "cpu"), allow(dead_code, reason = "read by the CPU's kernels"))]
    Packed(Arc<PackedWeight>),
}

impl Weight {
    /// Returns the sizes `[in, out]`.
    #[cfg_attr(not(feature = "cpu"), allow(dead_code, reason = "used by the CPU's kernels"))]
    pub(crate) fn dims(&self) -> [usize; 2] {
        match self {
            Self::Dense(weight) => weight.dims(),
            Self::Packed(packed) => packed.dims(),
        }
    }

    /// Returns the tensor.
    ///
    /// # Panics
    ///
    /// If the weight is packed. Only the CPU's kernels read packed weights.
    pub(super) fn dense(&self) -> Tensor<2> {
        match self {
            Self::Dense(weight) => weight.clone(),
            Self::Packed(_) => panic!("packed weights are read by the CPU's kernels alone"),
        }
    }
}

/// Scale and shift of a normalised tensor, broadcast over its rows: `x * (1 + scale) + shift`.
#[derive(Clone, Debug)]
pub(crate) struct Modulation {
    pub(crate) scale: Tensor<3>,
    pub(crate) shift: Tensor<3>,
}

/// Parameters of a group norm.
#[derive(Clone, Debug)]
pub(crate) struct GroupNormParams {
    /// `[channels]`.
    pub(crate) gain: Tensor<1>,
    /// `[channels]`.
    pub(crate) bias: Tensor<1>,
    pub(crate) groups: usize,
    pub(crate) epsilon: f64,
}

/// Parameters of a 2-D convolution.
#[derive(Clone, Debug)]
pub(crate) struct ConvParams {
    /// `[out, in / groups, kernel height, kernel width]`, f32 or bf16.
    pub(crate) weight: Tensor<4>,
    /// `[out]`.
    pub(crate) bias: Option<Tensor<1>>,
    /// Vertical and horizontal.
    pub(crate) stride: [usize; 2],
    /// Zeros added at the top and bottom, and at the left and right.
    pub(crate) padding: [[usize; 2]; 2],
    /// Vertical and horizontal.
    pub(crate) dilation: [usize; 2],
    pub(crate) groups: usize,
}

impl ConvParams {
    /// Returns the kernel's height and width.
    pub(super) fn kernel(&self) -> [usize; 2] {
        let [_, _, height, width] = self.weight.dims();
        [height, width]
    }

    /// Returns whether stride, dilation and groups are 1.
    #[cfg_attr(not(feature = "cpu"), allow(dead_code, reason = "used by the CPU's kernels"))]
    pub(super) fn is_plain(&self) -> bool {
        self.stride == [1, 1] && self.dilation == [1, 1] && self.groups == 1
    }
}

/// Smallest norm that L2 normalisation divides by, PyTorch's default.
pub(super) const MIN_NORM: f32 = 1e-12;

/// Parameters of self-attention, without those of its two linear layers.
#[derive(Debug)]
pub(crate) struct AttentionParams {
    /// Number of heads, H.
    pub(crate) heads: usize,
    /// Added to the queries, `[C]`.
    pub(crate) query_bias: Tensor<1>,
    /// Added to the values, `[C]`.
    pub(crate) value_bias: Tensor<1>,
    /// Norm of each head's queries if queries and keys are L2-normalised, `[1, H, 1, 1]`.
    pub(crate) norms: Option<Tensor<4>>,
    /// Factor of the scores.
    pub(crate) scale: f64,
}

/// Cosines and sines of a rotary embedding, both `[rows or 1, 1, tokens, head_dim]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rotary<'a> {
    pub(crate) cos: &'a Tensor<4>,
    pub(crate) sin: &'a Tensor<4>,
}

/// Consecutive rows of a batch with the same number of tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RowGroup {
    /// Number of rows.
    pub(crate) rows: usize,
    /// Tokens of each row.
    pub(crate) tokens: usize,
    /// Multiplicity of each token as a key. One token may represent several equal ones.
    pub(crate) multiplicity: usize,
}

impl RowGroup {
    /// Returns the number of tokens of all rows.
    pub(crate) fn total(&self) -> usize {
        self.rows * self.tokens
    }
}

/// Channels of a token that share a scale if its outputs are stored in 8 bits.
pub(super) const SCALED_CHANNELS: usize = 64;

/// Returns the first and the last of the inputs that output `i` of `m` averages, out of `n` inputs. There are one or two if `n <= m`.
pub(super) fn covered(i: usize, n: usize, m: usize) -> [usize; 2] {
    [i * n / m, ((i + 1) * n).div_ceil(m) - 1]
}

/// The tokens of a scale that a branch of a block computes: equally many of each row.
#[derive(Clone, Debug)]
pub(crate) struct KeptTokens {
    /// Ascending positions in each row.
    positions: Vec<Vec<u32>>,
    /// Number of tokens of a row, kept or not.
    tokens: usize,
    /// The positions, counted over all rows.
    flat: Tensor<1, Int>,
}

impl KeptTokens {
    /// Creates the tokens from their ascending positions in each row of `tokens`.
    pub(crate) fn new(positions: Vec<Vec<u32>>, tokens: usize, device: &Device) -> Self {
        let flat: Vec<usize> =
            positions.iter().enumerate().flat_map(|(row, kept)| kept.iter().map(move |&p| row * tokens + p as usize)).collect();
        Self { flat: indices(&flat, device), positions, tokens }
    }

    /// Returns the ascending positions in each row.
    pub(crate) fn positions(&self) -> &[Vec<u32>] {
        &self.positions
    }

    /// Returns the number of kept tokens of each row.
    pub(crate) fn count(&self) -> usize {
        self.positions.first().map_or(0, Vec::len)
    }

    /// Returns the positions, counted over all rows.
    pub(crate) fn flat_indices(&self) -> Tensor<1, Int> {
        self.flat.clone()
    }

    /// Returns the positions of a row that are not kept.
    pub(super) fn left_out(&self, row: usize) -> impl Iterator<Item = usize> {
        let mut kept = self.positions[row].iter().peekable();
        (0..self.tokens).filter(move |&position| kept.next_if(|&&p| p as usize == position).is_none())
    }
}

/// A block's past keys and values in a backend's format, and the destination of one scale's new ones.
pub(super) struct KvPart<'a, C, S> {
    pub(super) options: KvOptions,
    /// Keys and values of earlier scales; `None` before the first one.
    pub(super) cached: &'a mut Option<C>,
    /// Memory of the last scale's keys and values, which are not cached; `None` for earlier scales.
    pub(super) last: Option<&'a mut S>,
}

/// Options of the KV cache.
#[derive(Clone, Copy, Debug)]
pub(super) struct KvOptions {
    /// `true` to store bf16, if the backend supports it.
    #[cfg_attr(not(feature = "cpu"), allow(dead_code, reason = "read by the CPU's kernels"))]
    pub(super) bf16: bool,
    /// `true` to quantise to 8 bits, if the backend supports it.
    #[cfg_attr(not(feature = "cpu"), allow(dead_code, reason = "read by the CPU's kernels"))]
    pub(super) int8: bool,
    /// Maximum number of tokens per row in the cache.
    #[cfg_attr(not(any(feature = "cuda", feature = "wgpu")), allow(dead_code, reason = "read by the GPU's kernels"))]
    pub(super) capacity: usize,
}

/// Settings of one AdamW step.
#[cfg(feature = "train")]
#[cfg_attr(not(any(feature = "cuda", feature = "wgpu")), allow(dead_code, reason = "read by the GPU's kernels"))]
#[derive(Clone, Copy, Debug)]
pub(crate) struct AdamStep {
    pub(crate) beta_1: f32,
    pub(crate) beta_2: f32,
    pub(crate) epsilon: f32,
    /// Number of this step, from 1. It corrects the bias of the moments.
    pub(crate) time: usize,
    /// Learning rate.
    pub(crate) rate: f64,
    pub(crate) weight_decay: f32,
    /// Factor of the gradients, from clipping their norm.
    pub(crate) scale: f32,
    /// Decay of the exponential moving average of the parameters.
    pub(crate) average: f64,
}

/// Parameters with their exponential moving average and AdamW's moments, all `[parameters]`.
#[cfg(feature = "train")]
#[cfg_attr(not(any(feature = "cuda", feature = "wgpu")), allow(dead_code, reason = "read by the GPU's kernels"))]
pub(crate) struct AdamRows {
    pub(crate) value: Tensor<1>,
    pub(crate) average: Tensor<1>,
    pub(crate) moment_1: Tensor<1>,
    pub(crate) moment_2: Tensor<1>,
}
