//! Checkpoint files: opened, checked, and laid into modules by one table of names.
//!
//! Formats are safetensors (one file or sharded, memory-mapped) and torch's zip pickle `.bin` (one file or sharded), whose tensors
//! are read without running any of its code. Tensors of f32, f16, bf16 and f64 become f32.

mod checkpoint;
mod convert;
mod load;
mod names;
mod packed;
mod report;
mod save;
mod tensors;

pub use checkpoint::Checkpoint;
pub(crate) use convert::{ConversionProgress, convert_tensors, rounded_tensors};
pub(crate) use load::fields_and_shapes;
pub use load::{Loader, names_and_shapes, parameters};
pub(crate) use names::is_field_below;
pub use names::{TEXT, TRANSFORMER, Table, VISUAL, visual_names};
pub(crate) use report::shortened;
pub use report::{Misplaced, Misshapen, Report};
pub use save::{NamedTensor, StoredAs, named_tensors, save_tensors};
pub use tensors::TensorInfo;

/// Which weights of the transformer are used where a checkpoint has two sets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum WeightSet {
    /// The EMA weights if they are there, else the plain ones.
    #[default]
    PreferEma,
    /// The EMA weights: `llm/ema_model.safetensors` or `llm/ema_model.bin`.
    Ema,
    /// The plain weights.
    Plain,
}
