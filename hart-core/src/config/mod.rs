//! The `config.json` files of the published layout, checked and typed (spec section 0).
//!
//! Every number is held against a limit before anything is allocated, so that a damaged or hostile file costs a message and
//! nothing else.

mod fields;
mod generation;
mod layout;
mod text;
mod transformer;
mod visual;

pub use generation::{GenerationConfig, MAX_GUIDANCE};
pub use text::TextConfig;
pub use transformer::{LevelEmbeddingKind, ModulationKind, Pooling, ResidualConfig, TransformerConfig};
pub(crate) use visual::NORM_GROUPS;
pub use visual::VisualConfig;

pub(crate) use fields::Fields;
pub(crate) use layout::Layout;

use std::path::Path;

use crate::error::{Error, Result};
use crate::files::Storage;

/// Most channels of any layer; the largest published one has 8,960.
pub(crate) const MAX_WIDTH: usize = 65_536;
/// Most layers of any stack.
pub(crate) const MAX_DEPTH: usize = 512;
/// Most latent positions along one side: 256 is a picture of 4096 pixels.
pub(crate) const MAX_SIDE: usize = 256;
/// Most rows of a codebook or vocabulary.
pub(crate) const MAX_VOCABULARY: usize = 4 << 20;
/// Most tokens of a prompt; the published models read 300.
pub(crate) const MAX_CONTEXT: usize = 4096;
/// Most tokens of prompt and scales together; the published 1024px model has 9,751.
pub(crate) const MAX_TOKENS: usize = 65_536;
/// Largest side of a picture in pixels.
pub(crate) const MAX_RESOLUTION: usize = 8192;

/// Everything that a checkpoint's configuration files say.
#[derive(Clone, Debug)]
pub struct Config {
    /// The Qwen2 text encoder.
    pub text: TextConfig,
    /// The autoregressive transformer.
    pub transformer: TransformerConfig,
    /// The residual diffusion MLP.
    pub residual: ResidualConfig,
    /// The visual tokenizer and its decoder.
    pub visual: VisualConfig,
    /// How the model wants to be sampled.
    pub generation: GenerationConfig,
}

impl Config {
    /// Reads and checks the configuration files of a checkpoint's root folder.
    ///
    /// # Errors
    ///
    /// [`Error::Checkpoint`] if a file is missing, or [`Error::Config`] naming the first invalid value.
    pub fn open(folder: &Path) -> Result<Self> {
        Ok(Layout::find(&Storage::Disk { memory_map: false }, folder, None)?.config)
    }

    /// Width and height of the pictures, in pixels.
    pub fn resolution(&self) -> usize {
        self.transformer.last_side() * self.visual.downsample()
    }

    /// Checks what the parts must agree on; the path of the transformer's file is for messages.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] naming what doesn't fit.
    pub fn check(&self, transformer_path: &Path) -> Result<()> {
        if self.transformer.context_dim != self.text.hidden_size {
            return Err(Error::Config {
                path: transformer_path.to_path_buf(),
                field: "context_dim".into(),
                got: self.transformer.context_dim.to_string(),
                expected: format!(
                    "{}, the text model's hidden_size: use the text model that this checkpoint was trained with",
                    self.text.hidden_size
                ),
            });
        }
        // No tensor stands behind these: memory would be the first to notice.
        let tokens = self.transformer.context_tokens + self.transformer.sides.iter().map(|side| side * side).sum::<usize>();
        let limits = [
            (tokens, MAX_TOKENS, "tokens of prompt and scales together"),
            (self.resolution(), MAX_RESOLUTION, "pixels along a side"),
        ];
        for (number, limit, what) in limits {
            if number > limit {
                return Err(Error::Config {
                    path: transformer_path.to_path_buf(),
                    field: "patch_nums".into(),
                    got: format!("{number} {what}"),
                    expected: format!("at most {limit}"),
                });
            }
        }
        Ok(())
    }
}
