//! Tensors of burn's CPU backend as slices, and back.

use burn::backend::Flex;
use burn::backend::TensorMetadata;
use burn::backend::flex::{FlexTensor, Layout};
use burn::prelude::*;
use burn::tensor::{DType, Shape};

use super::memory;

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
