//! Faster bodies for burn's CPU backend. Each answers None where it doesn't apply, and the plain body does the work.

use std::mem::{Discriminant, discriminant};
use std::sync::Arc;

use burn::backend::Flex;
use burn::backend::TensorMetadata;
use burn::backend::flex::{FlexTensor, Layout};
use burn::module::Param;
use burn::nn::{LayerNorm, RmsNorm};
use burn::prelude::*;
use burn::tensor::{DType, Shape};

use super::linear::Linear;
use super::norm_rows::{self, After, Norm, Rows};
use super::packed::{Packed, Rounded};
use super::{Modulation, elementwise, gemm, memory};
use crate::device::Precision;

/// Rows of a gated layer that are done at once, so that what lies between its products takes little memory.
const GATED_ROWS: usize = 1024;

/// `x W + b`, with W packed, or as it lies in a checkpoint: a row for each output.
pub(super) fn linear(x: &Tensor<3>, layer: &Linear) -> Option<Tensor<3>> {
    let [batch, length, _] = x.dims();
    let layer = Layer::of(layer)?;
    let x = primitive(x)?.to_contiguous();
    let x = x.as_slice::<f32>()?;
    let mut y = memory::room(batch * length * layer.outputs);
    layer.product(x, layer.round(x).as_ref(), &mut y);
    Some(tensor(y, vec![batch, length, layer.outputs]))
}

/// `down(silu(gate(x)) * up(x))`.
pub(super) fn swi_glu(x: &Tensor<3>, [gate, up, down]: [&Linear; 3]) -> Option<Tensor<3>> {
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
pub(super) fn pack(weight: &Param<Tensor<2>>, precision: Precision) -> Option<Packed> {
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

/// Root-mean-square norm and modulation.
pub(super) fn rms_norm(x: &Tensor<3>, norm: &RmsNorm, modulation: Option<&Modulation>) -> Option<Tensor<3>> {
    normed(x, Norm::RootMeanSquare, norm.epsilon, Some(norm.gamma.val()), None, modulation)
}

/// Layer norm and modulation.
pub(super) fn layer_norm(
    x: &Tensor<3>,
    norm: Option<&LayerNorm>,
    epsilon: f64,
    modulation: Option<&Modulation>,
) -> Option<Tensor<3>> {
    let gain = norm.map(|norm| norm.gamma.val());
    let bias = norm.and_then(|norm| Some(norm.beta.as_ref()?.val()));
    normed(x, Norm::MeanAndVariance, epsilon, gain, bias, modulation)
}

fn normed(
    x: &Tensor<3>,
    norm: Norm,
    epsilon: f64,
    gain: Option<Tensor<1>>,
    bias: Option<Tensor<1>>,
    modulation: Option<&Modulation>,
) -> Option<Tensor<3>> {
    let [batch, length, width] = x.dims();
    let x = primitive(x)?.to_contiguous();
    let vector = |vector: Option<Tensor<1>>| vector.map(|v| v.reshape([1, 1, width])).map(|v| PerRow::of(&v, [batch, length]));
    let (gain, bias) = (all_or_none(vector(gain))?, all_or_none(vector(bias))?);
    let scale = all_or_none(modulation.map(|m| PerRow::of(&m.scale, [batch, length])))?;
    let shift = all_or_none(modulation.map(|m| PerRow::of(&m.shift, [batch, length])))?;
    let after = After {
        gain: gain.as_ref().map(PerRow::rows),
        bias: bias.as_ref().map(PerRow::rows),
        modulation: scale.as_ref().map(PerRow::rows).zip(shift.as_ref().map(PerRow::rows)),
    };
    let y = norm_rows::norm(x.as_slice()?, width, norm, epsilon as f32, after);
    Some(tensor(y, vec![batch, length, width]))
}

/// Gated sum; x and y come back where this doesn't apply.
#[allow(clippy::result_large_err)] // What comes back are tensors, not an error.
pub(super) fn add_gated(x: Tensor<3>, y: Tensor<3>, gate: Option<&Tensor<3>>) -> Result<Tensor<3>, (Tensor<3>, Tensor<3>)> {
    let [batch, length, width] = x.dims();
    let gate = all_or_none(gate.map(|gate| PerRow::of(gate, [batch, length])));
    let (Some(gate), Some(branch), true) = (gate, primitive(&y), primitive(&x).is_some() && x.dims() == y.dims()) else {
        return Err((x, y));
    };
    let branch = branch.to_contiguous();
    let Ok(x) = x.try_into_primitive::<Flex>() else { unreachable!("it was one just above") };
    let sum = change(x, |x| norm_rows::add_gated(x, slice(&branch), gate.as_ref().map(PerRow::rows), width));
    Ok(Tensor::from_primitive::<Flex>(sum))
}

/// Nothing where nothing was asked for, and a refusal where what was asked for is not there.
fn all_or_none<T>(asked: Option<Option<T>>) -> Option<Option<T>> {
    match asked {
        None => Some(None),
        Some(found) => found.map(Some),
    }
}

/// A tensor `[1 or B, 1 or L, C]` that goes with the rows of another one, `[B, L, C]`.
struct PerRow {
    tensor: FlexTensor,
    start: usize,
    stride: usize,
    shared: usize,
}

impl PerRow {
    fn of(part: &Tensor<3>, [batch, length]: [usize; 2]) -> Option<Self> {
        let [batches, lengths, width] = part.dims();
        let primitive = primitive(part)?;
        // A part of something larger will do as it is, if its rows are whole and evenly spaced.
        let even = |strides: &[isize]| strides[2] == 1 && (batches == 1 || strides[0] == strides[1] * lengths as isize);
        let tensor = match even(primitive.layout().strides()) {
            true => primitive,
            false => primitive.to_contiguous(),
        };
        let start = tensor.layout().start_offset();
        let stride = match lengths {
            1 => tensor.layout().strides()[0],
            _ => tensor.layout().strides()[1],
        };
        let (stride, shared) = match (batches == batch, lengths == length) {
            (true, true) => (stride, 1),
            (true, false) if lengths == 1 => (stride, length),
            (false, _) if batches == 1 && lengths == 1 => (0, 1),
            _ => return None,
        };
        let stride = usize::try_from(stride).ok()?;
        let last = (batch * length).saturating_sub(1) / shared * stride;
        let fits = start + last + width <= tensor.storage::<f32>().len();
        fits.then_some(Self { tensor, start, stride, shared })
    }

    fn rows(&self) -> Rows<'_> {
        Rows { values: &self.tensor.storage::<f32>()[self.start..], stride: self.stride, shared: self.shared }
    }
}

/// The tensor as the CPU backend has it, if it is the CPU backend's and f32.
pub(super) fn primitive<const D: usize>(tensor: &Tensor<D>) -> Option<FlexTensor> {
    tensor.clone().try_into_primitive::<Flex>().ok().filter(|tensor| tensor.dtype() == DType::F32)
}

/// A tensor of values in row-major order.
pub(super) fn tensor<const D: usize>(values: Vec<f32>, shape: Vec<usize>) -> Tensor<D> {
    Tensor::from_primitive::<Flex>(of_values(values, Shape::from(shape)))
}

/// The same as the CPU backend has it.
pub(super) fn of_values(values: Vec<f32>, shape: Shape) -> FlexTensor {
    FlexTensor::new(memory::bytes(values), Layout::contiguous(shape), DType::F32)
}

/// The values of a tensor in row-major order.
pub(super) fn slice(x: &FlexTensor) -> &[f32] {
    x.as_slice().expect("made contiguous, and f32 as its caller has checked")
}

/// Changes a tensor's values: in place, if nobody else holds them.
pub(super) fn change(x: FlexTensor, work: impl FnOnce(&mut [f32])) -> FlexTensor {
    let shape = x.shape();
    let mut y = {
        let x = x;
        x.to_contiguous()
    };
    match y.try_storage_mut::<f32>() {
        // Not a part of something larger.
        Some(values) if values.len() == shape.num_elements() => {
            work(values);
            y
        }
        _ => {
            let mut values = slice(&y).to_vec();
            work(&mut values);
            of_values(values, shape)
        }
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
