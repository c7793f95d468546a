//! What the benchmarks share.

use hart_core::{Hart, OpenOptions};

/// The model that `HART_MODEL` names, or the one shipped with the examples.
///
/// # Panics
///
/// If it can't be opened; the message says why.
pub fn model() -> Hart {
    let shipped = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/models/hart-emoji");
    let folder = std::env::var_os("HART_MODEL").unwrap_or_else(|| shipped.into());
    Hart::open(&folder, OpenOptions::new()).unwrap_or_else(|error| panic!("{error}"))
}
