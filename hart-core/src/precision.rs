//! The precision of every parameter, in one table.
//!
//! Layers do not know it. [`Loader`](crate::weights::Loader) reads one parameter after another and rounds each as the table says.
//! Parameters that the kernels can read in the type of the file keep that type. A model in a lower precision is therefore never in
//! memory in f32 as a whole. [`convert`](crate::convert) stores parameters in the same forms.

use burn::module::Param;
#[cfg(feature = "train")]
use burn::module::{Module, ModuleMapper};
use burn::prelude::*;
use burn::tensor::{DType, FloatDType};

use crate::device::{Precision, is_cpu};
#[cfg(feature = "train")]
use crate::kernels;
use crate::nn;
use crate::weights::is_field_below;

/// The form of a parameter on the CPU in bf16 and int8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CpuForm {
    /// f32, the form of everything that is not in the table.
    F32,
    /// Quantised and packed for the CPU's matrix instructions: weights of linear layers. In a model in f32, they keep the type of
    /// the file, and matrix products widen them.
    Packed,
    /// The type of the file, f32, f16 or bf16: an embedding, whose rows are widened when they are looked up.
    Stored,
    /// bf16: kernels of 3x3 convolutions, whose sums stay in f32. Int8 would be no faster with Winograd's algorithm, and images
    /// would differ far more.
    Bf16,
}

/// The modules whose parameters a GPU can hold in half precision, each with its form on the CPU. Paths are as in the table of
/// [names](crate::weights::Table). Every other parameter is in f32.
pub(crate) const TABLE: [(&str, CpuForm); 30] = [
    // The text encoder. Its residual stream and its last norm are exact.
    ("embedding", CpuForm::Stored),
    ("layers.*.attention_norm", CpuForm::F32),
    ("layers.*.attention.query", CpuForm::Packed),
    ("layers.*.attention.key", CpuForm::Packed),
    ("layers.*.attention.value", CpuForm::Packed),
    ("layers.*.attention.output", CpuForm::Packed),
    ("layers.*.feed_forward_norm", CpuForm::F32),
    ("layers.*.feed_forward.gate", CpuForm::Packed),
    ("layers.*.feed_forward.up", CpuForm::Packed),
    ("layers.*.feed_forward.down", CpuForm::Packed),
    // Only rounded layers read the outputs of the norms. The modulators compute one row for each run and are exact.
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

/// Returns whether a GPU holds a parameter in half precision.
pub(crate) fn is_rounded(field: &str) -> bool {
    find(field).is_some()
}

/// Returns the form on the CPU of a parameter of this shape.
pub(crate) fn cpu_form(field: &str, shape: &[usize]) -> CpuForm {
    match (find(field), shape) {
        (Some(CpuForm::Packed), [_, _]) => CpuForm::Packed,
        (Some(CpuForm::Bf16), [_, _, 3, 3]) => CpuForm::Bf16,
        (Some(CpuForm::Stored), _) => CpuForm::Stored,
        _ => CpuForm::F32,
    }
}

/// Returns whether the CPU's kernels, or [`round`], read a parameter in the half precision of its file.
pub(crate) fn is_read_as_stored(field: &str, shape: &[usize], dtype: DType, precision: Precision) -> bool {
    match cpu_form(field, shape) {
        CpuForm::Packed | CpuForm::Stored => true,
        CpuForm::Bf16 => precision != Precision::F32 && dtype == DType::BF16,
        CpuForm::F32 => false,
    }
}

/// Converts a parameter that was loaded in f32, or [as stored](is_read_as_stored), to its form in a model in `precision`.
pub(crate) fn round<const D: usize>(param: Param<Tensor<D>>, field: &str, precision: Precision) -> Param<Tensor<D>> {
    if is_cpu(&param.lazy_device()) {
        return match (precision, cpu_form(field, &param.lazy_shape())) {
            (Precision::Bf16 | Precision::Int8, CpuForm::Packed) => nn::pack(param, precision),
            (Precision::Bf16 | Precision::Int8, CpuForm::Bf16) if param.val().dtype() != DType::BF16 => {
                param.map(|kernel| kernel.cast(DType::BF16))
            }
            _ => param,
        };
    }
    match (precision, find(field)) {
        (Precision::F16, Some(_)) => cast_persistent(param, FloatDType::F16),
        (Precision::Bf16, Some(_)) => cast_persistent(param, FloatDType::BF16),
        _ => param,
    }
}

/// Casts a parameter into memory that the allocator keeps separate from the memory of a run.
fn cast_persistent<const D: usize>(param: Param<Tensor<D>>, dtype: FloatDType) -> Param<Tensor<D>> {
    let device = param.lazy_device();
    param.map(|weight| device.memory_persistent_allocations(weight, |weight| weight.cast(dtype)))
}

/// Returns a module with all float parameters in f32, for training.
#[cfg(feature = "train")]
pub(crate) fn widened<M: Module>(module: M) -> M {
    struct Widen;
    impl ModuleMapper for Widen {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            param.map(kernels::to_f32)
        }
    }
    module.map(&mut Widen)
}
