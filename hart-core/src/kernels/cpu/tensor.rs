//! Conversions between tensors of burn's CPU backend and slices.

use burn::backend::Flex;
use burn::backend::TensorMetadata;
use burn::backend::flex::{FlexTensor, Layout};
use burn::prelude::*;
use burn::tensor::{DType, Shape};

use super::memory;

/// Returns the CPU backend's tensor, or `None` on another backend or if the type is not f32.
pub(super) fn primitive<const D: usize>(tensor: &Tensor<D>) -> Option<FlexTensor> {
    tensor.clone().try_into_primitive::<Flex>().ok().filter(|tensor| tensor.dtype() == DType::F32)
}

/// Returns the CPU backend's tensor of a weight in f32 or half precision, or `None` on another backend or of another type.
pub(super) fn stored_primitive<const D: usize>(tensor: &Tensor<D>) -> Option<FlexTensor> {
    let is_stored = |tensor: &FlexTensor| matches!(tensor.dtype(), DType::F32 | DType::F16 | DType::BF16);
    tensor.clone().try_into_primitive::<Flex>().ok().filter(is_stored)
}

/// Builds a tensor from values in row-major order.
pub(super) fn tensor<const D: usize>(values: Vec<f32>, shape: Vec<usize>) -> Tensor<D> {
    Tensor::from_primitive::<Flex>(flex_tensor(values, Shape::from(shape)))
}

/// Builds the CPU backend's tensor from values in row-major order.
pub(super) fn flex_tensor(values: Vec<f32>, shape: Shape) -> FlexTensor {
    FlexTensor::new(memory::into_bytes(values), Layout::contiguous(shape), DType::F32)
}

/// Returns the values of a contiguous f32 tensor.
///
/// # Panics
///
/// If the tensor is not contiguous or not f32.
pub(super) fn slice(x: &FlexTensor) -> &[f32] {
    x.as_slice().expect("made contiguous, and f32 as its caller has checked")
}

/// Modifies a tensor's values in row-major order: in place if the storage is not shared, otherwise in a copy.
pub(super) fn modify(x: FlexTensor, work: impl FnOnce(&mut [f32])) -> FlexTensor {
    let shape = x.shape();
    let mut y = {
        let x = x;
        x.to_contiguous()
    };
    match y.try_storage_mut::<f32>() {
        // The storage may belong to a larger tensor of which x is a view.
        Some(values) if values.len() == shape.num_elements() => {
            work(values);
            y
        }
        _ => {
            let mut values = slice(&y).to_vec();
            work(&mut values);
            flex_tensor(values, shape)
        }
    }
}
