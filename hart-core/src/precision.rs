//! The precision of every parameter, in one table.
//!
//! Layers do not know it. [`Loader`](crate::weights::Loader) rounds each parameter by the table as soon as it is read, so that a model
//! in a lower precision is never in memory in f32 as a whole. [`convert`](crate::convert) stores parameters in the same forms.

use burn::module::Param;
use burn::prelude::*;
use burn::tensor::{DType, FloatDType};

use crate::device::{Precision, is_cpu};
use crate::nn;
use crate::weights::is_field_below;

/// The form of a parameter on the CPU in bf16 and int8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CpuForm {
    /// f32, the form of everything that is not in the table.
    F32,
    /// Quantised and packed for the CPU's matrix instructions: weights of linear layers.
    Packed,
    /// bf16: kernels of 3x3 convolutions, whose sums stay in f32. Int8 would be no faster with Winograd's algorithm, and images
    /// would differ far more.
    Bf16,
}

/// The modules that are rounded, by their paths as in the table of [names](crate::weights::Table), with their form on the CPU. A GPU
/// holds all their parameters in half precision. Every other parameter is in f32.
pub(crate) const TABLE: [(&str, CpuForm); 21] = [
    // The text encoder runs once for a prompt. Its residual stream and its last norm are exact.
    ("layers.*", CpuForm::F32),
    // Only rounded layers read the norms. The modulators have one row for each run and are exact.
    ("transformer.blocks.*.norm", CpuForm::F32),
    ("transformer.blocks.*.attention.qkv", CpuForm::Packed),
    ("transformer.blocks.*.attention.output", CpuForm::Packed),
    ("transformer.blocks.*.feed_forward.gate", CpuForm::Packed),
    ("transformer.blocks.*.feed_forward.up", CpuForm::Packed),
    ("transformer.blocks.*.feed_forward.down", CpuForm::Packed),
    ("transformer.head.norm", CpuForm::F32),
    ("transformer.head.logits", CpuForm::Packed),
    ("transformer.residual_norm", CpuForm::F32),
    // The layers from and to the latent are small and exact.
    ("residual.mlp.condition_embed", CpuForm::Packed),
    ("residual.mlp.blocks.*.norm", CpuForm::F32),
    ("residual.mlp.blocks.*.modulator", CpuForm::Packed),
    ("residual.mlp.blocks.*.hidden", CpuForm::Packed),
    ("residual.mlp.blocks.*.output", CpuForm::Packed),
    ("residual.mlp.final_modulator", CpuForm::Packed),
    // The first and the last convolution of the decoder cost little.
    ("decoder.conv_in", CpuForm::F32),
    ("decoder.mid", CpuForm::Bf16),
    ("decoder.up", CpuForm::Bf16),
    ("decoder.norm_out", CpuForm::F32),
    ("decoder.conv_out", CpuForm::F32),
];

fn find(field: &str) -> Option<CpuForm> {
    TABLE.iter().find(|(module, _)| is_field_below(field, module)).map(|(_, form)| *form)
}

/// Returns the form on the CPU of a parameter of this shape.
pub(crate) fn cpu_form(field: &str, shape: &[usize]) -> CpuForm {
    match (find(field), shape) {
        (Some(CpuForm::Packed), [_, _]) => CpuForm::Packed,
        (Some(CpuForm::Bf16), [_, _, 3, 3]) => CpuForm::Bf16,
        _ => CpuForm::F32,
    }
}

/// Rounds a parameter that was loaded in f32 as a model in `precision` holds it.
pub(crate) fn round<const D: usize>(param: Param<Tensor<D>>, field: &str, precision: Precision) -> Param<Tensor<D>> {
    if is_cpu(&param.lazy_device()) {
        return match (precision, cpu_form(field, &param.lazy_shape())) {
            (Precision::Bf16 | Precision::Int8, CpuForm::Packed) => nn::pack(param, precision),
            (Precision::Bf16 | Precision::Int8, CpuForm::Bf16) => param.map(|kernel| kernel.cast(DType::BF16)),
            _ => param,
        };
    }
    match (precision, find(field)) {
        (Precision::F16, Some(_)) => cast_persistent(param, FloatDType::F16),
        (Precision::Bf16, Some(_)) => cast_persistent(param, FloatDType::BF16),
        _ => param,
    }
}

/// Casts a parameter into memory that the allocator keeps apart from that of a run.
fn cast_persistent<const D: usize>(param: Param<Tensor<D>>, dtype: FloatDType) -> Param<Tensor<D>> {
    let device = param.lazy_device();
    param.map(|weight| device.memory_persistent_allocations(weight, |weight| weight.cast(dtype)))
}

/// Returns by how many bytes the weight of a linear layer is smaller than in f32.
pub(crate) fn bytes_below_f32<const D: usize>(param: &Param<Tensor<D>>, field: &str) -> u64 {
    let shape = param.lazy_shape();
    if cpu_form(field, &shape) != CpuForm::Packed {
        return 0;
    }
    let elements = shape.num_elements();
    let bytes = match nn::packed(param) {
        Some(packed) => packed.bytes(),
        None => (elements * param.val().dtype().size()) as u64,
    };
    ((elements * size_of::<f32>()) as u64).saturating_sub(bytes)
}
