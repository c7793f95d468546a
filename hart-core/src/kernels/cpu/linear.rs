//! Linear layers and the gated layer made of them.

use std::mem::{Discriminant, discriminant};
use std::sync::Arc;

use burn::backend::flex::FlexTensor;
use burn::module::Param;
use burn::prelude::*;

use super::packed::{Packed, Rounded};
use super::tensor::{primitive, tensor};
use super::{elementwise, gemm, memory};
use crate::device::Precision;
use crate::kernels::Linear;

/// Rows of a gated layer that are done at once, so that what lies between its products takes little memory.
const GATED_ROWS: usize = 1024;

/// `x W + b`, with W packed, or as it lies in a checkpoint: a row for each output.
pub(crate) fn linear(x: &Tensor<3>, layer: &Linear) -> Option<Tensor<3>> {
    let [batch, length, _] = x.dims();
    let layer = Layer::of(layer)?;
    let x = primitive(x)?.to_contiguous();
    let x = x.as_slice::<f32>()?;
    let mut y = memory::room(batch * length * layer.outputs);
    layer.product(x, layer.round(x).as_ref(), &mut y);
    Some(tensor(y, vec![batch, length, layer.outputs]))
}

/// `down(silu(gate(x)) * up(x))`.
pub(crate) fn swi_glu(x: &Tensor<3>, [gate, up, down]: [&Linear; 3]) -> Option<Tensor<3>> {
    let [batch, length, width] = x.dims();
    let [gate, up, down] = [Layer::of(gate)?, Layer::of(up)?, Layer::of(down)?];
    if gate.weight.kind() != up.weight.kind() {
        return None;
    }
    let x = primitive(x)?.to_contiguous();
    let rows = batch * length;
    let at_once = rows.div_ceil(rows.div_ceil(GATED_ROWS).max(1)).max(1);
    let mut y = memory::room(rows * down.outputs);
    let mut hidden = memory::room(at_once * gate.outputs);
    for x in x.as_slice::<f32>()?.chunks(at_once * width) {
        let rounded = gate.round(x);
        hidden.clear();
        gate.product(x, rounded.as_ref(), &mut hidden);
        up.product_gated(x, rounded.as_ref(), &mut hidden);
        down.product(&hidden, down.round(&hidden).as_ref(), &mut y);
    }
    memory::give_back(hidden);
    Some(tensor(y, vec![batch, length, down.outputs]))
}

/// Packs a weight `[in, out]`; None where the precision is f32, or it can't be packed.
pub(crate) fn pack(weight: &Param<Tensor<2>>, precision: Precision) -> Option<Packed> {
    if matches!(precision, Precision::Auto | Precision::F32 | Precision::F16) {
        return None;
    }
    let [inputs, _] = weight.lazy_shape().dims();
    let rows = primitive(&weight.val())?;
    let turned = primitive(&weight.val().transpose())?;
    match rows_of_outputs(&rows) {
        Some(rows) => Packed::of_rows(precision, rows, inputs),
        None => Packed::of_rows(precision, turned.to_contiguous().as_slice()?, inputs),
    }
}

/// A linear layer as the products take it.
struct Layer {
    weight: Weight,
    bias: Option<FlexTensor>,
    inputs: usize,
    outputs: usize,
}

/// Why packed weights find what they need.
const ROUNDED: &str = "x is rounded for packed weights";

enum Weight {
    /// A view of rows, one for each output.
    Rows(FlexTensor),
    Packed(Arc<Packed>),
}

impl Weight {
    /// What decides whether two layers can share rounded rows.
    fn kind(&self) -> Option<Discriminant<Packed>> {
        match self {
            Self::Rows(_) => None,
            Self::Packed(packed) => Some(discriminant(packed)),
        }
    }
}

impl Layer {
    /// None where the weight is neither packed nor lies in rows, or is not this backend's.
    fn of(layer: &Linear) -> Option<Self> {
        let [inputs, outputs] = layer.weight.lazy_shape().dims();
        let weight = match layer.packed() {
            Some(packed) => Weight::Packed(packed.clone()),
            None => Weight::Rows(primitive(&layer.weight.val()).filter(|weight| rows_of_outputs(weight).is_some())?),
        };
        let bias = match &layer.bias {
            Some(bias) => Some(primitive(&bias.val())?.to_contiguous()),
            None => None,
        };
        Some(Self { weight, bias, inputs, outputs })
    }

    /// Rounds rows as a packed weight wants them.
    fn round(&self, x: &[f32]) -> Option<Rounded> {
        match &self.weight {
            Weight::Rows(_) => None,
            Weight::Packed(packed) => Some(packed.round(x)),
        }
    }

    fn bias(&self) -> Option<&[f32]> {
        self.bias.as_ref().map(|bias| bias.as_slice().expect("made contiguous, and f32"))
    }

    /// Appends `x W + b` to y, given x rounded too where the weight is packed.
    fn product(&self, x: &[f32], rounded: Option<&Rounded>, y: &mut Vec<f32>) {
        match &self.weight {
            Weight::Packed(packed) => packed.product(rounded.expect(ROUNDED), self.bias(), y),
            Weight::Rows(weight) => {
                let rows = rows_of_outputs(weight).expect("looked at where the layer was made");
                gemm::product(x, rows, self.bias(), self.inputs, y);
            }
        }
    }

    /// `silu(gate) (x W + b)` in the gate's place.
    fn product_gated(&self, x: &[f32], rounded: Option<&Rounded>, gates: &mut [f32]) {
        if let Weight::Packed(packed) = &self.weight {
            return packed.product_gated(rounded.expect(ROUNDED), self.bias(), gates);
        }
        let mut y = memory::room(gates.len());
        self.product(x, rounded, &mut y);
        elementwise::silu_mul(gates, &y);
        memory::give_back(y);
    }
}

/// The numbers of a weight `[in, out]` that is a turned view of whole rows `[out][in]`.
fn rows_of_outputs(weight: &FlexTensor) -> Option<&[f32]> {
    let layout = weight.layout();
    let [inputs, outputs] = layout.shape().to_vec().try_into().ok()?;
    let turned = layout.strides() == [1, isize::try_from(inputs).ok()?];
    let start = layout.start_offset();
    if turned { weight.storage::<f32>().get(start..start + inputs * outputs) } else { None }
}
