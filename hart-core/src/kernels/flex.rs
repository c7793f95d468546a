//! Faster bodies for burn's CPU backend. Each answers None where it doesn't apply, and the plain body does the work.

use burn::backend::Flex;
use burn::backend::TensorMetadata;
use burn::backend::flex::{FlexTensor, Layout};
use burn::nn::{LayerNorm, Linear, RmsNorm};
use burn::prelude::*;
use burn::tensor::{Bytes, DType, Shape};

use super::norm_rows::{self, After, Norm, Rows};
use super::{Modulation, dot};

/// Rows from which on rearranging the operands pays (docs/performance.md).
const MANY_ROWS: usize = 128;

/// `x W + b` for few rows, with W as it lies in a checkpoint: a row for each output.
pub(super) fn linear(x: &Tensor<3>, layer: &Linear) -> Option<Tensor<3>> {
    let [batch, length, _] = x.dims();
    let [inputs, outputs] = layer.weight.shape().dims();
    if batch * length > MANY_ROWS {
        return None;
    }
    let weight = primitive(&layer.weight.val())?;
    let rows = rows_of_outputs(&weight)?;
    let x = primitive(x)?.to_contiguous();
    let bias = match &layer.bias {
        Some(bias) => Some(primitive(&bias.val())?.to_contiguous()),
        None => None,
    };
    let bias = match &bias {
        Some(bias) => Some(bias.as_slice::<f32>()?),
        None => None,
    };
    let y = dot::rows_with_rows(x.as_slice()?, rows, bias, inputs);
    Some(tensor(y, vec![batch, length, outputs]))
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
fn primitive<const D: usize>(tensor: &Tensor<D>) -> Option<FlexTensor> {
    tensor.clone().try_into_primitive::<Flex>().ok().filter(|tensor| tensor.dtype() == DType::F32)
}

/// A tensor of values in row-major order.
fn tensor<const D: usize>(values: Vec<f32>, shape: Vec<usize>) -> Tensor<D> {
    Tensor::from_primitive::<Flex>(of_values(values, Shape::from(shape)))
}

/// The same as the CPU backend has it.
pub(super) fn of_values(values: Vec<f32>, shape: Shape) -> FlexTensor {
    FlexTensor::new(Bytes::from_elems(values), Layout::contiguous(shape), DType::F32)
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
