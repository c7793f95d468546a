//! Packed weights of linear layers in checkpoint files.
//!
//! A packed weight keeps its usual name. It holds bf16 or int8 in panels `[ceil(out / 16), ceil(in / n), 16, n]`, where n values take 4
//! bytes. The scales of int8, `[out]`, have the same name with the suffix `_scale`. Matrix products read the panels from the mapped
//! file, without a conversion.

use super::checkpoint::Checkpoint;
use super::tensors::TensorBytes;
use crate::device::Precision;
use crate::error::{Error, Result};
use crate::kernels::PackedWeight;

/// Suffix of the name of a weight's scales.
const SCALE_SUFFIX: &str = "_scale";

/// Returns the names of a packed weight and its scales.
pub(super) fn tensor_names(weight: &str) -> [String; 2] {
    [weight.to_string(), format!("{weight}{SCALE_SUFFIX}")]
}

/// Reads a packed weight for a field of shape `[out, in]`; `None` if the tensor is not packed or has another shape.
///
/// # Errors
///
/// [`Error::Checkpoint`] if the scales are missing or of another size; [`Error::NotFinite`] if one is not finite.
pub(super) fn read(checkpoint: &Checkpoint, name: &str, shape: &[usize]) -> Result<Option<PackedWeight>> {
    let (Some(entry), &[outputs, inputs]) = (checkpoint.entry(name), shape) else { return Ok(None) };
    let sizes = [inputs, outputs];
    let (Some(precision), TensorBytes::Buffer(panels)) = (entry.packed_precision(), &entry.bytes) else { return Ok(None) };
    if PackedWeight::stored_shape(precision, sizes).is_none_or(|stored| entry.info.shape != stored) {
        return Ok(None);
    }
    let scales = match precision {
        Precision::Int8 => Some(checkpoint.values(&tensor_names(name)[1])?),
        _ => None,
    };
    let problem = || {
        Error::checkpoint(&entry.info.file, format!("packed tensor `{name}`: expected {outputs} scales: convert the model again"))
    };
    PackedWeight::from_stored(sizes, panels.clone(), scales).map(Some).ok_or_else(problem)
}
