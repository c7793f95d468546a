//! Checkpoint files: opening, checking, and loading into modules by one table of names.
//!
//! The formats are safetensors, memory-mapped on request, and torch's pickle (`.bin`), each as one file or as shards. No code in a
//! pickle is executed. Tensors of f32, f16, bf16 and f64 are read as f32. For inference on the CPU, large tensors stay in the half
//! precision of their file.

mod bytes;
mod checkpoint;
mod convert;
mod fingerprint;
mod load;
mod names;
mod packed;
mod report;
mod save;
mod tensors;
mod wrappers;

pub(crate) use bytes::{WeightBytes, weight_bytes};
pub use checkpoint::Checkpoint;
pub(crate) use convert::{ConversionProgress, convert_tensors, rounded_tensors};
pub(crate) use fingerprint::Fingerprint;
#[cfg(any(test, feature = "train"))]
pub(crate) use load::fields_and_shapes;
pub use load::{Loader, names_and_shapes, parameter_count};
pub(crate) use load::{RELEASED_BYTES, TensorProgress, parameter_counts};
pub(crate) use names::is_field_below;
pub use names::{TEXT, TRANSFORMER, Table, VISUAL, visual_names};
pub(crate) use report::shortened;
pub use report::{LoadReport, ShapeMismatch, UnmatchedTensor};
pub use save::{NamedTensor, StorageDtype, named_tensors, save_tensors};
pub use tensors::TensorInfo;

/// The set of transformer weights to load from a checkpoint that may have two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum WeightSet {
    /// The EMA weights if there are any, otherwise the plain weights.
    #[default]
    PreferEma,
    /// The EMA weights: `llm/ema_model.safetensors`, or `llm/ema_model.bin` or another torch file of that name.
    Ema,
    /// The plain weights.
    Plain,
}
