//! What the example programs share: arguments, progress, pictures for people, file names, and results as JSON.

pub mod cli;
#[cfg(feature = "dataset")]
pub mod data;
#[cfg(feature = "evaluate")]
pub mod evaluate;
pub mod random_checkpoint;

/// The project's front page, compiled.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct FrontPage;

/// The user's guide, compiled.
#[cfg(doctest)]
#[doc = include_str!("../../docs/guide.md")]
struct Guide;
