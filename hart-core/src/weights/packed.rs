//! Packed weights in checkpoint files: a linear layer's matrix under its usual name, bfloat16 or 8-bit integers in panels
//! `[ceil(out / 16), ceil(in / n), 16, n]` with n inputs in 4 bytes, and the integers' scales `[out]` under the name with `_scale`
//! behind. Nothing is converted when such a file is opened: products read it where it is mapped.

use super::checkpoint::Checkpoint;
use super::tensors::Stored;
use crate::device::Precision;
use crate::error::{Error, Result};
use crate::kernels::PackedWeight;

/// What stands behind a weight's name in that of its scales.
const SCALE: &str = "_scale";

/// Names that a packed weight may take in a file.
pub(super) fn names(weight: &str) -> [String; 2] {
    [weight.to_string(), format!("{weight}{SCALE}")]
}

/// Reads a packed weight for a field of shape `[out, in]`; `None` if the tensor is not packed, or of other sizes.
///
/// # Errors
///
/// Its scales are missing, not of its size, or not finite.
pub(super) fn read(checkpoint: &Checkpoint, name: &str, shape: &[usize]) -> Result<Option<PackedWeight>> {
    let (Some(entry), &[outputs, inputs]) = (checkpoint.entry(name), shape) else { return Ok(None) };
    let sizes = [inputs, outputs];
    let (Some(precision), Stored::Bytes(panels)) = (entry.packed_precision(), &entry.stored) else { return Ok(None) };
    if PackedWeight::stored_shape(precision, sizes).is_none_or(|stored| entry.info.shape != stored) {
        return Ok(None);
    }
    let scales = match precision {
        Precision::Int8 => Some(checkpoint.values(&names(name)[1])?),
        _ => None,
    };
    let problem =
        || Error::checkpoint(&entry.info.file, format!("packed tensor `{name}`: expected {outputs} scales: convert it again"));
    PackedWeight::from_stored(sizes, panels.clone(), scales).map(Some).ok_or_else(problem)
}
