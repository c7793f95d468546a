//! Shared code of the example programs.

pub mod cli;
#[cfg(feature = "dataset")]
pub mod data;
#[cfg(feature = "evaluate")]
pub mod evaluate;
pub mod random_checkpoint;

/// Compiles the README's examples.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct FrontPage;

/// Compiles the examples of the user's guide.
#[cfg(doctest)]
#[doc = include_str!("../../docs/guide.md")]
struct Guide;
