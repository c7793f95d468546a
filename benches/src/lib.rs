//! Support code of the benchmarks.

use hart_core::{Hart, OpenOptions};

/// Opens the model folder that `HART_MODEL` names, or the shipped model.
///
/// # Panics
///
/// Panics if the model can't be opened.
pub fn model() -> Hart {
    let shipped = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/models/hart-emoji");
    let folder = std::env::var_os("HART_MODEL").unwrap_or_else(|| shipped.into());
    Hart::open(&folder, OpenOptions::new()).unwrap_or_else(|error| panic!("{error}"))
}
