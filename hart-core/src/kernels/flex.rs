//! Faster bodies for burn's CPU backend. Each answers None where it doesn't apply, and the plain body does the work.

use burn::backend::Flex;
use burn::backend::flex::{FlexTensor, Layout};
use burn::nn::Linear;
use burn::prelude::*;
use burn::tensor::{Bytes, DType, Shape};

use super::dot;

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
    FlexTensor::new(Bytes::from_elems(values), Layout::contiguous(shape), DType::F32)
}

/// The numbers of a weight `[in, out]` that is a turned view of whole rows `[out][in]`.
fn rows_of_outputs(weight: &FlexTensor) -> Option<&[f32]> {
    let layout = weight.layout();
    let [inputs, outputs] = layout.shape().to_vec().try_into().ok()?;
    let turned = layout.strides() == [1, isize::try_from(inputs).ok()?];
    let start = layout.start_offset();
    if turned { weight.storage::<f32>().get(start..start + inputs * outputs) } else { None }
}
