//! From prompts to the context: tokenizer, padding and masks, and a Qwen2 decoder used as text encoder (spec section 1).

mod prompt;
mod prompt_context;
mod qwen2;
mod tokenizer;

pub use prompt::{SystemPrompt, Tokens};
pub use prompt_context::PromptContext;
pub(crate) use prompt_context::{ModelId, PromptSettings};
pub use qwen2::Qwen2;
pub use tokenizer::{Side, TextTokenizer, Truncation};

use std::path::Path;

use burn::prelude::*;

use crate::config::TextConfig;
use crate::device::Precision;
use crate::error::Result;
use crate::options::OpenOptions;
use crate::progress::Progress;
use crate::weights::{Checkpoint, LoadReport, Loader, TEXT};

/// Encoded prompts: R rows of T tokens with D channels.
#[derive(Clone, Debug)]
pub struct Context {
    /// Hidden states of the text encoder after its final norm, `[R, T, D]`.
    pub hidden: Tensor<3>,
    /// True for text tokens, false for padding, `[R][T]`.
    pub mask: Vec<Vec<bool>>,
    /// Position of each token, `[R][T]`.
    pub positions: Vec<Vec<i64>>,
    /// Number of unconditional rows at the end, added by [`Self::with_unconditional`]. All tokens of such a row are equal, so only
    /// one of them has to be computed.
    pub unconditional: usize,
}

impl Context {
    /// Returns the number of rows, R.
    pub fn rows(&self) -> usize {
        self.mask.len()
    }

    /// Appends one unconditional row for each row, for classifier-free guidance. The hidden states of an unconditional row are
    /// zeros, all at position 0, and only its first token counts as text.
    pub fn with_unconditional(self) -> Self {
        let (rows, length) = (self.rows(), self.mask.first().map_or(0, Vec::len));
        let mut only_first = vec![false; length];
        if let Some(first) = only_first.first_mut() {
            *first = true;
        }
        let zeros = self.hidden.zeros_like();
        Self {
            hidden: Tensor::cat(vec![self.hidden, zeros], 0),
            mask: [self.mask, vec![only_first; rows]].concat(),
            positions: [self.positions, vec![vec![0; length]; rows]].concat(),
            unconditional: rows,
        }
    }
}

/// Tokenizer and encoder of a text model's folder.
#[derive(Debug)]
pub struct TextEncoder {
    tokenizer: TextTokenizer,
    pub(crate) encoder: Qwen2,
}

impl TextEncoder {
    /// Opens a text model's folder, with `config.json`, weights, `tokenizer.json` and `tokenizer_config.json`.
    ///
    /// # Errors
    ///
    /// A file is missing or damaged, or the tensors don't fit the configuration.
    pub fn open(folder: &Path, options: &OpenOptions, device: &Device) -> Result<(Self, LoadReport)> {
        let storage = options.disk();
        let config = TextConfig::read_in(&storage, &folder.join("config.json"))?;
        let tokenizer = TextTokenizer::open_in(&storage, folder, config.vocab_size)?;
        Self::load(tokenizer, &Checkpoint::open_in(&storage, folder)?, &config, options, device, Precision::F32)
    }

    /// Loads the weights of a checkpoint in `precision`.
    pub(crate) fn load(
        tokenizer: TextTokenizer,
        checkpoint: &Checkpoint,
        config: &TextConfig,
        options: &OpenOptions,
        device: &Device,
        precision: Precision,
    ) -> Result<(Self, LoadReport)> {
        let mut loader = Loader::new(checkpoint, &TEXT).with_precision(precision);
        let encoder = loader.load(Qwen2::init(config, device), "", device)?;
        Ok((Self { tokenizer, encoder }, loader.finish(options.strict)?))
    }

    /// Returns the tokenizer.
    pub fn tokenizer(&self) -> &TextTokenizer {
        &self.tokenizer
    }

    /// Estimates the multiply-adds of one row of tokens, for progress.
    pub(crate) fn work(&self, length: usize) -> f64 {
        self.encoder.work(length)
    }

    /// Encodes token rows.
    ///
    /// # Errors
    ///
    /// [`Error::Cancelled`](crate::Error::Cancelled).
    pub fn encode(&self, tokens: &Tokens, progress: &mut Progress<'_>) -> Result<Context> {
        self.encoder.forward(tokens, progress)
    }
}
