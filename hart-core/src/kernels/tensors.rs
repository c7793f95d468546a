//! Tensors from host memory and back.

use burn::prelude::*;
use burn::tensor::DType;

/// Returns a float tensor of values in row-major order. All arithmetic is f32, whatever the device's default is.
pub(crate) fn tensor<const D: usize>(values: Vec<f32>, shape: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values, shape), (device, DType::F32))
}

/// Returns the tensor in f32.
pub(crate) fn to_f32<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    if x.dtype() == DType::F32 { x } else { x.cast(DType::F32) }
}

/// Returns positions along a dimension as a tensor.
pub(crate) fn indices(positions: &[usize], device: &Device) -> Tensor<1, Int> {
    let positions: Vec<i32> = positions.iter().map(|&position| position as i32).collect();
    let count = positions.len();
    Tensor::from_data(TensorData::new(positions, [count]), device)
}

/// Returns an integer tensor of values in row-major order.
pub(crate) fn integers<const D: usize>(values: Vec<u32>, shape: [usize; D], device: &Device) -> Tensor<D, Int> {
    let values: Vec<i32> = values.into_iter().map(|value| value as i32).collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}

/// Returns the values of a tensor in row-major order.
pub(crate) fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    let data = tensor.into_data().convert::<f32>();
    data.try_into_vec().expect("converted to f32 just above")
}
