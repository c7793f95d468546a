//! The `config.json` files of the published layout, checked and typed (spec section 0).
//!
//! Every size is checked against a limit before anything is allocated, so a damaged or hostile file only leads to an error.

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
pub use layout::Folders;
pub(crate) use layout::Layout;

use std::path::Path;

use crate::error::{Error, Result};
use crate::files::Storage;

/// Maximum number of channels of a layer; the largest published one has 8,960.
pub(crate) const MAX_WIDTH: usize = 65_536;
/// Maximum number of layers.
pub(crate) const MAX_DEPTH: usize = 512;
/// Maximum side of a scale in latent positions: 256 are 4096 pixels.
pub(crate) const MAX_SIDE: usize = 256;
/// Maximum size of a codebook or vocabulary.
pub(crate) const MAX_VOCABULARY: usize = 4 << 20;
/// Maximum number of prompt tokens; the published models have 300.
pub(crate) const MAX_CONTEXT: usize = 4096;
/// Maximum number of tokens of prompt and scales together; the published model of 1024 pixels has 9,751.
pub(crate) const MAX_TOKENS: usize = 65_536;
/// Maximum side of an image in pixels.
pub(crate) const MAX_RESOLUTION: usize = 8192;

/// The configuration of a checkpoint.
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
    /// Default sampling parameters of the model.
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

    /// Returns the side of generated images in pixels.
    pub fn resolution(&self) -> usize {
        self.transformer.last_side() * self.visual.downsample()
    }

    /// Checks that the parts fit together; `transformer_path` is for error messages.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] naming the first value that does not fit.
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
        // No tensor has these sizes. Loading the weights would therefore not reveal a value that is too large.
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
