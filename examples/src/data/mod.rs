//! Training data: drawings, scenes composed of them, captions, and the splits held out for tests.

pub mod colours;
pub mod content;
pub mod drawings;
pub mod files;
pub mod iconify;
pub mod images;
mod layout;
pub mod options;
pub mod paint;
pub mod prompts;
pub mod random;
pub mod scenes;
pub mod splits;
pub mod vectors;

pub use content::{Content, Kind, Position, Relation, SceneObject};
pub use drawings::{Alias, Concept, Drawing, Drawings};
pub use options::SceneOptions;
pub use prompts::Prompt;
pub use scenes::{Scene, Scenes};
pub use splits::{Split, Splits};
pub use vectors::open_or_render;

/// Default side of a pack's drawings, in pixels: about twice the largest object of a scene of 64 pixels.
pub const SIDE: usize = 128;
