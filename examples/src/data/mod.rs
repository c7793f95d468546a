//! Training pictures: drawings, scenes composed of them, captions, and what is held out for tests.

pub mod colours;
pub mod content;
pub mod drawings;
pub mod files;
pub mod iconify;
mod layout;
pub mod options;
pub mod paint;
pub mod pictures;
pub mod prompts;
pub mod random;
pub mod scenes;
pub mod splits;
pub mod vectors;

pub use content::{Content, Kind, Place, Placed, Relation};
pub use drawings::{Alias, Concept, Drawing, Drawings};
pub use options::SceneOptions;
pub use prompts::Prompt;
pub use scenes::{Scene, Scenes};
pub use splits::{Split, Splits};
pub use vectors::open_or_render;

/// Pixels a side that drawings are kept in: twice the largest object of a scene of 64 pixels.
pub const SIDE: usize = 128;
