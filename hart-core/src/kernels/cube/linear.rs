//! Products with weights of half precision.

use burn::prelude::*;
use burn::tensor::DType;
use burn_cubecl::kernel::matmul::{MatmulStrategy, matmul};
use burn_cubecl::tensor::CubeTensor;
use cubek::matmul::definition::{MatmulElems, MatmulGlobalElems};
use cubek::matmul::launch::launch_ref;
use cubek::matmul::multi_level::Strategy as Levels;
use cubek::matmul::routine::BlueprintStrategy;
use cubek::matmul::strategy::Strategy;
use cubek::std::InputBinding;

use super::super::Linear;
use super::{element, empty_like, is_here, primitive, tensor};

/// `x W + b` in the type of W.
pub(in super::super) fn linear(x: &Tensor<3>, layer: &Linear) -> Option<Tensor<3>> {
    if !is_here(&x.device()) {
        return None;
    }
    let to = layer.weight.val().dtype();
    if to == DType::F32 { None } else { layer_product(x, layer, to) }
}

/// `x W + b` in f32, whatever the type of W.
pub(in super::super) fn linear_to_f32(x: &Tensor<3>, layer: &Linear) -> Option<Tensor<3>> {
    if !is_here(&x.device()) || layer.weight.val().dtype() == DType::F32 {
        return None;
    }
    layer_product(x, layer, DType::F32)
}

fn layer_product(x: &Tensor<3>, layer: &Linear, to: DType) -> Option<Tensor<3>> {
    let weight = layer.weight.val();
    let [rows, length, inputs] = x.dims();
    let [_, outputs] = weight.dims();
    // One product for all rows.
    let x = primitive(&x.clone().cast(float(weight.dtype())).reshape([rows * length, inputs]))?;
    let y = product(x, primitive(&weight)?, to);
    let y: Tensor<3> = tensor::<2>(y).reshape([rows, length, outputs]);
    Some(match &layer.bias {
        Some(bias) => y + bias.val().cast(float(to)).unsqueeze(),
        None => y,
    })
}

/// Rows `[rows, in]` times a matrix `[in, out]`, of one type, to another or the same.
pub(super) fn product(x: CubeTensor, weight: CubeTensor, to: DType) -> CubeTensor {
    by_tensor_memory(&x, &weight, to).unwrap_or_else(|| {
        matmul(x, weight, None, MatmulStrategy::default(), to)
            .expect("the sizes fit, and a way without conditions is among those tried")
    })
}

/// The product by the way that is the fastest for many rows on GPUs whose memory is copied by a unit of its own (NVIDIA's from Hopper
/// on); None elsewhere.
fn by_tensor_memory(x: &CubeTensor, weight: &CubeTensor, to: DType) -> Option<CubeTensor> {
    const MANY: usize = 128;
    let (rows, columns) = (x.meta.shape()[0], weight.meta.shape()[1]);
    if rows < MANY || x.client.properties().features.tma.is_empty() {
        return None;
    }
    let y = empty_like(x, [rows, columns], to);
    let kind = |tensor: &CubeTensor| element(tensor.dtype);
    let globals = MatmulGlobalElems { lhs: kind(x), rhs: kind(weight), out: kind(&y) };
    let input = |tensor: &CubeTensor| InputBinding::new(tensor.clone().binding(), kind(tensor));
    let strategy = Strategy::MultiLevel(Levels::SpecializedTmaMma(BlueprintStrategy::Inferred(().into())));
    let mut kinds = MatmulElems::from_globals(&globals);
    launch_ref(&strategy, &x.client, input(x), input(weight), y.clone().binding(), &mut kinds).ok()?;
    Some(y)
}

fn float(dtype: DType) -> burn::tensor::FloatDType {
    dtype.into()
}
