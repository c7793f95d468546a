//! What the example programs share: progress bars, file names, and results as JSON.

pub mod bars;
pub mod output;

/// The project's front page, compiled.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct FrontPage;
