//! Linear layers and the gated layer made of them.

use std::mem::{Discriminant, discriminant};
use std::sync::Arc;

use burn::backend::flex::FlexTensor;
use burn::prelude::*;

use super::packed::{PackedWeight, Quantized};
use super::tensor::{primitive, tensor};
use super::{autodiff, elementwise, gemm, memory};
use crate::device::Precision;
use crate::kernels::params::Weight;

/// Rows of a gated layer that are computed at a time, so that its hidden layer takes little memory.
const GATED_ROWS: usize = 1024;

/// See [`crate::kernels::linear`]: the weight is packed, or a view of a checkpoint's rows, one for each output.
pub(crate) fn linear(x: &Tensor<3>, weight: &Weight, bias: Option<&Tensor<1>>) -> Option<Tensor<3>> {
    untracked(x, weight, bias).or_else(|| autodiff::linear(x, weight, bias))
}

fn untracked(x: &Tensor<3>, weight: &Weight, bias: Option<&Tensor<1>>) -> Option<Tensor<3>> {
    let [batch, length, _] = x.dims();
    let layer = Layer::new(weight, bias)?;
    let x = primitive(x)?.to_contiguous();
    let x = x.as_slice::<f32>()?;
    let mut y = memory::with_capacity(batch * length * layer.outputs);
    layer.product(x, layer.quantize(x).as_ref(), &mut y);
    Some(tensor(y, vec![batch, length, layer.outputs]))
}

/// See [`crate::kernels::swi_glu`].
pub(crate) fn swi_glu(x: &Tensor<3>, gate: &Weight, up: &Weight, down: &Weight) -> Option<Tensor<3>> {
    let [batch, length, width] = x.dims();
    let [gate, up, down] = [Layer::new(gate, None)?, Layer::new(up, None)?, Layer::new(down, None)?];
    if gate.weight.kind() != up.weight.kind() {
        return None;
    }
    let x = primitive(x)?.to_contiguous();
    let rows = batch * length;
    let at_once = rows.div_ceil(rows.div_ceil(GATED_ROWS).max(1)).max(1);
    let mut y = memory::with_capacity(rows * down.outputs);
    let mut hidden = memory::with_capacity(at_once * gate.outputs);
    for x in x.as_slice::<f32>()?.chunks(at_once * width) {
        let quantized = gate.quantize(x);
        hidden.clear();
        gate.product(x, quantized.as_ref(), &mut hidden);
        up.product_gated(x, quantized.as_ref(), &mut hidden);
        down.product(&hidden, down.quantize(&hidden).as_ref(), &mut y);
    }
    memory::recycle(hidden);
    Some(tensor(y, vec![batch, length, down.outputs]))
}

/// Packs a weight `[in, out]`; `None` if the precision is f32, or the weight can't be packed.
pub(crate) fn pack(weight: &Tensor<2>, precision: Precision) -> Option<PackedWeight> {
    if matches!(precision, Precision::Auto | Precision::F32 | Precision::F16) {
        return None;
    }
    let [inputs, _] = weight.dims();
    let view = primitive(weight)?;
    match output_rows(&view) {
        Some(rows) => PackedWeight::pack(precision, rows, inputs),
        None => {
            let rows = primitive(&weight.clone().transpose())?.to_contiguous();
            PackedWeight::pack(precision, rows.as_slice()?, inputs)
        }
    }
}

/// A linear layer in the form that products read.
struct Layer {
    weight: Rows,
    bias: Option<FlexTensor>,
    inputs: usize,
    outputs: usize,
}

/// Why packed weights find quantised rows.
const QUANTIZED: &str = "x is quantised for packed weights";

enum Rows {
    /// A view of f32 rows, one for each output.
    F32(FlexTensor),
    Packed(Arc<PackedWeight>),
}

impl Rows {
    /// Returns what two layers must have in common to share quantised rows of x.
    fn kind(&self) -> Option<Discriminant<PackedWeight>> {
        match self {
            Self::F32(_) => None,
            Self::Packed(packed) => Some(discriminant(packed)),
        }
    }
}

impl Layer {
    /// Returns `None` if the weight is neither packed nor a view of rows, or is not on the CPU.
    fn new(weight: &Weight, bias: Option<&Tensor<1>>) -> Option<Self> {
        let [inputs, outputs] = weight.dims();
        let weight = match weight {
            Weight::Packed(packed) => Rows::Packed(packed.clone()),
            Weight::Dense(weight) => Rows::F32(primitive(weight).filter(|weight| output_rows(weight).is_some())?),
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
            Rows::F32(_) => None,
            Rows::Packed(packed) => Some(packed.quantize(x)),
        }
    }

    fn bias(&self) -> Option<&[f32]> {
        self.bias.as_ref().map(|bias| bias.as_slice().expect("made contiguous, and f32"))
    }

    /// Appends `x W + b` to y; a packed weight reads the quantised x.
    fn product(&self, x: &[f32], quantized: Option<&Quantized>, y: &mut Vec<f32>) {
        match &self.weight {
            Rows::Packed(packed) => packed.product(quantized.expect(QUANTIZED), self.bias(), y),
            Rows::F32(weight) => {
                let rows = output_rows(weight).expect("checked in `Layer::new`");
                gemm::product(x, rows, self.bias(), self.inputs, y);
            }
        }
    }

    /// Replaces the gates by `silu(gate) * (x W + b)`.
    fn product_gated(&self, x: &[f32], quantized: Option<&Quantized>, gates: &mut [f32]) {
        if let Rows::Packed(packed) = &self.weight {
            return packed.product_gated(quantized.expect(QUANTIZED), self.bias(), gates);
        }
        let mut y = memory::with_capacity(gates.len());
        self.product(x, quantized, &mut y);
        elementwise::silu_mul(gates, &y);
        memory::recycle(y);
    }
}

/// Returns the values of a weight `[in, out]` that is a transposed view of whole rows `[out][in]`.
fn output_rows(weight: &FlexTensor) -> Option<&[f32]> {
    let layout = weight.layout();
    let [inputs, outputs] = layout.shape().to_vec().try_into().ok()?;
    let turned = layout.strides() == [1, isize::try_from(inputs).ok()?];
    let start = layout.start_offset();
    if turned { weight.storage::<f32>().get(start..start + inputs * outputs) } else { None }
}
