//! Linear layers and SwiGLU.

use std::mem::{Discriminant, discriminant};
use std::sync::Arc;

use burn::backend::flex::FlexTensor;
use burn::prelude::*;
use burn::tensor::DType;
use half::{bf16, f16};

use super::gemm::StoredRows;
use super::packed::{PackedWeight, Quantized};
use super::tensor::{primitive, stored_primitive, tensor};
use super::{autodiff, elementwise, gemm, memory};
use crate::device::Precision;
use crate::kernels::params::Weight;

/// Rows of x that SwiGLU computes at a time, which bounds the memory of its hidden layer.
const SWI_GLU_ROWS: usize = 1024;

/// See [`crate::kernels::linear`]. Returns `None` if the weight is neither packed nor a transposed view of `[out, in]`.
pub(crate) fn linear(x: &Tensor<3>, weight: &Weight, bias: Option<&Tensor<1>>) -> Option<Tensor<3>> {
    untracked(x, weight, bias).or_else(|| autodiff::linear(x, weight, bias))
}

/// Computes [`linear`] for a tensor that autodiff does not track.
fn untracked(x: &Tensor<3>, weight: &Weight, bias: Option<&Tensor<1>>) -> Option<Tensor<3>> {
    let [batch, length, _] = x.dims();
    let layer = Layer::new(weight, bias)?;
    let x = primitive(x)?.to_contiguous();
    let x = x.as_slice::<f32>()?;
    let mut y = memory::with_capacity(batch * length * layer.outputs);
    layer.forward(x, layer.quantize(x).as_ref(), &mut y);
    Some(tensor(y, vec![batch, length, layer.outputs]))
}

/// See [`crate::kernels::swi_glu`].
pub(crate) fn swi_glu(x: &Tensor<3>, gate: &Weight, up: &Weight, down: &Weight) -> Option<Tensor<3>> {
    let [batch, length, width] = x.dims();
    let [gate, up, down] = [Layer::new(gate, None)?, Layer::new(up, None)?, Layer::new(down, None)?];
    if gate.weight.format() != up.weight.format() {
        return None;
    }
    let x = primitive(x)?.to_contiguous();
    let rows = batch * length;
    let chunk_rows = rows.div_ceil(rows.div_ceil(SWI_GLU_ROWS).max(1)).max(1);
    let mut y = memory::with_capacity(rows * down.outputs);
    let mut hidden = memory::with_capacity(chunk_rows * gate.outputs);
    for x in x.as_slice::<f32>()?.chunks(chunk_rows * width) {
        let quantized = gate.quantize(x);
        hidden.clear();
        gate.forward(x, quantized.as_ref(), &mut hidden);
        up.forward_gated(x, quantized.as_ref(), &mut hidden);
        down.forward(&hidden, down.quantize(&hidden).as_ref(), &mut y);
    }
    memory::recycle(hidden);
    Some(tensor(y, vec![batch, length, down.outputs]))
}

/// Packs a weight `[in, out]`. Returns `None` if the precision is not packed, or the weight is empty or not on the CPU.
pub(crate) fn pack(weight: &Tensor<2>, precision: Precision) -> Option<PackedWeight> {
    if matches!(precision, Precision::Auto | Precision::F32 | Precision::F16) {
        return None;
    }
    let [inputs, _] = weight.dims();
    let view = stored_primitive(weight)?;
    match output_rows(&view) {
        Some(rows) => PackedWeight::pack(precision, rows, inputs),
        None => {
            let rows = primitive(&weight.clone().transpose())?.to_contiguous();
            PackedWeight::pack(precision, rows.as_slice::<f32>()?, inputs)
        }
    }
}

/// A linear layer whose weight the kernels can read.
struct Layer {
    weight: LayerWeight,
    bias: Option<FlexTensor>,
    inputs: usize,
    outputs: usize,
}

/// Panic message if a packed weight gets no quantised x.
const QUANTIZED: &str = "x is quantised for packed weights";

/// The weight of a [`Layer`].
enum LayerWeight {
    /// A transposed view of `[out, in]` in f32 or half precision.
    Stored(FlexTensor),
    Packed(Arc<PackedWeight>),
}

impl LayerWeight {
    /// Returns the format of the rows that this weight reads. Layers of equal formats can share quantised rows of x.
    fn format(&self) -> Option<Discriminant<PackedWeight>> {
        match self {
            Self::Stored(_) => None,
            Self::Packed(packed) => Some(discriminant(packed)),
        }
    }
}

impl Layer {
    /// Returns `None` if the weight is neither packed nor a transposed view of `[out, in]`, or is not on the CPU.
    fn new(weight: &Weight, bias: Option<&Tensor<1>>) -> Option<Self> {
        let [inputs, outputs] = weight.dims();
        let weight = match weight {
            Weight::Packed(packed) => LayerWeight::Packed(packed.clone()),
            Weight::Dense(weight) => LayerWeight::Stored(stored_primitive(weight).filter(|weight| output_rows(weight).is_some())?),
        };
        let bias = match bias {
            Some(bias) => Some(primitive(bias)?.to_contiguous()),
            None => None,
        };
        Some(Self { weight, bias, inputs, outputs })
    }

    /// Quantises rows of x for a packed weight.
    fn quantize(&self, x: &[f32]) -> Option<Quantized> {
        match &self.weight {
            LayerWeight::Stored(_) => None,
            LayerWeight::Packed(packed) => Some(packed.quantize(x)),
        }
    }

    /// Returns the biases.
    fn bias(&self) -> Option<&[f32]> {
        self.bias.as_ref().map(|bias| bias.as_slice().expect("made contiguous, and f32"))
    }

    /// Appends `x W + b` to y. A packed weight reads `quantized` instead of x.
    fn forward(&self, x: &[f32], quantized: Option<&Quantized>, y: &mut Vec<f32>) {
        match &self.weight {
            LayerWeight::Packed(packed) => packed.matmul(quantized.expect(QUANTIZED), self.bias(), y),
            LayerWeight::Stored(weight) => {
                let rows = output_rows(weight).expect("checked in `Layer::new`");
                gemm::matmul(x, rows, self.bias(), self.inputs, y);
            }
        }
    }

    /// Replaces the gates by `silu(gate) * (x W + b)`.
    fn forward_gated(&self, x: &[f32], quantized: Option<&Quantized>, gates: &mut [f32]) {
        if let LayerWeight::Packed(packed) = &self.weight {
            return packed.matmul_gated(quantized.expect(QUANTIZED), self.bias(), gates);
        }
        let mut y = memory::with_capacity(gates.len());
        self.forward(x, quantized, &mut y);
        elementwise::silu_mul(gates, &y);
        memory::recycle(y);
    }
}

/// Returns the values `[out, in]` of which a weight `[in, out]` is a transposed view; `None` if it is not one.
fn output_rows(weight: &FlexTensor) -> Option<StoredRows<'_>> {
    let layout = weight.layout();
    let [inputs, outputs] = layout.shape().to_vec().try_into().ok()?;
    if layout.strides() != [1, isize::try_from(inputs).ok()?] {
        return None;
    }
    let range = layout.start_offset()..layout.start_offset() + inputs * outputs;
    match weight.dtype() {
        DType::F16 => weight.storage::<f16>().get(range).map(StoredRows::F16),
        DType::BF16 => weight.storage::<bf16>().get(range).map(StoredRows::Bf16),
        _ => weight.storage::<f32>().get(range).map(StoredRows::F32),
    }
}
