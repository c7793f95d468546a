//! What the example programs share: progress bars, file names, and results as JSON.

pub mod bars;
pub mod output;
